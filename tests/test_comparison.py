"""The grid and its cells, the Pareto front against every pair, published figures."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from counterdoor.comparison import (
    Grid,
    Published,
    by_path,
    nested,
    pareto_front,
    read_grid,
    read_published,
    same_cell,
)
from counterdoor.defending import spelt_out

TABLES = Path(__file__).resolve().parents[1] / "benchmarks" / "tables"
GRID = {
    "title": "Small",
    "data": "MNIST",
    "parameters": {"train.recipe.epochs": 2, "attack_name": "badnets"},
    "seeds": [0, 3],
    "attacks": [
        {"name": "weak", "parameters": {"poison_ratio": 0.01}},
        {"name": "blend", "parameters": {"attack_name": "blend"}},
    ],
    "defences": [
        {"name": "vd", "parameters": {"relabel": {"labeler": {"name": "vd"}}}},
        {"name": "drop", "seeds": [3, 7], "parameters": {"labeler_name": "drop"}},
    ],
}


def test_cells_are_every_attack_with_every_defence_and_its_seeds():
    cells = Grid.model_validate(GRID).cells()
    assert [str(cell) for cell in cells] == [
        "weak, vd, seed 0",
        "blend, vd, seed 0",
        "weak, vd, seed 3",
        "weak, drop, seed 3",
        "blend, vd, seed 3",
        "blend, drop, seed 3",
        "weak, drop, seed 7",
        "blend, drop, seed 7",
    ]


def test_an_attacks_parameters_go_before_the_common_ones():
    weak, blend, *_ = Grid.model_validate(GRID).cells()
    common = {
        "train": {"recipe": {"epochs": 2}},
        "relabel": {"labeler": {"name": "vd"}},
        "seed": 0,
    }
    assert weak.parameters == common | {"attack_name": "badnets", "poison_ratio": 0.01}
    assert blend.parameters == common | {"attack_name": "blend"}


def changed(**values):
    return GRID | values


REFUSED = {
    "unknown key": (changed(seed=[0]), "not permitted"),
    "unknown key of an attack": (changed(attacks=[{"name": "a", "ratio": 1}]), "not permitted"),
    "no attack": (changed(attacks=[]), "at least 1"),
    "no seed": (changed(seeds=[]), "at least 1"),
    "negative seed": (changed(seeds=[-1]), "greater than or equal to 0"),
    "seed twice": (changed(seeds=[1, 1]), "seed 1 is listed twice"),
    "attack twice": (changed(attacks=[{"name": "a"}, {"name": "a"}]), "attack 'a' is listed twice"),
    "seed as parameter": (changed(parameters={"seed": 1}), "list seeds under seeds"),
    "both set it": (
        changed(
            attacks=[{"name": "a", "parameters": {"relabel": {"labeler": {"name": "vd"}}}}],
            defences=[{"name": "b", "parameters": {"relabel.labeler.name": "drop"}}],
        ),
        "attack 'a' and defence 'b' both set relabel.labeler.name",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_grid_is_refused(name):
    values, expected = REFUSED[name]
    with pytest.raises(ValidationError, match=expected):
        Grid.model_validate(values)


def test_a_grid_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Grid.model_validate(GRID).title = "other"


def test_common_parameters_of_the_command_go_before_the_files(tmp_path):
    file = tmp_path / "grid.yml"
    file.write_text(yaml.safe_dump(GRID))
    grid = read_grid(file, {"train": {"recipe": {"epochs": 5}}, "source_name": "digits"})
    expected = {"train.recipe.epochs": 5, "attack_name": "badnets", "source_name": "digits"}
    assert grid.parameters == expected
    assert read_grid(file).parameters == GRID["parameters"]


@pytest.mark.parametrize("text", ["a: [", "- 1", "title: x", ""])
def test_a_file_that_is_no_grid_names_itself(tmp_path, text):
    file = tmp_path / "grid.yml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.yml is no grid"):
        read_grid(file)


def test_nested():
    assert nested({"a.b": 1, "c": 2, "a.d.e": 3}) == {"a": {"b": 1, "d": {"e": 3}}, "c": 2}
    for parameters in ({"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}):
        with pytest.raises(ValueError, match="a"):
            nested(parameters)


def beats(one, other):
    """Of (CA, ASR): as good in both, better in one."""
    as_good = one[0] >= other[0] and one[1] <= other[1]
    return as_good and (one[0] > other[0] or one[1] < other[1])


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_what_no_other_beats(seed):
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 2 + seed % 9, (generator.integers(1, 30), 2)) / 10
    points = [(float(ca), float(asr)) for ca, asr in values]
    if seed % 3 == 0:
        points.insert(len(points) // 2, (float("nan"), 0.0))
    expected = [
        not any(beats(other, one) for other in points) and not np.isnan(one).any() for one in points
    ]
    assert pareto_front(points) == expected


def test_equal_points_are_on_the_front_together():
    assert pareto_front([(0.9, 0.1), (0.9, 0.1), (0.9, 0.2)]) == [True, True, False]
    assert pareto_front([]) == []


def figure(**values):
    given = {"source": "s", "setting": "n", "data": "CIFAR-10", "attack": "sig"}
    given |= {"poison_ratio": 0.1, "defence": "abl", "ca": 57.8, "asr": 0.0}
    return Published.model_validate(given | values)


def test_published_figures_of_the_same_cell():
    figures = [figure(), figure(attack="wanet"), figure(defence="fp"), figure(poison_ratio=0.01)]
    cell = {"data": "CIFAR-10", "attack": "sig", "poisoned": 0.095, "defence": "abl"}
    assert same_cell(figures, **cell) == figures[:1]
    assert same_cell(figures, **cell | {"poisoned": 0.0101}) == figures[3:]
    for other in ({"data": "MNIST"}, {"poisoned": 0.05}, {"poisoned": float("nan")}):
        assert same_cell(figures, **cell | other) == []


def test_a_wrong_figure_names_file_and_line(tmp_path):
    file = tmp_path / "figures.csv"
    header = "source,setting,data,attack,poison_ratio,defence,ca,asr\n"
    file.write_text(header + "s,n,d,a,0.1,b,90,1\ns,n,d,a,0.1,b,190,1\n")
    with pytest.raises(ValueError, match=r"figures\.csv, line 3: ca is 190\.0; it must be"):
        read_published(file)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_grids_of_the_project(name):
    grid = read_grid(TABLES / f"{name}.yml")
    of_nab = {"nab", "nab with ac" if name == "digits" else "nab with either"}
    assert {defence.name for defence in grid.defences} == of_nab | {
        *("none", "abl", "fp", "nad", "pdb")
    }
    cells = grid.cells()
    per_attack = 21 if name == "digits" else 3 * 3 + 4
    assert len(cells) == per_attack * len(grid.attacks)
    if grid.published:
        figures = read_published(TABLES / grid.published)
        assert {each.data for each in figures} == {grid.data}


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_one_part_is_ideal_against_attacks_of_the_usual_table(name):
    ideal, usual = (read_grid(TABLES / f"{each}.yml") for each in (f"oracle_{name}", name))
    assert all(each in usual.attacks for each in ideal.attacks)
    assert set(ideal.seeds) <= set(usual.seeds)
    assert (ideal.env, ideal.parameters) == (usual.env, usual.parameters)
    assert {cell.pipeline for cell in ideal.cells()} == {"ablation"}
    assert {cell.pipeline for cell in usual.cells()} == {None}
    if name == "digits":
        assert [each.name for each in ideal.attacks] == [
            each.name for each in usual.attacks if each.name != "no attack"
        ]


def test_what_pattern_adds_is_measured_against_attacks_of_the_usual_table():
    """With the members that ``conf/cifar10`` has, and one more."""
    more, usual = (read_grid(TABLES / f"{each}.yml") for each in ("pattern_cifar10", "cifar10"))
    assert all(each in usual.attacks for each in more.attacks)
    assert (more.env, more.parameters, more.seeds) == (usual.env, usual.parameters, usual.seeds)
    conf = yaml.safe_load(
        (TABLES.parents[1] / "conf/cifar10/parameters_detect.yml").read_text(encoding="utf-8")
    )
    (defence,) = more.defences
    members = conf["_detector_changes"]["either"]["members"]
    assert defence.parameters["detect.detector.members"][:-1] == members


@pytest.mark.parametrize("name", ["unknown_digits", "unknown_cifar10"])
def test_data_of_unknown_origin_is_defended_there_as_defend_does_it(name):
    grid = read_grid(TABLES / f"{name}.yml")
    (defence,) = grid.defences
    implied = by_path(spelt_out({}, ["defend"]))
    assert defence.parameters == {k: v for k, v in implied.items() if k != "attack_name"}
    assert [each.name for each in grid.attacks if each.parameters["attack_name"] == "none"] == [
        "clean"
    ]
