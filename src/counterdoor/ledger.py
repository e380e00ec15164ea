"""The ledger: one row a sample, to which each stage adds its columns.

==================== ============ ==========================================================
column               added by     meaning
==================== ============ ==========================================================
``sample_id``        ingest       int64, the row in the image array, 0..N-1
``label``            ingest       int64, class index as the defender sees it
``trusted``          ingest       bool, verified by the defender and out of the attacker's reach
``score``            detect       float64, higher = more suspicious
``suspect``          detect       bool
``pseudo_label``     relabel      int64, class index, or :data:`DROPPED`
``stamped``          relabel      bool
==================== ============ ==========================================================

True labels and poison flags are not here: they live in the oracle.
"""

import numpy as np
import pandas as pd

DROPPED = -1
"""Pseudo-label of a suspect that is left out of the training."""


def stratified_rows(labels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Draw round(share * n) rows of each class at random; returns them sorted, int64.

    Args:
        labels: int64, shape (N,), class indices.
        share: in [0, 1].
        generator: source of randomness.
    """
    if not len(labels):
        return np.empty(0, dtype=np.int64)
    drawn = [
        generator.permutation(rows)[: round(share * len(rows))]
        for rows in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def new_ledger(labels: np.ndarray, trusted: np.ndarray) -> pd.DataFrame:
    """The first ledger: ``sample_id``, ``label``, ``trusted``."""
    return pd.DataFrame(
        {
            "sample_id": np.arange(len(labels), dtype=np.int64),
            "label": np.asarray(labels, dtype=np.int64),
            "trusted": np.asarray(trusted, dtype=bool),
        }
    )


def check_ledger(ledger: pd.DataFrame, images_nchw: np.ndarray, *columns: str) -> None:
    """Raise ``ValueError`` unless the ledger belongs to the images and has the columns."""
    missing = [column for column in ("sample_id", "label", *columns) if column not in ledger]
    if missing:
        raise ValueError(f"the ledger has no column {', '.join(missing)}: it has {list(ledger)}")
    if len(ledger) != len(images_nchw):
        raise ValueError(
            f"the ledger has {len(ledger)} rows, but there are {len(images_nchw)} images; "
            "they come from different runs"
        )
    if not np.array_equal(ledger["sample_id"], np.arange(len(ledger))):
        raise ValueError("the ledger's sample_id is not 0..N-1 in order: it was changed by hand")
