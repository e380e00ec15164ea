"""The page of a comparison: tables and pictures, from runs that MLflow has kept."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from counterdoor.comparison import Cell, Choice, Grid, Published, pareto_front, same_cell
from counterdoor.component import members
from counterdoor.defences import Defence
from counterdoor.plots import BLUE, SERIES, VERMILLION
from counterdoor.results import spread

COLUMNS = {
    "undefended_ca": "CA undefended",
    "undefended_asr": "ASR undefended",
    "ca": "CA",
    "asr": "ASR",
    "ba": "BA",
    "der": "DER",
    "detection_precision": "detection precision",
    "detection_tpr": "TPR",
    "detection_fpr": "FPR",
    "pseudo_label_accuracy": "pseudo-labels right",
    "seconds": "seconds",
}
"""The table's metrics, and what it calls them."""
COLOURS = (BLUE, VERMILLION, *SERIES)
MARKERS = "osD^vPX<>*hp"
"""The picture's, in order; after the last the first comes again."""
ON_FRONT = "●"
HELD_ASR, HELD_FALL = 0.05, 0.02
"""A defence holds against an attack with at most so much ASR left at so small a fall of CA."""
CAVEAT = """\
Published figures are in percent. Their net differs from ours, and so may the number and the
quality of the images, the epochs and the attack's settings: compare the order of defences, not the
numbers."""

NOT_REPRODUCED = """\
**{names}: not reproduced.** Here they have not reached their own papers' strength: fewer epochs,
and several without a part that makes them work. Published cells of theirs are better. Their rows
show what these settings give. They do not say which defence is better, so they are not counted
above."""

INTRODUCTION = """\
# Defences compared

Made from the runs in MLflow by

```sh
{command}
```

Every row is an attack and a defence: mean ± standard deviation (n − 1) over n seeds. **CA** is the
accuracy on clean test images, **ASR** the share of triggered test images taken for the class that
the attacker wants, **BA** the accuracy on triggered images, **DER** = [max(0, fall of ASR) −
max(0, fall of CA) + 1] / 2. *Undefended* is the net of the same run that was trained on the same
data without a defence. Detection: the share of the suspects that are poisoned, of the poisoned that
are suspects (TPR), and of the clean that are suspects (FPR). **Front**: {front} where no other
reproduced defence has, against this attack, a higher mean CA at no higher ASR, or a lower mean ASR
at no lower CA. **Holds**: a mean ASR of at most {asr:.0%}, and a mean CA at most {fall:.0f} points
below undefended. A dash: not measured.
"""


@dataclass(frozen=True)
class Measured:
    """A cell that has run.

    Attributes:
        cell: which.
        metrics: its run's, rates in [0, 1].
        parameters: its run's, as text.
        tags: its run's.
    """

    cell: Cell
    metrics: Mapping[str, float]
    parameters: Mapping[str, str]
    tags: Mapping[str, str]

    @property
    def scale(self) -> str:
        """Number of images, net and epochs in words: figures of one scale can be compared."""
        given = {
            name.removeprefix("model."): value
            for name, value in self.parameters.items()
            if name.startswith("model.") and name != "model.name"
        }
        details = ", ".join(f"{name} {value}" for name, value in sorted(given.items()))
        images = self.metrics.get("n_train", math.nan)
        epochs = self.parameters.get("train.recipe.epochs", "?")
        return (
            f"{_number(images)} training images, {self.parameters.get('model.name', '?')}"
            + (f" ({details})" if details else "")
            + f", {epochs} epochs"
        )

    @property
    def poisoned(self) -> float:
        """Share of the untrusted training images that is poisoned."""
        metrics = self.metrics
        untrusted = metrics.get("n_train", math.nan) - metrics.get("n_trusted", math.nan)
        return metrics.get("n_poisoned", math.nan) / untrusted


@dataclass(frozen=True)
class Section:
    """The runs of one grid.

    Attributes:
        grid: the grid.
        measured: its cells that have run.
        published: figures of others.
    """

    grid: Grid
    measured: Sequence[Measured]
    published: Sequence[Published] = ()

    @property
    def scales(self) -> list[tuple[str, list[Measured]]]:
        """The cells by scale, in the order in which scales first occur."""
        by_scale: dict[str, list[Measured]] = {}
        for each in self.measured:
            by_scale.setdefault(each.scale, []).append(each)
        return list(by_scale.items())


