"""What every labeler is given, and what it gives."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from counterdoor.component import Component
from counterdoor.engine import DEFAULT, Engine
from counterdoor.feed import Samples
from counterdoor.models import NormalisedNet, build_net
from counterdoor.recipe import Recipe
from counterdoor.stamp import Stamp
from counterdoor.training import fit, predict_logits

_AT_A_TIME = 1000


@dataclass(frozen=True)
class Case:
    """What a labeler may look at.

    Attributes:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        ledger: with ``label``, ``trusted`` and ``suspect``.
        num_classes: number of classes K.
        model: the model component of the run.
        stamp: the stamp of the run.
        features: float32, shape (N, D), learnt without labels, for a labeler that needs them;
            of as many layers as ``features.layers`` keeps.
        true_labels: int64, shape (N,), for a labeler with ``needs_truth`` in an ablation,
            ``None`` wherever a defender is at work.
        features_again: gives the same features of other images, uint8, shape (M, C, H, W);
            ``None`` where they are not to be had, see ``features_name``.
    """

    images_nchw: np.ndarray
    ledger: pd.DataFrame
    num_classes: int
    model: Component
    stamp: Stamp
    features: np.ndarray | None = None
    true_labels: np.ndarray | None = None
    features_again: Callable[[np.ndarray], np.ndarray] | None = None


class LabelerBase(Component):
    """Gives samples a pseudo-label.

    Attributes:
        needs_features: whether it looks at features learnt without labels.
        needs_truth: whether it looks at the true labels, so that only an ablation can have it.
        learns_from: whom its ``recipe``, if it has one, trains on.
    """

    needs_features: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False
    learns_from: ClassVar[Literal["trusted", "unsuspected"]] = "trusted"

    @property
    def moves_images(self) -> bool:
        """Whether it needs features of other images than those of the data set."""
        return False

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Raise ``ValueError`` before any training if the labeler cannot work on this ledger."""

    @abstractmethod
    def __call__(self, case: Case, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """A pseudo-label for every sample, suspect or not.

        Args:
            case: the samples, and what a labeler may use; not changed.
            seed: the run's seed.
            engine: what to run on.

        Returns:
            int64, shape (N,), in 0..K-1, or ``DROPPED`` for a sample that is to
            be left out of the training if it is suspect.
        """


def aligned(images_nchw: np.ndarray, suspect: np.ndarray) -> np.ndarray:
    """The suspects' images, moved so that their mean image is that of all others.

    A pattern that the suspects have in common, as a patch or a blended picture, is taken off
    them: a net that has never seen it would name most of them after one class. Suspects of one
    class lose what is common to that class as well.

    Args:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255]; not changed.
        suspect: bool, shape (N,).

    Returns:
        uint8, shape (number of suspects, C, H, W), rounded and cut off at 0 and 255; as they
        are if nobody or everybody is suspected.

    Source: ours.
    """
    rows, others = np.flatnonzero(suspect), np.flatnonzero(~suspect)
    images = images_nchw[rows]
    if not len(rows) or not len(others):
        return images
    shift = _mean_image(images_nchw, others) - _mean_image(images_nchw, rows)
    for start in range(0, len(images), _AT_A_TIME):
        part = images[start : start + _AT_A_TIME]
        part[...] = np.rint(part + shift).clip(0, 255)
    return images


def _mean_image(images_nchw: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Float64, shape (C, H, W); few images are in memory at a time."""
    total = np.zeros(images_nchw.shape[1:])
    for start in range(0, len(rows), _AT_A_TIME):
        total += images_nchw[rows[start : start + _AT_A_TIME]].sum(0, dtype=np.int64)
    return total / len(rows)


def trained_on(
    case: Case, rows: np.ndarray, recipe: Recipe, *, seed: int, engine: Engine
) -> NormalisedNet:
    """A net that has seen these rows alone, with the labels they came with.

    Args:
        case: the samples, and the net's architecture.
        rows: int64, which samples; their mean and deviation normalise its inputs as well.
        recipe: how it is trained.
        seed: the run's seed.
        engine: what to run on.
    """
    images, labels = case.images_nchw, case.ledger["label"].to_numpy()
    net = build_net(case.model, images[rows], case.num_classes, seed=seed, stream="relabel/init")
    samples = Samples(images, rows, labels[rows])
    net.load_state_dict(fit(net, samples, recipe, seed=seed, stream="relabel", engine=engine).state)
    return net


def logits_of_all(
    net: NormalisedNet, case: Case, *, align: bool, stamp: Stamp | None = None, engine: Engine
) -> Tensor:
    """Logits of every sample, float32, shape (N, num_classes).

    Args:
        net: a trained net.
        case: the samples.
        align: look at suspects as :func:`aligned` moves them.
        stamp: written on every image if given.
        engine: what to run on.
    """
    logits = predict_logits(net, case.images_nchw, stamp=stamp, engine=engine)
    suspect = case.ledger["suspect"].to_numpy()
    if align and suspect.any():
        images = aligned(case.images_nchw, suspect)
        logits[np.flatnonzero(suspect)] = predict_logits(net, images, stamp=stamp, engine=engine)
    return logits
