"""Figures of a run. Pure functions from arrays and tables to a ``Figure``; nothing is saved here.

Colours are from the palette of Okabe and Ito, which colour-blind readers tell apart.
Images are uint8 of shape (N, C, H, W) with C = 1 (grey) or 3 (RGB), in [0, 255].
Class indices are int64; ``class_names`` gives their names, K in all.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from counterdoor.ledger import DROPPED
from counterdoor.names import shown

BLUE, VERMILLION = "#0072B2", "#D55E00"
CLEAN, POISONED = BLUE, VERMILLION
"""Frames and bars of samples, by the oracle."""
NETS = {"undefended": VERMILLION, "defended": BLUE}
"""Colours of the two nets in every figure that has them."""
SERIES = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of other named series, in order."""
LINES = ("-", "--", "-.", ":")
ANNOTATED_CLASSES = 12
"""Up to this many classes a confusion matrix shows its numbers."""
MAX_TICKS = 25
CLASSES_PER_ROW = 40


def plot_samples(
    images_nchw: np.ndarray,
    triggered_nchw: np.ndarray,
    stamped_nchw: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> Figure:
    """A few images (columns) clean, triggered, the difference of the two, and stamped (rows).

    The difference is the largest absolute one over the channels, in grey, times
    one factor for all columns that brings its maximum to white.

    Args:
        images_nchw: uint8, shape (n, C, H, W), in [0, 255]; n of about 8.
        triggered_nchw: the same images with the attacker's trigger.
        stamped_nchw: the same images with the defender's stamp.
        labels: int64, shape (n,), class indices.
        class_names: names of the K classes.
    """
    difference, factor = _difference(images_nchw, triggered_nchw)
    rows = {
        "clean": images_nchw,
        "triggered": triggered_nchw,
        f"difference\n(×{factor:.3g})": difference,
        "stamped": stamped_nchw,
    }
    return _image_rows(rows, [class_names[label] for label in labels])


def plot_trigger(
    images_nchw: np.ndarray,
    poisoned_nchw: np.ndarray,
    triggered_nchw: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> Figure:
    """A few images (columns) clean, poisoned, triggered, and the difference (rows).

    The difference is that of triggered and clean images, as in :func:`plot_samples`.
    Where training images are poisoned with the trigger itself, they have no row.

    Args:
        images_nchw: uint8, shape (n, C, H, W), in [0, 255]; n of about 6.
        poisoned_nchw: the same images as they are in a poisoned training set.
        triggered_nchw: the same images with the trigger that is used at test time.
        labels: int64, shape (n,), class indices.
        class_names: names of the K classes.
    """
    rows = {"clean": images_nchw}
    if not np.array_equal(poisoned_nchw, triggered_nchw):
        rows["in training"] = poisoned_nchw
    difference, factor = _difference(images_nchw, triggered_nchw)
    rows |= {"triggered": triggered_nchw, f"difference\n(×{factor:.3g})": difference}
    return _image_rows(rows, [class_names[label] for label in labels])


def _difference(images_nchw: np.ndarray, changed_nchw: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest absolute difference over the channels, brought to white, and its factor."""
    difference = np.abs(changed_nchw.astype(np.int16) - images_nchw).max(1, keepdims=True)
    factor = 255 / (int(difference.max()) or 255)
    return difference * factor, factor


def _image_rows(rows: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Rows of images (n, C, H, W) with a name each, columns titled ``names``."""
    images_nchw = next(iter(rows.values()))
    n = len(images_nchw)
    figure = _figure(max(3.2, 1.1 + 1.15 * n), 0.5 + 1.15 * len(rows))
    axis = figure.subplots()
    lefts, tops = 1.1 * np.arange(n), 1.1 * _height(images_nchw) * np.arange(len(rows))
    for top, row in zip(tops, rows.values(), strict=True):
        for left, image in zip(lefts, row, strict=True):
            _show_image(axis, image, left, top)
    axis.xaxis.tick_top()
    titles = [_short(name, 14) for name in names]
    axis.set_xticks(lefts + 0.5, titles, fontsize=9, parse_math=False)
    axis.set_yticks(tops + _height(images_nchw) / 2, list(rows))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlim=(-0.05, lefts[-1] + 1.05), ylim=(tops[-1] + _height(images_nchw) + 0.05, -0.05))
    return figure


def plot_suspects(
    images_nchw: np.ndarray,
    ledger: pd.DataFrame,
    is_poisoned: np.ndarray,
    class_names: Sequence[str],
    count: int = 40,
) -> Figure:
    """Gallery of the most suspicious suspects, framed by what the oracle says of them.

    Each is titled "given→pseudo", the names of the class it came with and of its
    pseudo-label, or "given, dropped".

    Args:
        images_nchw: all training images, uint8, shape (N, C, H, W), in [0, 255];
            may be memory-mapped, only the rows shown are read.
        ledger: N rows with ``label``, ``score``, ``suspect`` and ``pseudo_label``.
        is_poisoned: bool, shape (N,), from the oracle.
        class_names: names of the K classes.
        count: thumbnails at most.
    """
    suspects = np.flatnonzero(ledger["suspect"])
    order = np.argsort(-ledger["score"].to_numpy()[suspects], kind="stable")
    rows = suspects[order[:count]]
    columns = max(1, min(8, len(rows)))
    lines = max(1, math.ceil(len(rows) / columns))
    figure = _figure(max(4.0, 1.2 * columns), 1.0 + 1.45 * lines)
    title = f"{len(rows)} of {len(suspects)} suspects, the most suspicious first"
    figure.suptitle(title if len(rows) else "no sample is a suspect", fontsize=11)
    axis = figure.subplots()
    axis.set_axis_off()
    given, pseudo = (ledger[name].to_numpy()[rows] for name in ("label", "pseudo_label"))
    wide, high = 1.15, _height(images_nchw) + 0.4
    for place, (row, image) in enumerate(zip(rows, images_nchw[rows], strict=True)):
        left, top = wide * (place % columns), high * (place // columns)
        _show_image(axis, image, left, top)
        colour = POISONED if is_poisoned[row] else CLEAN
        axis.add_patch(
            Rectangle((left, top), 1, _height(images_nchw), fill=False, ec=colour, linewidth=3)
        )
        title = _relabelling(given[place], pseudo[place], class_names)
        axis.text(
            left + 0.5, top - 0.04, title, ha="center", va="bottom", fontsize=8, parse_math=False
        )
    axis.set(xlim=(-0.05, wide * columns), ylim=(high * lines - 0.35, -0.4))
    frames = [
        Patch(fill=False, edgecolor=colour, linewidth=3, label=name)
        for colour, name in ((POISONED, "poisoned"), (CLEAN, "clean"))
    ]
    figure.legend(handles=frames, loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_warmup_losses(scores: np.ndarray, is_poisoned: np.ndarray, threshold: float) -> Figure:
    """Histogram of the suspicion scores of poisoned and clean samples, counts on a log scale.

    Args:
        scores: float64, shape (N,), higher = more suspicious; with the detector
            LGA minus the loss in nats.
        is_poisoned: bool, shape (N,), from the oracle.
        threshold: lowest score of a suspect; NaN = no suspect, no line.
    """
    finite = scores[np.isfinite(scores)]
    ends = np.append(finite, threshold if math.isfinite(threshold) else [])
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 62).tolist()
    figure = _figure(7.5, 4.0)
    axis = figure.subplots()
    for name, colour, group in (
        ("clean", CLEAN, scores[~is_poisoned]),
        ("poisoned", POISONED, scores[is_poisoned]),
    ):
        axis.hist(
            group,
            edges,
            histtype="stepfilled",
            facecolor=(colour, 0.45),
            edgecolor=colour,
            linewidth=1.2,
            log=True,
            label=f"{name} ({len(group):,})",
        )
    if math.isfinite(threshold):
        label = f"threshold {threshold:.3g}, suspects to the right".replace("-", "−")
        axis.axvline(threshold, color="black", linestyle="--", label=label)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.7)
    axis.set_xlabel("suspicion score (higher = more suspicious)")
    axis.set_ylabel("training samples")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _tidy(axis)
    return figure


def plot_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss and accuracy of each named training against the epoch, side by side.

    Args:
        histories: by name, tables with ``epoch`` (1-based), ``loss`` (in nats) and
            ``accuracy`` (in [0, 1]), as in :attr:`counterdoor.training.Fit.history`.
    """
    figure = _figure(9.0, 3.8)
    left, right = figure.subplots(1, 2)
    colours = _colours(histories)
    for index, (name, history) in enumerate(histories.items()):
        style = {
            "color": colours[name],
            "linestyle": LINES[index % len(LINES)],
            "marker": "o" if len(history) <= 30 else "",
            "markersize": 3,
        }
        left.plot(history["epoch"], history["loss"], label=name, **style)
        right.plot(history["epoch"], history["accuracy"], **style)
    left.set_ylabel("mean loss (nats)")
    right.set_ylabel("accuracy on the training batches")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _tidy(axis)
    figure.legend(loc="outside lower center", ncols=min(4, max(1, len(histories))), frameon=False)
    return figure


def plot_confusion(
    true: np.ndarray, predictions: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> Figure:
    """One confusion matrix for each named set of predictions; each row adds up to 100 %.

    Cells that occur show their percentage while K <= 12; a class without samples is grey.

    Args:
        true: int64, shape (N,), true classes.
        predictions: by name, int64, shape (N,), predicted classes.
        class_names: names of the K classes.
    """
    k = len(class_names)
    columns = min(2, len(predictions))
    lines = math.ceil(len(predictions) / columns)
    figure = _figure(1.0 + 4.8 * columns, 4.9 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (name, predicted) in zip(axes, predictions.items(), strict=False):
        counts = np.bincount(true * k + predicted, minlength=k * k).reshape(k, k)
        totals = counts.sum(1, keepdims=True)
        shares = np.divide(counts, totals, out=np.full((k, k), np.nan), where=totals > 0)
        axis.set_facecolor("0.85")
        shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("true class")
        axis.spines[:].set_color("0.6")
        _class_ticks(axis, class_names)
        if k <= ANNOTATED_CLASSES:
            _annotate_cells(axis, shares)
    for axis in axes[len(predictions) :]:
        axis.set_axis_off()
    figure.colorbar(
        shown,
        ax=axes,
        label="share of the true class",
        format=PercentFormatter(1.0),
        shrink=0.7,
        aspect=30,
    )
    return figure


def plot_class_accuracy(
    accuracies: Mapping[str, np.ndarray], class_names: Sequence[str], target_class: int | None
) -> Figure:
    """Grouped bars of the accuracy within each class; many classes take several rows.

    Args:
        accuracies: by name of the net and condition, float64, shape (K,), in [0, 1];
            NaN (a class without samples) has no bar.
        class_names: names of the K classes.
        target_class: index of the attack's target, marked in its tick label;
            ``None`` if there is not one alone.
    """
    k = len(class_names)
    lines = math.ceil(k / CLASSES_PER_ROW)
    per_line = math.ceil(k / lines)
    labels = [_short(name, 16) for name in class_names]
    if target_class is not None:
        labels[target_class] += " (target)"
    lengths = np.array([len(label) for label in labels])
    width = min(13.0, max(6.0, 0.6 * per_line + 1.5))
    turned = float(np.max(lengths[1:] + lengths[:-1])) / 2 + 1 > (width - 1) / per_line / 0.07
    height = 0.9 + (1.8 + (0.07 * lengths.max() if turned else 0.2)) * lines
    figure = _figure(width, height)
    axes = figure.subplots(lines, 1, squeeze=False).ravel()
    thickness = 0.84 / len(accuracies)
    colours = _colours(accuracies)
    for line, axis in enumerate(axes):
        classes = np.arange(line * per_line, min(k, (line + 1) * per_line))
        for index, (name, values) in enumerate(accuracies.items()):
            places = classes + (index - (len(accuracies) - 1) / 2) * thickness
            bars = axis.bar(places, values[classes], thickness, color=colours[name])
            bars.set_label(name if line == 0 else "_")
        axis.set_xticks(classes, [labels[label] for label in classes], parse_math=False)
        axis.tick_params(axis="x", rotation=90 if turned else 0, labelsize=8, length=0)
        axis.set(xlim=(line * per_line - 0.6, (line + 1) * per_line - 0.4), ylim=(0, 1))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        _tidy(axis, "y")
        for tick, label in zip(axis.get_xticklabels(), classes, strict=True):
            tick.set_fontweight("bold" if label == target_class else "normal")
    figure.supylabel("accuracy within the class", fontsize=10)
    columns = min(len(accuracies), 4)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    return figure


def plot_outcome(metrics: Mapping[str, float]) -> Figure:
    """Clean accuracy and attack success rate, undefended beside defended: the outcome at a glance.

    Args:
        metrics: ``undefended_ca``, ``undefended_asr``, ``ca`` and ``asr``, in [0, 1],
            as in :func:`counterdoor.metrics.summarize`; NaN is shown as "n/a".
    """
    figure = _figure(7.5, 2.9)
    axis = figure.subplots()
    for name, offset, keys in (
        ("undefended", -0.2, ("undefended_ca", "undefended_asr")),
        ("defended", 0.2, ("ca", "asr")),
    ):
        values = np.array([metrics[key] for key in keys], dtype=np.float64)
        places = np.arange(2) + offset
        axis.barh(places, np.nan_to_num(values), 0.36, color=NETS[name], label=name)
        for place, value in zip(places, values, strict=True):
            text = "n/a" if math.isnan(value) else f"{100 * value:.1f}%"
            end = 0.0 if math.isnan(value) else value
            axis.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center")
    groups = ["clean accuracy\n(higher is better)", "attack success rate\n(lower is better)"]
    axis.set_yticks([0, 1], groups)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_xlim(0, 1.1)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    _tidy(axis, "x")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that keeps its labels apart."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each series: a net's own, or the next of ``SERIES``."""
    others = itertools.cycle(SERIES)
    return {name: NETS[name] if name in NETS else next(others) for name in names}


def _show_image(axis: Axes, image_chw: np.ndarray, left: float, top: float) -> None:
    """Draw one image, levels in [0, 255], shape (C, H, W), 1 wide; an axis each would be slow."""
    levels = image_chw[0] if len(image_chw) == 1 else image_chw.transpose(1, 2, 0)
    smooth = "nearest" if max(levels.shape) <= 64 else "auto"
    place = (left, left + 1, top + _height(image_chw), top)
    axis.imshow(levels, cmap="gray", vmin=0, vmax=255, interpolation=smooth, extent=place)


def _height(images: np.ndarray) -> float:
    """Height of images, shape (…, H, W), that are drawn 1 wide."""
    return float(images.shape[-2] / images.shape[-1])


def _relabelling(given: int, pseudo: int, class_names: Sequence[str]) -> str:
    """Title of a suspect, on two lines where the names are long."""
    old = _short(class_names[given], 14)
    new = "dropped" if pseudo == DROPPED else _short(class_names[pseudo], 14)
    one, two = (", ", ",\n") if pseudo == DROPPED else ("→", "→\n")
    return f"{old}{one if len(old) + len(new) <= 14 else two}{new}"


def _class_ticks(axis: Axes, class_names: Sequence[str]) -> None:
    """Name the classes on both axes, only every so many where there are too many."""
    shown = range(0, len(class_names), math.ceil(len(class_names) / MAX_TICKS))
    names = [_short(class_names[label], 14) for label in shown]
    size = 9 if len(names) <= ANNOTATED_CLASSES else 7
    turned = max(map(len, names)) > 40 / len(names)
    axis.set_xticks(shown, names, fontsize=size, rotation=90 if turned else 0, parse_math=False)
    axis.set_yticks(shown, names, fontsize=size, parse_math=False)


def _annotate_cells(axis: Axes, shares: np.ndarray) -> None:
    """Write the percentage in every cell above 0, dark on light or light on dark."""
    for row, column in np.argwhere(shares > 0):
        share = shares[row, column]
        axis.text(
            column,
            row,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 0.5 else "black",
        )


def _tidy(axis: Axes, grid: str = "both") -> None:
    """A faint grid behind the marks, and no frame above and to the right."""
    axis.grid(axis=grid, color="0.88", linewidth=0.7)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _short(name: str, limit: int) -> str:
    """The name on one line, or its beginning and end: names often differ in a number at the end."""
    name = shown(name)
    tail = (limit - 1) // 2
    return name if len(name) <= limit else f"{name[: limit - 1 - tail]}…{name[-tail:]}"
