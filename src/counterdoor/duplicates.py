"""Pictures that are there more than once, pixel for pixel."""

import hashlib
from collections.abc import Iterator
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
        for row, digest in enumerate(_digests(images_nchw)):
            groups.setdefault(digest, []).append(row)
        several = [tuple(rows) for rows in groups.values() if len(rows) > 1]
        split = {rows: len(set(labels[list(rows)].tolist())) > 1 for rows in several}
        return cls(
            tuple(rows for rows in several if split[rows]),
            tuple(rows for rows in several if not split[rows]),
        )


def held_out_again(
    images_nchw: np.ndarray,
    labels: np.ndarray,
    test_nchw: np.ndarray,
    test_labels: np.ndarray,
) -> tuple[int, int]:
    """How many held-out pictures are there in the training part, and of these under another label.

    Args:
        images_nchw: uint8, shape (N, C, H, W).
        labels: shape (N,).
        test_nchw: the held-out ones, as ``images_nchw``.
        test_labels: as ``labels``.
    """
    under: dict[bytes, set[int]] = {}
    for digest, label in zip(_digests(images_nchw), labels.tolist(), strict=True):
        under.setdefault(digest, set()).add(label)
    shared = [
        under[digest] == {label}
        for digest, label in zip(_digests(test_nchw), test_labels.tolist(), strict=True)
        if digest in under
    ]
    return len(shared), shared.count(False)


def _digests(images_nchw: np.ndarray) -> Iterator[bytes]:
    for image in images_nchw:
        yield hashlib.sha256(np.ascontiguousarray(image).data).digest()
