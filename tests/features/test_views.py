"""Views against loops over images and pixels that are told the same changes."""

import colorsys
import math

import pytest
import torch
from pydantic import ValidationError

from counterdoor.features.views import LUMA, Views, blurred, jittered, resampled

STILL = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False, "jitter_share": 0.0}
STILL |= {"grey_share": 0.0}


def images(channels=3, n=12, height=7, width=6):
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).to(torch.uint8)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "views",
    [Views(), Views(rotation=30, blur_share=0.5), Views(**STILL), Views(crop_scale=(0.05, 0.1))],
    ids=str,
)
def test_shape_type_range_and_determinism(channels, views):
    given = images(channels)
    before, state = given.clone(), torch.get_rng_state()
    seen = views(given, seeded())
    assert seen.shape == given.shape
    assert views.model_copy(update={"size": 14})(given, seeded()).shape == (12, channels, 14, 12)
    assert seen.dtype == torch.float32
    assert seen.min() >= 0
    assert seen.max() <= 255
    assert torch.equal(seen, views(given, seeded()))
    assert torch.equal(given, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_scale": (0.2, 1.0)},
        {"crop_scale": (0.6, 0.6), "crop_ratio": (0.5, 2.0)},
        {"rotation": 30.0},
        {"flip": True},
        {"jitter_share": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
        {"jitter_share": 1.0, "brightness": 0.0, "saturation": 0.0, "hue": 0.0},
        {"jitter_share": 1.0, "brightness": 0.0, "contrast": 0.0, "hue": 0.0},
        {"jitter_share": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0},
        {"grey_share": 0.5},
        {"blur_share": 0.5},
    ],
    ids=str,
)
def test_every_image_is_changed_in_its_own_way(change):
    same = images(n=1).expand(40, -1, -1, -1)
    seen = Views(**STILL | change)(same, seeded())
    ways = {tuple(image.flatten().round().add(0.0).tolist()) for image in seen}
    assert len(ways) == 2 if change in ({"flip": True}, {"grey_share": 0.5}) else len(ways) > 10
    assert not torch.equal(seen, Views(**STILL | change)(same, seeded(2)))


def test_nothing_changes_when_all_is_off():
    given = images()
    torch.testing.assert_close(Views(**STILL)(given, seeded()), given.float(), atol=1e-3, rtol=0)


def test_smaller_views_show_the_same_crops():
    """A ramp tells where each pixel comes from: every 2 x 2 pixels have become their mean."""
    ramp = torch.arange(32).float().expand(20, 1, 32, 32)
    views = Views(**STILL | {"crop_scale": (0.2, 0.9), "flip": True})
    larger = torch.nn.functional.avg_pool2d(views(ramp, seeded()), 2)
    smaller = views.model_copy(update={"size": 16})(ramp, seeded())
    # Not at the border, where half a pixel of a larger view may be the repeated edge.
    torch.testing.assert_close(smaller[..., 1:-1], larger[..., 1:-1], atol=1e-3, rtol=0)


