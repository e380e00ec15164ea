"""Each labeler against what it is said to do."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.covariance import LedoitWolf, ShrunkCovariance

from counterdoor.features import Patches
from counterdoor.feed import Samples
from counterdoor.labelers import NC, UD, VD, Case, Drop, Oracle, nc
from counterdoor.labelers.base import aligned
from counterdoor.ledger import DROPPED, new_ledger
from counterdoor.models import DigitsCNN, build_net
from counterdoor.recipe import Recipe
from counterdoor.stamp import Stamp
from counterdoor.training import fit, predict_classes, predict_logits

MODEL = DigitsCNN(width=4)
QUICK = Recipe(epochs=15, batch_size=50, learning_rate=0.02)


@pytest.fixture
def generator():
    return np.random.default_rng(11)


@pytest.fixture
def ledger(digits):
    """Every other digit is trusted; the labels of the others are all wrong."""
    trusted = np.arange(len(digits.labels)) % 2 == 0
    labels = np.where(trusted, digits.labels, (digits.labels + 1) % 10)
    return new_ledger(labels, trusted).assign(suspect=~trusted)


def label(labeler, digits, ledger, seed=0, stamp=None):
    stamp = stamp or Stamp(colour="white")
    return labeler(Case(digits.images_nchw, ledger, 10, MODEL, stamp), seed=seed)


def test_vd_names_real_digits(digits, ledger):
    """Trained on 200 trusted digits, it names the 200 others whatever label they came with."""
    labels = label(VD(recipe=QUICK), digits, ledger)
    others = ~ledger["trusted"].to_numpy()
    assert (labels[others] == digits.labels[others]).mean() > 0.7


@pytest.mark.parametrize("stamp_inputs", [True, False])
def test_vd_is_a_net_trained_on_the_trusted_rows(digits, ledger, stamp_inputs):
    rows = np.flatnonzero(ledger["trusted"])
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.02)
    stamp = Stamp(size=9, row=9, column=9, colour="white")
    own = np.array(digits.images_nchw[rows])
    net = build_net(MODEL, own, 10, seed=3, stream="relabel/init")
    samples = Samples(own, np.arange(len(rows)), digits.labels[rows])
    net.load_state_dict(fit(net, samples, recipe, seed=3, stream="relabel").state)
    images = np.array(digits.images_nchw)
    if stamp_inputs:
        images[:, :, 9:18, 9:18] = 255
    expected = predict_classes(net, images)
    labels = label(VD(recipe=recipe, stamp_inputs=stamp_inputs), digits, ledger, 3, stamp)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("surest", [0.1, 0.503, 0.9, 1.0])
def test_vd_names_the_suspects_of_which_it_is_surest(digits, ledger, surest):
    recipe, rows = Recipe(epochs=2, learning_rate=0.02), np.flatnonzero(ledger["trusted"])
    honest = ~ledger["suspect"] & ~ledger["trusted"] & (np.arange(len(ledger)) % 4 == 0)
    ledger = ledger.assign(suspect=ledger["suspect"] & (np.arange(len(ledger)) % 3 > 0) | honest)
    labeler = VD(recipe=recipe, stamp_inputs=False)
    every = label(labeler, digits, ledger)
    named = label(labeler.model_copy(update={"surest": surest}), digits, ledger)
    net = build_net(MODEL, np.array(digits.images_nchw[rows]), 10, seed=0, stream="relabel/init")
    samples = Samples(digits.images_nchw, rows, digits.labels[rows])
    net.load_state_dict(fit(net, samples, recipe, seed=0, stream="relabel").state)
    chances = predict_logits(net, digits.images_nchw).softmax(1).tolist()
    given = ledger["label"].tolist()
    sure = np.array(
        [max(c for k, c in enumerate(row) if k != given[i]) for i, row in enumerate(chances)]
    )
    suspects = np.flatnonzero(ledger["suspect"])
    first = suspects[np.argsort(-sure[suspects], kind="stable")]
    first = first[: math.ceil(surest * len(suspects))].tolist()
    confirmed = [row for row in first if every[row] == given[row]]
    assert (len(confirmed) > 0) == (surest > 0.6)
    expected = every.copy()
    for row in suspects:
        if row not in first or (surest < 1 and row in confirmed):
            expected[row] = DROPPED
    np.testing.assert_array_equal(named, expected)


def with_a_pattern(digits, ledger, seed=0):
    """Strong noise, the same on every suspect."""
    noise = np.random.default_rng(seed).integers(-90, 91, digits.images_nchw.shape[1:])
    triggered = np.clip(digits.images_nchw.astype(int) // 2 + 64 + noise, 0, 255)
    suspect = ledger["suspect"].to_numpy()[:, None, None, None]
    return np.where(suspect, triggered, digits.images_nchw // 2 + 64).astype(np.uint8)


@pytest.mark.parametrize("how_many", [0, 1, 37, 400])
def test_aligned_suspects_have_the_mean_of_the_others(generator, how_many):
    images = generator.integers(60, 190, (400, 3, 4, 5)).astype(np.uint8)
    suspect = np.zeros(400, dtype=bool)
    suspect[generator.permutation(400)[:how_many]] = True
    images[suspect, :, :2] -= 40
    before = images.copy()
    moved = aligned(images, suspect)
    np.testing.assert_array_equal(images, before)
    assert (moved.dtype, moved.shape) == (np.uint8, (how_many, 3, 4, 5))
    if how_many in (0, 400):
        np.testing.assert_array_equal(moved, images[suspect])
        return
    theirs = [[images[i] for i in range(400) if suspect[i] == who] for who in (True, False)]
    shift = sum(x.astype(float) for x in theirs[1]) / len(theirs[1])
    shift = shift - sum(x.astype(float) for x in theirs[0]) / len(theirs[0])
    slow = [np.minimum(np.maximum(np.rint(x + shift), 0), 255) for x in theirs[0]]
    np.testing.assert_array_equal(moved, np.stack(slow))


def test_aligning_is_the_same_in_small_parts(generator, monkeypatch):
    images = generator.integers(0, 256, (100, 1, 4, 4)).astype(np.uint8)
    suspect = generator.random(100) < 0.4
    at_once = aligned(images, suspect)
    monkeypatch.setattr("counterdoor.labelers.base._AT_A_TIME", 7)
    np.testing.assert_array_equal(aligned(images, suspect), at_once)


@pytest.mark.parametrize("labeler", [VD(recipe=QUICK, stamp_inputs=False), UD(recipe=QUICK)])
def test_aligned_suspects_are_named_as_if_they_had_no_pattern(digits, ledger, labeler):
    """The others are named as ever; of the suspects many more are named rightly."""
    if isinstance(labeler, UD):
        ledger = ledger.assign(trusted=False)
    images = with_a_pattern(digits, ledger)
    triggered = replace(digits, images_nchw=images)
    suspect = ledger["suspect"].to_numpy()
    usual = label(labeler, triggered, ledger)
    better = label(labeler.model_copy(update={"align": True}), triggered, ledger)
    np.testing.assert_array_equal(usual[~suspect], better[~suspect])
    right = [(named == digits.labels)[suspect].mean() for named in (usual, better)]
    assert right[1] > right[0] + 0.1
    assert right[1] > 0.7


@pytest.mark.parametrize("labeler", [VD(recipe=QUICK), UD(recipe=QUICK)])
def test_aligning_changes_nothing_where_nobody_is_suspected(digits, ledger, labeler):
    nobody = ledger.assign(suspect=False, label=digits.labels)
    usual = label(labeler, digits, nobody)
    aligning = labeler.model_copy(update={"align": True})
    np.testing.assert_array_equal(label(aligning, digits, nobody), usual)


def test_vd_stamps_its_inputs_only_when_asked(digits, ledger):
    """Under a stamp as large as the image all images are alike."""
    recipe, stamp = Recipe(epochs=2, learning_rate=0.02), Stamp(size=28, colour="white")
    assert len(set(label(VD(recipe=recipe), digits, ledger, stamp=stamp).tolist())) == 1
    unstamped = VD(recipe=recipe, stamp_inputs=False)
    assert len(set(label(unstamped, digits, ledger, stamp=stamp).tolist())) > 1


def test_vd_learns_nothing_from_images_that_are_not_trusted(digits, ledger):
    """Not even their mean and deviation: the attacker could set them."""
    trusted = ledger["trusted"].to_numpy()
    whitened = np.where(trusted[:, None, None, None], digits.images_nchw, np.uint8(255))
    labeler = VD(recipe=Recipe(epochs=2, learning_rate=0.02))
    labels = label(labeler, digits, ledger)
    others = label(labeler, replace(digits, images_nchw=whitened), ledger)
    np.testing.assert_array_equal(labels[trusted], others[trusted])


def test_vd_varies_with_the_seed(digits, ledger):
    labeler = VD(recipe=Recipe(epochs=1, learning_rate=0.02))
    first, other = (label(labeler, digits, ledger, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, other)


def test_vd_default_recipe_is_the_authors():
    recipe = VD().recipe
    rates = [recipe.learning_rate * recipe.schedule(epoch, 100) for epoch in (0, 19, 20, 59, 60)]
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4])
    assert (recipe.epochs, recipe.batch_size, recipe.momentum) == (100, 64, 0.9)
    assert (recipe.augment.crop_padding, recipe.augment.flip) == (4, True)
    assert VD().stamp_inputs


@pytest.mark.parametrize("gone", [[3], [0, 9], list(range(10))], ids=str)
def test_vd_names_the_classes_without_a_trusted_sample(ledger, gone):
    trusted = ledger["trusted"] & ~ledger["label"].isin(gone)
    with pytest.raises(ValueError, match="trusted samples of every class") as raised:
        VD().check(ledger.assign(trusted=trusted), 10)
    message = str(raised.value)
    assert str(gone) in message
    assert f"{trusted.sum()} are trusted" in message
    assert "raise ingest.trusted_share or choose another" in message


def test_vd_check_accepts_one_of_each_and_refuses_in_the_call(digits, ledger):
    VD().check(new_ledger(np.arange(10), np.ones(10)), 10)
    with pytest.raises(ValueError, match="trusted samples of every class"):
        label(VD(), digits, ledger.assign(trusted=False))


def test_ud_is_a_net_trained_on_the_unsuspected_rows(digits, ledger):
    rows = np.flatnonzero(~ledger["suspect"])
    own = np.array(digits.images_nchw[rows])
    net = build_net(MODEL, own, 10, seed=3, stream="relabel/init")
    samples = Samples(own, np.arange(len(rows)), ledger["label"].to_numpy()[rows])
    net.load_state_dict(fit(net, samples, QUICK, seed=3, stream="relabel").state)
    labels = label(UD(recipe=QUICK), digits, ledger, seed=3)
    np.testing.assert_array_equal(labels, predict_classes(net, digits.images_nchw))
    suspect = ledger["suspect"].to_numpy()
    assert (labels[suspect] == digits.labels[suspect]).mean() > 0.7


def test_ud_learns_nothing_from_the_suspects(digits, ledger):
    """Neither their labels nor the mean and deviation of their images."""
    suspect = ledger["suspect"].to_numpy()
    whitened = np.where(suspect[:, None, None, None], np.uint8(255), digits.images_nchw)
    labeler = UD(recipe=Recipe(epochs=2, learning_rate=0.02))
    labels = label(labeler, digits, ledger)
    others = label(labeler, replace(digits, images_nchw=whitened), ledger.assign(trusted=False))
    np.testing.assert_array_equal(labels[~suspect], others[~suspect])


def test_ud_trains_nothing_if_nobody_is_suspected_and_refuses_if_all_are(digits, ledger):
    nobody = ledger.assign(suspect=False)
    never = UD(recipe=Recipe(epochs=10**6))
    labels = label(never, digits, nobody)
    np.testing.assert_array_equal(labels, ledger["label"])
    assert not np.shares_memory(labels, nobody["label"].to_numpy())
    with pytest.raises(ValueError, match="everybody is suspected"):
        label(never, digits, ledger.assign(suspect=True))


def test_drop_drops(digits, ledger):
    assert (label(Drop(), digits, ledger) == DROPPED).all()


def test_the_oracle_says_the_truth(digits, ledger):
    case = Case(digits.images_nchw, ledger, 10, MODEL, Stamp(), true_labels=digits.labels)
    labels = Oracle()(case, seed=0)
    np.testing.assert_array_equal(labels, digits.labels)
    assert not np.shares_memory(labels, digits.labels)


def test_drop_needs_no_trusted_sample(digits, ledger):
    Drop().check(ledger.assign(trusted=False), 10)


@pytest.fixture
def clouds():
    """60 samples about 3 far centres in 5 dimensions, a third of them suspect.

    Those are all labelled 3, a class without an unsuspected sample.
    """
    generator = np.random.default_rng(3)
    true = generator.integers(0, 3, 60)
    features = generator.normal(size=(4, 5))[true] * 3 + generator.normal(size=(60, 5)) + 1
    suspect = np.arange(60) % 3 == 0
    labels = np.where(suspect, 3, true)
    ledger = new_ledger(labels, np.zeros(60, dtype=bool)).assign(suspect=suspect)
    return features.astype(np.float32), ledger, true


def slow_nearest(features, labels, suspect, scaling, distance="euclidean", shrinkage=None):
    """Sample by sample, number by number; the covariance within classes by Ledoit and Wolf."""
    rows = [[float(value) for value in row] for row in features]
    if scaling == "unit":
        rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]
    if scaling == "standardise":
        columns = []
        for column in zip(*rows, strict=True):
            mean = sum(column) / len(column)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in column) / len(column))
            columns.append([(v - mean) / deviation for v in column])
        rows = [list(row) for row in zip(*columns, strict=True)]
    centres = {}
    for label in sorted(set(labels.tolist())):
        own = [row for row, y, s in zip(rows, labels, suspect, strict=True) if y == label and not s]
        if own:
            centres[label] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    far = math.dist
    if distance == "mahalanobis":
        within = [
            np.subtract(row, centres[y])
            for row, y, s in zip(rows, labels, suspect, strict=True)
            if not s
        ]
        n, p = len(within), len(within[0])
        plain = sum(np.outer(x, x) for x in within) / n
        mean = sum(plain[i, i] for i in range(p)) / p
        spread = ((plain - mean * np.eye(p)) ** 2).sum()
        noise = sum(((np.outer(x, x) - plain) ** 2).sum() for x in within) / n**2
        part = min(noise, spread) / spread if shrinkage is None else shrinkage
        inverse = np.linalg.inv((1 - part) * plain + part * mean * np.eye(p))

        def far(a, b):
            return np.subtract(a, b) @ inverse @ np.subtract(a, b)

    return [min(centres, key=lambda label: far(centres[label], row)) for row in rows]


@pytest.mark.parametrize(
    "how",
    [
        {"distance": "euclidean"},
        {"distance": "mahalanobis"},
        {"distance": "mahalanobis", "shrinkage": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("scaling", ["none", "unit", "standardise"])
def test_nc_is_the_nearest_centre_of_the_unsuspected(noise, clouds, scaling, how, monkeypatch):
    monkeypatch.setattr(nc, "_AT_A_TIME", 7)
    features, ledger, true = clouds
    case = Case(noise(60), ledger, 4, MODEL, Stamp(colour="white"), features)
    labels = NC(scaling=scaling, **how)(case, seed=0)
    suspect = ledger["suspect"].to_numpy()
    assert labels.tolist() == slow_nearest(features, ledger["label"], suspect, scaling, **how)
    assert (labels == true)[suspect].mean() > 0.8


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3, 1.0])
def test_the_covariance_within_classes_against_scikit_learn(shrinkage):
    rng = np.random.default_rng(0)
    of_class = rng.integers(0, 3, 40)
    centres, rows = rng.normal(size=(3, 6)), rng.normal(size=(40, 6)) * np.arange(1, 7)
    other = LedoitWolf(assume_centered=True)
    if shrinkage is not None:
        other = ShrunkCovariance(assume_centered=True, shrinkage=shrinkage)
    np.testing.assert_allclose(
        nc.within_classes(rows, of_class, centres, shrinkage),
        other.fit(rows - centres[of_class]).covariance_,
    )


def test_nc_does_not_hear_what_every_class_differs_in_within_itself(noise, clouds):
    features, ledger, true = clouds
    direction = np.array([1, -1, 1, 1, -1]) * np.random.default_rng(4).normal(size=(60, 1)) * 30
    case = Case(noise(60), ledger, 4, MODEL, Stamp(colour="white"), features + direction)
    suspect = ledger["suspect"].to_numpy()
    right = [
        (NC(scaling="none", distance=distance)(case, seed=0) == true)[suspect].mean()
        for distance in ("euclidean", "mahalanobis")
    ]
    assert right[0] < 0.7
    assert right[1] > 0.8


@pytest.mark.parametrize("distance", ["euclidean", "mahalanobis"])
def test_nc_aligned_does_not_hear_what_the_suspects_have_in_common(noise, clouds, distance):
    features, ledger, true = clouds
    suspect = ledger["suspect"].to_numpy()
    pattern = np.outer(suspect, [20.0, -20, 20, 0, -20])
    case = Case(noise(60), ledger, 4, MODEL, Stamp(colour="white"), features + pattern)
    kept = case.features.copy()
    usual, moved = (
        NC(scaling="none", distance=distance, align=align)(case, seed=0) for align in (False, True)
    )
    np.testing.assert_array_equal(case.features, kept)
    np.testing.assert_array_equal(usual[~suspect], moved[~suspect])
    assert (usual == true)[suspect].mean() < 0.7
    assert (moved == true)[suspect].mean() > 0.8


def test_nc_aligned_without_suspects_is_as_usual(noise, clouds):
    features, ledger, _ = clouds
    nobody = ledger.assign(suspect=False)
    case = Case(noise(60), nobody, 4, MODEL, Stamp(colour="white"), features)
    named = [NC(align=align)(case, seed=0) for align in (False, True)]
    np.testing.assert_array_equal(*named)


def test_nc_looks_at_the_suspects_images_as_they_are_without_a_pattern(digits):
    """Three digits of ten have a blended picture that they share with no other."""
    rng = np.random.default_rng(3)
    suspect = rng.random(len(digits.labels)) < 0.3
    ledger = new_ledger(np.where(suspect, 3, digits.labels), np.zeros(len(suspect), dtype=bool))
    ledger = ledger.assign(suspect=suspect)
    picture = rng.integers(0, 256, digits.images_nchw.shape[1:])
    blended = digits.images_nchw * 0.7 + picture * 0.3
    images = np.where(suspect[:, None, None, None], blended, digits.images_nchw).astype(np.uint8)
    learner = Patches(filters=30)
    made = learner(images, model=MODEL, seed=0)
    bank = {name: torch.from_numpy(each) for name, each in made.items()}
    case = Case(
        *(images, ledger, 10, MODEL, Stamp(colour="white"), made["features"]),
        features_again=partial(learner.again, bank),
    )
    kept = case.features.copy()
    usual, moved = (NC(align_images=align)(case, seed=0) for align in (False, True))
    np.testing.assert_array_equal(case.features, kept)
    right = [(named == digits.labels)[suspect].mean() for named in (usual, moved)]
    assert right[0] < 0.5
    assert right[1] > 0.6
    by_hand = made["features"].copy()
    by_hand[suspect] = learner.again(bank, aligned(images, suspect))
    same = NC()(replace(case, features=by_hand, features_again=None), seed=0)
    np.testing.assert_array_equal(moved, same)


@pytest.mark.parametrize("distance", ["euclidean", "mahalanobis"])
def test_nc_takes_the_way_that_brings_the_suspects_nearer(noise, clouds, distance):
    """What one of the two moves them to is far from everything."""
    features, ledger, true = clouds
    suspect = ledger["suspect"].to_numpy()
    blank = Case(noise(60), ledger, 4, MODEL, Stamp(colour="white"), features)
    kind = {"scaling": "none", "distance": distance}
    mine = features[suspect]
    far = mine + np.random.default_rng(0).normal(size=mine.shape) * 20
    for given, again, better in ((mine, far, "align"), (far, mine, "align_images")):
        seen = features.copy()
        seen[suspect] = given
        case = replace(blank, features=seen, features_again=lambda _, again=again: again)
        expected = NC(**kind, **{better: True})(case, seed=0)
        chosen = NC(**kind, align=True, align_images=True)(case, seed=0)
        np.testing.assert_array_equal(chosen, expected)
        assert (chosen == true)[suspect].mean() > 0.8


def test_nc_cannot_move_images_without_their_features(noise, clouds):
    features, ledger, _ = clouds
    case = Case(noise(60), ledger, 4, MODEL, Stamp(colour="white"), features)
    with pytest.raises(ValueError, match=r"align_images needs .*: choose features_name=patches"):
        NC(align_images=True)(case, seed=0)
    nobody = replace(case, ledger=ledger.assign(suspect=False))
    named = [NC(align_images=align)(nobody, seed=0) for align in (False, True)]
    np.testing.assert_array_equal(*named)


def slow_cleaned(rows, labels, suspect, target, distance, rounds):
    """Names of the rows, with an endless variance along what sets the suspects apart."""
    centres = np.stack([rows[~suspect & (labels == k)].mean(0) for k in range(3)])
    common = rows[suspect].mean(0) - rows[~suspect].mean(0)
    within = np.eye(rows.shape[1])
    if distance == "mahalanobis":
        within = nc.within_classes(rows[~suspect], labels[~suspect], centres)
    deaf = np.linalg.inv(within + 1e9 * np.outer(common, common))

    def nearest(row, inverse):
        return min(range(3), key=lambda k: (row - centres[k]) @ inverse @ (row - centres[k]))

    mine = np.flatnonzero(~suspect & (labels == target))
    for _ in range(rounds):
        names = [nearest(rows[i], deaf) for i in mine]
        centres[target] = rows[
            [i for i, name in zip(mine, names, strict=True) if name == target]
        ].mean(0)
    seen = rows - np.outer(suspect, common)
    named = [nearest(row, np.linalg.inv(within)) for row in seen]
    if rounds:
        for i, name in zip(mine, names, strict=True):
            named[i] = name
    return named


@pytest.mark.parametrize("distance", ["euclidean", "mahalanobis"])
def test_nc_cleans_the_target_centre_of_poison_that_nobody_suspects(noise, distance):
    """Half of what came as class 0 has the suspects' trigger, and is of the other classes."""
    rng = np.random.default_rng(6)
    true = np.arange(300) % 3
    seen = 3 * np.eye(3, 4)[true] + rng.normal(size=(300, 4))
    suspect, poison = np.arange(300) < 90, (true > 0) & (np.arange(300) > 160)
    seen[suspect | poison, 3] += 6
    labels = np.where(suspect | poison, 0, true)
    ledger = new_ledger(labels, np.zeros(300, dtype=bool)).assign(suspect=suspect)
    case = Case(noise(300), ledger, 3, MODEL, Stamp(colour="white"), seen.astype(np.float32))
    kind = {"scaling": "none", "distance": distance, "align": True}
    named = [NC(**kind, cleaned=rounds)(case, seed=0) for rounds in (0, 1, 3)]
    for rounds, each in zip((0, 1, 3), named, strict=True):
        assert each.tolist() == slow_cleaned(seen, labels, suspect, 0, distance, rounds)
    for those in (suspect, poison):
        right = [(each == true)[those].mean() for each in named]
        assert right[2] > right[0] + 0.05
    # Where the suspects came with several labels, none is the target.
    several = replace(case, ledger=ledger.assign(label=np.where(suspect, true, labels)))
    usual, cleaned = (NC(**kind, cleaned=rounds)(several, seed=0) for rounds in (0, 3))
    np.testing.assert_array_equal(usual, cleaned)


