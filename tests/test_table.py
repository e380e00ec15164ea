"""``kedro table``: what is left, what is shown, the page; and a small table, really run."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copy, copytree

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from counterdoor.cells import Job, Outcome, jobs_of
from counterdoor.cli import cli
from counterdoor.comparison import Cell, read_grid
from counterdoor.results import Results
from counterdoor.store import EXPERIMENT
from counterdoor.table import append_records, follow, measured, read_records, waiting

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:register_new_resolver",
        "ignore:The ``noload`` loader strategy is deprecated",
    ),
]

ROOT = Path(__file__).resolve().parents[1]
GRID = {
    "title": "Small",
    "data": "MNIST",
    "seeds": [0, 1],
    "attacks": [{"name": "badnets", "parameters": {"attack_name": "badnets"}}],
    "defences": [
        {"name": "vd", "parameters": {"labeler_name": "vd"}},
        {"name": "drop", "seeds": [0], "parameters": {"labeler_name": "drop"}},
    ],
}


def small_project(path):
    """The project's configuration and code, and a grid of three cells."""
    (path / "src").mkdir(parents=True)
    (path / "src" / "counterdoor").symlink_to(ROOT / "src" / "counterdoor")
    copytree(ROOT / "conf" / "base", path / "conf" / "base")
    copy(ROOT / "conf" / "logging.yml", path / "conf")
    copy(ROOT / "pyproject.toml", path)
    (path / "conf" / "local").mkdir()
    (path / "grid.yml").write_text(yaml.safe_dump(GRID))
    return path


# --- progress ----------------------------------------------------------------------


def outcomes(*errors):
    for seed, error in enumerate(errors):
        yield Outcome(Job(Cell("a", "d", seed, None, {}), "v", Path()), 61.4, error)


def shown(given, done=0, terminal=False):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=80)
    failed = follow(given, done=done, total=5, console=console)
    return failed, text.getvalue()


def test_without_a_terminal_there_is_a_line_a_cell():
    failed, text = shown(outcomes("", "exit code 1; the end of x.log:\n    why", ""), done=2)
    assert failed == 1
    assert text.splitlines() == [
        "[3/5] a, d, seed 0: finished in 61 s",
        "[4/5] a, d, seed 1: FAILED: exit code 1; the end of x.log:",
        "    why",
        "[5/5] a, d, seed 2: finished in 61 s",
    ]


def test_on_a_terminal_there_is_a_bar_and_the_failures():
    failed, text = shown(outcomes("", "[why]"), done=3, terminal=True)
    assert failed == 1
    assert "2/2" in text
    assert "a, d, seed 1: FAILED: [why]" in text
    assert "finished in" not in text


def test_an_interrupted_table_closes_its_engine():
    closed = []

    def interrupted():
        try:
            yield from outcomes("")
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        shown(interrupted())
    assert closed == [True]


# --- what is left, and the page, from runs that never ran --------------------------


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def project(tmp_path, empty_store, monkeypatch):
    path = small_project(tmp_path / "project")
    copy(empty_store, path / "mlflow.db")
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.chdir(path)
    yield path
    import mlflow

    mlflow.set_tracking_uri(None)


def add_run(job, status="FINISHED", **metrics):
    """A tracked run of a job, with some figures."""
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    tags = {"variant": job.variant, "hardware": "a machine", "commit": "0123456789"}
    run = client.create_run(experiment, tags=tags)
    parameters = {"seed": job.cell.seed, "poison_ratio": 0.1, "attack_name": "badnets"}
    for name, value in (parameters | {"model.name": "digits_cnn"}).items():
        client.log_param(run.info.run_id, name, value)
    for name, value in ({"ca": 0.9, "asr": 0.1, "n_train": 4000.0} | metrics).items():
        client.log_metric(run.info.run_id, name, value)
    client.set_terminated(run.info.run_id, status)


