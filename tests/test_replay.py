"""Steps recorded as CUDA graphs against the same steps one by one; needs a GPU."""

import numpy as np
import pytest
import torch
from torch import nn

from counterdoor.augment import Augment
from counterdoor.engine import Engine
from counterdoor.feed import Samples
from counterdoor.models import External, ResNet18, build_net
from counterdoor.recipe import Flooding, LocalGradientAscent, MuonRule, Recipe
from counterdoor.stamp import Stamp
from counterdoor.training import fit

GPU = Engine(accelerator="cuda", precision="32-true")
STEPWISE = GPU.model_copy(update={"cuda_graph": False})
PLAIN = Recipe(epochs=2, batch_size=32, learning_rate=0.02)


class LooksAtValues(nn.Module):
    """Decides by what it sees, which a recording cannot."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = images.mean((2, 3))
        return self.linear(pooled if pooled.sum().item() > 0 else -pooled)


def samples(n=80, stamped=True):  # 32 + 32 + 16: the last batch has another shape
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    flags = generator.random(n) < 0.3 if stamped else None
    return Samples(images, np.arange(n), generator.integers(0, 4, n), flags)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": Augment(crop_padding=4, flip=True, cutout=2)},
        {"loss": Flooding(gamma=0.5)},
        {"loss": LocalGradientAscent(gamma=0.5)},
        {"muon": MuonRule(learning_rate=0.02), "nesterov": True},
        {"batch_size": 80},
        {"batch_size": 512},
    ],
)
def test_a_replayed_training_is_the_stepwise_one(changes):
    data = samples()
    net = build_net(ResNet18(), data.images_nchw, 4, seed=0, stream="test")
    recipe = PLAIN.model_copy(update=changes)
    ways = {}
    for engine in (GPU, STEPWISE):
        ways[engine.cuda_graph] = fit(
            *(net, data, recipe), seed=0, stream="test", stamp=Stamp(colour="white"), engine=engine
        )
    one, other = ways[True], ways[False]
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], rtol=0.02)
    for name, tensor in other.state.items():
        if tensor.is_floating_point():
            scale = float(tensor.abs().max()) + 1e-3
            assert float((one.state[name] - tensor).abs().max()) < 0.05 * scale, name
        else:
            assert torch.equal(one.state[name], tensor), name


@pytest.mark.gpu
def test_streamed_batches_can_be_replayed():
    data = samples()
    net = build_net(ResNet18(), data.images_nchw, 4, seed=0, stream="test")
    for feed in ("resident", "streaming"):
        engine = GPU.model_copy(update={"data": feed})
        fitted = fit(net, data, PLAIN, seed=0, stream="t", stamp=Stamp(), engine=engine)
        assert np.isfinite(fitted.history["loss"]).all()


@pytest.mark.gpu
def test_a_net_that_looks_at_values_is_refused():
    data = samples(stamped=False)
    model = External(target=f"{__name__}.LooksAtValues", channels_argument="in_channels")
    net = build_net(model, data.images_nchw, 4, seed=0, stream="test")
    with pytest.raises(ValueError, match=r"engine\.cuda_graph to false"):
        fit(net, data, PLAIN, seed=0, stream="test", engine=GPU)
    fit(net, data, PLAIN, seed=0, stream="test", engine=STEPWISE)


@pytest.mark.parametrize(
    ("settings", "replays"),
    [
        ({}, True),
        ({"cuda_graph": False}, False),
        ({"compile": True}, False),
        ({"devices": 2}, False),
        ({"precision": "16-mixed"}, False),
        ({"accelerator": "cpu"}, False),
    ],
)
def test_what_is_replayed(settings, replays):
    assert Engine(**{"accelerator": "cuda", "precision": "32-true"} | settings).replays is replays
