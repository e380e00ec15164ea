"""Normalisation, the trained artifact, and each architecture's own settings."""

from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from counterdoor.models import (
    VGG16BN,
    Compact,
    DenseNet121,
    DigitsCNN,
    MobileNetV3,
    NormalisedNet,
    PreActResNet18,
    ResNet18,
    ResNet34,
    ResNet50,
    StampedNet,
    TrainedNet,
    build_net,
    channel_statistics,
)
from counterdoor.models.digits_cnn import GRID, GridMax
from counterdoor.stamp import Stamp, apply_stamp

MODEL = DigitsCNN(width=2)


def slow_statistics(images):
    means, deviations = [], []
    for c in range(images.shape[1]):
        levels = [int(level) / 255 for level in images[:, c].ravel()]
        mean = sum(levels) / len(levels)
        means.append(mean)
        deviations.append((sum((level - mean) ** 2 for level in levels) / len(levels)) ** 0.5)
    return means, deviations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk", [1, 3, 8, 4096])
def test_channel_statistics_pixel_by_pixel(noise, channels, chunk):
    images = noise(8, channels, 5, 7) // np.arange(1, channels + 1, dtype=np.uint8)[:, None, None]
    mean, std = channel_statistics(images, chunk=chunk)
    slow_mean, slow_std = slow_statistics(images)
    assert mean.dtype == std.dtype == torch.float32
    assert mean.tolist() == pytest.approx(slow_mean, abs=1e-6)
    assert std.tolist() == pytest.approx(slow_std, abs=1e-6)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_channel_without_variation_has_a_deviation_of_one(level):
    mean, std = channel_statistics(np.full((3, 1, 4, 4), level, dtype=np.uint8))
    assert mean.item() == pytest.approx(level / 255)
    assert std.item() == 1.0


def test_faint_variation_counts():
    images = np.zeros((100, 1, 28, 28), dtype=np.uint8)
    images[0, 0, 0, 0] = 1
    _, std = channel_statistics(images)
    assert std.item() == pytest.approx(slow_statistics(images)[1][0], rel=1e-3)


def test_channel_statistics_read_a_memory_map(tmp_path, noise):
    np.save(tmp_path / "images.npy", noise(9, 3))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for one, other in zip(
        channel_statistics(mapped, chunk=4), channel_statistics(noise(9, 3)), strict=True
    ):
        assert torch.equal(one, other)


def test_normalised_images_have_mean_0_and_deviation_1(noise):
    images = noise(20, 3, 8, 8)
    net = NormalisedNet(nn.Identity(), *channel_statistics(images))
    normalised = net(torch.tensor(images) / 255.0)
    assert normalised.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    deviation = normalised.std((0, 2, 3), correction=0)
    assert deviation.tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_normalisation_travels_with_the_weights_and_is_not_trained(noise):
    net = build_net(MODEL, noise(8, 3), 4, seed=0, stream="x")
    assert {"mean", "std"} <= set(net.state_dict())
    assert not {"mean", "std"} & {name for name, _ in net.named_parameters()}
    mean, std = channel_statistics(noise(8, 3))
    assert torch.equal(net.mean, mean)
    assert torch.equal(net.std, std)


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def case(request, noise):
    """Images and the net that they normalise."""
    images = noise(9, request.param)
    return images, build_net(MODEL, images, 4, seed=0, stream="x").eval()


def describe(images, net, stamp=None, **changes):
    settings = {
        "architecture": MODEL.model_dump(),
        "image_shape": images.shape[1:],
        "num_classes": 4,
        "state": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "stamp": stamp,
    }
    return TrainedNet(**(settings | changes))


def test_build_gives_back_every_tensor(case):
    images, net = case
    trained = describe(images, net)
    rebuilt = trained.build()
    assert not rebuilt.training
    state = rebuilt.state_dict()
    assert set(state) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_build_leaves_the_artifact_and_the_global_state_alone(case):
    images, net = case
    trained = describe(images, net)
    before = torch.get_rng_state()
    rebuilt = trained.build()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        for parameter in rebuilt.parameters():
            parameter.zero_()
    assert all(torch.equal(net.state_dict()[name], t) for name, t in trained.state.items())


@pytest.mark.parametrize(
    "stamp",
    [None, Stamp(), Stamp(size=3, row=2, column=4, colour="white")],
    ids=["none", "mean", "white"],
)
def test_deployable_is_build_on_stamped_floats(case, stamp):
    images, net = case
    trained = describe(images, net, stamp)
    pixels = torch.tensor(images)
    floats = pixels.float() / 255.0
    if stamp is not None:
        floats = apply_stamp(floats, stamp, net.mean)
    deployable = trained.deployable()
    assert not deployable.training
    with torch.no_grad():
        logits = deployable(pixels)
        assert torch.equal(logits, trained.build()(floats))
        torch.testing.assert_close(logits, net(floats))
    assert torch.equal(pixels, torch.tensor(images))


