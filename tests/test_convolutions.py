"""Convolutions as matrix products: the library's results, and only where they are meant."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from counterdoor import convolutions
from counterdoor.convolutions import LargeKernelsAsProducts, as_product, fastest_convolutions


def computed(layer, images, mode=None):
    """Output and gradients, of images and weights, of a layer."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    if mode is None:
        output = layer(images)
    else:
        with mode:
            output = layer(images)
    output.square().sum().backward()
    return [output.detach(), images.grad, *(each.grad.clone() for each in layer.parameters())]


@pytest.fixture
def products(monkeypatch):
    """How often a matrix product took a convolution's place; small kernels count as large."""
    calls = []

    def counted(*args):
        calls.append(args)
        return as_product(*args)

    monkeypatch.setattr(convolutions, "as_product", counted)
    monkeypatch.setattr(convolutions, "FEWEST_WEIGHTS", 100)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 4), (7, 5), (1, 2)])
def test_a_product_is_the_convolution(shape, stride, size, bias, products):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, size, stride, padding=size // 2, bias=bias).double()
    images = torch.rand(4, 3, *shape, dtype=torch.float64)
    found = computed(layer, images, LargeKernelsAsProducts())
    assert len(products) == 1
    for value, wanted in zip(found, computed(layer, images), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, padding=2),
        nn.Conv2d(4, 8, 3, padding="same"),
        nn.Conv2d(4, 8, 3, padding=1, dilation=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, stride=(1, 2)),
        nn.Conv2d(4, 8, (3, 1), padding=(1, 0)),
        nn.Conv2d(4, 8, 4, padding=2),
        nn.Conv2d(4, 2, 3, padding=1),  # fewer than 100 weights
    ],
    ids=str,
)
def test_any_other_convolution_is_left_alone(layer, products):
    images = torch.rand(2, 4, 6, 6)
    with LargeKernelsAsProducts():
        found = layer(images)
    assert not products
    assert torch.equal(found, layer(images))


def test_many_positions_are_left_alone(products):
    layer = nn.Conv2d(4, 8, 3, padding=1)
    with LargeKernelsAsProducts():
        layer(torch.rand(64, 4, 4, 4))
        assert len(products) == 1
        layer(torch.rand(65, 4, 4, 4))
        layer(torch.rand(4, 4, 4))  # one image without a batch
        F.conv2d(torch.rand(2, 4, 4, 4), layer.weight, padding=1)  # not as a layer calls it
    assert len(products) == 1


@pytest.mark.parametrize("bf16_on_cpu", [True, False])
def test_the_block_ends_as_it_began(bf16_on_cpu, products, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    layer, images = nn.Conv2d(4, 8, 3, padding=1), torch.rand(2, 4, 4, 4)

    @fastest_convolutions(bf16_on_cpu=bf16_on_cpu)
    def fails():
        assert torch.backends.cudnn.benchmark
        layer(images)
        raise RuntimeError("ends")

    with pytest.raises(RuntimeError, match="ends"):
        fails()
    assert not torch.backends.cudnn.benchmark
    layer(images)
    assert len(products) == bf16_on_cpu


def test_with_autocast_a_product_is_the_convolution_in_bf16(products):
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.randn(8, 64, 4, 4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = computed(layer, images, LargeKernelsAsProducts())
        wanted = computed(layer, images)
    assert products
    assert found[0].dtype == torch.bfloat16
    for value, other in zip(found, wanted, strict=True):
        assert value.dtype == other.dtype
        close = (value - other).abs().max() / other.abs().max()
        assert close < 0.02  # bf16 has 8 bits
