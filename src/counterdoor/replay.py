"""A training step recorded once as a CUDA graph, for kernels that are shorter than their calls.

With batch 64 a GPU does the work of one step of a ResNet-18 in less time than Python takes to
ask for its several hundred kernels one by one. Replayed as a graph they follow each other
without Python in between.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Passes before the recording, in which libraries choose their algorithms (PyTorch's advice)."""

Step = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From a batch, its labels and the length of the batch over all processes to the loss and the
number of right answers; the net's gradients are set on the way, from none."""


class Replay:
    """A step that is recorded at its first batch and replayed for all of the same shape.

    Batches of another shape (the last one of an epoch) go through the step itself. The net's
    buffers are as if each batch had been seen once. What the step decides by looking at
    values on the device (``if loss > 1``) cannot be recorded.

    Args:
        net: the net whose gradients the step sets, on a CUDA device; one process trains it.
        step: forward and backward pass, without the optimiser's part.
    """

    def __init__(self, net: nn.Module, step: Step) -> None:
        self._net = net
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor, labels: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """The step's results; they, and the gradients, hold until the next call.

        Raises:
            ValueError: if the step cannot be recorded.
        """
        if self._graph is None:
            self._graph = self._record(batch, labels, whole)
        if batch.shape != self._batch.shape:
            return self._step(batch, labels, whole)
        self._batch.copy_(batch)
        self._labels.copy_(labels)
        self._graph.replay()
        for parameter, gradient in self._gradients:  # a batch of another shape had its own
            parameter.grad = gradient
        return self._results

    def _record(self, batch: Tensor, labels: Tensor, whole: int) -> torch.cuda.CUDAGraph:
        self._batch, self._labels = batch.clone(), labels.clone()
        buffers = [(buffer, buffer.clone()) for buffer in self._net.buffers()]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self._step(self._batch, self._labels, whole)
            torch.cuda.current_stream().wait_stream(aside)
            # What other threads do meanwhile (reading the next batches) is their own affair.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._step(self._batch, self._labels, whole)
        except RuntimeError as error:
            raise ValueError(
                "the net's forward or backward pass cannot be recorded as a CUDA graph (it may "
                f"look at values while it runs); set engine.cuda_graph to false: {error}"
            ) from error
        for buffer, before in buffers:
            buffer.copy_(before)
        self._gradients = [(each, each.grad) for each in self._net.parameters()]
        return graph
