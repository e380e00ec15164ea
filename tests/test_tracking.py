"""How nets are tracked and what they answer if served; what becomes of killed runs."""

import io
import json
import logging
import pickle
import pickletools
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from counterdoor.hardened import Hardened
from counterdoor.io import TrainedNetDataset
from counterdoor.models import DigitsCNN, External, TrainedNet, build_net
from counterdoor.running import Running
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp
from counterdoor.store import connect
from counterdoor.tracking import LIFE, TrackingHooks, close_killed, log_hardened, log_net


class StoreError(Exception):
    """Stands for MLflow's own."""


@pytest.fixture
def hooks():
    """Hooks with an MLflow that exports as the real one does, and notes what it is given."""

    def log_model(net, *, name, input_example, pip_requirements, signature):
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


# --- a net as it is served ---------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory, digits):
    """A hardened net and a trained one in a store of their own: folders by name."""
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    model = DigitsCNN(width=3, hidden=5)
    net = build_net(model, digits.images_nchw, 10, seed=0, stream="x")
    trained = TrainedNet.of(model, digits.images_nchw, 10, net.state_dict(), Stamp())
    hardened = Hardened(trained, digits.class_names, Form((28, 28), "L"), reject_column=True)
    store = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        mlflow.set_tracking_uri(store)  # another test's may be left
        experiment = client.create_experiment("served", f"{folder}/artifacts")
        with mlflow.start_run(experiment_id=experiment) as run:
            log_hardened(mlflow, "hardened", hardened)
            log_net(mlflow, "net", trained)
        outputs = client.get_run(run.info.run_id).outputs.model_outputs
        models = [client.get_logged_model(each.model_id) for each in outputs]
        mlflow.set_tracking_uri(None)
    return hardened, {each.name: Path(each.artifact_location) for each in models}


@pytest.fixture(params=["hardened", "net"])
def post(request, logged, monkeypatch):
    """Answers a body as `mlflow models serve` does: status, and the answer or why there is none."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(str(logged[1][request.param]))

    def answer(body):
        try:
            told = scoring_server.invocations(
                json.dumps(body), "application/json", model, model.metadata.get_input_schema()
            )
        except mlflow.MlflowException as error:
            return error.get_http_status_code(), error.serialize_as_json()
        return told.status, np.array(json.loads(told.response)["predictions"])

    return answer


WARNED = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.slow
@WARNED
@pytest.mark.parametrize("kind", [int, float])
def test_a_body_of_levels_is_answered(post, digits, logged, kind):
    images = digits.images_nchw[:7]
    status, told = post({"inputs": images.astype(kind).tolist()})
    assert status == 200
    np.testing.assert_allclose(told[:, :10], logged[0].predict(images)[0], atol=1e-4)


@pytest.mark.slow
@WARNED
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images: images / 255, "they must be whole numbers from 0 to 255"),
        (lambda images: (images / 255 - 0.5) / 0.5, "they must be whole numbers from 0 to 255"),
        (lambda images: (images > 128).astype(float), "must be levels 0 to 255, not scaled"),
        (lambda images: images + 45, "they must be whole numbers from 0 to 255"),
        (lambda images: images - 1, "they must be whole numbers from 0 to 255"),
        (lambda images: images * 1e9, "they must be whole numbers from 0 to 255"),
        (lambda images: images * np.nan, "they must be whole numbers from 0 to 255"),
        (lambda images: np.where(images > 0, images, None), "whole numbers from 0 to 255"),
        (lambda images: np.full(images.shape, "white"), "could not convert string to float"),
        (lambda images: np.repeat(images, 3, axis=1), "does not match expected shape"),
        (lambda images: images.transpose(0, 2, 3, 1), "does not match expected shape"),
        (lambda images: images[0], "does not match expected shape"),
        (lambda images: images[:0], "an input of type"),
    ],
    ids=[
        *("scaled", "normalised", "binary", "bright", "negative", "huge", "nan", "null", "text"),
        *("channels", "channels last", "one image", "none"),
    ],
)
def test_another_body_is_refused_in_words(post, digits, change, reason):
    status, told = post({"inputs": change(digits.images_nchw[:3].astype(int)).tolist()})
    assert status == 400
    assert reason in told


@pytest.mark.slow
@WARNED
@pytest.mark.parametrize("name", ["hardened", "net"])
def test_the_net_itself_takes_levels_only(logged, digits, name, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    net = mlflow.pytorch.load_model(str(logged[1][name]))
    images = torch.tensor(digits.images_nchw[:5])
    want, _ = logged[0].predict(digits.images_nchw[:5])
    with torch.inference_mode():
        for levels in (images, images.float(), images.long()):
            np.testing.assert_allclose(net(levels)[:, :10].numpy(), want, atol=1e-4)
        with pytest.raises(RuntimeError, match="they must be whole numbers from 0 to 255"):
            net(images / 255)


def pickles(name, content):
    """What is pickled in a file, by name; members of archives behind the archive's."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from pickles(f"{name}/{member}", archive.read(member))
        return
    try:
        end = [place for _, _, place in pickletools.genops(content)][-1]
    except Exception:
        return
    if end == len(content) - 1:
        yield name, content


def test_a_pickle_is_found_wherever_it_is():
    def archive(name, content):
        box = io.BytesIO()
        with zipfile.ZipFile(box, "w") as made:
            made.writestr(name, content)
            made.writestr("text", "2\n")
        return box.getvalue()

    pickled = pickle.dumps([1])
    assert dict(pickles("x", archive("a", archive("b", pickled)))) == {"x/a/b": pickled}


@pytest.mark.slow
def test_the_models_only_pickle_is_an_example_made_of_tensors(logged):
    """MLflow writes it, and loads no archive without it."""
    for folder in logged[1].values():
        files = [each for each in folder.rglob("*") if each.is_file()]
        assert len(files) > 5
        found = [pair for each in files for pair in pickles(each.name, each.read_bytes())]
        ((name, content),) = found
        assert re.fullmatch(r"model\.pt2/\w+/data/sample_inputs/model\.pt/\w+/data\.pkl", name)
        codes = [(code.name, value) for code, value, _ in pickletools.genops(content)]
        assert {value for code, value in codes if code in ("GLOBAL", "INST")} == {
            "torch._utils _rebuild_tensor_v2",
            "torch ByteStorage",
            "collections OrderedDict",
        }
        assert not [code for code, _ in codes if code == "STACK_GLOBAL"]