@dataclass(frozen=True)
class Row:
    """One attack and one defence at one scale.

    Attributes:
        attack: its name in the grid.
        defence: its name in the grid.
        cells: one a seed.
        front: whether it is on the attack's Pareto front.
    """

    attack: str
    defence: str
    cells: Sequence[Measured]
    front: bool

    def values(self, metric: str) -> pd.Series:
        """One value a seed, NaN where it was not measured."""
        return pd.Series([each.metrics.get(metric, math.nan) for each in self.cells], dtype=float)

    @property
    def asr(self) -> float:
        """The mean ASR that is left; NaN where there is no attack."""
        return float(self.values("asr").mean())

    @property
    def fall(self) -> float:
        """The mean fall of CA, undefended minus defended."""
        return float((self.values("undefended_ca") - self.values("ca")).mean())

    @property
    def reproduced(self) -> bool:
        """Whether the defence reaches its published strength in this project."""
        name = self.cells[0].parameters.get("defence_name", "nab")
        kinds: dict[str, Any] = {kind.component_name(): kind for kind in members(Defence)}
        return name in kinds and bool(kinds[name].reproduced)

    @property
    def holds(self) -> bool:
        """Whether the attack has failed at a small price."""
        rounding = 1e-9  # of the means
        return self.asr <= HELD_ASR + rounding and self.fall <= HELD_FALL + rounding


def rows_of(grid: Grid, measured: Iterable[Measured]) -> list[Row]:
    """The rows of a table, in the grid's order."""
    cells: dict[tuple[str, str], list[Measured]] = {}
    for each in measured:
        cells.setdefault((each.cell.attack, each.cell.defence), []).append(each)
    rows = []
    for attack in grid.attacks:
        group = [
            Row(attack.name, defence.name, cells[attack.name, defence.name], front=False)
            for defence in grid.defences
            if (attack.name, defence.name) in cells
        ]
        compared = [row for row in group if row.reproduced]
        points = [(row.values("ca").mean(), row.values("asr").mean()) for row in compared]
        names = [row.defence for row in compared]
        front = dict(zip(names, pareto_front(points), strict=True))
        rows += [replace(row, front=front.get(row.defence, False)) for row in group]
    return rows


def page(
    sections: Sequence[Section],
    *,
    command: str,
    pictures: Mapping[tuple[int, int], Mapping[str, str]],
) -> str:
    """The page in Markdown.

    Args:
        sections: one a grid.
        command: what makes the page.
        pictures: paths relative to the page by what they show (:data:`PICTURES`), by number of
            the section and of the scale in it.
    """
    told = {"front": ON_FRONT, "asr": HELD_ASR, "fall": 100 * HELD_FALL}
    parts = [INTRODUCTION.format(command=command, **told)]
    for number, section in enumerate(sections):
        notes = f"{section.grid.notes.strip()}\n" if section.grid.notes.strip() else ""
        parts += filter(None, [f"## {section.grid.title}\n\n{_missing(section)}\n", notes])
        for position, (scale, measured) in enumerate(section.scales):
            parts.append(_scale(section, scale, measured, pictures.get((number, position), {})))
        if section.measured:
            parts.append(_choices(section.grid))
    return "\n".join(parts)


def _missing(section: Section) -> str:
    total, done = len(section.grid.cells()), len(section.measured)
    return f"{done} of {total} runs." + ("" if done == total else " The others are missing here.")


def _scale(
    section: Section, scale: str, measured: Sequence[Measured], pictures: Mapping[str, str]
) -> str:
    rows = rows_of(section.grid, measured)
    figures = {(row.attack, row.defence): _figures(section, row) for row in rows}
    sources = list(dict.fromkeys(_source(each) for found in figures.values() for each in found))
    header = ["attack", "defence", "n", *COLUMNS.values(), "front"]
    header += ["published CA / ASR"] if sources else []
    lines = [
        f"### {section.grid.data}, {scale}",
        "",
        _provenance(measured, rows),
        "",
        *_shown(section, pictures, "overview"),
        *_holding(section.grid, rows),
        *_not_reproduced(rows),
        _row(header),
        "|" + "---|" * len(header),
    ]
    for row in rows:
        cells = [row.attack, row.defence, str(len(row.cells))]
        cells += [_spread(row, metric) for metric in COLUMNS]
        cells.append(ON_FRONT if row.front else "")
        if sources:
            found = figures[row.attack, row.defence]
            cells.append(
                "; ".join(
                    f"{each.ca:.1f} / {each.asr:.1f} [{sources.index(_source(each)) + 1}]"
                    for each in found
                )
            )
        lines.append(_row(cells))
    if sources:
        lines += ["", CAVEAT, ""]
        lines += [f"{number}. {source}" for number, source in enumerate(sources, start=1)]
    lines += ["", *_shown(section, pictures, "price")]
    return "\n".join(lines).rstrip("\n") + "\n"


