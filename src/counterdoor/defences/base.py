"""What every defence is given, what it gives, and what it says it needs."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from counterdoor.component import Component
from counterdoor.detectors import SuspectRule
from counterdoor.engine import DEFAULT, Engine
from counterdoor.feed import Samples
from counterdoor.models import NormalisedNet, TrainedNet, build_net
from counterdoor.recipe import Recipe
from counterdoor.stamp import Stamp
from counterdoor.training import Fit, fit


@dataclass(frozen=True)
class Case:
    """All that a defender has when the net to deploy is made.

    Attributes:
        images_nchw: training images, uint8, shape (N, C, H, W), in [0, 255].
        ledger: with all columns.
        plan: as in :class:`counterdoor.relabeling.Relabeled`.
        num_classes: number of classes K.
        model: the model component of the run.
        recipe: the full training, the undefended net's as well.
        stamp: the stamp of the run.
        undefended: the net trained on all samples as they came.
        undefended_history: its epochs.
        seed: the run's seed.
        engine: what to run on.
    """

    images_nchw: np.ndarray
    ledger: pd.DataFrame
    plan: pd.DataFrame
    num_classes: int
    model: Component
    recipe: Recipe
    stamp: Stamp
    undefended: TrainedNet
    undefended_history: pd.DataFrame
    seed: int
    engine: Engine = DEFAULT

    def new_net(self) -> NormalisedNet:
        """An untrained net with the undefended one's initial weights."""
        # One initialisation for both, so that they differ by the defence alone.
        return build_net(
            self.model, self.images_nchw, self.num_classes, seed=self.seed, stream="train/init"
        )

    def samples(self, chosen: pd.Series) -> Samples:
        """The samples chosen by a flag each, with the labels they came with, nothing stamped."""
        rows = np.flatnonzero(chosen)
        return Samples(self.images_nchw, rows, self.ledger["label"].to_numpy()[rows])

    def fit(
        self,
        net: NormalisedNet,
        samples: Samples,
        recipe: Recipe,
        stream: str,
        stamp: Stamp | None = None,
    ) -> Fit:
        """:func:`counterdoor.training.fit` under this seed and engine; sets the net's weights."""
        fitted = fit(
            net, samples, recipe, seed=self.seed, stream=stream, stamp=stamp, engine=self.engine
        )
        net.load_state_dict(fitted.state)
        return fitted

    def deployed(
        self,
        net: NormalisedNet,
        history: pd.DataFrame,
        stamp: Stamp | None = None,
        label_map: tuple[int, ...] | None = None,
    ) -> "Defended":
        """The net as it is deployed, with the history of its training."""
        state = {name: each.detach().cpu().contiguous() for name, each in net.state_dict().items()}
        trained = TrainedNet.of(
            self.model, self.images_nchw, self.num_classes, state, stamp, label_map
        )
        return Defended(trained, history)


@dataclass(frozen=True)
class Defended:
    """What a defence gives.

    Attributes:
        net: the net as it is deployed.
        history: its epochs, as in :class:`counterdoor.training.Fit`.
    """

    net: TrainedNet
    history: pd.DataFrame


class DefenceBase(Component):
    """Makes the net that is deployed, from the data that the defender was given.

    Attributes:
        needs_suspects: whether anybody is to be suspected; if not, nothing is warmed up.
        needs_pseudo_labels: whether suspects are labelled anew; if not, they are left out
            of the plan.
        needs_trusted: whether there have to be trusted samples.
        needs_undefended: whether it starts from the undefended net.
        reproduced: whether it reaches its published strength here; else no page compares it.
    """

    needs_suspects: ClassVar[bool] = False
    needs_pseudo_labels: ClassVar[bool] = False
    needs_trusted: ClassVar[bool] = False
    needs_undefended: ClassVar[bool] = False
    reproduced: ClassVar[bool] = True

    def suspect_rule(self, usual: SuspectRule) -> SuspectRule:
        """How many are suspected, where ``usual`` is the run's rule."""
        return usual

    def stamp_in_use(self, stamp: Stamp) -> Stamp | None:
        """What deployed inputs carry, where ``stamp`` is the run's; ``None`` for nothing."""
        return None

    def check(
        self, images_nchw: np.ndarray, ledger: pd.DataFrame, num_classes: int, model: Component
    ) -> None:
        """Raise ``ValueError``, before any training, if the defence cannot work here.

        Args:
            images_nchw: training images, uint8, shape (N, C, H, W), in [0, 255].
            ledger: with ``label`` and ``trusted``.
            num_classes: number of classes K.
            model: the model component of the run.
        """
        if self.needs_trusted:
            self.check_trusted(ledger)

    def check_trusted(self, ledger: pd.DataFrame) -> None:
        """Raise ``ValueError`` unless there are two trusted samples, enough for batch norm."""
        if (count := int(ledger["trusted"].sum())) < 2:
            raise ValueError(
                f"defence {self.name!r} works with trusted samples, but {count} of {len(ledger)} "
                "are trusted; raise ingest.trusted_share or choose another defence"
            )

    @abstractmethod
    def __call__(self, case: Case) -> Defended:
        """The net that is deployed.

        Args:
            case: the data, the plan, the undefended net and the settings of the run.

        Raises:
            ValueError: if the defence cannot work here, or a training diverges.
        """


def joined(*histories: pd.DataFrame) -> pd.DataFrame:
    """Histories of trainings one after the other, as one whose epochs run on."""
    whole = pd.concat(histories, ignore_index=True)
    return whole.assign(epoch=np.arange(1, len(whole) + 1))
