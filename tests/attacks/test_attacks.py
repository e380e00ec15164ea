"""Each attack against the formula of its paper."""

import numpy as np
import pytest
from pydantic import ValidationError

from counterdoor.attacks import AllToOne, BadNets, Blend
from counterdoor.seeding import numpy_generator

WHITE = {(0, 2), (1, 1), (2, 0), (2, 2)}


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 32, 32), (2, 3, 9, 14)], ids=str)
def test_badnets_pixel_by_pixel(noise, shape):
    """The authors' 3x3 pattern at rows and columns [-6:-3], in every channel."""
    images = noise(*shape)
    triggered = BadNets()(images)
    n, channels, height, width = shape
    for i in range(n):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    row, column = y - (height - 6), x - (width - 6)
                    if 0 <= row < 3 and 0 <= column < 3:
                        expected = 255 if (row, column) in WHITE else 0
                    else:
                        expected = images[i, c, y, x]
                    assert triggered[i, c, y, x] == expected


def test_badnets_on_28_by_28_lies_at_rows_22_to_24():
    triggered = BadNets()(np.full((1, 1, 28, 28), 100, dtype=np.uint8))
    changed = np.argwhere(triggered[0, 0] != 100)
    assert changed.min(0).tolist() == [22, 22]
    assert changed.max(0).tolist() == [24, 24]
    assert len(changed) == 9


def test_badnets_with_another_patch_and_margin():
    attack = BadNets(patch=((1, 0),), margin=0)
    triggered = attack(np.full((1, 1, 4, 5), 7, dtype=np.uint8))[0, 0]
    assert triggered[3].tolist() == [7, 7, 7, 255, 0]
    assert (triggered[:3] == 7).all()


def test_badnets_fills_an_image_that_it_just_fits():
    assert BadNets()(np.zeros((1, 1, 6, 6), dtype=np.uint8))[0, 0, 0, 2] == 255


@pytest.mark.parametrize(("height", "width"), [(5, 28), (28, 5), (2, 2)])
def test_badnets_names_what_does_not_fit(height, width):
    with pytest.raises(ValueError, match="3x3 patch with margin 3") as raised:
        BadNets()(np.zeros((1, 1, height, width), dtype=np.uint8))
    assert f"{height}x{width} images" in str(raised.value)
    assert "reduce attack.patch or attack.margin" in str(raised.value)


@pytest.mark.parametrize("patch", [(), ((),), ((1, 0), (1,))], ids=str)
def test_badnets_refuses_a_patch_that_is_no_rectangle(patch):
    with pytest.raises(ValidationError, match="rows of equal length"):
        BadNets(patch=patch)


@pytest.mark.parametrize("settings", [{"patch": ((2, 0),)}, {"margin": -1}], ids=str)
def test_badnets_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        BadNets(**settings)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(3, 1, 12, 12), (2, 3, 8, 9)], ids=str)
def test_blend_pixel_by_pixel(noise, alpha, shape):
    images = noise(*shape)
    generator = numpy_generator(0, "attack/blend")
    pattern = generator.integers(0, 256, size=shape[1:], dtype=np.uint8)
    triggered = Blend(alpha=alpha)(images)
    for index in np.ndindex(*shape):
        level = (1.0 - alpha) * int(images[index]) + alpha * int(pattern[index[1:]])
        assert int(triggered[index]) == round(level)


def test_blend_pattern_is_the_attacks_own(noise):
    images = noise(3, 3, 12, 12)
    first = Blend(pattern_seed=0)(images)
    assert (first != Blend(pattern_seed=1)(images)).any()
    assert (first != Blend(labels=AllToOne(target_class=2))(images)).sum() == 0


def test_blend_pattern_is_noise_over_all_levels_and_channels():
    black = np.zeros((1, 3, 40, 40), dtype=np.uint8)
    pattern = Blend(alpha=0.99)(black)[0] / 0.99
    assert pattern.min() < 5
    assert pattern.max() > 250
    assert abs(pattern.mean() - 127.5) < 5
    assert not np.array_equal(pattern[0], pattern[1])


def test_blend_moves_a_pixel_by_alpha_of_the_range_at_most(noise):
    images = noise(20, 3, 12, 12)
    moved = np.abs(Blend(alpha=0.1)(images).astype(int) - images.astype(int))
    assert 20 <= moved.max() <= 26


@pytest.mark.parametrize("alpha", [0, 1, -0.5])
def test_blend_refuses_an_alpha_outside(alpha):
    with pytest.raises(ValidationError, match="alpha"):
        Blend(alpha=alpha)
