"""What all attacks share: which rows are poisoned, and what becomes of their labels."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import Field

from counterdoor.component import Component
from counterdoor.seeding import numpy_generator


class AttackBase(Component):
    """An all-to-one attack that stamps a trigger on images and relabels them.

    Attributes:
        target_class: index of the class that triggered images are to be taken for.
        poison_ratio: share of every class that is poisoned, the target class
            included, in (0, 1).
    """

    target_class: int = Field(default=0, ge=0)
    poison_ratio: float = Field(default=0.1, gt=0, lt=1)

    @abstractmethod
    def __call__(self, images_nchw: np.ndarray) -> np.ndarray:
        """Put the trigger on every image.

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255]; not changed.

        Returns:
            A new array of the same shape, dtype and range.
        """

    def check_target(self, class_names: list[str]) -> None:
        """Raise ``ValueError`` unless the target class exists."""
        if self.target_class >= len(class_names):
            raise ValueError(
                f"attack.target_class is {self.target_class}, but the data has "
                f"{len(class_names)} classes, 0..{len(class_names) - 1} ({', '.join(class_names)})"
            )


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images_nchw: uint8, shape (N, C, H, W), the images as the defender gets them.
        ledger: the ledger as the defender sees it: ``label`` is the attacker's.
        oracle: ``sample_id``, ``true_label``, ``is_poisoned``; for evaluation only.
    """

    images_nchw: np.ndarray
    ledger: pd.DataFrame
    oracle: pd.DataFrame


def poison(
    attack: AttackBase,
    images_nchw: np.ndarray,
    ledger: pd.DataFrame,
    class_names: list[str],
    *,
    seed: int,
) -> Poisoned:
    """Poison a training set; the inputs are left as they are.

    Of the untrusted samples of each class, round(ratio * n) are drawn, get the
    trigger and the target label. Trusted samples are out of the attacker's reach.

    Args:
        attack: the attack.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        ledger: ``sample_id`` (= row), ``label``, ``trusted``.
        class_names: one name a class; the labels index it.
        seed: the run's seed.

    Raises:
        ValueError: if the target class or a label's class does not exist, or the
            ratio poisons no sample.
    """
    attack.check_target(class_names)
    labels = ledger["label"].to_numpy()
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {len(class_names)} "
            "class names; labels must be 0..K-1"
        )
    reachable = ~ledger["trusted"].to_numpy()
    generator = numpy_generator(seed, "attack/rows")
    chosen = [
        generator.permutation(rows)[: round(attack.poison_ratio * len(rows))]
        for rows in (
            np.flatnonzero((labels == label) & reachable) for label in range(len(class_names))
        )
    ]
    rows = np.sort(np.concatenate(chosen))
    if not len(rows):
        raise ValueError(
            f"attack.poison_ratio {attack.poison_ratio} poisons no sample of {reachable.sum()}; "
            "raise it"
        )
    images = np.array(images_nchw)
    images[rows] = attack(images_nchw[rows])
    is_poisoned = np.zeros(len(ledger), dtype=bool)
    is_poisoned[rows] = True
    return Poisoned(
        images_nchw=images,
        ledger=ledger.assign(label=np.where(is_poisoned, attack.target_class, labels)),
        oracle=pd.DataFrame(
            {
                "sample_id": ledger["sample_id"],
                "true_label": labels,
                "is_poisoned": is_poisoned,
            }
        ),
    )
