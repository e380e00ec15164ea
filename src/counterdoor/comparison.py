"""A comparison of defences: the grid of its cells, the Pareto front, published figures.

A *cell* is one run of the whole pipeline: an attack, a defence, a seed.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from counterdoor.component import Config
from counterdoor.refusal import one_line

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^|\n]+$")]
Percent = Annotated[float, Field(ge=0, le=100)]


def by_path(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted path, in the order in which they occur."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        inner = by_path(value, f"{prefix}{key}.") if isinstance(value, Mapping) else None
        flat |= {f"{prefix}{key}": value} if inner is None else inner
    return flat


def _without_seed(parameters: dict[str, Any]) -> dict[str, Any]:
    if "seed" in parameters:
        raise ValueError("seed is not a parameter of a grid; list seeds under seeds")
    return parameters


Parameters = Annotated[dict[str, Any], AfterValidator(by_path), AfterValidator(_without_seed)]
"""Run parameters by dotted path, also where they were given nested; without the seed."""


class Choice(Config):
    """One attack of a grid.

    Attributes:
        name: what the table calls it.
        parameters: run parameters, as ``kedro run --params`` takes them: by name or dotted path.
    """

    name: Name
    parameters: Parameters = Field(default={})


class Defence(Choice):
    """One defence of a grid.

    Attributes:
        seeds: its own, where they are not those of the grid.
        pipeline: of Kedro, which its cells run: the experiment, or ``ablation``, which shows the
            truth to a detector or a labeler ``oracle``.
    """

    seeds: Seeds | None = None
    pipeline: Literal["ablation"] | None = None


class Grid(Config):
    """Attacks x defences x seeds.

    Attributes:
        title: heading of the results.
        data: the data set as papers call it; published figures are shown if they are of it.
        env: Kedro environment of every run; none for the default one.
        parameters: run parameters of every cell; those of an attack or a defence go before them.
        seeds: seeds of every defence that has none of its own.
        attacks: the rows' attacks.
        defences: the rows' defences; the two of a cell set no parameter both.
        published: a file of :class:`Published` figures, relative to the grid's.
        notes: what there is to say about the results, in Markdown; the page has it first.
    """

    title: Name
    data: Name
    env: str | None = None
    parameters: Parameters = Field(default={})
    seeds: Seeds
    attacks: Annotated[tuple[Choice, ...], Field(min_length=1)]
    defences: Annotated[tuple[Defence, ...], Field(min_length=1)]
    published: str | None = None
    notes: str = Field(default="", min_length=0)

    @model_validator(mode="after")
    def _distinct(self) -> "Grid":
        listed: dict[str, Sequence[object]] = {
            "attack": [attack.name for attack in self.attacks],
            "defence": [defence.name for defence in self.defences],
            "seed": self.seeds,
            **{f"seed of {each.name}": each.seeds or () for each in self.defences},
        }
        for what, values in listed.items():
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"{what} {twice[0]!r} is listed twice; leave one of them")
        for attack in self.attacks:
            for defence in self.defences:
                if both := set(attack.parameters) & set(defence.parameters):
                    raise ValueError(
                        f"attack {attack.name!r} and defence {defence.name!r} both set "
                        f"{', '.join(sorted(both))}; leave it to one of the two"
                    )
        return self

    def cells(self) -> list["Cell"]:
        """Every cell: the first seed's first, so that a table cut short has all rows early."""
        seeds = {defence.name: defence.seeds or self.seeds for defence in self.defences}
        every = list(dict.fromkeys(seed for each in seeds.values() for seed in each))
        return [
            Cell(
                attack.name,
                defence.name,
                seed,
                self.env,
                nested(self.parameters | attack.parameters | defence.parameters | {"seed": seed}),
                defence.pipeline,
            )
            for seed in every
            for attack in self.attacks
            for defence in self.defences
            if seed in seeds[defence.name]
        ]


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        attack: its name in the grid.
        defence: its name in the grid.
        seed: its seed.
        env: its Kedro environment.
        parameters: all its run parameters, nested, the seed among them.
        pipeline: the Kedro pipeline; ``None`` for the default one.
    """

    attack: str
    defence: str
    seed: int
    env: str | None
    parameters: Mapping[str, Any]
    pipeline: str | None = None

    def __str__(self) -> str:
        return f"{self.attack}, {self.defence}, seed {self.seed}"


def nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by dotted path as nested ones.

    Raises:
        ValueError: if a path leads through a value.
    """
    result: dict[str, Any] = {}
    for path, value in parameters.items():
        *folders, last = path.split(".")
        place = result
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"{path} leads through {folder}, which is set to {place!r}")
        if isinstance(place.get(last), dict):
            raise ValueError(f"{path} is set to {value!r}, but has parameters of its own")
        place[last] = value
    return result


def read_grid(path: Path, common: Mapping[str, Any] | None = None) -> Grid:
    """Read a grid from YAML.

    Args:
        path: the file.
        common: run parameters that go before the file's common ones.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        grid = Grid.model_validate(given)
        parameters = grid.parameters | by_path(common or {})
        given = grid.model_dump() | {"parameters": parameters}
        return Grid.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{path} is no grid: {one_line(error, Grid, given)}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no grid: {' '.join(str(error).split())}") from error


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other beats.

    One beats another if it has a higher CA at no higher ASR, or a lower ASR at no lower CA.

    Args:
        points: (CA, ASR) each; equal ones are on the front together, NaN is never on it.
    """
    valid = [i for i, (ca, asr) in enumerate(points) if ca == ca and asr == asr]
    front = [False] * len(points)
    least = float("inf")
    by_ca = sorted(valid, key=lambda i: (-points[i][0], points[i][1]))
    for _, equal in groupby(by_ca, key=lambda i: points[i][0]):
        rows = list(equal)
        lowest = points[rows[0]][1]
        for i in rows:
            front[i] = points[i][1] == lowest < least
        least = min(least, lowest)
    return front


class Published(Config):
    """A figure that somebody else has published.

    Attributes:
        source: who.
        setting: net, and what else to know.
        data: the data set.
        attack: its name here, or there where it is not here.
        poison_ratio: share of all training images that is poisoned, in (0, 1).
        defence: its name.
        ca: clean accuracy, in percent.
        asr: attack success rate, in percent.
    """

    source: Name
    setting: Name
    data: Name
    attack: Name
    poison_ratio: Annotated[float, Field(gt=0, lt=1)]
    defence: Name
    ca: Percent
    asr: Percent


CLOSE = 0.1
"""How far, relatively, a share of poisoned images may be from a published one."""


NUMBERS = ("poison_ratio", "ca", "asr")


def _number(text: Any) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def read_published(path: Path) -> tuple[Published, ...]:
    """Read published figures from CSV.

    Raises:
        ValueError: naming the file, the line and what is wrong in it.
    """
    figures = []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            given = row | {name: _number(row[name]) for name in NUMBERS if name in row}
            try:
                figures.append(Published.model_validate(given))
            except ValidationError as error:
                told = one_line(error, Published, given)
                raise ValueError(f"{path}, line {rows.line_num}: {told}") from error
    return tuple(figures)


def same_cell(
    figures: Sequence[Published], *, data: str, attack: str, poisoned: float, defence: str
) -> list[Published]:
    """The published figures of a cell.

    Args:
        figures: all there are.
        data: the data set.
        attack: the attack's name.
        poisoned: share of the training images that is poisoned.
        defence: the defence's name.
    """
    return [
        each
        for each in figures
        if (each.data, each.attack, each.defence) == (data, attack, defence)
        and abs(each.poison_ratio - poisoned) <= CLOSE * each.poison_ratio
    ]
