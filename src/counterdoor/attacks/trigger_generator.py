"""A net that gives each image a map of its own, and the losses that keep maps small and apart."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 4
"""Groups of channels that are normalised together."""


class TriggerGenerator(nn.Module):
    """Encoder-decoder from images in [0, 1] to maps in [0, 1] of the same height and width.

    Group norm in place of the paper's batch norm: what an image gets depends neither on
    the images beside it nor on running statistics.

    Args:
        channels: of the images.
        outputs: channels of the maps.
        width: channels of the first layer, a multiple of 4.
        sharpness: factor on the logits before the sigmoid; with a large one nearly all
            levels are 0 or 1.
    """

    def __init__(self, channels: int, outputs: int, width: int, sharpness: float = 1.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.encoder = nn.Sequential(
            *_layer(channels, width),
            *_layer(width, 2 * width, stride=2),
            *_layer(2 * width, 4 * width, stride=2),
            *_layer(4 * width, 4 * width),
        )
        self.middle = nn.Sequential(*_layer(4 * width, 2 * width))
        self.last = nn.Sequential(
            *_layer(2 * width, width), nn.Conv2d(width, outputs, 3, padding=1)
        )

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Maps (N, outputs, H, W) for images (N, C, H, W)."""
        height, width = images_nchw.shape[-2:]
        code = self.encoder(4.0 * (images_nchw - 0.5))
        half = F.interpolate(code, size=((height + 1) // 2, (width + 1) // 2))
        whole = F.interpolate(self.middle(half), size=(height, width))
        return torch.sigmoid(self.sharpness * self.last(whole))


def _layer(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return convolution, nn.GroupNorm(GROUPS, outputs), nn.ReLU()


def with_trigger(images_nchw: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Triggered images: x * (1 - m) + p * m.

    Args:
        images_nchw: x, float, shape (N, C, H, W), in [0, 1].
        masks: m, shape (N, 1, H, W), in [0, 1].
        patterns: p, shape (N, C, H, W), in [0, 1].
    """
    return images_nchw * (1.0 - masks) + patterns * masks


def density_loss(masks: Tensor, density: float) -> Tensor:
    """Mean of max(0, m - density) over all pixels: levels up to ``density`` cost nothing."""
    return F.relu(masks - density).mean()


def diversity_loss(images_nchw: Tensor, maps: Tensor) -> Tensor:
    """Mean of |x - x'| / |g(x) - g(x')| over pairs of neighbours in the batch.

    The distance is the root mean square over all pixels, so images that differ must get
    maps that differ. Nguyen & Tran (2020), section 4.

    Args:
        images_nchw: x, shape (N, C, H, W); x' is the image before it, the last of the first.
        maps: g(x), shape (N, channels, H, W).
    """
    return (_to_neighbour(images_nchw) / (_to_neighbour(maps) + 1e-7)).mean()


def _to_neighbour(batch: Tensor) -> Tensor:
    # The root's slope is infinite at 0, where two equal maps would put it.
    squares = (batch - batch.roll(1, 0)).square().flatten(1).mean(1)
    return squares.clamp_min(1e-12).sqrt()
