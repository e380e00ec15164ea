"""Trained nets on disk: the same logits after a round trip, and no code in the file."""

import json
import pickle
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from kedro.io import DatasetError, Version
from safetensors import safe_open
from safetensors.torch import save_file

from counterdoor.hardened import Hardened
from counterdoor.io import BytesDataset, HardenedDataset, TrainedNetDataset
from counterdoor.models import DigitsCNN, External, ResNet18, TrainedNet, build_net
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp

SAVED = "2024-01-01T00.00.01.000Z"
STAMPS = [None, Stamp(size=3, row=1, column=2, colour="white"), Stamp(colour=(0.25,)), Stamp()]


@pytest.fixture
def dataset(tmp_path):
    return TrainedNetDataset(
        filepath=str(tmp_path / "net.safetensors"), version=Version(None, SAVED)
    )


@pytest.fixture
def configured(tmp_path):
    """The same file, read under a configuration with this model."""
    return lambda model: TrainedNetDataset(
        filepath=str(tmp_path / "net.safetensors"), version=Version(None, SAVED), model=model
    )


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.safetensors" / SAVED / "net.safetensors"


@pytest.fixture
def sent(file):
    """The same file as one that is no version: it needs no checksum, so its content is judged."""
    return TrainedNetDataset(filepath=str(file))


def net_of(images, stamp=None, model=None, classes=4):
    model = model or DigitsCNN(width=3, hidden=5)
    net = build_net(model, images, classes, seed=3, stream="x")
    return TrainedNet.of(model, images, classes, net.state_dict(), stamp)


def logits(trained, images):
    with torch.inference_mode():
        return trained.deployable()(torch.tensor(images))


@pytest.mark.parametrize("stamp", STAMPS, ids=["none", "white", "levels", "mean"])
def test_round_trip(dataset, noise, stamp):
    trained = net_of(noise(9), stamp)
    dataset.save(trained)
    loaded = dataset.load()
    assert isinstance(loaded, TrainedNet)
    assert loaded.architecture == trained.architecture
    assert loaded.image_shape == trained.image_shape == (1, 12, 12)
    assert isinstance(loaded.image_shape, tuple)
    assert loaded.num_classes == 4
    assert loaded.stamp == stamp
    assert set(loaded.state) == set(trained.state)
    for name, tensor in trained.state.items():
        assert loaded.state[name].dtype == tensor.dtype
        assert torch.equal(loaded.state[name], tensor)
    assert torch.equal(logits(loaded, noise(9)), logits(trained, noise(9)))


def test_a_label_map_comes_back(dataset, noise):
    trained = replace(net_of(noise(9), Stamp(colour="bright")), label_map=(2, 3, 0, 1))
    dataset.save(trained)
    loaded = dataset.load()
    assert loaded.label_map == (2, 3, 0, 1)
    plain = logits(replace(trained, label_map=None), noise(9))
    assert torch.equal(logits(loaded, noise(9)), plain[:, [2, 3, 0, 1]])


def test_a_net_that_mirrors_comes_back(dataset, noise):
    dataset.save(replace(net_of(noise(9)), mirror=True))
    assert dataset.load().mirror


def test_a_file_without_label_map_and_mirror_is_read(dataset, sent, file, noise):
    """As those of earlier versions are."""
    trained = net_of(noise(9))
    dataset.save(trained)
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["counterdoor"])
    assert header.pop("label_map", "none there") is None
    assert header.pop("mirror") is False
    save_file(dict(trained.state), file, {"counterdoor": json.dumps(header)})
    assert sent.load().label_map is None
    assert not sent.load().mirror


@pytest.mark.parametrize(
    "model", [DigitsCNN(width=2), ResNet18(), ResNet18(small_image_stem=False)]
)
def test_every_architecture_comes_back(dataset, noise, model):
    images = noise(4, 3, 32, 32)
    trained = net_of(images, model=model, classes=7)
    dataset.save(trained)
    loaded = dataset.load()
    assert loaded.architecture == model.model_dump(mode="json")
    assert torch.equal(logits(loaded, images), logits(trained, images))


def test_channels_last_tensors(dataset, noise):
    images = noise(9, 3)
    trained = net_of(images)
    state = {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in trained.state.items()
    }
    assert not all(tensor.is_contiguous() for tensor in state.values())
    dataset.save(replace(trained, state=state))
    assert torch.equal(logits(dataset.load(), images), logits(trained, images))


