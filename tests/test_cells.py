"""Which cells have run, and how those that have not are run: here, and on Ray."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from counterdoor import cells
from counterdoor.cells import Job, Outcome, jobs_of, run_here, run_job, run_on_ray, runs_of
from counterdoor.comparison import Cell, read_grid
from counterdoor.config import ConfigError
from counterdoor.results import Results

ROOT = Path(__file__).resolve().parents[1]
PLACE = {"ingest.source.path": "elsewhere"}
PLACE_OF = {"path": "elsewhere"}
pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver")


def cell(attack="badnets", defence="vd", seed=0, env=None, **parameters):
    return Cell(attack, defence, seed, env, {"seed": seed, **parameters})


def job(path, seed=0, variant="v", **environment):
    return Job(cell(seed=seed), variant, path, environment)


def results(*keys):
    variants, seeds = [list(each) for each in zip(*keys, strict=True)] if keys else ([], [])
    empty = pd.DataFrame(index=range(len(keys)))
    return Results(pd.DataFrame({"seed": seeds}), variants, variants, variants, *[empty] * 3)


# --- which have run --------------------------------------------------------------


def test_a_cell_is_known_by_all_its_parameters_but_the_seed():
    def variant(**parameters):
        env = parameters.pop("env", None)
        (made,) = jobs_of(ROOT, [cell(env=env, **parameters)])
        return made.variant

    base = variant()
    assert variant(attack_name="badnets") == base, "the default, said"
    assert variant(seed=5) == base
    others = [
        variant(attack_name="blend"),
        variant(train={"recipe": {"epochs": 41}}),
        variant(env="cifar10"),
        variant(env="cifar10", model={"widths": [8, 8, 8]}),
    ]
    assert len({base, *others}) == 5


def test_a_parameter_that_there_is_not_names_its_cell():
    with pytest.raises(ConfigError, match="badnets, vd, seed 0: unknown parameter 'poisson_ratio'"):
        jobs_of(ROOT, [cell(poisson_ratio=1)])
    with pytest.raises(ConfigError, match="badnets, vd, seed 0: unknown attack_name 'nonesuch'"):
        jobs_of(ROOT, [cell(attack_name="nonesuch")])


def test_a_value_that_cannot_be_names_its_cell():
    told = r"badnets, vd, seed 0: train\.recipe\.epochs is True; it must be a whole number from 1"
    with pytest.raises(ConfigError, match=told):
        jobs_of(ROOT, [cell(train={"recipe": {"epochs": True}})])


def test_a_path_has_its_short_name_here_too():
    given = {"source_name": "image_folder"}
    place = {"ingest": {"source": {"path": "pictures"}}}
    (short,) = jobs_of(ROOT, [cell(**given, source_path="pictures")])
    (full,) = jobs_of(ROOT, [cell(**given, **place)])
    assert short.key == full.key


def test_two_cells_that_are_one_run_are_refused():
    with pytest.raises(ConfigError, match="'badnets, other, seed 0' and 'badnets, vd, seed 0'"):
        jobs_of(ROOT, [cell(), cell(defence="other", attack_name="badnets")])


@pytest.mark.parametrize(
    ("grid", "records", "given"),
    [
        ("digits", "2026-11-27_digits_cells_cpu.jsonl", {}),
        ("cifar10", "2026-11-27_cifar10_cells.jsonl", {"source_name": "parquet", **PLACE}),
    ],
)
def test_recorded_cells_are_those_of_today(grid, records, given):
    """Whoever changes what a run's digest is of makes days of work void."""
    lines = (ROOT / "benchmarks" / "records" / records).read_text(encoding="utf-8").splitlines()
    recorded = {(line["variant"], line["seed"]) for line in map(json.loads, lines)}
    found = read_grid(ROOT / "benchmarks" / "tables" / f"{grid}.yml", given).cells()
    one = [each for each in found if each.attack == "blend 10 %" and each.seed == 0]
    keys = {each.record_key for each in jobs_of(ROOT, one)}
    assert len(keys) >= 7
    assert keys <= recorded


def test_the_newest_run_of_each_job_counts(tmp_path):
    jobs = [job(tmp_path, 0), job(tmp_path, 1), job(tmp_path, 0, "w")]
    found = runs_of(jobs, results(("x", 0), ("v", 1), ("v", 0), ("v", 1), ("v", 2)))
    assert found == {("v", 1): 1, ("v", 0): 2}
    assert runs_of(jobs, results()) == {}


