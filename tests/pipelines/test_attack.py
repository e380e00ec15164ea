"""The attack's node: what the defender gets, what only the oracle knows, and the test set."""

from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset, Version
from kedro.runner import SequentialRunner

from counterdoor.attacks import NOTHING, AttackBase, BadNets, Blend, poison
from counterdoor.engine import DEFAULT
from counterdoor.io import CachedTensorsDataset, TensorsDataset
from counterdoor.ledger import new_ledger
from counterdoor.params import AttackParams
from counterdoor.pipelines.attack import create_pipeline
from counterdoor.pipelines.attack.nodes import attack, prepare_attack

INFO = {"class_names": ["a", "b", "c"]}
ATTACKS = [
    {"name": "badnets", "labels": {"name": "all_to_one", "target_class": 1}, "poison_ratio": 0.25},
    {"name": "blend", "labels": {"name": "all_to_all"}, "poison_ratio": 0.5, "alpha": 0.3},
]


@pytest.fixture
def case(noise):
    labels = np.repeat([0, 1, 2], 12)
    return noise(36, seed=1), new_ledger(labels, np.arange(36) % 4 == 0), noise(7, seed=2)


@pytest.mark.parametrize("settings", ATTACKS, ids=lambda settings: settings["name"])
def test_it_is_poison_and_the_trigger_on_every_test_image(case, settings):
    images, ledger, test_images = case
    component = {"badnets": BadNets, "blend": Blend}[settings["name"]](**settings)
    result = attack(images, ledger, test_images, INFO, AttackParams(settings), 5)
    expected = poison(component, images, ledger, INFO["class_names"], seed=5)
    np.testing.assert_array_equal(result["images"], expected.images_nchw)
    assert result["ledger"].equals(expected.ledger)
    assert result["oracle"].equals(expected.oracle)
    np.testing.assert_array_equal(result["triggered_test_images"], component(test_images))
    changed = (result["triggered_test_images"] != test_images).reshape(7, -1).any(1)
    assert changed.all()


@pytest.mark.parametrize("settings", ATTACKS, ids=lambda settings: settings["name"])
def test_the_defenders_ledger_tells_nothing_and_the_oracle_everything(case, settings):
    images, ledger, test_images = case
    result = attack(images, ledger, test_images, INFO, AttackParams(settings), 5)
    poisoned = result["oracle"]["is_poisoned"].to_numpy()
    assert list(result["ledger"]) == ["sample_id", "label", "trusted"]
    assert result["oracle"]["true_label"].tolist() == ledger["label"].tolist()
    assert not (poisoned & ledger["trusted"].to_numpy()).any()
    for row in np.flatnonzero(poisoned):
        wanted = settings["labels"].get("target_class", (ledger["label"][row] + 1) % 3)
        assert result["ledger"]["label"][row] == wanted
    assert result["ledger"]["label"][~poisoned].tolist() == ledger["label"][~poisoned].tolist()
    np.testing.assert_array_equal(result["images"][~poisoned], images[~poisoned])
    # of the 9 untrusted samples of each class
    assert poisoned.sum() == 3 * round(settings["poison_ratio"] * 9)


def test_inputs_are_left_as_they_are(case):
    images, ledger, test_images = case
    before = images.copy(), ledger.copy(), test_images.copy()
    attack(images, ledger, test_images, INFO, AttackParams(ATTACKS[0]), 5)
    np.testing.assert_array_equal(images, before[0])
    assert ledger.equals(before[1])
    np.testing.assert_array_equal(test_images, before[2])


def test_a_target_class_that_does_not_exist_is_refused(case):
    labels = {"name": "all_to_one", "target_class": 3}
    params = AttackParams({"name": "badnets", "labels": labels})
    with pytest.raises(ValueError, match=r"labels.target_class is 3, but the data has 3 classes"):
        attack(*case, INFO, params, 0)
    images, ledger, _ = case
    with pytest.raises(ValueError, match=r"labels.target_class is 3, but the data has 3 classes"):
        prepare_attack(images, ledger, INFO, params, 0)


