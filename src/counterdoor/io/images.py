"""Image arrays as memory-mapped .npy files."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from kedro.io import AbstractVersionedDataset, DatasetError, Version

from counterdoor.io.atomic import AtomicSave, ReadableErrors


class _ImagesFile(AbstractVersionedDataset[np.ndarray, np.ndarray]):
    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(PurePosixPath(filepath), version)
        self.metadata = metadata

    def load(self) -> np.ndarray:
        images: np.ndarray = np.load(Path(self._get_load_path()), mmap_mode="r", allow_pickle=False)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"it holds {images.dtype} of shape {images.shape}, not uint8 of shape (N, C, H, W)"
            )
        return images

    def save(self, data: np.ndarray) -> None:
        if data.dtype != np.uint8 or data.ndim != 4:
            raise DatasetError(
                f"images must be uint8 of shape (N, C, H, W), not {data.dtype} of {data.shape}"
            )
        with Path(self._get_save_path()).open("wb") as file:
            np.save(file, data, allow_pickle=False)

    def _exists(self) -> bool:
        return Path(self._get_load_path()).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "version": self._version}


class ImagesDataset(AtomicSave, ReadableErrors, _ImagesFile):
    """A uint8 image array of shape (N, C, H, W) in an ``.npy`` file, loaded as a read-only map.

    Example:
        .. code-block:: yaml

            images:
              type: counterdoor.io.ImagesDataset
              filepath: data/02_attack/images.npy
              versioned: true

        >>> ImagesDataset(filepath="images.npy").save(np.zeros((2, 1, 8, 8), np.uint8))
    """
