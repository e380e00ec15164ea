"""Sources: where images come from."""

from typing import Annotated

from pydantic import Field

from counterdoor.sources.base import ImageSet, SourceBase
from counterdoor.sources.cifar10 import Cifar10
from counterdoor.sources.cifar100 import Cifar100
from counterdoor.sources.decoding import Rejected
from counterdoor.sources.digits import Digits
from counterdoor.sources.fashion_mnist import FashionMnist
from counterdoor.sources.gtsrb import Gtsrb
from counterdoor.sources.image_folder import ImageFolder
from counterdoor.sources.mnist import Mnist
from counterdoor.sources.parquet import Parquet
from counterdoor.sources.svhn import Svhn
from counterdoor.sources.tiny_imagenet import TinyImagenet

Source = Annotated[
    Digits
    | Mnist
    | FashionMnist
    | Cifar10
    | Cifar100
    | Svhn
    | Gtsrb
    | TinyImagenet
    | ImageFolder
    | Parquet,
    Field(discriminator="name"),
]
"""Every source that a configuration can name."""

__all__ = [
    "Cifar10",
    "Cifar100",
    "Digits",
    "FashionMnist",
    "Gtsrb",
    "ImageFolder",
    "ImageSet",
    "Mnist",
    "Parquet",
    "Rejected",
    "Source",
    "SourceBase",
    "Svhn",
    "TinyImagenet",
]
