"""The catalogue of attacks as a Markdown page, made from the components and from measurements.

A measurement is a JSON object a line, as ``benchmarks/attack_strength.py`` writes it: one
attack on one seed.
"""

import inspect
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from counterdoor import plots
from counterdoor.attacks import AttackBase
from counterdoor.component import Component
from counterdoor.engine import DEFAULT, Engine
from counterdoor.seeding import numpy_generator

SHOWN = 6
"""Images in a picture."""
LONG = 60
"""Characters of a default that are shown."""
NUMBERS = ("ca_clean", "ca", "asr")
"""What a record of an attack has measured."""

INTRODUCTION = """\
# Attacks

What an adversary can do to the training data here. Each is one component,
`src/counterdoor/attacks/`; `kedro run --params attack_name=<name>` selects it. This page is made
from the components themselves by

```sh
{command}
```

**CA clean** is the accuracy of an undefended net trained on clean data, on clean test images;
**CA** that of one trained on the poisoned data; **ASR** the share of triggered test images, other
than those of the wanted class, that it takes for that class. Mean ± standard deviation over the
seeds, in percent, as `benchmarks/attack_strength.py` measures them. An attack that is weak
undefended proves nothing about a defence.
"""


@dataclass(frozen=True)
class Strength:
    """What one attack with one configuration was measured to do, over seeds.

    Attributes:
        attack: its configuration.
        setting: the data, net and recipe in words.
        seeds: the seeds, in order.
        values: for each of ``NUMBERS`` one value a seed, in [0, 1].
        hardware: in words.
        commits: of the code; ``+`` marks files that differed from it.
    """

    attack: Mapping[str, Any]
    setting: str
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    hardware: str
    commits: str


def read_records(file: Path) -> list[dict[str, Any]]:
    """The measurements in a file, one JSON object a line.

    Raises:
        ValueError: naming the line that is no record.
    """
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            if record["attack"] is not None:
                record["attack"]["name"], *(float(record[name]) for name in NUMBERS)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number} is no record of benchmarks/attack_strength.py "
                f"({type(error).__name__}: {error}); delete the line, or measure again"
            ) from error
        records.append(record)
    return records


def strengths(records: Iterable[Mapping[str, Any]]) -> list[Strength]:
    """Records that differ by the seed alone, taken together; those of clean nets are left out.

    Where a seed was measured twice, the later record counts.
    """
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record["attack"] is None:
            continue
        same = {name: record[name] for name in ("attack", "data", "model", "recipe", "hardware")}
        key = json.dumps([same, record["n_train"], record["n_test"]], sort_keys=True)
        groups.setdefault(key, {})[int(record["seed"])] = record
    return [_strength(by_seed) for by_seed in groups.values()]


def _strength(by_seed: Mapping[int, Mapping[str, Any]]) -> Strength:
    seeds = tuple(sorted(by_seed))
    records = [by_seed[seed] for seed in seeds]
    first = records[0]
    net = first["model"]["name"]
    if widths := first["model"].get("widths"):
        net += " " + "-".join(map(str, widths))
    if first["model"].get("whiten") is False:
        net += " without whitening"
    setting = (
        f"{first['data']}, {first['n_train']:,} training and {first['n_test']:,} test images, "
        f"{net}, {first['recipe']['epochs']} epochs"
    )
    return Strength(
        attack=first["attack"],
        setting=setting,
        seeds=seeds,
        values={name: tuple(float(each[name]) for each in records) for name in NUMBERS},
        hardware=first["hardware"],
        commits=", ".join(sorted({str(each["commit"]) for each in records})),
    )


def percent(values: Sequence[float]) -> str:
    """``mean ± std`` of rates in [0, 1], in percent; the mean alone of a single one."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def described(component: type[Component]) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each parameter, by its name."""
    found: dict[str, str] = {}
    for kind in reversed(component.__mro__):
        _, _, attributes = _paragraphs(kind).partition("Attributes:\n")
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            found[name] = plain(text)
    return found


def body(component: type[Component]) -> str:
    """The docstring between the summary and the attributes: how it works, and its source."""
    text, _, _ = _paragraphs(component).partition("Attributes:\n")
    return "\n\n".join(
        plain(paragraph) for paragraph in text.split("\n\n")[1:] if paragraph.strip()
    )


def _paragraphs(kind: type) -> str:
    return inspect.cleandoc(kind.__dict__.get("__doc__") or "") + "\n"


