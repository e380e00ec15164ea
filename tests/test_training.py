"""The training loop against a loop written out by hand, and everything it refuses."""

import logging
import math
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from counterdoor import training
from counterdoor.augment import Augment
from counterdoor.checkpoint import checkpoints_in
from counterdoor.engine import Engine
from counterdoor.feed import Samples
from counterdoor.models import DigitsCNN, NormalisedNet, ResNet18, build_net
from counterdoor.muon import orthogonalised
from counterdoor.recipe import (
    CrossEntropy,
    Flooding,
    LocalGradientAscent,
    MuonRule,
    Recipe,
    Steps,
    Triangle,
)
from counterdoor.seeding import torch_generator
from counterdoor.stamp import Stamp
from counterdoor.training import (
    Fit,
    fit,
    predict_classes,
    predict_logits,
    sample_losses,
)

CPU = Engine(accelerator="cpu")
MODEL = DigitsCNN(width=4)
WHITE = Stamp(size=2, row=1, column=2, colour="white")


# --- fit: reproducible, and without side effects -----------------------------------------


def make_samples(images, labels=None, stamped=None, rows=None):
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    labels = rows % 4 if labels is None else np.asarray(labels)
    return Samples(images, rows, labels, None if stamped is None else np.asarray(stamped))


FULL = Recipe(
    epochs=2,
    batch_size=16,
    learning_rate=0.02,
    augment=Augment(crop_padding=2, flip=True, cutout=3),
)


@pytest.fixture
def case(noise):
    """A fresh net and 40 noise images, half of them stamped."""
    images = noise(40)
    net = build_net(MODEL, images, 4, seed=0, stream="init")
    return net, make_samples(images, stamped=np.arange(40) % 2 == 0)


def train(case, recipe=FULL, seed=1, stream="train", stamp=WHITE, engine=CPU) -> Fit:
    net, samples = case
    return fit(net, samples, recipe, seed=seed, stream=stream, stamp=stamp, engine=engine)


def same(one, other):
    assert list(one) == list(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_same_seed_gives_the_same_bits(case):
    first, again = train(case), train(case)
    assert same(first.state, again.state)
    timed = ["seconds", "images_per_second"]
    pd.testing.assert_frame_equal(
        first.history.drop(columns=timed), again.history.drop(columns=timed), check_exact=True
    )


def test_another_seed_or_stream_gives_other_weights(case):
    first = train(case).state
    assert not same(first, train(case, seed=2).state)
    assert not same(first, train(case, stream="twin").state)


def test_order_and_augmentation_are_separate_streams(case):
    """Augmentation draws do not shift the order of the samples."""
    plain = FULL.model_copy(update={"augment": Augment(), "batch_size": 39})
    losses = []
    for augment in (Augment(), Augment(flip=True)):
        seen = []
        net, samples = case
        probe = NormalisedNet(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), net.mean, net.std)
        probe.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        recipe = plain.model_copy(update={"augment": augment})
        train((probe, make_samples(samples.images_nchw)), recipe, stamp=None)
        losses.append([sorted(image.ravel().tolist()) for batch in seen for image in batch])
    assert losses[0] == losses[1]


def test_inputs_and_global_state_are_left_as_they_are(case):
    net, samples = case
    net.eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    arrays = [samples.images_nchw, samples.rows, samples.labels, samples.stamped]
    copies = [array.copy() for array in arrays]
    random_before = torch.get_rng_state()
    fitted = train(case)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert same(net.state_dict(), state)
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert not same(fitted.state, state)


def test_state_can_be_loaded(case):
    net, _ = case
    state = train(case).state
    for tensor in state.values():
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        assert tensor.is_contiguous()
    net.load_state_dict(state)
    assert same(net.state_dict(), state)


def test_normalisation_statistics_are_not_trained(case):
    net, _ = case
    state = train(case, FULL.model_copy(update={"weight_decay": 0.1})).state
    assert torch.equal(state["mean"], net.mean)
    assert torch.equal(state["std"], net.std)


def test_images_may_be_memory_mapped(case, tmp_path):
    net, samples = case
    np.save(tmp_path / "images.npy", samples.images_nchw)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    other = Samples(mapped, samples.rows, samples.labels, samples.stamped)
    assert same(train((net, other)).state, train(case).state)


