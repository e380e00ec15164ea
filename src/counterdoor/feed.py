"""From uint8 images to batches on the device: kept there, or read in the background."""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from counterdoor.engine import Engine
from counterdoor.transfer import sent

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Images (uint8, (N, C, H, W)), labels and stamp flags on the device."""

READ_AHEAD = 4
"""Batches that wait in streaming mode."""


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

    def __getstate__(self) -> dict[str, Any]:
        """For another process: a whole memory-mapped file is mapped there again, not copied."""
        state = dict(self.__dict__)
        images = self.images_nchw
        if isinstance(images, np.memmap) and isinstance(images.base, mmap):
            order: Literal["F", "C"] = "F" if np.isfortran(images) else "C"
            state["images_nchw"] = partial(
                np.memmap, images.filename, images.dtype, "r", images.offset, images.shape, order
            )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = state["images_nchw"]
        self.__dict__.update(state | {"images_nchw": images() if callable(images) else images})


class Feed:
    """Gives the batches of an epoch; what it gives does not depend on how.

    Resident: all images lie on the device, and a batch is picked from them. Streaming:
    a thread reads the next batches from the array, so that no more than a few batches of
    a memory-mapped set are in memory that belongs to this process.

    Args:
        samples: what to train on.
        engine: chooses the mode.
        device: where the batches are needed.
    """

    def __init__(self, samples: Samples, engine: Engine, device: torch.device) -> None:
        self._samples = samples
        self._device = device
        images = samples.images_nchw
        self._resident: Tensor | None = None
        if engine.is_resident(images.nbytes):
            writable = images.flags.writeable and not isinstance(images, np.memmap)
            whole = np.ascontiguousarray(images) if writable else np.array(images)
            self._resident = torch.from_numpy(whole).to(device)

    def __call__(self, batches: Iterable[np.ndarray]) -> Iterator[Batch]:
        """Batches of images for batches of positions in the samples, each int64, shape (N,)."""
        if self._resident is None:
            yield from _ahead(self._read(batch) for batch in batches)
            return
        for batch in batches:
            rows = sent(torch.from_numpy(self._samples.rows[batch]), self._device)
            yield self._resident[rows], *self._labels(batch)

    def _read(self, batch: np.ndarray) -> Batch:
        images = torch.from_numpy(self._samples.images_nchw[self._samples.rows[batch]])
        return sent(images, self._device), *self._labels(batch)

    def _labels(self, batch: np.ndarray) -> tuple[Tensor, Tensor | None]:
        labels = sent(torch.from_numpy(self._samples.labels[batch]), self._device)
        stamped = self._samples.stamped
        if stamped is None:
            return labels, None
        return labels, sent(torch.from_numpy(stamped[batch]), self._device)


def shuffled_batches(
    n: int, batch_size: int, generator: torch.Generator, least: int = 2
) -> Iterator[np.ndarray]:
    """Positions 0..n-1 in random order, ``batch_size`` at a time.

    A last smaller batch is given too, unless it has fewer than ``least`` samples: batch
    norm cannot take one alone.
    """
    order = torch.randperm(n, generator=generator).numpy()
    for start in range(0, n, batch_size):
        batch = order[start : start + batch_size]
        if len(batch) >= least or n == 1:
            yield batch


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, read by a thread a few in advance; its errors are raised here."""
    waiting: queue.Queue[Batch | BaseException | None] = queue.Queue(READ_AHEAD)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="feed", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
