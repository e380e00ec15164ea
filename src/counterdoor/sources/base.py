"""What every source gives."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from counterdoor.component import Component


@dataclass(frozen=True)
class ImageSet:
    """Labelled images; the test part is ``None`` where the source makes no split.

    Attributes:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,), indices into ``class_names``.
        class_names: one name a class.
        test_images_nchw: as ``images_nchw``, or ``None``.
        test_labels: as ``labels``, or ``None``.
    """

    images_nchw: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    test_images_nchw: np.ndarray | None = None
    test_labels: np.ndarray | None = None


class SourceBase(Component):
    """A place that images come from."""

    @abstractmethod
    def __call__(self) -> ImageSet:
        """Read the images.

        Raises:
            ValueError: naming what cannot be read and what to do.
        """
