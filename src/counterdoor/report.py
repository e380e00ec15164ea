"""The report of a run: one HTML page that needs no other file and no network."""

import math
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

Table = Mapping[str, Sequence[str]]
"""Rows of a table: the name, then the cells as they are shown."""

OUTCOME = {
    "Clean accuracy (CA)": "ca",
    "CA of the worst class": "ca_worst_class",
    "CA of the target class": "ca_target_class",
    "Attack success rate (ASR)": "asr",
    "Backdoor accuracy (BA)": "ba",
    "BA without the target class": "ba_without_target",
}
FOR_ONE_TARGET = ("ca_target_class", "ba_without_target")
"""Measures that an attack with several target classes does not have."""
CONDITIONS = {
    "Undefended": "undefended_{}",
    "Defended, as deployed": "{}",
    "Defended, unstamped": "{}_unstamped",
}
DETECTION = {
    "Precision": "detection_precision",
    "TPR": "detection_tpr",
    "FPR": "detection_fpr",
    "AUROC": "detection_auroc",
    "Pseudo-labels right, suspects": "pseudo_label_accuracy",
    "Pseudo-labels right, all samples": "pseudo_label_accuracy_all",
}
COUNTS = {
    "Training samples": "n_train",
    "Suspects": "n_suspects",
    "Poisoned": "n_poisoned",
    "Cover samples": "n_cover",
    "Stamped": "n_stamped",
    "Trusted": "n_trusted",
}
FILTER = {"C-REJ": "c_rej", "PSR": "psr", "B-REJ": "b_rej", "DSR": "dsr"}
TRADE = {
    "Fall of CA (negative: a rise)": "ca_drop",
    "Fall of CA in the class that loses most": "ca_drop_worst_class",
}
GLOSSARY = {
    "CA": "Clean accuracy: share of clean test images classified right.",
    "ASR": "Attack success rate: share taken for the class that the attacker wants, among the "
    "triggered test images that are not of it anyway.",
    "BA": "Backdoor accuracy: share of triggered test images classified right. It counts the "
    "target class; without that class it is the RA of BackdoorBench.",
    "DER": "Defence effectiveness rating: [max(0, fall of ASR) − max(0, fall of CA) + 1] / 2. "
    "50% is no effect, 100% is perfect.",
    "C-REJ": "Share of clean test images that the filter rejects: their prediction changes "
    "under the stamp.",
    "PSR": "Prediction success rate: share of clean test images that are accepted and "
    "classified right.",
    "B-REJ": "Share of triggered test images that the filter rejects.",
    "DSR": "Defence success rate: share of triggered test images that are rejected or "
    "classified right.",
    "Precision": "Share of the suspects that are poisoned.",
    "TPR": "True positive rate: share of the poisoned samples that are suspects.",
    "FPR": "False positive rate: share of the clean samples that are suspects.",
    "AUROC": "Area under the ROC curve of the score: chance that a poisoned sample scores "
    "higher than a clean one. 50% is guessing.",
    "Cover sample": "Training image that carries the trigger and keeps its true label; it counts "
    "as clean in the detection figures.",
    "Pseudo-label": "Label that the defence gives a sample, compared with its true label.",
}


def render_report(
    *,
    title: str,
    metrics: Mapping[str, float],
    seconds: pd.DataFrame,
    choices: Mapping[str, object],
    figures: Mapping[str, bytes],
    notes: Sequence[str],
) -> str:
    """The report as one self-contained HTML page.

    Args:
        title: heading of the page.
        metrics: as :func:`counterdoor.metrics.summarize` gives them, rates in [0, 1].
        seconds: one row a stage, with ``stage`` and ``seconds``.
        choices: what the run was configured with, by name.
        figures: PNG files by caption, in the order in which they are shown.
        notes: warnings for the reader.

    Raises:
        KeyError: if a metric is missing.
    """
    environment = Environment(
        loader=PackageLoader("counterdoor"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        verdict=_verdict(metrics),
        notes=notes,
        conditions=list(CONDITIONS),
        outcome=_outcome(metrics),
        figures={name: b64encode(png).decode("ascii") for name, png in figures.items()},
        detection=_rows(DETECTION, metrics, _percent) | _rows(COUNTS, metrics, _count),
        filtering=_rows(FILTER, metrics, _percent),
        trade={"DER": [_percent(metrics["der"])]} | _rows(TRADE, metrics, _points),
        seconds=_seconds(seconds),
        choices={name: [_choice(value)] for name, value in choices.items()},
        glossary=GLOSSARY,
    )


def _verdict(metrics: Mapping[str, float]) -> str:
    clean = _change(metrics["undefended_ca"], metrics["ca"])
    points = metrics["ca"] - metrics["undefended_ca"]
    by = "" if math.isnan(points) or clean.startswith("stayed") else f", by {_points(abs(points))}"
    if not metrics["n_poisoned"]:
        return f"Nobody is poisoned. With the defence, the clean accuracy {clean}{by}."
    attack = _change(metrics["undefended_asr"], metrics["asr"])
    return f"With the defence, the attack success rate {attack}; the clean accuracy {clean}{by}."


def _change(before: float, after: float) -> str:
    """How a rate in [0, 1] changed, as it is shown."""
    if math.isnan(before) or math.isnan(after):
        return f"went from {_percent(before)} to {_percent(after)}"
    if _percent(before) == _percent(after):
        return f"stayed at {_percent(after)}"
    verb = "fell" if after < before else "rose"
    return f"{verb} from {_percent(before)} to {_percent(after)}"


def _outcome(metrics: Mapping[str, float]) -> Table:
    return {
        name: [_percent(metrics[condition.format(key)]) for condition in CONDITIONS.values()]
        for name, key in OUTCOME.items()
        if key in metrics or key not in FOR_ONE_TARGET
    }


def _rows(
    keys: Mapping[str, str], metrics: Mapping[str, float], show: Callable[[float], str]
) -> dict[str, list[str]]:
    return {name: [show(metrics[key])] for name, key in keys.items()}


def _seconds(seconds: pd.DataFrame) -> list[tuple[str, str]]:
    """Stage and duration of each row, and the total last."""
    rows = [
        (str(stage), _number(value, "{:,.1f}"))
        for stage, value in zip(seconds["stage"], seconds["seconds"], strict=True)
    ]
    return [*rows, ("Total", _number(float(seconds["seconds"].sum()), "{:,.1f}"))]


def _choice(value: object) -> str:
    return _number(value, "{}") if isinstance(value, float) else str(value)


def _percent(rate: float) -> str:
    return _number(100 * rate, "{:.1f}%")


def _points(difference: float) -> str:
    return _number(100 * difference, "{:z.1f} points").replace("-", "−")


def _count(count: float) -> str:
    return _number(count, "{:,.0f}")


def _number(value: float, shape: str) -> str:
    """The number in a format, or n/a for NaN."""
    return "n/a" if math.isnan(value) else shape.format(value)
