"""How a net is trained: loss transform, learning-rate schedule, optimiser, augmentation."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from counterdoor.augment import Augment
from counterdoor.component import Component, Config, Rate


class CrossEntropy(Component):
    """The batch-mean cross-entropy as it is."""

    of_samples: ClassVar[bool] = False

    name: Literal["cross_entropy"] = "cross_entropy"

    def __call__(self, loss: Tensor) -> Tensor:
        """The loss unchanged."""
        return loss


class LocalGradientAscent(Component):
    """Local gradient ascent as ABL writes it: the mean of sign(L - gamma) * L over the samples.

    Each sample below gamma is unlearnt, each above it learnt. With the batch's mean in place
    of L, as ABL's code has it, the gradient would be that of flooding.

    Source: ABL (Li et al., NeurIPS 2021), section 4.2, equation 2.

    Attributes:
        gamma: the level that every sample's loss is held at, in nats.
    """

    of_samples: ClassVar[bool] = True

    name: Literal["lga"] = "lga"
    gamma: float = Field(default=0.5, gt=0, le=100)

    def __call__(self, loss: Tensor) -> Tensor:
        """sign(loss - gamma) * loss, element by element."""
        return (loss - self.gamma).sign() * loss


class Flooding(Component):
    """Local gradient ascent as the authors run it: |L - gamma| + gamma on the batch mean L.

    Below gamma the gradient turns round, so that samples that are learnt fast,
    and poisoned ones above all, stand out by their low loss. (ABL, section 4.2,
    calls this form flooding; its own is :class:`LocalGradientAscent`.)

    Attributes:
        gamma: the level that the mean loss is held at, in nats.
    """

    of_samples: ClassVar[bool] = False

    name: Literal["flooding"] = "flooding"
    gamma: float = Field(default=0.5, gt=0, le=100)

    def __call__(self, loss: Tensor) -> Tensor:
        """|loss - gamma| + gamma for a scalar loss."""
        return (loss - self.gamma).abs() + self.gamma


class Ascent(Component):
    """Gradient ascent: -L, so that the samples are unlearnt.

    Source: ABL, section 4.2, the second term of the global gradient ascent.

    Attributes:
        ceiling: loss from which on a sample is not unlearnt any further, in nats; ``None``
            for no end, as published: the loss can then grow until it overflows.
    """

    of_samples: ClassVar[bool] = True

    name: Literal["ascent"] = "ascent"
    ceiling: float | None = Field(default=None, gt=0, le=100)

    def __call__(self, loss: Tensor) -> Tensor:
        """Minus the loss, element by element, down to minus the ceiling."""
        return -(loss if self.ceiling is None else loss.clamp(max=self.ceiling))


LossTransform = Annotated[
    CrossEntropy | Flooding | LocalGradientAscent | Ascent, Field(discriminator="name")
]
"""What is done to the cross-entropy before the gradient: to a batch's mean, or with
``of_samples`` to each sample's, of which the mean is taken afterwards."""


class Cosine(Component):
    """Cosine decay by epoch: 0.5 * (1 + cos(pi * e / (E + tail_epochs))) of the first rate.

    Attributes:
        tail_epochs: how many epochs the curve would still need to reach 0 at the
            end of training (authors: 5 in full training, 80 in the warm-up).
    """

    name: Literal["cosine"] = "cosine"
    tail_epochs: int = Field(default=0, ge=0)

    def __call__(self, epoch: float, epochs: int) -> float:
        """The factor on the learning rate in the 0-based ``epoch`` of ``epochs``."""
        return 0.5 * (1.0 + math.cos(math.pi * int(epoch) / (epochs + self.tail_epochs)))


class Steps(Component):
    """The rate times ``factor`` from each milestone epoch on.

    Attributes:
        milestones: 0-based epochs at which the rate drops.
        factor: what it is multiplied with at each.
    """

    name: Literal["steps"] = "steps"
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = ()
    factor: float = Field(default=0.1, gt=0, le=10)

    def __call__(self, epoch: float, epochs: int) -> float:
        """The factor on the learning rate in the 0-based ``epoch`` of ``epochs``."""
        return self.factor ** sum(int(epoch) >= milestone for milestone in self.milestones)


class Triangle(Component):
    """Up to the full rate in a straight line and down again, step by step: for short trainings.

    Attributes:
        start: factor at the first step.
        peak: share of the training after which the full rate is reached.
        end: factor that the last step approaches.

    Source: the shape that airbench (Jordan, 2024) uses for CIFAR-10.
    """

    name: Literal["triangle"] = "triangle"
    start: float = Field(default=0.2, ge=0, le=1)
    peak: float = Field(default=0.2, gt=0, lt=1)
    end: float = Field(default=0.05, ge=0, le=1)

    def __call__(self, epoch: float, epochs: int) -> float:
        """The factor on the learning rate at the fractional, 0-based ``epoch`` of ``epochs``."""
        done = epoch / epochs
        if done < self.peak:
            return self.start + (1.0 - self.start) * done / self.peak
        return 1.0 + (self.end - 1.0) * (done - self.peak) / (1.0 - self.peak)


Schedule = Annotated[Cosine | Steps | Triangle, Field(discriminator="name")]
"""How the learning rate changes: cosine and steps by the epoch, the triangle by the step."""


class MuonRule(Config):
    """Muon on the convolutions (:class:`counterdoor.muon.Muon`); all else stays with SGD.

    For nets whose convolutions are followed by a norm. The schedule's factor goes to both.

    Attributes:
        learning_rate: rate before the schedule's factor.
        momentum: in Nesterov's form.
    """

    learning_rate: Rate
    momentum: float = Field(default=0.6, ge=0, lt=1)


class Recipe(Config):
    """How a net is trained: stochastic gradient descent with momentum.

    Attributes:
        epochs: passes over the samples.
        batch_size: samples per step; a last smaller batch is used too, except
            one of a single sample, which batch norm cannot take.
        learning_rate: rate before the schedule's factor.
        momentum: of SGD.
        weight_decay: L2 coefficient on all parameters.
        nesterov: Nesterov's form of the momentum.
        schedule: learning-rate schedule.
        augment: augmentation of every batch, before the stamp.
        loss: transform of the cross-entropy.
        label_smoothing: of the cross-entropy, in [0, 1).
        muon: another rule for the convolutions; ``None`` for SGD on all.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: Rate = 0.1
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=10)
    nesterov: bool = False
    schedule: Schedule = Cosine()
    augment: Augment = Augment()
    loss: LossTransform = CrossEntropy()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    muon: MuonRule | None = None
