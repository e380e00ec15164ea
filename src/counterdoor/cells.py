"""Runs the cells of a comparison, each in a process of its own, and finds those that have run.

A cell has run when MLflow has a finished, evaluated run with the same value of *every* parameter:
those that the grid sets and those that the configuration sets. It is found by the tag ``variant``,
which every run has, and by its seed. So a changed configuration makes its cells again, runs
started by hand count, and a table that was killed goes on where it was. The commit is not part of
it, since most commits change no result; the page names the commits that its figures are from.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any
from urllib.parse import urlsplit

import pandas as pd
import yaml

from counterdoor.comparison import Cell
from counterdoor.config import ConfigError
from counterdoor.defending import spelt_out
from counterdoor.hooks import SHARED_RESULTS
from counterdoor.results import Results
from counterdoor.tracking import variant_of

CONTENT = "data.content_hash"
"""The tag of a run that says which images it has read."""
LOGS = Path("logs") / "cells"
TAIL = 8
"""Lines of a failed cell's log that are shown."""

ATTEMPTS = 3
SAME_VERSION = "must not exist if versioning is enabled"
"""Kedro's refusal of a run that began in the same millisecond as another: it is begun again."""
POLL_SECONDS = 0.2
RESOLVING = "ConfigError raised while resolving interpolation: "
THREADS = "OMP_NUM_THREADS"
STORE = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True)
class Job:
    """A cell, ready to run.

    Attributes:
        cell: which.
        variant: digest of all its parameters but the seed.
        project_path: the project's root, on every machine that may run it.
        environment: environment variables of its process, besides those of its machine.
        portable: digest as ``variant`` but for the places of the images; empty if it has none.
        reads: digest of how the images are read; jobs with the same seed read the same ones.
    """

    cell: Cell
    variant: str
    project_path: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    portable: str = ""
    reads: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """What the run of this cell is known by."""
        return self.variant, self.cell.seed

    @property
    def record_key(self) -> tuple[str, int]:
        """What its record is known by, on whatever machine."""
        return self.portable or self.variant, self.cell.seed

    @property
    def log(self) -> Path:
        """Where its output goes, on the machine that runs it."""
        words = f"{self.cell.attack} {self.cell.defence} s{self.cell.seed} {self.variant}"
        safe = "".join(char if char.isalnum() or char in ".-" else "_" for char in words)
        return self.project_path / LOGS / f"{safe}.log"


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: which.
        seconds: how long it took.
        error: why it failed, the last lines of its log among it; empty if it did not.
    """

    job: Job
    seconds: float
    error: str = ""


Run = Callable[[Job, Callable[[], bool]], Outcome]
"""Runs a job to its end, or until the second argument says that it is not wanted any more."""


def jobs_of(
    project_path: Path, cells: Iterable[Cell], environment: Mapping[str, str] | None = None
) -> list[Job]:
    """The jobs of cells, after their parameters have been resolved by the project's configuration.

    Raises:
        ConfigError: naming the cell and its parameter that there is not, or the two cells
            that are the same run.
    """
    variants: dict[tuple[str, str], tuple[str, str, str]] = {}
    jobs: dict[tuple[str, int], Job] = {}
    for cell in cells:
        pair = cell.attack, cell.defence
        if pair not in variants:
            try:
                resolved = _resolved(project_path, cell)
                variants[pair] = (
                    variant_of(resolved),
                    variant_of(resolved, places=False),
                    variant_of({"ingest": resolved["ingest"]}),
                )
            except ValueError as error:
                raise ConfigError(f"{cell}: {error}") from error
        variant, portable, reads = variants[pair]
        job = Job(cell, variant, project_path, environment or {}, portable, reads)
        if job.key in jobs:
            raise ConfigError(
                f"'{cell}' and '{jobs[job.key].cell}' have the same parameters: leave one of them"
            )
        jobs[job.key] = job
    return list(jobs.values())


def _resolved(project_path: Path, cell: Cell) -> Mapping[str, Any]:
    from omegaconf.errors import OmegaConfBaseException

    from counterdoor.params import check
    from counterdoor.settings import CONFIG_LOADER_ARGS, CONFIG_LOADER_CLASS

    loader = CONFIG_LOADER_CLASS(
        str(project_path / "conf"),
        env=cell.env,
        runtime_params=spelt_out(cell.parameters, []),
        **CONFIG_LOADER_ARGS,
    )
    try:
        parameters: Mapping[str, Any] = loader["parameters"]
        check(parameters)
    except OmegaConfBaseException as error:
        told = str(error).partition("\n")[0]
        raise ConfigError(told.removeprefix(RESOLVING)) from error
    return parameters


def runs_of(jobs: Iterable[Job], results: Results) -> dict[tuple[str, int], int]:
    """The row of the newest run of each job that has run, by the job's key.

    Of jobs that read the same images, the newest run says which these are now: one of other
    images, which have been at that place before, does not count.
    """
    rows: dict[tuple[str, int], int] = {}
    for row, (variant, seed) in enumerate(
        zip(results.variants, results.table["seed"], strict=True)
    ):
        rows.setdefault((variant, int(seed)), row)
    told = results.tags.get(CONTENT, pd.Series(index=results.tags.index, dtype=object))
    found = sorted(
        ((rows[job.key], job) for job in jobs if job.key in rows), key=lambda each: each[0]
    )
    today: dict[tuple[str, int], Any] = {}
    for row, job in found:
        if isinstance(told[row], str):
            today.setdefault((job.reads, job.cell.seed), told[row])
    return {
        job.key: row
        for row, job in found
        if not isinstance(told[row], str) or told[row] == today[job.reads, job.cell.seed]
    }


def run_job(job: Job, unwanted: Callable[[], bool] = lambda: False) -> Outcome:
    """``kedro run`` of a cell in a process of its own, its output in :attr:`Job.log`.

    The process holds a lock, so that a cell that has outlived the table it was started by is
    not started a second time beside itself.
    """
    started = time.monotonic()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    config = job.log.with_suffix(".yml")
    cell = job.cell
    options = {"env": cell.env, "pipelines": cell.pipeline, "params": dict(cell.parameters)}
    chosen = {name: value for name, value in options.items() if value is not None}
    with job.log.with_suffix(".lock").open("w") as lock:
        if not _locked(lock):
            return Outcome(job, 0.0, "another process is running this cell; let it end")
        config.write_text(yaml.safe_dump({"run": chosen}), encoding="utf-8")
        for _ in range(ATTEMPTS):
            with job.log.open("w", encoding="utf-8") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "kedro", "run", "--config", str(config)],
                    cwd=job.project_path,
                    env={**os.environ, **job.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches it once, from here
                    pass_fds=[lock.fileno()],
                )
                code = _wait(process, unwanted)
            told = job.log.read_text(encoding="utf-8", errors="replace")
            if code == 0 or SAME_VERSION not in " ".join(told.split()):
                break
    seconds = time.monotonic() - started
    if code == 0:
        return Outcome(job, seconds)
    lines = told.strip().splitlines()[-TAIL:]
    tail = "\n".join(f"    {line}" for line in lines)
    return Outcome(job, seconds, f"exit code {code}; the end of {job.log}:\n{tail}")


def _wait(process: "subprocess.Popen[bytes]", unwanted: Callable[[], bool]) -> int:
    try:
        while not unwanted():
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_SECONDS)
        process.terminate()
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _locked(file: IO[str]) -> bool:
    """Whether the lock is ours now; where the system has no such locks it always is."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        return True
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def environment(cores: int) -> dict[str, str]:
    """Variables of every cell's process: where it tracks, and a thread a core of its share."""
    set_here = {name: os.environ[name] for name in (*STORE, THREADS) if os.environ.get(name)}
    return {THREADS: str(max(1, cores))} | set_here


