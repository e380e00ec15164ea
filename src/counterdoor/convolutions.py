"""How convolutions are computed while a net is trained; what they compute is the same."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MOST_POSITIONS = 1024
"""Output positions of a batch, N * H * W, up to which a matrix product is the faster."""
FEWEST_WEIGHTS = 1_000_000
"""Weights from which on it is."""


@contextlib.contextmanager
def fastest_convolutions(*, bf16_on_cpu: bool = False) -> Iterator[None]:
    """Inside the block, convolutions are done by whatever is fastest.

    cuDNN tries its algorithms on every new shape and keeps the fastest.

    Args:
        bf16_on_cpu: whether the block multiplies bf16 on a CPU; then those of
            :class:`LargeKernelsAsProducts` are matrix products.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with LargeKernelsAsProducts() if bf16_on_cpu else contextlib.nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = before


class LargeKernelsAsProducts(TorchFunctionMode):
    """Convolutions with many weights and few output positions are one matrix product each.

    On a CPU the library's own kernels go along the rows of the map and starve where these
    are 2 to 4 positions long, as in the last stage of ResNet or VGG on small images. In
    bf16 with 512 channels and a batch of 64 the product takes two thirds to two fifths of
    their time, forward and backward.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, or in place of a convolution that suits :func:`as_product`."""
        if func is F.conv2d and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            images, weight, bias, stride, padding, dilation, groups = args
            plain = tuple(dilation) == (1, 1) and groups == 1
            if plain and _suits(images, weight, tuple(stride), tuple(padding)):
                return as_product(images, weight, bias, stride[0])
        return func(*args, **(kwargs or {}))


def _suits(
    images: Tensor, weight: Tensor, stride: tuple[Any, ...], padding: tuple[Any, ...]
) -> bool:
    size = weight.shape[-1]
    square = weight.shape[-2] == size and stride[0] == stride[-1]
    if not square or size == 1 or size % 2 == 0 or padding != (size // 2, size // 2):
        return False
    rows, columns = (_strided(side, stride[0]) for side in images.shape[-2:])
    few = images.ndim == 4 and len(images) * rows * columns <= MOST_POSITIONS
    return few and weight.numel() >= FEWEST_WEIGHTS


def _strided(side: int, stride: int) -> int:
    return -(-side // stride)


def as_product(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """A convolution with padding of half its kernel as one matrix product (im2col).

    Args:
        images: shape (N, C, H, W).
        weight: shape (K, C, S, S), S odd.
        bias: shape (K,), or none.
        stride: in both directions.

    Returns:
        Shape (N, K, ceil(H / stride), ceil(W / stride)), in channels_last.
    """
    size = weight.shape[-1]
    rows, columns = (_strided(side, stride) for side in images.shape[-2:])
    around = size // 2
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, around, around, around, around))
    downs = [slice(i, i + stride * (rows - 1) + 1, stride) for i in range(size)]
    rights = [slice(j, j + stride * (columns - 1) + 1, stride) for j in range(size)]
    patches = torch.cat([padded[:, down, right] for down in downs for right in rights], -1)
    kernel = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    return F.linear(patches, kernel, bias).permute(0, 3, 1, 2)
