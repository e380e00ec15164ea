"""UD: a classifier trained on everybody who is not suspected names the suspects."""

from typing import ClassVar, Literal

import numpy as np

from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase, logits_of_all, trained_on
from counterdoor.recipe import Cosine, Recipe


class UD(LabelerBase):
    """Unsuspected data: a classifier trained without the suspects labels them.

    It needs no trusted sample, and names as well as a net can that has never seen the trigger. So
    it takes a detector that finds nearly all of the poison: what is not suspected teaches it the
    trigger, and triggered suspects are then named what the attacker called them. Where nobody
    is suspected nothing is trained, and labels are as they came.

    Source: ours; VD (NAB, section 4.2) with the unsuspected in place of verified data.

    Attributes:
        recipe: how the classifier is trained.
        align: name suspects on images moved so that their mean is that of all others, see
            :func:`~counterdoor.labelers.base.aligned`.
    """

    learns_from: ClassVar[Literal["trusted", "unsuspected"]] = "unsuspected"

    name: Literal["ud"] = "ud"
    recipe: Recipe = Recipe(epochs=40, batch_size=64, learning_rate=0.02, schedule=Cosine())
    align: bool = False

    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Predictions of that classifier; see :class:`LabelerBase`.

        Raises:
            ValueError: if everybody is suspected.
        """
        suspect = case.ledger["suspect"].to_numpy()
        if not suspect.any():
            return case.ledger["label"].to_numpy(np.int64, copy=True)
        rows = np.flatnonzero(~suspect)
        if not len(rows):
            raise ValueError("labeler 'ud' learns from the unsuspected, but everybody is suspected")
        net = trained_on(case, rows, self.recipe, seed=seed, engine=engine)
        return logits_of_all(net, case, align=self.align, engine=engine).argmax(1).numpy()
