"""Checksums of artifacts: what a file holds, bound to what it is, in a file beside it.

The file is one that ``sha256sum -c`` reads; its first line, a comment there, says which artifact
and version the bytes are. It tells damage and mix-ups, not an attacker, who can write both.
"""

import hashlib
import json
import os
import stat
import time
from pathlib import Path, PurePath

SUFFIX = ".sha256"

YOUNG_NS = 100_000_000
"""A file that changed less than this ago may change again and keep its time: hashed each time."""

_known: dict[Path, tuple[tuple[int, ...], str]] = {}


class DamageError(ValueError):
    """What lies there is not what was saved; the text says in what."""


def beside(file: Path) -> Path:
    """The place of the checksum of ``file``."""
    return file.with_name(file.name + SUFFIX)


def write(written: Path, file: Path) -> None:
    """Write the checksum of ``file``, whose bytes are still called ``written``.

    Args:
        written: a complete file in the folder of ``file``.
        file: ``<name>/<version>/<name>``, which ``written`` will be renamed to.
    """
    text = _text(file, written.stat().st_size, digest(written))
    beside(file).write_text(text, encoding="utf-8")


def verify(file: Path) -> None:
    """Raise :class:`DamageError` unless ``file`` is what was saved there.

    Args:
        file: ``<name>/<version>/<name>``.
    """
    size = regular(file).st_size
    sidecar = beside(file)
    if not os.path.lexists(sidecar):
        raise DamageError(
            f"its checksum {sidecar.name} is not beside it, so it was made before artifacts had "
            "one, or was not copied whole"
        )
    regular(sidecar)
    with sidecar.open("rb") as opened:
        found = opened.read(100_000)
    actual = digest(file)
    if found != _text(file, size, actual).encode():
        raise DamageError(_difference(found, file, size, actual))


def regular(file: Path) -> os.stat_result:
    """The state of ``file``, which is looked at and not opened: a pipe would never answer.

    Raises:
        DamageError: if it is anything but a file; a link is none.
        FileNotFoundError: if there is nothing.
    """
    state = file.lstat()
    if not stat.S_ISREG(state.st_mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFLNK: "a link",
            stat.S_IFIFO: "a pipe",
            stat.S_IFSOCK: "a socket",
        }
        raise DamageError(f"it is {kinds.get(stat.S_IFMT(state.st_mode), 'a device')}, not a file")
    return state


def digest(file: Path) -> str:
    """SHA-256 of a file, computed once a process for as long as the file stays as it is."""
    before = file.stat()
    state = (
        *(before.st_dev, before.st_ino, before.st_size),
        *(before.st_mtime_ns, before.st_ctime_ns),
    )
    known = _known.get(file)
    if known is not None and known[0] == state:
        return known[1]
    settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > YOUNG_NS
    with file.open("rb") as opened:
        computed = hashlib.file_digest(opened, "sha256").hexdigest()
    if settled:
        _known[file] = (state, computed)
    return computed


def _place(file: Path) -> str:
    """Where an artifact belongs, whatever folder the project lies in: layer, variant, name."""
    parts = PurePath(file).parts[:-2]  # <name>/<version>/<name>
    data = max((at for at, part in enumerate(parts[:-1]) if part == "data"), default=len(parts) - 2)
    return "/".join(parts[data + 1 :])


def _text(file: Path, size: int, actual: str) -> str:
    what = {"artifact": _place(file), "version": file.parent.name, "bytes": size}
    return f"# {json.dumps(what)}\n{actual}  {file.name}\n"


def _difference(found: bytes, file: Path, size: int, actual: str) -> str:
    """In words, what of the checksum that was ``found`` is not so."""
    try:
        first, second = found.decode().removeprefix("# ").splitlines()
        said, saved = json.loads(first), second.split()[0]
        artifact, version, length = said["artifact"], said["version"], said["bytes"]
    except (ValueError, LookupError, TypeError):
        return f"its checksum {beside(file).name} is itself damaged"
    if artifact != _place(file):
        return f"its checksum is that of {str(artifact)[:300]!r}, not of {_place(file)!r}"
    if version != file.parent.name:
        return f"its checksum is that of version {str(version)[:300]!r}"
    if length != size:
        return f"it has {size} bytes, and was saved with {str(length)[:30]}"
    if saved != actual:
        return "its SHA-256 is not that of what was saved"
    return f"its checksum {beside(file).name} is itself damaged"
