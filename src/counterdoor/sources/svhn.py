"""SVHN as torchvision has it."""

from typing import Any, ClassVar, Literal

import numpy as np

from counterdoor.sources.downloaded import TorchvisionArrays


class Svhn(TorchvisionArrays):
    """SVHN through torchvision: 73,257 training and 26,032 test house digits, 32x32."""

    unpacked: ClassVar[str] = "train_32x32.mat and test_32x32.mat (246 MB)"

    name: Literal["svhn"] = "svhn"

    def _dataset(self, train: bool) -> Any:
        from torchvision.datasets import SVHN

        return SVHN(self.path, split="train" if train else "test", download=self.download)

    def _arrays(self, dataset: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return dataset.data, dataset.labels, tuple("0123456789")
