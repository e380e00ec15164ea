"""The page's rows, texts and picture, from figures that are made up."""

import math
import statistics

import pytest

from counterdoor.comparison import Grid, Published
from counterdoor.comparison_page import (
    COLUMNS,
    ON_FRONT,
    Measured,
    Section,
    overview,
    page,
    price,
    public,
    rows_of,
)

GRID = Grid.model_validate(
    {
        "title": "Small",
        "data": "CIFAR-10",
        "env": "cifar10",
        "parameters": {"ingest.source.path": "/home/someone/images", "model.widths": [8, 8]},
        "seeds": [0, 1, 2],
        "attacks": [
            {"name": "badnets 10 %", "parameters": {"attack_name": "badnets"}},
            {"name": "all-to-all", "parameters": {"label_mapping": "all_to_all"}},
        ],
        "defences": [
            {"name": "none"},
            {"name": "nab", "parameters": {"defence_name": "nab"}},
            {
                "name": "abl",
                "seeds": [0],
                "pipeline": "ablation",
                "parameters": {"defence_name": "abl"},
            },
        ],
    }
)
PUBLISHED = (
    Published(
        source="Somebody",
        setting="SomeNet",
        data="CIFAR-10",
        attack="badnets",
        poison_ratio=0.1,
        defence="abl",
        ca=83.3,
        asr=0.0,
    ),
)
CA = {"none": 0.90, "nab": 0.88, "abl": 0.70}
ASR = {"none": 1.00, "nab": 0.02, "abl": 0.03}


def measure(cell, **changes):
    ca, asr = CA[cell.defence] + 0.01 * cell.seed, ASR[cell.defence]
    metrics = dict.fromkeys(COLUMNS, 0.5) | {
        "ca": ca,
        "asr": asr,
        "undefended_ca": 0.91,
        "seconds": 60.0,
        "n_train": 10_000.0,
        "n_trusted": 500.0,
        "n_poisoned": 950.0,
    }
    if cell.defence == "none":
        del metrics["detection_tpr"]
    parameters = {
        "model.name": "compact",
        "model.widths": "[8, 8]",
        "train.recipe.epochs": "16",
        "attack_name": "badnets",
        "label_mapping": "all_to_all" if cell.attack == "all-to-all" else "all_to_one",
        "defence_name": cell.defence,
    }
    tags = {"hardware": "a machine, 2 cores", "commit": "0123456789", "commit.dirty": "false"}
    given = {"metrics": metrics, "parameters": parameters, "tags": tags}
    return Measured(cell, **{name: given[name] | changes.get(name, {}) for name in given})


@pytest.fixture
def measured():
    return [measure(cell) for cell in GRID.cells()]


