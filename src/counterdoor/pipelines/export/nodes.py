"""Make of the defended net something that can be shipped."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from counterdoor.duplicates import Duplicates
from counterdoor.hardened import Hardened, model_card, to_onnx, try_exports
from counterdoor.ledger import DROPPED, check_ledger
from counterdoor.models import TrainedNet, build_net
from counterdoor.names import csv_path, csv_text, shown
from counterdoor.params import (
    DefenceParams,
    DetectParams,
    ExportParams,
    IngestParams,
    ModelParams,
    RelabelParams,
    TrainParams,
)
from counterdoor.seeding import numpy_generator
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp
from counterdoor.suspects_page import render_suspects
from counterdoor.verdict import Judge, Verdict, unjudged

ASKED = 2000
"""Of the suspects, and of the others, the net is asked about at most so many."""


def check_export(
    images: np.ndarray,
    info: dict[str, Any],
    check: dict[str, Any],
    model: ModelParams,
    train: TrainParams,
    defence: DefenceParams,
    stamp: Stamp,
    export: ExportParams,
) -> dict[str, Any]:
    """Write an untrained net in every form that the trained one will be shipped in.

    A net that cannot be written is refused here, and not after all trainings.

    Args:
        images: training images, uint8 (N, C, H, W).
        info: the data set's ``class_names``.
        check: the report of the plan's check; only its having passed counts.
        model: the net's kind.
        train: whether it predicts with mirror images.
        defence: whether it is stamped.
        stamp: what with.
        export: how it is written.

    Returns:
        ``report``: ``bytes`` of all forms together.

    Raises:
        ValueError: naming the form that this net cannot be written in, at these images' size.
    """
    names = tuple(info["class_names"])
    two = np.resize(images[:2], (2, *images.shape[1:]))
    state = build_net(model.root, two, len(names), seed=0, stream="check/init").state_dict()
    used = defence.root.stamp_in_use(stamp)
    net = TrainedNet.of(model.root, two, len(names), state, used, tuple(range(len(names))))
    form = Form(net.image_shape[1:], "L" if net.image_shape[0] == 1 else "RGB")
    untrained = Hardened(
        replace(net, mirror=train.mirror), names, form, reject_column=export.reject
    )
    return {"report": {"bytes": try_exports(untrained)}}


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


def list_suspects(
    images: np.ndarray, ledger: pd.DataFrame, files: pd.DataFrame, info: dict[str, Any]
) -> dict[str, Any]:
    """Whom somebody should look at, and whom to keep; known before the full training.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: with all columns.
        files: ``sample_id`` and ``file``.
        info: the data set's ``class_names``.

    Returns:
        ``suspects``, the most suspicious first: ``file``, ``sample_id``, ``label``, ``score``
        (higher = more suspicious), ``rank`` among all samples from 1, ``pseudo_label`` (empty
        if the suspect is left out of the training) and ``reason``; ``cleaned``: ``file`` and
        ``label`` of all that are not suspected; ``page``: the suspects as HTML, see
        :func:`counterdoor.suspects_page.render_suspects`. No cell is taken for a formula, and
        every file is still found by its name; see :func:`counterdoor.names.csv_path`.
    """
    names = np.array(info["class_names"], dtype=object)
    table = ledger.merge(files, on="sample_id", validate="one_to_one")
    table["rank"] = table["score"].rank(ascending=False, method="first").astype(int)
    of_label = table.groupby("label")["score"]
    within = (of_label.rank(method="min") - 1) / of_label.transform("size")  # share below
    found = table[table["suspect"]].sort_values("rank")
    dropped = (found["pseudo_label"] == DROPPED).to_numpy()
    looks_like = np.where(dropped, "", names[found["pseudo_label"].to_numpy()])
    labels = names[found["label"].to_numpy()]
    reasons = [
        f"more suspicious than {share:.1%} of {shown(label)}; "
        + (
            "left out"
            if like == ""
            else "looks like it"
            if like == label
            else f"looks like {shown(like)}"
        )
        for share, label, like in zip(within[found.index], labels, looks_like, strict=True)
    ]
    suspects = pd.DataFrame(
        {
            "file": [csv_path(file) for file in found["file"]],
            "sample_id": found["sample_id"].to_numpy(),
            "label": [csv_text(label) for label in labels],
            "score": found["score"].to_numpy(),
            "rank": found["rank"].to_numpy(),
            "pseudo_label": [csv_text(label) for label in looks_like],
            "reason": reasons,
        }
    )
    kept = table[~table["suspect"]]
    cleaned = {
        "file": [csv_path(file) for file in kept["file"]],
        "label": [csv_text(label) for label in names[kept["label"].to_numpy()]],
    }
    twice = Duplicates.among(images, ledger["label"].to_numpy())
    page = render_suspects(
        images, ledger, suspects, info["class_names"], files["file"].tolist(), twice.conflicts
    )
    return {"suspects": suspects, "cleaned": pd.DataFrame(cleaned), "page": page}


def judge(
    images: np.ndarray,
    ledger: pd.DataFrame,
    info: dict[str, Any],
    detect: DetectParams,
    params: Judge,
    files: pd.DataFrame,
) -> dict[str, Any]:
    """Whether there is evidence of poisoning; known once samples are scored.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: with ``label``, ``trusted``, ``score`` and ``suspect``.
        info: the data set's ``class_names``.
        detect: who was suspected; undecided, if the tests are not calibrated for the detector.
        params: where evidence begins.
        files: ``sample_id`` and ``file``. Pictures that are there under two labels, or twice, are
            told beside the reasons.

    Returns:
        ``verdict``: the fields of :class:`counterdoor.verdict.Verdict`.
    """
    verdict = verdict_of(ledger, info, detect, params)
    labels = ledger["label"].to_numpy()
    verdict = verdict.with_duplicates(
        Duplicates.among(images, labels), files["file"].tolist(), labels, info["class_names"]
    )
    return {"verdict": verdict.model_dump(mode="json")}


def verdict_of(
    ledger: pd.DataFrame, info: dict[str, Any], detect: DetectParams, params: Judge
) -> Verdict:
    """The verdict itself; arguments as those of :func:`judge`."""
    if detect.detector.judged or detect.detector.in_parts:
        return params(ledger, info["class_names"], in_parts=detect.detector.in_parts)
    reason = f"The verdict's tests are not calibrated for the scores of {detect.detector.name!r}."
    return unjudged(reason, int(ledger["suspect"].sum()))


def ask_the_net(
    images: np.ndarray, ledger: pd.DataFrame, hardened: Hardened, seed: int
) -> dict[str, Any]:
    """How many images the stamp changes the class of, among suspects and among others.

    Args:
        images: training images, uint8 (N, C, H, W).
        ledger: with ``suspect``.
        hardened: the net that is deployed.
        seed: the run's seed; it draws whom of many the net is asked about.

    Returns:
        ``effect``: ``changed_suspects`` and ``changed_others``, shares in [0, 1]; empty if the net
        has no stamp, and without a share of whom there are none.
    """
    effect: dict[str, float] = {}
    if hardened.net.stamp is not None:
        suspect = ledger["suspect"].to_numpy()
        for stream, group in (("suspects", suspect), ("others", ~suspect)):
            draw = numpy_generator(seed, f"verdict/{stream}")
            rows = np.sort(draw.permutation(np.flatnonzero(group))[:ASKED])
            if len(rows):
                _, rejected = hardened.predict(images[rows])
                effect[f"changed_{stream}"] = float(rejected.mean())
    return {"effect": effect}
