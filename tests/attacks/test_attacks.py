"""Each attack against the formula of its paper, and the settings that it refuses."""

import math

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from counterdoor.attacks import SIG, AdapBlend, AdapPatch, AllToOne, BadNets, Blend, WaNet
from counterdoor.attacks.pixels import CHUNK
from counterdoor.seeding import numpy_generator, torch_generator

WHITE = {(0, 2), (1, 1), (2, 0), (2, 2)}


@pytest.fixture
def picture(tmp_path):
    """A colour image file, 6 high and 4 wide, and its pixels (3, 6, 4)."""
    pixels = np.random.default_rng(3).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return str(path), pixels.transpose(2, 0, 1)


# --- BadNets -----------------------------------------------------------------------


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


def test_badnets_with_a_patch_from_a_file(noise, picture):
    path, pixels = picture
    images = noise(2, 3, 9, 8)
    triggered = BadNets(patch_image=path, margin=1)(images)
    np.testing.assert_array_equal(triggered[:, :, 2:8, 3:7], np.stack([pixels, pixels]))
    triggered[:, :, 2:8, 3:7] = images[:, :, 2:8, 3:7]
    np.testing.assert_array_equal(triggered, images)


def test_a_colour_patch_is_grey_on_grey_images(noise, picture):
    path, pixels = picture
    triggered = BadNets(patch_image=path, margin=0)(noise(1, 1, 6, 4))
    # ITU-R 601, as Pillow turns colour to grey.
    expected = np.tensordot([0.299, 0.587, 0.114], pixels.astype(float), axes=1)
    assert np.abs(triggered[0, 0] - expected).max() <= 1


def test_badnets_fills_an_image_that_it_just_fits():
    assert BadNets()(np.zeros((1, 1, 6, 6), dtype=np.uint8))[0, 0, 0, 2] == 255


@pytest.mark.parametrize(("height", "width"), [(5, 28), (28, 5), (2, 2)])
def test_badnets_names_what_does_not_fit(height, width):
    with pytest.raises(ValueError, match="3x3 patch with margin 3") as raised:
        BadNets()(np.zeros((1, 1, height, width), dtype=np.uint8))
    assert f"{height}x{width} images" in str(raised.value)
    assert "reduce attack.patch or attack.margin" in str(raised.value)
    with pytest.raises(ValueError, match="3x3 patch with margin 3"):
        BadNets().check((1, height, width))


@pytest.mark.parametrize("patch", [(), ((),), ((1, 0), (1,))], ids=str)
def test_badnets_refuses_a_patch_that_is_no_rectangle(patch):
    with pytest.raises(ValidationError, match="rows of equal length"):
        BadNets(patch=patch)


@pytest.mark.parametrize("settings", [{"patch": ((2, 0),)}, {"margin": -1}], ids=str)
def test_badnets_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        BadNets(**settings)


# --- patterns from files -------------------------------------------------------------


@pytest.mark.parametrize(
    "attack_from",
    [
        lambda path: BadNets(patch_image=path),
        lambda path: Blend(pattern=path),
        lambda path: AdapBlend(pattern=path),
    ],
    ids=["badnets", "blend", "adap_blend"],
)
def test_a_file_that_cannot_be_used_is_named_before_any_work(tmp_path, picture, attack_from):
    missing, text = tmp_path / "missing.png", tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match=r"attack\.(pattern|patch_image) is '.*missing"):
        attack_from(str(missing)).check((3, 28, 28))
    with pytest.raises(ValueError, match="there is no such file"):
        attack_from(str(missing)).check((3, 28, 28))
    with pytest.raises(ValueError, match=r"text.png', which is no image"):
        attack_from(str(text)).check((3, 28, 28))
    with pytest.raises(ValueError, match="is for images with 1 or 3 channels; these have 4"):
        attack_from(picture[0]).check((4, 28, 28))
    attack_from(picture[0]).check((3, 28, 28))


# --- Blend -----------------------------------------------------------------------------


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


def test_blend_with_a_pattern_from_a_file_of_the_images_size(noise, picture):
    path, pixels = picture
    images = noise(2, 3, 6, 4)
    triggered = Blend(alpha=0.3, pattern=path)(images)
    for index in np.ndindex(*images.shape):
        level = (1.0 - 0.3) * int(images[index]) + 0.3 * int(pixels[index[1:]])
        assert int(triggered[index]) == round(level)


