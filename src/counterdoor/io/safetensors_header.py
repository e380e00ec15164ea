"""The header of a safetensors file, read strictly before anything of the file is believed."""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from counterdoor.component import Config
from counterdoor.io.checksum import regular

MAX_HEADER = 4 * 2**20
"""Bytes; ours are a few thousand, and a thousand times as many with twenty thousand classes."""
MAX_DEPTH = 32
"""Lists and tables within each other."""
MAX_DIGITS = 20
"""Of a whole number."""
SHOWN = 80
"""Characters of a value, and of a name, that a message repeats."""

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Entry(Config):
    """What a header says of one tensor."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: Annotated[tuple[Count, ...], Field(strict=False)]
    data_offsets: Annotated[tuple[Count, Count], Field(strict=False)]


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors that a file says it holds, and its texts by name.

    Args:
        path: a safetensors file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no file, or its header is not one that safetensors writes, or
            says another size than the file has.
    """
    regular(path.resolve())
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError("it is no safetensors file, or it was cut off")
        if length > MAX_HEADER:
            raise ValueError(f"its header has {length} bytes, more than {MAX_HEADER}")
        text = file.read(length)
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is no safetensors file: its header is not UTF-8 text") from None
    header = strict_json(decoded, "its header")
    if not isinstance(header, dict):
        raise ValueError("it is no safetensors file: its header is no table")
    texts = checked(_TEXTS, header.pop("__metadata__", {}), "__metadata__")
    entries = checked(_ENTRIES, header, "its header")
    ends = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if ends != size - 8 - length:
        raise ValueError(f"its tensors take {ends} bytes, but it holds {size - 8 - length}")
    return entries, texts


_TEXTS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))
_ENTRIES: TypeAdapter[dict[str, Entry]] = TypeAdapter(dict[str, Entry])


def checked(kind: TypeAdapter[Any], value: object, what: str) -> Any:
    """``value`` as ``kind``.

    Raises:
        ValueError: one line on the first thing that is wrong.
    """
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise ValueError(told(error, what)) from None


def told(error: ValidationError, what: str) -> str:
    """The first of a validation's errors in one line: where, what is valid, what there is."""
    first, *others = error.errors(include_url=False)
    where = ".".join(shown(part) if isinstance(part, str) else f"{part}" for part in first["loc"])
    given = "" if first["type"] in ("missing", "extra_forbidden") else f", not {_repr(first)}"
    more = f" (and {len(others)} more)" if others else ""
    return f"{what}{': ' if where else ''}{where}: {first['msg']}{given}{more}"


def shown(text: str) -> str:
    """A text of a file in a message: one line, nothing that a terminal obeys, not long."""
    plain = text if text.isprintable() else ascii(text)[1:-1]
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}…"


def _repr(error: Any) -> str:
    return shown(ascii(error["input"]))


def strict_json(text: str, what: str) -> Any:
    """JSON as the standard has it: no NaN or infinity, no key twice, no bottomless nesting.

    Args:
        text: the JSON.
        what: it is, for the message.

    Raises:
        ValueError: one line on what is wrong.
    """

    def refused(number: str) -> Any:
        raise ValueError(f"{what} has the number {shown(number)}")

    def real(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refused(digits)

    def whole(digits: str) -> int:
        return int(digits) if len(digits) <= MAX_DIGITS else refused(digits)

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for name, value in pairs:
            if name in built:
                raise ValueError(f"{what} has the key {shown(name)!r} twice")
            built[name] = value
        return built

    try:
        value = json.loads(
            text,
            parse_constant=refused,
            parse_float=real,
            parse_int=whole,
            object_pairs_hook=table,
        )
        _check_depth(value, MAX_DEPTH)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is no JSON: {error.msg}, character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"{what} is nested deeper than {MAX_DEPTH}") from None
    return value


def _check_depth(value: object, left: int) -> None:
    """Raise ``RecursionError`` if lists and tables lie deeper than ``left`` in each other."""
    if isinstance(value, (dict, list)):
        if not left:
            raise RecursionError
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, left - 1)