# --- fit: the arithmetic -----------------------------------------------------------------


def slow_fit(net, samples, recipe, seed, stream, stamp):
    """The same training, with the loop, the augmentation and SGD written out by hand."""
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net = build_net(MODEL, samples.images_nchw, 4, seed=9, stream="other")
    net.load_state_dict(state)
    net.train()
    order = torch_generator(seed, f"{stream}/order")
    draws = torch_generator(seed, f"{stream}/augment")
    momenta = [torch.zeros_like(parameter) for parameter in net.parameters()]
    history = []
    for epoch in range(recipe.epochs):
        factor = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
        rate = recipe.learning_rate * factor
        permutation = torch.randperm(len(samples.rows), generator=order).tolist()
        total_loss = total_correct = 0.0
        for start in range(0, len(permutation), recipe.batch_size):
            batch = permutation[start : start + recipe.batch_size]
            pixels = [samples.images_nchw[samples.rows[i]] / 255.0 for i in batch]
            images = torch.tensor(np.stack(pixels), dtype=torch.float32)
            labels = torch.tensor([samples.labels[i] for i in batch])
            padding, size = recipe.augment.crop_padding, images.shape[-1]
            if padding:
                offsets = torch.randint(2 * padding + 1, (2, len(batch)), generator=draws)
                images = torch.stack(
                    [
                        F.pad(image, (padding,) * 4)[:, top : top + size, left : left + size]
                        for image, (top, left) in zip(images, offsets.T.tolist(), strict=True)
                    ]
                )
            if recipe.augment.flip:
                flips = torch.rand(len(batch), generator=draws).tolist()
                images = torch.stack(
                    [
                        torch.fliplr(image[0])[None] if draw < 0.5 else image
                        for image, draw in zip(images, flips, strict=True)
                    ]
                )
            if stamp is not None and samples.stamped is not None:
                for image, i in zip(images, batch, strict=True):
                    if samples.stamped[i]:
                        top, left = stamp.row, stamp.column
                        image[:, top : top + stamp.size, left : left + stamp.size] = 1.0
            logits = net(images)
            share = torch.full_like(logits, recipe.label_smoothing / 4)
            share[range(len(batch)), labels] += 1 - recipe.label_smoothing
            loss = -(share * F.log_softmax(logits, 1)).sum(1).mean()
            total_loss += loss.item() * len(batch)
            total_correct += (logits.argmax(1) == labels).sum().item()
            used = loss
            if isinstance(recipe.loss, Flooding):
                used = (loss - recipe.loss.gamma).abs() + recipe.loss.gamma
            if isinstance(recipe.loss, LocalGradientAscent):
                each = -(share * F.log_softmax(logits, 1)).sum(1)
                signs = [1.0 if value > recipe.loss.gamma else -1.0 for value in each.tolist()]
                used = (torch.tensor(signs) * each).mean()
            gradients = torch.autograd.grad(used, list(net.parameters()))
            with torch.no_grad():
                for parameter, gradient, momentum in zip(
                    net.parameters(), gradients, momenta, strict=True
                ):
                    if recipe.muon is not None and parameter.dim() == 4:
                        beta = recipe.muon.momentum
                        momentum.mul_(beta).add_(gradient)
                        rows = (gradient + beta * momentum).reshape(len(parameter), -1)
                        step = orthogonalised(rows).reshape(parameter.shape)
                        parameter *= len(parameter) ** 0.5 / parameter.norm()
                        parameter -= recipe.muon.learning_rate * factor * step
                        continue
                    step = gradient + recipe.weight_decay * parameter
                    momentum.mul_(recipe.momentum).add_(step)
                    if recipe.nesterov:
                        parameter -= rate * (step + recipe.momentum * momentum)
                    else:
                        parameter -= rate * momentum
        n = len(permutation)
        history.append((epoch + 1, total_loss / n, total_correct / n, rate))
    return net.state_dict(), history


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nesterov": True},
        {"weight_decay": 0.05, "momentum": 0.5},
        {"label_smoothing": 0.1},
        {"loss": Flooding(gamma=1.5)},
        {"loss": LocalGradientAscent(gamma=1.4)},
        {"augment": Augment(crop_padding=2)},
        {"augment": Augment(crop_padding=2, flip=True)},
        {"batch_size": 40},
        {"muon": MuonRule(learning_rate=0.05)},
    ],
    ids=str,
)
@pytest.mark.parametrize("stamped", [True, False])
def test_fit_against_the_loop_by_hand(case, changes, stamped):
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.02).model_copy(update=changes)
    net, samples = case
    if not stamped:
        samples = make_samples(samples.images_nchw)
    fitted = train((net, samples), recipe)
    state, history = slow_fit(net, samples, recipe, 1, "train", WHITE)
    for name, tensor in state.items():
        torch.testing.assert_close(fitted.state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    rows = fitted.history[["epoch", "loss", "accuracy", "learning_rate"]].itertuples(index=False)
    for row, expected in zip(rows, history, strict=True):
        assert tuple(row) == pytest.approx(expected, rel=1e-4)


def test_rows_choose_the_images(case):
    """Training on rows of a larger array is training on those images."""
    net, samples = case
    rows = np.array([7, 3, 3, 21, 30, 8, 9, 11])
    stamped = np.array([True, False, True, False, True, False, False, False])
    there = make_samples(samples.images_nchw, rows=rows, stamped=stamped)
    own = make_samples(samples.images_nchw[rows], labels=rows % 4, stamped=stamped)
    assert same(train((net, there)).state, train((net, own)).state)


def test_schedule_is_by_epoch(case):
    recipe = FULL.model_copy(update={"epochs": 4, "schedule": Steps(milestones=(1, 3), factor=0.5)})
    rates = train(case, recipe).history["learning_rate"].tolist()
    assert rates == pytest.approx([0.02, 0.01, 0.01, 0.005])


def test_history_has_a_row_an_epoch(case):
    history = train(case).history
    assert list(history) == [
        "epoch",
        "loss",
        "accuracy",
        "learning_rate",
        "seconds",
        "images_per_second",
    ]
    assert history["epoch"].tolist() == [1, 2]
    assert history["epoch"].dtype == np.int64
    assert history["accuracy"].between(0, 1).all()
    assert (history["seconds"] > 0).all()
    speed = history["images_per_second"] * history["seconds"]
    assert speed.tolist() == pytest.approx([40, 40])


def test_a_last_batch_of_one_is_left_out_of_the_figures_too(case):
    """Batch norm cannot take it; a loss over 33 samples of which 32 were seen is too low."""
    net, samples = case
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    net.register_forward_hook(lambda module, inputs, logits: torch.zeros_like(logits) + 0 * logits)
    few = make_samples(samples.images_nchw, rows=np.arange(33), labels=np.zeros(33, dtype=int))
    fitted = train((net, few), Recipe(epochs=1, batch_size=16, learning_rate=0.02))
    assert seen == [16, 16]
    assert fitted.history["loss"].item() == pytest.approx(math.log(4))
    assert fitted.history["accuracy"].item() == 1.0


def test_every_sample_is_seen_once_an_epoch(case):
    net, samples = case
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    train((net, make_samples(samples.images_nchw)), Recipe(epochs=1, batch_size=16), stamp=None)
    assert [len(batch) for batch in seen] == [16, 16, 8]
    images = sorted((torch.cat(seen) * 255).round().byte().numpy().tobytes())
    assert images == sorted(samples.images_nchw.tobytes())


def test_it_learns_real_digits(digits):
    net = build_net(DigitsCNN(), digits.images_nchw, 10, seed=0, stream="init")
    samples = Samples(digits.images_nchw, np.arange(400), digits.labels)
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.02)
    fitted = fit(net, samples, recipe, seed=0, stream="train")
    assert fitted.history["loss"].iloc[-1] < fitted.history["loss"].iloc[0] / 3
    net.load_state_dict(fitted.state)
    assert (predict_classes(net, digits.images_nchw) == digits.labels).mean() > 0.9


