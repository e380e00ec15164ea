"""Independent random streams from one seed, without touching global state."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, stream: str) -> int:
    """A 63-bit seed for one named stream of a run.

    Different names give unrelated streams, so adding a consumer never shifts
    the numbers that another one draws.

    Args:
        seed: the run's seed, any integer.
        stream: a name such as ``"attack/rows"``.
    """
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for the named stream."""
    return torch.Generator().manual_seed(derive_seed(seed, stream))


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """A numpy generator for the named stream."""
    return np.random.default_rng(derive_seed(seed, stream))


@contextmanager
def seeded_torch(seed: int, stream: str, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them afterwards.

    Only for torch code that takes no generator (weight initialisation, dropout).

    Args:
        seed: the run's seed, any integer.
        stream: a name such as ``"train/init"``.
        device: a GPU whose generator is meant as well as the CPU's.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(derive_seed(seed, stream))
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(derive_seed(seed, stream))
        yield