def test_half_of_the_images_are_mirrored():
    given = images(n=60)
    seen = Views(**STILL | {"flip": True})(given, seeded())
    kept = mirrored = 0
    for image, view in zip(given.float(), seen, strict=True):
        kept += torch.allclose(view, image, atol=1e-2)
        mirrored += torch.allclose(view, image.flip(-1), atol=1e-2)
    assert kept + mirrored == 60
    assert 15 < mirrored < 45


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10)])
def test_a_turn_is_about_the_middle_in_pixels(height, width):
    """A dot does not change its distance from the middle."""
    given = torch.zeros(50, 1, height, width)
    given[:, 0, height // 2 - 2, width // 2 - 2] = 255.0
    seen = Views(**STILL | {"rotation": 90.0})(given, seeded())
    rows, columns = torch.arange(height) - height / 2 + 0.5, torch.arange(width) - width / 2 + 0.5
    mass = seen[:, 0] / seen[:, 0].sum((1, 2), keepdim=True)
    y, x = (mass * rows[:, None]).sum((1, 2)), (mass * columns).sum((1, 2))
    torch.testing.assert_close((x * x + y * y).sqrt(), torch.full((50,), math.hypot(1.5, 1.5)),
                               atol=0.25, rtol=0)  # fmt: skip
    assert torch.atan2(y, x).std() > 0.5


def test_crops_have_the_area_and_ratio_asked_for_and_lie_inside():
    """A ramp shows where a view's edges come from."""
    n, size = 200, 32
    ramp = torch.arange(size).float().expand(n, 1, size, size)
    both = torch.cat([ramp, ramp.transpose(2, 3)], 1)
    views = Views(**STILL | {"crop_scale": (0.2, 0.5), "crop_ratio": (0.7, 1.4)})
    seen = views(both, seeded())
    # From pixel centres in the middle, where nothing is cut at the border.
    across = (seen[:, 0, 16, 24] - seen[:, 0, 16, 8]) / 16
    down = (seen[:, 1, 24, 16] - seen[:, 1, 8, 16]) / 16
    area, ratio = across * down, across / down
    assert area.min() >= 0.2 - 1e-3
    assert area.max() <= 0.5 + 1e-3
    assert ratio.min() >= 0.7 - 1e-3
    assert ratio.max() <= 1.4 + 1e-3
    assert area.max() - area.min() > 0.25
    left = seen[:, 0, 16, 16] - across * 16.5
    assert (left >= -0.51).all()
    assert (left + across * size <= size + 0.51).all()
    assert left.std() > 2


def slow_resampled(image, matrix, rows, columns):
    channels, height, width = image.shape
    out = torch.zeros(channels, rows, columns)
    for row in range(rows):
        for column in range(columns):
            x, y = (2 * column + 1) / columns - 1, (2 * row + 1) / rows - 1
            u, v = (a * x + b * y + c for a, b, c in matrix.tolist())
            u = min(max(((u + 1) * width - 1) / 2, 0), width - 1)
            v = min(max(((v + 1) * height - 1) / 2, 0), height - 1)
            left, top = int(u), int(v)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            for c in range(channels):
                upper = image[c, top, left] * (1 - u + left) + image[c, top, right] * (u - left)
                lower = image[c, bottom, left] * (1 - u + left)
                lower += image[c, bottom, right] * (u - left)
                out[c, row, column] = upper * (1 - v + top) + lower * (v - top)
    return out


@pytest.mark.parametrize("size", [None, (4, 9)])
def test_resampling(size):
    given = images(n=4).float()
    maps = torch.randn(4, 2, 3, generator=seeded())
    for seen, image, matrix in zip(resampled(given, maps, size), given, maps, strict=True):
        slow = slow_resampled(image, matrix, *(size or image.shape[1:]))
        torch.testing.assert_close(seen, slow, atol=1e-2, rtol=1e-3)


def slow_jitter(image, brightness, contrast, saturation, turn, colour):
    """One change after the other, pixel by pixel."""
    channels, height, width = image.shape
    pixels = [[float(image[c, y, x]) * brightness for c in range(channels)]
              for y in range(height) for x in range(width)]  # fmt: skip
    if channels == 3:
        greys = [sum(w * v for w, v in zip(LUMA, pixel, strict=True)) for pixel in pixels]
    else:
        greys = [sum(pixel) / channels for pixel in pixels]
    mean = sum(greys) / len(greys)
    out = []
    for pixel in pixels:
        pixel = [contrast * v + (1 - contrast) * mean for v in pixel]
        if channels == 3:
            grey = sum(w * v for w, v in zip(LUMA, pixel, strict=True))
            pixel = [saturation * v + (1 - saturation) * grey for v in pixel]
            # Split along the grey axis and turn what is across it.
            along = sum(pixel) / 3
            red, green, blue = (v - along for v in pixel)
            angle = 2 * math.pi * turn
            a, b = math.cos(angle), math.sin(angle) / math.sqrt(3)
            pixel = [
                along + a * red + b * (blue - green),
                along + a * green + b * (red - blue),
                along + a * blue + b * (green - red),
            ]
            if not colour:
                pixel = [sum(w * v for w, v in zip(LUMA, pixel, strict=True))] * 3
        out.append([min(max(v, 0.0), 255.0) for v in pixel])
    return torch.tensor(out).T.reshape(channels, height, width)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jitter(channels):
    given = images(channels, n=8).float()
    generator = seeded()
    brightness, contrast, saturation = 0.5 + torch.rand(3, 8, generator=generator)
    turn = torch.rand(8, generator=generator) - 0.5
    draws = (brightness, contrast, saturation, turn, (torch.arange(8) % 2).float())
    seen = jittered(given, *draws)
    for i in range(8):
        expected = slow_jitter(given[i], *(float(each[i]) for each in draws))
        torch.testing.assert_close(seen[i], expected, atol=2e-2, rtol=1e-4)


def test_a_third_of_a_turn_moves_each_colour_to_the_next():
    """As a hue by HSV does: red, green, blue."""
    red = torch.tensor([200.0, 50.0, 50.0]).view(1, 3, 1, 1)
    one = torch.ones(1)
    seen = jittered(red, one, one, one, one / 3, one).flatten() / 255
    expected = colorsys.hsv_to_rgb(1 / 3, *colorsys.rgb_to_hsv(200 / 255, 50 / 255, 50 / 255)[1:])
    assert seen.tolist() == pytest.approx(list(expected), abs=1e-4)


def test_grey_images_are_all_of_one_level():
    seen = Views(**STILL | {"grey_share": 1.0})(images(), seeded())
    torch.testing.assert_close(seen[:, 0], seen[:, 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[:, 0], seen[:, 2], atol=1e-3, rtol=0)


def test_jitter_leaves_its_share_alone():
    given = images(n=100)
    seen = Views(**STILL | {"jitter_share": 0.3})(given, seeded())
    same = (seen - given).abs().flatten(1).amax(1) < 1e-2
    assert 50 < same.sum() < 90


def slow_blur(image, sigma):
    channels, height, width = image.shape
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-3, 4)]
    total = sum(weights)

    def mirror(i, size):
        i = abs(i)
        return i if i < size else 2 * (size - 1) - i

    out = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                out[c, y, x] = sum(
                    weights[i + 3] * weights[j + 3]
                    * float(image[c, mirror(y + i, height), mirror(x + j, width)])
                    for i in range(-3, 4) for j in range(-3, 4)
                ) / total**2  # fmt: skip
    return out


def test_blur():
    given = images(n=3).float()
    sigma = torch.tensor([0.5, 2.0, 0.0])
    seen = blurred(given, sigma)
    for i in (0, 1):
        torch.testing.assert_close(
            seen[i], slow_blur(given[i], float(sigma[i])), atol=1e-2, rtol=1e-4
        )
    torch.testing.assert_close(seen[2], given[2])


@pytest.mark.parametrize(
    "settings",
    [{"hue": 0.6}, {"rotation": -1}, {"size": 8}, {"grey_share": 2}, {"turn": 1}],
    ids=str,
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Views(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_ratio": (0.0, 1.0)},
        {"crop_ratio": (2.0, 1.0)},
        {"blur": (2.0, 1.0)},
        {"blur": (0.0, 1.0)},
    ],
    ids=str,
)
def test_ranges_that_are_none_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValidationError, match=f"{name} is .* must be"):
        Views(**settings)