def call(*arguments):
    result = CliRunner().invoke(cli, ["table", "grid.yml", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_record_counts_wherever_the_images_lie(project):
    """A run counts only for the images of its own place."""
    here, there = (
        jobs_of(
            project,
            [Cell("a", "d", 1, None, {"source_name": "parquet", "ingest": {"source": place}})],
        )
        for place in ({"path": "here"}, {"path": "there"})
    )
    assert here[0].variant != there[0].variant
    assert here[0].record_key == there[0].record_key
    (nowhere,) = jobs_of(project, [Cell("a", "d", 1, None, {})])
    assert nowhere.record_key == nowhere.key
    add_run(here[0])
    assert waiting(project, here, {}) == []
    assert waiting(project, there, {}) == there
    added = append_records(project / "cells.jsonl", here, Results.read(project), {})
    assert len(added) == 1
    known = read_records(project / "cells.jsonl")
    assert waiting(project, there, known) == []
    (found,) = measured(there, Results.read(project), known)
    assert found.metrics["ca"] == 0.9
    other = jobs_of(project, [Cell("a", "d", 2, None, {"source_name": "parquet", "seed": 2})])
    assert waiting(project, other, known) == other


def test_finished_cells_are_those_with_a_finished_run_of_the_same_parameters(project):
    first, drop, second = jobs_of(project, read_grid(project / "grid.yml").cells())
    assert call("--dry-run").splitlines() == [
        "3 cells, 0 finished, 3 to run",
        *(f"  to run    {job.cell}" for job in (first, drop, second)),
    ]
    add_run(first)
    add_run(drop, status="KILLED")
    (other,) = jobs_of(project, [Cell("a", "b", 1, None, {"seed": 1, "poison_ratio": 0.2})])
    add_run(other)
    assert call("--dry-run").splitlines() == [
        "3 cells, 1 finished, 2 to run",
        f"  finished  {first.cell}",
        f"  to run    {drop.cell}",
        f"  to run    {second.cell}",
    ]
    assert "3 cells, 0 finished" in call("--dry-run", "--params", "train.recipe.epochs=7")
    assert not (project / "docs").exists()
    assert not (project / "logs").exists()


def test_a_changed_configuration_makes_its_cells_again(project):
    for job in jobs_of(project, read_grid(project / "grid.yml").cells()):
        add_run(job)
    assert call("--dry-run").startswith("3 cells, 3 finished, 0 to run\n")
    (project / "conf" / "local" / "parameters.yml").write_text("detect: {suspect_ratio: 0.07}\n")
    assert "3 cells, 0 finished, 3 to run" in call("--dry-run")


def test_the_page_alone_is_written_from_what_has_run(project):
    first, _, second = jobs_of(project, read_grid(project / "grid.yml").cells())
    add_run(first, ca=0.5)
    add_run(first, ca=0.8)
    add_run(second, ca=0.9)
    text = call("--only-page", "--out", "pages/results.md")
    assert text == "pages/results.md is written\n"
    page = (project / "pages" / "results.md").read_text(encoding="utf-8")
    assert "```sh\nkedro table grid.yml --out pages/results.md\n```" in page
    assert "2 of 3 runs. The others are missing here." in page
    assert "| badnets | vd | 2 | – | – | 85.0 ± 7.1% |" in page
    assert "commit 0123456; a machine." in page
    for shown in ("overview", "price"):
        assert f"](results/grid_{shown}.png)" in page
        file = project / "pages" / "results" / f"grid_{shown}.png"
        assert file.read_bytes().startswith(b"\x89PNG")


def test_cells_measured_elsewhere_are_read_from_records_and_new_ones_are_added(
    project, empty_store, monkeypatch
):
    first, drop, second = jobs_of(project, read_grid(project / "grid.yml").cells())
    add_run(first, ca=0.5, **{"train/loss": 0.1})
    results = Results.read(project)
    file = project / "records" / "cells.jsonl"
    assert [each.cell for each in append_records(file, [first, drop], results, {})] == [first.cell]
    known = read_records(file)
    assert append_records(file, [first, drop], results, known) == []
    (line,) = file.read_text().splitlines()
    told = json.loads(line)
    assert (told["attack"], told["defence"], told["seed"]) == ("badnets", "vd", 0)
    assert told["metrics"] == {"ca": 0.5, "asr": 0.1, "n_train": 4000.0}
    assert told["parameters"] == {"attack_name": "badnets", "model.name": "digits_cnn"}
    assert told["tags"] == {"hardware": "a machine", "commit": "0123456789"}

    another_machine = copy(empty_store, project / "another.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{another_machine}")
    assert "3 cells, 0 finished" in call("--dry-run")
    assert "3 cells, 1 finished, 2 to run" in call("--dry-run", "--records", str(file))
    add_run(second, ca=0.9)
    call("--only-page", "--records", str(file))
    assert len(file.read_text().splitlines()) == 2
    page = (project / "docs" / "results.md").read_text(encoding="utf-8")
    assert "2 of 3 runs" in page
    assert "--records records/cells.jsonl" in page
    assert "| badnets | vd | 2 |" in page
    assert "| 70.0 ± 28.3% |" in page
    (kept,) = measured([first], Results.read(project), known)
    assert kept.metrics["ca"] == 0.5


@pytest.mark.parametrize("line", ["", "x", "[]", '{"variant": "v", "seed": 0, "metrics": {}}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    file = tmp_path / "cells.jsonl"
    good = {"variant": "v", "seed": 0, "metrics": {}, "parameters": {}, "tags": {}}
    file.write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"cells\.jsonl, line 2, is no record of a cell"):
        read_records(file)
    assert read_records(tmp_path / "none") == read_records(None) == {}


def test_no_page_is_written_over_another_if_no_cell_has_run(project):
    page = project / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("of another day")
    assert call("--only-page") == "docs/results.md is left as it is: no cell has run\n"
    assert page.read_text() == "of another day"


def test_the_command_on_the_page_keeps_paths_to_itself(project):
    given = {"source_name": "parquet", "ingest": {"source": {"path": "/home/x/images"}}}
    add_run(jobs_of(project, read_grid(project / "grid.yml", given).cells())[0])
    call("--only-page", "--params", "source_name=parquet,ingest.source.path=/home/x/images")
    page = (project / "docs" / "results.md").read_text(encoding="utf-8")
    assert "--params source_name=parquet,ingest.source.path=<path>" in page
    assert "/home/x" not in page


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title: x\nseed: [0]", "grid.yml is no grid"),
        (yaml.safe_dump(GRID | {"parameters": {"poisson_ratio": 1}}), "unknown parameter"),
    ],
)
def test_a_wrong_grid_is_told_in_words(project, text, told):
    (project / "grid.yml").write_text(text)
    result = CliRunner().invoke(cli, ["table", "grid.yml", "--dry-run"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert told in result.stderr


# --- really run ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_table_runs_and_a_second_call_runs_nothing(tmp_path, all_digits):
    """Two cells at once and one that fails, then the failed one's remedy alone."""
    project = small_project(tmp_path / "project")
    rows = np.concatenate([np.flatnonzero(all_digits.labels == label)[:30] for label in range(10)])
    pixels = []
    for image in all_digits.images_nchw[rows]:
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        pixels.append({"bytes": buffer.getvalue(), "path": None})
    table = pd.DataFrame({"img": pixels, "label": all_digits.labels[rows]})
    table.to_parquet(project / "train.parquet")
    short = {"recipe": {"epochs": 1}}
    parameters = {
        "ingest": {"source": {"path": str(project)}, "trusted_share": 0.1},
        "warmup": short,
        "train": short,
        "model": {"width": 4},
    }
    (project / "conf" / "local" / "parameters.yml").write_text(yaml.safe_dump(parameters))
    vd = {"labeler_name": "vd", "relabel.labeler.recipe.epochs": 1}
    grid = GRID | {
        "parameters": {"source_name": "parquet"},
        "seeds": [0],
        "defences": [
            {"name": "vd", "parameters": vd},
            {"name": "drop", "parameters": {"labeler_name": "drop", "relabel.agreed_stamps": 0}},
            {"name": "wrong", "parameters": {"labeler_name": "drop", "stamp.size": 99}},
        ],
    }
    (project / "grid.yml").write_text(yaml.safe_dump(grid))
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}

    def kedro(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "kedro", *arguments],
            cwd=project,
            env=environment | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
        )

    first = kedro("table", "grid.yml", "--jobs", "2")
    assert first.returncode == 1, first.stderr
    assert "3 cells, 0 finished, 3 to run" in first.stdout
    assert first.stdout.count(": finished in ") == 2, first.stdout
    assert "badnets, wrong, seed 0: FAILED: exit code 1; the end of" in first.stdout
    assert "outside the 28x28 images" in first.stdout
    assert "Error: 1 of the cells failed" in first.stderr
    page = (project / "docs" / "results.md").read_text(encoding="utf-8")
    assert "2 of 3 runs." in page
    assert page.count("| badnets | vd |") == page.count("| badnets | drop |") == 1

    grid["defences"] = grid["defences"][:2]
    (project / "grid.yml").write_text(yaml.safe_dump(grid))
    before = sorted((project / "logs").rglob("*"))
    second = kedro("table", "grid.yml")
    assert second.returncode == 0, second.stderr
    assert "2 cells, 2 finished, 0 to run" in second.stdout
    assert sorted((project / "logs").rglob("*")) == before
    runs = json.loads(kedro("results", "--format", "json").stdout)
    assert sorted(run["labeler"] for run in runs) == ["drop", "vd"]