def test_a_pattern_of_another_size_is_stretched_over_the_image(tmp_path):
    """Left half black, right half white: so it stays at any size."""
    pixels = np.zeros((10, 20), dtype=np.uint8)
    pixels[:, 10:] = 255
    path = tmp_path / "halves.png"
    Image.fromarray(pixels).save(path)
    pattern = Blend(alpha=0.99, pattern=str(path))(np.zeros((1, 3, 40, 60), dtype=np.uint8))[0]
    assert pattern.shape == (3, 40, 60)
    assert (pattern[:, :, :27] == 0).all()
    assert (pattern[:, :, 33:] > 250).all()


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


# --- SIG ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "frequency"), [(40, 6), (30, 6), (12.5, 2.5)])
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 9, 14)], ids=str)
def test_sig_pixel_by_pixel(noise, shape, delta, frequency):
    images = noise(*shape)
    triggered = SIG(delta=delta, frequency=frequency)(images)
    for index in np.ndindex(*shape):
        wave = delta / 255 * math.sin(2 * math.pi * index[3] * frequency / shape[3])
        level = 255 * min(1.0, max(0.0, int(images[index]) / 255 + wave))
        assert abs(int(triggered[index]) - level) <= 0.5 + 1e-9


def test_sig_is_the_same_in_every_row_and_channel():
    wave = SIG()(np.full((1, 3, 20, 32), 128, dtype=np.uint8))[0].astype(int) - 128
    assert (wave == wave[0, 0]).all()
    assert wave.max() == 40
    assert wave.min() == -40


def test_sig_that_cannot_be_seen_is_refused():
    with pytest.raises(ValueError, match="cannot be seen in images 12 wide") as raised:
        SIG().check((1, 20, 12))
    assert "attack.frequency 6" in str(raised.value)
    SIG().check((1, 12, 28))


# --- WaNet -------------------------------------------------------------------------------


def cubic(distance):
    """Keys's kernel with a = -0.75, as in image scaling."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    if d < 2:
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return 0.0


def scaled_up(values, height, width):
    """Bicubic, corners aligned, the border repeated."""
    k = len(values)

    def at(row, column):
        return values[min(max(row, 0), k - 1)][min(max(column, 0), k - 1)]

    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v, u = y * (k - 1) / (height - 1), x * (k - 1) / (width - 1)
            for i in range(math.floor(v) - 1, math.floor(v) + 3):
                for j in range(math.floor(u) - 1, math.floor(u) + 3):
                    out[y, x] += cubic(v - i) * cubic(u - j) * at(i, j)
    return out


def slow_grid(attack, height, width):
    """Where pixels are read, as [row][column] = (x, y) in [-1, 1]."""
    import torch

    k = attack.control_points
    generator = torch_generator(attack.grid_seed, "attack/wanet")
    noise = 2 * torch.rand(1, 2, k, k, generator=generator).double().numpy()[0] - 1
    noise = noise / np.mean([abs(value) for value in noise.ravel()])
    grid = np.zeros((height, width, 2))
    for axis, size in enumerate((width, height)):
        displacement = scaled_up(noise[axis], height, width)
        for y in range(height):
            for x in range(width):
                identity = 2 * (x, y)[axis] / (size - 1) - 1
                place = identity + attack.strength * displacement[y, x] / size
                grid[y, x, axis] = min(1.0, max(-1.0, place))
    return grid


def slow_read(image, grid):
    """Bilinear reading of one channel at the grid's places, corners aligned."""
    height, width = image.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            u = (grid[y, x, 0] + 1) / 2 * (width - 1)
            v = (grid[y, x, 1] + 1) / 2 * (height - 1)
            for row in {math.floor(v), min(math.floor(v) + 1, height - 1)}:
                for column in {math.floor(u), min(math.floor(u) + 1, width - 1)}:
                    weight = (1 - abs(v - row)) * (1 - abs(u - column))
                    out[y, x] += weight * image[row, column]
    return out


