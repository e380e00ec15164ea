"""Label-consistent against slow versions of its steps."""

import numpy as np
import pytest
from pydantic import ValidationError

from counterdoor.attacks import AttackerNet, LabelConsistent
from counterdoor.models import DigitsCNN
from counterdoor.recipe import Recipe
from counterdoor.training import predict_classes

OWN = AttackerNet(
    model=DigitsCNN(width=4), recipe=Recipe(epochs=8, batch_size=50, learning_rate=0.02)
)


@pytest.fixture(scope="module")
def prepared(digits):
    return LabelConsistent(net=OWN, robust_to=0).prepare(
        digits.images_nchw, digits.labels, 10, seed=0
    )


@pytest.mark.parametrize("epsilon", [0, 0.4, 1, 7.6, 8, 40])
def test_perturbed_levels_stay_within_epsilon(prepared, digits, epsilon):
    attack = LabelConsistent(net=OWN, epsilon=epsilon, step=1.7, steps=8)
    images = digits.images_nchw[:60]
    perturbed = attack.perturbed(images, prepared)
    moved = np.abs(perturbed.astype(int) - images.astype(int))
    assert perturbed.dtype == np.uint8
    assert moved.max() == min(int(epsilon), 14)  # eight steps of 1.7 reach 13.6


def test_perturbed_target_images_are_no_longer_told_by_the_net(prepared, digits):
    own = digits.images_nchw[digits.labels == 3]
    attack = LabelConsistent(
        net=OWN, labels={"name": "all_to_one", "target_class": 3}, epsilon=60, step=6, steps=20
    )
    net = OWN.rebuild(prepared)
    assert (predict_classes(net, own) == 3).mean() > 0.8
    assert (predict_classes(net, attack.perturbed(own, prepared)) == 3).mean() < 0.1


def test_the_target_class_is_the_one_led_away_from(prepared, digits):
    images = digits.images_nchw[:20]
    first, other = (
        LabelConsistent(
            net=OWN, steps=2, labels={"name": "all_to_one", "target_class": target}
        ).perturbed(images, prepared)
        for target in (0, 7)
    )
    assert (first != other).any()


def test_images_are_perturbed_chunk_by_chunk_as_at_once(prepared, digits, monkeypatch):
    attack = LabelConsistent(net=OWN, steps=3)
    whole = attack.perturbed(digits.images_nchw[:25], prepared)
    monkeypatch.setattr("counterdoor.attacks.label_consistent.CHUNK", 7)
    parts = attack.perturbed(digits.images_nchw[:25], prepared)
    assert (whole != parts).mean() < 0.01  # a slope near 0 may round to another sign


def test_poisoned_images_are_perturbed_and_patched(prepared, digits):
    attack = LabelConsistent(net=OWN, steps=3)
    images = digits.images_nchw[:10]
    poisoned = attack.poison_images(images, np.random.default_rng(0), prepared)
    np.testing.assert_array_equal(poisoned, attack(attack.perturbed(images, prepared)))
    assert (poisoned != attack(images)).any()


@pytest.mark.parametrize("amplitude", [255, 32])
@pytest.mark.parametrize("shape", [(2, 1, 12, 12), (2, 3, 9, 14)], ids=str)
def test_patch_pixel_by_pixel_in_all_corners(noise, amplitude, shape):
    images = noise(*shape)
    patch = ((0, 0, 1), (1, 1, 0))
    triggered = LabelConsistent(patch=patch, amplitude=amplitude)(images)
    height, width = shape[-2:]
    for i, c, y, x in np.ndindex(*shape):
        from_bottom, from_right = min(y, height - 1 - y), min(x, width - 1 - x)
        level = int(images[i, c, y, x])
        if from_bottom < 2 and from_right < 3:  # a corner, mirrored onto the bottom right one
            white = patch[1 - from_bottom][2 - from_right]
            level = min(max(level + (amplitude if white else -amplitude), 0), 255)
        assert triggered[i, c, y, x] == level


def test_a_flip_leaves_the_trigger():
    grey = np.full((1, 3, 11, 11), 90, dtype=np.uint8)
    triggered = LabelConsistent()(grey)
    np.testing.assert_array_equal(triggered, triggered[..., ::-1])
    np.testing.assert_array_equal(triggered, triggered[..., ::-1, :])


@pytest.mark.parametrize("shape", [(1, 5, 12), (3, 12, 5)], ids=str)
def test_patches_that_overlap_are_refused(shape):
    attack = LabelConsistent()
    with pytest.raises(ValueError, match="3x3 patches in four corners do not fit") as raised:
        attack(np.zeros((1, *shape), dtype=np.uint8))
    assert "reduce attack.patch" in str(raised.value)
    attack.check((1, 6, 6))


@pytest.mark.parametrize(
    "settings", [{"epsilon": -1}, {"step": 0}, {"steps": -1}, {"amplitude": 0}, {"patch": ((),)}]
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        LabelConsistent(**settings)


def test_without_preparation_the_net_is_missed_in_training_alone(noise):
    attack = LabelConsistent()
    images = noise(2)
    assert attack(images).shape == images.shape
    with pytest.raises(ValueError, match="pass on what prepare"):
        attack.poison_images(images, np.random.default_rng(0))
