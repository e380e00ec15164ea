"""Detectors: which samples are learnt suspiciously."""

from typing import Annotated

from pydantic import Field

from counterdoor.detectors.agpd import AGPD
from counterdoor.detectors.base import DetectorBase, Evidence, select_suspects
from counterdoor.detectors.lga import LGA
from counterdoor.detectors.ln import LN
from counterdoor.detectors.random import Random
from counterdoor.detectors.scan import SCAn
from counterdoor.detectors.spectre import SPECTRE

Detector = Annotated[LGA | LN | Random | SPECTRE | AGPD | SCAn, Field(discriminator="name")]
"""Every detector that a configuration can name."""

__all__ = [
    "AGPD",
    "LGA",
    "LN",
    "SPECTRE",
    "Detector",
    "DetectorBase",
    "Evidence",
    "Random",
    "SCAn",
    "select_suspects",
]
