"""Dynamic: what its generators learn, and what they do to images."""

import logging

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from counterdoor.attacks import AttackerNet, Dynamic
from counterdoor.attacks.trigger_generator import TriggerGenerator
from counterdoor.augment import Augment
from counterdoor.models import DigitsCNN
from counterdoor.recipe import Recipe

OWN = AttackerNet(
    model=DigitsCNN(width=4), recipe=Recipe(epochs=3, batch_size=50, learning_rate=0.02)
)
ATTACK = Dynamic(
    net=OWN, victim=Augment(), width=4, mask_epochs=3, learning_rate=0.01, p_attack=0.2, p_cross=0.2
)


@pytest.fixture(scope="module")
def history():
    return []


@pytest.fixture(scope="module")
def prepared(digits, history):
    """Generators trained on 400 real digits; what was logged meanwhile is in ``history``."""

    class Keep(logging.Handler):
        def emit(self, record):
            history.append(record)

    training, handler = logging.getLogger("counterdoor.training"), Keep()
    level = training.level
    training.addHandler(handler)
    training.setLevel(logging.INFO)
    try:
        return ATTACK.prepare(digits.images_nchw, digits.labels, 10, seed=0)
    finally:
        training.removeHandler(handler)
        training.setLevel(level)


def slow_trigger(image, donor, prepared, channels=1):
    """One image with the trigger of a donor, in [0, 255], not rounded."""
    maps = []
    for part, outputs, sharpness in (("mask", 1, 10.0), ("pattern", channels, 1.0)):
        net = TriggerGenerator(channels, outputs, 4, sharpness).double()
        net.load_state_dict(
            {k[len(part) + 1 :]: v for k, v in prepared.items() if k.startswith(f"{part}/")}
        )
        with torch.no_grad():
            maps.append(net(torch.tensor(donor[None] / 255.0))[0].numpy())
    mask, pattern = maps
    return 255.0 * (image / 255.0 * (1.0 - mask) + pattern * mask)


def same(levels, expected):
    """Whether levels are the expected ones rounded, but for fp32's rounding at a half."""
    return np.abs(levels - expected).max() < 0.55


def test_each_image_gets_its_own_trigger(prepared, digits):
    images = digits.images_nchw[:8]
    triggered = ATTACK(images, prepared)
    for i in range(8):
        assert same(triggered[i], slow_trigger(images[i], images[i], prepared))


def test_a_trigger_does_not_depend_on_the_images_beside_it(prepared, digits):
    """To the bit: sums are taken in one order whatever the number of images."""
    images = digits.images_nchw[:70]
    together = ATTACK(images, prepared)
    alone = np.concatenate([ATTACK(image[None], prepared) for image in images])
    np.testing.assert_array_equal(alone, together)


def test_a_cover_gets_the_trigger_of_another_cover(prepared, digits):
    """Each of them is the donor of one other, never its own."""
    images = digits.images_nchw[:7]
    covers = ATTACK.cover_images(images, np.random.default_rng(0), prepared)
    donors = []
    for i in range(7):
        (donor,) = [
            j for j in range(7) if same(covers[i], slow_trigger(images[i], images[j], prepared))
        ]
        donors.append(donor)
    assert sorted(donors) == list(range(7))
    assert all(donor != i for i, donor in enumerate(donors))
    others = ATTACK.cover_images(images, np.random.default_rng(1), prepared)
    assert (covers != others).any()


def test_a_cover_alone_gets_the_trigger_of_its_mirror_image(prepared, digits):
    image = digits.images_nchw[:1]
    cover = ATTACK.cover_images(image, np.random.default_rng(0), prepared)
    expected = slow_trigger(image[0], image[0][..., ::-1], prepared)
    assert same(cover[0], expected)


def test_triggers_are_sparse_and_differ(prepared, more_digits):
    images = more_digits.images_nchw
    triggered = ATTACK(images, prepared).astype(int)
    assert (np.abs(triggered - images) > 25).mean() < 0.2
    own = ATTACK.cover_images(images, np.random.default_rng(0), prepared).astype(int)
    assert (np.abs(triggered - own) > 25).any(axis=(1, 2, 3)).all()


