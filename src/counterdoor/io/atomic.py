"""Atomic versions: a save that fails half-way leaves nothing that looks like a version."""

from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from kedro.io import AbstractVersionedDataset, DatasetError, Version
from kedro_datasets import json, matplotlib, pandas, text
from matplotlib.figure import Figure

T = TypeVar("T")


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

    def _exists(self) -> bool:
        return Path(self._get_load_path()).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}


class AtomicSave:
    """Mixin for a versioned data set: write under a hidden name, then rename.

    Put it before the data set class in the bases. A reader, and a run that looks
    for the newest version, sees the whole file or none. What a data set has saved it
    loads, also where another run has saved a newer version meanwhile.
    """

    _staging = False
    _version: Version | None

    def _get_save_path(self) -> PurePosixPath:
        final: PurePosixPath = super()._get_save_path()  # type: ignore[misc]
        return final.with_name(f".{final.name}.partial") if self._staging else final

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
            partial.replace(final)
            if self._version is not None:
                self._version = Version(final.parent.name, self._version.save)
        except BaseException:
            partial.unlink(missing_ok=True)
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
            raise
        finally:
            self._staging = False


class ReadableErrors:
    """Mixin: a file that cannot be read names itself and the remedy."""

    def load(self) -> Any:
        """Load the version that the run resolved.

        Raises:
            DatasetError: naming the missing version or damaged file and what to do, or the
                format's own.
        """
        path = Path(self._get_load_path())  # type: ignore[attr-defined]
        try:
            return super().load.__wrapped__(self)  # type: ignore[misc]
        except DatasetError:
            raise
        except Exception as error:
            if not path.exists():
                there = sorted(each.parent.name for each in path.parents[1].glob(f"*/{path.name}"))
                raise DatasetError(
                    f"{path.name} has no version {path.parent.name}; "
                    f"there {'is' if len(there) == 1 else 'are'} {', '.join(there) or 'none'}"
                ) from error
            raise DatasetError(
                f"{path} cannot be read: {error}. The file is damaged or incomplete: delete the "
                "folder of this version to fall back on the one before, or run again the pipeline "
                "that makes it"
            ) from error


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
