"""What all attacks share: which rows are poisoned, and what becomes of their labels."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from torch import Tensor

from counterdoor.attacks.labels import AllToOne, LabelMapping
from counterdoor.component import Component
from counterdoor.engine import DEFAULT, Engine
from counterdoor.seeding import numpy_generator

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
"""What an attack without preparation has prepared."""


class AttackBase(Component):
    """An attack on the training data: a trigger on some images, and labels to go with it.

    Attributes:
        poison_ratio: share of every class that is poisoned, the target class included,
            in (0, 1); of a clean-label attack, share of the target class.
        cover_ratio: share of every class that gets the trigger's cover form and keeps its
            true label, in [0, 1).
        labels: what triggered images are to be taken for.
    """

    clean_label: ClassVar[bool] = False
    """Whether only images of the target class are poisoned, and all labels stay."""
    all_to_all: ClassVar[bool] = True
    """Whether the attack works with more than one target class."""
    capability: ClassVar[str] = "changes training images and their labels"
    """What is assumed of the attacker, in one line."""

    poison_ratio: float = Field(default=0.1, gt=0, lt=1)
    cover_ratio: float = Field(default=0.0, ge=0, lt=1)
    labels: LabelMapping = AllToOne()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.labels.single_target is None and (self.clean_label or not self.all_to_all):
            reason = "keeps all labels" if self.clean_label else "is made for one target class"
            raise ValueError(
                f"labels is {self.labels.name}, but {self.name} {reason}; use all_to_one"
            )
        if self.clean_label and self.cover_ratio:
            raise ValueError(
                f"cover_ratio is {self.cover_ratio}, but poisoned images of {self.name} keep their "
                "true label as covers do; set it to 0"
            )
        if self.poison_ratio + self.cover_ratio >= 1:
            raise ValueError(
                f"poison_ratio {self.poison_ratio} and cover_ratio {self.cover_ratio} leave no "
                "clean sample; their sum must be below 1"
            )
        return self

    @abstractmethod
    def __call__(
        self, images_nchw: np.ndarray, prepared: Mapping[str, Tensor] = NOTHING
    ) -> np.ndarray:
        """Put the trigger on every image, as the attacker does when the model is used.

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255]; not changed.
            prepared: what :meth:`prepare` gave.

        Returns:
            A new array of the same shape, dtype and range.
        """

    def poison_images(
        self,
        images_nchw: np.ndarray,
        generator: np.random.Generator,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """The trigger's form in poisoned training images; by default that of :meth:`__call__`.

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255]; not changed.
            generator: source of randomness for forms that differ from image to image.
            prepared: what :meth:`prepare` gave.

        Returns:
            A new array of the same shape, dtype and range.
        """
        return self(images_nchw, prepared)

    def cover_images(
        self,
        images_nchw: np.ndarray,
        generator: np.random.Generator,
        prepared: Mapping[str, Tensor] = NOTHING,
    ) -> np.ndarray:
        """The trigger's form in cover samples; by default that of :meth:`poison_images`."""
        return self.poison_images(images_nchw, generator, prepared)

    def prepare(
        self,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        seed: int,
        engine: Engine = DEFAULT,
    ) -> dict[str, Tensor]:
        """What the attacker makes beforehand from the clean training set; nothing by default.

        Args:
            images_nchw: clean training images, uint8, shape (N, C, H, W), in [0, 255].
            labels: int64, shape (N,), true class indices.
            num_classes: number of classes K.
            seed: the run's seed.
            engine: what to run on.

        Returns:
            CPU tensors by name (weights, a pattern), for ``prepared``.
        """
        return {}

    @property
    def target_class(self) -> int | None:
        """The only class that triggered images are to be taken for; ``None`` without one."""
        return self.labels.single_target if self.poison_ratio else None

    @property
    def needs_preparation(self) -> bool:
        """Whether the attack has a :meth:`prepare` of its own."""
        return type(self).prepare is not AttackBase.prepare

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError``, before any work, if images (C, H, W) cannot have the trigger."""


@dataclass(frozen=True)
class Rows:
    """Which training samples an attack changes; all int64, sorted, disjoint.

    Attributes:
        poisoned: rows that get the trigger and the target label.
        cover: rows that get the cover form and keep their label.
    """

    poisoned: np.ndarray
    cover: np.ndarray


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images_nchw: uint8, shape (N, C, H, W), the images as the defender gets them.
        ledger: the ledger as the defender sees it: ``label`` is the attacker's.
        oracle: ``sample_id``, ``true_label``, ``is_poisoned``, ``is_cover``; for
            evaluation only.
    """

    images_nchw: np.ndarray
    ledger: pd.DataFrame
    oracle: pd.DataFrame


