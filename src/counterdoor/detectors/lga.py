"""LGA: poisoned samples are learnt first."""

from typing import Literal

import numpy as np
from torch import nn

from counterdoor.detectors.base import DetectorBase
from counterdoor.engine import DEFAULT, Engine
from counterdoor.training import sample_losses


class LGA(DetectorBase):
    """Local gradient ascent isolation: the lowest loss after a warm-up held up by gradient ascent.

    The warm-up's loss transform is configured in the warm-up stage. Source: ABL
    (Li et al., NeurIPS 2021), section 4.2, as used by NAB, section 4.1.
    """

    name: Literal["lga"] = "lga"

    def __call__(
        self,
        net: nn.Module,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int,
        engine: Engine = DEFAULT,
    ) -> np.ndarray:
        """Minus the per-sample cross-entropy in eval mode; see :class:`DetectorBase`."""
        return -sample_losses(net, images_nchw, labels, engine=engine)
