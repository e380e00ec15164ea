"""A training that was cut off ends with the same bits as one that was not."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from counterdoor import training
from counterdoor.augment import Augment
from counterdoor.checkpoint import (
    Checkpoint,
    checkpoints_in,
    results_shared_in,
    seconds_taken_over,
)
from counterdoor.engine import Engine
from counterdoor.feed import Samples
from counterdoor.models import DigitsCNN, NormalisedNet, build_net
from counterdoor.recipe import MuonRule, Recipe
from counterdoor.stamp import Stamp
from counterdoor.training import fit

CPU = Engine(accelerator="cpu")
RECIPE = Recipe(
    epochs=5,
    batch_size=16,
    learning_rate=0.02,
    augment=Augment(crop_padding=2, flip=True, cutout=3),
)


class Cut(BaseException):
    """What a kill looks like from inside."""


class CutAt(logging.Handler):
    """Ends the training after some epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.seen = epoch, []

    def emit(self, record):
        self.seen.append(record.step)
        if record.step == self.epoch:
            raise Cut


def train(case, recipe=RECIPE, cut_at=None, **changes):
    """Fit; gives back the result and the epochs that were trained now."""
    net, samples = case
    handler = CutAt(cut_at)
    logger = logging.getLogger("counterdoor.training")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    settings = {"seed": 1, "stream": "train", "stamp": Stamp(colour="white"), "engine": CPU}
    try:
        return fit(net, samples, recipe, **(settings | changes)), handler.seen
    except Cut:
        return None, handler.seen
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture(params=["batch norm", "dropout"])
def case(request, noise):
    images = noise(40)
    net = build_net(DigitsCNN(width=4), images, 4, seed=0, stream="init")
    if request.param == "dropout":
        body = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(144, 4))
        net = NormalisedNet(body, net.mean, net.std)
    labels = np.arange(40) % 4
    return net, Samples(images, np.arange(40), labels, np.arange(40) % 3 == 0)


def same(one, other):
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.parametrize("muon", [None, MuonRule(learning_rate=0.05)], ids=["sgd", "muon"])
@pytest.mark.parametrize("cut_at", [1, 3, 5])
def test_cut_off_and_resumed_is_as_if_never_cut(case, cut_at, muon, tmp_path):
    recipe = RECIPE.model_copy(update={"muon": muon})
    whole, _ = train(case, recipe)
    torch.rand(7)  # another process would have drawn other numbers elsewhere
    with checkpoints_in(tmp_path):
        cut, seen = train(case, recipe, cut_at=cut_at)
        assert cut is None
        assert seen == list(range(1, cut_at + 1))
        torch.manual_seed(123)
        resumed, seen = train(case, recipe)
    assert seen == list(range(cut_at + 1, 6))
    assert same(whole, resumed)
    columns = ["epoch", "loss", "accuracy", "learning_rate"]
    assert whole.history[columns].equals(resumed.history[columns])
    assert len(resumed.history) == 5


def test_cut_off_again_and_again(case, tmp_path):
    whole, _ = train(case)
    with checkpoints_in(tmp_path):
        for epoch in (1, 2, 3):
            assert train(case, cut_at=epoch) == (None, [epoch])
        assert same(whole, train(case)[0])


def test_a_training_that_ended_is_not_repeated(case, tmp_path):
    with checkpoints_in(tmp_path):
        first, _ = train(case)
        again, seen = train(case)
    assert seen == []
    assert same(first, again)


def changed_label(samples):
    labels = samples.labels.copy()
    labels[7] = 3 - labels[7]
    return Samples(samples.images_nchw, samples.rows, labels, samples.stamped)


def changed_pixel(samples):
    images = samples.images_nchw.copy()
    images[39, 0, 11, 11] ^= 1
    return Samples(images, samples.rows, samples.labels, samples.stamped)


def changed_flag(samples):
    flags = samples.stamped.copy()
    flags[1] ^= True
    return Samples(samples.images_nchw, samples.rows, samples.labels, flags)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"stream": "twin"},
        {"stamp": Stamp(colour="white", row=1)},
        {"recipe": RECIPE.model_copy(update={"learning_rate": 0.01})},
        {"engine": Engine(accelerator="cpu", precision="bf16-mixed")},
        {"samples": changed_label},
        {"samples": changed_pixel},
        {"samples": changed_flag},
    ],
    ids=str,
)
def test_another_training_does_not_find_it(case, change, tmp_path):
    net, samples = case
    change = dict(change)
    if "samples" in change:
        samples = change.pop("samples")(samples)
    with checkpoints_in(tmp_path):
        train(case, cut_at=2)
        _, seen = train((net, samples), **change)
    assert seen == [1, 2, 3, 4, 5]