def test_runs_of_other_images_that_were_at_the_same_place_do_not_count(tmp_path):
    jobs = [replace(job(tmp_path, seed, name), reads="p") for name in "vw" for seed in (0, 1)]
    jobs.append(replace(job(tmp_path, 0, "x"), reads="q"))
    keys = [("v", 0), ("w", 0), ("v", 0), ("v", 1), ("w", 1), ("x", 0)]
    hashes = ["new", "old", "old", "one", None, "old"]
    read = replace(results(*keys), tags=pd.DataFrame({"data.content_hash": hashes}))
    found = runs_of(jobs, read)
    assert found == {("v", 0): 0, ("v", 1): 3, ("w", 1): 4, ("x", 0): 5}


def test_jobs_that_read_the_same_images_are_known():
    def reads(**parameters):
        (made,) = jobs_of(ROOT, [cell(**parameters)])
        return made.reads

    assert reads() == reads(seed=3) == reads(attack_name="blend", train={"recipe": {"epochs": 41}})
    assert reads() != reads(ingest={"test_share": 0.3})
    assert reads(source_name="parquet") != reads(source_name="parquet", ingest={"source": PLACE_OF})


# --- engines ----------------------------------------------------------------------


def test_a_failed_cell_does_not_stop_the_rest(tmp_path):
    jobs = [job(tmp_path, seed) for seed in range(6)]

    def run(each, unwanted):
        if each.cell.seed == 1:
            return Outcome(each, 1.0, "it failed")
        if each.cell.seed == 2:
            raise OSError("no such program")
        return Outcome(each, 1.0)

    outcomes = list(run_here(jobs, at_once=2, run=run))
    assert sorted(each.job.cell.seed for each in outcomes) == list(range(6))
    errors = {each.job.cell.seed: each.error for each in outcomes if each.error}
    assert errors == {1: "it failed", 2: "OSError: no such program"}


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_run_at_a_time(tmp_path, at_once):
    together = threading.Barrier(at_once, timeout=60)
    lock, running, most = threading.Lock(), set(), []

    def run(each, unwanted):
        with lock:
            running.add(each.cell.seed)
            most.append(len(running))
        together.wait()
        with lock:
            running.remove(each.cell.seed)
        together.wait()
        return Outcome(each, 0.0)

    list(run_here([job(tmp_path, seed) for seed in range(6)], at_once=at_once, run=run))
    assert max(most) == at_once


def test_running_cells_are_stopped_and_waiting_ones_not_started(tmp_path):
    started = []

    def run(each, unwanted):
        started.append(each.cell.seed)
        while each.cell.seed and not unwanted():
            time.sleep(0.01)
        return Outcome(each, 0.0, "stopped" if each.cell.seed else "")

    outcomes = run_here([job(tmp_path, seed) for seed in range(9)], at_once=2, run=run)
    assert next(outcomes).job.cell.seed == 0
    outcomes.close()
    assert len(started) <= 3


def stub_kedro(path, script):
    """A ``python -m kedro`` that does what ``script`` says."""
    (path / "kedro").mkdir()
    (path / "kedro" / "__init__.py").write_text("")
    (path / "kedro" / "__main__.py").write_text(script)
    return {"PYTHONPATH": str(path)}


def test_a_job_is_kedro_run_with_the_cells_configuration(tmp_path):
    script = "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['OMP_NUM_THREADS'])\n"
    environment = stub_kedro(tmp_path, script) | {"OMP_NUM_THREADS": "3"}
    given = Cell("a b/c", "d", 4, "cifar10", {"seed": 4, "model": {"widths": [1, 2]}})
    outcome = run_job(Job(given, "abc", tmp_path, environment))
    assert outcome.error == ""
    log = tmp_path / "logs" / "cells" / "a_b_c_d_s4_abc.log"
    config = log.with_suffix(".yml")
    assert log.read_text() == f"['run', '--config', '{config}'] {tmp_path} 3\n"
    options, env, params = config.read_text(), "env: cifar10", "widths:"
    assert env in options
    assert params in options


@pytest.mark.parametrize(("pipeline", "names"), [(None, []), ("ablation", ["ablation"])])
def test_kedro_takes_that_configuration(tmp_path, pipeline, names):
    """Lists, nested parameters, environment and pipeline reach ``kedro run`` as they are."""
    from unittest.mock import patch

    from click.testing import CliRunner
    from kedro.framework.cli.project import run as kedro_run

    environment = stub_kedro(tmp_path, "")
    given = Cell("a", "d", 4, "cifar10", {"seed": 4, "model": {"widths": [1, 2]}}, pipeline)
    each = Job(given, "abc", tmp_path, environment)
    assert run_job(each).error == ""
    with patch("kedro.framework.cli.project.KedroSession.create") as create:
        config = str(each.log.with_suffix(".yml"))
        CliRunner().invoke(kedro_run, ["--config", config], catch_exceptions=False)
    assert create.call_args.kwargs["env"] == "cifar10"
    assert create.call_args.kwargs["runtime_params"] == given.parameters
    session = create.return_value.__enter__.return_value
    assert list(session.run.call_args.kwargs["pipeline_names"] or []) == names