def test_tensors_that_are_not_contiguous_or_share_memory(dataset, noise):
    images = noise(9, 3)
    trained = net_of(images)
    state = {
        name: torch.stack([tensor, torch.full_like(tensor, 9)], dim=-1)[..., 0]
        for name, tensor in trained.state.items()
    }
    both = torch.cat([trained.state["mean"], trained.state["std"]])
    state |= {"mean": both[:3], "std": both[3:]}
    assert not all(tensor.is_contiguous() for tensor in state.values())
    dataset.save(replace(trained, state=state))
    assert torch.equal(logits(dataset.load(), images), logits(trained, images))


def test_tied_weights(configured, noise, their_nets):
    model = External(target=f"{their_nets}.make")
    net = build_net(model, noise(9), 4, seed=3, stream="x")
    state = net.state_dict()
    assert state["body.mix.weight"].data_ptr() == state["body.again.weight"].data_ptr()
    own = configured(model.model_dump())
    own.save(TrainedNet.of(model, noise(9), 4, state))
    rebuilt = own.load().build()
    assert rebuilt.body.mix.weight is rebuilt.body.again.weight
    assert all(torch.equal(rebuilt.state_dict()[name], state[name]) for name in state)


CODE = {"name": "external", "target": "their_nets.make", "arguments": {"width": 5}}


@pytest.mark.parametrize(
    "model",
    [
        None,
        {"name": "digits_cnn"},
        CODE | {"target": "their_nets.Net"},
        CODE | {"arguments": {}},
        CODE | {"arguments": {"width": 6}},
        CODE | {"classes_argument": None},
    ],
    ids=["no", "other", "target", "no arguments", "arguments", "names"],
)
def test_a_file_brings_no_code_that_the_configuration_does_not_name(
    dataset, configured, file, noise, their_nets, model
):
    """Not even imported: the file could come from anywhere."""
    dataset.save(net_of(noise(9), model=External(**CODE)))
    sys.modules.pop("their_nets")
    with pytest.raises(DatasetError, match=r"code 'their_nets\.make' with the arguments") as caught:
        configured(model).load()
    assert str(file) in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert "their_nets" not in sys.modules


def test_a_file_with_the_configured_code_is_loaded(dataset, configured, noise, their_nets):
    trained = net_of(noise(9), Stamp(), External(**CODE))
    dataset.save(trained)
    loaded = configured(CODE).load()  # no defaults in it
    assert torch.equal(logits(loaded, noise(9)), logits(trained, noise(9)))


def test_a_configured_model_does_not_matter_to_our_own_nets(dataset, configured, noise):
    trained = net_of(noise(9))
    dataset.save(trained)
    for model in (CODE, {"name": "compact"}, {}):
        loaded = configured(model).load()
        assert torch.equal(logits(loaded, noise(9)), logits(trained, noise(9)))


def test_saving_leaves_the_net_as_it_was(dataset, noise):
    trained = net_of(noise(9), Stamp())
    before = {name: tensor.clone() for name, tensor in trained.state.items()}
    dataset.save(trained)
    assert all(torch.equal(trained.state[name], tensor) for name, tensor in before.items())


def test_the_same_net_gives_the_same_bytes(tmp_path, noise):
    contents = []
    for name in ("one.safetensors", "other.safetensors"):
        path = tmp_path / name
        TrainedNetDataset(filepath=str(path)).save(net_of(noise(9), Stamp()))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_the_file_is_a_table_of_tensors_and_a_description(dataset, file, noise):
    trained = net_of(noise(9), Stamp(colour="white"))
    dataset.save(trained)
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    described = json.loads(header.pop("__metadata__")["counterdoor"])
    assert described == {
        "architecture": {"name": "digits_cnn", "width": 3, "hidden": 5},
        "image_shape": [1, 12, 12],
        "num_classes": 4,
        "stamp": {"size": 2, "row": 0, "column": 0, "colour": "white"},
        "label_map": None,
        "mirror": False,
    }
    assert set(header) == set(trained.state)
    # Every byte behind the header is a tensor's, so there is no room for anything else.
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - size
    covered = sum(end - start for start, end in (e["data_offsets"] for e in header.values()))
    assert covered == len(content) - 8 - size
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(content)


def test_a_foreign_safetensors_file_is_refused(sent, file):
    file.parent.mkdir(parents=True)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(DatasetError, match="cannot be used as a net") as caught:
        sent.load()
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"stamp": {"size": -1}},
        {"num_classes": None, "unknown": 3},
        {"stamp": {"colour": "green"}},
    ],
)
def test_a_description_that_was_changed_by_hand_is_refused(dataset, sent, file, noise, change):
    dataset.save(net_of(noise(9), Stamp()))
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["counterdoor"])
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(state, file, {"counterdoor": json.dumps(header | change)})
    with pytest.raises(DatasetError, match="cannot be used as a net"):
        sent.load()


