"""VD: a classifier trained on a little verified data names the suspects."""

import math
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.augment import Augment
from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase, logits_of_all, trained_on
from counterdoor.ledger import DROPPED
from counterdoor.recipe import Recipe, Steps

PAPER_RECIPE = Recipe(
    epochs=100,
    batch_size=64,
    learning_rate=0.01,
    schedule=Steps(milestones=(20, 60), factor=0.1),
    augment=Augment(crop_padding=4, flip=True, cutout=2),
)


class VD(LabelerBase):
    """Verified data: a classifier trained on the trusted samples alone labels the others.

    Source: NAB, section 4.2; the recipe and the stamped inputs are the authors' code's.

    Attributes:
        recipe: how the classifier is trained.
        stamp_inputs: predict on stamped images, as the authors' code does.
        surest: share of the suspects that are named, those first of which the classifier is
            surest that they are of another class than they came with (by that class's
            probability), in (0, 1]; the others are left out of the training, and so are those among
            the former that it takes for the class they came with all the same: a trigger can look
            like its target to a net that never saw it. With 1, as in the paper, such suspects stay
            in the training as they came.
        align: name suspects on images moved so that their mean is that of all others, see
            :func:`~counterdoor.labelers.base.aligned`; not in the paper.
    """

    name: Literal["vd"] = "vd"
    recipe: Recipe = PAPER_RECIPE
    stamp_inputs: bool = True
    surest: float = Field(default=1.0, gt=0, le=1)
    align: bool = False

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Raise ``ValueError`` unless there is a trusted sample of every class."""
        trusted = ledger.loc[ledger["trusted"], "label"]
        missing = sorted(set(range(num_classes)) - set(trusted))
        if missing:
            raise ValueError(
                f"labeler 'vd' needs trusted samples of every class, but {len(trusted)} are "
                f"trusted and classes {missing} have none; raise ingest.trusted_share or choose "
                "another labeler"
            )

    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Predictions of the verified-data classifier; see :class:`LabelerBase`."""
        self.check(case.ledger, case.num_classes)
        rows = np.flatnonzero(case.ledger["trusted"])
        net = trained_on(case, rows, self.recipe, seed=seed, engine=engine)
        used = case.stamp if self.stamp_inputs else None
        logits = logits_of_all(net, case, align=self.align, stamp=used, engine=engine)
        named = logits.argmax(1).numpy()
        if self.surest < 1:
            suspects = np.flatnonzero(case.ledger["suspect"])
            given = case.ledger["label"].to_numpy()[suspects]
            others = logits[suspects].softmax(1).numpy()
            others[np.arange(len(suspects)), given] = 0
            order = np.argsort(-others.max(1), kind="stable")
            named[suspects[order[math.ceil(self.surest * len(suspects)) :]]] = DROPPED
            named[suspects[named[suspects] == given]] = DROPPED
        return named
