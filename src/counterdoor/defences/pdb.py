"""PDB: the defender plants a stronger backdoor of its own, and undoes what it does."""

from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.component import Component
from counterdoor.defences.base import Case, DefenceBase, Defended
from counterdoor.feed import Samples
from counterdoor.ledger import stratified_rows
from counterdoor.seeding import numpy_generator
from counterdoor.stamp import Stamp


class PDB(DefenceBase):
    """Proactive defensive backdoor: every input gets a trigger whose shift of labels is undone.

    Source: Wei, Zha and Wu, "Mitigating Backdoor Attack by Injecting Proactive Defensive
    Backdoor" (NeurIPS 2024), algorithm 1. Copies of clean samples with a defensive trigger
    and the label h(y) = (y + shift) mod K join the training; an input is given the trigger,
    and its prediction mapped back. Values are the authors' code's: a 7x7 patch in the top
    left corner at twice white, a shift of 1, every copy five times. Their 10 % of clean
    samples are here the run's trusted ones. Without their noise, dimming and rotation of the
    copies, and with the run's recipe.

    Attributes:
        trigger: the defensive trigger.
        shift: how far h moves a label.
        carriers: which samples get copies: ``trusted``, or ``all``, poisoned ones among them.
        share: share of every class's carriers that get copies, in (0, 1].
        repeats: how often each copy occurs.
    """

    reproduced: ClassVar[bool] = False

    name: Literal["pdb"] = "pdb"
    trigger: Stamp = Stamp(size=7, colour="bright")
    shift: int = 1
    carriers: Literal["trusted", "all"] = "trusted"
    share: float = Field(default=1.0, gt=0, le=1)
    repeats: int = Field(default=5, ge=1, le=1000)

    def stamp_in_use(self, stamp: Stamp) -> Stamp | None:
        """The defensive trigger."""
        return self.trigger

    def check(
        self, images_nchw: np.ndarray, ledger: pd.DataFrame, num_classes: int, model: Component
    ) -> None:
        """Refuse a shift that is none, and carriers that are nobody; see :class:`DefenceBase`."""
        if self.carriers == "trusted":
            self.check_trusted(ledger)
        if self.shift % num_classes == 0:
            raise ValueError(
                f"defence.shift {self.shift} moves no label of {num_classes} classes; use one from "
                f"1 to {num_classes - 1}"
            )
        if not len(self.carrier_rows(ledger, seed=0)):
            raise ValueError(
                f"defence.share {self.share} of every class's carriers is nobody; raise it"
            )

    def label_map(self, num_classes: int) -> tuple[int, ...]:
        """h(y) for each class y."""
        return tuple((label + self.shift) % num_classes for label in range(num_classes))

    def carrier_rows(self, ledger: pd.DataFrame, seed: int) -> np.ndarray:
        """Rows of the samples that get copies, int64, sorted."""
        may = ledger["trusted"].to_numpy() | (self.carriers == "all")
        rows: np.ndarray = np.flatnonzero(may)
        labels = ledger["label"].to_numpy()[rows]
        generator = numpy_generator(seed, "defended/carriers")
        chosen: np.ndarray = rows[stratified_rows(labels, self.share, generator)]
        return chosen

    def __call__(self, case: Case) -> Defended:
        """Train on all samples and the defensive copies; see :class:`DefenceBase`."""
        label_map = self.label_map(case.num_classes)
        given = case.ledger["label"].to_numpy()
        copies = np.tile(self.carrier_rows(case.ledger, case.seed), self.repeats)
        samples = Samples(
            case.images_nchw,
            np.concatenate([np.arange(len(given)), copies]),
            np.concatenate([given, np.array(label_map)[given[copies]]]),
            np.arange(len(given) + len(copies)) >= len(given),
        )
        net = case.new_net()
        fitted = case.fit(net, samples, case.recipe, "defended", self.trigger)
        return case.deployed(net, fitted.history, self.trigger, label_map)