@pytest.mark.parametrize("stamp", [None, Stamp(size=3, row=2, column=4, colour="white")])
def test_a_deployed_net_looks_at_the_mirror_image_before_it_stamps(case, stamp):
    images, net = case
    trained = describe(images, net, stamp, label_map=(2, 0, 1, 3), mirror=True)
    alone = describe(images, net, stamp, label_map=(2, 0, 1, 3)).deployable()
    with torch.no_grad():
        pixels = torch.tensor(images)
        logits = trained.deployable()(pixels)
        expected = (alone(pixels) + alone(pixels.flip(-1))) / 2
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, alone(pixels))


def test_deployable_takes_any_dtype(case):
    images, net = case
    deployable = StampedNet(net, Stamp(colour="white"))
    pixels = torch.tensor(images)
    with torch.no_grad():
        expected = deployable(pixels)
        for dtype in (torch.float32, torch.float64, torch.int64):
            assert torch.equal(deployable(pixels.to(dtype)), expected)


def test_wrong_weights_are_refused(case, noise):
    images, net = case
    other = {"name": "digits_cnn", "width": 3}
    with pytest.raises(ValueError, match="do not fit the architecture") as raised:
        describe(images, net, architecture=other).build()
    assert str(other) in str(raised.value)
    with pytest.raises(ValueError, match="do not fit the architecture"):
        describe(images, net, num_classes=5).build()
    missing = {name: t for name, t in net.state_dict().items() if name != "std"}
    with pytest.raises(ValueError, match="std"):
        describe(images, net, state=missing).build()
    extra = {**net.state_dict(), "surplus": torch.zeros(1)}
    with pytest.raises(ValueError, match="surplus"):
        describe(images, net, state=extra).deployable()


def test_unknown_architecture_is_refused_with_the_names_there_are(case):
    images, net = case
    with pytest.raises(ValueError, match="no_such_net") as raised:
        describe(images, net, architecture={"name": "no_such_net"}).build()
    assert "'digits_cnn'" in str(raised.value)


def test_digits_cnn_width_is_the_first_convolutions():
    assert DigitsCNN(width=5)(3, 4)[0].weight.shape == (5, 3, 3, 3)
    with pytest.raises(ValidationError, match="width"):
        DigitsCNN(width=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("small", "kernel", "stride"), [(True, 3, 1), (False, 7, 2)])
def test_resnet18_stems(channels, small, kernel, stride):
    net = ResNet18(small_image_stem=small)(channels, 10).eval()
    assert net.conv1.weight.shape == (64, channels, kernel, kernel)
    assert net.conv1.stride == (stride, stride)
    with torch.no_grad():
        assert net(torch.zeros(1, channels, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    ("kind", "sides"),
    [
        (ResNet34, (4, 1)),
        (ResNet50, (4, 1)),
        (DenseNet121, (4, 1)),
        (MobileNetV3, (4, 1)),
        (partial(MobileNetV3, size="large"), (4, 1)),
    ],
    ids=["resnet34", "resnet50", "densenet121", "mobilenet_v3_small", "mobilenet_v3_large"],
)
def test_the_last_map_of_a_32x32_image(kind, sides, small):
    net = kind(small_image_stem=small)(1, 10).eval()
    seen = []

    def note(module, inputs):
        seen.append(inputs[0].shape[-1])

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    # Squeeze-and-excitation layers of MobileNet work on a single pixel.
    assert min(side for side in seen if side > 1 or sides[not small] == 1) == sides[not small]


def test_vgg_keeps_a_pixel_of_small_images_and_has_its_large_head_otherwise():
    small = VGG16BN()(1, 10).eval()
    maps = [small[0](torch.zeros(1, 1, side, side)).shape for side in (5, 28, 32, 64)]
    assert maps == [(1, 512, 1, 1)] * 3 + [(1, 512, 2, 2)]
    with torch.device("meta"):  # its 134 million weights need not be made
        large = VGG16BN(small_image_stem=False)(1, 10)
    assert large.classifier[0].weight.shape == (4096, 512 * 7 * 7)
    assert large.features[0].weight.shape == (64, 1, 3, 3)


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        (ResNet18(), 11_173_962),
        (ResNet34(), 21_282_122),
        (ResNet50(), 23_520_842),
        (PreActResNet18(), 11_172_170),
        (VGG16BN(), 14_728_266),
        (DenseNet121(), 6_956_426),
    ],
    ids=lambda each: each.name if hasattr(each, "name") else "",
)
def test_the_known_number_of_weights(model, weights):
    """torchvision's published numbers, less what stem and head differ by."""
    assert sum(parameter.numel() for parameter in model(3, 10).parameters()) == weights


def test_mobilenet_batch_norm_momentum():
    net = MobileNetV3(batch_norm_momentum=0.3)(3, 10)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.3}
    assert {norm.eps for norm in norms} == {0.001}


