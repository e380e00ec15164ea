"""Labelers: what the suspects should have been called."""

from typing import Annotated

from pydantic import Field

from counterdoor.labelers.base import Case, LabelerBase
from counterdoor.labelers.drop import Drop
from counterdoor.labelers.nc import NC
from counterdoor.labelers.oracle import Oracle
from counterdoor.labelers.ud import UD
from counterdoor.labelers.vd import VD

Labeler = Annotated[VD | UD | NC | Drop | Oracle, Field(discriminator="name")]
"""Every labeler that a configuration can name."""

__all__ = ["NC", "UD", "VD", "Case", "Drop", "Labeler", "LabelerBase", "Oracle"]
