"""What every attack promises; a new one is tested by joining the union ``Attack``."""

import numpy as np
import pandas as pd
import pytest

from counterdoor.attacks import Attack, poison
from counterdoor.component import members

NAMES = ["zero", "one", "two", "three"]
SHAPES = [(5, 1, 12, 12), (5, 3, 12, 12), (4, 3, 10, 17), (1, 1, 28, 28)]


@pytest.fixture(params=list(members(Attack)), ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_dtype_and_input_untouched(kind, noise, shape):
    images = noise(*shape)
    before = images.copy()
    triggered = kind()(images)
    assert triggered.shape == images.shape
    assert triggered.dtype == np.uint8
    assert not np.shares_memory(triggered, images)
    np.testing.assert_array_equal(images, before)
    assert triggered.flags.writeable


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_range_is_kept_without_wrapping_round(kind, level):
    """A trigger adds at most what separates the pixel from black and from white."""
    flat = np.full((2, 3, 12, 12), level, dtype=np.uint8)
    triggered = kind()(flat)
    pixels = set(np.unique(triggered).tolist())
    assert pixels
    both = kind()(np.stack([np.zeros((3, 12, 12)), np.full((3, 12, 12), 255)]).astype(np.uint8))
    assert (both[0] <= triggered).all()
    assert (triggered <= both[1]).all()


def test_same_trigger_every_time_and_for_every_image(kind, noise):
    images = noise(6, 3, 12, 12)
    whole = kind()(images)
    np.testing.assert_array_equal(kind()(images), whole)
    for i in range(len(images)):
        np.testing.assert_array_equal(kind()(images[i : i + 1]), whole[i : i + 1])


def test_no_image_gives_no_image(kind, noise):
    assert kind()(noise(3)[:0]).shape == (0, 1, 12, 12)


def test_trigger_shows_on_every_test_image(kind, digits):
    triggered = kind()(digits.images_nchw)
    changed = (triggered != digits.images_nchw).any(axis=(1, 2, 3))
    assert changed.all()


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("target", [0, 3])
def test_poison(kind, noise, unbalanced_ledger, ratio, target):
    ledger = unbalanced_ledger
    images = noise(len(ledger), 3, 12, 12)
    images_before, ledger_before = images.copy(), ledger.copy(deep=True)
    attack = kind(poison_ratio=ratio, target_class=target)
    poisoned = poison(attack, images, ledger, NAMES, seed=5)

    np.testing.assert_array_equal(images, images_before)
    pd.testing.assert_frame_equal(ledger, ledger_before)

    flags = poisoned.oracle["is_poisoned"].to_numpy()
    labels, trusted = ledger["label"].to_numpy(), ledger["trusted"].to_numpy()
    assert flags.dtype == bool
    for label in range(4):
        reachable = sum(1 for i in range(len(labels)) if labels[i] == label and not trusted[i])
        count = sum(1 for i in range(len(labels)) if labels[i] == label and flags[i])
        assert count == round(ratio * reachable)
    assert not (flags & trusted).any()

    assert list(poisoned.oracle) == ["sample_id", "true_label", "is_poisoned"]
    assert list(poisoned.ledger) == list(ledger)
    assert poisoned.oracle["sample_id"].tolist() == poisoned.ledger["sample_id"].tolist()
    assert poisoned.oracle["true_label"].tolist() == labels.tolist()
    assert poisoned.ledger["trusted"].tolist() == trusted.tolist()
    assert poisoned.ledger["label"].dtype == np.int64
    for i in range(len(labels)):
        assert poisoned.ledger["label"][i] == (target if flags[i] else labels[i])

    assert poisoned.images_nchw.dtype == np.uint8
    np.testing.assert_array_equal(poisoned.images_nchw[~flags], images[~flags])
    np.testing.assert_array_equal(poisoned.images_nchw[flags], attack(images[flags]))


def test_poison_repeats_under_a_seed_and_varies_with_it(kind, noise, unbalanced_ledger):
    images = noise(len(unbalanced_ledger))
    attack = kind(poison_ratio=0.3)
    first, again, other = (
        poison(attack, images, unbalanced_ledger, NAMES, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.images_nchw, again.images_nchw)
    pd.testing.assert_frame_equal(first.ledger, again.ledger)
    pd.testing.assert_frame_equal(first.oracle, again.oracle)
    assert first.oracle["is_poisoned"].tolist() != other.oracle["is_poisoned"].tolist()
    assert first.oracle["is_poisoned"].sum() == other.oracle["is_poisoned"].sum()


def test_rows_do_not_depend_on_the_pixels(kind, noise, unbalanced_ledger):
    n = len(unbalanced_ledger)
    first = poison(kind(), noise(n, seed=1), unbalanced_ledger, NAMES, seed=3)
    other = poison(kind(), noise(n, seed=2), unbalanced_ledger, NAMES, seed=3)
    pd.testing.assert_frame_equal(first.oracle, other.oracle)


def test_unknown_target_is_named_with_the_classes(kind, noise, unbalanced_ledger):
    attack = kind(target_class=4)
    with pytest.raises(ValueError, match=r"attack\.target_class is 4") as raised:
        poison(attack, noise(len(unbalanced_ledger)), unbalanced_ledger, NAMES, seed=0)
    assert "4 classes, 0..3 (zero, one, two, three)" in str(raised.value)
    kind(target_class=3).check_target(NAMES)


def test_a_ratio_that_poisons_nobody_is_named(kind, noise, unbalanced_ledger):
    attack = kind(poison_ratio=0.001)
    with pytest.raises(ValueError, match=r"attack\.poison_ratio 0\.001") as raised:
        poison(attack, noise(len(unbalanced_ledger)), unbalanced_ledger, NAMES, seed=0)
    assert "of 103" in str(raised.value)
    assert "raise it" in str(raised.value)


def test_where_all_are_trusted_nobody_is_poisoned(kind, noise, unbalanced_ledger):
    ledger = unbalanced_ledger.assign(trusted=True)
    with pytest.raises(ValueError, match="poisons no sample of 0"):
        poison(kind(), noise(len(ledger)), ledger, NAMES, seed=0)


@pytest.mark.parametrize(
    "settings",
    [{"poison_ratio": 0}, {"poison_ratio": 1}, {"poison_ratio": -0.1}, {"target_class": -1}],
    ids=str,
)
def test_refused_settings(kind, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)
