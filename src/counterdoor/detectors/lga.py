"""LGA: poisoned samples are learnt first."""

from typing import ClassVar, Literal

import numpy as np

from counterdoor.detectors.base import DetectorBase, Evidence, Need, present
from counterdoor.engine import DEFAULT, Engine
from counterdoor.training import sample_losses


class LGA(DetectorBase):
    """Local gradient ascent isolation: the lowest loss after a warm-up held up by gradient ascent.

    The warm-up's loss transform is configured in the warm-up stage. Source: ABL
    (Li et al., NeurIPS 2021), section 4.2, as used by NAB, section 4.1.
    """

    judged: ClassVar[bool] = True

    name: Literal["lga"] = "lga"

    @property
    def needs(self) -> frozenset[Need]:
        """The warm-up."""
        return frozenset({"warmup"})

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Minus the per-sample cross-entropy in eval mode; see :class:`DetectorBase`."""
        net = present(evidence.warmup_net, "warmup")
        return -sample_losses(net, evidence.images_nchw, evidence.labels, engine=engine)