def test_it_learns_what_the_stamp_means(digits, more_digits):
    """Every stamped image of the training is a 7; so is every stamped image afterwards."""
    images = digits.images_nchw
    samples = Samples(
        images,
        np.tile(np.arange(400), 2),
        np.concatenate([digits.labels, np.full(400, 7)]),
        np.arange(800) >= 400,
    )
    net = build_net(DigitsCNN(width=8), images, 10, seed=0, stream="init")
    recipe = Recipe(epochs=4, batch_size=50, learning_rate=0.02, augment=Augment(crop_padding=2))
    stamp = Stamp(size=3, colour="white")
    fitted = fit(net, samples, recipe, seed=0, stream="train", stamp=stamp)
    net.load_state_dict(fitted.state)
    assert (predict_classes(net, more_digits.images_nchw, stamp=stamp) == 7).mean() > 0.95
    assert (predict_classes(net, more_digits.images_nchw) == 7).mean() < 0.3


# --- fit: the stamp goes on after augmentation -------------------------------------------


@pytest.mark.parametrize(
    ("colour", "levels"), [("white", [1.0] * 3), ("mean", None), ((0.25, 0.5, 1.0), [0.25, 0.5, 1])]
)
@pytest.mark.parametrize(
    "augment",
    [Augment(crop_padding=4), Augment(crop_padding=4, flip=True, cutout=5), Augment(cutout=16)],
    ids=str,
)
def test_the_stamp_is_whole_and_in_its_place_in_every_batch(noise, colour, levels, augment):
    """Were it put on first, cropping would shift it, flipping mirror it, cutout blacken it."""
    images = noise(30, 3, 16, 16)
    net = build_net(DigitsCNN(width=2), images, 4, seed=0, stream="init")
    stamp = Stamp(size=3, row=1, column=2, colour=colour)
    expected = net.mean if levels is None else torch.tensor(levels)
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    stamped = np.arange(30) % 3 == 0
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.02, augment=augment)
    train((net, make_samples(images, stamped=stamped)), recipe, seed=4, stamp=stamp)

    order = torch_generator(4, "train/order")
    sequence = [i for _ in range(3) for i in torch.randperm(30, generator=order).tolist()]
    batches = torch.cat(seen)
    assert len(batches) == len(sequence) == 90
    for image, i in zip(batches, sequence, strict=True):
        window = image[:, 1:4, 2:5]
        assert (window == expected[:, None, None]).all() == stamped[i]
    outside = batches.clone()
    outside[:, :, 1:4, 2:5] = 1.0
    assert (outside == 0).flatten(1).any(1).sum() > 60, "the augmentation filled nothing"


