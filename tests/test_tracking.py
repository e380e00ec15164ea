"""How a net is tracked that torch cannot export, and what becomes of killed runs."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from counterdoor.io import TrainedNetDataset
from counterdoor.models import External, TrainedNet, build_net
from counterdoor.running import Running
from counterdoor.store import connect
from counterdoor.tracking import LIFE, TrackingHooks, close_killed


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


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    """Connected to the store of a project of its own, ``mlflow.project``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            patch.setenv(name, "")
            patch.delenv(name)
        project = tmp_path_factory.mktemp("project")
        module = connect(project)
        patch.setattr(module, "project", project, raising=False)
        yield module
        module.set_tracking_uri(None)


def start(mlflow, token):
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("counterdoor").experiment_id
    return client.create_run(experiment, tags={LIFE: token} if token else {}).info.run_id


def state(mlflow, run):
    return mlflow.MlflowClient().get_run(run).info.status


@pytest.mark.slow
def test_only_killed_runs_are_closed(mlflow):
    code = (
        "import os, sys; from pathlib import Path; from counterdoor.running import Running\n"
        "print(Running(Path(sys.argv[1]), '').token, flush=True); os._exit(9)\n"
    )
    command = [sys.executable, "-c", code, str(mlflow.project)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    living = Running(mlflow.project, "")
    runs = [start(mlflow, token) for token in (done.stdout.strip(), living.token, None, "b" * 32)]
    ended = start(mlflow, done.stdout.strip())
    mlflow.MlflowClient().set_terminated(ended, "FAILED")
    for _ in range(2):
        close_killed(mlflow, mlflow.project)
        assert [state(mlflow, run) for run in runs] == ["KILLED", *3 * ["RUNNING"]]
        assert state(mlflow, ended) == "FAILED"
    living.end()
    close_killed(mlflow, mlflow.project)
    assert state(mlflow, runs[1]) == "RUNNING"  # it says itself how it ended