def test_nc_does_not_hear_what_only_the_suspects_vary_in(noise, clouds):
    """A trigger that is stronger on one image than on another, in one direction."""
    features, ledger, true = clouds
    suspect = ledger["suspect"].to_numpy()
    strength = suspect * np.random.default_rng(5).normal(size=60) * 30
    case = Case(
        *(noise(60), ledger, 4, MODEL, Stamp(colour="white")),
        features + np.outer(strength, [1, -1, 1, 0, -1]),
    )
    deaf, hears = (
        NC(scaling="none", distance="mahalanobis", align=True, spread=spread)(case, seed=0)
        for spread in (0.0, 0.5)
    )
    assert (deaf == true)[suspect].mean() < 0.7
    assert (hears == true)[suspect].mean() > 0.75
    nobody = replace(case, ledger=ledger.assign(suspect=False))
    named = [NC(distance="mahalanobis", spread=spread)(nobody, seed=0) for spread in (0.0, 0.5)]
    np.testing.assert_array_equal(*named)


def test_the_surplus_is_a_covariance_that_only_the_first_have():
    rng = np.random.default_rng(0)
    others = rng.normal(size=(20_000, 3)) * [1.0, 2.0, 3.0]
    some = rng.normal(size=(20_000, 3)) * [2.0, 2.0, 1.0]
    np.testing.assert_allclose(nc.surplus(some, others), np.diag([3.0, 0.0, 0.0]), atol=0.15)


def test_spread_is_of_a_covariance():
    with pytest.raises(ValidationError, match="spread counts with distance: mahalanobis alone"):
        NC(spread=0.5)
    with pytest.raises(ValidationError, match="shrinkage counts with distance: mahalanobis alone"):
        NC(shrinkage=0.5)
    with pytest.raises(ValidationError, match="spread is of one way to look at the suspects"):
        NC(distance="mahalanobis", spread=0.5, align=True, align_images=True)


def test_nc_with_one_sample_a_class_is_euclidean(noise, clouds):
    """Nothing is known of what classes differ in."""
    features, ledger, _ = clouds
    of_class = [int(np.flatnonzero(ledger["label"] == k)[0]) for k in range(3)]
    ledger = ledger.assign(suspect=~np.isin(np.arange(60), of_class))
    case = Case(noise(60), ledger, 4, MODEL, Stamp(colour="white"), features)
    named = [NC(distance=distance)(case, seed=0) for distance in ("euclidean", "mahalanobis")]
    np.testing.assert_array_equal(*named)


def test_nc_needs_no_trusted_sample(ledger):
    NC().check(ledger.assign(trusted=False), 10)
