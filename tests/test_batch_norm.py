"""Batch norm over all processes, here one: the same as torch's, gradients included."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from counterdoor.batch_norm import GlobalBatchNorm2d, over_all_processes


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.4])
@pytest.mark.usefixtures("one_process")
def test_it_is_torchs_own_for_one_process(affine, momentum):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    if affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    both = copy.deepcopy(plain)
    over_all_processes(both)
    assert isinstance(both, GlobalBatchNorm2d)
    for _ in range(3):
        images = torch.randn(5, 3, 4, 6) * 3 + 2
        one, two = images.clone().requires_grad_(), images.clone().requires_grad_()
        outputs = [plain(one), both(two)]
        weights = torch.randn(5, 3, 4, 6)
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
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm1d(4))
    over_all_processes(net)
    assert [type(module) for module in net] == [nn.Conv2d, nn.BatchNorm1d]