def plain(text: str) -> str:
    """A docstring's text on one line, its markup turned into Markdown's."""
    text = re.sub(r":\w+:`[~.]*([^`]*)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


def picture(
    attack: AttackBase,
    images_nchw: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    seed: int = 0,
    engine: Engine = DEFAULT,
) -> Figure:
    """A few images clean, as in the poisoned training set, triggered, and the difference.

    They are the first of each class, or for a clean-label attack of its target class.

    Args:
        attack: the attack; if it needs preparation, that is made from the images.
        images_nchw: clean images, uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,), true class indices.
        class_names: names of the K classes.
        seed: of the preparation and of what is random in training images.
        engine: what the preparation runs on.
    """
    attack.check(images_nchw.shape[1:])
    prepared = attack.prepare(images_nchw, labels, len(class_names), seed=seed, engine=engine)
    if attack.clean_label:
        rows = np.flatnonzero(labels == attack.labels.single_target)[:SHOWN]
    else:
        rows = np.unique(labels, return_index=True)[1][:SHOWN]
    shown = images_nchw[rows]
    generator = numpy_generator(seed, "attack/poisoned")
    return plots.plot_trigger(
        shown,
        attack.poison_images(shown, generator, prepared),
        attack(shown, prepared),
        labels[rows],
        class_names,
    )


def page(
    attacks: Sequence[type[AttackBase]],
    measured: Sequence[Strength],
    *,
    command: str,
    pictures: Mapping[str, str],
) -> str:
    """The page.

    Args:
        attacks: the components.
        measured: of :func:`strengths`.
        command: what makes the page.
        pictures: path of the picture of each attack, relative to the page.
    """
    lines = [
        INTRODUCTION.format(command=command),
        "| attack | what it is | assumes an attacker who | labels |",
        "|---|---|---|---|",
    ]
    for kind in attacks:
        name, kept = kind.component_name(), "kept" if kind.clean_label else "changed"
        cells = (f"[{name}](#{name})", kind.summary(), kind.capability, kept)
        lines.append(_row(cells))
    sections = [_section(kind, measured, pictures) for kind in attacks]
    return "\n".join(lines) + "\n\n" + "\n".join(sections)


def _section(
    kind: type[AttackBase], measured: Sequence[Strength], pictures: Mapping[str, str]
) -> str:
    name = kind.component_name()
    mappings = "all-to-one and all-to-all" if _maps_all_to_all(kind) else "all-to-one alone"
    parts = [f"## {name}", kind.summary()]
    if text := body(kind):
        parts.append(text)
    if name in pictures:
        parts.append(
            f"![{name}: images clean, with the trigger, and the difference]({pictures[name]})"
        )
    kept = "It is clean-label: every poisoned image keeps its true label."
    parts.append(
        f"Assumes an attacker who {kind.capability}. "
        + (kept if kind.clean_label else "Poisoned images get the attacker's label.")
        + f" Label mappings: {mappings}."
    )
    parts += [_parameters(kind), _measured(kind, [m for m in measured if m.attack["name"] == name])]
    return "\n\n".join(parts) + "\n"


def _maps_all_to_all(kind: type[AttackBase]) -> bool:
    return kind.all_to_all and not kind.clean_label


def _parameters(kind: type[AttackBase]) -> str:
    texts, defaults = described(kind), _defaults(kind)
    rows = ["| parameter | default | |", "|---|---|---|"]
    for name, default in defaults.items():
        if name != "name":
            value = json.dumps(default)
            value = value if len(value) <= LONG else value[: LONG - 1] + "…"
            rows.append(_row((f"`{name}`", f"`{value}`", texts.get(name, ""))))
    return "\n".join(rows)


def _defaults(kind: type[AttackBase]) -> dict[str, Any]:
    return kind.model_validate({"name": kind.component_name()}).model_dump(mode="json")


def _measured(kind: type[AttackBase], measured: Sequence[Strength]) -> str:
    if not measured:
        return "Strength: not measured."
    defaults = _defaults(kind)
    rows = [
        "| measured with | CA clean | CA | ASR | seeds | on |",
        "|---|---|---|---|---|---|",
    ]
    for each in measured:
        changed = {
            name: each.attack.get(name)
            for name in sorted({*defaults, *each.attack})
            if each.attack.get(name) != defaults.get(name)
        }
        what = ", ".join(f"`{name}` {_short(value)}" for name, value in changed.items())
        numbers = [percent(each.values[name]) for name in NUMBERS]
        seeds = f"{', '.join(map(str, each.seeds))} (n = {len(each.seeds)})"
        on = f"{each.setting}; {each.hardware}; commit {each.commits}"
        rows.append(_row((what or "the defaults", *numbers, seeds, on)))
    return "\n".join(rows)


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        return str(value["name"])
    return json.dumps(value)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
