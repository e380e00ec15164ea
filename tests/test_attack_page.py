"""The catalogue page of attacks: what is read off components and records, and the pictures."""

import itertools
import json
import statistics

import numpy as np
import pytest

from counterdoor import attack_page as pages
from counterdoor.attacks import Attack, AttackBase, BadNets
from counterdoor.component import members

ATTACKS = list(members(Attack))
SETTINGS = {
    "data": "noise",
    "n_train": 1200,
    "n_test": 100,
    "model": {"name": "compact"},
    "recipe": {"epochs": 7},
    "hardware": "a machine",
}


def record(seed, attack=None, *, ca_clean=0.9, ca=0.8, asr=0.7, commit="0123abcd", **changes):
    values = {"seed": seed, "ca_clean": ca_clean, "ca": ca, "asr": asr, "commit": commit}
    attack = BadNets().model_dump(mode="json") if attack is None else attack
    return SETTINGS | {"attack": attack} | values | changes


CLEAN = SETTINGS | {"attack": None, "seed": 0, "ca": 0.9, "commit": "0123abcd"}


def write(file, records):
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return file


def test_records_that_differ_by_the_seed_are_one_strength():
    rates = {2: 0.25, 0: 1.0, 1: 0.5}
    (found,) = pages.strengths([CLEAN, *(record(seed, asr=asr) for seed, asr in rates.items())])
    assert found.seeds == (0, 1, 2)
    assert found.values["asr"] == (1.0, 0.5, 0.25)
    assert found.values["ca_clean"] == (0.9, 0.9, 0.9)
    assert found.attack == BadNets().model_dump(mode="json")
    assert found.setting == "noise, 1,200 training and 100 test images, compact, 7 epochs"


def test_a_setting_says_what_of_the_net_was_chosen():
    model = {"name": "compact", "widths": [8, 16, 32], "whiten": False}
    (found,) = pages.strengths([record(0, model=model)])
    assert ", compact 8-16-32 without whitening, 7 epochs" in found.setting


@pytest.mark.parametrize(
    "change",
    [
        {"data": "other"},
        {"n_train": 3},
        {"n_test": 3},
        {"model": {"name": "resnet18"}},
        {"recipe": {"epochs": 8}},
        {"hardware": "another"},
        {"attack": BadNets(margin=1).model_dump(mode="json")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_differs_in_anything_else_is_never_mixed(change):
    found = pages.strengths([record(0), record(1) | change])
    assert [each.seeds for each in found] == [(0,), (1,)]


def test_a_seed_measured_twice_counts_once_the_later_one():
    (found,) = pages.strengths([record(0, asr=0.1, commit="a"), record(0, asr=0.2, commit="b")])
    assert found.values["asr"] == (0.2,)
    assert found.commits == "b"


def test_commits_are_all_named():
    (found,) = pages.strengths([record(0, commit="b+"), record(1, commit="a"), record(2)])
    assert found.commits == "0123abcd, a, b+"


def test_percent_is_mean_and_deviation():
    values = (0.5, 0.6, 0.85)
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert pages.percent(values) == f"{100 * mean:.1f} ± {100 * deviation:.1f}"
    assert pages.percent([0.123]) == "12.3"


def test_records_are_read_line_by_line(tmp_path):
    records = [CLEAN, record(0), record(1)]
    assert pages.read_records(write(tmp_path / "r.jsonl", records)) == records


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"attack": {}}', '{"attack": {"name": "x"}, "ca": 1}', "", "3"]
)
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    file = write(tmp_path / "r.jsonl", [record(0)])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"line 2 is no record.*delete the line") as caught:
        pages.read_records(file)
    assert str(file) in str(caught.value)


class Documented(AttackBase):
    """What it is.

    How it works, see :meth:`AttackBase.prepare` and
    :class:`~counterdoor.ledger`.

    From somebody, ``a|b``.

    Attributes:
        one: the first, which takes
            two lines.
        poison_ratio: told anew.
    """


def test_the_docstrings_tell_of_parameters_and_source():
    texts = pages.described(Documented)
    assert texts["one"] == "the first, which takes two lines."
    assert texts["poison_ratio"] == "told anew."
    assert texts["labels"] == "what triggered images are to be taken for."
    assert pages.body(Documented) == (
        "How it works, see `AttackBase.prepare` and `counterdoor.ledger`.\n\nFrom somebody, `a|b`."
    )


