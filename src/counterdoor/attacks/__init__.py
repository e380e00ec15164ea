"""Attacks: what an adversary does to the training data."""

from typing import Annotated

from pydantic import Field

from counterdoor.attacks.adaptive import AdapBlend, AdapPatch
from counterdoor.attacks.attacker_net import AttackerNet
from counterdoor.attacks.badnets import BadNets
from counterdoor.attacks.base import (
    NOTHING,
    AttackBase,
    Poisoned,
    Rows,
    draw_rows,
    poison,
)
from counterdoor.attacks.blend import Blend
from counterdoor.attacks.dynamic import Dynamic
from counterdoor.attacks.label_consistent import LabelConsistent
from counterdoor.attacks.labels import AllToAll, AllToOne, LabelMapping, LabelMappingBase
from counterdoor.attacks.none import NoAttack
from counterdoor.attacks.sig import SIG
from counterdoor.attacks.trojan_nn import TrojanNN
from counterdoor.attacks.wanet import WaNet

Attack = Annotated[
    BadNets  # one attack a line
    | Blend
    | SIG
    | WaNet
    | AdapBlend
    | AdapPatch
    | LabelConsistent
    | TrojanNN
    | Dynamic
    | NoAttack,
    Field(discriminator="name"),
]
"""Every attack that a configuration can name."""

__all__ = [
    "NOTHING",
    "SIG",
    "AdapBlend",
    "AdapPatch",
    "AllToAll",
    "AllToOne",
    "Attack",
    "AttackBase",
    "AttackerNet",
    "BadNets",
    "Blend",
    "Dynamic",
    "LabelConsistent",
    "LabelMapping",
    "LabelMappingBase",
    "NoAttack",
    "Poisoned",
    "Rows",
    "TrojanNN",
    "WaNet",
    "draw_rows",
    "poison",
]
