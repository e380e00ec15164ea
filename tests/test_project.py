"""The whole project, run in a copy: artifacts, tracking, reruns, refusals, kills."""

import io
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import copy, copytree, rmtree
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError, Version
from PIL import Image
from safetensors import safe_open

from counterdoor.attacks import BadNets, poison
from counterdoor.cli import cli
from counterdoor.features import SimCLR
from counterdoor.hooks import ensure_writable
from counterdoor.io import HardenedDataset, JSONDataset, TrainedNetDataset
from counterdoor.ledger import new_ledger
from counterdoor.results import Results
from counterdoor.store import EXPERIMENT
from counterdoor.tracking import TrackingHooks, _MetricsHandler, commit_tags

pytestmark = [
    pytest.mark.filterwarnings(
        # Kedro's own call of a function that OmegaConf 2.4 renamed.
        "ignore:register_new_resolver",
        # Kedro's parameter validation asks an instance for what Pydantic keeps on the class.
        "ignore:Accessing the 'model_fields' attribute on the instance",
        # MLflow's tables use a loader that SQLAlchemy gives up.
        "ignore:The ``noload`` loader strategy is deprecated",
        # mlflow.pytorch loads an exported program with a warning of torch.export's.
        "ignore::UserWarning:torch.*",
    ),
]

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = {"warmup": 1, "relabel": 2, "undefended": 2, "defended": 2}
CHOICES = "parquet/badnets-0.1-all_to_one/digits_cnn-simclr/lga/vd"
TRAINED = f"{CHOICES}/nab"
READABLE_NAME = "parquet badnets-0.1-all_to_one digits_cnn lga vd nab s0"
STAGE_PATHS = {
    "01_raw": "parquet",
    "02_intermediate": "parquet/badnets-0.1-all_to_one",
    "05_model_input": CHOICES,
    "07_model_output": "parquet/badnets-0.1-all_to_one/digits_cnn-simclr/lga",
    "08_reporting": TRAINED,
}