def _shown(section: Section, pictures: Mapping[str, str], name: str) -> list[str]:
    if name not in pictures:
        return []
    return [f"![{section.grid.data}: {PICTURES[name]}]({pictures[name]})", ""]


def _holding(grid: Grid, rows: Sequence[Row]) -> list[str]:
    """How often each defence holds and is on the front; nothing where there is no attack."""
    attacked = [row for row in rows if not math.isnan(row.asr)]
    lines = []
    for defence in grid.defences:
        own = [row for row in attacked if row.defence == defence.name]
        if own and own[0].reproduced:
            lost = ", ".join(row.attack for row in own if not row.holds)
            counts = [
                f"{n} of {len(own)}" for n in (sum(r.holds for r in own), sum(r.front for r in own))
            ]
            lines.append(_row([defence.name, *counts, lost or "none"]))
    if not lines:
        return []
    head = [
        _row(("defence", "holds", "on the front", "does not hold against")),
        "|---|---|---|---|",
    ]
    return [*head, *lines, ""]


def _not_reproduced(rows: Sequence[Row]) -> list[str]:
    """Which rows are of a baseline that misses its published strength, and what follows."""
    names = list(dict.fromkeys(row.defence for row in rows if not row.reproduced))
    return [NOT_REPRODUCED.format(names=", ".join(names)), ""] if names else []


def _source(figure: Published) -> str:
    return f"{figure.source}: {figure.setting}, {figure.data}"


def _figures(section: Section, row: Row) -> list[Published]:
    """What others have published for a row; their attacks have one target class."""
    first = row.cells[0]
    if first.parameters.get("label_mapping", "all_to_one") != "all_to_one":
        return []
    return same_cell(
        section.published,
        data=section.grid.data,
        attack=first.parameters.get("attack_name", row.attack),
        poisoned=first.poisoned,
        defence=first.parameters.get("defence_name", row.defence),
    )


def _provenance(measured: Sequence[Measured], rows: Sequence[Row]) -> str:
    hardware = dict.fromkeys(each.tags.get("hardware", "unknown") for each in measured)
    commits = dict.fromkeys(_commit(each.tags) for each in measured)
    counts = sorted({len(row.cells) for row in rows})
    seeds = sorted({each.cell.seed for each in measured})
    text = (
        f"{_environment(measured[0].cell)}; seeds {', '.join(map(str, seeds))} "
        f"(n = {', '.join(map(str, counts))}); commit {', '.join(commits)}; {'; '.join(hardware)}."
    )
    if 1 in counts:
        text += (
            " Rows with n = 1 are of one seed: they have no deviation, and chance may order them."
        )
    return text


def _environment(cell: Cell) -> str:
    return f"Environment `{cell.env}`" if cell.env else "Default environment"


def _commit(tags: Mapping[str, str]) -> str:
    commit = tags.get("commit", "unknown")[:7]
    return commit + (" with local changes" if tags.get("commit.dirty") == "true" else "")


def _choices(grid: Grid) -> str:
    lines = ["### What the names stand for", "", _row(("", "name", "run parameters", "seeds"))]
    lines.append("|---|---|---|---|")
    if grid.parameters:
        lines.append(_row(("all", "", _listed(grid.parameters), "")))
    for kind, choices in (("attack", grid.attacks), ("defence", grid.defences)):
        for each in choices:
            seeds = getattr(each, "seeds", None) or (grid.seeds if kind == "defence" else ())
            shown = ", ".join(map(str, seeds))
            pipeline = getattr(each, "pipeline", None)
            listed = ([f"`--pipelines {pipeline}`"] if pipeline else []) + [
                _listed(each.parameters)
            ]
            lines.append(_row((kind, each.name, ", ".join(filter(None, listed)), shown)))
    return "\n".join(lines) + "\n"


