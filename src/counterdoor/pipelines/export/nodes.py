"""Make of the defended net something that can be shipped."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from counterdoor.hardened import Hardened, model_card, to_onnx
from counterdoor.ledger import check_ledger
from counterdoor.models import TrainedNet
from counterdoor.params import (
    DefenceParams,
    DetectParams,
    ExportParams,
    IngestParams,
    ModelParams,
    RelabelParams,
    TrainParams,
)


def harden(
    net: TrainedNet,
    info: dict[str, Any],
    test_images: np.ndarray,
    test_ledger: pd.DataFrame,
    ingest: IngestParams,
    model: ModelParams,
    detect: DetectParams,
    relabel: RelabelParams,
    train: TrainParams,
    defence: DefenceParams,
    export: ExportParams,
    seed: int,
) -> Hardened:
    """Put the net together with all that its user needs, and measure it on held-out images.

    Args:
        net: the net that is deployed.
        info: the data set's ``class_names``, counts and content hash.
        test_images: held-out images as they came, uint8 (M, C, H, W).
        test_ledger: their labels as they came.
        ingest: how images were read.
        model: the net's kind.
        detect: who was suspected.
        relabel: what became of them.
        train: the training.
        defence: the defence.
        export: how it is written.
        seed: the run's seed.

    Returns:
        The net; ``about`` has ``data``, ``configuration`` and ``figures``: accuracy against
        the labels that the held-out images came with, and the share of them rejected.
    """
    check_ledger(test_ledger, test_images)
    form = replace(ingest.source.form, size=net.image_shape[1:])
    hardened = Hardened(net, tuple(info["class_names"]), form, reject_column=export.reject)
    logits, rejected = hardened.predict(test_images)
    right = logits.argmax(axis=1) == test_ledger["label"].to_numpy()
    parts = {
        "ingest": ingest,
        "model": model,
        "detect": detect,
        "relabel": relabel,
        "train": train,
        "defence": defence,
    }
    about = {
        "data": {key: value for key, value in info.items() if key != "class_names"},
        "configuration": {
            "seed": seed,
            **{name: each.model_dump(mode="json") for name, each in parts.items()},
        },
        "figures": {
            "held_out_accuracy": float(right.mean()),
            "held_out_rejected": float(rejected.mean()),
        },
    }
    return replace(hardened, about=about)


def write_card(hardened: Hardened) -> str:
    """The model card, Markdown; see :func:`counterdoor.hardened.model_card`."""
    return model_card(hardened)


def write_onnx(hardened: Hardened) -> bytes:
    """The net as ONNX; see :func:`counterdoor.hardened.to_onnx`."""
    return to_onnx(hardened)
