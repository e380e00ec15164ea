"""Attacks: what an adversary does to the training data."""

from typing import Annotated

from pydantic import Field

from counterdoor.attacks.badnets import BadNets
from counterdoor.attacks.base import AttackBase, Poisoned, poison
from counterdoor.attacks.blend import Blend

Attack = Annotated[BadNets | Blend, Field(discriminator="name")]
"""Every attack that a configuration can name."""

__all__ = ["Attack", "AttackBase", "BadNets", "Blend", "Poisoned", "poison"]
