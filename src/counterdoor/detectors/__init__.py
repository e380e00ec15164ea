"""Detectors: which samples are learnt suspiciously."""

from typing import Annotated

from pydantic import Field

from counterdoor.detectors.base import DetectorBase, Evidence, select_suspects
from counterdoor.detectors.lga import LGA
from counterdoor.detectors.ln import LN
from counterdoor.detectors.random import Random

Detector = Annotated[LGA | LN | Random, Field(discriminator="name")]
"""Every detector that a configuration can name."""

__all__ = ["LGA", "LN", "Detector", "DetectorBase", "Evidence", "Random", "select_suspects"]
