"""What every model promises; a new one is tested by joining the union ``Model``."""

import pytest
import torch

from counterdoor.component import members
from counterdoor.io import TrainedNetDataset
from counterdoor.models import Model, TrainedNet, build_net, check_net
from counterdoor.stamp import Stamp, apply_stamp


@pytest.fixture(params=list(members(Model)), ids=lambda kind: kind.__name__)
def model(request, make_component):
    return make_component(request.param)


@pytest.fixture
def floats():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "num_classes"), [(1, 2), (3, 10)])
def test_logits_for_any_channels_and_classes(model, floats, channels, num_classes):
    net = model(channels, num_classes).eval()
    with torch.no_grad():
        logits = net(floats[:, :channels])
    assert logits.shape == (4, num_classes)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_logits_for_any_size(model):
    net = model(1, 4).eval()
    for size in ((12, 12), (28, 28), (32, 32), (20, 32)):
        with torch.no_grad():
            assert net(torch.zeros(1, 1, *size)).shape == (1, 4)


def settled(net, floats):
    """The net in eval mode, its batch norms' statistics those of these images.

    Those that it starts with let some nets shrink every image to nothing.
    """
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(floats)
    return net.eval()


def test_training_and_eval_mode_differ(model, floats):
    """Training uses the batch's own statistics, and updates the running ones."""
    net = model(3, 5)
    before = {name: each.clone() for name, each in net.named_buffers()}
    with torch.no_grad():
        evaluated, trained = net.eval()(floats), net.train()(floats)
    assert not torch.equal(trained, evaluated)
    assert trained.shape == evaluated.shape
    assert any(not torch.equal(before[name], each) for name, each in net.named_buffers())


def test_an_image_does_not_depend_on_the_others_in_eval(model, floats):
    net = settled(model(3, 5), floats)
    with torch.no_grad():
        together = net(floats)
        alone = torch.cat([net(floats[i : i + 1]) for i in range(len(floats))])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_every_parameter_gets_a_gradient(model, floats):
    net = model(3, 5).train()
    torch.nn.functional.cross_entropy(net(floats), torch.arange(4) % 5).backward()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert len(trained) > 3
    assert all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)
    assert all(torch.isfinite(parameter.grad).all() for parameter in trained)


def test_it_passes_the_check_before_training(model, noise):
    before = torch.get_rng_state()
    check_net(model, noise(3, 3), 4)
    check_net(model, noise(1, 1), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_build_net_depends_on_seed_and_stream_alone(model, noise):
    def weights(seed, stream):
        state = build_net(model, noise(), 4, seed=seed, stream=stream).state_dict()
        return torch.cat([tensor.float().ravel() for tensor in state.values()])

    before = torch.get_rng_state()
    first = weights(1, "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(first, weights(1, "a"))
    assert not torch.equal(first, weights(2, "a"))
    assert not torch.equal(first, weights(1, "b"))


def test_trained_net_is_rebuilt_from_its_description_and_from_its_file(model, noise, tmp_path):
    images = noise(3, 1, 16, 16)
    floats = torch.tensor(images) / 255.0
    net = settled(build_net(model, images, 4, seed=0, stream="x"), floats)
    stamp = Stamp(colour="white")
    trained = TrainedNet.of(model, images, 4, net.state_dict(), stamp)
    dataset = TrainedNetDataset(
        filepath=str(tmp_path / "net.safetensors"), model=model.model_dump(mode="json")
    )
    dataset.save(trained)
    with torch.no_grad():
        expected = net(apply_stamp(floats, stamp, net.mean))
        for each in (trained, dataset.load()):
            assert torch.equal(each.build()(apply_stamp(floats, stamp, net.mean)), expected)
            assert torch.equal(each.deployable()(torch.tensor(images)), expected)


def test_the_blueprint_is_the_state_without_its_memory(model, noise):
    images = noise(3, 3, 32, 32)
    state = build_net(model, images, 4, seed=0, stream="x").state_dict()
    blueprint = TrainedNet.of(model, images, 4, {}).blueprint()
    assert list(blueprint) == list(state)
    for name, tensor in blueprint.items():
        assert tensor.is_meta
        assert (tensor.shape, tensor.dtype) == (state[name].shape, state[name].dtype)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::FutureWarning:torch.*")
def test_the_deployable_net_can_be_exported(model, noise):
    """As tracking does it, with any number of images."""
    images = noise(3, 3, 16, 16)
    net = settled(build_net(model, images, 4, seed=0, stream="x"), torch.tensor(images) / 255.0)
    deployable = TrainedNet.of(model, images, 4, net.state_dict(), Stamp()).deployable()
    shapes = ({0: torch.export.Dim("n")},)
    example = torch.tensor(images[:2])
    exported = torch.export.export(deployable, (example,), dynamic_shapes=shapes).module()
    with torch.no_grad():
        logits = exported(torch.tensor(images))
        torch.testing.assert_close(logits, deployable(torch.tensor(images)))
    assert not torch.allclose(logits[0], logits[1])