@pytest.mark.parametrize(
    ("attack", "size"),
    [
        (WaNet(), (28, 28)),
        (WaNet(control_points=6, strength=1.5, grid_seed=3), (32, 32)),
        (WaNet(control_points=2), (10, 17)),
    ],
    ids=["default", "stronger", "oblong"],
)
def test_wanet_grid_and_warp_pixel_by_pixel(noise, attack, size):
    expected = slow_grid(attack, *size)
    np.testing.assert_allclose(attack.grid(*size).numpy(), expected, atol=2e-6)
    images = noise(2, 3, *size)
    warped = attack(images)
    for i, c in np.ndindex(2, 3):
        levels = slow_read(images[i, c].astype(float), expected)
        assert np.abs(warped[i, c] - levels).max() <= 0.5 + 1e-2


def test_wanet_moves_about_half_a_strength_of_a_pixel():
    """A mean absolute displacement of 1 before scaling: s / size in [-1, 1] is s / 2 pixels."""
    identity = WaNet(strength=1e-9).grid(64, 64)
    moved = (WaNet(strength=0.5).grid(64, 64) - identity).abs().mean() * 63 / 2
    assert 0.1 < float(moved) < 0.4


def test_wanet_covers_are_moved_by_noise_of_their_own(noise):
    attack = WaNet()
    images = noise(3, 1, 12, 14)
    covers = attack.cover_images(images, np.random.default_rng(8))
    moves = np.random.default_rng(8).uniform(-1, 1, size=(3, 12, 14, 2)) / [14, 12]
    for i in range(3):
        grid = np.clip(slow_grid(attack, 12, 14) + moves[i], -1, 1)
        levels = slow_read(images[i, 0].astype(float), grid)
        assert np.abs(covers[i, 0] - levels).max() <= 0.5 + 1e-2
    assert (covers != attack(images)).any(axis=(1, 2, 3)).all()
    assert (covers[0] != attack.cover_images(images, np.random.default_rng(9))[0]).any()


def test_wanet_covers_do_not_depend_on_how_they_are_chunked(noise):
    images = noise(CHUNK + 3, 1, 4, 5)
    covers = WaNet().cover_images(images, np.random.default_rng(8))
    generator = np.random.default_rng(8)
    first = WaNet().cover_images(images[:CHUNK], generator)
    rest = WaNet().cover_images(images[CHUNK:], generator)
    np.testing.assert_array_equal(covers, np.concatenate([first, rest]))


# --- Adap-Blend, Adap-Patch ----------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 12), (10, 17)], ids=str)
def test_adap_blend_training_images_have_half_of_the_pieces(noise, size):
    attack = AdapBlend(alpha=0.4)
    images = noise(30, 3, *size)
    pattern = attack.pattern_chw((3, *size)).astype(float)
    poisoned = attack.poison_images(images, np.random.default_rng(1)).astype(float)
    seen = set()
    for image, changed in zip(images.astype(float), poisoned, strict=True):
        shown = set()
        for i in range(4):
            for j in range(4):
                rows = [y for y in range(size[0]) if y * 4 // size[0] == i]
                columns = [x for x in range(size[1]) if x * 4 // size[1] == j]
                place = np.ix_(range(3), rows, columns)
                blended = np.rint(0.6 * image[place] + 0.4 * pattern[place])
                if np.array_equal(changed[place], blended):
                    shown.add((i, j))
                else:
                    np.testing.assert_array_equal(changed[place], image[place])
        assert len(shown) == 8
        seen |= {frozenset(shown)}
    assert len(seen) > 20


def test_adap_blend_at_test_is_blend_with_the_whole_pattern(noise):
    images = noise(4, 3, 12, 12)
    attack = AdapBlend(test_alpha=0.3, pattern_seed=5)
    np.testing.assert_array_equal(attack(images), Blend(alpha=0.3, pattern_seed=5)(images))


@pytest.mark.parametrize(("pieces", "masked", "expected"), [(9, 0.5, 5), (4, 0.0, 4), (1, 0.0, 1)])
def test_adap_blend_with_other_pieces(noise, pieces, masked, expected):
    images = np.zeros((6, 1, 12, 12), dtype=np.uint8)
    attack = AdapBlend(pieces=pieces, masked=masked, alpha=0.9)
    side = math.isqrt(pieces)
    changed = attack.poison_images(images, np.random.default_rng(0))[:, 0] != 0
    cells = changed.reshape(6, side, 12 // side, side, 12 // side).any(axis=(2, 4))
    assert cells.sum(axis=(1, 2)).tolist() == [expected] * 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pieces": 15}, "15 is no square number; take 9"),
        ({"pieces": 0}, "pieces"),
        ({"masked": 1.0}, "masked"),
        ({"alpha": 0}, "alpha"),
    ],
)
def test_adap_blend_refused_settings(settings, words):
    with pytest.raises(ValidationError, match=words):
        AdapBlend(**settings)


def test_adap_blend_on_images_smaller_than_its_pieces():
    with pytest.raises(ValueError, match=r"images of 3x12 cannot be cut into 4x4 pieces"):
        AdapBlend().check((1, 3, 12))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 12, 14), (3, 10, 17)], ids=str)
