"""MNIST as torchvision has it."""

from typing import Any, ClassVar, Literal

import numpy as np

from counterdoor.sources.downloaded import TorchvisionArrays


class Mnist(TorchvisionArrays):
    """MNIST through torchvision: 60,000 training and 10,000 test digits, 28x28 grey."""

    unpacked: ClassVar[str] = "the four unpacked idx-ubyte files, in MNIST/raw (11 MB to download)"

    name: Literal["mnist"] = "mnist"
    image_mode: Literal["L", "RGB"] = "L"

    def _dataset(self, train: bool) -> Any:
        from torchvision.datasets import MNIST

        return MNIST(self.path, train=train, download=self.download)

    def _arrays(self, dataset: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return dataset.data.numpy()[:, None], dataset.targets.numpy(), tuple("0123456789")
