"""Sources: where images come from."""

from typing import Annotated

from pydantic import Field

from counterdoor.sources.base import ImageSet, SourceBase
from counterdoor.sources.digits import Digits
from counterdoor.sources.parquet import Parquet

Source = Annotated[Digits | Parquet, Field(discriminator="name")]
"""Every source that a configuration can name."""

__all__ = ["Digits", "ImageSet", "Parquet", "Source", "SourceBase"]