def test_predictions_do_not_depend_on_the_batch(dataset, noise):
    images = noise(11)
    dataset.save(net_of(images, Stamp(colour="white")))
    loaded = dataset.load()
    one_by_one = torch.cat([logits(loaded, images[i : i + 1]) for i in range(11)])
    torch.testing.assert_close(logits(loaded, images), one_by_one, rtol=1e-4, atol=1e-5)
    assert np.isfinite(one_by_one.numpy()).all()


@pytest.mark.parametrize("reject", [False, True])
def test_a_hardened_net_comes_back_with_all_it_needs(tmp_path, noise, reject):
    form = Form((12, 12), "L", "squash", (1, 2, 3))
    about = {"data": {"content_hash": "abc"}, "figures": {"held_out_accuracy": 0.5}}
    hardened = Hardened(net_of(noise(9), Stamp()), ("a", "b", "c", "d"), form, about, reject)
    dataset = HardenedDataset(filepath=str(tmp_path / "hardened.safetensors"))
    dataset.save(hardened)
    loaded = dataset.load()
    assert loaded.class_names == hardened.class_names
    assert (loaded.form, loaded.about, loaded.reject_column) == (form, about, reject)
    for made, wanted in zip(loaded.predict(noise(9)), hardened.predict(noise(9)), strict=True):
        assert (made == wanted).all()


def test_a_hardened_net_of_code_that_is_not_configured_is_refused(tmp_path, noise, their_nets):
    model = External(**CODE)
    hardened = Hardened(net_of(noise(9), model=model), tuple("abcd"), Form((12, 12), "L"))
    path = str(tmp_path / "hardened.safetensors")
    HardenedDataset(filepath=path, model=model.model_dump()).save(hardened)
    assert HardenedDataset(filepath=path, model=model.model_dump()).load().class_names
    with pytest.raises(DatasetError, match="Code is run only if the configuration asks for it"):
        HardenedDataset(filepath=path).load()


def test_bytes_come_back(tmp_path):
    dataset = BytesDataset(filepath=str(tmp_path / "x.onnx"), version=Version(None, SAVED))
    dataset.save(b"\x00\xffabc")
    assert dataset.load() == b"\x00\xffabc"


# --- a file of a stranger ---------------------------------------------------------


@pytest.fixture
def stranger(tmp_path, noise):
    """Writes a hardened net with other descriptions or tensors, and gives its data set."""

    def make(net=None, more=None, state=None):
        path = tmp_path / "hardened.safetensors"
        trained = replace(net_of(noise(9), Stamp()), label_map=(1, 0, 3, 2))
        HardenedDataset(filepath=str(path)).save(
            Hardened(trained, ("a", "b", "c", "d"), Form((12, 12), "L"))
        )
        with safe_open(path, framework="pt") as opened:
            texts = {name: json.loads(text) for name, text in opened.metadata().items()}
        texts["counterdoor"] |= net or {}
        texts["hardened"] |= more or {}
        told = {name: json.dumps(text) for name, text in texts.items()}
        save_file(dict(trained.state) | (state or {}), path, told)
        return HardenedDataset(filepath=str(path))

    return make


def test_a_stranger_that_changes_nothing_is_read(stranger):
    assert stranger().load().class_names == ("a", "b", "c", "d")


