"""Batch norm over all processes, here one: the same as torch's, gradients included."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from counterdoor.batch_norm import GLOBAL, over_all_processes
from counterdoor.component import members
from counterdoor.models import Model


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


SIZES = {
    nn.BatchNorm1d: [(5, 3), (5, 3, 7)],
    nn.BatchNorm2d: [(5, 3, 4, 6)],
    nn.BatchNorm3d: [(5, 3, 4, 2, 3)],
}


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.4, None])
@pytest.mark.parametrize(
    ("kind", "size"), [(kind, size) for kind, sizes in SIZES.items() for size in sizes]
)
@pytest.mark.usefixtures("one_process")
def test_it_is_torchs_own_for_one_process(kind, size, affine, momentum, tracked):
    torch.manual_seed(0)
    plain = kind(3, momentum=momentum, affine=affine, track_running_stats=tracked)
    if affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    both = copy.deepcopy(plain)
    over_all_processes(both)
    assert type(both) is GLOBAL[kind]
    for _ in range(3):
        images = torch.randn(size) * 3 + 2
        one, two = images.clone().requires_grad_(), images.clone().requires_grad_()
        outputs = [plain(one), both(two)]
        weights = torch.randn(size)
        for output in outputs:
            (output * weights).sum().backward()
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-5)
    for (name, expected), (_, found) in zip(
        plain.state_dict().items(), both.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_predictions_need_no_other_process():
    net = nn.Sequential(nn.BatchNorm2d(3)).eval()
    images = torch.randn(2, 3, 4, 4)
    expected = net(images)
    over_all_processes(net)
    assert torch.equal(net(images), expected)


def test_other_layers_stay():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.SyncBatchNorm(2))
    over_all_processes(net)
    assert [type(module) for module in net] == [nn.Conv2d, nn.GroupNorm, nn.SyncBatchNorm]


def test_a_batch_norm_of_its_own_class_is_refused():
    class Renormalised(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="a Renormalised, whose batch statistics cannot"):
        over_all_processes(nn.Sequential(Renormalised(3)))


def test_every_batch_norm_of_our_nets_is_covered(make_component):
    for kind in members(Model):
        net = make_component(kind)(3, 10)
        over_all_processes(net)
        norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        assert norms
        assert {type(module) for module in norms} <= set(GLOBAL.values()), kind