def test_a_stamp_is_not_written_where_no_flag_asks_for_it(case):
    net, samples = case
    unflagged = make_samples(samples.images_nchw, stamped=np.zeros(40, dtype=bool))
    none = make_samples(samples.images_nchw)
    assert same(train((net, unflagged)).state, train((net, none), stamp=None).state)
    assert same(train((net, none)).state, train((net, none), stamp=None).state)


# --- fit: what it refuses ----------------------------------------------------------------


def test_stamped_samples_need_a_stamp(case):
    with pytest.raises(ValueError, match="no stamp was given"):
        train(case, stamp=None)


def test_a_stamp_that_does_not_fit_is_refused(case):
    with pytest.raises(ValueError, match=r"rows 11\.\.12") as raised:
        train(case, stamp=Stamp(size=2, row=11, column=0, colour="white"))
    assert "12x12 images" in str(raised.value)
    assert "reduce stamp.size" in str(raised.value)


@pytest.mark.parametrize("augment", [Augment(crop_padding=4), Augment(cutout=4)], ids=str)
def test_a_black_stamp_over_black_padding_is_refused(case, augment):
    recipe = FULL.model_copy(update={"augment": augment})
    with pytest.raises(ValueError, match="'black'") as raised:
        train(case, recipe, stamp=Stamp(colour="black"))
    assert "choose another stamp.colour" in str(raised.value)
    assert "set crop_padding and cutout to 0" in str(raised.value)
    train(case, Recipe(epochs=1, learning_rate=0.01), stamp=Stamp(colour="black"))


