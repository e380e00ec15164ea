"""Atomic versions: a save that fails half-way leaves nothing that looks like a version."""

from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import matplotlib as mpl
from kedro.io import DatasetError
from kedro_datasets import json, matplotlib, pandas, text


class AtomicSave:
    """Mixin for a versioned data set: write under a hidden name, then rename.

    Put it before the data set class in the bases. A reader, and a run that looks
    for the newest version, sees the whole file or none.
    """

    _staging = False

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
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            super().save.__wrapped__(self, data)  # type: ignore[misc]
            partial.replace(final)
        except BaseException:
            partial.unlink(missing_ok=True)
            with suppress(OSError):
                final.parent.rmdir()
                final.parent.parent.rmdir()
            raise
        finally:
            self._staging = False


class ReadableErrors:
    """Mixin: a file that cannot be read names itself and the remedy."""

    def load(self) -> Any:
        """Load the version that the run resolved.

        Raises:
            DatasetError: naming the damaged file and what to do.
        """
        path = self._get_load_path()  # type: ignore[attr-defined]
        try:
            return super().load.__wrapped__(self)  # type: ignore[misc]
        except Exception as error:
            raise DatasetError(
                f"{path} cannot be read: {error}. The file is damaged or incomplete: delete the "
                "folder of this version to fall back on the one before, or run again the pipeline "
                "that makes it"
            ) from error


class ParquetDataset(AtomicSave, ReadableErrors, pandas.ParquetDataset):
    """A table, as :class:`kedro_datasets.pandas.ParquetDataset`, saved atomically."""


class JSONDataset(AtomicSave, ReadableErrors, json.JSONDataset):
    """Plain values, as :class:`kedro_datasets.json.JSONDataset`, saved atomically."""


class TextDataset(AtomicSave, ReadableErrors, text.TextDataset):
    """Text (the HTML report), as :class:`kedro_datasets.text.TextDataset`, saved atomically."""


class FigureDataset(AtomicSave, matplotlib.MatplotlibDataset):
    """A matplotlib figure saved as PNG; loads as the PNG's bytes, for the report.

    Unlike its parent it can be loaded, and it closes only the figure it was given.
    """

    def save(self, data: Any) -> None:
        """Save a figure as a new version."""
        AtomicSave.save(self, data)

    def load(self) -> bytes:
        """The PNG file's content."""
        return Path(self._get_load_path()).read_bytes()


mpl.use("Agg")
