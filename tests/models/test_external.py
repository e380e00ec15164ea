"""Nets named by dotted path: how they are made, and what is refused in which words."""

import copy

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from counterdoor.checkpoint import checkpoints_in
from counterdoor.feed import Samples
from counterdoor.models import External, Model, TrainedNet, build_net, check_net
from counterdoor.recipe import Recipe
from counterdoor.training import fit


@pytest.fixture
def external(their_nets):
    """Makes the component for a name in the module that is not ours."""

    def make(name, **settings):
        return External(target=f"{their_nets}.{name}", **settings)

    return make


def test_a_class_gets_its_arguments_channels_and_classes(external):
    net = external("Net", channels_argument="in_channels", arguments={"width": 7})(3, 5)
    assert type(net).__name__ == "Net"
    assert net.first.weight.shape == (7, 3, 3, 3)
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_a_function_does_too(external):
    net = external("make", arguments={"in_channels": 2, "width": 6})(2, 5)
    assert net.first.weight.shape == (6, 2, 3, 3)
    assert net.turned.shape == (6, 5)


def test_either_number_may_be_left_out(external):
    arguments = {"in_channels": 1, "num_classes": 4}
    net = external("Net", classes_argument=None, arguments=arguments)(1, 4)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_a_net_of_an_installed_package():
    target = "torchvision.models.squeezenet1_1"
    net = External(target=target, arguments={"dropout": 0.0})(3, 6)
    assert net.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 6)


def test_a_configuration_selects_it_and_nothing_is_imported_for_that():
    settings = {"name": "external", "target": "no_such_package.nets.Net"}
    model = TypeAdapter(Model).validate_python(settings)
    assert isinstance(model, External)
    assert model.classes_argument == "num_classes"
    assert model.channels_argument is None


@pytest.mark.parametrize(
    "target", ["Net", "", "a.", ".a", "a..b", "a b.c", "a.b()", "a/b.c", "1a.b", "a:b"]
)
def test_a_target_that_is_no_dotted_path_is_refused(target):
    with pytest.raises(ValidationError, match="target"):
        External(target=target)


@pytest.mark.parametrize(
    "settings",
    [
        {"arguments": {"num_classes": 3}},
        {"channels_argument": "num_classes"},
        {"channels_argument": "c", "arguments": {"c": 3}},
    ],
)
def test_an_argument_given_twice_is_refused(external, settings):
    with pytest.raises(ValidationError, match="is given twice"):
        external("Net", **settings)


def test_arguments_are_plain_values(external):
    with pytest.raises(ValidationError, match="arguments"):
        external("Net", arguments={"width": object()})


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_package.nets.Net", r"module 'no_such_package\.nets' cannot be imported"),
        ("their_broken_nets.Net", r"cannot be imported \(ModuleNotFoundError.*no_such_package"),
        ("their_nets.Nets", r"has no 'Nets'; did you mean 'Net'\?"),
        ("their_nets.zzzzzz", r"has no 'zzzzzz'; is it spelt right\?"),
        ("their_nets.CONSTANT", r"\(3\) makes no net"),
        ("their_nets.Config", "class .*Config.* makes no net; name a subclass of"),
        ("their_nets.not_a_net", "gives a list; name a class or a function that gives"),
        ("their_nets.fails", r"failed with the arguments .*KeyError: 'no such block'"),
        ("their_nets.lazy", "has lazy layers"),
        ("their_nets.Net", r"does not take the arguments num_classes: missing.*in_channels"),
    ],
)
@pytest.mark.usefixtures("their_nets")
def test_a_target_that_makes_no_net_is_refused_with_the_reason(target, words):
    with pytest.raises(ValueError, match=words) as caught:
        External(target=target)(1, 4)
    assert target in str(caught.value)


def test_an_unknown_argument_is_refused_with_those_there_are(external):
    with pytest.raises(ValueError, match="unexpected keyword argument 'widht'") as caught:
        external("Net", channels_argument="in_channels", arguments={"widht": 3})(1, 4)
    assert "It takes (in_channels, num_classes, width=4, dropout=0.0)" in str(caught.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("tuple", "gives tuple for two images in training mode"),
        ("tuple in training", "gives tuple for two images in training mode"),
        ("features", r"gives a tensor of shape \(2, 3\).*has to give logits of shape \(2, 4\)"),
        ("transposed", r"gives a tensor of shape \(4, 2\)"),
        ("one image", r"gives a tensor of shape \(1, 4\)"),
        ("classes", "int64 logits in training mode that are not all finite floats"),
        ("nan", "not all finite floats"),
    ],
)
def test_something_else_than_logits_is_refused(external, noise, how, words):
    with pytest.raises(ValueError, match=words):
        check_net(external("Shape", arguments={"how": how}), noise(4), 4)


def test_images_that_it_does_not_take_are_refused(external, noise):
    model = external("make", arguments={"in_channels": 3})
    check_net(model, noise(4, 3), 4)
    with pytest.raises(ValueError, match=r"does not take images of shape \(1, 12, 12\)"):
        check_net(model, noise(4, 1), 4)


def test_a_net_without_anything_to_train_is_refused(external, noise):
    with pytest.raises(ValueError, match="has no parameter to train"):
        check_net(external("frozen"), noise(4), 4)


def test_a_net_with_state_that_is_no_tensor_is_refused(external, noise):
    with pytest.raises(ValueError, match=r"keeps body\._extra_state, which is no tensor"):
        check_net(external("Extra"), noise(4), 4)


def test_tied_weights_are_trained_as_one_saved_and_restored(external, noise, tmp_path):
    images = noise(8)
    model = external("make", arguments={"dropout": 0.2})
    net = build_net(model, images, 4, seed=0, stream="x")
    assert net.body.mix.weight is net.body.again.weight
    assert not net.body.turned.is_contiguous()
    samples = Samples(images, torch.arange(8).numpy(), (torch.arange(8) % 4).numpy())
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.1)
    plain = fit(copy.deepcopy(net), samples, recipe, seed=0, stream="t").state
    assert torch.equal(plain["body.mix.weight"], plain["body.again.weight"])
    assert not torch.equal(plain["body.mix.weight"], net.body.mix.weight)
    with checkpoints_in(tmp_path):
        for _ in range(2):  # the second time there is nothing left to train
            fitted = fit(net, samples, recipe, seed=0, stream="t").state
            assert all(torch.equal(fitted[name], tensor) for name, tensor in plain.items())
    rebuilt = TrainedNet.of(model, images, 4, fitted).build()
    assert rebuilt.body.mix.weight is rebuilt.body.again.weight
    assert torch.equal(rebuilt.body.turned, plain["body.turned"])