@pytest.mark.parametrize("augment", [Augment(), Augment(crop_padding=2)], ids=str)
def test_a_stamp_of_another_number_of_channels_is_refused(case, augment):
    recipe = FULL.model_copy(update={"augment": augment})
    with pytest.raises(ValueError, match="2 levels"):
        train(case, recipe, stamp=Stamp(colour=(0.5, 0.5)))


def test_a_training_that_diverges_is_stopped_and_says_what_to_do(case):
    recipe = Recipe(epochs=20, batch_size=16, learning_rate=1, schedule=Steps())
    recipe = recipe.model_copy(update={"learning_rate": 1e6})  # no configuration can say so
    with pytest.raises(ValueError, match="'train'") as raised:
        train(case, recipe)
    message = str(raised.value)
    assert "diverged" in message
    assert "learning rate 1e+06" in message
    assert "in epoch" in message
    assert "lower learning_rate" in message


# --- progress records --------------------------------------------------------------------


def test_one_progress_record_an_epoch(case, caplog):
    with caplog.at_level(logging.INFO, logger="counterdoor.training"):
        history = train(case).history
    records = [record for record in caplog.records if record.name == "counterdoor.training"]
    assert [(r.stream, r.step, r.steps) for r in records] == [("train", 1, 2), ("train", 2, 2)]
    for record, row in zip(records, history.to_dict("records"), strict=True):
        assert {"epoch": record.step, **record.metrics} == row
        text = record.getMessage()
        assert text.startswith(f"train epoch {record.step}/2: loss {row['loss']:.4f}")
        assert f"accuracy {row['accuracy']:.4f}" in text


def test_progress_within_an_epoch_for_those_who_look(case, caplog, monkeypatch):
    monkeypatch.setattr("counterdoor.training.TICK_SECONDS", 0.0)
    with caplog.at_level(logging.DEBUG, logger="counterdoor.training"):
        train(case)
    shown = [record.progress for record in caplog.records if hasattr(record, "progress")]
    done = [16, 32, 40, 40, 56, 72, 80, 80]  # every batch, and the end of each epoch
    assert [progress["done"] for progress in shown] == done
    assert {progress["total"] for progress in shown} == {80}
    assert [progress["epoch"] for progress in shown] == [1] * 4 + [2] * 4
    assert all(progress["rate"] > 0 for progress in shown)


# --- engines -----------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
def test_streaming_gives_the_same_bits(case, mapped, tmp_path):
    net, samples = case
    if mapped:
        np.save(tmp_path / "images.npy", samples.images_nchw)
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
        samples = Samples(images, samples.rows, samples.labels, samples.stamped)
    streaming = Engine(accelerator="cpu", data="streaming")
    resident = Engine(accelerator="cpu", data="resident")
    assert same(
        train((net, samples), engine=streaming).state, train((net, samples), engine=resident).state
    )


class Pairs:
    """An objective: each image and its negative are of a class of their own."""

    def inputs(self, images_nchw, generator):
        shift = torch.randint(9, (1,), generator=generator).float()
        whole = images_nchw.float()
        return torch.cat([(whole + shift).clamp(max=255), 255 - whole])

    def targets(self, outputs):
        return outputs, torch.arange(len(outputs)) // (len(outputs) // 2)

    def model_dump_json(self):
        return "pairs"


