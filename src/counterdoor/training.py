"""The one training loop, and prediction. Warm-up, defence, twin and labelers all call ``fit``."""

import copy
import functools
import hashlib
import json
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from counterdoor.batch_norm import over_all_processes
from counterdoor.checkpoint import Checkpoint, SharedResult
from counterdoor.convolutions import fastest_convolutions
from counterdoor.engine import DEFAULT, Engine, freed_memory_kept
from counterdoor.feed import Feed, Samples, shuffled_batches
from counterdoor.models import NormalisedNet, logits_of
from counterdoor.muon import Muon
from counterdoor.recipe import Recipe
from counterdoor.replay import Replay, Step
from counterdoor.seeding import seeded_torch, torch_generator
from counterdoor.stamp import Stamp, apply_stamp

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.25
"""Within an epoch, progress is told at most so often."""


HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "learning_rate", "seconds", "images_per_second")


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

    @classmethod
    def of(cls, state: dict[str, Tensor], records: list[dict[str, float]]) -> "Fit":
        """From the net's tensors and one record an epoch; there may be none."""
        return cls(state, pd.DataFrame(records, columns=HISTORY_COLUMNS))


class Objective(Protocol):
    """What a net may be trained for in place of the samples' labels; a configuration as well."""

    def inputs(self, images_nchw: Tensor, generator: torch.Generator) -> Tensor:
        """What the net sees of a uint8 batch, in place of the recipe's augmentation, in [0, 255].

        A multiple of the batch in length.
        """

    def targets(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """From the net's outputs to logits and the class of each."""

    def model_dump_json(self) -> str:
        """All that it depends on."""


@dataclass(frozen=True)
class _Job:
    """All that a training depends on; the same job gives the same net."""

    net: NormalisedNet
    samples: Samples
    recipe: Recipe
    seed: int
    stream: str
    stamp: Stamp | None
    engine: Engine
    objective: Objective | None = None

    def digest(self) -> str:
        """SHA-256 of everything, the images included: the name of its checkpoint."""
        settings = {
            "recipe": self.recipe.model_dump(mode="json"),
            "stamp": self.stamp.model_dump(mode="json") if self.stamp else None,
            "engine": self.engine.model_dump(mode="json", exclude={"data", "resident_mb"}),
            "seed": self.seed,
            "stream": self.stream,
            "objective": self.objective.model_dump_json() if self.objective else None,
            "torch": torch.__version__,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        samples = self.samples
        for tensor in self.net.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        for array in (samples.rows, samples.labels, samples.stamped):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
        images = samples.images_nchw
        digest.update(str(images.shape).encode())
        for start in range(0, len(images), 4096):
            digest.update(np.ascontiguousarray(images[start : start + 4096]).data)
        return digest.hexdigest()


def fit(
    net: NormalisedNet,
    samples: Samples,
    recipe: Recipe,
    *,
    seed: int,
    stream: str,
    stamp: Stamp | None = None,
    objective: Objective | None = None,
    engine: Engine = DEFAULT,
) -> Fit:
    """Train a net and return its weights and history. ``net`` itself is left as it was.

    Each batch is augmented as uint8, turned to float in [0, 1], stamped where the
    samples say so, and then normalised inside the net.

    Several processes (``engine.devices``, ``engine.num_nodes``) work on the same batches
    as one would, each on its share, with batch norm over the whole batch: the result is
    that of one process up to rounding. Their progress is told when they have ended.

    Inside :func:`counterdoor.checkpoint.checkpoints_in` the training is saved once an
    epoch, and the same call in another process goes on from there, to the same bits on
    a CPU. Inside :func:`counterdoor.checkpoint.results_shared_in` a training that has been
    made before is not made again: its result is given back, and its epochs are told.

    Args:
        net: the net to start from.
        samples: what to train on.
        recipe: how.
        seed: the run's seed; with ``stream`` it fixes order and augmentation.
        stream: name of this training; also the prefix of its progress records,
            which go to this module's logger with ``extra={"stream", "step",
            "steps", "metrics", "progress"}``, one an epoch, and at level DEBUG
            with ``extra={"progress"}`` a few times a second.
        stamp: needed if any sample is stamped.
        objective: what to train for if not for the labels; in one process, without a stamp.
        engine: what to run on.

    Raises:
        ValueError: if a sample is stamped and no stamp is given, or an objective is, or
            there are several processes for an objective, the stamp does
            not fit the images or has the colour of the augmentation's padding,
            a label is not one of the net's classes, the engine is not to be had
            here, or the training diverges.
    """
    if samples.stamped is not None and samples.stamped.any():
        if stamp is None:
            raise ValueError("some samples are stamped, but no stamp was given")
        stamp.check_fits(*samples.images_nchw.shape[-2:])
        recipe.augment.check_stamp(stamp, net.mean)
    if objective is not None and (samples.stamped is not None or engine.processes > 1):
        raise ValueError("an objective of its own takes one process and samples without stamps")
    fabric = engine.fabric()
    job = _Job(net, samples, recipe, seed, stream, stamp, engine, objective)
    digest = functools.cache(job.digest)
    shared = SharedResult.of(stream, digest)
    if shared is not None and (found := shared.read()) is not None:
        return _told(job, Fit.of(*found))
    fitted = _fitted(fabric, job, Checkpoint.of(stream, digest))
    if shared is not None:
        shared.save(fitted.state, _records(fitted))
    return fitted


def _fitted(fabric: "Fabric", job: _Job, checkpoint: Checkpoint | None) -> Fit:
    """The training itself, in as many processes as the engine says."""
    train = functools.partial(_train, job=job, checkpoint=checkpoint)
    if not job.engine.resolved_strategy().endswith(("spawn", "fork")):
        return Fit.of(*fabric.launch(train))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fit.safetensors"
        fabric.launch(functools.partial(train, file=file))
        with safe_open(file, framework="pt") as opened:
            records = json.loads(opened.metadata()["records"])
        return _told(job, Fit.of(load_file(file), records))


def _told(job: _Job, fitted: Fit) -> Fit:
    """The same, after its epochs have been told."""
    for epoch, record in enumerate(_records(fitted)):
        _report(job, epoch, record)
    return fitted


def _records(fitted: Fit) -> list[dict[str, float]]:
    return [
        {str(name): value for name, value in record.items()}
        for record in fitted.history.to_dict("records")
    ]


def _train(
    fabric: "Fabric", job: _Job, checkpoint: Checkpoint | None, file: Path | None = None
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights on the CPU and the epochs' records; runs in each process.

    A process of Fabric's own cannot hand over much: it writes both to ``file`` instead.
    """
    recipe, samples = job.recipe, job.samples
    net = copy.deepcopy(job.net).to(memory_format=torch.channels_last)
    net.train()
    if fabric.world_size > 1:
        over_all_processes(net)
    in_bf16 = job.engine.resolved_precision() == "bf16-mixed"
    on_gpu, on_cpu = (fabric.device.type == kind for kind in ("cuda", "cpu"))
    optimizer = optimizer_of(net, recipe, torch.bfloat16 if in_bf16 else torch.float32, on_gpu)
    run: nn.Module = torch.compile(net) if job.engine.compile else net  # type: ignore[assignment]
    module, stepper = fabric.setup(run, optimizer)
    order = torch_generator(job.seed, f"{job.stream}/order")
    draws = torch_generator(job.seed, f"{job.stream}/augment")
    records: list[dict[str, float]] = []
    with (
        seeded_torch(job.seed, f"{job.stream}/net", fabric.device),  # dropout draws from it
        freed_memory_kept(),
        fastest_convolutions(bf16_on_cpu=in_bf16 and on_cpu and not job.engine.compile),
    ):
        if checkpoint is not None:
            records = checkpoint.restore(net, optimizer, order, draws)
        feed = Feed(samples, job.engine, fabric.device)
        step: Step = _Step(fabric, job, module, stepper)
        if job.engine.replays and job.objective is None:
            step = Replay(net, step)
        for epoch in range(len(records), recipe.epochs):
            record = _epoch(fabric, job, step, stepper, feed, epoch, order, draws)
            if not math.isfinite(record["loss"]) or not _finite(net):
                raise ValueError(
                    f"{job.stream!r} diverged in epoch {epoch + 1} (loss {record['loss']:g}, "
                    f"learning rate {record['learning_rate']:g}); lower learning_rate, now "
                    f"{recipe.learning_rate:g}"
                )
            records.append({"epoch": epoch + 1, **record})
            if checkpoint is not None and fabric.is_global_zero:
                checkpoint.save(net, optimizer, order, draws, records)
            if file is None and fabric.is_global_zero:
                _report(job, epoch, records[-1])
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    if file is None:
        return state, records
    if fabric.is_global_zero:
        save_file(state, file, {"records": json.dumps(records)})
    fabric.barrier()
    if distributed.is_initialized():  # else its threads may outlive the process, which aborts
        distributed.destroy_process_group()
    return {}, []


def optimizer_of(
    net: nn.Module, recipe: Recipe, dtype: torch.dtype = torch.float32, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of a recipe, over those parameters of a net that are trained.

    ``dtype`` is that of Muon's matrix products; ``fused`` has SGD step in one kernel.
    """
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "nesterov": recipe.nesterov,
    }
    if recipe.muon is None:
        return torch.optim.SGD(trained, fused=fused or None, **options)
    return Muon(
        [parameter for parameter in trained if parameter.dim() == 4],
        [parameter for parameter in trained if parameter.dim() != 4],
        learning_rate=recipe.muon.learning_rate,
        momentum=recipe.muon.momentum,
        sgd_options=options,
        dtype=dtype,
    )


def set_rates(optimizer: Any, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times the one that it began with."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("initial_lr", group["lr"])


@dataclass(frozen=True)
class _Step:
    """Forward and backward pass of one batch: a :data:`counterdoor.replay.Step`."""

    fabric: "Fabric"
    job: _Job
    module: nn.Module
    stepper: Any

    def __call__(self, batch: Tensor, labels: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """The batch-mean loss before its transform, and how many of its logits are right."""
        logits = self.module(batch)
        if self.job.objective is None:
            self._check_labels(logits.shape[1])
        else:
            logits, labels = self.job.objective.targets(logits)
        self.stepper.zero_grad(set_to_none=True)
        loss = _backward(self.fabric, self.job.recipe, logits, labels, whole)
        return loss, (logits.detach().argmax(1) == labels).sum()

    @functools.cached_property
    def _label_range(self) -> tuple[int, int]:
        labels = self.job.samples.labels
        return int(labels.min()), int(labels.max())

    def _check_labels(self, num_classes: int) -> None:
        low, high = self._label_range
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels run from {low} to {high}, but the net has {num_classes} classes; "
                "labels must be 0..K-1"
            )


def _epoch(
    fabric: "Fabric",
    job: _Job,
    step: Step,
    stepper: Any,
    feed: Feed,
    epoch: int,
    order: torch.Generator,
    draws: torch.Generator,
) -> dict[str, float]:
    """One pass over the samples; returns the epoch's figures."""
    recipe, mean = job.recipe, job.net.mean.to(fabric.device)
    started = reported = time.perf_counter()
    total_loss = torch.zeros((), device=fabric.device)
    total_correct = torch.zeros((), device=fabric.device)
    seen, n = 0, len(job.samples)
    mine = slice(fabric.global_rank, None, fabric.world_size)
    first_rate = recipe.learning_rate * recipe.schedule(epoch, recipe.epochs)
    least = max(2 if n > 1 else 1, fabric.world_size)
    for images, labels, flags in feed(shuffled_batches(n, recipe.batch_size, order, least)):
        set_rates(stepper, recipe.schedule(epoch + seen / n, recipe.epochs))
        augment = recipe.augment if job.objective is None else job.objective.inputs
        batch = augment(images, draws)
        whole = len(batch)
        batch, labels = batch[mine], labels[mine]
        flags = None if flags is None else flags[mine]
        batch = batch.to(torch.float32, memory_format=torch.channels_last).div_(255.0)
        if job.stamp is not None and flags is not None:
            batch = apply_stamp(batch, job.stamp, mean, flags)
        loss, right = step(batch, labels, whole)
        stepper.step()
        total_loss += loss * len(images)
        total_correct += right / (whole // len(images))
        seen += len(images)
        now = time.perf_counter()
        if now - reported > TICK_SECONDS and logger.isEnabledFor(logging.DEBUG):
            reported = now
            loss_now, rate_now = float(total_loss) / seen, seen / (now - started)
            progress = progress_of(job.stream, n, epoch, recipe.epochs, seen, loss_now, rate_now)
            logger.debug("%s: epoch %d", job.stream, epoch + 1, extra={"progress": progress})
    if fabric.world_size > 1:
        total_correct = fabric.all_reduce(total_correct, reduce_op="sum")  # type: ignore[assignment]
    loss_sum, correct = float(total_loss), float(total_correct)
    seconds = time.perf_counter() - started
    return {
        "loss": loss_sum / seen,
        "accuracy": correct / seen,
        "learning_rate": first_rate,
        "seconds": seconds,
        "images_per_second": seen / seconds,
    }


def _backward(
    fabric: "Fabric", recipe: Recipe, logits: Tensor, labels: Tensor, whole: int
) -> Tensor:
    """Gradient of the transformed loss; returns the batch-mean cross-entropy itself.

    With several processes ``logits`` and ``labels`` are this one's share of ``whole``
    samples; a transform of the mean is of that over all, and DDP averages the gradients.
    """
    if recipe.loss.of_samples:
        losses = F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=recipe.label_smoothing
        )
        fabric.backward(recipe.loss(losses).sum() / whole * fabric.world_size)
        mine = losses.detach().sum() / whole
        return fabric.all_reduce(mine, reduce_op="sum") if fabric.world_size > 1 else mine  # type: ignore[return-value]
    if fabric.world_size == 1:
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        fabric.backward(recipe.loss(loss))
        return loss.detach()
    total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=recipe.label_smoothing)
    share = total / whole
    mean: Tensor = fabric.all_reduce(share.detach(), reduce_op="sum")  # type: ignore[assignment]
    mean.requires_grad_()
    (slope,) = torch.autograd.grad(recipe.loss(mean), mean)
    fabric.backward(share * slope * fabric.world_size)
    return mean.detach()


def predict_logits(
    net: nn.Module,
    images_nchw: np.ndarray,
    *,
    mean: Tensor | None = None,
    stamp: Stamp | None = None,
    mirror: bool = False,
    batch_size: int = 500,
    engine: Engine = DEFAULT,
) -> Tensor:
    """Logits of a net in eval mode, float32, shape (N, num_classes), on the CPU.

    Args:
        net: from float images in [0, 1] to logits, such as a :class:`NormalisedNet`.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        mean: mean colour in [0, 1], shape (C,); needed with ``stamp`` unless
            the net has it.
        stamp: written on every image if given.
        mirror: whether to take the mean over each image and its mirror image.
        batch_size: images at a time.
        engine: what to run on.

    Raises:
        ValueError: if there is no image, or the stamp lies outside the images.
    """
    if not len(images_nchw):
        raise ValueError("there is no image to predict")
    if stamp is not None:
        stamp.check_fits(*images_nchw.shape[-2:])
    where = engine.device
    was_training = net.training
    net = net.to(where).eval()
    outputs = []
    with torch.inference_mode(), engine.autocast():
        for start in range(0, len(images_nchw), batch_size):
            part = np.array(images_nchw[start : start + batch_size])  # a map may be read-only
            images = torch.from_numpy(part).to(where).to(torch.float32).div_(255.0)
            images = images.contiguous(memory_format=torch.channels_last)
            if stamp is not None and mean is None:
                mean = net.mean  # type: ignore[assignment]
            logits = logits_of(net, images, stamp=stamp, mean=mean, mirror=mirror)
            outputs.append(logits.float().cpu())
    net.train(was_training)
    return torch.cat(outputs)


def predict_classes(
    net: nn.Module,
    images_nchw: np.ndarray,
    *,
    stamp: Stamp | None = None,
    mirror: bool = False,
    engine: Engine = DEFAULT,
) -> np.ndarray:
    """Predicted classes, int64, shape (N,); arguments as :func:`predict_logits`."""
    logits = predict_logits(net, images_nchw, stamp=stamp, mirror=mirror, engine=engine)
    return logits.argmax(1).numpy()


def sample_losses(
    net: nn.Module, images_nchw: np.ndarray, labels: np.ndarray, *, engine: Engine = DEFAULT
) -> np.ndarray:
    """Cross-entropy of every sample in eval mode, float64, shape (N,), in nats.

    Args:
        net: from float images in [0, 1] to logits.
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,), class indices.
        engine: what to run on.
    """
    logits = predict_logits(net, images_nchw, engine=engine).double()
    losses = F.cross_entropy(logits, torch.tensor(labels), reduction="none")
    return losses.numpy()


def _finite(net: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in net.parameters())


def progress_of(
    stream: str, n: int, epoch: int, epochs: int, seen: int, loss: float, rate: float
) -> dict[str, Any]:
    """What a bar shows after ``seen`` of ``n`` samples of the 0-based ``epoch``."""
    return {
        "stream": stream,
        "epoch": epoch + 1,
        "epochs": epochs,
        "done": epoch * n + seen,
        "total": epochs * n,
        "loss": loss,
        "rate": rate,
    }


def _report(job: _Job, epoch: int, record: dict[str, float]) -> None:
    metrics = {name: value for name, value in record.items() if name != "epoch"}
    logger.info(
        "%s epoch %d/%d: loss %.4f, accuracy %.4f, %.0f images/s",
        job.stream,
        epoch + 1,
        job.recipe.epochs,
        metrics["loss"],
        metrics["accuracy"],
        metrics["images_per_second"],
        extra={
            "stream": job.stream,
            "step": epoch + 1,
            "steps": job.recipe.epochs,
            "metrics": metrics,
            "progress": progress_of(
                *(job.stream, len(job.samples), epoch, job.recipe.epochs, len(job.samples)),
                metrics["loss"],
                metrics["images_per_second"],
            ),
        },
    )