def test_another_start_does_not_find_it(case, tmp_path):
    net, samples = case
    with checkpoints_in(tmp_path):
        train(case, cut_at=2)
        with torch.no_grad():
            next(net.parameters()).view(-1)[0] += 1
        assert train((net, samples))[1] == [1, 2, 3, 4, 5]


def test_how_images_are_read_does_not_matter(case, tmp_path):
    with checkpoints_in(tmp_path):
        train(case, cut_at=2)
        _, seen = train(case, engine=Engine(accelerator="cpu", data="streaming"))
    assert seen == [3, 4, 5]


@pytest.mark.parametrize("keep", [0, 1, 60])
def test_a_damaged_file_is_as_good_as_none(case, keep, tmp_path):
    whole, _ = train(case)
    with checkpoints_in(tmp_path):
        train(case, cut_at=2)
        (file,) = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[: keep * file.stat().st_size // 100])
        resumed, seen = train(case)
    assert seen == [1, 2, 3, 4, 5]
    assert same(whole, resumed)


def test_one_file_a_training_and_nothing_half_written(case, tmp_path):
    with checkpoints_in(tmp_path / "deep" / "folder"):
        train(case)
        train(case, stream="relabel/vd")
    names = sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir())
    assert len(names) == 2
    assert names[0].startswith("relabel-vd-")
    assert names[1].startswith("train-")
    assert all(name.endswith(".safetensors") for name in names)


def test_nothing_is_saved_outside_the_block(case, tmp_path):
    with checkpoints_in(tmp_path), checkpoints_in(tmp_path / "inner"):
        pass
    train(case)
    assert list(tmp_path.iterdir()) == []
    assert Checkpoint.of("train", lambda: pytest.fail("a digest nobody needs")) is None


def test_an_interrupt_while_saving_leaves_the_last_state_alone(case, tmp_path, monkeypatch):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half")
        raise Cut

    with checkpoints_in(tmp_path):
        train(case, cut_at=2)
        (saved,) = tmp_path.iterdir()
        before = saved.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("counterdoor.checkpoint.save_file", interrupted)
            assert train(case)[0] is None
        assert list(tmp_path.iterdir()) == [saved]
        assert saved.read_bytes() == before


# --- results that are shared ---------------------------------------------------------------


def test_a_training_is_made_once_where_results_are_shared(case, tmp_path, monkeypatch):
    with results_shared_in(tmp_path / "shared"):
        first, trained = train(case)
        again, told = train(case)
        monkeypatch.setattr(training, "_train", None)  # fails if it is called
        taken, _ = train(case)
    assert trained == told == [1, 2, 3, 4, 5]
    for other in (again, taken):
        assert same(first, other)
        assert other.history.equals(first.history)
    with pytest.raises(TypeError):
        train(case)
    assert [file.suffix for file in (tmp_path / "shared").iterdir()] == [".safetensors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"stream": "other"},
        {"stamp": Stamp(size=3, colour="white")},
        {"recipe": RECIPE.model_copy(update={"epochs": 4})},
        {"stream": "defended"},
        {"stream": "defended/teacher"},
    ],
)
def test_another_training_shares_nothing(case, changes, tmp_path, monkeypatch):
    with results_shared_in(tmp_path):
        train(case, **changes if changes.get("stream", "").startswith("defended") else {})
        monkeypatch.setattr(training, "_train", None)
        with pytest.raises(TypeError):
            train(case, **changes)


def test_a_damaged_result_is_as_good_as_none(case, tmp_path):
    with results_shared_in(tmp_path):
        first, _ = train(case)
        (file,) = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[:100])
        again, _ = train(case)
        assert same(first, again)
        taken, _ = train(case)
        assert same(first, taken)


def test_the_seconds_of_a_shared_training_are_told(case, tmp_path):
    with results_shared_in(tmp_path):
        with seconds_taken_over() as own:
            first, _ = train(case)
        with seconds_taken_over() as elsewhere:
            train(case)
    assert own == []
    assert elsewhere == [pytest.approx(first.history["seconds"].sum())]
