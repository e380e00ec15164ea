"""The one training loop, and prediction. Warm-up, defence, twin and labelers all call ``fit``."""

import copy
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from counterdoor.augment import Augment
from counterdoor.component import Component, Config
from counterdoor.models import NormalisedNet
from counterdoor.seeding import torch_generator
from counterdoor.stamp import Stamp, apply_stamp

logger = logging.getLogger(__name__)


class CrossEntropy(Component):
    """The batch-mean cross-entropy as it is."""

    name: Literal["cross_entropy"] = "cross_entropy"

    def __call__(self, loss: Tensor) -> Tensor:
        """The loss unchanged."""
        return loss


class Flooding(Component):
    """Local gradient ascent as the authors run it: |L - gamma| + gamma on the batch mean L.

    Below gamma the gradient turns round, so that samples that are learnt fast,
    and poisoned ones above all, stand out by their low loss. (ABL, section 4.2,
    calls this form flooding and prefers sign(L - gamma) * L.)

    Attributes:
        gamma: the level that the mean loss is held at, in nats.
    """

    name: Literal["flooding"] = "flooding"
    gamma: float = Field(default=0.5, gt=0)

    def __call__(self, loss: Tensor) -> Tensor:
        """|loss - gamma| + gamma for a scalar loss."""
        return (loss - self.gamma).abs() + self.gamma


LossTransform = Annotated[CrossEntropy | Flooding, Field(discriminator="name")]
"""What is done to a batch's mean cross-entropy before the gradient."""


class Cosine(Component):
    """Cosine decay by epoch: 0.5 * (1 + cos(pi * e / (E + tail_epochs))) of the first rate.

    Attributes:
        tail_epochs: how many epochs the curve would still need to reach 0 at the
            end of training (authors: 5 in full training, 80 in the warm-up).
    """

    name: Literal["cosine"] = "cosine"
    tail_epochs: int = Field(default=0, ge=0)

    def __call__(self, epoch: int, epochs: int) -> float:
        """The factor on the learning rate in the 0-based ``epoch`` of ``epochs``."""
        return 0.5 * (1.0 + math.cos(math.pi * epoch / (epochs + self.tail_epochs)))


class Steps(Component):
    """The rate times ``factor`` from each milestone epoch on.

    Attributes:
        milestones: 0-based epochs at which the rate drops.
        factor: what it is multiplied with at each.
    """

    name: Literal["steps"] = "steps"
    milestones: tuple[int, ...] = ()
    factor: float = Field(default=0.1, gt=0)

    def __call__(self, epoch: int, epochs: int) -> float:
        """The factor on the learning rate in the 0-based ``epoch`` of ``epochs``."""
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


Schedule = Annotated[Cosine | Steps, Field(discriminator="name")]
"""How the learning rate changes from epoch to epoch."""


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
        schedule: learning-rate schedule, one factor per epoch.
        augment: augmentation of every batch, before the stamp.
        loss: transform of the batch-mean cross-entropy.
        label_smoothing: of the cross-entropy, in [0, 1).
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    nesterov: bool = False
    schedule: Schedule = Cosine()
    augment: Augment = Augment()
    loss: LossTransform = CrossEntropy()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


@dataclass(frozen=True)
class Samples:
    """What a net is trained on: rows of an image array, with a label and a stamp flag each.

    A row may occur more than once (trusted images are added again, stamped).

    Attributes:
        images_nchw: uint8, shape (M, C, H, W), in [0, 255]; may be memory-mapped.
        rows: int64, shape (N,), indices into ``images_nchw``.
        labels: int64, shape (N,), class indices.
        stamped: bool, shape (N,), or ``None`` for no stamp anywhere.
    """

    images_nchw: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    stamped: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.rows), len(self.labels)}
        if self.stamped is not None:
            lengths.add(len(self.stamped))
        if len(lengths) != 1:
            raise ValueError(f"rows, labels and stamp flags differ in length: {sorted(lengths)}")
        if not len(self.rows):
            raise ValueError("there is no sample to train on")

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Fit:
    """What a training gives back.

    Attributes:
        state: the net's tensors by name, on the CPU.
        history: one row an epoch with ``epoch`` (1-based), ``loss`` (mean
            cross-entropy before the loss transform), ``accuracy`` (on the
            augmented, stamped batches), ``learning_rate``, ``seconds`` and
            ``images_per_second``.
    """

    state: dict[str, Tensor]
    history: pd.DataFrame


