"""The figures: what is drawn, read back from the figure, and that every figure can be rendered."""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text

from counterdoor import plots
from counterdoor.ledger import DROPPED

NAMES = ["cat", "dog", "a class with a long name 1"]


def images_of(n: int, channels: int, side: int = 6) -> np.ndarray:
    generator = np.random.default_rng(n)
    return generator.integers(0, 250, (n, channels, side, side), dtype=np.uint8)


def names_of(k: int) -> list[str]:
    return [f"class {label}" for label in range(k)]


def ledger_of(
    labels: list[int], pseudo: list[int], scores: list[float], suspect: list[bool]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": np.arange(len(labels)),
            "label": labels,
            "score": scores,
            "suspect": suspect,
            "pseudo_label": pseudo,
        }
    )


def rendered(figure: Figure) -> bytes:
    """The PNG of a figure; drawing it is what finds bad labels and layouts."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=30)
    assert buffer.getvalue().startswith(b"\x89PNG")
    return buffer.getvalue()


def levels(axis: Axes) -> list[np.ndarray]:
    """The arrays that an axis shows as images, in the order that they were drawn."""
    arrays = [image.get_array() for image in axis.images]
    return [
        np.ma.filled(shown, np.nan) if np.ma.is_masked(shown) else np.asarray(shown)
        for shown in arrays
        if shown is not None
    ]


def boxes(axis: Axes) -> list[tuple[float, ...]]:
    """Left, right, bottom and top of each image of an axis."""
    return [tuple(image.get_extent()) for image in axis.images]


def texts(labels: Iterable[Text]) -> list[str]:
    return [label.get_text() for label in labels]


def legend_texts(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_show_each_image_in_four_ways(channels: int) -> None:
    images = images_of(5, channels)
    triggered = images.copy()
    triggered[:, 0, -2:, -2:] += 5
    triggered[0, 0, 0, 3] += 2
    stamped = images.copy()
    stamped[..., :2, :2] = 255
    before = [array.copy() for array in (images, triggered, stamped)]
    figure = plots.plot_samples(images, triggered, stamped, np.array([0, 1, 1, 0, 1]), NAMES)
    rendered(figure)

    (axis,) = figure.axes
    arrays = levels(axis)
    for row, shown in zip((0, 1, 3), before, strict=True):
        for array, image in zip(arrays[5 * row : 5 * row + 5], shown, strict=True):
            assert np.array_equal(array, image[0] if channels == 1 else image.transpose(1, 2, 0))
    difference = arrays[10]
    assert difference.shape == (6, 6)
    assert difference.max() == pytest.approx(255)
    assert difference[0, 3] == pytest.approx(2 / 5 * 255)
    assert np.count_nonzero(difference) == 5
    names = texts(axis.get_yticklabels())
    assert names == ["clean", "triggered", "difference\n(×51)", "stamped"]
    assert texts(axis.get_xticklabels()) == ["cat", "dog", "dog", "cat", "dog"]
    lefts, tops = sorted({box[0] for box in boxes(axis)}), sorted({box[3] for box in boxes(axis)})
    assert len(set(boxes(axis))) == len(lefts) * len(tops) == 20
    for tick, left in zip(axis.get_xticks(), lefts, strict=True):
        assert tick == pytest.approx(left + 0.5)
    for tick, top in zip(axis.get_yticks(), tops, strict=True):
        assert tick == pytest.approx(top + 0.5)
    for array, copy in zip((images, triggered, stamped), before, strict=True):
        assert np.array_equal(array, copy)


def test_samples_without_a_trigger_have_a_black_difference() -> None:
    images = images_of(1, 3)
    figure = plots.plot_samples(images, images, images, np.array([2]), NAMES)
    rendered(figure)
    (axis,) = figure.axes
    assert np.array_equal(levels(axis)[2], np.zeros((6, 6)))
    assert texts(axis.get_yticklabels())[2] == "difference\n(×1)"
    (title,) = texts(axis.get_xticklabels())
    assert title.startswith("a class")
    assert title.endswith("name 1")
    assert len(title) == 14


@pytest.mark.parametrize("other", [False, True])
def test_training_images_have_a_row_where_they_differ_from_triggered_ones(noise, other):
    images, triggered = noise(3, 3, 6, 6), noise(3, 3, 6, 6, seed=1)
    poisoned = noise(3, 3, 6, 6, seed=2) if other else triggered
    figure = plots.plot_trigger(images, poisoned, triggered, np.array([0, 1, 1]), NAMES)
    axis = figure.axes[0]
    rows = [text.get_text() for text in axis.get_yticklabels()]
    assert rows[:-1] == ["clean", *(["in training"] * other), "triggered"]
    shown = [np.asarray(image.get_array()) for image in axis.get_images()]
    assert np.array_equal(shown[3], (poisoned if other else triggered)[0].transpose(1, 2, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_suspects_are_sorted_titled_and_framed(channels: int) -> None:
    images = images_of(6, channels)
    poisoned = np.array([True, False, True, True, False, False])
    ledger = ledger_of(
        [0, 1, 2, 0, 1, 0],
        [1, DROPPED, 0, 0, 1, 2],
        [0.1, 0.9, 0.5, 9.0, 0.9, -1.0],
        [True, True, True, False, True, True],
    )
    figure = plots.plot_suspects(images, ledger, poisoned, NAMES, count=4)
    rendered(figure)

    expected = [1, 4, 2, 0]
    (axis,) = figure.axes
    shown = zip(levels(axis), boxes(axis), axis.patches, axis.texts, expected, strict=True)
    for array, (left, right, bottom, top), frame, title, row in shown:
        image = images[row]
        assert np.array_equal(array, image[0] if channels == 1 else image.transpose(1, 2, 0))
        assert isinstance(frame, Rectangle)
        assert frame.get_bbox().extents == pytest.approx((left, top, right, bottom))
        assert same_color(frame.get_edgecolor(), plots.POISONED if poisoned[row] else plots.CLEAN)
        assert left < title.get_position()[0] < right
        assert top - 0.1 < title.get_position()[1] < top
    titles = texts(axis.texts)
    assert titles == ["dog, dropped", "dog→dog", "a class…name 1→\ncat", "cat→dog"]
    (legend,) = figure.legends
    colours = [to_hex(patch.get_edgecolor()) for patch in legend.get_patches()]
    assert dict(zip(legend_texts(figure), colours, strict=True)) == {
        "poisoned": plots.POISONED.lower(),
        "clean": plots.CLEAN.lower(),
    }
    assert "4 of 5 suspects" in figure.get_suptitle()


def test_suspects_come_from_a_read_only_memory_map_of_which_few_rows_are_read(
    tmp_path: Path,
) -> None:
    read: list[int] = []

    class Spy(np.memmap):
        def __getitem__(self, key: Any) -> Any:
            assert isinstance(key, np.ndarray), "more than single rows was read"
            read.extend(key.tolist())
            return np.asarray(super().__getitem__(key))

    images = images_of(500, 3)
    images.tofile(tmp_path / "images")
    stored = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    spy = stored.view(Spy)
    n = len(images)
    suspect = np.arange(n) % 2 == 0
    ledger = ledger_of([0] * n, [1] * n, list(np.arange(n) * 1.0), suspect.tolist())
    before = ledger.copy()
    figure = plots.plot_suspects(spy, ledger, suspect, NAMES)

    rows = list(range(498, 418, -2))
    assert read == rows
    assert np.array_equal(np.stack(levels(figure.axes[0])), images[rows].transpose(0, 2, 3, 1))
    assert np.array_equal(stored, images)
    pd.testing.assert_frame_equal(ledger, before)


def test_no_suspect_is_said_so() -> None:
    ledger = ledger_of([0, 1], [0, 1], [0.0, 1.0], [False, False])
    figure = plots.plot_suspects(images_of(2, 1), ledger, np.array([True, False]), NAMES)
    rendered(figure)
    assert figure.get_suptitle() == "no sample is a suspect"
    assert not any(axis.images for axis in figure.axes)


def test_gallery_has_eight_in_a_row_none_over_another() -> None:
    n = 11
    ledger = ledger_of([0] * n, [1] * n, list(np.arange(n) * 1.0), [True] * n)
    figure = plots.plot_suspects(images_of(n, 1), ledger, np.ones(n, dtype=bool), NAMES)
    (axis,) = figure.axes
    places = boxes(axis)
    assert [sum(box[3] == top for box in places) for top in (places[0][3], places[-1][3])] == [8, 3]
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    for one, two in itertools.combinations(places, 2):
        assert one[1] <= two[0] or two[1] <= one[0] or one[2] <= two[3] or two[2] <= one[3]
    for box in places:
        assert left < box[0] < box[1] < right
        assert high < box[3] < box[2] < low


def histogram(figure: Figure) -> dict[str, int]:
    """Samples in the bars of each legend entry."""
    (axis,) = figure.axes
    counts = {}
    for patch in axis.patches:
        xy = np.asarray(patch.get_path().vertices)
        # the outline climbs to each bin's count and walks along it for the bin's width
        widths = np.abs(np.diff(xy[:, 0]))
        bin_width = widths[widths > 0].min()
        flat = (widths > 0) & (xy[:-1, 1] >= 1)
        counts[str(patch.get_label())] = round(float((xy[:-1, 1] * widths)[flat].sum() / bin_width))
    return counts


def test_losses_are_split_by_the_oracle_and_cut_at_the_threshold() -> None:
    generator = np.random.default_rng(0)
    scores = -generator.gamma(2.0, 1.0, 300)
    poisoned = np.arange(300) < 40
    threshold = float(np.sort(scores)[-30])
    figure = plots.plot_warmup_losses(scores, poisoned, threshold)
    rendered(figure)

    assert histogram(figure) == {"clean (260)": 260, "poisoned (40)": 40}
    (axis,) = figure.axes
    (line,) = axis.lines
    assert np.array_equal(line.get_xdata(), [threshold, threshold])
    assert axis.get_yscale() == "log"
    assert axis.get_xlabel() == "suspicion score (higher = more suspicious)"
    assert [text.split(" ")[0] for text in legend_texts(figure)] == [
        "clean",
        "poisoned",
        "threshold",
    ]


def test_losses_may_be_constant_and_no_sample_poisoned() -> None:
    clean = np.zeros(50, dtype=bool)
    for value in (-3.5, 1e9):
        figure = plots.plot_warmup_losses(np.full(50, value), clean, value)
        rendered(figure)
        low, high = figure.axes[0].get_xlim()
        assert low < value < high
        assert {text.split(",")[0] for text in legend_texts(figure)} >= {
            "clean (50)",
            "poisoned (0)",
        }
        clean_bars = np.asarray(figure.axes[0].patches[0].get_path().vertices)
        top = clean_bars[clean_bars[:, 1] == 50]
        assert clean_bars[:, 1].max() == 50
        assert top[0, 0] < value < top[-1, 0]


def test_losses_without_a_suspect_have_no_threshold() -> None:
    figure = plots.plot_warmup_losses(np.arange(5.0), np.arange(5) == 4, float("nan"))
    rendered(figure)
    assert not figure.axes[0].lines
    assert legend_texts(figure) == ["clean (4)", "poisoned (1)"]


def test_curves_draw_every_training_in_both_panels() -> None:
    def history(epochs: int) -> pd.DataFrame:
        epoch = np.arange(1, epochs + 1)
        return pd.DataFrame({"epoch": epoch, "loss": 2 / epoch, "accuracy": 1 - 0.5 / epoch})

    histories = {"warm-up": history(1), "defended": history(40), "undefended": history(40)}
    figure = plots.plot_curves(histories)
    rendered(figure)
    left, right = figure.axes
    for axis, column in ((left, "loss"), (right, "accuracy")):
        for line, table in zip(axis.lines, histories.values(), strict=True):
            assert np.array_equal(line.get_xdata(), table["epoch"])
            assert np.array_equal(line.get_ydata(), table[column])
    assert left.get_ylabel().startswith("mean loss")
    assert right.get_ylabel().startswith("accuracy")
    assert legend_texts(figure) == list(histories)
    assert len({line.get_color() for line in left.lines}) == 3
    assert left.lines[0].get_marker() == "o"


def test_confusion_is_normalised_by_row_and_annotated() -> None:
    true = np.array([0, 0, 0, 0, 1, 1])
    predictions = {
        "undefended, triggered": np.array([0, 0, 0, 0, 0, 0]),
        "defended, triggered": np.array([0, 0, 0, 1, 1, 1]),
        "defended, clean": np.array([1, 1, 0, 0, 2, 1]),
    }
    figure = plots.plot_confusion(true, predictions, NAMES)
    rendered(figure)
    panels = [axis for axis in figure.axes if axis.axison and axis.images]
    assert [axis.get_title() for axis in panels] == list(predictions)
    nan = np.nan
    expected: list[list[list[float]]] = [
        [[1, 0, 0], [1, 0, 0], [nan] * 3],
        [[0.75, 0.25, 0], [0, 1, 0], [nan] * 3],
        [[0.5, 0.5, 0], [0, 0.5, 0.5], [nan] * 3],
    ]
    for axis, matrix in zip(panels, expected, strict=True):
        (shown,) = levels(axis)
        np.testing.assert_allclose(shown, matrix)
        written = {text.get_position(): text.get_text() for text in axis.texts}
        assert written == {
            (column, row): f"{100 * matrix[row][column]:.0f}"
            for row in range(2)
            for column in range(3)
            if matrix[row][column]
        }
        assert [tick.get_text() for tick in axis.get_xticklabels()][:2] == ["cat", "dog"]
    places = {(round(a.get_position().x0, 2), round(a.get_position().y0, 2)) for a in panels}
    assert len({x for x, _ in places}) == 2
    assert len({y for _, y in places}) == 2


@pytest.mark.parametrize(("k", "annotated"), [(2, True), (12, True), (13, False), (200, False)])
def test_confusion_of_many_classes_has_few_ticks_and_no_numbers(k: int, annotated: bool) -> None:
    true = np.arange(3 * k) % k
    figure = plots.plot_confusion(true, {"perfect": true}, names_of(k))
    if k in (2, 200):
        rendered(figure)
    axis = figure.axes[0]
    assert np.array_equal(levels(axis)[0], np.eye(k))
    assert len(axis.texts) == (k if annotated else 0)
    ticks = {tick.get_text(): int(place) for tick, place in
             zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)}  # fmt: skip
    assert min(k, 13) <= len(ticks) <= plots.MAX_TICKS
    assert all(name == f"class {label}" for name, label in ticks.items())


def bars_of(figure: Figure, k: int, series: int) -> np.ndarray:
    """Heights of the bars, shape (series, k), read through all rows of the figure."""
    heights: list[list[float]] = [[] for _ in range(series)]
    for axis in figure.axes:
        assert len(axis.containers) == series
        for values, container in zip(heights, axis.containers, strict=True):
            values.extend(bar.get_height() for bar in container)
    return np.array(heights).reshape(series, k)


@pytest.mark.parametrize("k", [2, 10, 120])
def test_class_accuracy_has_a_bar_for_every_class_and_net(k: int) -> None:
    generator = np.random.default_rng(k)
    accuracies = {
        name: generator.random(k) for name in ("undefended", "defended", "defended, unstamped")
    }
    accuracies["defended"][1] = np.nan
    figure = plots.plot_class_accuracy(accuracies, names_of(k), k - 1)
    rendered(figure)
    np.testing.assert_array_equal(bars_of(figure, k, 3), list(accuracies.values()))
    ticks = [tick for axis in figure.axes for tick in axis.get_xticklabels()]
    assert [tick.get_text() for tick in ticks] == [*names_of(k)[:-1], f"class {k - 1} (target)"]
    assert [tick.get_fontweight() for tick in ticks] == ["normal"] * (k - 1) + ["bold"]
    assert legend_texts(figure) == list(accuracies)
    assert max(len(axis.get_xticks()) for axis in figure.axes) <= plots.CLASSES_PER_ROW


def test_without_one_target_class_none_is_marked() -> None:
    figure = plots.plot_class_accuracy({"defended": np.ones(3)}, names_of(3), None)
    rendered(figure)
    ticks = figure.axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == names_of(3)
    assert {tick.get_fontweight() for tick in ticks} == {"normal"}


@pytest.mark.parametrize("k", [2, 10, 43])
@pytest.mark.parametrize("name", ["{}", "a class with a long name {}"])
def test_class_labels_do_not_overlap(k: int, name: str) -> None:
    names = [name.format(label) for label in range(k)]
    figure = plots.plot_class_accuracy({"defended": np.ones(k)}, names, 0)
    rendered(figure)
    for axis in figure.axes:
        boxes = [tick.get_window_extent() for tick in axis.get_xticklabels()]
        assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))


def test_net_has_the_same_colour_in_every_figure() -> None:
    nets = {"undefended": np.array([0.9, 0.8]), "defended": np.array([0.8, 0.9])}
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "accuracy": [0.1, 0.2]})
    lines = plots.plot_curves({"warm-up": history, **dict.fromkeys(nets, history)}).axes[0].lines
    metrics = {"undefended_ca": 0.9, "undefended_asr": 1.0, "ca": 0.8, "asr": 0.1}
    figures = (plots.plot_class_accuracy(nets, NAMES[:2], 0), plots.plot_outcome(metrics))
    for index, name in enumerate(nets, start=1):
        colours = {to_hex(figure.axes[0].containers[index - 1][0].get_facecolor())
                   for figure in figures}  # fmt: skip
        assert colours == {to_hex(lines[index].get_color())} == {to_hex(plots.NETS[name])}


def test_outcome_is_the_four_figures() -> None:
    metrics = {"undefended_ca": 0.9423, "undefended_asr": 1.0, "ca": 0.9352, "asr": 0.0041}
    figure = plots.plot_outcome(metrics)
    rendered(figure)
    (axis,) = figure.axes
    undefended, defended = axis.containers
    assert [bar.get_width() for bar in undefended] == [0.9423, 1.0]
    assert [bar.get_width() for bar in defended] == [0.9352, 0.0041]
    assert [text.get_text() for text in axis.texts] == ["94.2%", "100.0%", "93.5%", "0.4%"]
    for text, bar in zip(axis.texts, [*undefended, *defended], strict=True):
        assert isinstance(text, Annotation)
        assert text.xy == pytest.approx((bar.get_width(), bar.get_y() + bar.get_height() / 2))
    assert legend_texts(figure) == ["undefended", "defended"]
    groups = [tick.get_text().split("\n")[0] for tick in axis.get_yticklabels()]
    assert groups == ["clean accuracy", "attack success rate"]


def test_outcome_that_is_nan_is_not_available() -> None:
    metrics = {"undefended_ca": 0.5, "undefended_asr": float("nan"), "ca": 0.5, "asr": 0.0}
    figure = plots.plot_outcome(metrics)
    rendered(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0%", "n/a", "50.0%", "0.0%"]


def test_dollars_in_class_names_are_no_formula() -> None:
    names = ["$5$", r"$\broken"]
    images = images_of(2, 1)
    labels = np.array([0, 1])
    ledger = ledger_of([0, 1], [1, 0], [0.0, 1.0], [True, True])
    for figure in (
        plots.plot_samples(images, images, images, labels, names),
        plots.plot_suspects(images, ledger, labels == 0, names),
        plots.plot_confusion(labels, {"clean": labels}, names),
        plots.plot_class_accuracy({"defended": np.ones(2)}, names, 0),
    ):
        rendered(figure)
        axis = figure.axes[0]
        labels_drawn = [*axis.get_xticklabels(), *axis.texts]
        drawn = [label for label in labels_drawn if "$" in label.get_text()]
        assert len(drawn) == 2
        assert not any(label.get_parse_math() for label in drawn)


def test_figures_leave_the_global_style_alone() -> None:
    before = dict(mpl.rcParams)
    rendered(
        plots.plot_outcome(dict.fromkeys(("undefended_ca", "undefended_asr", "ca", "asr"), 0.5))
    )
    assert dict(mpl.rcParams) == before


def test_class_names_are_one_line_that_can_be_drawn() -> None:
    names = ["two\nlines", "\ud800\x1b"]
    figure = plots.plot_class_accuracy({"defended": np.ones(2)}, names, None)
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [
        r"two\x0alines",
        r"\ud800\x1b",
    ]
    figure.savefig(io.BytesIO())
