"""What every detector gives, and the rule that turns scores into suspects."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np
import pandas as pd
from torch import nn

from counterdoor.component import Component
from counterdoor.engine import DEFAULT, Engine

Need = Literal["warmup", "plain", "features"]
"""What is to be trained before detection: the warm-up's net, one trained as usual, or features."""

T = TypeVar("T", nn.Module, np.ndarray)


@dataclass(frozen=True)
class Evidence:
    """What a detector may look at.

    Attributes:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,), the labels that the defender was given.
        trusted: bool, shape (N,), the samples that the defender has verified.
        num_classes: number of classes K.
        warmup_net: the warmed-up net, from float images in [0, 1] to logits, for a
            detector that needs ``"warmup"``.
        plain_net: a net trained as usual, for a detector that needs ``"plain"``.
        features: float32, shape (N, D), learnt without labels, for a detector that needs
            ``"features"``.
        is_poisoned: bool, shape (N,), the truth; for a detector with ``needs_truth`` in
            an ablation, ``None`` wherever a defender is at work.
    """

    images_nchw: np.ndarray
    labels: np.ndarray
    trusted: np.ndarray
    num_classes: int
    warmup_net: nn.Module | None = None
    plain_net: nn.Module | None = None
    features: np.ndarray | None = None
    is_poisoned: np.ndarray | None = None


def present(given: T | None, need: Need) -> T:
    """The net or the features, which a detector with this need has been given.

    Raises:
        ValueError: if it has not.
    """
    if given is None:
        what = repr(need) if need == "features" else f"{need!r} net"
        raise ValueError(f"this detector needs the {what}, but the evidence has none")
    return given


def check_trusted(labels: np.ndarray, trusted: np.ndarray, num_classes: int) -> None:
    """Raise ``ValueError`` unless at least two samples of every class are trusted."""
    counts = np.bincount(labels[trusted], minlength=num_classes)
    if (counts < 2).any():
        short = ", ".join(f"{label} ({counts[label]})" for label in np.flatnonzero(counts < 2))
        raise ValueError(
            "this detector needs at least 2 trusted samples of every class, but these have "
            f"fewer: class {short}; raise ingest.trusted_share or choose another detector"
        )


class DetectorBase(Component):
    """Scores samples by how suspicious they are.

    Attributes:
        judged: whether the verdict's tests of scores are calibrated for its own.
        in_parts: whether a score is the place between the two parts of its class, above 0 in
            the suspicious one, in a unit of the class's own.
        decided: whether scores are above 0 for suspects, and for nobody else.
        carried: whether a score is how much of a pattern a sample carries, 1 for all of it.
    """

    judged: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False
    decided: ClassVar[bool] = False
    carried: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """What is trained for this detector; nothing else is."""

    @property
    def signed(self) -> bool:
        """Whether scores above 0 are closer to a poison, in a unit that all classes share."""
        return False

    @property
    def needs_truth(self) -> bool:
        """Whether it looks at the poison flags, so that only an ablation can have it."""
        return False

    def check(self, ledger: pd.DataFrame, num_classes: int) -> None:
        """Raise ``ValueError`` before any training if it cannot work on this ledger."""

    @abstractmethod
    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """Score every sample; higher = more suspicious.

        Args:
            evidence: the samples, and what has been trained on them; not changed.
            seed: the run's seed.
            engine: what to run on.

        Returns:
            float64, shape (N,).
        """


def suspect_count(eligible: int, suspect_ratio: float) -> int:
    """How many samples are suspected: floor(ratio * eligible).

    Raises:
        ValueError: if that is nobody.
    """
    if not eligible:
        raise ValueError("every sample is trusted: there is nobody to suspect; lower trusted_share")
    # The product of a decimal ratio may fall just short of a whole number.
    count = math.floor(suspect_ratio * eligible + 1e-9)
    if count < 1:
        least = math.ceil(1e6 / eligible) / 1e6
        raise ValueError(
            f"suspect_ratio {suspect_ratio} of {eligible} untrusted samples selects nobody; "
            f"use at least {least:g}"
        )
    return count


def select_suspects(scores: np.ndarray, eligible: np.ndarray, suspect_ratio: float) -> np.ndarray:
    """Flag the highest-scoring floor(ratio * n) of the n eligible samples.

    Args:
        scores: float64, shape (N,), higher = more suspicious. Ties go to the
            lower row.
        eligible: bool, shape (N,); trusted samples are not.
        suspect_ratio: share of the eligible samples, in (0, 1).

    Returns:
        bool, shape (N,).

    Raises:
        ValueError: if a score is not a number, or nobody is selected.

    Source: NAB, section 4.1 (5 % of the training set).
    """
    return flag_highest(scores, eligible, suspect_count(int(eligible.sum()), suspect_ratio))


def flag_highest(scores: np.ndarray, eligible: np.ndarray, count: int) -> np.ndarray:
    """Flag the ``count`` highest-scoring eligible samples; see :func:`select_suspects`."""
    check_scores(scores)
    rows = np.flatnonzero(eligible)
    ranked = rows[np.argsort(-scores[rows], kind="stable")]
    suspect = np.zeros(len(scores), dtype=bool)
    suspect[ranked[:count]] = True
    return suspect


def check_scores(scores: np.ndarray) -> None:
    """Raise ``ValueError`` if a score is not a number."""
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {len(scores)} scores are not numbers")
