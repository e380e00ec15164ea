"""Patches: what of an image is like random patches of all images; nothing is trained."""

import logging
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field
from torch import Tensor

from counterdoor.component import SIDE, Component
from counterdoor.engine import DEFAULT, Engine
from counterdoor.features.learnt import KEY
from counterdoor.seeding import numpy_generator

logger = logging.getLogger(__name__)
"""Gets a record after every few images, level DEBUG, ``extra={"progress": {...}}`` with
``stream``, ``done``, ``total`` and ``rate``."""

FILTERS, OFFSETS = "filters", "offsets"
"""What is kept besides the features, to have those of other images."""
SAMPLED = 100_000
"""Patches of which the statistics are taken and the filters drawn."""
FLOOR = 10.0
"""Added to a patch's variance before it is divided by its root, in squared levels of [0, 255]."""
WHITENING = 0.1
"""Added to the eigenvalues of the patches' covariance."""
_FILTERS, _CACHED, _HELD = 400, 1 << 19, 1 << 26
"""Filters at a time, and about how many responses: on a CPU no more than its cache has room for."""


class Patches(Component):
    """Likeness to random patches (Coates and Ng, ICML 2011); nothing is trained.

    Patches of the images are drawn, brought to mean 0 and deviation 1, and whitened: the
    filters. An image's responses at all places, in so far as they are above ``threshold`` or below
    its negative, are averaged over each of its parts. That takes minutes where learning takes
    hours.

    Source: Coates and Ng, "The Importance of Encoding Versus Training with Sparse Coding and
    Vector Quantization": random patches, soft threshold, four quadrants. The two constants of
    contrast and whitening are those of Coates, Lee and Ng (AISTATS 2011), section 3.1.

    Attributes:
        filters: how many, K; there are 2 K ``parts``^2 features.
        side: of a patch, in pixels.
        threshold: of the responses, of filters of length 1 to whitened patches.
        parts: into how many parts an image is cut in each direction.
        mirror: average over an image and its mirror image, for twice the time.
    """

    name: Literal["patches"] = "patches"
    filters: int = Field(default=400, ge=1, le=10**5)
    side: int = Field(default=6, ge=2, le=SIDE)
    threshold: float = Field(default=0.25, ge=0)
    parts: int = Field(default=2, ge=1, le=64)
    mirror: bool = False

    def check(self, model: Component, images_nchw: np.ndarray) -> None:  # noqa: ARG002
        """Raise ``ValueError`` unless every part of an image has a place for a patch."""
        height, width = images_nchw.shape[-2:]
        if min(height, width) < self.side + self.parts - 1:
            raise ValueError(
                f"images of {height} x {width} are too small for {self.parts} x {self.parts} parts "
                f"with patches of {self.side} x {self.side}: make features.side or features.parts "
                "smaller, or choose another features_name"
            )

    def __call__(
        self, images_nchw: np.ndarray, *, model: Component, seed: int, engine: Engine = DEFAULT
    ) -> dict[str, np.ndarray]:
        """Features of every image, and the filters.

        Args:
            images_nchw: uint8, shape (N, C, H, W), in [0, 255]; no label is looked at.
            model: not looked at.
            seed: the run's seed.
            engine: the device.

        Returns:
            ``features``: float32, shape (N, 2 K parts^2); ``filters``: float32, shape
            (K, C, side, side); ``offsets``: float32, shape (K,).

        Raises:
            ValueError: if the images are too small, or all of one grey.
        """
        self.check(model, images_nchw)
        filters, offsets = self._drawn(images_nchw, seed)
        learnt = {FILTERS: torch.from_numpy(filters), OFFSETS: torch.from_numpy(offsets)}
        features = self.again(learnt, images_nchw, engine=engine)
        return {KEY: features, FILTERS: filters, OFFSETS: offsets}

    def again(
        self, learnt: Mapping[str, Tensor], images_nchw: np.ndarray, *, engine: Engine = DEFAULT
    ) -> np.ndarray:
        """Features of other images, by the same filters.

        Args:
            learnt: with ``filters`` and ``offsets``.
            images_nchw: uint8, shape (N, C, H, W), in [0, 255].
            engine: the device.

        Returns:
            float32, shape (N, 2 K parts^2).
        """
        where = engine.device
        n, _, height, width = images_nchw.shape
        down, across = height - self.side + 1, width - self.side + 1
        parts = [self._parts(size).to(where) for size in (down, across)]
        filters, offsets = learnt[FILTERS].to(where), learnt[OFFSETS].to(where)
        # A mirrored image's responses to a filter are the image's to the mirrored filter.
        sides = [(filters, torch.kron(*parts))]
        if self.mirror:
            sides.append((filters.flip(-1), torch.kron(parts[0], parts[1].flip(1))))
        most = _CACHED if where.type == "cpu" else _HELD
        at_once = max(1, most // (min(len(filters), _FILTERS) * down * across))
        found = np.empty((n, 2, len(filters), self.parts**2), np.float32)
        started = time.monotonic()
        with torch.no_grad():
            for start in range(0, n, at_once):
                rows = slice(start, start + at_once)
                images = torch.from_numpy(np.array(images_nchw[rows])).to(where).float()
                patches = self._patches(images)
                for first in range(0, len(filters), _FILTERS):
                    those = slice(first, first + _FILTERS)
                    pooled = torch.stack(
                        [
                            self._pooled(patches, bank[those], offsets[those], over)
                            for bank, over in sides
                        ]
                    )
                    found[rows, :, those] = pooled.mean(0).cpu().numpy()
                done = min(n, start + at_once)
                rate = done / max(time.monotonic() - started, 1e-9)
                state = {"stream": "features", "done": done, "total": n, "rate": rate}
                logger.debug("features of %d of %d", done, n, extra={"progress": state})
        return found.reshape(n, -1)

    def _parts(self, places: int) -> Tensor:
        """What each place counts in each part of one direction's mean, shape (parts, places)."""
        return F.adaptive_avg_pool1d(torch.eye(places), self.parts).T.contiguous()

    def _patches(self, images: Tensor) -> Tensor:
        """Every patch over its deviation, shape (N, places, C side^2).

        The filters add up to 0 over a patch, so its mean need not be taken off.
        """
        patches = F.unfold(images, self.side).mT.contiguous()
        variance = patches.var(2, keepdim=True, correction=0)
        return patches.div_(variance.add_(FLOOR).sqrt_())

    def _pooled(self, patches: Tensor, filters: Tensor, offsets: Tensor, parts: Tensor) -> Tensor:
        """What is above and what is below the threshold, shape (N, 2, K, parts^2)."""
        response = torch.addmm(offsets, patches.flatten(0, 1), filters.flatten(1).T)
        beyond = F.softshrink(response, self.threshold).view(*patches.shape[:2], -1)
        signed = parts @ beyond
        both = parts @ beyond.abs_()
        return torch.stack([both + signed, both - signed], 1).mT.div_(2)

    def _drawn(self, images_nchw: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Filters on patches of mean 0 and deviation 1, and what is added to their responses."""
        rng = numpy_generator(seed, "features/patches")
        windows = sliding_window_view(images_nchw, (self.side, self.side), axis=(2, 3))
        n, channels, down, across = windows.shape[:4]
        rows, tops, lefts = (rng.integers(most, size=SAMPLED) for most in (n, down, across))
        drawn = windows[rows, :, tops, lefts].reshape(SAMPLED, -1).astype(np.float64)
        drawn -= drawn.mean(1, keepdims=True)
        drawn /= np.sqrt(drawn.var(1, keepdims=True) + FLOOR)
        mean = drawn.mean(0)
        values, vectors = np.linalg.eigh(np.cov(drawn, rowvar=False))
        whitening = (vectors / np.sqrt(values.clip(min=0) + WHITENING)) @ vectors.T
        seen = np.flatnonzero(drawn.any(1))
        if not len(seen):
            raise ValueError("all images are of one grey, so that there are no patches to draw")
        chosen = (drawn[rng.choice(seen, self.filters)] - mean) @ whitening
        chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
        filters = chosen @ whitening
        offsets = -(filters @ mean)
        filters -= filters.mean(1, keepdims=True)
        shape = (self.filters, channels, self.side, self.side)
        return filters.reshape(shape).astype(np.float32), offsets.astype(np.float32)
