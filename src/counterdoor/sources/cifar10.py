"""CIFAR-10 as torchvision has it."""

from typing import Literal

import numpy as np

from counterdoor.sources.base import ImageSet, SourceBase


class Cifar10(SourceBase):
    """CIFAR-10 through torchvision: 50,000 training and 10,000 test images, 32x32, ten classes.

    Attributes:
        path: folder that holds ``cifar-10-batches-py``, or into which it is downloaded.
        download: fetch what is not there (170 MB).
    """

    name: Literal["cifar10"] = "cifar10"
    path: str = "data/00_external"
    download: bool = True

    def __call__(self) -> ImageSet:
        """Read both parts, after downloading them if need be.

        Raises:
            ValueError: if they are not there, or damaged, and cannot be downloaded.
        """
        from torchvision.datasets import CIFAR10

        try:
            train = CIFAR10(self.path, train=True, download=self.download)
            test = CIFAR10(self.path, train=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"CIFAR-10 cannot be read from {self.path}: {error} Put the unpacked "
                "cifar-10-batches-py there, or choose source_name=parquet"
            ) from error
        return ImageSet(
            np.ascontiguousarray(train.data.transpose(0, 3, 1, 2)),
            np.asarray(train.targets, dtype=np.int64),
            tuple(train.classes),
            np.ascontiguousarray(test.data.transpose(0, 3, 1, 2)),
            np.asarray(test.targets, dtype=np.int64),
        )
