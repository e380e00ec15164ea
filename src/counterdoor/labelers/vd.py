"""VD: a classifier trained on a little verified data names the suspects."""

from typing import Literal

import numpy as np
import pandas as pd

from counterdoor.augment import Augment
from counterdoor.engine import DEFAULT, Engine
from counterdoor.labelers.base import Case, LabelerBase, trained_on
from counterdoor.recipe import Recipe, Steps
from counterdoor.training import predict_classes

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
    """

    name: Literal["vd"] = "vd"
    recipe: Recipe = PAPER_RECIPE
    stamp_inputs: bool = True

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
        return predict_classes(net, case.images_nchw, stamp=used, engine=engine)
