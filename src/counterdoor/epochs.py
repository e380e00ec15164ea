"""Trainings that the usual one cannot express: any step, epoch by epoch."""

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from counterdoor.engine import Engine
from counterdoor.feed import Feed, Samples, shuffled_batches
from counterdoor.recipe import Recipe
from counterdoor.seeding import torch_generator
from counterdoor.training import optimizer_of, progress_of, set_rates

logger = logging.getLogger("counterdoor.training")  # whose records become curves and bars

ATTACKERS = "lower attack.net.recipe.learning_rate, and attack.learning_rate if there is one"
"""What helps against the divergence of an attacker's training."""

Step = Callable[[Tensor, Tensor, float], dict[str, Tensor]]
"""From images in [0, 1], labels and the fractional epoch to a batch's mean figures."""


class Descent:
    """Stochastic gradient descent of a net as its recipe says.

    Args:
        net: the net; it is set to train mode.
        recipe: for rates, momentum and weight decay.
    """

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        self._recipe = recipe
        self._optimizer = optimizer_of(net.train(), recipe)

    def __call__(self, loss: Tensor, epoch: float) -> None:
        """One step down the loss, at the rate of the fractional ``epoch``."""
        recipe = self._recipe
        set_rates(self._optimizer, recipe.schedule(epoch, recipe.epochs))
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()


class Epochs:
    """Epochs of any step over the same samples, with a record each.

    Args:
        samples: what to train on.
        recipe: for batch size and augmentation.
        seed: the run's seed.
        engine: what to run on.
        remedy: what to do if the training diverges.
    """

    def __init__(
        self, samples: Samples, recipe: Recipe, seed: int, engine: Engine, remedy: str = ATTACKERS
    ) -> None:
        self._samples = samples
        self._remedy = remedy
        self._recipe = recipe
        self._seed = seed
        self._feed = Feed(samples, engine, engine.device)

    def __call__(self, stream: str, epochs: int, step: Step) -> list[dict[str, float]]:
        """Take ``step`` on every batch of so many epochs.

        Returns:
            A record an epoch: ``epoch`` (1-based), the step's figures (means over the
            epoch), ``seconds`` and ``images_per_second``.

        Raises:
            ValueError: if the step's ``loss`` is not finite.
        """
        order = torch_generator(self._seed, f"{stream}/order")
        draws = torch_generator(self._seed, f"{stream}/augment")
        n = len(self._samples)
        records: list[dict[str, float]] = []
        for epoch in range(epochs):
            started, seen, sums = time.perf_counter(), 0, dict[str, Tensor]()
            for images, labels, _ in self._feed(
                shuffled_batches(n, self._recipe.batch_size, order)
            ):
                batch = self._recipe.augment(images, draws).to(
                    torch.float32, memory_format=torch.channels_last
                )
                figures = step(batch.div_(255.0), labels, epoch + seen / n)
                for name, value in figures.items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch)
                seen += len(batch)
            metrics = {name: float(total) / seen for name, total in sums.items()}
            if not math.isfinite(metrics["loss"]):
                raise ValueError(f"{stream!r} diverged in epoch {epoch + 1}; {self._remedy}")
            seconds = time.perf_counter() - started
            _report(stream, epoch, epochs, n, metrics, seconds)
            timing = {"seconds": seconds, "images_per_second": seen / seconds}
            records.append({"epoch": epoch + 1, **metrics, **timing})
        return records


def _report(
    stream: str, epoch: int, epochs: int, n: int, metrics: dict[str, float], seconds: float
) -> None:
    text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    progress = progress_of(stream, n, epoch, epochs, n, metrics["loss"], n / seconds)
    extra = {"stream": stream, "step": epoch + 1, "steps": epochs, "metrics": metrics}
    logger.info(
        "%s epoch %d/%d: %s", stream, epoch + 1, epochs, text, extra=extra | {"progress": progress}
    )
