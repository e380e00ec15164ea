"""What is shipped: resizing as the decoder does it, the reject flag, ONNX, the card."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from counterdoor.hardened import Hardened, Resize, model_card, to_onnx
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.sources.decoding import Form, conform
from counterdoor.stamp import Stamp

GREY = Form((28, 28), "L")
STAMP = Stamp(size=3, colour="white")
NAMES = tuple("abcdefghij")


def hardened_of(images, stamp=STAMP, **more):
    model = DigitsCNN()
    net = build_net(model, images, 10, seed=0, stream="hardened")
    floats = torch.tensor(images) / 255.0
    with torch.no_grad():
        for _ in range(20):  # statistics of the batch norm
            net.train()(floats)
        net.body[-1].bias -= net.eval()(floats).mean(0)  # in two minds: a stamp can turn it over
    return Hardened(TrainedNet.of(model, images, 10, net.state_dict(), stamp), NAMES, GREY, **more)


def keys(x):
    """Keys' kernel with a = -0.5, written for one number."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_line(line, size, scale):
    start = (len(line) - scale * size) / 2
    out = []
    for pixel in range(size):
        centre = start + (pixel + 0.5) * scale
        weights = [keys((at + 0.5 - centre) / max(scale, 1)) for at in range(len(line))]
        value = sum(w * v for w, v in zip(weights, line, strict=True)) / sum(weights)
        out.append(np.rint(min(max(value, 0.0), 255.0)))
    return out


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("size", [(28, 28), (40, 33), (21, 37), (7, 90)])
def test_resize_against_loops(noise, size, resize):
    images = noise(2, 1, *size)
    got = Resize((28, 28), resize)(torch.tensor(images, dtype=torch.float32)).numpy()
    scales = [size[0] / 28, size[1] / 28]
    if resize == "crop":
        scales = [min(scales)] * 2
    for image, made in zip(images, got, strict=True):
        rows = [slow_line(row, 28, scales[1]) for row in image[0].astype(float)]
        want = np.array([slow_line(column, 28, scales[0]) for column in np.transpose(rows)]).T
        assert np.abs(made[0] - want).max() <= 1  # where a sum lies half-way between levels
        assert (made[0] != want).mean() < 0.01


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("size", [(40, 44), (21, 26), (100, 60)])
def test_resize_is_the_decoders(digits, size, resize):
    large = conform(digits.images_nchw[:50], Form(size, "L", "squash"))
    want = conform(large, Form((28, 28), "L", resize)).astype(int)
    got = Resize((28, 28), resize)(torch.tensor(large, dtype=torch.float32)).numpy()
    # Where Pillow takes its two passes in the other order, overshoots are clipped otherwise.
    assert np.abs(got - want).mean() < 0.2
    assert (np.abs(got - want) > 1).mean() < 0.02


def test_images_of_the_final_size_are_left_alone(digits):
    images = torch.tensor(digits.images_nchw[:50], dtype=torch.float32)
    assert torch.equal(Resize((28, 28), "crop")(images), images)


def test_logits_are_those_of_the_deployed_net(digits):
    images = digits.images_nchw[:70]
    hardened = hardened_of(images)
    with torch.inference_mode():
        want = hardened.net.deployable()(torch.tensor(images))
    logits, _ = hardened.predict(images, chunk=32)
    np.testing.assert_allclose(logits, want.numpy(), atol=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
def test_an_image_is_rejected_if_its_class_is_another_one_without_the_stamp(digits, mirror):
    images = digits.images_nchw[:100]
    net = replace(hardened_of(images).net, mirror=mirror)
    logits, rejected = Hardened(net, NAMES, GREY).predict(images)
    plain, _ = Hardened(replace(net, stamp=None), NAMES, GREY).predict(images)
    assert (rejected == (plain.argmax(1) != logits.argmax(1))).all()
    assert 0 < rejected.sum() < len(images)


def test_nothing_is_rejected_without_a_stamp(digits):
    assert not hardened_of(digits.images_nchw, stamp=None).predict(digits.images_nchw)[1].any()


def test_no_image_gives_no_logits(digits):
    logits, rejected = hardened_of(digits.images_nchw).predict(digits.images_nchw[:0])
    assert logits.shape == (0, 10)
    assert rejected.shape == (0,)


@pytest.mark.parametrize("reject", [False, True])
def test_the_served_net_has_one_output(digits, reject):
    images = digits.images_nchw[:40]
    hardened = hardened_of(images, reject_column=reject)
    logits, rejected = hardened.predict(images)
    with torch.inference_mode():
        served = hardened.served()(torch.tensor(images)).numpy()
    assert served.shape == (40, 10 + reject)
    np.testing.assert_allclose(served[:, :10], logits, atol=1e-6)
    if reject:
        assert (served[:, 10] == rejected).all()


@pytest.mark.slow
@pytest.mark.parametrize("mirror", [False, True])
def test_onnx_gives_the_same_for_any_number_and_size(digits, mirror):
    import onnxruntime

    hardened = hardened_of(digits.images_nchw)
    hardened = replace(hardened, net=replace(hardened.net, mirror=mirror))
    session = onnxruntime.InferenceSession(to_onnx(hardened))
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type) == ("images", "tensor(uint8)")
    large = conform(digits.images_nchw, Form((45, 37), "L", "squash"))
    for images in (digits.images_nchw, digits.images_nchw[:1], large[:30]):
        logits, rejected = session.run(["logits", "reject"], {"images": images})
        want, flags = hardened.predict(images)
        np.testing.assert_allclose(logits, want, atol=1e-4)
        assert (rejected == flags).all()


