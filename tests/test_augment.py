"""Augmentation against loops that draw the same numbers."""

import pytest
import torch
from pydantic import ValidationError

from counterdoor.augment import Augment, random_crop, random_cutout, random_flip
from counterdoor.stamp import Stamp


@pytest.fixture
def images():
    """Strictly positive, so that a black pixel is one that was filled."""
    generator = torch.Generator().manual_seed(3)
    return 0.1 + 0.9 * torch.rand(40, 2, 6, 5, generator=generator)


def seeded(seed=11):
    return torch.Generator().manual_seed(seed)


def slow_crop(images, padding, generator):
    n, channels, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, n), generator=generator).tolist()
    out = torch.zeros_like(images)
    for i in range(n):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    from_y, from_x = y + offsets[0][i] - padding, x + offsets[1][i] - padding
                    if 0 <= from_y < height and 0 <= from_x < width:
                        out[i, c, y, x] = images[i, c, from_y, from_x]
    return out, offsets


def slow_flip(images, generator):
    width = images.shape[-1]
    draws = torch.rand(len(images), generator=generator).tolist()
    out = images.clone()
    for i, draw in enumerate(draws):
        if draw < 0.5:
            for x in range(width):
                out[i, :, :, x] = images[i, :, :, width - 1 - x]
    return out


def slow_cutout(images, size, generator):
    n, _, height, width = images.shape
    tops = torch.randint(max(height - size, 0) + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(max(width - size, 0) + 1, (n,), generator=generator).tolist()
    out = images.clone()
    for i in range(n):
        for y in range(height):
            for x in range(width):
                if tops[i] <= y < tops[i] + size and lefts[i] <= x < lefts[i] + size:
                    out[i, :, y, x] = 0.0
    return out


@pytest.mark.parametrize("padding", [1, 2, 4, 7])
def test_crop(images, padding):
    original = images.clone()
    cropped = random_crop(images, padding, seeded())
    expected, offsets = slow_crop(original, padding, seeded())
    assert torch.equal(cropped, expected)
    assert torch.equal(images, original)
    assert len({tuple(offset) for offset in zip(*offsets, strict=True)}) > 5


def test_crop_reaches_both_edges(images):
    """With offsets 0 and 2 * padding an image moves by the whole padding either way."""
    _, offsets = slow_crop(images, 1, seeded())
    assert {0, 1, 2} == set(offsets[0]) == set(offsets[1])


def slow_mirror(index, size):
    """Walk from outside to the edge and back in again."""
    if index < 0:
        return -index
    return index if index < size else 2 * (size - 1) - index


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_crop_mirrored_at_the_edge(images, padding):
    n, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, n), generator=seeded()).tolist()
    expected = torch.empty_like(images)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                from_y = slow_mirror(y + offsets[0][i] - padding, height)
                from_x = slow_mirror(x + offsets[1][i] - padding, width)
                expected[i, :, y, x] = images[i, :, from_y, from_x]
    assert torch.equal(random_crop(images, padding, seeded(), "reflect"), expected)
    augment = Augment(crop_padding=padding, crop_fill="reflect")
    assert torch.equal(augment(images, seeded()), expected)


def test_an_image_too_small_to_be_mirrored_is_refused(images):
    with pytest.raises(ValueError, match="crop_padding 5 cannot mirror images of 6x5"):
        Augment(crop_padding=5, crop_fill="reflect")(images, seeded())


@pytest.mark.parametrize("fill", ["black", "reflect"])
def test_bytes_are_augmented_as_floats_are(images, fill):
    bytes_nchw = (images * 255).to(torch.uint8)
    augment = Augment(crop_padding=2, crop_fill=fill, flip=True, cutout=3)
    augmented = augment(bytes_nchw, seeded())
    assert augmented.dtype == torch.uint8
    assert torch.equal(augmented.float(), augment(bytes_nchw.float(), seeded()))


