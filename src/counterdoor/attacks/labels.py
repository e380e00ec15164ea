"""Label mappings: what a triggered image is to be taken for."""

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from counterdoor.component import Component


class LabelMappingBase(Component):
    """Gives every true label the label that the attacker wants in its place."""

    @property
    def single_target(self) -> int | None:
        """The only class that triggered images are to be taken for; ``None`` with several."""
        return None

    @abstractmethod
    def target_labels(self, true: np.ndarray, num_classes: int) -> np.ndarray:
        """The attacker's label for each sample.

        Args:
            true: int64, shape (N,), true class indices in 0..K-1.
            num_classes: number of classes K.

        Returns:
            int64, shape (N,), in 0..K-1.
        """

    def check(self, class_names: list[str]) -> None:
        """Raise ``ValueError`` unless every target exists among the classes."""


class AllToOne(LabelMappingBase):
    """Every image is to be taken for one target class.

    Attributes:
        target_class: index of that class.
    """

    name: Literal["all_to_one"] = "all_to_one"
    target_class: int = Field(default=0, ge=0)

    @property
    def single_target(self) -> int | None:
        """The target class."""
        return self.target_class

    def target_labels(self, true: np.ndarray, num_classes: int) -> np.ndarray:
        """The target class for each; see :meth:`LabelMappingBase.target_labels`."""
        return np.full(len(true), self.target_class, dtype=np.int64)

    def check(self, class_names: list[str]) -> None:
        """Raise ``ValueError`` unless the target class exists."""
        if self.target_class >= len(class_names):
            raise ValueError(
                f"attack.labels.target_class is {self.target_class}, but the data has "
                f"{len(class_names)} classes, 0..{len(class_names) - 1} ({', '.join(class_names)})"
            )


class AllToAll(LabelMappingBase):
    """Every image is to be taken for the next class: y becomes (y + 1) mod K.

    Gu et al., "BadNets" (2017), section 4.1.
    """

    name: Literal["all_to_all"] = "all_to_all"

    def target_labels(self, true: np.ndarray, num_classes: int) -> np.ndarray:
        """The next class of each; see :meth:`LabelMappingBase.target_labels`."""
        return (np.asarray(true, dtype=np.int64) + 1) % num_classes


LabelMapping = Annotated[AllToOne | AllToAll, Field(discriminator="name")]
"""Every label mapping that a configuration can name."""
