"""Detectors: which samples are learnt suspiciously."""

from typing import Annotated

from pydantic import Field

from counterdoor.detectors.adaptive import Adaptive
from counterdoor.detectors.agpd import AGPD
from counterdoor.detectors.apart import Apart
from counterdoor.detectors.base import DetectorBase, Evidence, select_suspects
from counterdoor.detectors.clustering import ActivationClustering
from counterdoor.detectors.ensemble import Ensemble
from counterdoor.detectors.lga import LGA
from counterdoor.detectors.ln import LN
from counterdoor.detectors.oracle import Oracle
from counterdoor.detectors.random import Random
from counterdoor.detectors.scan import SCAn
from counterdoor.detectors.spectre import SPECTRE
from counterdoor.detectors.strange import Strange
from counterdoor.detectors.suspects import Fixed, SuspectRule

Detector = Annotated[
    LGA | LN | Random | SPECTRE | AGPD | SCAn | ActivationClustering | Ensemble | Oracle,
    Field(discriminator="name"),
]
"""Every detector that a configuration can name."""

Ensemble.model_rebuild(_types_namespace={"Detector": Detector})  # it holds detectors of any kind

SuspectRatio = Annotated[Fixed | Adaptive | Apart | Strange, Field(discriminator="name")]
"""Every rule from scores to suspects that a configuration can name."""

__all__ = [
    "AGPD",
    "LGA",
    "LN",
    "SPECTRE",
    "ActivationClustering",
    "Adaptive",
    "Apart",
    "Detector",
    "DetectorBase",
    "Ensemble",
    "Evidence",
    "Fixed",
    "Oracle",
    "Random",
    "SCAn",
    "Strange",
    "SuspectRatio",
    "SuspectRule",
    "select_suspects",
]
