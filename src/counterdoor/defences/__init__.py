"""Defences: how the net that is deployed is made. NAB, baselines, and none at all."""

from typing import Annotated

from pydantic import Field

from counterdoor.defences.abl import ABL
from counterdoor.defences.base import Case, DefenceBase, Defended
from counterdoor.defences.fp import FinePruning
from counterdoor.defences.nab import NAB
from counterdoor.defences.nad import NAD
from counterdoor.defences.none import NoDefence
from counterdoor.defences.pdb import PDB

Defence = Annotated[NAB | NoDefence | ABL | FinePruning | NAD | PDB, Field(discriminator="name")]
"""Every defence that a configuration can name."""

__all__ = [
    "ABL",
    "NAB",
    "NAD",
    "PDB",
    "Case",
    "Defence",
    "DefenceBase",
    "Defended",
    "FinePruning",
    "NoDefence",
]