class Forked(torch.nn.Module):
    """What it does depends on the values of its input, which cannot be exported."""

    def forward(self, images_nchw):
        levels = images_nchw.flatten(1).float()
        return (
            (levels, levels[:, 0] > 0) if float(levels.sum()) > 0 else (-levels, levels[:, 0] < 0)
        )


@pytest.mark.slow
def test_a_net_that_cannot_be_exported_is_named(digits, monkeypatch):
    monkeypatch.setattr(Hardened, "deployable", lambda self: Forked())
    with pytest.raises(ValueError, match="model 'digits_cnn' cannot be written as ONNX"):
        to_onnx(hardened_of(digits.images_nchw))


def test_the_card_tells_figures_classes_limits_and_configuration(digits):
    about = {
        "data": {"content_hash": "abc123", "n_train": 400},
        "figures": {"held_out_accuracy": 0.9876},
        "configuration": {"seed": 3, "stamp": {"size": 3}},
    }
    card = model_card(hardened_of(digits.images_nchw, about=about))
    assert "| held out accuracy | 98.8% |" in card
    assert "| content hash | abc123 |" in card
    assert "| classes | 10: a, b, c, d, e, f, g, h, i, j |" in card
    assert "28x28 pixels, 1 channel;" in card
    assert "## Limits" in card
    block = card.split("```json")[1].split("```")[0]
    assert json.loads(block) == about["configuration"]


def test_images_that_are_no_levels_are_refused(digits):
    hardened = hardened_of(digits.images_nchw)
    with pytest.raises(
        ValueError, match=r"float64 of shape .* they must be uint8, levels 0 to 255"
    ):
        hardened.predict(digits.images_nchw[:3] / 255.0)
    with pytest.raises(ValueError, match=r"of shape \(N, 1, height, width\)"):
        hardened.predict(np.repeat(digits.images_nchw[:3], 3, axis=1))


def test_large_images_go_through_a_few_at_a_time(digits, monkeypatch):
    hardened = hardened_of(digits.images_nchw)
    want, _ = hardened.predict(digits.images_nchw[:7])
    monkeypatch.setattr("counterdoor.hardened.MAX_PIXELS", 28 * 28 * 2 + 1)
    logits, _ = hardened.predict(digits.images_nchw[:7])
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_logits_of_another_number_are_refused(digits):
    hardened = hardened_of(digits.images_nchw)
    with pytest.raises(ValueError, match="for 5 images and 9 classes"):
        replace(hardened, net=Miscounted(**vars(hardened.net))).predict(digits.images_nchw[:5])


def test_images_smaller_than_the_net_takes_are_refused(digits):
    hardened = hardened_of(digits.images_nchw)
    small = replace(hardened, net=replace(hardened.net, image_shape=(1, 2, 2), stamp=None))
    with pytest.raises(ValueError, match=r"does not take images of shape \(1, 2, 2\) .* too small"):
        small.predict(digits.images_nchw[:5])


class Miscounted(TrainedNet):
    """Says that it has a class less than it has, as somebody else's code may."""

    def deployable(self):
        own = TrainedNet(**vars(self)).deployable()
        object.__setattr__(self, "num_classes", 9)
        return own


@pytest.fixture
def served(digits):
    return hardened_of(digits.images_nchw).served()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_levels_are_served_whatever_their_dtype(digits, served, dtype):
    images = digits.images_nchw[:20]
    logits, _ = hardened_of(digits.images_nchw).predict(images)
    with torch.inference_mode():
        got = served(torch.tensor(images).to(dtype))
    np.testing.assert_allclose(got.numpy(), logits, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images / 255, "scaled or normalised"),
        (lambda images: (images / 255 - 0.5) / 0.5, "scaled or normalised"),
        (lambda images: (images > 128).float(), "no level above 1"),
        (lambda images: images + 0.5, "whole numbers from 0 to 255"),
        (lambda images: images + 45, "whole numbers from 0 to 255"),
        (lambda images: images - 1, "whole numbers from 0 to 255"),
        (lambda images: images * torch.nan, "whole numbers from 0 to 255"),
        (lambda images: images + torch.inf, "whole numbers from 0 to 255"),
    ],
    ids=["scaled", "normalised", "binary", "halves", "bright", "negative", "nan", "inf"],
)
def test_what_is_no_level_is_not_served(digits, served, change, message):
    with pytest.raises(RuntimeError, match=message):
        served(change(torch.tensor(digits.images_nchw[:20]).float()))


def test_black_images_and_none_are_served(served):
    with torch.inference_mode():
        for images in (torch.zeros(2, 1, 28, 28), torch.zeros(0, 1, 28, 28)):
            assert served(images).shape == (len(images), 10)


def test_a_net_of_dark_images_takes_them(digits):
    """Masks of 0 and 1, for example, are levels if all its images were such."""
    masks = (digits.images_nchw[:40] > 128).astype(np.uint8)
    with torch.inference_mode():
        assert hardened_of(masks).served()(torch.tensor(masks)).shape == (40, 10)


def test_names_are_text_on_the_card_and_notes_are_told(digits):
    hardened = replace(
        hardened_of(digits.images_nchw),
        class_names=("<img src=x>", "a|b", "two\nlines", "`c`", *NAMES[4:]),
        about={"data": {"notes": ["valid/ is left out", "x|y"], "n_train": 3}},
    )
    card = model_card(hardened)
    told = next(line for line in card.splitlines() if line.startswith("| classes"))
    assert told.startswith(r"| classes | 10: &lt;img src=x&gt;, a\|b, two\\x0alines, \`c\`, e")
    assert r"| notes | valid/ is left out; x\|y |" in card
    nothing = replace(hardened, about={"data": {"notes": []}})
    assert "notes" not in model_card(nothing)
