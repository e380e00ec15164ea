"""What the footer of a Parquet file claims, read without the library that would believe it.

Arrow ends the whole process over some damaged footers as soon as it is asked for a column's
figures. A footer is a Thrift structure in the compact protocol; its fields are numbered in
``parquet.thrift`` of apache/parquet-format.
"""

from pathlib import Path
from typing import Any, NamedTuple

BYTE_ARRAY = 6
"""Physical type of text and bytes."""

DEPTH = 32
"""Structures within structures at most; a real footer has fewer than ten."""


class Chunk(NamedTuple):
    """A column of a row group: what it is called, and what it claims to hold.

    Attributes:
        path: names from the outermost column to the leaf.
        values: how many leaves.
        size: bytes, unpacked and still encoded.
        rows: of the row group.
        kind: the physical type.
    """

    path: tuple[str, ...]
    values: int
    size: int
    rows: int
    kind: int


def read_footer(file: Path) -> tuple[int, list[Chunk]]:
    """How many rows a Parquet file claims to have, and its columns' chunks.

    Raises:
        ValueError: if the footer cannot be read.
        OSError: if the file cannot be.
    """
    with file.open("rb") as opened:
        end = opened.seek(0, 2)
        opened.seek(max(0, end - 8))
        tail = opened.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length + 12 > end:
            raise ValueError("it has no footer")
        opened.seek(end - 8 - length)
        data = opened.read(length)
    try:
        told = _Reader(data).structure()
        groups = told.get(4, [])
        chunks = [
            Chunk(
                tuple(name.decode("utf-8", "surrogateescape") for name in meta[3]),
                values=int(meta[5]),
                size=int(meta[6]),
                rows=int(group[3]),
                kind=int(meta[1]),
            )
            for group in groups
            for meta in (column[3] for column in group[1])
        ]
        return max(int(told[3]), sum(int(group[3]) for group in groups)), chunks
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError("its footer is damaged") from error


class _Reader:
    """The compact protocol of Thrift, as plain values: structures are dictionaries by number."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.depth = data, 0, 0

    def structure(self) -> dict[int, Any]:
        self.depth += 1
        if self.depth > DEPTH:
            raise IndexError
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step = head >> 4
            number = number + step if step else _signed(self._varint())
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        self.depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):  # in a list, a truth value is a byte as well
            return self._byte()
        if kind in (4, 5, 6):
            return _signed(self._varint())
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15) for _ in range(size)]
        if kind == 11:
            size = self._varint()
            kinds = self._byte() if size else 0
            return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in range(size)]
        if kind == 12:
            return self.structure()
        raise IndexError

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise IndexError
        return self.data[self.at - size : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise IndexError


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
