"""CIFAR-100 as torchvision has it."""

from typing import Any, ClassVar, Literal

import numpy as np

from counterdoor.sources.downloaded import TorchvisionArrays


class Cifar100(TorchvisionArrays):
    """CIFAR-100 through torchvision: 50,000 training and 10,000 test images, 32x32, 100 classes."""

    unpacked: ClassVar[str] = "the folder cifar-100-python of cifar-100-python.tar.gz (169 MB)"

    name: Literal["cifar100"] = "cifar100"

    def _dataset(self, train: bool) -> Any:
        from torchvision.datasets import CIFAR100

        return CIFAR100(self.path, train=train, download=self.download)

    def _arrays(self, dataset: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return dataset.data.transpose(0, 3, 1, 2), dataset.targets, tuple(dataset.classes)