class Trained(AttackBase):
    """An attack that makes something beforehand."""

    name: Literal["trained"] = "trained"
    made: ClassVar[list[tuple[object, ...]]] = []

    def prepare(self, images_nchw, labels, num_classes, *, seed, engine=DEFAULT):
        self.made.append((len(images_nchw), labels.tolist(), num_classes, seed, engine))
        return {"level": torch.tensor(7, dtype=torch.uint8)}

    def __call__(self, images_nchw, prepared=NOTHING):
        return np.full_like(images_nchw, int(prepared["level"]))


@pytest.fixture
def trained():
    Trained.made.clear()
    return SimpleNamespace(root=Trained(poison_ratio=0.25, cover_ratio=0.25))


def test_what_is_prepared_is_made_once_and_reaches_the_trigger(case, trained):
    images, ledger, test_images = case
    made = prepare_attack(images, ledger, INFO, trained, 3, DEFAULT, None)["preparation"]
    assert Trained.made == [(36, ledger["label"].tolist(), 3, 3, DEFAULT)]
    again = prepare_attack(images, ledger, INFO, trained, 3, DEFAULT, made)["preparation"]
    assert again is made
    assert len(Trained.made) == 1
    result = attack(images, ledger, test_images, INFO, trained, 3, made)
    assert (result["triggered_test_images"] == 7).all()
    touched = result["oracle"]["is_poisoned"] | result["oracle"]["is_cover"]
    assert touched.sum() == 2 * result["oracle"]["is_poisoned"].sum() > 0
    assert (result["images"][touched] == 7).all()
    np.testing.assert_array_equal(result["images"][~touched], images[~touched])


@pytest.mark.parametrize("what", ["one pixel", "labels swapped", "one removed", "not said"])
def test_for_other_data_an_attack_is_prepared_anew(case, trained, what):
    images, ledger, _ = case
    made = prepare_attack(images, ledger, INFO, trained, 3)["preparation"]
    if what == "one pixel":
        images = images.copy()
        images[-1, 0, -1, -1] ^= 1
    elif what == "labels swapped":
        ledger = new_ledger(np.roll(ledger["label"], 1), ledger["trusted"].to_numpy())
    elif what == "one removed":
        images, ledger = images[:-1], ledger[:-1]
    else:
        del made["made_from"]
    again = prepare_attack(images, ledger, INFO, trained, 3, cached=made)["preparation"]
    assert len(Trained.made) == 2
    assert prepare_attack(images, ledger, INFO, trained, 3, cached=again)["preparation"] is again
    assert len(Trained.made) == 2


def test_a_second_run_reads_what_the_first_prepared(case, trained, tmp_path):
    images, ledger, test_images = case
    given = {
        "clean_images": images,
        "clean_ledger": ledger,
        "test_images": test_images,
        "dataset_info": INFO,
        "params:attack": trained,
        "params:seed": 3,
        "params:engine": DEFAULT,
    }
    filepath = str(tmp_path / "preparation.safetensors")
    for version in ("2024-01-01T00.00.01.000Z", "2024-01-01T00.00.02.000Z"):
        stored = {"filepath": filepath, "version": Version(None, version)}
        catalog = DataCatalog(
            {
                **{name: MemoryDataset(data) for name, data in given.items()},
                "attack_preparation": TensorsDataset(**stored),
                "cached_attack_preparation": CachedTensorsDataset(**stored),
            }
        )
        outputs = SequentialRunner().run(create_pipeline(), catalog)
        assert (outputs["triggered_test_images"].load() == 7).all()
    assert len(Trained.made) == 1
    first, second = sorted(tmp_path.glob("*/*/*.safetensors"))
    assert first.read_bytes() == second.read_bytes()


def test_nothing_is_prepared_for_an_attack_that_would_be_refused(case, trained):
    images, ledger, _ = case
    trained.root = Trained(poison_ratio=0.001)
    with pytest.raises(ValueError, match="poisons no sample of 27"):
        prepare_attack(images, ledger, INFO, trained, 3)
    assert Trained.made == []


def test_an_attack_without_preparation_prepares_nothing(case):
    images, ledger, _ = case
    made = prepare_attack(images, ledger, INFO, AttackParams(ATTACKS[0]), 3)
    assert made == {"preparation": {}}
    small = images[:, :, :5, :5]
    with pytest.raises(ValueError, match="does not fit into 5x5"):
        prepare_attack(small, ledger, INFO, AttackParams(ATTACKS[0]), 3)