@pytest.mark.parametrize("kind", ATTACKS, ids=lambda kind: kind.__name__)
def test_every_parameter_of_every_attack_is_told_in_words(kind):
    texts = pages.described(kind)
    assert [name for name in kind.model_fields if name != "name" and not texts.get(name)] == []
    assert pages.body(kind), "the docstring names the attack's source"


@pytest.fixture(scope="module")
def whole_page():
    others = BadNets(labels={"name": "all_to_all"}).model_dump(mode="json")
    records = [record(0, asr=0.5), record(1, asr=1.0), record(0, others, asr=0.3)]
    return pages.page(
        ATTACKS,
        pages.strengths(records),
        command="kedro attacks-page --images digits",
        pictures={"badnets": "attacks/badnets.png"},
    )


def sections(text):
    """The page's sections by attack."""
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0]: part for part in parts}


def test_the_page_has_a_section_an_attack_and_its_command(whole_page):
    assert list(sections(whole_page)) == [kind.component_name() for kind in ATTACKS]
    assert "```sh\nkedro attacks-page --images digits\n```" in whole_page
    for kind in ATTACKS:
        section = sections(whole_page)[kind.component_name()]
        assert kind.summary() in section
        assert f"Assumes an attacker who {kind.capability}" in section
        assert ("is clean-label" in section) == kind.clean_label
        both = "Label mappings: all-to-one and all-to-all." in section
        assert both == (kind.all_to_all and not kind.clean_label)
        for name in kind.model_fields:
            assert (f"| `{name}` | " in section) == (name != "name")


def test_the_page_tells_what_was_measured_and_what_was_not(whole_page):
    found = sections(whole_page)
    spread = 100 * statistics.stdev([0.5, 1.0])
    assert f"| the defaults | 90.0 ± 0.0 | 80.0 ± 0.0 | 75.0 ± {spread:.1f} |" in found["badnets"]
    assert "| 0, 1 (n = 2) | noise, 1,200 training" in found["badnets"]
    assert "a machine; commit 0123abcd |" in found["badnets"]
    assert "| `labels` all_to_all | 90.0 | 80.0 | 30.0 | 0 (n = 1) |" in found["badnets"]
    for name, section in found.items():
        assert ("Strength: not measured." in section) == (name != "badnets")
        assert ("![" in section) == (name == "badnets")


def test_every_table_of_the_page_is_one(whole_page):
    """As many cells in each row as in the head: nothing inside breaks it."""
    lines = whole_page.replace("\\|", "").splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("|") and before.startswith("|"):
            assert line.count("|") == before.count("|"), line


def test_the_picture_of_a_clean_label_attack_shows_its_target_class(noise):
    (kind,) = [each for each in ATTACKS if each.component_name() == "sig"]
    labels = np.arange(12) % 3
    attack = kind(labels={"name": "all_to_one", "target_class": 2})
    figure = pages.picture(attack, noise(12, 3, 32, 32), labels, ["a", "b", "c"])
    titles = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert titles == ["c"] * 4


def test_the_picture_shows_each_class_clean_triggered_and_the_difference(noise):
    images, labels = noise(12, 1, 16, 16), np.array([2, 2, 1, 1, 0, 0] * 2)
    figure = pages.picture(BadNets(), images, labels, ["a", "b", "c"])
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["a", "b", "c"]
    rows = [text.get_text() for text in axis.get_yticklabels()]
    assert rows[:2] == ["clean", "triggered"]
    assert rows[2].startswith("difference\n(×")
    shown = [np.asarray(image.get_array()) for image in axis.get_images()]
    chosen = images[[4, 2, 0]]
    triggered = BadNets()(chosen)
    factor = 255 / np.abs(triggered.astype(int) - chosen).max()
    for column in range(3):
        assert np.array_equal(shown[column], chosen[column, 0])
        assert np.array_equal(shown[3 + column], triggered[column, 0])
        difference = np.abs(triggered[column, 0].astype(int) - chosen[column, 0]) * factor
        np.testing.assert_allclose(shown[6 + column], difference)
