"""What the sources that torchvision downloads have in common."""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from counterdoor.component import Place
from counterdoor.sources.base import ImageSet, SourceBase
from counterdoor.sources.decoding import conform


class TorchvisionSource(SourceBase):
    """A data set that torchvision downloads, checks and reads.

    Attributes:
        path: folder that holds the data, or into which they are downloaded.
        download: fetch what is not there.
    """

    unpacked: ClassVar[str]
    """What has to lie in ``path`` where nothing can be downloaded."""

    path: Place = "data/00_external"
    download: bool = True

    @abstractmethod
    def _dataset(self, train: bool) -> Any:
        """The training or the test part as torchvision has it."""

    def _open(self, train: bool) -> Any:
        try:
            return self._dataset(train)
        except Exception as error:  # torchvision's readers raise nearly anything
            reason = str(error).strip().rstrip(".") or type(error).__name__
            tried = "nor downloaded" if self.download else "and download is off"
            raise ValueError(
                f"{self.component_name()} cannot be read from {self.path}, {tried}: {reason}. Put "
                f"{self.unpacked} there, or choose another source, for example "
                "source_name=image_folder"
            ) from error


class TorchvisionArrays(TorchvisionSource):
    """A data set that torchvision holds in memory.

    Attributes:
        limit: keep only the first so many training images, 0 = all.
    """

    limit: int = Field(default=0, ge=0, le=10**9)

    @abstractmethod
    def _arrays(self, dataset: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Images (N, C, H, W), labels and class names of a part."""

    def __call__(self) -> ImageSet:
        """Read both parts, after downloading them if need be.

        Raises:
            ValueError: if they are not there, or damaged, and cannot be downloaded.
        """
        parts = []
        for train in (True, False):
            images, labels, names = self._arrays(self._open(train))
            kept = self.limit if train and self.limit else len(images)
            images, labels = images[:kept], labels[:kept]
            images = conform(np.ascontiguousarray(images), self.form)
            parts.append((images, np.asarray(labels, dtype=np.int64), names))
        (images, labels, names), (test_images, test_labels, _) = parts
        return ImageSet(images, labels, names, test_images, test_labels)
