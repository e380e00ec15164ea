"""No attack, as a control."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from counterdoor.attacks.base import NOTHING, AttackBase


class NoAttack(AttackBase):
    """Nobody is poisoned: the control that shows what the defence does to clean data.

    "Triggered" images are the clean ones, and measures of the attack are not numbers.
    """

    capability: ClassVar[str] = "changes nothing: the data set is clean"

    name: Literal["none"] = "none"
    poison_ratio: float = Field(default=0.0, ge=0, le=0)
    cover_ratio: float = Field(default=0.0, ge=0, le=0)

    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """A copy of the images; see :meth:`AttackBase.__call__`."""
        return np.array(images_nchw)