DIGITS = {"name": "digits_cnn", "width": 3, "hidden": 5}


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (
            {"architecture": DIGITS | {"width": 10**9}},
            "width: Input should be less than or equal",
        ),
        ({"architecture": DIGITS | {"width": True}}, "width: Input should be a valid integer"),
        ({"architecture": DIGITS | {"hidden": 6}}, r"its net takes F32 \(6, 294\)"),
        ({"architecture": {"name": "resnet18"}}, "its net lacks the weights body.bn1.bias"),
        ({"num_classes": 5, "label_map": None}, r"its net takes F32 \(5, 5\)"),
        (
            {"num_classes": 10**9, "label_map": None},
            "num_classes: Input should be less than or",
        ),
        ({"image_shape": [10**9, 12, 12]}, "image_shape.0: Input should be less than"),
        ({"image_shape": [1, 12, 10**9]}, "image_shape.2: Input should be less than"),
        ({"image_shape": [3, 12, 12]}, r"its mean is F32 \(1,\), but its net takes F32 \(3,\)"),
        ({"stamp": {"row": 11}}, "outside the 12x12 images"),
        ({"stamp": {"colour": [0.5, 0.5]}}, "2 levels, but the images have 1"),
        ({"stamp": {"size": "2"}}, "stamp.size: Input should be a valid integer"),
        ({"label_map": [0, 1, 2]}, "a logit of its own"),
        ({"label_map": [0, 1, 2, 4]}, "a logit of its own"),
        ({"label_map": [0, 1, 2, 2]}, "a logit of its own"),
        ({"label_map": [-1, 0, 1, 2]}, "label_map.0: Input should be greater"),
        ({"mirror": 1}, "mirror: Input should be a valid boolean"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_description_of_another_net_is_refused(stranger, net, reason):
    check_refused(stranger(net=net), reason)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"class_names": ["a", "b", "c"]}, "3 class names for 4 classes"),
        ({"class_names": ["a", "b", "c", "a"]}, "two of its classes have the name 'a'"),
        ({"class_names": ["a", "b", "c", ""]}, "class_names.3: .* needs a name"),
        ({"class_names": ["a", "b", "c", 1]}, "class_names.3: .* needs a name"),
        ({"form": {"size": [12, 12]}}, "form.mode: Field required"),
        *(
            ({"form": {"size": [12, 12], "mode": "L", "resize": "crop", **form}}, reason)
            for form, reason in (
                ({"background": [0, 0, 256]}, "form.background.2: Input should be less"),
                ({"background": [0, 0, 0], "mode": "RGB"}, r"images of shape \(3, 12, 12\)"),
                ({"background": [0, 0, 0], "size": [12, 13]}, r"images of shape \(1, 12, 13\)"),
                ({"background": [0, 0, 0], "resize": "stretch"}, "form.resize"),
            )
        ),
        ({"about": {"figures": {"held_out_accuracy": "high"}}}, "held_out_accuracy"),
        ({"about": {"more": 1}}, "about.more: Extra inputs"),
        ({"reject_column": 0}, "reject_column: Input should be a valid boolean"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_names_and_forms_of_another_net_are_refused(stranger, more, reason):
    check_refused(stranger(more=more), reason)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"body.0.weight": torch.full((3, 1, 3, 3), torch.nan)}, "body.0.weight has values that"),
        ({"body.14.bias": torch.tensor([0.0, 0.0, 0.0, torch.inf])}, "body.14.bias has values"),
        ({"body.14.bias": torch.zeros(3)}, r"body.14.bias is F32 \(3,\)"),
        ({"body.14.bias": torch.zeros(4, dtype=torch.float16)}, "body.14.bias is F16"),
        ({"body.1.running_var": torch.tensor([1.0, -1.0, 1.0])}, "negative variances"),
        ({"body.more": torch.zeros(1)}, "holds 'body.more'"),
        ({"std": torch.zeros(1)}, "its std is not positive"),
        ({"mean": torch.full((1,), 128.0)}, "its mean is no level between 0 and 1"),
    ],
)
def test_weights_that_no_net_has_are_refused(stranger, state, reason):
    check_refused(stranger(state=state), reason)


def check_refused(dataset, reason):
    with pytest.raises(DatasetError, match=reason) as caught:
        dataset.load()
    told = str(caught.value)
    assert told.startswith(f"{dataset._filepath} cannot be used as a net: ")
    assert "`kedro run --pipelines export`" in told
    assert told.isprintable()


def test_one_of_a_runs_own_gets_the_advice_for_those(dataset, file, noise):
    dataset.save(net_of(noise(9)))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        DatasetError, match=r"cannot be read: it has \d+ bytes, .* delete the folder"
    ):
        dataset.load()


def test_names_of_classes_need_not_be_unicode(tmp_path, noise):
    """They are those of folders."""
    names = ("a\udcff", "=1", "b\n", "<i>")
    dataset = HardenedDataset(filepath=str(tmp_path / "hardened.safetensors"))
    dataset.save(Hardened(net_of(noise(9)), names, Form((12, 12), "L")))
    assert dataset.load().class_names == names


@pytest.mark.parametrize("change", [{"class_names": ("a",)}, {"form": Form((12, 12), "RGB")}])
def test_what_could_not_be_read_again_is_not_written(tmp_path, noise, change):
    dataset = HardenedDataset(filepath=str(tmp_path / "hardened.safetensors"))
    hardened = Hardened(net_of(noise(9)), tuple("abcd"), Form((12, 12), "L"))
    with pytest.raises(DatasetError, match=r"class names|form gives"):
        dataset.save(replace(hardened, **change))
    assert not list(tmp_path.iterdir())