@dataclass(frozen=True)
class Project:
    """A copy of the project with data and tracking of its own."""

    path: Path

    def run(self, pipelines=None, params=None, load_versions=None):
        """One Kedro run in this process; gives back the version of its artifacts."""
        bootstrap_project(self.path)
        with KedroSession.create(project_path=self.path, runtime_params=params) as session:
            session.run(pipeline_names=pipelines, load_versions=load_versions)
            return session.session_id

    def catalog(self):
        bootstrap_project(self.path)
        with KedroSession.create(project_path=self.path) as session:
            return session.load_context().catalog

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.path / 'mlflow.db'}")

    def runs(self):
        """Tracked runs, oldest first."""
        if not (self.path / "mlflow.db").exists():
            return []
        client = self.client()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return sorted(found, key=lambda run: run.info.start_time)

    def files(self, version=None):
        """Artifacts on disk, relative to ``data``; beside each is its checksum."""
        data = self.path / "data"
        files = {path.relative_to(data) for path in data.rglob("*") if path.is_file()}
        found = {path for path in files if path.suffix != ".sha256"}
        return {path for path in found if version is None or path.parts[-2] == version}

    def find(self, name, version):
        (found,) = self.path.glob(f"data/**/{name}/{version}/{name}")
        return found


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def copy_project(path, small):
    """A project with the code of this one, its base configuration, and small trainings."""
    (path / "src").mkdir(parents=True)
    (path / "src" / "counterdoor").symlink_to(ROOT / "src" / "counterdoor")
    copytree(ROOT / "conf" / "base", path / "conf" / "base")
    copy(ROOT / "conf" / "logging.yml", path / "conf")
    copy(ROOT / "pyproject.toml", path)
    (path / "data").mkdir()
    (path / "conf" / "local").mkdir()
    (path / "conf" / "local" / "globals.yml").write_text("source_name: parquet\n")
    (path / "conf" / "local" / "parameters_small.yml").write_text(yaml.safe_dump(small))
    return Project(path)


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """Nothing of the outside gets in, and nothing of the runs gets out."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MLFLOW_"):
                patch.delenv(name)
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        patch.delenv("MLFLOW_EXPERIMENT_ID")
        patch.setattr(sys, "path", [*sys.path])
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield
        mlflow.set_tracking_uri(None)


@pytest.fixture(autouse=True)
def forget_tracking():
    """Each test decides where it tracks: MLflow remembers in the environment."""
    import mlflow

    def forget():
        mlflow.set_tracking_uri(None)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
            os.environ.pop(name, None)

    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def small(tmp_path_factory, all_digits):
    """Parameters of a run that takes seconds: 60 digits a class, an epoch or two."""
    folder = tmp_path_factory.mktemp("digits")
    rows = np.concatenate([np.flatnonzero(all_digits.labels == label)[:60] for label in range(10)])
    cells = []
    for image in all_digits.images_nchw[rows]:
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    table = pd.DataFrame({"img": cells, "label": all_digits.labels[rows]})
    table.to_parquet(folder / "train.parquet")
    return {
        "ingest": {"source": {"path": str(folder)}, "trusted_share": 0.1},
        "warmup": {"recipe": {"epochs": EPOCHS["warmup"]}},
        "relabel": {"labeler": {"recipe": {"epochs": EPOCHS["relabel"]}}},
        "train": {"recipe": {"epochs": EPOCHS["defended"]}},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory, small):
    return copy_project(tmp_path_factory.mktemp("one") / "project", small)


@pytest.fixture(scope="module")
def first(project):
    """The version that a full run made."""
    return project.run()


@pytest.fixture(scope="module")
def catalog(project, first):
    """The catalog of the project; it loads what was newest when it was asked first."""
    return project.catalog()


@pytest.fixture(scope="module")
def tracked(project, first):
    """The full run as MLflow knows it."""
    (run,) = [run for run in project.runs() if run.data.tags["kedro.run_id"] == first]
    return run


@pytest.fixture(scope="module")
def metrics(project, first):
    return json.loads(project.find("metrics.json", first).read_text())


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A tracking store without a run; it takes seconds to make one."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def with_store(project, store):
    copy(store, project.path / "mlflow.db")
    return project


@pytest.fixture
def other(tmp_path, small, empty_store):
    """A fresh copy for tests that break things."""
    return with_store(copy_project(tmp_path / "project", small), empty_store)


@pytest.fixture
def ingested(other, project, first):
    """A copy with what the first two stages made, and no run tracked yet."""
    for path in project.files(first):
        if path.parts[0] in ("01_raw", "02_intermediate"):
            copytree((project.path / "data" / path).parent, (other.path / "data" / path).parent)
    return other


# --- artifacts -----------------------------------------------------------------


def default_data_sets(path):
    """Names of what a full run writes."""
    bootstrap_project(path)
    from kedro.framework.project import pipelines

    names = pipelines["__default__"].datasets()
    return sorted(name for name in names if not name.startswith("param"))


@pytest.fixture(scope="module")
def made(project, first):
    return default_data_sets(project.path)


def test_every_data_set_is_on_disk_once_and_nothing_else(project, first, catalog, made):
    names = {Path(str(catalog[name]._filepath)).name for name in made}
    found = [path.name for path in project.files(first)]
    assert sorted(found) == sorted(names)
    assert len(found) > 30
    assert not list(project.path.rglob("*.partial"))
    checksums = {path.name for path in project.path.rglob(f"data/**/{first}/*.sha256")}
    assert checksums == {f"{name}.sha256" for name in names}


def test_artifacts_lie_under_the_choices_that_made_them(project, first):
    for path in project.files(first):
        folder, *choices, variant, name, version, file = path.parts
        assert name == file
        assert version == first
        assert variant.startswith("s0-")
        if folder in STAGE_PATHS:
            assert "/".join(choices) == STAGE_PATHS[folder], path
        else:
            assert folder == "06_models"
            assert "/".join(choices) in (
                "parquet/badnets-0.1-all_to_one/digits_cnn-simclr",
                TRAINED,
            )


def test_every_artifact_can_be_loaded(project, first, catalog, made):
    loaded = {name: catalog.load(name) for name in made}
    assert all(data is not None for data in loaded.values())
    assert len(loaded["images"]) == len(loaded["relabeled_ledger"]) == len(loaded["oracle"]) == 480
    assert loaded["relabeled_ledger"]["suspect"].sum() == int(0.05 * (480 - 50))
    assert loaded["dataset_info"]["n_trusted"] == 50
    assert loaded["report"].lstrip().lower().startswith("<!doctype html>")
    assert loaded["outcome_figure"].startswith(b"\x89PNG")


def test_no_artifact_holds_a_pickle(project, first):
    extensions = {path.suffix for path in project.files(first)}
    assert extensions == {".npy", ".parquet", ".json", ".safetensors", ".png", ".html"}
    for path in (project.path / "mlartifacts").rglob("*"):
        if path.is_file():
            assert path.suffix not in (".pkl", ".pickle", ".pth", ".pt"), path


def test_the_report_is_one_file_with_the_figures_inside(project, first, metrics):
    report = project.find("report.html", first).read_text()
    assert report.count("data:image/png;base64,") == 7
    assert "<script src" not in report
    assert f"{metrics['asr']:.1%}" in report


# --- another defence -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pdb", "fp"])
def test_an_opponent_runs_through_the_same_stages(other, monkeypatch, name):
    """To a report and a model that says what the stored net says as it is deployed."""
    import mlflow

    own = {"recipe": {"epochs": 2}} if name == "fp" else {}
    version = other.run(params={"defence_name": name, "defence": own})
    (run,) = other.runs()
    assert run.info.run_name == READABLE_NAME.replace("nab", name)
    assert run.data.tags["defence"] == run.data.params["defence_name"] == name
    metrics = json.loads(other.find("metrics.json", version).read_text())
    assert metrics["n_suspects"] == metrics["n_stamped"] == 0
    assert np.isnan(metrics["detection_precision"])
    assert "detection_precision" not in run.data.metrics
    assert run.data.metrics["ca"] == pytest.approx(metrics["ca"])
    assert pd.read_parquet(other.find("warmup_history.parquet", version)).empty
    assert f"{name} against badnets" in other.find("report.html", version).read_text()
    trained_file = other.find("defended_net.safetensors", version)
    assert f"/lga/vd/{name}/s0-" in str(trained_file)

    trained = TrainedNetDataset(filepath=str(trained_file)).load()
    assert trained.label_map == {"pdb": (1, 2, 3, 4, 5, 6, 7, 8, 9, 0), "fp": None}[name]
    images = np.load(other.find("test_images.npy", version))[:37]
    (output,) = run.outputs.model_outputs
    location = other.client().get_logged_model(output.model_id).artifact_location
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with torch.inference_mode():
        expected = trained.deployable()(torch.tensor(images))
        logits = mlflow.pytorch.load_model(location)(torch.tensor(images))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_defence_without_trusted_samples_is_refused_before_any_training(other):
    given = {"defence_name": "nad", "ingest": {"trusted_share": 0.0}}
    with pytest.raises(ValueError, match="defence 'nad' works with trusted samples, but 0 of"):
        other.run(params=given)
    assert not list(other.path.glob("data/**/*.safetensors/*/*_net.safetensors"))


# --- tracking ------------------------------------------------------------------


def test_one_finished_run_with_a_readable_name(project, tracked, first):
    same = [run for run in project.runs() if run.data.tags["kedro.run_id"] == first]
    assert len(same) == 1
    assert tracked.info.status == "FINISHED"
    assert tracked.info.run_name == READABLE_NAME
    assert tracked.info.end_time >= tracked.info.start_time


def test_parameters_are_flattened(small, tracked):
    params = tracked.data.params
    assert params["seed"] == "0"
    assert params["attack.name"] == "badnets"
    assert params["attack.poison_ratio"] == "0.1"
    assert params["train.recipe.epochs"] == "2"
    assert params["train.recipe.schedule.name"] == "cosine"
    assert params["relabel.labeler.recipe.epochs"] == "2"
    assert params["ingest.source.path"] == small["ingest"]["source"]["path"]
    assert not [name for name in params if name.startswith("_")]
    assert set(dict(flat(small))) <= set(params)


def test_tags(project, tracked, first):
    tags = tracked.data.tags
    info = json.loads(project.find("dataset_info.json", first).read_text())
    assert tags["data.content_hash"] == info["content_hash"]
    assert len(info["content_hash"]) == 64
    assert tags["data.n_train"] == "480"
    assert "cores" in tags["hardware"]
    assert f"torch {torch.__version__}" in tags["hardware"]
    assert len(tags["variant"]) == 12
    assert "error" not in tags
    assert not [name for name in tags if name.startswith("input.")]
    assert "commit" not in tags  # the copy is outside git


def test_the_commit_is_noted_inside_git(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert commit_tags(tmp_path) == {}
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "One")
    head = git("rev-parse", "HEAD")
    assert commit_tags(tmp_path) == {"commit": head, "commit.dirty": "false"}
    (tmp_path / "untracked").write_text("x")
    assert commit_tags(tmp_path)["commit.dirty"] == "false"
    (tmp_path / "file").write_text("two")
    assert commit_tags(tmp_path) == {"commit": head, "commit.dirty": "true"}


@pytest.mark.parametrize("stream", EPOCHS)
def test_metrics_have_a_step_an_epoch(project, tracked, stream):
    client = project.client()
    for metric in ("loss", "accuracy", "learning_rate", "images_per_second"):
        history = client.get_metric_history(tracked.info.run_id, f"{stream}/{metric}")
        assert [point.step for point in history] == list(range(1, EPOCHS[stream] + 1))


@pytest.mark.parametrize("stream", ["warmup", "undefended", "defended"])
def test_metrics_by_epoch_are_those_of_the_history(project, tracked, first, stream):
    table = pd.read_parquet(project.find(f"{stream}_history.parquet", first))
    for metric in ("loss", "accuracy"):
        history = project.client().get_metric_history(tracked.info.run_id, f"{stream}/{metric}")
        assert [point.value for point in history] == pytest.approx(table[metric].tolist())


def test_the_measures_are_those_of_the_file(tracked, metrics):
    assert {"ca", "asr", "ba", "undefended_ca", "undefended_asr", "detection_precision"} <= set(
        metrics
    )
    finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
    logged = tracked.data.metrics
    assert {name: logged[name] for name in finite} == pytest.approx(finite)
    assert not [name for name in set(metrics) - set(finite) if name in logged]


def test_seconds_by_stage_and_their_sum(project, tracked, first):
    table = pd.read_parquet(project.find("seconds.parquet", first))
    logged = tracked.data.metrics
    for stage, seconds in zip(table["stage"], table["seconds"], strict=True):
        assert logged[f"seconds_{stage}"] == pytest.approx(seconds)
    assert logged["seconds"] == pytest.approx(table["seconds"].sum())


def test_artifacts_of_the_run(project, tracked, first):
    listed = {each.path for each in project.client().list_artifacts(tracked.info.run_id)}
    figures = {path.name for path in project.files(first) if path.suffix == ".png"}
    assert len(figures) == 7
    assert {"report.html", "predictions.parquet", *figures} <= listed
    assert not {name for name in listed if name.startswith(("oracle", "clean_"))}
    folder = Path(tracked.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(project.path / "mlartifacts")
    for name in ("report.html", "outcome_figure.png"):
        assert (folder / name).read_bytes() == project.find(name, first).read_bytes()


@pytest.fixture(scope="module")
def model_uri(project, tracked):
    client = project.client()
    (output,) = tracked.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.name == "defended_net"
    return model.artifact_location


@pytest.mark.parametrize("flavour", ["pytorch", "pyfunc"])
def test_the_model_loads_without_pickle_and_says_what_the_stored_net_says(
    project, first, catalog, model_uri, monkeypatch, flavour
):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    images = np.load(project.find("test_images.npy", first))[:37]
    trained = catalog.load("defended_net")
    assert trained.stamp is not None
    with torch.inference_mode():
        expected = trained.deployable()(torch.tensor(images)).numpy()
        if flavour == "pytorch":
            logits = mlflow.pytorch.load_model(model_uri)(torch.tensor(images)).numpy()
        else:
            logits = mlflow.pyfunc.load_model(model_uri).predict(images.astype(np.float32))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert len(set(expected.argmax(1))) > 1


def test_the_stored_nets_predict_what_the_predictions_say(project, first, catalog):
    table = pd.read_parquet(project.find("predictions.parquet", first))
    for name, column in (
        ("defended_net", "defended_triggered_stamped"),
        ("undefended_net", "undefended_triggered_plain"),
    ):
        with torch.inference_mode():
            images = torch.tensor(np.array(catalog.load("triggered_test_images")))
            logits = catalog.load(name).deployable()(images)
        top = logits.sort(1).values
        clear = (top[:, -1] - top[:, -2] > 1e-3).numpy()
        assert clear.mean() > 0.9
        assert (logits.argmax(1).numpy() == table[column].to_numpy())[clear].all()


@pytest.mark.slow
def test_a_tracking_server_of_the_users_is_respected(other, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'theirs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    other.run(["ingest"])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("theirs")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["kedro.pipelines"] == "ingest"
    assert other.runs() == []
    assert os.environ["MLFLOW_TRACKING_URI"] == uri


@pytest.mark.slow
def test_two_projects_in_one_process_keep_their_runs_apart(tmp_path, small, empty_store):
    """As in a notebook: the second is not tracked in the store of the first."""
    projects = [
        with_store(copy_project(tmp_path / name, small), empty_store) for name in ("one", "two")
    ]
    for each in projects:
        each.run(["ingest"])
    assert [len(each.runs()) for each in projects] == [1, 1]


# --- again, and otherwise --------------------------------------------------------


@pytest.fixture(scope="module")
def again(project, first):
    """The version of a second full run with the same parameters."""
    return project.run()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_results(project, first, again, metrics):
    assert again != first
    assert json.loads(project.find("metrics.json", again).read_text()) == metrics
    for name in ("images.npy", "relabeled_ledger.parquet", "defended_net.safetensors"):
        versions = [project.find(name, version).read_bytes() for version in (first, again)]
        assert versions[0] == versions[1], name


@pytest.mark.slow
def test_the_second_run_has_the_variant_of_the_first(project, again, tracked):
    (second,) = [run for run in project.runs() if run.data.tags["kedro.run_id"] == again]
    assert second.data.tags["variant"] == tracked.data.tags["variant"]
    assert second.info.run_id != tracked.info.run_id


def notes_of(version, paths):
    """Where a run that has not read the images itself says which they were."""
    return {path for path in paths if path.parts[-2:] == ("made_from", f"{version}.json")}


@pytest.mark.slow
def test_evaluate_alone_reads_the_newest_versions(project, first, again, metrics):
    before = project.files()
    version = project.run(["evaluate"])
    assert json.loads(project.find("metrics.json", version).read_text()) == metrics
    new = project.files() - before
    (note,) = notes_of(version, new)
    assert {path.parts[0] for path in new - {note}} == {"08_reporting"}
    (run,) = [run for run in project.runs() if run.data.tags["kedro.run_id"] == version]
    assert run.info.status == "FINISHED"
    assert run.data.tags["kedro.pipelines"] == "evaluate"
    for name in ("test_images", "oracle", "relabeled_ledger", "defended_net", "undefended_net"):
        assert run.data.tags[f"input.{name}"] == again
    hashed = json.loads(project.find("dataset_info.json", again).read_text())["content_hash"]
    assert run.data.tags["data.content_hash"] == hashed
    assert run.data.metrics["ca"] == pytest.approx(metrics["ca"])


@pytest.mark.slow
def test_evaluate_alone_reads_the_versions_asked_for(project, first, again, metrics):
    bootstrap_project(project.path)
    from kedro.framework.project import pipelines

    inputs = [name for name in pipelines["evaluate"].inputs() if not name.startswith("params:")]
    version = project.run(["evaluate"], load_versions=dict.fromkeys(inputs, first))
    assert json.loads(project.find("metrics.json", version).read_text()) == metrics
    (run,) = [run for run in project.runs() if run.data.tags["kedro.run_id"] == version]
    noted = {name: value for name, value in run.data.tags.items() if name.startswith("input.")}
    assert noted == {f"input.{name}": first for name in inputs}


@pytest.mark.slow
def test_another_variant_is_written_elsewhere(ingested, first):
    before = {path: (ingested.path / "data" / path).read_bytes() for path in ingested.files()}
    version = ingested.run(["attack"], {"poison_ratio": 0.3})
    made = ingested.files() - set(before)
    new = made - notes_of(version, made)
    assert len(made) == len(new) + 1
    assert {path.name for path in new} == {
        "images.npy",
        "ledger.parquet",
        "oracle.parquet",
        "triggered_test_images.npy",
        "attack_timing.json",
        "attack_preparation.safetensors",
        "prepare_attack_timing.json",
    }
    assert {path.parts[:3] for path in new} == {
        ("02_intermediate", "parquet", "badnets-0.3-all_to_one")
    }
    assert {path.parts[-2] for path in new} == {version}
    for path, content in before.items():
        assert (ingested.path / "data" / path).read_bytes() == content
    oracles = {
        path.parts[2]: pd.read_parquet(ingested.path / "data" / path)["is_poisoned"].mean()
        for path in ingested.files()
        if path.name == "oracle.parquet"
    }
    assert oracles["badnets-0.1-all_to_one"] < 0.12
    assert oracles["badnets-0.3-all_to_one"] > 0.25


@pytest.mark.slow
def test_features_are_learnt_once_and_outlive_a_run_that_needs_none(ingested, small, monkeypatch):
    """LN with NC learns them and needs no other net, LGA with VD hands them on."""
    learnt = []
    learn = SimCLR.__call__

    def counted(self, *args, **kwargs):
        learnt.append(self.recipe.epochs)
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(SimCLR, "__call__", counted)
    few = {key: small[key] for key in ("ingest", "train")} | {"features": {"recipe": {"epochs": 1}}}
    (ingested.path / "conf" / "local" / "parameters_small.yml").write_text(yaml.safe_dump(few))
    stages = ["warmup", "detect", "relabel", "train", "evaluate"]
    version = ingested.run(stages, {"detector_name": "ln", "labeler_name": "nc"})
    assert learnt == [1]
    metrics = json.loads(ingested.find("metrics.json", version).read_text())
    assert 0 <= metrics["pseudo_label_accuracy"] <= 1
    assert len(pd.read_parquet(ingested.find("warmup_history.parquet", version))) == 0
    first = ingested.find("features.safetensors", version)
    other = ingested.run(["warmup"], {"warmup": {"recipe": {"epochs": 1}}})
    second = ingested.find("features.safetensors", other)
    assert first.parents[1] == second.parents[1]
    assert first.read_bytes() == second.read_bytes()
    third = ingested.run(["relabel"], {"detector_name": "ln", "labeler_name": "nc"})
    for name in ("plan.parquet", "relabeled_ledger.parquet"):
        made = [ingested.find(name, each).read_bytes() for each in (version, third)]
        assert made[0] == made[1]
    assert learnt == [1]


# --- export --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(project, first):
    """The version that the stage export made of the newest run."""
    return project.run(["export"], {"export": {"reject": True}})


@pytest.mark.slow
def test_file_onnx_and_mlflow_model_predict_the_same(project, catalog, exported):
    import mlflow
    import onnxruntime

    images = np.array(catalog.load("images")[::3])
    assert len(images) > 100
    hardened = HardenedDataset(filepath=str(project.find("hardened.safetensors", exported))).load()
    logits, rejected = hardened.predict(images)
    onnx = project.find("hardened_onnx.onnx", exported)
    session = onnxruntime.InferenceSession(onnx.read_bytes())
    by_onnx, flags = session.run(["logits", "reject"], {"images": images})
    (run,) = [run for run in project.runs() if run.data.tags["kedro.run_id"] == exported]
    (output,) = run.outputs.model_outputs
    model = project.client().get_logged_model(output.model_id)
    served = mlflow.pyfunc.load_model(model.artifact_location)
    by_mlflow = served.predict(images.astype(np.float32))
    for other in (by_onnx, by_mlflow[:, :-1]):
        np.testing.assert_allclose(other, logits, atol=1e-3)
        assert (other.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert (flags == rejected).all()
    assert (by_mlflow[:, -1] == rejected).all()
    large = np.repeat(np.repeat(images[:5], 2, axis=2), 3, axis=3)
    again = served.predict(large.astype(np.float32))
    np.testing.assert_allclose(again[:, :-1], hardened.predict(large)[0], atol=1e-3)


@pytest.mark.slow
def test_the_exported_net_is_the_defended_one_and_says_where_it_comes_from(
    project, catalog, exported
):
    hardened = HardenedDataset(filepath=str(project.find("hardened.safetensors", exported))).load()
    trained = catalog.load("defended_net")
    assert hardened.net.stamp == trained.stamp
    assert all(torch.equal(hardened.net.state[name], each) for name, each in trained.state.items())
    info = catalog.load("dataset_info")
    assert hardened.class_names == tuple(info["class_names"])
    assert hardened.about["data"]["content_hash"] == info["content_hash"]
    card = project.find("model_card.md", exported).read_text()
    assert info["content_hash"] in card


@pytest.mark.slow
def test_predict_labels_files_and_folders(project, catalog, exported, tmp_path, monkeypatch):
    images = catalog.load("images")[:6]
    for number, image in enumerate(images[:5]):
        Image.fromarray(image[0]).save(tmp_path / f"{number}.png")
    alone = tmp_path / "alone" / "5.png"
    alone.parent.mkdir()
    Image.fromarray(images[5][0]).save(alone)
    damaged = tmp_path / "alone" / "damaged.png"
    damaged.write_bytes(alone.read_bytes()[:60])
    monkeypatch.chdir(project.path)
    good = [str(tmp_path / f"{number}.png") for number in range(5)]
    result = CliRunner().invoke(cli, ["predict", *good, str(alone), "--format", "json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    hardened = HardenedDataset(filepath=str(project.find("hardened.safetensors", exported))).load()
    logits, rejected = hardened.predict(images)
    assert [each["file"] for each in told] == [*good, str(alone)]
    names = [hardened.class_names[label] for label in logits.argmax(axis=1)]
    assert [each["label"] for each in told] == names
    assert [each["rejected"] for each in told] == rejected.tolist()
    assert all(0 < each["probability"] <= 1 for each in told)
    result = CliRunner().invoke(cli, ["predict", str(alone.parent), "--format", "json"])
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)) == 1
    assert f"{damaged} cannot be read" in result.stderr


def test_predict_without_an_exported_net_says_how_to_get_one(other, tmp_path, monkeypatch):
    monkeypatch.chdir(other.path)
    result = CliRunner().invoke(cli, ["predict", str(tmp_path)])
    assert result.exit_code == 1
    assert "kedro run --pipelines export" in result.stderr


# --- data of unknown origin ----------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, all_digits):
    """600 real digits as files, a folder a class; a tenth of all poisoned into class 0."""
    path = tmp_path_factory.mktemp("folder")
    rows = np.concatenate([np.flatnonzero(all_digits.labels == label)[:60] for label in range(10)])
    images, labels = all_digits.images_nchw[rows], all_digits.labels[rows]
    ledger = new_ledger(labels, np.zeros(len(labels), bool))
    bad = poison(BadNets(), images, ledger, list(all_digits.class_names), seed=0)
    for row, (image, label) in enumerate(zip(bad.images_nchw, bad.ledger["label"], strict=True)):
        file = path / str(label) / f"{row:03}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(file)
    return path


@pytest.mark.slow
def test_a_folder_of_unknown_origin_gives_a_net_the_suspects_and_the_rest(
    other, folder, monkeypatch
):
    (other.path / "conf" / "local" / "globals.yml").unlink()
    few = {"train": {"recipe": {"epochs": 1}}, "features": {"recipe": {"epochs": 1}}}
    (other.path / "conf" / "local" / "parameters_small.yml").write_text(yaml.safe_dump(few))
    monkeypatch.chdir(other.path)
    told = f"source_name=image_folder,source_path={folder},ingest.source.image_mode=L"
    told += ",ingest.source.image_size=28,detect.suspect_ratio=0.1"
    command = [sys.executable, "-m", "kedro", "run", "--pipelines", "defend", "--params", told]
    done = subprocess.run(command, capture_output=True, text=True, cwd=other.path)
    names = {path.name for path in other.files()}
    verdict = json.loads(
        (
            other.path
            / "data"
            / next(path for path in other.files() if path.name == "verdict.json")
        ).read_text()
    )
    assert done.returncode == {"evidence": 3, "undecided": 4, "no evidence": 0}[verdict["answer"]]
    assert verdict["reasons"][0] in done.stdout
    assert {
        "hardened.safetensors",
        "hardened_onnx.onnx",
        "model_card.md",
        "suspects_page.html",
    } <= names
    assert not names & {"oracle.parquet", "images.npy", "triggered_test_images.npy"}
    (suspects, cleaned, ledger, files) = (
        next(path for path in other.files() if path.name == name)
        for name in ("suspects.csv", "cleaned.csv", "relabeled_ledger.parquet", "files.parquet")
    )
    found, kept = (pd.read_csv(other.path / "data" / path) for path in (suspects, cleaned))
    whole = pd.read_parquet(other.path / "data" / files)["file"]
    assert sorted([*found["file"], *kept["file"]]) == sorted(whole)
    assert 470 < len(whole) < 490  # a fifth of each class is held out
    assert all((folder / file).is_file() for file in whole)
    assert len(found) == pd.read_parquet(other.path / "data" / ledger)["suspect"].sum() > 20
    assert (found["label"] == 0).mean() > 0.5
    (run,) = other.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["kedro.pipelines"] == "defend"
    assert run.data.tags["verdict"] == verdict["answer"]
    assert "asr" not in run.data.metrics


@pytest.mark.slow
def test_stages_do_not_mix_what_two_data_sets_made(other, small):
    """The images change between two stages; every stage is made again in turn, and it goes on."""
    source = Path(small["ingest"]["source"]["path"]) / "train.parquet"
    own = other.path / "images"
    own.mkdir()
    copy(source, own)
    given = {"ingest": {"source": {"path": str(own)}}}
    other.run(["ingest", "attack", "warmup"], given)
    pd.read_parquet(source)[::-1].to_parquet(own / "train.parquet")
    other.run(["ingest"], given)
    before, runs = other.files(), len(other.runs())
    for stage, again in ((["warmup"], "attack"), (["detect"], "attack, warmup")):
        with pytest.raises(DatasetError, match=f"Run again first the stages? {again}, with"):
            other.run(stage, given)
    assert other.files() == before
    assert len(other.runs()) == runs
    other.run(["attack"], given)
    with pytest.raises(DatasetError, match="Run again first the stage warmup, with"):
        other.run(["detect"], given)
    other.run(["warmup"], given)
    other.run(["detect"], given)


# --- no attack, and the truth --------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory, small, empty_store):
    """A project with one run on clean data, nobody suspected, and its version."""
    path = tmp_path_factory.mktemp("clean") / "project"
    project = with_store(copy_project(path, small), empty_store)
    params = {"attack_name": "none", "detect": {"suspect_ratio": "adaptive"}}
    return project, project.run(params=params)


@pytest.mark.slow
def test_clean_data_is_trained_on_as_it_is(clean):
    project, version = clean
    plan = pd.read_parquet(project.find("plan.parquet", version))
    ledger = pd.read_parquet(project.find("ledger.parquet", version))
    assert set(plan["role"]) == {"kept"}
    assert plan[["sample_id", "label"]].equals(ledger[["sample_id", "label"]])
    oracle = pd.read_parquet(project.find("oracle.parquet", version))
    assert oracle["true_label"].equals(ledger["label"])
    assert not oracle[["is_poisoned", "is_cover"]].to_numpy().any()
    images = [project.find(f"{name}.npy", version) for name in ("clean_images", "images")]
    assert np.array_equal(*map(np.load, images))
    with safe_open(project.find("defended_net.safetensors", version), "pt") as net:
        assert json.loads(net.metadata()["counterdoor"])["stamp"] is None


@pytest.mark.slow
def test_a_run_on_clean_data_has_a_report_and_its_measures(clean):
    project, version = clean
    metrics = json.loads(project.find("metrics.json", version).read_text())
    assert metrics["n_poisoned"] == metrics["n_suspects"] == metrics["n_stamped"] == 0
    assert np.isnan([metrics[name] for name in ("asr", "ba", "der", "detection_precision")]).all()
    assert 0 < metrics["ca"] == metrics["ca_unstamped"] <= 1
    report = project.find("report.html", version).read_text()
    assert "Nobody is poisoned" in report
    assert "Nobody is suspected" in report
    (run,) = project.runs()
    assert run.info.run_name == READABLE_NAME.replace("badnets-0.1", "none-0")
    assert "asr" not in run.data.metrics
    assert Results.read(project.path).summary()["asr"].tolist() == ["n/a"]


@pytest.fixture
def ideal(tmp_path, small, empty_store):
    """A project whose detector and labeler look at the truth."""
    settings = {key: small[key] for key in ("ingest", "train")}
    settings["detect"] = {"suspect_ratio": "adaptive"}
    project = with_store(copy_project(tmp_path / "project", settings), empty_store)
    told = "source_name: parquet\ndetector_name: oracle\nlabeler_name: oracle\n"
    (project.path / "conf" / "local" / "globals.yml").write_text(told)
    return project


@pytest.mark.slow
def test_an_ablation_knows_the_truth_and_no_other_pipeline_does(ideal):
    for pipeline, family in (
        (None, "detector"),
        (["detect"], "detector"),
        (["relabel"], "labeler"),
    ):
        with pytest.raises(ValueError, match=f"{family} 'oracle' looks at the truth"):
            ideal.run(pipeline)
    assert ideal.runs() == []
    assert ideal.files() == set()
    version = ideal.run(["ablation"])
    ledger = pd.read_parquet(ideal.find("relabeled_ledger.parquet", version))
    oracle = pd.read_parquet(ideal.find("oracle.parquet", version))
    assert ledger["suspect"].equals(oracle["is_poisoned"])
    assert ledger["pseudo_label"].equals(oracle["true_label"])
    assert ledger["stamped"].equals(oracle["is_poisoned"] & (oracle["true_label"] != 0))
    metrics = json.loads(ideal.find("metrics.json", version).read_text())
    perfect = ("detection_precision", "detection_tpr", "detection_auroc", "pseudo_label_accuracy")
    assert [metrics[name] for name in perfect] == [1, 1, 1, 1]
    assert 0 < metrics["n_suspects"] == metrics["n_poisoned"]


# --- what goes wrong ---------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_run_is_marked_failed_and_trains_nothing(other):
    with pytest.raises(
        ValueError, match=r"attack.labels.target_class is 12, but the data has 10 classes"
    ):
        other.run(params={"attack": {"labels": {"target_class": 12}}})
    (run,) = other.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("ValueError: attack.labels.target_class is 12")
    assert not [name for name in run.data.metrics if "/" in name]
    assert {path.parts[0] for path in other.files()} == {"01_raw"}
    assert not list(other.path.rglob("*.partial"))
    assert not (other.path / "data" / "06_models").exists()
    # and the next run is tracked by itself
    other.run(["ingest"])
    failed, finished = other.runs()
    assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
    assert failed.info.run_id == run.info.run_id
    assert "error" not in finished.data.tags


@pytest.mark.slow
def test_a_plan_that_cannot_work_is_refused_before_any_training(ingested):
    with pytest.raises(ValueError, match="outside the 28x28 images"):
        ingested.run(["warmup"], {"stamp": {"size": 29}})
    (run,) = ingested.runs()
    assert run.info.status == "FAILED"
    assert not (ingested.path / "data" / "06_models").exists()


@pytest.mark.slow
def test_a_failure_half_way_leaves_no_version_of_the_artifact(ingested, monkeypatch):
    from counterdoor.io import trained_net

    def fails(state, path, metadata):
        Path(path).write_bytes(b"half of a net")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained_net, "save_file", fails)
    with pytest.raises(DatasetError, match="No space left on device"):
        ingested.run(["warmup"])
    (run,) = ingested.runs()
    assert run.info.status == "FAILED"
    assert "No space left on device" in run.data.tags["error"]
    assert not [path for path in ingested.path.rglob("*") if "warmup_net" in path.name]


@pytest.mark.slow
def test_a_truncated_input_is_found_before_any_node(ingested, first):
    file = ingested.find("images.npy", first)
    os.truncate(file, 100_000)
    before = ingested.files()
    with pytest.raises(DatasetError, match="damaged or incomplete: delete the folder") as caught:
        ingested.run(["warmup"])
    assert str(file) in str(caught.value)
    assert ingested.files() == before
    assert ingested.runs() == []


@pytest.mark.slow
def test_a_missing_input_is_found_before_any_node_and_says_what_to_do(ingested, first):
    rmtree(ingested.find("images.npy", first).parents[1])
    before = ingested.files()
    with pytest.raises(
        DatasetError, match="this run needs 'images', which is not on disk"
    ) as caught:
        ingested.run(["warmup"])
    assert "run the stages before it first" in str(caught.value)
    assert "or give the parameters that it was made with" in str(caught.value)
    assert ingested.files() == before
    assert ingested.runs() == []


@pytest.mark.slow
def test_a_data_folder_that_cannot_be_written_to_is_found_before_any_node(other):
    """A file in the folder's place stops root as well as anybody else."""
    (other.path / "data").rmdir()
    (other.path / "data").write_text("not a folder")
    with pytest.raises(DatasetError, match="cannot be written to") as caught:
        other.run(["ingest"])
    assert str(other.path / "data") in str(caught.value)
    assert other.runs() == []


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    """The system's refusal is put in its place, since root is refused nothing."""
    dataset = JSONDataset(
        filepath=str(tmp_path / "data" / "a" / "b.json"), version=Version(None, "v")
    )
    ensure_writable(dataset)
    assert not (tmp_path / "data").exists()

    def refuses(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(kwargs["dir"]))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    with pytest.raises(DatasetError, match=r"cannot be written to \(Permission denied\)") as caught:
        ensure_writable(dataset)
    assert str(tmp_path) in str(caught.value)
    assert "give yourself write permission" in str(caught.value)