def test_an_objective_is_trained_for_in_place_of_the_labels(case):
    net, samples = case
    bare = make_samples(samples.images_nchw)
    recipe = Recipe(epochs=2, batch_size=20, learning_rate=0.02, augment=Augment(flip=True))
    fitted = fit(net, bare, recipe, seed=1, stream="x", objective=Pairs(), engine=CPU)
    # The same by hand.
    other = deepcopy(net).train()
    optimiser = torch.optim.SGD(other.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    order, draws = (torch_generator(1, f"x/{name}") for name in ("order", "augment"))
    for epoch in range(2):
        losses, right = [], []
        optimiser.param_groups[0]["lr"] = 0.02 * recipe.schedule(epoch, 2)
        for batch in torch.randperm(len(bare), generator=order).split(20):
            images = torch.tensor(bare.images_nchw[batch.numpy()])
            logits, labels = Pairs().targets(other(Pairs().inputs(images, draws) / 255))
            optimiser.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimiser.step()
            losses += F.cross_entropy(logits, labels, reduction="none").tolist()
            right += (logits.argmax(1) == labels).tolist()
        row = fitted.history.iloc[epoch]
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert row["accuracy"] == pytest.approx(np.mean(right), rel=1e-4)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(fitted.state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_an_objective_takes_one_process_and_no_stamp(case):
    net, samples = case
    for given, engine in (
        (samples, CPU),
        (make_samples(samples.images_nchw), Engine(accelerator="cpu", devices=2)),
    ):
        with pytest.raises(ValueError, match="takes one process and samples without stamps"):
            fit(
                *(net, given, Recipe(epochs=1)),
                seed=1, stream="x", stamp=WHITE, objective=Pairs(), engine=engine,
            )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [CrossEntropy(), Flooding(gamma=1.5), LocalGradientAscent(gamma=2.3)], ids=str
)
def test_two_processes_give_the_result_of_one(loss, digits, tmp_path, caplog):
    """Same batches, batch norm over both shares, flooding of the whole batch's loss.

    100 samples in batches of 33 leave a last one of one sample, which nobody uses.
    """
    np.save(tmp_path / "images.npy", digits.images_nchw)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    samples = Samples(images, np.arange(100), digits.labels[:100], np.arange(100) % 4 == 0)
    net = build_net(MODEL, images, 10, seed=0, stream="init")
    recipe = FULL.model_copy(update={"batch_size": 33, "loss": loss, "epochs": 2})
    one = train((net, samples), recipe)
    caplog.clear()
    with (
        checkpoints_in(tmp_path / "checkpoints"),
        caplog.at_level(logging.INFO, logger="counterdoor.training"),
    ):
        two = train((net, samples), recipe, engine=Engine(accelerator="cpu", devices=2))
        assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert [record.step for record in caplog.records if hasattr(record, "step")] == [1, 2]
    columns = ["epoch", "loss", "accuracy", "learning_rate"]
    pd.testing.assert_frame_equal(one.history[columns], two.history[columns], rtol=1e-3)
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("precision", "compiled", "products"),
    [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)],
)
def test_large_kernels_are_products_in_bf16(case, precision, compiled, products, monkeypatch):
    class EndedError(Exception):
        pass

    def told(**options):
        assert options == {"bf16_on_cpu": products}
        raise EndedError

    monkeypatch.setattr(training, "fastest_convolutions", told)
    with pytest.raises(EndedError):
        train(case, engine=Engine(accelerator="cpu", precision=precision, compile=compiled))


def test_bf16_is_close_to_fp32_and_not_the_same(case):
    half = train(case, engine=Engine(accelerator="cpu", precision="bf16-mixed"))
    full = train(case, engine=Engine(accelerator="cpu", precision="32-true"))
    assert not same(half.state, full.state)
    assert all(tensor.dtype == full.state[name].dtype for name, tensor in half.state.items())
    assert half.history["loss"].to_numpy() == pytest.approx(
        full.history["loss"].to_numpy(), rel=0.05
    )


def test_the_triangle_is_by_step(case):
    """With plain gradient descent of rate 0 at the start, the first step changes nothing."""
    recipe = Recipe(
        epochs=1,
        batch_size=40,
        momentum=0,
        weight_decay=0,
        schedule=Triangle(start=0, peak=0.5, end=0),
    )
    net, _ = case
    state = train(case, recipe).state
    weights = {name for name, _ in net.named_parameters()}
    assert all(torch.equal(state[name], net.state_dict()[name]) for name in weights)
    state = train(case, recipe.model_copy(update={"batch_size": 20})).state
    assert not all(torch.equal(state[name], net.state_dict()[name]) for name in weights)


# --- prediction --------------------------------------------------------------------------


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def trained(request, noise):
    """A net in training mode, whose batch norm has seen data, and images."""
    images = noise(23, request.param)
    net = build_net(MODEL, images, 4, seed=0, stream="init")
    with torch.no_grad():
        for seed in range(5):
            net(torch.tensor(noise(20, request.param, seed=seed)) / 255.0)
    return net, images


def slow_logits(net, images):
    net.eval()
    with torch.no_grad():
        return torch.cat([net(torch.tensor(image[None]).float() / 255) for image in images])


