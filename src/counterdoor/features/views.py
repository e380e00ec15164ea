"""Random views of images for contrastive learning, as pure functions of a batch; no loop over it.

Every image of a batch is changed in its own way. Whatever moves pixels is one affine
map an image and so one resampling; whatever changes colours is one matrix an image.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from counterdoor.component import Config

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in an image's grey level (ITU-R BT.601)."""

BLUR_RADIUS = 3
"""Half the side of the blur's kernel, in pixels."""


class Views(Config):
    """Random resized crop, rotation, flip, colour jitter, greyscale and blur.

    The defaults are those of SimCLR for small colour images (Chen et al., "A Simple
    Framework for Contrastive Learning of Visual Representations", 2020, appendix A and
    B.9). What concerns hues does nothing to images that are not RGB.

    Attributes:
        crop_scale: smallest and largest share of the image's area in a crop.
        crop_ratio: smallest and largest width of a crop in heights, times that of the
            image, before a side that would be longer than the image's is cut to it.
        rotation: largest turn either way, in degrees; what was outside repeats the edge.
        flip: mirror each image left-right with probability 1/2.
        jitter_share: share of the images whose colours are changed.
        brightness: a changed image's levels are multiplied with a factor of 1 - brightness
            to 1 + brightness.
        contrast: the same for the distance from the image's mean grey.
        saturation: the same for the distance from each pixel's grey.
        hue: colours turn about the grey axis by at most so many whole turns either way.
        grey_share: share of the images that lose their colour.
        blur_share: share of the images that are blurred.
        blur: smallest and largest deviation of the blur's Gaussian, in pixels.
        size: longer side of a view in pixels, in [12, 4096]; nothing: that of the image. What
            views of 24 pixels cost is half of what those of 32 do. A crop fills its view, so that
            objects are larger in views than in images, and smaller views undo that as well
            (Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019).
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation: float = Field(default=0.0, ge=0, le=180)
    flip: bool = True
    jitter_share: float = Field(default=0.8, ge=0, le=1)
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.4, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    grey_share: float = Field(default=0.2, ge=0, le=1)
    blur_share: float = Field(default=0.0, ge=0, le=1)
    blur: tuple[float, float] = (0.1, 2.0)
    size: int | None = Field(default=None, ge=12, le=4096)

    @model_validator(mode="after")
    def _ranges(self) -> "Views":
        for name, most in (("crop_scale", 1.0), ("crop_ratio", 100.0), ("blur", 100.0)):
            low, high = getattr(self, name)
            if not 0.0 < low <= high <= most:
                raise ValueError(
                    f"{name} is {low:g} to {high:g}, but must be a smaller and a larger number "
                    f"above 0 and at most {most:g}"
                )
        return self

    def __call__(self, images_nchw: Tensor, generator: torch.Generator) -> Tensor:
        """One view of every image.

        Args:
            images_nchw: uint8 or float, shape (N, C, H, W), in [0, 255].
            generator: a CPU generator; the draws do not depend on the device.

        Returns:
            float32 of the same range and, without ``size``, of the same shape.
        """
        images = self._moved(images_nchw.to(torch.float32), generator)
        images = self._coloured(images, generator)
        if self.blur_share:
            n = len(images)
            sigma = _uniform(n, *self.blur, generator)
            sigma = torch.where(torch.rand(n, generator=generator) < self.blur_share, sigma, 0.0)
            images = blurred(images, sigma.to(images.device))
        return images

    def _moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n = len(images)
        area = _uniform(n, *self.crop_scale, generator)
        narrow, broad = self.crop_ratio
        ratio = _uniform(n, math.log(narrow), math.log(broad), generator).exp()
        height, width = images.shape[-2:]
        across, down = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
        shifts = 2.0 * torch.rand(2, n, generator=generator) - 1.0
        angle = _uniform(n, -self.rotation, self.rotation, generator).deg2rad()
        mirror = torch.rand(n, generator=generator) < (0.5 if self.flip else 0.0)
        cos, sin = angle.cos(), angle.sin()
        sign = torch.where(mirror, -1.0, 1.0)
        rows = [
            across * cos * sign, -across * sin * height / width, shifts[0] * (1.0 - across),
            down * sin * sign * width / height, down * cos, shifts[1] * (1.0 - down),
        ]  # fmt: skip
        if self.size is not None:
            longer = max(height, width)
            height, width = (round(self.size * side / longer) for side in (height, width))
        maps = torch.stack(rows, 1).view(n, 2, 3)
        return resampled(images, maps.to(images.device), (height, width))

    def _coloured(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n = len(images)
        changed = torch.rand(n, generator=generator) < self.jitter_share
        around = [
            torch.where(changed, _uniform(n, 1.0 - width, 1.0 + width, generator), 1.0)
            for width in (self.brightness, self.contrast, self.saturation)
        ]
        turn = torch.where(changed, _uniform(n, -self.hue, self.hue, generator), 0.0)
        kept = (torch.rand(n, generator=generator) >= self.grey_share).float()
        draws = [each.to(images.device) for each in (*around, turn, kept)]
        return jittered(images, *draws)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def resampled(images_nchw: Tensor, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Look every image up, bilinearly, where its affine map says; the edge goes on outside.

    Args:
        images_nchw: float, shape (N, C, H, W).
        maps: shape (N, 2, 3), from a place (x, y, 1) of the view to one of the image, both
            from -1 (left, top edge) to 1.
        size: height and width of the results; nothing: those of the images.
    """
    shape = [*images_nchw.shape[:2], *(size or images_nchw.shape[-2:])]
    grid = F.affine_grid(maps, shape, align_corners=False)
    return F.grid_sample(images_nchw, grid, padding_mode="border", align_corners=False)