@pytest.mark.slow
def test_a_newer_version_that_appears_during_the_run_is_not_read_by_it(ingested, first):
    """Kedro would warn and go on with the other data; two runs may share their first stages."""
    file = ingested.find("ledger.parquet", first)
    newer = file.parents[1] / "2999-01-01T00.00.00.000Z" / file.name
    newer.parent.mkdir()
    newer.write_text("not a ledger")
    version = ingested.run(["attack", "warmup"])
    (run,) = ingested.runs()
    assert run.info.status == "FINISHED"
    assert ingested.find("warmup_net.safetensors", version).stat().st_size


def state_of(database):
    """Status of the one run, and how many training metrics it has."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            statuses = connection.execute("SELECT status FROM runs").fetchall()
            count = connection.execute("SELECT COUNT(*) FROM metrics WHERE key LIKE '%/loss'")
            return statuses[0][0] if statuses else None, count.fetchone()[0]
    except sqlite3.OperationalError:
        return None, 0


def final_nets(path):
    """Newest defended and undefended net of a project, as bytes, and its metrics."""
    files = {}
    for name in ("defended_net.safetensors", "undefended_net.safetensors", "metrics.json"):
        found = sorted((path / "data").rglob(f"{name}/*/{name}"), key=lambda file: file.parent.name)
        files[name] = found[-1].read_bytes() if found else None
    return files


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_nets(tmp_path, small):
    """Killed as soon as the named training has been saved; nothing can be tidied up."""
    longer = {"epochs": 12}
    settings = small | {"warmup": {"recipe": longer}, "train": {"recipe": longer}}
    command = [sys.executable, "-m", "kedro", "run"]
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true"}

    def run(path):
        return subprocess.Popen(
            command,
            cwd=path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    whole = copy_project(tmp_path / "whole", settings).path
    cut = copy_project(tmp_path / "cut", settings).path
    undisturbed = run(whole)
    for stream in ("warmup", "defended"):
        process = run(cut)
        while not list((cut / "data" / "checkpoints").rglob(f"{stream}-*.safetensors")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert final_nets(cut)["metrics.json"] is None
    process = run(cut)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "undefended epoch" not in output, "the twin was trained before the kill"
    assert "defended epoch 12/12" in output
    expected, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, expected
    assert final_nets(cut) == final_nets(whole)
    states = [run.info.status for run in Project(cut).runs()]
    assert states == ["KILLED", "KILLED", "FINISHED"]  # nobody could write the first two
    assert not (cut / "data" / "checkpoints").exists()
    catalog = Project(cut).catalog()
    for name in default_data_sets(cut):
        catalog.load(name)


@pytest.mark.parametrize(
    ("sent", "stop"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_lost_in_a_destructor_stops_the_run_at_the_next_epoch(sent, stop, monkeypatch):
    lost = []

    class Unlucky:
        def __del__(self):
            signal.raise_signal(sent)

    monkeypatch.setattr(sys, "unraisablehook", lambda report: lost.append(report.exc_type))
    hooks = TrackingHooks()
    hooks._handler = _MetricsHandler(SimpleNamespace(MlflowClient=Mock(), entities=Mock()), "run")
    hooks._catch_signals()
    try:
        Unlucky()
    finally:
        for number, former in hooks._signals.items():
            signal.signal(number, former)
    assert lost == [stop]
    with pytest.raises(stop):
        hooks._handler.handle(logging.makeLogRecord({"metrics": {}}))


@pytest.mark.slow
def test_ctrl_c_and_sigterm_mark_the_run_as_killed(tmp_path, small):
    """Both at once, in copies of their own, while a net is being trained."""
    command = [sys.executable, "-m", "kedro", "run", "--pipelines", "ingest,attack,warmup"]
    endless = small | {"warmup": {"recipe": {"epochs": 100_000}}}
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    started = {}
    try:
        for sent in (signal.SIGINT, signal.SIGTERM):
            path = copy_project(tmp_path / sent.name, endless).path
            started[sent] = (
                path,
                subprocess.Popen(
                    command,
                    cwd=path,
                    env=environment | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    # A shell that puts us in the background makes its children deaf to SIGINT.
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                ),
            )
        for path, process in started.values():
            while state_of(path / "mlflow.db")[1] < 2:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.1)
        for sent, (_, process) in started.items():
            process.send_signal(sent)
        for path, process in started.values():
            try:
                output, _ = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                pytest.fail(f"the signal was lost: {process.communicate()[0]}")
            assert process.returncode != 0, output
            assert state_of(path / "mlflow.db")[0] == "KILLED", output
            folders = {each.name for each in (path / "data").rglob("*")}
            assert "images.npy" in folders
            assert "warmup_net.safetensors" not in folders
            assert not [name for name in folders if name.endswith(".partial")]
    finally:
        for _, process in started.values():
            if process.poll() is None:
                process.kill()
                process.communicate()
