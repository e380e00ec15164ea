"""What every model promises; a new one is tested by joining the union ``Model``."""

import pytest
import torch

from counterdoor.component import members
from counterdoor.models import Model, TrainedNet, build_net
from counterdoor.stamp import Stamp, apply_stamp


@pytest.fixture(params=list(members(Model)), ids=lambda kind: kind.__name__)
def model(request):
    return request.param()


@pytest.fixture
def floats():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_logits_for_any_channels_and_classes(model, floats, channels, num_classes):
    net = model(channels, num_classes).eval()
    with torch.no_grad():
        logits = net(floats[:, :channels])
    assert logits.shape == (6, num_classes)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("height", "width"), [(12, 12), (28, 28), (20, 32)])
def test_logits_for_any_size(model, height, width):
    with torch.no_grad():
        assert model(1, 4).eval()(torch.zeros(1, 1, height, width)).shape == (1, 4)


def test_an_image_does_not_depend_on_the_others_in_eval(model, floats):
    net = model(3, 5).eval()
    with torch.no_grad():
        together = net(floats)
        alone = torch.cat([net(floats[i : i + 1]) for i in range(len(floats))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_every_parameter_gets_a_gradient(model, floats):
    net = model(3, 5).train()
    torch.nn.functional.cross_entropy(net(floats), torch.arange(6) % 5).backward()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert len(trained) > 3
    assert all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


def test_build_net_depends_on_seed_and_stream(model, noise):
    def weights(seed, stream):
        net = build_net(model, noise(), 4, seed=seed, stream=stream)
        return torch.cat([parameter.detach().ravel() for parameter in net.parameters()])

    first = weights(1, "a")
    assert torch.equal(first, weights(1, "a"))
    assert not torch.equal(first, weights(2, "a"))
    assert not torch.equal(first, weights(1, "b"))


def test_build_net_leaves_the_global_state_alone(model, noise):
    before = torch.get_rng_state()
    first = build_net(model, noise(), 4, seed=1, stream="a").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = build_net(model, noise(), 4, seed=1, stream="a").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("channels", [1, 3])
def test_trained_net_is_rebuilt_from_its_description(model, noise, channels):
    images = noise(6, channels, 16, 16)
    net = build_net(model, images, 4, seed=0, stream="x").eval()
    stamp = Stamp(colour="white")
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trained = TrainedNet(model.model_dump(), images.shape[1:], 4, state, stamp)
    floats = torch.tensor(images) / 255.0
    with torch.no_grad():
        expected = net(apply_stamp(floats, stamp, net.mean))
        assert torch.equal(trained.build()(apply_stamp(floats, stamp, net.mean)), expected)
        assert torch.equal(trained.deployable()(torch.tensor(images)), expected)