def table(text, heading="### CIFAR-10", first="attack"):
    """A table under a heading, named by its first column, as dictionaries."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *rest = rows
    return [dict(zip(header, row, strict=True)) for row in rest]


def test_a_row_is_mean_and_deviation_over_seeds(measured):
    rows = table(page([Section(GRID, measured)], command="c", pictures={}))
    assert [(row["attack"], row["defence"], row["n"]) for row in rows] == [
        (attack, defence, n)
        for attack in ("badnets 10 %", "all-to-all")
        for defence, n in (("none", "3"), ("nab", "3"), ("abl", "1"))
    ]
    values = [88.0, 89.0, 90.0]
    assert rows[1]["CA"] == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}%"
    assert rows[1]["CA undefended"] == "91.0 ± 0.0%"
    assert rows[1]["seconds"] == "60 ± 0"
    assert rows[2]["CA"] == "70.0%"
    assert rows[0]["TPR"] == "–"
    assert rows[0]["FPR"] == "50.0 ± 0.0%"


def test_the_front_is_of_each_attack(measured):
    rows = table(page([Section(GRID, measured)], command="c", pictures={}))
    assert [row["front"] for row in rows] == [ON_FRONT, ON_FRONT, ""] * 2
    assert fronts(measured, "nab") == [True, True, False, False, True, False]


def test_a_baseline_that_is_not_reproduced_is_compared_with_nobody(measured):
    assert fronts(measured, "abl") == [True, True, False, True, True, False]
    text = page([Section(GRID, measured)], command="c", pictures={})
    assert "**abl: not reproduced.**" in text
    counted = text.partition("| defence | holds |")[2].partition("not reproduced")[0]
    assert "\n| nab | 2 of 2 |" in counted
    assert "\n| abl |" not in counted


def fronts(measured, best):
    """Who is on the front if ``best`` is better than all against all-to-all."""
    better = [
        measure(each.cell, metrics={"ca": 0.99, "asr": 0.0})
        if (each.cell.attack, each.cell.defence) == ("all-to-all", best)
        else each
        for each in measured
    ]
    return [row.front for row in rows_of(GRID, better)]


def test_published_figures_stand_beside_their_cell_alone(measured):
    section = Section(GRID, measured, PUBLISHED)
    text = page([section], command="c", pictures={})
    column = [row["published CA / ASR"] for row in table(text)]
    assert column == ["", "", "83.3 / 0.0 [1]", "", "", ""]
    assert "1. Somebody: SomeNet, CIFAR-10" in text
    assert "compare the order of defences, not the" in text


@pytest.mark.parametrize("change", ["data", "share"])
def test_published_figures_of_other_data_are_not_shown(measured, change):
    grid = GRID.model_copy(update={"data": "MNIST"}) if change == "data" else GRID
    if change == "share":
        measured = [measure(each.cell, metrics={"n_poisoned": 95.0}) for each in measured]
    text = page([Section(grid, measured, PUBLISHED)], command="c", pictures={})
    assert "published" not in text
    assert "Somebody" not in text


def test_the_head_says_what_was_measured_and_where(measured):
    pictures = {(0, 0): {"overview": "a.png", "price": "b.png"}}
    text = page([Section(GRID, measured)], command="kedro table x.yml", pictures=pictures)
    assert "```sh\nkedro table x.yml\n```" in text
    assert "14 of 14 runs." in text
    assert "### CIFAR-10, 10,000 training images, compact (widths [8, 8]), 16 epochs" in text
    assert "seeds 0, 1, 2 (n = 1, 3); commit 0123456; a machine, 2 cores." in text
    assert "Rows with n = 1 are of one seed" in text
    assert text.index("](a.png)") < text.index("| attack | defence |") < text.index("](b.png)")


def test_n_of_one_is_told_only_where_there_is_one(measured):
    several = [each for each in measured if each.cell.defence != "abl"]
    text = page([Section(GRID, several)], command="c", pictures={})
    assert "n = 1" not in text
    assert "12 of 14 runs. The others are missing here." in text


def test_local_changes_and_every_commit_are_told(measured):
    measured[3] = measure(measured[3].cell, tags={"commit": "fedcba987", "commit.dirty": "true"})
    text = page([Section(GRID, measured)], command="c", pictures={})
    assert "commit 0123456, fedcba9 with local changes;" in text


def test_runs_of_another_scale_have_a_table_of_their_own(measured):
    measured[-1] = measure(measured[-1].cell, parameters={"train.recipe.epochs": "2"})
    text = page([Section(GRID, measured)], command="c", pictures={})
    (row,) = table(text, "compact (widths [8, 8]), 2 epochs")
    assert row["n"] == "1"
    assert len(table(text, "compact (widths [8, 8]), 16 epochs")) == 6


def test_what_the_names_stand_for_is_there_without_paths(measured):
    text = page([Section(GRID, measured)], command="c", pictures={})
    assert "/home/someone" not in text
    assert "`ingest.source.path=<path>`, `model.widths=[8, 8]`" in text
    assert "| defence | abl | `--pipelines ablation`, `defence_name=abl` | 0 |" in text
    assert public("data/00_external") == "data/00_external"


def test_notes_of_the_grid_come_first(measured):
    grid = GRID.model_copy(update={"notes": "- **ABL** fails.\n"})
    text = page([Section(grid, measured)], command="c", pictures={})
    assert "14 of 14 runs.\n\n- **ABL** fails.\n\n### CIFAR-10" in text


def test_a_grid_without_runs():
    text = page([Section(GRID, [])], command="c", pictures={})
    assert "0 of 14 runs. The others are missing here." in text
    assert "###" not in text


def test_how_often_a_defence_holds_is_counted(measured):
    changed = [
        measure(each.cell, metrics={"asr": 0.051})
        if (each.cell.attack, each.cell.defence) == ("all-to-all", "nab")
        else each
        for each in measured
    ]
    rows = table(page([Section(GRID, changed)], command="c", pictures={}), first="defence")
    assert [tuple(row.values()) for row in rows] == [
        ("none", "0 of 2", "2 of 2", "badnets 10 %, all-to-all"),
        ("nab", "1 of 2", "2 of 2", "all-to-all"),
    ]


def test_without_an_attack_nothing_is_counted(measured):
    clean = [measure(each.cell, metrics={"asr": math.nan}) for each in measured]
    text = page([Section(GRID, clean)], command="c", pictures={})
    assert "| defence | holds |" not in text
    assert overview(GRID, clean).axes


def test_the_overview_has_every_mean_and_frames_what_holds(measured):
    run = [
        each for each in measured if each.cell.attack != "all-to-all" or each.cell.defence != "abl"
    ]
    left, right = overview(GRID, run).axes
    assert [text.get_text() for text in left.texts] == ["100.0", "2.0", "3.0", "100.0", "2.0"]
    assert [text.get_text() for text in right.texts] == ["0.0", "2.0", "21.0", "0.0", "2.0"]
    for axes in (left, right):
        assert [patch.get_xy() for patch in axes.patches] == [(0.5, -0.5), (0.5, 0.5)]
    assert [label.get_text() for label in left.get_yticklabels()] == ["badnets 10 %", "all-to-all"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["none", "nab", "abl"]


def test_the_price_has_a_point_a_row_at_its_means(measured):
    figure = price(GRID, measured)
    (axes,) = figure.axes
    points = [line for line in axes.lines if line.get_marker() not in ("None", None)]
    found = {
        (line.get_color(), line.get_marker()): (*line.get_xdata(), *line.get_ydata())
        for line in points
    }
    assert len(points) == len(found) == 6
    falls = {"none": 0.0, "nab": 0.02, "abl": 0.21}
    for defence, fall in falls.items():
        same = [xy for xy in found.values() if math.isclose(xy[1], fall, abs_tol=1e-9)]
        assert len(same) == 2
        assert all(math.isclose(x, ASR[defence]) for x, _ in same)
    assert len({colour for colour, _ in found}) == 3
    assert len({marker for _, marker in found}) == 2
    texts = [
        text.get_text()
        for legend in figure.findobj(match=type(axes.get_legend()))
        for text in legend.get_texts()
    ]
    assert sorted(set(texts)) == sorted({"none", "nab", "abl", "badnets 10 %", "all-to-all"})
