"""CIFAR-10 as torchvision has it."""

from typing import Any, ClassVar, Literal

import numpy as np

from counterdoor.sources.downloaded import TorchvisionArrays


class Cifar10(TorchvisionArrays):
    """CIFAR-10 through torchvision: 50,000 training and 10,000 test images, 32x32, ten classes."""

    unpacked: ClassVar[str] = "the folder cifar-10-batches-py of cifar-10-python.tar.gz (170 MB)"

    name: Literal["cifar10"] = "cifar10"

    def _dataset(self, train: bool) -> Any:
        from torchvision.datasets import CIFAR10

        return CIFAR10(self.path, train=train, download=self.download)

    def _arrays(self, dataset: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return dataset.data.transpose(0, 3, 1, 2), dataset.targets, tuple(dataset.classes)