def test_flip(images):
    original = images.clone()
    flipped = random_flip(images, seeded())
    assert torch.equal(flipped, slow_flip(original, seeded()))
    assert torch.equal(images, original)
    kept = (flipped == original).flatten(1).all(1)
    assert kept.any()
    assert not kept.all()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_cutout(images, size):
    original = images.clone()
    cut = random_cutout(images, size, seeded())
    assert torch.equal(cut, slow_cutout(original, size, seeded()))
    assert torch.equal(images, original)
    assert ((cut == 0).sum((2, 3)) == size * size).all()


def test_cutout_larger_than_the_image_blackens_all_of_it(images):
    assert (random_cutout(images, 9, seeded()) == 0).all()


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(crop_padding=2),
        Augment(flip=True),
        Augment(cutout=2),
        Augment(crop_padding=2, flip=True),
        Augment(crop_padding=2, flip=True, cutout=3),
    ],
    ids=str,
)
def test_augment_is_crop_then_flip_then_cutout(images, augment):
    generator = seeded()
    expected = images
    if augment.crop_padding:
        expected, _ = slow_crop(expected, augment.crop_padding, generator)
    if augment.flip:
        expected = slow_flip(expected, generator)
    if augment.cutout:
        expected = slow_cutout(expected, augment.cutout, generator)
    original = images.clone()
    augmented = augment(images, seeded())
    assert torch.equal(augmented, expected)
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    assert torch.equal(images, original)


def test_augment_keeps_the_memory_format_equal_in_value(images):
    augment = Augment(crop_padding=2, flip=True, cutout=3)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(last, seeded()), augment(images, seeded()))


def test_augment_draws_from_its_generator_alone(images):
    augment = Augment(crop_padding=2, flip=True, cutout=3)
    before = torch.get_rng_state()
    first = augment(images, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, augment(images, seeded()))
    assert not torch.equal(first, augment(images, seeded(12)))


def test_off_by_default_and_no_draw(images):
    generator = seeded()
    assert torch.equal(Augment()(images, generator), images)
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize(
    "settings",
    [{"crop_padding": -1}, {"cutout": -1}, {"crop_fill": "grey"}, {"rotate": 3}],
    ids=str,
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Augment(**settings)


MEAN = torch.tensor([0.13, 0.5])


@pytest.mark.parametrize("augment", [Augment(crop_padding=4), Augment(cutout=8)], ids=str)
@pytest.mark.parametrize("colour", ["black", (0.0, 0.0), (0.01, 0.019)], ids=str)
def test_a_stamp_that_looks_like_padding_is_refused(augment, colour):
    with pytest.raises(ValueError, match="no signal") as raised:
        augment.check_stamp(Stamp(colour=colour), MEAN)
    message = str(raised.value)
    assert repr(colour) in message
    assert "choose another stamp.colour" in message
    assert "set crop_padding and cutout to 0" in message


def test_the_mean_of_dark_images_looks_like_padding_too():
    dark = torch.tensor([0.01, 0.01])
    with pytest.raises(ValueError, match="'mean'"):
        Augment(crop_padding=4).check_stamp(Stamp(colour="mean"), dark)


@pytest.mark.parametrize("augment", [Augment(crop_padding=4), Augment(cutout=8)], ids=str)
@pytest.mark.parametrize("colour", ["white", "mean", (0.0, 0.03)], ids=str)
def test_a_stamp_that_differs_from_padding_is_accepted(augment, colour):
    augment.check_stamp(Stamp(colour=colour), MEAN)


def test_mirrored_padding_has_no_colour_of_its_own():
    Augment(crop_padding=4, crop_fill="reflect").check_stamp(Stamp(colour="black"), MEAN)
    with pytest.raises(ValueError, match="no signal"):
        Augment(crop_padding=4, crop_fill="reflect", cutout=2).check_stamp(
            Stamp(colour="black"), MEAN
        )


def test_without_padding_any_colour_is_accepted():
    Augment(flip=True).check_stamp(Stamp(colour="black"), MEAN)