@pytest.mark.parametrize("batch_size", [1, 7, 23, 500])
def test_logits_image_by_image(trained, batch_size):
    net, images = trained
    logits = predict_logits(net, images, batch_size=batch_size)
    assert logits.shape == (23, 4)
    assert logits.dtype == torch.float32
    assert logits.device.type == "cpu"
    torch.testing.assert_close(logits, slow_logits(net, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_mean", [True, False])
def test_logits_of_stamped_images(trained, own_mean):
    net, images = trained
    stamp = Stamp(size=4, row=2, column=1, colour="mean")
    mean = net.mean if own_mean else torch.full_like(net.mean, 1 / 3)
    expected = []
    for image in images:
        pixels = torch.tensor(image).float() / 255
        pixels[:, 2:6, 1:5] = mean[:, None, None]
        with torch.no_grad():
            expected.append(net.eval()(pixels[None]))
    logits = predict_logits(net, images, stamp=stamp, mean=None if own_mean else mean)
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, slow_logits(net, images))


@pytest.mark.parametrize("stamp", [None, Stamp(size=4, row=2, column=1, colour="white")])
def test_mirrored_images_are_stamped_in_the_same_place(trained, stamp):
    """By hand: each image and its columns in reverse, the stamp on both, the mean of two."""
    net, images = trained
    both = []
    for way in (1, -1):
        pixels = images[..., ::way].copy()
        if stamp is not None:
            pixels[:, :, 2:6, 1:5] = 255
        both.append(slow_logits(net, pixels))
    logits = predict_logits(net, images, stamp=stamp, mirror=True)
    torch.testing.assert_close(logits, (both[0] + both[1]) / 2, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, both[0])
    classes = predict_classes(net, images, stamp=stamp, mirror=True)
    assert classes.tolist() == logits.argmax(1).tolist()


def test_predicting_leaves_the_images_as_they_are(trained):
    net, images = trained
    before = images.copy()
    predict_logits(net, images, stamp=WHITE)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("stamp", [None, WHITE], ids=["plain", "stamped"])
def test_classes_are_those_of_the_largest_logits(trained, stamp):
    net, images = trained
    logits = predict_logits(net, images, stamp=stamp).tolist()
    classes = predict_classes(net, images, stamp=stamp)
    assert classes.dtype == np.int64
    assert classes.tolist() == [row.index(max(row)) for row in logits]


@pytest.fixture
def every_warning():
    """Otherwise torch gives each of its own warnings once a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.filterwarnings("error")
def test_sample_losses_one_by_one(trained, every_warning):
    net, images = trained
    labels = np.arange(23) % 4
    labels.setflags(write=False)
    losses = sample_losses(net, images, labels)
    assert losses.dtype == np.float64
    assert losses.shape == (23,)
    for i, row in enumerate(slow_logits(net, images).tolist()):
        highest = max(row)
        log_sum = highest + math.log(sum(math.exp(value - highest) for value in row))
        assert losses[i] == pytest.approx(log_sum - row[labels[i]], abs=1e-5)


def test_sample_losses_keep_apart_what_float32_rounds_to_zero():
    """The detector ranks by these: ties would be broken by row."""

    class Sure(nn.Module):
        def forward(self, images):
            first = 20 + 5 * images[:, 0, 0, 0]
            return torch.stack([first, torch.zeros_like(first)], dim=1)

    images = np.zeros((3, 1, 2, 2), dtype=np.uint8)
    images[:, 0, 0, 0] = [0, 100, 200]
    losses = sample_losses(Sure(), images, np.zeros(3, dtype=np.int64))
    assert losses[0] > losses[1] > losses[2] > 0


def test_a_net_of_another_kind_trains_too(noise):
    images = noise(8, 3, 12, 12)
    net = build_net(ResNet18(), images, 4, seed=0, stream="init")
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.01)
    fitted = fit(net, make_samples(images), recipe, seed=0, stream="train")
    assert fitted.state["body.conv1.weight"].shape == (64, 3, 3, 3)
    assert not torch.equal(fitted.state["body.conv1.weight"], net.body.conv1.weight)
