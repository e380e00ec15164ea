"""Image arrays as memory-mapped .npy files."""

from pathlib import Path

import numpy as np
from kedro.io import DatasetError

from counterdoor.io.atomic import AtomicSave, LocalFile, ReadableErrors


class _ImagesFile(LocalFile[np.ndarray]):
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