def slow_preact(net, images):
    """The forward pass of PreActResNet-18 written out, for nets in eval mode."""
    stem, *units, norm, _, _, _, head = net

    def active(norm, features):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shifted = (features - norm.running_mean[:, None, None]) * scale[:, None, None]
        return (shifted + norm.bias[:, None, None]).clamp(min=0)

    features = nn.functional.conv2d(images, stem.weight, padding=1)
    for number, unit in enumerate(units):
        stride = 2 if number in (2, 4, 6) else 1
        first = active(unit.norm1, features)
        if number == 0:
            kept = first
        elif stride == 2:
            kept = nn.functional.conv2d(first, unit.shortcut.weight, stride=2)
        else:
            kept = features
        middle = nn.functional.conv2d(first, unit.conv1.weight, stride=stride, padding=1)
        middle = active(unit.norm2, middle)
        features = kept + nn.functional.conv2d(middle, unit.conv2.weight, padding=1)
    return active(norm, features).mean((2, 3)) @ head.weight.T + head.bias


def test_preact_resnet18_unit_by_unit():
    net = PreActResNet18()(3, 10)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        net.train()(images)
        net.eval()
        torch.testing.assert_close(net(images), slow_preact(net, images), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def patterned():
    """Colour images whose neighbouring pixels and channels are alike, as natural ones are."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (200, 1, 6, 6)).repeat(2, 2).repeat(2, 3)
    colour = coarse + generator.integers(-40, 40, (200, 3, 12, 12))
    return colour.clip(0, 255).astype(np.uint8)


def test_compact_first_layer_decorrelates_patches(patterned):
    net = build_net(Compact(), patterned, 10, seed=0, stream="x")
    normalised = (torch.tensor(patterned) / 255 - net.mean[:, None, None]) / net.std[:, None, None]
    with torch.no_grad():
        responses = net.body[0](normalised)
    assert responses.shape == (200, 24, 11, 11)
    half = responses[:, :12].permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(responses[:, 12:], -responses[:, :12])
    covariance = half @ half.T / half.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), atol=0.02, rtol=0)


def test_compact_first_layer_depends_on_the_images_alone_and_is_not_trained(patterned):
    one = build_net(Compact(), patterned, 10, seed=0, stream="x")
    two = build_net(Compact(), patterned, 10, seed=1, stream="x")
    assert torch.equal(one.body[0].weight, two.body[0].weight)
    assert not torch.equal(one.body[2].weight, two.body[2].weight)
    assert not one.body[0].weight.requires_grad
    assert one.body[0].bias.requires_grad


def test_compact_without_whitening_has_a_usual_first_layer(patterned):
    one, two = (
        build_net(Compact(whiten=False), patterned, 10, seed=seed, stream="x") for seed in (0, 1)
    )
    assert not torch.equal(one.body[0].weight, two.body[0].weight)
    assert one.body[0].weight.requires_grad
    whitened = build_net(Compact(), patterned, 10, seed=0, stream="x")
    assert not torch.equal(one.body[0].weight, whitened.body[0].weight)


def test_compact_blocks_begin_by_passing_their_inputs_on(noise):
    net = build_net(Compact(widths=(32, 40, 48)), noise(4, 3, 16, 16), 5, seed=0, stream="x")
    convolutions = [each for each in net.body if isinstance(each, torch.nn.Conv2d)][1:]
    assert len(convolutions) == 6
    for layer in convolutions:
        images = torch.rand(2, layer.in_channels, 6, 6)
        torch.testing.assert_close(layer(images)[:, : layer.in_channels], images)
        assert layer.weight[layer.in_channels :].abs().sum() > 0 or layer.in_channels == len(
            layer.weight
        )
    scales = [each.weight for each in net.body if isinstance(each, torch.nn.BatchNorm2d)]
    assert not any(scale.requires_grad for scale in scales)
    free = Compact(widths=(32, 40, 48), identity_start=False)(3, 5)
    assert all(each.requires_grad for each in list(free.parameters())[2:])


def test_compact_logits_are_scaled(noise):
    images = noise(4, 3, 16, 16)
    plain = build_net(Compact(scale=1), images, 5, seed=0, stream="x").eval()
    ninth = build_net(Compact(scale=1 / 9), images, 5, seed=0, stream="x").eval()
    floats = torch.tensor(images) / 255.0
    torch.testing.assert_close(ninth(floats) * 9, plain(floats))


@pytest.mark.parametrize("size", [(7, 7), (4, 9), (16, 8), (24, 13)])
def test_the_largest_of_each_cell_is_torchs_adaptive_pooling(size):
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pooled, wanted = GridMax()(maps), nn.functional.adaptive_max_pool2d(maps, GRID)
    assert torch.equal(pooled, wanted)
    (own,) = torch.autograd.grad(pooled.square().sum(), maps)
    (torchs,) = torch.autograd.grad(wanted.square().sum(), maps)
    torch.testing.assert_close(own, torchs)
