"""The attack's node: what the defender gets, what only the oracle knows, and the test set."""

import numpy as np
import pytest

from counterdoor.attacks import BadNets, Blend, poison
from counterdoor.ledger import new_ledger
from counterdoor.params import AttackParams
from counterdoor.pipelines.attack.nodes import attack

INFO = {"class_names": ["a", "b", "c"]}
ATTACKS = [
    {"name": "badnets", "target_class": 1, "poison_ratio": 0.25},
    {"name": "blend", "target_class": 2, "poison_ratio": 0.5, "alpha": 0.3},
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
    assert set(result["ledger"]["label"][poisoned]) == {settings["target_class"]}
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
    with pytest.raises(ValueError, match=r"attack.target_class is 3, but the data has 3 classes"):
        attack(*case, INFO, AttackParams({"name": "badnets", "target_class": 3}), 0)
