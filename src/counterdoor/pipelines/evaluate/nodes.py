"""Measure the defended net and its twin; the only stage that reads the oracle."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from counterdoor import plots
from counterdoor.engine import DEFAULT, Engine
from counterdoor.ledger import check_ledger
from counterdoor.metrics import class_accuracies, summarize
from counterdoor.models import TrainedNet
from counterdoor.params import (
    USUAL_DEFENCE,
    AttackParams,
    DefenceParams,
    DetectParams,
    IngestParams,
    ModelParams,
    RelabelParams,
)
from counterdoor.report import render_report
from counterdoor.stamp import WEAK_CONTRAST, Stamp, apply_stamp
from counterdoor.training import predict_classes, predict_logits

SHOWN = 8
"""How many test images the sample figure shows."""


def predict(
    test_images: np.ndarray,
    triggered_test_images: np.ndarray,
    test_ledger: pd.DataFrame,
    defended: TrainedNet,
    undefended: TrainedNet,
    stamp: Stamp,
    engine: Engine = DEFAULT,
) -> dict[str, Any]:
    """What each net predicts on each test image in each condition.

    Args:
        test_images: clean, uint8 (M, C, H, W).
        triggered_test_images: the same with the trigger.
        test_ledger: ``sample_id`` and the true ``label``.
        defended: the defended net.
        undefended: its twin.
        stamp: the run's stamp, used if the defended net has none of its own.
        engine: what to run on.

    Returns:
        ``predictions``: a table with ``sample_id``, ``true_label`` and one column
        for each of ``{defended,undefended}_{clean,triggered}_{plain,stamped}``;
        stamped, labels are mapped as the net says. Of a net that predicts with an image
        and its mirror image ``{net}_clean_{plain,stamped}_one_view`` are there as well.
    """
    check_ledger(test_ledger, test_images)
    columns = {
        "sample_id": test_ledger["sample_id"].to_numpy(),
        "true_label": test_ledger["label"].to_numpy(),
    }
    for net_name, trained in (("defended", defended), ("undefended", undefended)):
        net = trained.build()
        for image_name, images in (("clean", test_images), ("triggered", triggered_test_images)):
            name = f"{net_name}_{image_name}"
            views = {"": trained.mirror}
            if trained.mirror and image_name == "clean":
                views["_one_view"] = False
            for view, mirror in views.items():
                how: dict[str, Any] = {"mirror": mirror, "engine": engine}
                columns[f"{name}_plain{view}"] = predict_classes(net, images, **how)
                logits = predict_logits(net, images, stamp=defended.stamp or stamp, **how)
                columns[f"{name}_stamped{view}"] = trained.mapped(logits).argmax(1).numpy()
    return {"predictions": pd.DataFrame(columns)}


def measure(
    predictions: pd.DataFrame,
    ledger: pd.DataFrame,
    oracle: pd.DataFrame,
    info: dict[str, Any],
    defended: TrainedNet,
    attack: AttackParams,
) -> dict[str, float]:
    """All measures of the run by name; see :func:`counterdoor.metrics.summarize`."""
    return summarize(
        predictions,
        ledger,
        oracle,
        labels=attack.root.labels,
        num_classes=len(info["class_names"]),
        deployed_stamped=defended.stamp is not None,
    )


def gather_seconds(**timings: Mapping[str, float]) -> pd.DataFrame:
    """A table of ``stage`` and ``seconds``, in the order of the stages."""
    return pd.DataFrame(
        {"stage": list(timings), "seconds": [timing["seconds"] for timing in timings.values()]}
    )


def draw_samples(
    test_images: np.ndarray,
    triggered_test_images: np.ndarray,
    test_ledger: pd.DataFrame,
    info: dict[str, Any],
    defended: TrainedNet,
    stamp: Stamp,
) -> Figure:
    """A few test images clean, triggered and stamped, one of each of the first classes."""
    import torch

    labels = test_ledger["label"].to_numpy()
    _, rows = np.unique(labels, return_index=True)
    rows = rows[:SHOWN]
    images = torch.from_numpy(np.array(test_images[rows])).float() / 255.0
    stamped = apply_stamp(images, defended.stamp or stamp, defended.state["mean"]).clamp(max=1.0)
    return plots.plot_samples(
        test_images[rows],
        triggered_test_images[rows],
        (stamped * 255.0).round().to(torch.uint8).numpy(),
        labels[rows],
        info["class_names"],
    )


def draw_suspects(
    images: np.ndarray, ledger: pd.DataFrame, oracle: pd.DataFrame, info: dict[str, Any]
) -> Figure:
    """The most suspicious samples, framed by what the oracle says of them."""
    is_poisoned = oracle["is_poisoned"].to_numpy()
    return plots.plot_suspects(images, ledger, is_poisoned, info["class_names"])


def draw_scores(ledger: pd.DataFrame, oracle: pd.DataFrame) -> Figure:
    """The histogram of suspicion scores, split by the oracle."""
    return plots.plot_warmup_losses(
        ledger["score"].to_numpy(),
        oracle["is_poisoned"].to_numpy(),
        float(ledger.loc[ledger["suspect"], "score"].min()),
    )


def draw_curves(warmup: pd.DataFrame, undefended: pd.DataFrame, defended: pd.DataFrame) -> Figure:
    """Loss and accuracy by epoch of the trainings that there were."""
    histories = {"warm-up": warmup, "undefended": undefended, "defended": defended}
    return plots.plot_curves({name: each for name, each in histories.items() if len(each)})


def draw_confusion(predictions: pd.DataFrame, info: dict[str, Any], defended: TrainedNet) -> Figure:
    """Confusion matrices of both nets on clean and triggered test images."""
    deployed = _deployed(defended)
    shown = {
        f"{net}, {images}": predictions[f"{net}_{images}_{condition}"].to_numpy()
        for net, condition in (("undefended", "plain"), ("defended", deployed))
        for images in ("clean", "triggered")
    }
    return plots.plot_confusion(predictions["true_label"].to_numpy(), shown, info["class_names"])


def draw_classes(predictions: pd.DataFrame, info: dict[str, Any], attack: AttackParams) -> Figure:
    """Clean accuracy of every class: the twin, and the defended net without and with stamp."""
    true = predictions["true_label"].to_numpy()
    shown = {
        "undefended": "undefended_clean_plain",
        "defended, unstamped": "defended_clean_plain",
        "defended, stamped": "defended_clean_stamped",
    }
    names = info["class_names"]
    accuracies = {
        name: class_accuracies(predictions[column].to_numpy(), true, len(names))
        for name, column in shown.items()
    }
    return plots.plot_class_accuracy(accuracies, names, attack.root.target_class)


def draw_outcome(metrics: dict[str, float]) -> Figure:
    """The one picture to see first: accuracy and attack success of both nets."""
    return plots.plot_outcome(metrics)


def write_report(
    metrics: dict[str, float],
    seconds: pd.DataFrame,
    check: dict[str, Any],
    ingest: IngestParams,
    attack: AttackParams,
    detect: DetectParams,
    relabel: RelabelParams,
    model: ModelParams,
    stamp: Stamp,
    seed: int,
    defence: DefenceParams = USUAL_DEFENCE,
    **figures: bytes,
) -> str:
    """One self-contained HTML page.

    Args:
        metrics: of :func:`measure`.
        seconds: of :func:`gather_seconds`.
        check: the report of ``check_plan``, with the stamp's contrast.
        ingest: source and shares.
        attack: the attack.
        detect: detector and suspect ratio.
        relabel: labeler and trusted stamps.
        model: the net.
        stamp: the stamp.
        seed: the run's seed.
        defence: the defence; only choices that it reads are told.
        **figures: PNG files by name.
    """
    labels = attack.root.labels
    target, chosen = labels.single_target, defence.root
    used = chosen.stamp_in_use(stamp)
    choices = {
        "defence": chosen.name,
        "source": ingest.source.name,
        "attack": attack.root.name,
        "poison ratio": attack.root.poison_ratio,
        "cover ratio": attack.root.cover_ratio,
        "label mapping": labels.name if target is None else f"{labels.name}, class {target}",
        "attacker": attack.root.capability,
        "model": model.root.name,
        "seed": seed,
    }
    if chosen.needs_suspects:
        choices["detector"] = detect.detector.name
        choices["suspect ratio"] = chosen.suspect_rule(detect.suspect_ratio).in_words
    if chosen.needs_pseudo_labels:
        choices["labeler"] = relabel.labeler.name
        choices["trusted stamps"] = relabel.trusted_stamps
    if used is not None:
        choices["stamp"] = f"{used.size}x{used.size} {used.colour} at ({used.row}, {used.column})"
    return render_report(
        title=f"{chosen.name} against {attack.root.name} on {ingest.source.name}, seed {seed}",
        metrics=metrics,
        seconds=seconds,
        choices=choices,
        figures={name.replace("_", " "): png for name, png in figures.items()},
        notes=warnings_about(metrics, check["stamp_contrast"], stamps=chosen.needs_pseudo_labels),
    )


def warnings_about(
    metrics: Mapping[str, float], contrast: float, *, stamps: bool = True
) -> list[str]:
    """What a reader must know before trusting the figures, in plain words."""
    notes = []
    if contrast < WEAK_CONTRAST:
        notes.append(
            f"The stamp hardly differs from what it covers (mean difference {contrast:.3f} of 1): "
            "the net cannot see it well. Choose another colour, size or place."
        )
    if stamps and metrics["n_suspects"] == 0:
        notes.append("Nobody is suspected: the defended net was trained as usual, without stamp.")
    elif stamps and metrics["n_stamped"] == 0:
        notes.append("No suspect was stamped, so there is no benign backdoor in the defended net.")
    if metrics["undefended_asr"] < 0.5:
        notes.append(
            f"The attack itself is weak here (undefended ASR {metrics['undefended_asr']:.1%}): "
            "a low ASR under the defence proves little."
        )
    if metrics["ca_drop_worst_class"] > 0.05:
        notes.append(
            f"One class lost {metrics['ca_drop_worst_class']:.1%} of clean accuracy under the "
            "defence; see the accuracy by class."
        )
    return notes


def _deployed(defended: TrainedNet) -> str:
    return "plain" if defended.stamp is None else "stamped"
