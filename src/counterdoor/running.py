"""Which runs of a project are still going: a locked file for each, while its process lives.

However a process ends, the system frees its locks. A file whose lock can be taken therefore
belongs to a run that has been killed. The files lie in the project's folder, hence the runs of
other projects in the same store are nobody's business here. A lock says nothing about a process
of another machine that shares the folder: the file's name says on which machine its run is.
"""

import hashlib
import logging
import platform
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

FOLDER = ".runs"
"""In the project's folder."""
PATIENCE = 10.0
"""Seconds to wait for another process that makes or looks through the files."""

logger = logging.getLogger(__name__)


class Running:
    """A run that is going: its file stays locked until :meth:`end`, or the process's end.

    Args:
        project: the project's root.
        store: what tells the stores of runs apart; the same for all runs in one.
    """

    def __init__(self, project: Path, store: str) -> None:
        self.token = uuid.uuid4().hex
        """What the run is known by."""
        self._lock: FileLock | None = None
        folder = project / FOLDER
        file = folder / f"{'-'.join([_digest(store), *_machine(), self.token])}.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _guard(folder):
                lock = FileLock(file, timeout=0, thread_local=False)
                lock.acquire()
            self._lock = lock
        except (OSError, NotImplementedError) as error:  # a file system without locks
            logger.debug("nobody will notice if this run is killed: %s", error)

    def end(self) -> None:
        """The run has been closed in the store."""
        if self._lock is not None:
            with suppress(OSError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def killed(project: Path, store: str) -> Iterator[str]:
    """The tokens of the project's runs whose process is dead; each is forgotten after its turn.

    Args:
        project: the project's root.
        store: as in :class:`Running`; the runs of other stores are left alone.
    """
    folder = project / FOLDER
    ours, machine, boot = _digest(store), *_machine()
    dead: list[tuple[str, Path, FileLock]] = []
    try:
        if not any(folder.glob("*-*.lock")):
            return
        with _guard(folder):
            for file in sorted(folder.glob("*-*-*-*.lock")):
                its_store, its_machine, its_boot, token = file.stem.split("-")
                if its_store == ours and (its_machine == machine or its_boot == boot):
                    lock = FileLock(file, timeout=0, thread_local=False)
                    with suppress(OSError, NotImplementedError):  # its process lives
                        lock.acquire()
                        dead.append((token, file, lock))
    except (OSError, NotImplementedError) as error:
        logger.debug("killed runs cannot be looked for: %s", error)
    try:
        for token, file, _ in dead:
            yield token
            file.unlink(missing_ok=True)
    finally:
        for _, _, lock in dead:
            lock.release()


def _guard(folder: Path) -> FileLock:
    """Between the making of a file and its lock nobody must look at it."""
    return FileLock(folder / "guard", timeout=PATIENCE, thread_local=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _machine() -> tuple[str, str]:
    """Digests of this machine, and of its system since it was started.

    The containers of one system have names of their own, but one start; a machine keeps its name
    when it is started anew.
    """
    name = platform.node() + _text("/etc/machine-id")
    return _digest(name), _digest(_text("/proc/sys/kernel/random/boot_id") or name)


def _text(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""
