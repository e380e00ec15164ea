"""Sources: where images come from."""

from typing import Annotated

from pydantic import Field

from counterdoor.sources.base import ImageSet, SourceBase
from counterdoor.sources.cifar10 import Cifar10
from counterdoor.sources.digits import Digits
from counterdoor.sources.parquet import Parquet

Source = Annotated[Digits | Cifar10 | Parquet, Field(discriminator="name")]
"""Every source that a configuration can name."""

__all__ = ["Cifar10", "Digits", "ImageSet", "Parquet", "Source", "SourceBase"]
