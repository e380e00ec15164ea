"""What something was made from: the SHA-256 of arrays, and tensors that carry it."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

KEY = "made_from"
"""The tensor in which others carry the hash of what they were made from."""
BLOCK = 1 << 24
"""So many bytes of an array, about, are read at a time: it may be a map of a file."""


def content_hash(*arrays: np.ndarray) -> str:
    """SHA-256 over shapes, types and bytes of the arrays, in order; hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        if array.size:
            rows = np.atleast_1d(array)
            step = max(1, BLOCK * len(rows) // array.nbytes)
            for start in range(0, len(rows), step):
                digest.update(np.ascontiguousarray(rows[start : start + step]).data)
    return digest.hexdigest()


def tied(tensors: Mapping[str, Tensor], hashed: str) -> dict[str, Tensor]:
    """The tensors, with what they were made from: a :func:`content_hash`."""
    return {**tensors, KEY: torch.tensor(list(bytes.fromhex(hashed)), dtype=torch.uint8)}


def is_tied(tensors: Mapping[str, Tensor] | None, hashed: str) -> bool:
    """Whether the tensors are there and were made from what has this :func:`content_hash`."""
    if tensors is None or KEY not in tensors:
        return False
    return np.array_equal(tensors[KEY].numpy(), np.frombuffer(bytes.fromhex(hashed), np.uint8))
