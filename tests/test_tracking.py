"""How a net is tracked that torch cannot export."""

import logging
from types import SimpleNamespace

import pytest
import torch

from counterdoor.io import TrainedNetDataset
from counterdoor.models import External, TrainedNet, build_net
from counterdoor.tracking import TrackingHooks


class StoreError(Exception):
    """Stands for MLflow's own."""


@pytest.fixture
def hooks():
    """Hooks with an MLflow that exports as the real one does, and notes what it is given."""

    def log_model(net, *, name, input_example, pip_requirements):
        torch.export.export(net, (torch.tensor(input_example),))
        tracked.append(name)

    tracked = []
    hooks = TrackingHooks()
    hooks._mlflow = SimpleNamespace(
        MlflowException=StoreError,
        pytorch=SimpleNamespace(log_model=log_model),
        log_artifact=tracked.append,
        tracked=tracked,
    )
    return hooks


@pytest.fixture
def saved(tmp_path, noise, their_nets):
    """Makes a net and saves it."""

    def make(**settings):
        model = External(target=f"{their_nets}.{settings.pop('name')}", **settings)
        net = build_net(model, noise(), 4, seed=0, stream="x")
        trained = TrainedNet.of(model, noise(), 4, net.state_dict())
        dataset = TrainedNetDataset(filepath=str(tmp_path / "net.safetensors"))
        dataset.save(trained)
        return dataset, trained

    return make


@pytest.mark.slow
def test_a_net_that_can_be_exported_is_a_model(hooks, saved):
    hooks._log_model("defended_net", *saved(name="make"))
    assert hooks._mlflow.tracked == ["defended_net"]


@pytest.mark.slow
def test_one_that_cannot_is_kept_as_a_file_with_a_warning(hooks, saved, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        hooks._log_model("defended_net", *saved(name="Shape", arguments={"how": "branch"}))
    assert hooks._mlflow.tracked == [str(tmp_path / "net.safetensors")]
    (record,) = [each for each in caplog.records if each.name == "counterdoor.tracking"]
    assert "defended_net cannot be exported" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_trouble_with_the_store_is_not_taken_for_that(hooks, saved):
    def fails(*args, **kwargs):
        raise StoreError("the disk is full")

    hooks._mlflow.pytorch.log_model = fails
    with pytest.raises(StoreError, match="the disk is full"):
        hooks._log_model("defended_net", *saved(name="make"))
    assert hooks._mlflow.tracked == []