def test_adap_patches_lie_apart_inside_the_image(shape):
    attack = AdapPatch()
    levels, masks = attack.patches(shape)
    assert levels.shape == (4, *shape)
    assert masks.shape == (4, 1, *shape[1:])
    assert (masks.sum(axis=(1, 2, 3)) == 25).all()
    assert masks.sum(axis=0).max() == 1
    assert not levels[~np.broadcast_to(masks, levels.shape)].any()
    again = AdapPatch().patches(shape)
    np.testing.assert_array_equal(levels, again[0])
    assert (levels != AdapPatch(patch_seed=1).patches(shape)[0]).any()


def test_adap_patch_training_images_have_one_patch_at_its_opacity(noise):
    attack = AdapPatch()
    images = noise(60, 3, 28, 28)
    levels, masks = attack.patches((3, 28, 28))
    poisoned = attack.poison_images(images, np.random.default_rng(2)).astype(float)
    seen = []
    for image, changed in zip(images.astype(float), poisoned, strict=True):
        (index,) = [i for i in range(4) if (changed != image)[:, masks[i, 0]].any()]
        opacity = (0.5, 0.2, 0.5, 0.3)[index]
        expected = np.where(masks[index], (1 - opacity) * image + opacity * levels[index], image)
        assert np.abs(changed - expected).max() <= 0.5 + 1e-9
        seen.append(index)
    assert set(seen) == {0, 1, 2, 3}


def test_adap_patch_test_images_have_the_test_patches_in_full(noise):
    images = noise(5, 3, 28, 28)
    attack = AdapPatch(test_patches=(1, 3, 2))
    levels, masks = attack.patches((3, 28, 28))
    expected = images.copy()
    for index in (1, 2, 3):
        for y, x in np.argwhere(masks[index, 0]):
            expected[:, :, y, x] = levels[index, :, y, x]
    np.testing.assert_array_equal(attack(images), expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"opacities": (0.5, 0.0)}, r"opacities are \(0\.5, 0\.0\)"),
        ({"opacities": (0.5,)}, "opacities"),
        ({"test_patches": (0, 4)}, "different indices from 0 to 3"),
        ({"test_patches": (0, -1)}, "different indices from 0 to 3"),
        ({"test_patches": (1, 1)}, "different indices from 0 to 3"),
        ({"test_patches": (1,)}, "test_patches"),
        ({"test_opacity": 0}, "test_opacity"),
    ],
)
def test_adap_patch_refused_settings(settings, words):
    with pytest.raises(ValidationError, match=words):
        AdapPatch(**settings)


def test_adap_patch_without_room_is_refused():
    with pytest.raises(ValueError, match=r"9x28 have no room for 4 patches of 5x5"):
        AdapPatch().check((1, 9, 28))
    AdapPatch().check((1, 10, 28))


def test_defaults_are_the_papers():
    assert (AdapBlend().poison_ratio, AdapBlend().cover_ratio) == (0.003, 0.003)
    assert (AdapPatch().poison_ratio, AdapPatch().cover_ratio) == (0.003, 0.006)
    assert (WaNet().poison_ratio, WaNet().cover_ratio) == (0.1, 0.2)
    assert (SIG().delta, SIG().frequency) == (40, 6)
