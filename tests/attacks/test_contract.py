"""What every attack promises; a new one is tested by joining the union ``Attack``."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from counterdoor.attacks import (
    AllToAll,
    AllToOne,
    Attack,
    AttackBase,
    AttackerNet,
    Dynamic,
    LabelConsistent,
    NoAttack,
    TrojanNN,
    draw_rows,
    poison,
)
from counterdoor.component import members
from counterdoor.models import DigitsCNN
from counterdoor.recipe import Recipe
from counterdoor.seeding import numpy_generator

NAMES = ["zero", "one", "two", "three"]
SHAPES = [(5, 1, 12, 12), (5, 3, 12, 12), (4, 3, 10, 17), (1, 1, 28, 28)]
SIZE = (3, 12, 14)
"""Of images that every attack accepts; a wave may vanish in others."""
KINDS = [kind for kind in members(Attack) if kind is not NoAttack]
TINY_NET = AttackerNet(
    model=DigitsCNN(width=1, hidden=4), recipe=Recipe(epochs=1, batch_size=64, learning_rate=0.01)
)
SHORT: dict[type[AttackBase], dict[str, object]] = {
    LabelConsistent: {"net": TINY_NET, "steps": 2},
    TrojanNN: {"net": TINY_NET, "steps": 2},
    Dynamic: {"net": TINY_NET, "width": 4, "mask_epochs": 1},
}
"""Settings under which the preparation of an attack that needs one takes no time."""


def build(kind, **settings):
    """An attack with these settings; without its covers where they would leave nobody clean."""
    settings = SHORT.get(kind, {}) | settings
    ratio, cover = (
        settings.get(name, kind.model_fields[name].default)
        for name in ("poison_ratio", "cover_ratio")
    )
    return kind(**settings if ratio + cover < 1 else settings | {"cover_ratio": 0.0})


def of(target):
    return AllToOne(target_class=target)


def prepared_for(attack, shape, noise):
    images = noise(24, *shape[1:], seed=9)
    return attack.prepare(images, np.arange(24) % 4, 4, seed=0)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture(
    params=[kind for kind in KINDS if not kind.clean_label], ids=lambda kind: kind.__name__
)
def relabelling(request):
    """A kind that changes labels."""
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_dtype_and_input_untouched(kind, noise, shape):
    images = noise(*shape)
    before = images.copy()
    attack = build(kind)
    prepared = prepared_for(attack, shape, noise)
    kept = {name: tensor.clone() for name, tensor in prepared.items()}
    generators = [np.random.default_rng(seed) for seed in range(2)]
    for changed in (
        attack(images, prepared),
        attack.poison_images(images, generators[0], prepared),
        attack.cover_images(images, generators[1], prepared),
    ):
        assert changed.shape == images.shape
        assert changed.dtype == np.uint8
        assert not np.shares_memory(changed, images)
        assert changed.flags.writeable
    np.testing.assert_array_equal(images, before)
    assert all(torch.equal(prepared[name], kept[name]) for name in kept)


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_range_is_kept_without_wrapping_round(kind, noise, level):
    """A trigger of pixels adds at most what separates the pixel from black and from white."""
    if build(kind).needs_preparation:
        pytest.skip("a net's trigger may depend on the whole image")
    flat = np.full((2, 3, 12, 12), level, dtype=np.uint8)
    ends = np.stack([np.zeros((3, 12, 12)), np.full((3, 12, 12), 255)]).astype(np.uint8)
    attack = build(kind)
    for change in (attack, lambda images: attack.poison_images(images, np.random.default_rng(0))):
        triggered = change(flat)
        # The first image of a batch draws the same numbers whatever its pixels are.
        assert (change(ends[:1])[0] <= triggered[0]).all()
        assert (triggered[0] <= change(ends[1:])[0]).all()


def test_preparation_is_plain_tensors_and_repeats(kind, noise):
    attack = build(kind)
    first, again = (prepared_for(attack, (1, 1, 12, 12), noise) for _ in range(2))
    assert bool(first) == attack.needs_preparation
    assert set(first) == set(again)
    for name, tensor in first.items():
        assert isinstance(tensor, torch.Tensor)
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        assert torch.equal(tensor, again[name])


def test_same_trigger_every_time_and_for_every_image(kind, noise):
    images = noise(6, 3, 12, 12)
    attack = build(kind)
    prepared = prepared_for(attack, images.shape, noise)
    whole = attack(images, prepared)
    np.testing.assert_array_equal(attack(images, prepared), whole)
    for i in range(len(images)):
        np.testing.assert_array_equal(attack(images[i : i + 1], prepared), whole[i : i + 1])


def test_training_forms_repeat_under_a_generator(kind, noise):
    images = noise(6, 3, 12, 12)
    attack = build(kind)
    prepared = prepared_for(attack, images.shape, noise)
    for form in (attack.poison_images, attack.cover_images):
        first, again = (form(images, np.random.default_rng(4), prepared) for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_no_image_gives_no_image(kind, noise):
    attack = build(kind)
    prepared = prepared_for(attack, (1, 1, 12, 12), noise)
    none = noise(3)[:0]
    generator = np.random.default_rng(0)
    assert attack(none, prepared).shape == (0, 1, 12, 12)
    assert attack.poison_images(none, generator, prepared).shape == (0, 1, 12, 12)


def test_trigger_shows_on_every_test_image(kind, digits):
    attack = build(kind)
    prepared = attack.prepare(digits.images_nchw[:40], digits.labels[:40], 10, seed=0)
    triggered = attack(digits.images_nchw, prepared)
    changed = (triggered != digits.images_nchw).any(axis=(1, 2, 3))
    assert changed.all()


def test_what_is_assumed_of_the_attacker_is_one_line(kind):
    assert len(kind.capability) > 15
    assert "\n" not in kind.capability
    assert ("target class" in kind.capability) == kind.clean_label


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("target", [1, 3])
def test_poison(kind, noise, unbalanced_ledger, ratio, target):
    ledger = unbalanced_ledger
    images = noise(len(ledger), *SIZE)
    images_before, ledger_before = images.copy(), ledger.copy(deep=True)
    attack = build(kind, poison_ratio=ratio, labels=of(target))
    labels, trusted = ledger["label"].to_numpy(), ledger["trusted"].to_numpy()
    prepared = attack.prepare(images, labels, len(NAMES), seed=5)
    poisoned = poison(attack, images, ledger, NAMES, seed=5, prepared=prepared)

    np.testing.assert_array_equal(images, images_before)
    pd.testing.assert_frame_equal(ledger, ledger_before)

    flags = poisoned.oracle["is_poisoned"].to_numpy()
    covers = poisoned.oracle["is_cover"].to_numpy()
    assert flags.dtype == covers.dtype == bool
    for label in range(4):
        reachable = sum(1 for i in range(len(labels)) if labels[i] == label and not trusted[i])
        attacked = label == target or not kind.clean_label
        for marked, share in (
            (flags, ratio if attacked else 0.0),
            (covers, attack.cover_ratio),
        ):
            count = sum(1 for i in range(len(labels)) if labels[i] == label and marked[i])
            assert count == round(share * reachable)
    assert not (flags & covers).any()
    assert not ((flags | covers) & trusted).any()

    assert list(poisoned.oracle) == ["sample_id", "true_label", "is_poisoned", "is_cover"]
    assert list(poisoned.ledger) == list(ledger)
    assert poisoned.oracle["sample_id"].tolist() == poisoned.ledger["sample_id"].tolist()
    assert poisoned.oracle["true_label"].tolist() == labels.tolist()
    assert poisoned.ledger["trusted"].tolist() == trusted.tolist()
    assert poisoned.ledger["label"].dtype == np.int64
    for i in range(len(labels)):
        assert poisoned.ledger["label"][i] == (target if flags[i] else labels[i])

    assert poisoned.images_nchw.dtype == np.uint8
    others = ~flags & ~covers
    np.testing.assert_array_equal(poisoned.images_nchw[others], images[others])
    changed = (poisoned.images_nchw != images).any(axis=(1, 2, 3))
    assert changed[flags].all()
    expected = attack.poison_images(images[flags], numpy_generator(5, "attack/poisoned"), prepared)
    np.testing.assert_array_equal(poisoned.images_nchw[flags], expected)


def test_covers_have_the_cover_form_and_their_own_label(relabelling, noise, unbalanced_ledger):
    ledger = unbalanced_ledger
    images, labels = noise(len(ledger), *SIZE), ledger["label"].to_numpy()
    attack = build(relabelling, poison_ratio=0.3, cover_ratio=0.25)
    prepared = attack.prepare(images, labels, len(NAMES), seed=5)
    poisoned = poison(attack, images, ledger, NAMES, seed=5, prepared=prepared)
    covers = poisoned.oracle["is_cover"].to_numpy()
    for label in range(4):
        reachable = ((labels == label) & ~ledger["trusted"]).sum()
        assert covers[labels == label].sum() == round(0.25 * reachable)
    assert not (covers & poisoned.oracle["is_poisoned"]).any()
    assert not (covers & ledger["trusted"]).any()
    assert poisoned.ledger["label"][covers].tolist() == labels[covers].tolist()
    expected = attack.cover_images(images[covers], numpy_generator(5, "attack/cover"), prepared)
    np.testing.assert_array_equal(poisoned.images_nchw[covers], expected)
    assert (poisoned.images_nchw[covers] != images[covers]).any(axis=(1, 2, 3)).all()


def test_covers_do_not_change_who_is_poisoned(relabelling, unbalanced_ledger):
    without, with_covers = (
        draw_rows(
            build(relabelling, poison_ratio=0.3, cover_ratio=share),
            unbalanced_ledger,
            NAMES,
            seed=1,
        )
        for share in (0.0, 0.5)
    )
    np.testing.assert_array_equal(without.poisoned, with_covers.poisoned)
    assert len(without.cover) == 0


def test_all_to_all_gives_the_next_class_or_is_refused(kind, noise, unbalanced_ledger):
    if kind.clean_label or not kind.all_to_all:
        with pytest.raises(ValidationError, match=r"labels is all_to_all, but .* use all_to_one"):
            build(kind, labels=AllToAll())
        return
    ledger = unbalanced_ledger
    images, labels = noise(len(ledger), *SIZE), ledger["label"].to_numpy()
    attack = build(kind, poison_ratio=0.4, labels=AllToAll())
    prepared = attack.prepare(images, labels, len(NAMES), seed=5)
    poisoned = poison(attack, images, ledger, NAMES, seed=5, prepared=prepared)
    flags = poisoned.oracle["is_poisoned"].tolist()
    assert any(flags)
    for row, flag in enumerate(flags):
        expected = [1, 2, 3, 0][labels[row]] if flag else labels[row]
        assert poisoned.ledger["label"][row] == expected


def test_poison_repeats_under_a_seed_and_varies_with_it(kind, noise, unbalanced_ledger):
    images, labels = noise(len(unbalanced_ledger), *SIZE), unbalanced_ledger["label"].to_numpy()
    attack = build(kind, poison_ratio=0.3, labels=of(3))
    prepared = attack.prepare(images, labels, len(NAMES), seed=0)
    first, again, other = (
        poison(attack, images, unbalanced_ledger, NAMES, seed=seed, prepared=prepared)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.images_nchw, again.images_nchw)
    pd.testing.assert_frame_equal(first.ledger, again.ledger)
    pd.testing.assert_frame_equal(first.oracle, again.oracle)
    assert first.oracle["is_poisoned"].tolist() != other.oracle["is_poisoned"].tolist()
    assert first.oracle["is_poisoned"].sum() == other.oracle["is_poisoned"].sum()


def test_unknown_target_is_named_with_the_classes(kind, noise, unbalanced_ledger):
    attack = build(kind, labels=of(4))
    with pytest.raises(ValueError, match=r"attack\.labels\.target_class is 4") as raised:
        poison(attack, noise(len(unbalanced_ledger), *SIZE), unbalanced_ledger, NAMES, seed=0)
    assert "4 classes, 0..3 (zero, one, two, three)" in str(raised.value)
    build(kind, labels=of(3)).labels.check(NAMES)


def test_a_ratio_that_poisons_nobody_is_named(kind, noise, unbalanced_ledger):
    attack = build(kind, poison_ratio=0.001, labels=of(3))
    with pytest.raises(ValueError, match=r"attack\.poison_ratio 0\.001") as raised:
        poison(attack, noise(len(unbalanced_ledger), *SIZE), unbalanced_ledger, NAMES, seed=0)
    assert ("of 51" if kind.clean_label else "of 103") in str(raised.value)
    assert "raise it, or choose the attack 'none'" in str(raised.value)


def test_where_all_are_trusted_nobody_is_poisoned(kind, noise, unbalanced_ledger):
    ledger = unbalanced_ledger.assign(trusted=True)
    with pytest.raises(ValueError, match="poisons no sample of 0"):
        poison(build(kind), noise(len(ledger), *SIZE), ledger, NAMES, seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"poison_ratio": 0},
        {"poison_ratio": 1},
        {"poison_ratio": -0.1},
        {"cover_ratio": -0.1},
        {"cover_ratio": 1},
        {"poison_ratio": 0.5, "cover_ratio": 0.5},
        {"labels": {"name": "all_to_one", "target_class": -1}},
    ],
    ids=str,
)
def test_refused_settings(kind, settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        kind(**settings)


def test_a_clean_label_attack_has_no_covers(kind):
    if kind.clean_label:
        with pytest.raises(ValidationError, match=r"cover_ratio is 0\.1, but poisoned images"):
            build(kind, cover_ratio=0.1)
    else:
        assert build(kind, cover_ratio=0.1).cover_ratio == 0.1


def test_yaml_round_trip(kind):
    attack = build(kind, poison_ratio=0.07, labels=of(2))
    text = yaml.safe_dump(attack.model_dump(mode="json"))
    again = TypeAdapter(Attack).validate_python(yaml.safe_load(text))
    assert type(again) is kind
    assert again == attack