def jittered(
    images_nchw: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    turn: Tensor,
    colour: Tensor,
) -> Tensor:
    """Change the colours of every image, in the order of the arguments.

    Brightness multiplies, contrast scales the distance from the image's mean grey,
    saturation that from each pixel's grey, and ``turn`` rotates about the grey axis; a
    ``colour`` of 0 leaves the grey alone. All are linear in a pixel, so that it takes one
    matrix an image; levels are cut to [0, 255] at the end.

    Args:
        images_nchw: float, shape (N, C, H, W), in [0, 255]; with C other than 3 the
            last three arguments do nothing, and the mean grey is the mean level.
        brightness: factors, shape (N,).
        contrast: factors, shape (N,).
        saturation: factors, shape (N,).
        turn: in whole turns, shape (N,).
        colour: 1 or 0, shape (N,).
    """
    n, channels, height, width = images_nchw.shape
    flat = images_nchw.reshape(n, channels, height * width)
    scale = (brightness * contrast)[:, None, None]
    if channels == 3:
        luma = torch.tensor(LUMA, device=flat.device)
        level = flat.mean(2) @ luma
        changed = torch.bmm(scale * _chroma(luma, saturation, turn, colour), flat)
    else:
        level = flat.mean((1, 2))
        changed = scale * flat
    changed = changed + (brightness * (1.0 - contrast) * level)[:, None, None]
    return changed.clamp_(0.0, 255.0).view(n, channels, height, width)


def _chroma(luma: Tensor, saturation: Tensor, turn: Tensor, colour: Tensor) -> Tensor:
    """Matrices (N, 3, 3) that change saturation, turn the hue and may take the colour away."""
    identity = torch.eye(3, device=luma.device)
    grey = luma.expand(3, 3)
    saturate = identity * saturation[:, None, None] + grey * (1.0 - saturation)[:, None, None]
    angle = 2.0 * math.pi * turn
    # Rodrigues' formula about the unit vector (1, 1, 1) / sqrt(3).
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    rotate = cos * identity + sin * cross.to(luma.device) + (1.0 - cos) / 3.0
    drain = identity * colour[:, None, None] + grey * (1.0 - colour)[:, None, None]
    return drain @ rotate @ saturate


def blurred(images_nchw: Tensor, sigma: Tensor) -> Tensor:
    """Blur every image by a Gaussian of its own; the edge is mirrored.

    Args:
        images_nchw: float, shape (N, C, H, W), both sides longer than ``BLUR_RADIUS``.
        sigma: deviations in pixels, shape (N,); 0 leaves the image as it is.
    """
    n, channels, height, width = images_nchw.shape
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    padded = F.pad(images_nchw, (BLUR_RADIUS,) * 4, mode="reflect")
    flat = padded.reshape(1, n * channels, *padded.shape[-2:])
    flat = F.conv2d(flat, weights[:, None, :, None], groups=n * channels)
    flat = F.conv2d(flat, weights[:, None, None, :], groups=n * channels)
    return flat.view(n, channels, height, width)
