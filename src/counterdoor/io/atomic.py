"""Atomic versions, each with its checksum: whole and what was saved, or not read at all."""

import os
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from kedro.io import AbstractVersionedDataset, DatasetError, Version
from kedro.io.core import VersionNotFoundError
from kedro_datasets import json, matplotlib, pandas, text
from matplotlib.figure import Figure

from counterdoor.io import checksum

T = TypeVar("T")

VERSION = re.compile(r"\d{4}-\d\d-\d\dT\d\d\.\d\d\.\d\d\.\d{3}Z")
"""Kedro's names of versions; a folder of another name is taken for one only if it is asked for."""


class LocalFile(AbstractVersionedDataset[T, T], Generic[T]):
    """Base of our own file formats: a versioned file on this machine."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(PurePosixPath(filepath), version)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}


def partial_of(final: PurePosixPath) -> PurePosixPath:
    """The hidden name that ``final`` is written under."""
    return final.with_name(f".{final.name}.partial")


class AtomicSave:
    """Mixin for a versioned data set: write under a hidden name, then rename.

    Put it before the data set class in the bases. A reader, and a run that looks
    for the newest version, sees the whole file and its checksum, or none. What a data set has
    saved it loads, also where another run has saved a newer version meanwhile.
    """

    _staging = False
    _version: Version | None

    def _get_save_path(self) -> PurePosixPath:
        final: PurePosixPath = super()._get_save_path()  # type: ignore[misc]
        return partial_of(final) if self._staging else final

    def save(self, data: Any) -> None:
        """Save ``data`` as a new version.

        Raises:
            DatasetError: if it cannot be written; nothing is left behind.
        """
        final = Path(self._get_save_path())
        self._staging = True
        partial = Path(self._get_save_path())
        made = [folder for folder in (final.parent, final.parent.parent) if not folder.exists()]
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            super().save.__wrapped__(self, data)  # type: ignore[misc]
            if self._version is not None:
                checksum.write(partial, final)
            partial.replace(final)
            if self._version is not None:
                self._version = Version(final.parent.name, self._version.save)
        except BaseException:
            if self._version is not None and not final.exists():  # else another's, of this moment
                checksum.beside(final).unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
            raise
        finally:
            self._staging = False


class ReadableErrors:
    """Mixin: what is loaded is what was saved, or the file names itself and the remedy."""

    _filepath: PurePosixPath
    _version: Version | None

    def load(self) -> Any:
        """Load the version that the run resolved, once its checksum has been found right.

        A file that is no version has no checksum, and is read as it is.

        Raises:
            DatasetError: naming the missing version or damaged file and what to do, or the
                format's own.
        """
        path = Path(self._get_load_path())  # type: ignore[attr-defined]
        try:
            if self._version is not None:
                checksum.verify(path)
            return super().load.__wrapped__(self)  # type: ignore[misc]
        except DatasetError:
            raise
        except Exception as error:
            if self._version is not None and not _is_version(path):
                there = _versions(path.parents[1])[::-1]
                raise DatasetError(
                    f"{path.name} has no version {path.parent.name}; "
                    f"there {'is' if len(there) == 1 else 'are'} {', '.join(there) or 'none'}"
                ) from error
            said = "it is not there" if isinstance(error, FileNotFoundError) else error
            raise DatasetError(
                f"{path} cannot be read: {said}. The file is damaged or incomplete: delete the "
                "folder of this version to fall back on the one before, or run again the pipeline "
                "that makes it"
            ) from error

    def exists(self) -> bool:
        """Whether there is a version, be it damaged.

        Raises:
            DatasetError: if the folder of the versions cannot be looked into.
        """
        try:
            return _is_version(Path(self._get_load_path()))  # type: ignore[attr-defined]
        except VersionNotFoundError:
            return False

    def _get_versions(self) -> list[str]:
        """Paths of all versions, newest first; none of what else lies in the folder."""
        folder = Path(self._filepath)
        return [str(folder / version / folder.name) for version in _versions(folder)]


def _versions(folder: Path) -> list[str]:
    """Names of the versions in ``folder``, newest first."""
    names = sorted((name for name in _entries(folder) if VERSION.fullmatch(name)), reverse=True)
    return [name for name in names if _is_version(folder / name / folder.name)]


def _entries(folder: Path) -> list[str]:
    try:
        return [each.name for each in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DatasetError(
            f"{folder}, the folder of an artifact's versions, cannot be read ({error.strerror}): "
            "move away what lies in its place, or give yourself permission to read it"
        ) from error


def _is_version(path: Path) -> bool:
    """Whether there is a file, or one was lost: its checksum alone is left by nothing else."""
    if os.path.lexists(path):
        return True
    interrupted = os.path.lexists(partial_of(PurePosixPath(path)))
    return not interrupted and os.path.lexists(checksum.beside(path))


class ParquetDataset(AtomicSave, ReadableErrors, pandas.ParquetDataset):
    """A table, as :class:`kedro_datasets.pandas.ParquetDataset`, saved atomically."""


class CSVDataset(AtomicSave, ReadableErrors, pandas.CSVDataset):
    """A table for people, as :class:`kedro_datasets.pandas.CSVDataset`, saved atomically."""


class JSONDataset(AtomicSave, ReadableErrors, json.JSONDataset):
    """Plain values, as :class:`kedro_datasets.json.JSONDataset`, saved atomically."""


class TextDataset(AtomicSave, ReadableErrors, text.TextDataset):
    """Text (the HTML report), as :class:`kedro_datasets.text.TextDataset`, saved atomically."""


class _BytesFile(LocalFile[bytes]):
    def load(self) -> bytes:
        return Path(self._get_load_path()).read_bytes()

    def save(self, data: bytes) -> None:
        Path(self._get_save_path()).write_bytes(data)


class BytesDataset(AtomicSave, ReadableErrors, _BytesFile):
    """Bytes as they are (an ONNX model)."""


class _FigureFile(matplotlib.MatplotlibDataset):
    def save(self, data: Figure) -> None:
        # The parent closes every figure of the process.
        data.savefig(Path(self._get_save_path()), **{**self._save_args, "format": "png"})

    def load(self) -> bytes:
        return Path(self._get_load_path()).read_bytes()


class FigureDataset(AtomicSave, ReadableErrors, _FigureFile):
    """A matplotlib figure saved as PNG; loads as the PNG's bytes, for the report."""