def test_a_failed_job_shows_the_end_of_its_log(tmp_path):
    script = "import sys\nfor line in range(50): print('line', line)\nsys.exit(7)\n"
    each = job(tmp_path, **stub_kedro(tmp_path, script))
    outcome = run_job(each)
    assert outcome.error.startswith(f"exit code 7; the end of {each.log}:\n")
    assert outcome.error.splitlines()[1:] == [f"    line {line}" for line in range(42, 50)]


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_a_run_of_the_same_millisecond_as_another_is_begun_again(tmp_path, failures, starts):
    """Kedro names both versions the same and refuses one; its log may be broken into lines."""
    script = (
        "import pathlib, sys\n"
        "count = pathlib.Path('count')\n"
        "begun = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (begun + 1))\n"
        f"if begun < {failures}:\n"
        "    print('Save path must not exist\\n   if versioning is enabled.')\n"
        "    sys.exit(1)\n"
    )
    outcome = run_job(job(tmp_path, **stub_kedro(tmp_path, script)))
    assert (outcome.error == "") == (failures < starts)
    assert (tmp_path / "count").read_text() == "x" * starts


def test_an_unwanted_job_is_terminated(tmp_path):
    each = job(tmp_path, **stub_kedro(tmp_path, "import time\ntime.sleep(600)\n"))
    outcome = run_job(each, lambda: each.log.exists())
    assert outcome.error.startswith("exit code -15")


def test_a_cell_that_is_running_is_not_started_beside_itself(tmp_path):
    script = "open('began', 'w').close()\nimport time\ntime.sleep(600)\n"
    each = job(tmp_path, **stub_kedro(tmp_path, script))
    stop = threading.Event()
    thread = threading.Thread(target=run_job, args=(each, stop.is_set))
    thread.start()
    try:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        assert run_job(each).error == "another process is running this cell; let it end"
    finally:
        stop.set()
        thread.join()


def test_threads_are_a_share_of_the_cores_unless_set(monkeypatch):
    for name in (cells.THREADS, *cells.STORE):
        monkeypatch.delenv(name, raising=False)
    assert cells.environment(4) == {"OMP_NUM_THREADS": "4"}
    assert cells.environment(0) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    expected = {"OMP_NUM_THREADS": "2", "MLFLOW_TRACKING_URI": "http://host:1"}
    assert cells.environment(8) == expected


# --- Ray --------------------------------------------------------------------------


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'counterdoor\[ray\]'"):
        list(run_on_ray([job(tmp_path)]))


@pytest.mark.parametrize("store", ["", "sqlite:///mlflow.db"])
@pytest.mark.parametrize("address", ["10.1.2.3:6379", "ray://head:10001", "head:6379"])
def test_a_cluster_elsewhere_needs_a_server(tmp_path, monkeypatch, address, store):
    monkeypatch.setitem(sys.modules, "ray", object())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(ValueError, match="start `mlflow server`"):
        list(run_on_ray([job(tmp_path)], address=address))


@pytest.mark.parametrize(
    "address", ["local", "auto", "localhost:6379", "127.0.0.1:6379", "ray://localhost:10001"]
)
def test_addresses_of_this_machine(address):
    assert cells._on_this_machine(address)


@pytest.mark.slow
def test_on_ray_a_failed_cell_does_not_stop_the_rest(tmp_path):
    """In a process of its own: Ray changes signals and warnings of the one it is in."""
    pytest.importorskip("ray")
    stub = "import sys\nprint('ran')\nsys.exit('seed: 1' in open(sys.argv[-1]).read())\n"
    environment = stub_kedro(tmp_path, stub)
    code = f"""
from pathlib import Path
from counterdoor.cells import Job, run_on_ray
from counterdoor.comparison import Cell
jobs = [Job(Cell("a", "d", seed, None, {{"seed": seed}}), "v", Path({str(tmp_path)!r}),
        {environment!r}) for seed in range(3)]
for outcome in run_on_ray(jobs, cpus=1):
    print("outcome", outcome.job.cell.seed, bool(outcome.error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    told = sorted(line for line in done.stdout.splitlines() if line.startswith("outcome"))
    assert told == ["outcome 0 False", "outcome 1 True", "outcome 2 False"]
    assert [path.read_text() for path in tmp_path.glob("logs/cells/*.log")] == ["ran\n"] * 3
