"""The stamp against a pixel-by-pixel version, and what it refuses."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from counterdoor.models import NormalisedNet
from counterdoor.stamp import Stamp, apply_stamp, stamp_contrast

MEAN = torch.tensor([0.25, 0.5, 0.75])
COLOURS = {
    "mean": [0.25, 0.5, 0.75],
    "white": [1.0, 1.0, 1.0],
    "black": [0.0, 0.0, 0.0],
    "bright": [2.0, 2.0, 2.0],
    (0.125, 0.0, 1.0): [0.125, 0.0, 1.0],
}


@pytest.fixture
def images():
    return torch.rand(5, 3, 7, 6, generator=torch.Generator().manual_seed(0))


def slow_stamp(images, size, row, column, levels, flags):
    out = images.clone()
    n, channels, height, width = images.shape
    for i in range(n):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    inside = row <= y < row + size and column <= x < column + size
                    if flags[i] and inside:
                        out[i, c, y, x] = levels[c]
    return out


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("size", "row", "column"), [(2, 0, 0), (1, 6, 5), (3, 4, 3), (3, 1, 2), (6, 0, 0)]
)
@pytest.mark.parametrize("flags", [None, [True, False, True, False, False], [False] * 5])
def test_apply_stamp_pixel_by_pixel(images, colour, size, row, column, flags):
    stamp = Stamp(size=size, row=row, column=column, colour=colour)
    original = images.clone()
    mask = None if flags is None else torch.tensor(flags)
    stamped = apply_stamp(images, stamp, MEAN, mask)
    expected = slow_stamp(original, size, row, column, COLOURS[colour], flags or [True] * 5)
    assert torch.equal(stamped, expected)
    assert torch.equal(images, original)
    assert stamped.dtype == images.dtype


def test_apply_stamp_takes_double_images_and_channels_last(images):
    stamp = Stamp(size=3, row=1, column=2, colour="white")
    expected = slow_stamp(images, 3, 1, 2, COLOURS["white"], [True] * 5)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply_stamp(last, stamp, MEAN), expected)
    double = apply_stamp(images.double(), stamp, MEAN)
    assert double.dtype == torch.float64
    assert torch.equal(double, expected.double())


def test_stamping_twice_is_stamping_once(images):
    once = apply_stamp(images, Stamp(), MEAN)
    assert torch.equal(apply_stamp(once, Stamp(), MEAN), once)


def test_mean_colour_is_zero_after_normalisation(images):
    """The authors write 0.0 on normalised images."""
    net = NormalisedNet(nn.Identity(), MEAN, torch.tensor([0.3, 0.2, 0.1]))
    seen = net(apply_stamp(images, Stamp(size=2, row=0, column=0, colour="mean"), MEAN))
    assert (seen[:, :, :2, :2] == 0).all()
    assert (seen[:, :, 2:, :] != 0).all()


def test_default_is_the_papers_stamp():
    stamp = Stamp()
    assert (stamp.size, stamp.row, stamp.column, stamp.colour) == (2, 0, 0, "mean")


@pytest.mark.parametrize("colour", COLOURS)
def test_levels(colour):
    levels = Stamp(colour=colour).levels(MEAN)
    assert levels.shape == (3,)
    assert levels.dtype == MEAN.dtype
    assert levels.tolist() == COLOURS[colour]


def test_levels_name_both_channel_counts():
    with pytest.raises(ValueError, match="2 levels") as raised:
        Stamp(colour=(0.5, 0.5)).levels(MEAN)
    assert "3 channels" in str(raised.value)
    assert "one level in [0, 1] per channel" in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"row": -1},
        {"column": -1},
        {"colour": "red"},
        {"colour": (0.5, 1.5)},
        {"colour": (-0.1,)},
        {"color": "white"},
    ],
    ids=str,
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Stamp(**settings)


def test_stamp_is_frozen():
    stamp = Stamp()
    with pytest.raises(ValidationError, match="frozen"):
        stamp.size = 3


@pytest.mark.parametrize(("size", "row", "column"), [(6, 0, 0), (1, 6, 5), (2, 5, 4)])
def test_check_fits_accepts_up_to_the_last_pixel(size, row, column):
    Stamp(size=size, row=row, column=column).check_fits(7, 6)


@pytest.mark.parametrize(
    ("size", "row", "column", "words"),
    [
        (7, 0, 0, ["rows 0..6", "columns 0..6", "7x6"]),
        (2, 6, 0, ["rows 6..7", "columns 0..1", "7x6"]),
        (2, 0, 5, ["rows 0..1", "columns 5..6", "7x6"]),
    ],
)
def test_check_fits_names_place_and_remedy(size, row, column, words):
    with pytest.raises(ValueError, match="outside") as raised:
        Stamp(size=size, row=row, column=column).check_fits(7, 6)
    for word in [*words, "reduce stamp.size, stamp.row or stamp.column"]:
        assert word in str(raised.value)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(("size", "row", "column"), [(2, 0, 0), (3, 2, 1)])
def test_contrast_pixel_by_pixel(colour, size, row, column, noise):
    images = noise(4, 3, 7, 6)
    differences = [
        abs(int(images[i, c, y, x]) / 255 - COLOURS[colour][c])
        for i in range(4)
        for c in range(3)
        for y in range(row, row + size)
        for x in range(column, column + size)
    ]
    stamp = Stamp(size=size, row=row, column=column, colour=colour)
    contrast = stamp_contrast(images, stamp, MEAN)
    assert isinstance(contrast, float)
    assert contrast == pytest.approx(sum(differences) / len(differences), abs=1e-12)


def test_contrast_of_what_cannot_and_what_must_be_seen():
    black = np.zeros((3, 3, 6, 6), dtype=np.uint8)
    assert stamp_contrast(black, Stamp(colour="black"), MEAN) == 0.0
    assert stamp_contrast(black, Stamp(colour="white"), MEAN) == 1.0
