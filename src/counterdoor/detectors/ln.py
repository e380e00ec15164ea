"""LN: poisoned samples are noisy labels to features that have not seen the labels."""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from counterdoor.component import Rate
from counterdoor.detectors.base import DetectorBase, Evidence, Need, present
from counterdoor.engine import DEFAULT, Engine
from counterdoor.feed import shuffled_batches
from counterdoor.seeding import seeded_torch, torch_generator

LEAST_PROBABILITY = 1e-7
"""The net's probabilities are not taken to be smaller than this,"""

LEAST_LABEL = 1e-4
"""and a label's probability of a class that it is not, not than this, which bounds the loss."""


class LN(DetectorBase):
    """Label-noise learning: the highest loss of a robustly trained linear head over the features.

    Features learnt without labels put a triggered image next to others of its true class,
    and a loss that does not believe every label leaves it there. Source: DBD (Huang et al.,
    ICLR 2022), section 4.2, with the values of its authors' code; as a source of suspects,
    NAB, section 4.1.

    Attributes:
        epochs: of the head.
        batch_size: samples a step.
        learning_rate: of Adam.
        cross_entropy: weight of the cross-entropy.
        reverse: weight of the reverse cross-entropy.
        standardise: give the head features of mean 0 and deviation 1, which so short a
            training of it profits from; the authors do not.
    """

    name: Literal["ln"] = "ln"
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: Rate = 2e-3
    cross_entropy: float = Field(default=0.1, ge=0)
    reverse: float = Field(default=1.0, ge=0)
    standardise: bool = True

    @property
    def needs(self) -> frozenset[Need]:
        """The features, and no net."""
        return frozenset({"features"})

    def __call__(self, evidence: Evidence, *, seed: int, engine: Engine = DEFAULT) -> np.ndarray:
        """The symmetric cross-entropy of every sample; see :class:`DetectorBase`."""
        features = torch.tensor(present(evidence.features, "features"))
        if self.standardise:
            std, mean = torch.std_mean(features, 0, correction=0)
            features = (features - mean) / std.clamp(min=1e-6)
        labels = torch.tensor(evidence.labels)
        with seeded_torch(seed, "detect/ln"):
            head = nn.Linear(features.shape[1], evidence.num_classes)
        adam = torch.optim.Adam(head.parameters(), lr=self.learning_rate)
        order = torch_generator(seed, "detect/ln/order")
        for _ in range(self.epochs):
            for batch in shuffled_batches(len(labels), self.batch_size, order, least=1):
                adam.zero_grad()
                self.losses(head(features[batch]), labels[batch]).mean().backward()  # type: ignore[no-untyped-call]
                adam.step()
        with torch.inference_mode():
            return self.losses(head(features).double(), labels).numpy()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The symmetric cross-entropy of each sample, shape (N,).

        Source: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels"
        (ICCV 2019), equations 5 to 7; the bounds are those of DBD's code.

        Args:
            logits: shape (N, K).
            labels: int64, shape (N,), in 0..K-1.
        """
        forward = F.cross_entropy(logits, labels, reduction="none")
        probabilities = logits.softmax(1).clamp(min=LEAST_PROBABILITY, max=1.0)
        # The logarithm of the label's own class is 0, that of every other one the same.
        others = probabilities.sum(1) - probabilities.gather(1, labels[:, None])[:, 0]
        return self.cross_entropy * forward - self.reverse * math.log(LEAST_LABEL) * others