def run_here(jobs: Sequence[Job], *, at_once: int = 1, run: Run = run_job) -> Iterator[Outcome]:
    """Run jobs on this machine, so many at a time; outcomes in the order in which they end.

    A training that several of them need is made once (:data:`counterdoor.hooks.SHARED_RESULTS`).
    When the iterator is closed, or this process interrupted, running jobs are stopped.
    """
    if not jobs:
        return
    stop = threading.Event()
    trainings = jobs[0].project_path / "data" / "checkpoints"
    trainings.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix="table-", dir=trainings) as folder,
        ThreadPoolExecutor(at_once) as pool,
    ):
        more = {SHARED_RESULTS: folder}
        sharing = [replace(job, environment={**job.environment, **more}) for job in jobs]
        waiting = {pool.submit(run, job, stop.is_set): job for job in sharing}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield _outcome(waiting.pop(future), future)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _outcome(job: Job, future: "Future[Outcome]") -> Outcome:
    try:
        return future.result()
    except Exception as error:  # one cell that cannot be started does not stop the rest
        return Outcome(job, 0.0, f"{type(error).__name__}: {error}")


def run_on_ray(
    jobs: Sequence[Job],
    *,
    address: str = "local",
    cpus: float = 1,
    gpus: float = 0,
    run: Run = run_job,
) -> Iterator[Outcome]:
    """Run jobs on a Ray cluster, as many at a time as it has room for.

    Every machine needs the project at the same path, installed, and its own copy of the data or
    a shared one.

    Args:
        jobs: what to run.
        address: as ``ray.init`` takes it; ``local`` starts a cluster on this machine.
        cpus: cores that a cell claims.
        gpus: GPUs that a cell claims.
        run: runs a job.

    Raises:
        ValueError: if Ray is not installed, or the cluster has other machines and the
            MLflow store is not on a server.
    """
    if not jobs:
        return
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "Ray is not installed: pip install 'counterdoor[ray]', or leave --engine out"
        ) from error
    if not _on_this_machine(address):
        _demand_server(address)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, **own)
    waiting: dict[Any, Job] = {}
    try:
        if sum(bool(node["Alive"]) for node in ray.nodes()) > 1:
            _demand_server(address)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run)
        waiting |= {remote.remote(job, _never): job for job in jobs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as error:
                yield Outcome(job, 0.0, f"{type(error).__name__}: {error}")
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=30)
        ray.shutdown()


def _never() -> bool:
    return False


def _on_this_machine(address: str) -> bool:
    """Whether a cluster's address is of this machine, or is found out by connecting (auto)."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    return host in ("local", "auto", "localhost", "127.0.0.1", "::1")


def _demand_server(address: str) -> None:
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    if urlsplit(store).scheme not in ("http", "https"):
        raise ValueError(
            f"the cells of the cluster {address} cannot track their runs in "
            f"{store or 'mlflow.db, a file of this machine'}: start `mlflow server` and set "
            "MLFLOW_TRACKING_URI=http://<host>:<port>"
        )
