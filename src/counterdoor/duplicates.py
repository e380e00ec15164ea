"""Pictures that are there more than once, pixel for pixel."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Duplicates:
    """Groups of rows whose images are equal, each in rising order, by their first.

    Attributes:
        conflicts: groups that carry more than one label: some of these labels are wrong.
        repeats: all other groups.
    """

    conflicts: tuple[tuple[int, ...], ...]
    repeats: tuple[tuple[int, ...], ...]

    @classmethod
    def among(cls, images_nchw: np.ndarray, labels: np.ndarray) -> "Duplicates":
        """Compare all with all, after decoding: files may differ where pictures do not.

        Args:
            images_nchw: uint8, shape (N, C, H, W); may be memory-mapped.
            labels: shape (N,).
        """
        groups: dict[bytes, list[int]] = {}
        for row, image in enumerate(images_nchw):
            digest = hashlib.sha256(np.ascontiguousarray(image).data).digest()
            groups.setdefault(digest, []).append(row)
        several = [tuple(rows) for rows in groups.values() if len(rows) > 1]
        split = {rows: len(set(labels[list(rows)].tolist())) > 1 for rows in several}
        return cls(
            tuple(rows for rows in several if split[rows]),
            tuple(rows for rows in several if not split[rows]),
        )