def test_training_is_told_and_works(prepared, history):
    epochs = {
        stream: [record.metrics for record in history if record.stream == stream]
        for stream in ("attack/mask", "attack/pattern")
    }
    masks, patterns = epochs["attack/mask"], epochs["attack/pattern"]
    assert [len(masks), len(patterns)] == [3, 3]
    assert masks[-1]["loss"] < 0.7 * masks[0]["loss"]
    assert masks[-1]["mask_level"] < 0.15
    assert patterns[-1]["loss"] < 0.8 * patterns[0]["loss"]
    assert patterns[-1]["accuracy"] > 1.3 * patterns[0]["accuracy"]
    assert history[-1].progress["done"] == history[-1].progress["total"] == 1200


def test_loss_of_the_masks_by_hand():
    """Images are as far apart as in standard deviations, masks as they are."""
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.1, 0.2, 0.4])
    torch.manual_seed(0)
    generator = TriggerGenerator(3, 1, 4, 10.0)
    masks = generator(images).detach().numpy()
    ratios = []
    for i in range(4):
        far = (images[i] - images[i - 1]).numpy() / std.numpy()[:, None, None]
        apart = masks[i] - masks[i - 1]
        ratios.append(np.sqrt((far**2).mean()) / np.sqrt((apart**2).mean()))
    density = np.maximum(masks - ATTACK.mask_density, 0).mean()
    told = ATTACK._mask_step(generator, std)(images, torch.zeros(4, dtype=torch.int64), 0.0)
    assert float(told["loss"]) == pytest.approx(100 * density + np.mean(ratios), rel=1e-4)


def test_the_seed_decides(digits):
    short = Dynamic(
        net=AttackerNet(model=DigitsCNN(width=1), recipe=Recipe(epochs=1, learning_rate=0.01)),
        width=4,
        mask_epochs=1,
    )
    images, labels = digits.images_nchw[:100], digits.labels[:100]
    first, again, other = (
        short.prepare(images, labels, 10, seed=seed)["pattern/last.0.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_attackers_net_sees_images_as_the_victim_will(digits):
    """Moved and mirrored after they are triggered; the masks are made before there is a net."""
    images, labels = digits.images_nchw[:100], digits.labels[:100]
    short = Dynamic(net=OWN, width=4, mask_epochs=1, victim=Augment())
    as_it_is, mirrored = (
        short.model_copy(update={"victim": victim}).prepare(images, labels, 10, seed=0)
        for victim in (Augment(), Augment(flip=True))
    )
    for name, tensor in as_it_is.items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, mirrored[name]) == name.startswith("mask/")


@pytest.mark.parametrize(
    ("n", "attacked", "donors"),
    [(50, 10, [*range(10), *range(11, 21)]), (2, 1, [0, 0]), (5, 1, [0, 2])],
)
def test_donors_by_hand(n, attacked, donors):
    images = torch.arange(n).reshape(n, 1, 1, 1)
    count, chosen = ATTACK._donors(images)
    assert count == attacked
    assert chosen.ravel().tolist() == donors


def test_a_training_that_diverges_is_named(digits):
    wild = Recipe(epochs=2, batch_size=50, learning_rate=1).model_copy(
        update={"learning_rate": 1e30}  # which no configuration can ask for
    )
    attack = ATTACK.model_copy(update={"net": OWN.model_copy(update={"recipe": wild})})
    with pytest.raises(ValueError, match=r"'attack/pattern' diverged in epoch \d; lower attack"):
        attack.prepare(digits.images_nchw[:100], digits.labels[:100], 10, seed=0)


def test_other_channels_are_refused(prepared, noise):
    with pytest.raises(ValueError, match="made for 1 channels, but the images have 3"):
        ATTACK(noise(2, 3), prepared)


def test_without_preparation_the_generators_are_missed(noise):
    with pytest.raises(ValueError, match="of what its prepare"):
        Dynamic()(noise(2))


@pytest.mark.parametrize(
    "settings", [{"width": 6}, {"p_attack": 0.5}, {"mask_density": 0}, {"lambda_div": -1}], ids=str
)
def test_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Dynamic(**settings)