def choose_device(device: str = "auto") -> torch.device:
    """The device by name; ``auto`` is a GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def fit(
    net: NormalisedNet,
    samples: Samples,
    recipe: Recipe,
    *,
    seed: int,
    stream: str,
    stamp: Stamp | None = None,
    device: str = "auto",
) -> Fit:
    """Train a net and return its weights and history. ``net`` itself is left as it was.

    Each batch is turned to float in [0, 1], augmented, stamped where the samples
    say so, and then normalised inside the net.

    Args:
        net: the net to start from.
        samples: what to train on.
        recipe: how.
        seed: the run's seed; with ``stream`` it fixes order and augmentation.
        stream: name of this training; also the prefix of its progress records,
            which go to this module's logger with ``extra={"stream", "step",
            "steps", "metrics"}``, one an epoch.
        stamp: needed if any sample is stamped.
        device: ``auto``, ``cpu``, ``cuda``, …

    Raises:
        ValueError: if a sample is stamped and no stamp is given, the stamp does
            not fit the images or has the colour of the augmentation's padding,
            a label is not one of the net's classes, or the training diverges.
    """
    if samples.stamped is not None and samples.stamped.any():
        if stamp is None:
            raise ValueError("some samples are stamped, but no stamp was given")
        stamp.check_fits(*samples.images_nchw.shape[-2:])
        recipe.augment.check_stamp(stamp, net.mean)
    where = choose_device(device)
    net = copy.deepcopy(net).to(where).to(memory_format=torch.channels_last)
    net.train()
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    order = torch_generator(seed, f"{stream}/order")
    draws = torch_generator(seed, f"{stream}/augment")
    records: list[dict[str, float]] = []
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        rate = recipe.learning_rate * recipe.schedule(epoch, recipe.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total_loss = torch.zeros((), device=where)
        total_correct = torch.zeros((), device=where)
        seen = 0
        for batch in _batches(len(samples), recipe.batch_size, order):
            images = _float_images(samples.images_nchw, samples.rows[batch], where)
            labels = torch.from_numpy(samples.labels[batch]).to(where)
            images = recipe.augment(images, draws)
            if stamp is not None and samples.stamped is not None:
                flags = torch.from_numpy(samples.stamped[batch]).to(where)
                images = apply_stamp(images, stamp, net.mean, flags)
            logits = net(images)
            if epoch == 0:
                _check_labels(labels, logits.shape[1])
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            recipe.loss(loss).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach() * len(labels)
            total_correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
        seconds = time.perf_counter() - started
        record = {
            "loss": float(total_loss) / seen,
            "accuracy": float(total_correct) / seen,
            "learning_rate": rate,
            "seconds": seconds,
            "images_per_second": seen / seconds,
        }
        if not math.isfinite(record["loss"]) or not _finite(net):
            raise ValueError(
                f"{stream!r} diverged in epoch {epoch + 1} (loss {record['loss']:g}, learning rate "
                f"{rate:g}); lower learning_rate, now {recipe.learning_rate:g}"
            )
        records.append({"epoch": epoch + 1, **record})
        _report(stream, epoch + 1, recipe.epochs, record)
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    return Fit(state, pd.DataFrame(records))


def predict_logits(
    net: nn.Module,
    images_nchw: np.ndarray,
    *,
    mean: Tensor | None = None,
    stamp: Stamp | None = None,
    batch_size: int = 500,
    device: str = "auto",
) -> Tensor:
    """Logits of a net in eval mode, float32, shape (N, num_classes), on the CPU.

    Args:
        net: from float images in [0, 1] to logits, such as a :class:`NormalisedNet`.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        mean: mean colour in [0, 1], shape (C,); needed with ``stamp`` unless
            the net has it.
        stamp: written on every image if given.
        batch_size: images at a time.
        device: ``auto``, ``cpu``, ``cuda``, …

    Raises:
        ValueError: if there is no image, or the stamp lies outside the images.
    """
    if not len(images_nchw):
        raise ValueError("there is no image to predict")
    if stamp is not None:
        stamp.check_fits(*images_nchw.shape[-2:])
    where = choose_device(device)
    was_training = net.training
    net = net.to(where).eval()
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(images_nchw), batch_size):
            rows = np.arange(start, min(start + batch_size, len(images_nchw)))
            images = _float_images(images_nchw, rows, where)
            if stamp is not None:
                images = apply_stamp(images, stamp, net.mean if mean is None else mean)  # type: ignore[arg-type]
            outputs.append(net(images).float().cpu())
    net.train(was_training)
    return torch.cat(outputs)


def predict_classes(
    net: nn.Module, images_nchw: np.ndarray, *, stamp: Stamp | None = None, device: str = "auto"
) -> np.ndarray:
    """Predicted classes, int64, shape (N,); arguments as :func:`predict_logits`."""
    logits = predict_logits(net, images_nchw, stamp=stamp, device=device)
    return logits.argmax(1).numpy()


def sample_losses(
    net: nn.Module, images_nchw: np.ndarray, labels: np.ndarray, *, device: str = "auto"
) -> np.ndarray:
    """Cross-entropy of every sample in eval mode, float64, shape (N,), in nats.

    Args:
        net: from float images in [0, 1] to logits.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,), class indices.
        device: ``auto``, ``cpu``, ``cuda``, …
    """
    logits = predict_logits(net, images_nchw, device=device).double()
    losses = F.cross_entropy(logits, torch.tensor(labels), reduction="none")
    return losses.numpy()


def _finite(net: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in net.parameters())


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the net has "
            f"{num_classes} classes; labels must be 0..K-1"
        )


def _batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    order = torch.randperm(n, generator=generator).numpy()
    for start in range(0, n, batch_size):
        batch = order[start : start + batch_size]
        if len(batch) > 1 or n == 1:
            yield batch


def _float_images(images_nchw: np.ndarray, rows: np.ndarray, device: torch.device) -> Tensor:
    images = torch.from_numpy(np.ascontiguousarray(images_nchw[rows]))
    images = images.to(device, memory_format=torch.channels_last)
    return images.float().div_(255.0)


def _report(stream: str, step: int, steps: int, metrics: dict[str, float]) -> None:
    logger.info(
        "%s epoch %d/%d: loss %.4f, accuracy %.4f, %.0f images/s",
        stream,
        step,
        steps,
        metrics["loss"],
        metrics["accuracy"],
        metrics["images_per_second"],
        extra={"stream": stream, "step": step, "steps": steps, "metrics": metrics},
    )