def draw_rows(
    attack: AttackBase, ledger: pd.DataFrame, class_names: list[str], *, seed: int
) -> Rows:
    """Draw whom the attack changes among the untrusted samples.

    Of each class with n such samples, round(poison_ratio * n) are poisoned and
    round(cover_ratio * n) others are covers; a clean-label attack poisons its target
    class alone. Trusted samples are out of the attacker's reach.

    Args:
        attack: the attack.
        ledger: the clean ledger: ``label`` and ``trusted``.
        class_names: one name a class; the labels index it.
        seed: the run's seed.

    Raises:
        ValueError: if a target or a label's class does not exist, or the ratio
            poisons no sample.
    """
    attack.labels.check(class_names)
    labels = ledger["label"].to_numpy()
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {len(class_names)} "
            "class names; labels must be 0..K-1"
        )
    reachable = ~ledger["trusted"].to_numpy()
    generator = numpy_generator(seed, "attack/rows")
    poisoned, cover = [], []
    for label in range(len(class_names)):
        rows = generator.permutation(np.flatnonzero((labels == label) & reachable))
        spared = attack.clean_label and label != attack.labels.single_target
        end = 0 if spared else round(attack.poison_ratio * len(rows))
        poisoned.append(rows[:end])
        cover.append(rows[end : end + round(attack.cover_ratio * len(rows))])
    drawn = Rows(np.sort(np.concatenate(poisoned)), np.sort(np.concatenate(cover)))
    if attack.poison_ratio and not len(drawn.poisoned):
        among = labels == attack.labels.single_target if attack.clean_label else True
        raise ValueError(
            f"attack.poison_ratio {attack.poison_ratio} poisons no sample of "
            f"{(reachable & among).sum()}; raise it, or choose the attack 'none'"
        )
    return drawn


def poison(
    attack: AttackBase,
    images_nchw: np.ndarray,
    ledger: pd.DataFrame,
    class_names: list[str],
    *,
    seed: int,
    prepared: Mapping[str, Tensor] = NOTHING,
) -> Poisoned:
    """Poison a training set; the inputs are left as they are.

    Args:
        attack: the attack.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        ledger: ``sample_id`` (= row), ``label``, ``trusted``.
        class_names: one name a class; the labels index it.
        seed: the run's seed.
        prepared: what the attack's ``prepare`` gave for these images.

    Raises:
        ValueError: as :func:`draw_rows`, or if the images cannot have the trigger.
    """
    attack.check(images_nchw.shape[1:])
    rows = draw_rows(attack, ledger, class_names, seed=seed)
    images = np.array(images_nchw)
    images[rows.poisoned] = attack.poison_images(
        images_nchw[rows.poisoned], numpy_generator(seed, "attack/poisoned"), prepared
    )
    if len(rows.cover):
        images[rows.cover] = attack.cover_images(
            images_nchw[rows.cover], numpy_generator(seed, "attack/cover"), prepared
        )
    labels = ledger["label"].to_numpy()
    is_poisoned, is_cover = np.zeros((2, len(ledger)), dtype=bool)
    is_poisoned[rows.poisoned] = True
    is_cover[rows.cover] = True
    wanted = attack.labels.target_labels(labels, len(class_names))
    return Poisoned(
        images_nchw=images,
        ledger=ledger.assign(label=np.where(is_poisoned, wanted, labels)),
        oracle=pd.DataFrame(
            {
                "sample_id": ledger["sample_id"],
                "true_label": labels,
                "is_poisoned": is_poisoned,
                "is_cover": is_cover,
            }
        ),
    )
