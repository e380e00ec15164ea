"""Detectors: which samples are learnt suspiciously."""

from typing import Annotated

from pydantic import Field

from counterdoor.detectors.base import DetectorBase, Evidence, select_suspects
from counterdoor.detectors.lga import LGA
from counterdoor.detectors.random import Random

Detector = Annotated[LGA | Random, Field(discriminator="name")]
"""Every detector that a configuration can name."""

__all__ = ["LGA", "Detector", "DetectorBase", "Evidence", "Random", "select_suspects"]
