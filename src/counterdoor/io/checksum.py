"""Checksums of artifacts: bound to the data set and version that they were written as."""

import hashlib
from pathlib import Path

from counterdoor.io.safetensors_header import check_regular

NAME = ".checksum"
"""Of the file beside an artifact, in the folder of its version."""
_verified: dict[Path, tuple[int, ...]] = {}
"""What this process has written or verified, and what the file looked like then."""


def write_checksum(partial: Path, final: Path) -> None:
    """Write the checksum of an artifact that is about to be renamed.

    Args:
        partial: where it lies.
        final: where it will lie, ``<data set>/<version>/<name>``.
    """
    final.with_name(NAME).write_text(f"{checksum(partial, final)}\n")
    _verified[final] = _state(partial)


def checksum(file: Path, place: Path) -> str:
    """SHA-256 over an artifact's place, below the folder ``data``, and its bytes; hexadecimal.

    The place holds the data set's name, the choices and the version, so that no artifact passes
    for another one. A project may be moved as a whole.

    Args:
        file: what is read.
        place: where it belongs.
    """
    parts = place.parts
    start = len(parts) - parts[::-1].index("data") if "data" in parts else len(parts) - 3
    digest = hashlib.sha256("/".join(parts[start:]).encode(errors="surrogateescape"))
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(file: Path) -> None:
    """Raise unless an artifact is the one that was written there.

    Each file is read once in a process, unless it has changed since.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: saying what is wrong with it.
    """
    check_regular(file)
    state = _state(file)
    if _verified.get(file) == state:
        return
    beside = file.with_name(NAME)
    try:
        check_regular(beside)
        with beside.open(errors="replace") as opened:
            written = opened.read(100).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"its checksum, {NAME} beside it, cannot be read ({reason})") from error
    if checksum(file, file) != written:
        raise ValueError(
            "its checksum is not the one that was written with it: it was changed since, or is of "
            "another data set or version"
        )
    _verified[file] = state


def _state(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