def _listed(parameters: Mapping[str, object]) -> str:
    shown = {name: public(value) for name, value in parameters.items()}
    return ", ".join(f"`{name}={value}`" for name, value in shown.items())


def public(value: object) -> str:
    """A parameter as it can be published: an absolute path says nothing elsewhere."""
    if isinstance(value, str):
        return "<path>" if value.startswith(("/", "~")) else value
    return json.dumps(value)


def _spread(row: Row, metric: str) -> str:
    values = row.values(metric).dropna()
    return spread(values, metric) if len(values) else "–"


def _number(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:,.0f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def overview(grid: Grid, measured: Sequence[Measured]) -> Figure:
    """The ASR that is left and the fall of CA, defences across and attacks down; dark is bad.

    Means over the seeds. A frame marks a defence that holds against the attack.
    """
    rows = rows_of(grid, measured)
    attacks = [each.name for each in grid.attacks if any(r.attack == each.name for r in rows)]
    defences = [each.name for each in grid.defences if any(r.defence == each.name for r in rows)]
    size = (3.2 + 1.5 * len(defences), 1.6 + 0.36 * len(attacks))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, worst in zip(panels, ("ASR left", "fall of CA"), (1.0, 0.1), strict=True):
        values = np.full((len(attacks), len(defences)), np.nan)
        for row in rows:
            place = attacks.index(row.attack), defences.index(row.defence)
            values[place] = row.asr if axes is panels[0] else row.fall
            if row.holds:
                corner = (place[1] - 0.5, place[0] - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=BLUE, clip_on=False))
        axes.imshow(values, cmap="Oranges", vmin=0, vmax=worst, aspect="auto")
        for (down, across), value in np.ndenumerate(values):
            if not math.isnan(value):
                shade = "white" if value > 0.6 * worst else "black"
                text = f"{100 * value:z.1f}"
                axes.text(across, down, text, ha="center", va="center", color=shade, fontsize=8)
        axes.set_title(f"{title}, %", fontsize=10)
        axes.set_xticks(range(len(defences)), defences, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(attacks)), attacks, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def price(grid: Grid, measured: Sequence[Measured]) -> Figure:
    """The fall of CA against the ASR that is left: colour is the defence, marker the attack.

    A point is the mean over the seeds; bottom left is best.
    """
    rows = rows_of(grid, measured)
    colours = _in_turn(grid.defences, {row.defence for row in rows}, COLOURS)
    markers = _in_turn(grid.attacks, {row.attack for row in rows}, MARKERS)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.plot(
            row.asr,
            row.fall,
            marker=markers[row.attack],
            color=colours[row.defence],
            markersize=9,
            alpha=0.75,
            markeredgecolor="white",
            linestyle="none",
            clip_on=False,
        )
    axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    axes.set(xlabel="ASR of the defended net", ylabel="fall of CA (undefended − defended)")
    axes.set_xlim(-0.02, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.spines[["top", "right"]].set_visible(False)
    defences = [
        Line2D([], [], color=colour, marker="o", linestyle="none", label=name)
        for name, colour in colours.items()
    ]
    attacks = [
        Line2D([], [], color="#555555", marker=marker, linestyle="none", label=name)
        for name, marker in markers.items()
    ]
    beside: dict[str, Any] = {"frameon": False, "alignment": "left"}
    top = beside | {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    bottom = beside | {"loc": "lower left", "bbox_to_anchor": (1.01, 0.0)}
    axes.add_artist(axes.legend(handles=defences, title="defence", **top))
    axes.legend(handles=attacks, title="attack", **bottom)
    return figure


PICTURES = {
    "overview": "ASR left and fall of CA of each attack and defence; framed: the defence holds",
    "price": "what CA each defence costs, against the ASR that is left",
}
"""What the page's pictures show, by their function's name."""


def _in_turn(choices: Sequence[Choice], shown: set[str], values: Sequence[str]) -> dict[str, str]:
    """A value for each choice that is shown, by its place in the grid."""
    return {
        choice.name: values[place % len(values)]
        for place, choice in enumerate(choices)
        if choice.name in shown
    }
