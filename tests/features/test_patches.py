"""Patches: the responses against a slow computation, and what is refused."""

import logging
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from counterdoor.features import Patches
from counterdoor.features import patches as module
from counterdoor.models import DigitsCNN

MODEL = DigitsCNN()


def learnt(images, seed=0, **settings):
    made = Patches(**{"filters": 4, "side": 3} | settings)(images, model=MODEL, seed=seed)
    return made["features"], {name: torch.from_numpy(made[name]) for name in ("filters", "offsets")}


def slow_features(image, filters, offsets, side, threshold, parts):
    """Of one image, place after place, with each patch's own mean and deviation."""
    height, width = image.shape[-2:]
    down, across = height - side + 1, width - side + 1
    found = []
    for sign in (1, -1):
        for bank, offset in zip(filters, offsets, strict=True):
            for i in range(parts):
                for j in range(parts):
                    tops = range(i * down // parts, math.ceil((i + 1) * down / parts))
                    lefts = range(j * across // parts, math.ceil((j + 1) * across / parts))
                    beyond = []
                    for top in tops:
                        for left in lefts:
                            patch = image[:, top : top + side, left : left + side].ravel()
                            patch = patch.astype(float) - patch.mean()
                            patch /= math.sqrt((patch**2).mean() + 10)
                            response = float(patch @ bank.ravel()) + float(offset)
                            beyond.append(max(sign * response - threshold, 0))
                    found.append(sum(beyond) / len(beyond))
    return found


@pytest.mark.parametrize(("channels", "parts", "threshold"), [(1, 1, 0.0), (3, 2, 0.25), (3, 3, 1)])
def test_features_against_a_place_at_a_time(noise, channels, parts, threshold, monkeypatch):
    monkeypatch.setattr(module, "_CACHED", 1)  # an image at a time
    monkeypatch.setattr(module, "_FILTERS", 3)
    images = noise(5, channels)
    features, bank = learnt(images, parts=parts, threshold=threshold)
    filters, offsets = bank["filters"].numpy(), bank["offsets"].numpy()
    for image, row in zip(images, features, strict=True):
        slow = slow_features(image, filters, offsets, 3, threshold, parts)
        np.testing.assert_allclose(row, slow, atol=1e-4)
    monkeypatch.undo()
    np.testing.assert_allclose(
        learnt(images, parts=parts, threshold=threshold)[0], features, atol=1e-5
    )


def test_filters_are_whitened_patches_of_length_one(noise):
    """Seen by them, patches of mean 0 and deviation 1 have about as much in every direction."""
    images = noise(40, 3, 12, 12)
    _, bank = learnt(images, filters=200, side=2)
    filters = bank["filters"].numpy().reshape(200, -1)
    np.testing.assert_allclose(filters.sum(1), 0, atol=1e-4)
    windows = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(2, 3))
    drawn = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12).astype(float)
    drawn -= drawn.mean(1, keepdims=True)
    drawn /= np.sqrt((drawn**2).mean(1, keepdims=True) + 10)
    responses = drawn @ filters.T + bank["offsets"].numpy()
    # Noise is white already, so a unit filter's responses have a deviation of about 1.
    assert responses.std(0) == pytest.approx(np.ones(200), abs=0.2)
    assert np.abs(responses.mean(0)).max() < 0.1


def test_mirrored_images_have_the_same_features_with_mirror(noise):
    images = noise(6, 3)
    features, bank = learnt(images, mirror=True)
    mirrored = np.ascontiguousarray(images[..., ::-1])
    learner = Patches(filters=4, side=3, mirror=True)
    np.testing.assert_allclose(learner.again(bank, mirrored), features, atol=1e-5)
    plain = Patches(filters=4, side=3)
    both = [plain.again(bank, each) for each in (images, mirrored)]
    assert not np.allclose(*both)
    np.testing.assert_allclose(np.mean(both, axis=0), features, atol=1e-5)


def test_images_that_are_empty_in_part_have_features(digits):
    features, _ = learnt(digits.images_nchw[:50], filters=20, side=6)
    assert np.isfinite(features).all()
    assert (features.max(0) > 0).mean() > 0.9


def test_classes_are_told_apart_without_training(digits):
    """The centres of half of the digits name the other half."""
    features, _ = learnt(digits.images_nchw, filters=50, side=6)
    labels, half = digits.labels, len(digits.labels) // 2
    centres = np.stack([features[:half][labels[:half] == k].mean(0) for k in range(10)])
    distances = ((features[half:, None] - centres[None]) ** 2).sum(2)
    assert (distances.argmin(1) == labels[half:]).mean() > 0.8


def test_images_of_one_grey_are_refused():
    with pytest.raises(ValueError, match="all images are of one grey"):
        learnt(np.full((5, 1, 12, 12), 7, np.uint8))


def test_small_images_are_refused_before_anything_is_drawn(noise):
    learner = Patches(side=12, parts=2)
    for refuse in (
        lambda: learner.check(MODEL, noise(3)),
        lambda: learner(noise(3), model=MODEL, seed=0),
    ):
        with pytest.raises(ValueError, match=r"images of 12 x 12 are too small for 2 x 2 parts"):
            refuse()
    Patches(side=11, parts=2).check(MODEL, noise(3))


def test_progress_is_told(noise, caplog):
    with caplog.at_level(logging.DEBUG, logger="counterdoor.features.patches"):
        learnt(noise(7))
    told = [record.progress for record in caplog.records]
    assert told[-1]["done"] == told[-1]["total"] == 7
    assert told[-1]["rate"] > 0


@pytest.mark.parametrize(
    "settings", [{"filters": 0}, {"side": 1}, {"parts": 0}, {"threshold": -1}], ids=str
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError):
        Patches(**settings)
