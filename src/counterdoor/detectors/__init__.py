"""Detectors: which samples are learnt suspiciously."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from counterdoor.detectors.adaptive import Adaptive
from counterdoor.detectors.agpd import AGPD
from counterdoor.detectors.apart import Apart
from counterdoor.detectors.base import DetectorBase, Evidence, select_suspects
from counterdoor.detectors.clustering import ActivationClustering
from counterdoor.detectors.either import Either, Opinion, SuspectedByAny
from counterdoor.detectors.ensemble import Ensemble
from counterdoor.detectors.lga import LGA
from counterdoor.detectors.ln import LN
from counterdoor.detectors.oracle import Oracle
from counterdoor.detectors.pattern import Carriers, SharedPattern
from counterdoor.detectors.random import Random
from counterdoor.detectors.scan import SCAn
from counterdoor.detectors.spectre import SPECTRE
from counterdoor.detectors.strange import Strange
from counterdoor.detectors.suspects import Fixed, SuspectRule

Detector = Annotated[
    LGA
    | LN
    | Random
    | SPECTRE
    | AGPD
    | SCAn
    | ActivationClustering
    | SharedPattern
    | Ensemble
    | Either
    | Oracle,
    Field(discriminator="name"),
]
"""Every detector that a configuration can name."""


def _spelt_out(given: Any) -> Any:
    """A rule from a share or from its name alone."""
    if isinstance(given, int | float):
        return {"name": "fixed", "ratio": given}
    if not isinstance(given, str | Mapping | SuspectRule):
        raise ValueError("it must be a share, the name of a rule, or a rule with its parameters")
    return {"name": given} if isinstance(given, str) else given


SuspectRatio = Annotated[
    Fixed | Adaptive | Apart | Strange | Carriers | SuspectedByAny,
    Field(discriminator="name"),
    BeforeValidator(_spelt_out),
]
"""Every rule from scores to suspects that a configuration can name."""

# These hold detectors and rules of any kind.
for _kind in (Opinion, Ensemble, Either):
    _kind.model_rebuild(
        _types_namespace={"Detector": Detector, "SuspectRatio": SuspectRatio, "Opinion": Opinion}
    )

__all__ = [
    "AGPD",
    "LGA",
    "LN",
    "SPECTRE",
    "ActivationClustering",
    "Adaptive",
    "Apart",
    "Carriers",
    "Detector",
    "DetectorBase",
    "Either",
    "Ensemble",
    "Evidence",
    "Fixed",
    "Opinion",
    "Oracle",
    "Random",
    "SCAn",
    "SharedPattern",
    "Strange",
    "SuspectRatio",
    "SuspectRule",
    "SuspectedByAny",
    "select_suspects",
]
