"""What stands in the image column of a Parquet file: bytes, paths, Base64 or lists of levels."""

import binascii
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from counterdoor.names import shown
from counterdoor.sources.decoding import MAX_PIXELS, Content, UnreadableError

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_FILE = re.compile(r"(?s).*\.[A-Za-z0-9]{1,5}")
_EMPTY = UnreadableError("it is empty")


def is_image(kind: Any) -> bool:
    """Whether a column of this Arrow type may hold images."""
    return _is_struct(kind) or _is_bytes(kind) or _is_text(kind) or _levels_of(kind) is not None


def contents(column: Any, folder: Path) -> Iterator[Content]:
    """The images of an Arrow array, one after the other.

    Args:
        column: structs of ``bytes`` and ``path``, bytes, text (a path, or Base64), or nested
            lists of whole numbers, of shape (H, W), (H, W, C) or (C, H, W).
        folder: what paths are relative to; they must not lead out of it.
    """
    kind = column.type
    if _is_struct(kind):
        names = [field.name for field in kind]
        parts = {
            name: _values(column.field(name)) if name in names else iter(())
            for name in ("bytes", "path")
        }
        for row in range(len(column)):
            data, path = (next(part, None) for part in parts.values())
            if not column[row].is_valid:
                yield _EMPTY
            elif data:
                yield data
            else:
                yield _file(path, folder) if path else _EMPTY
    elif _is_bytes(kind):
        for data in _values(column):
            yield data or _EMPTY
    elif _is_text(kind):
        for text in _values(column):
            yield _from_text(text, folder) if text else _EMPTY
    else:
        for row in range(len(column)):
            yield _pixels(column[row])


def _values(column: Any) -> Iterator[Any]:
    """Python values; those that a dictionary holds once are made once."""
    import pyarrow as pa

    if not isinstance(column, pa.DictionaryArray):
        yield from map(value_of, column)
        return
    made: dict[int, Any] = {}
    for index in column.indices.to_pylist():
        if index is not None and index not in made:
            made[index] = value_of(column.dictionary[index])
        yield None if index is None else made[index]


def value_of(scalar: Any) -> Any:
    """An Arrow scalar's value; text that is not UTF-8 as :func:`os.fsdecode` gives it."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return os.fsdecode(scalar.as_buffer().to_pybytes())


def _from_text(text: str, folder: Path) -> Content:
    encoded = _DATA_URI.sub("", text, count=1)
    if encoded == text and len(text) < 1000 and _FILE.fullmatch(text):
        return _file(text, folder)
    try:
        return b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return UnreadableError("it is text, but neither Base64 nor the path of a file")


def _file(path: str, folder: Path) -> Content:
    """A file below ``folder``: somebody else's table shall not choose other files to read."""
    try:
        file = folder / path
        if not file.resolve().is_relative_to(folder.resolve()):
            return UnreadableError(f"its path {shown(path)} leads out of {shown(folder)}")
        if not file.exists():
            return UnreadableError(f"it has no bytes, and there is no {shown(file)}")
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        return UnreadableError(f"its path {shown(path[:80])} cannot be read")
    return file


def _pixels(cell: Any) -> Content:
    """The levels of nested lists as (C, H, W), uint8."""
    import pyarrow.compute as pc

    if not cell.is_valid:
        return _EMPTY
    levels, sizes = cell.values, [len(cell.values)]
    while _inner(levels.type) is not None:
        lengths = pc.unique(pc.list_value_length(levels)).to_pylist()
        if len(lengths) > 1:
            return UnreadableError("its rows differ in length")
        sizes.append(lengths[0] or 0 if lengths else 0)
        levels = levels.flatten()
    if len(sizes) == 1:
        return UnreadableError("it is one list of numbers, so its height and width are not known")
    if not len(levels):
        return _EMPTY
    if len(levels) > 3 * MAX_PIXELS:
        return UnreadableError(f"it has more than {MAX_PIXELS} pixels")
    if levels.null_count:
        return UnreadableError("levels are missing in it")
    ends = pc.min_max(levels).as_py()
    if ends["min"] < 0 or ends["max"] > 255:
        return UnreadableError("its levels are not within 0 and 255")
    numbers: np.ndarray = levels.to_numpy(zero_copy_only=False)
    pixels = numbers.astype(np.uint8).reshape(sizes)
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        return pixels.transpose(2, 0, 1)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        return pixels
    told = "x".join(map(str, sizes))
    return UnreadableError(f"it is {told} numbers, of which neither end is 1 or 3 channels")


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return False
    parts = {field.name: field.type for field in kind}
    return _is_bytes(parts.get("bytes")) or _is_text(parts.get("path"))


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _inner(kind: Any) -> Any:
    """The type of what is in a list; ``None`` if it is no list."""
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(check(kind) for check in lists) else None


def _levels_of(kind: Any) -> Any:
    """The type of whole numbers in nested lists; ``None`` if there are none."""
    import pyarrow as pa

    inner = _inner(kind)
    if inner is None:
        return None
    return inner if pa.types.is_integer(inner) else _levels_of(inner)
