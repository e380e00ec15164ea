"""Kill first runs of fresh projects at random moments, start them again, compare the ends.

Every trial is a copy of the project of its own, without data and database: `kedro run` is killed
with SIGKILL at a moment drawn from the time that an undisturbed run takes, or, every third, from
the time that its database is being made, and started again. The nets and metrics must be those of
the undisturbed run, byte for byte, every artifact must load, and the database must hold the killed
run as KILLED and no run that goes on. The trainings are short.

    python benchmarks/kills.py [--kills 20] [--jobs 2] [--seed 0] [--json]

``ratio`` is the share of kills after which all was well; anything below 1 is a defect.
"""

import argparse
import io
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import warm
from overhead import project_copy
from PIL import Image

NAMES = ("defended_net.safetensors", "undefended_net.safetensors", "metrics.json")
SMALL = {
    "globals": {"source_name": "parquet"},
    "parameters": {
        "ingest": {"source": {"path": "digits"}, "trusted_share": 0.1},
        "warmup": {"recipe": {"epochs": 2}},
        "relabel": {"labeler": {"recipe": {"epochs": 2}}},
        "train": {"recipe": {"epochs": 3}},
    },
}
"""The configuration of a project: few digits, short trainings."""
MAKING = ".mlflow.db.making-*"
"""The database while it is being made."""


def start(folder: Path) -> BaseProcess:
    """A short ``kedro run`` in a project."""
    output = folder.parent / f"{folder.name}.txt"
    return warm.start(folder, "run", output=output)


def few_digits() -> bytes:
    """A Parquet file of 60 real digits a class."""
    from counterdoor.sources import Digits

    data = Digits()()
    chosen = [row for each in range(10) for row in (data.labels == each).nonzero()[0][:60]]
    cells = []
    for image in data.images_nchw[chosen]:
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    return pd.DataFrame({"img": cells, "label": data.labels[chosen]}).to_parquet()


def project(folder: Path, digits: bytes) -> Path:
    """A fresh project that runs fast."""
    project_copy(folder)
    (folder / "digits").mkdir()
    (folder / "digits" / "train.parquet").write_bytes(digits)
    (folder / "conf" / "local").mkdir(exist_ok=True)
    for name, settings in SMALL.items():
        (folder / "conf" / "local" / f"{name}.yml").write_text(json.dumps(settings))
    return folder


def states(folder: Path) -> list[str]:
    """Those of the tracked runs, oldest first; none without a database."""
    if not (folder / "mlflow.db").exists():
        return []
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        found = database.execute("SELECT status FROM runs ORDER BY start_time").fetchall()
    return [state for (state,) in found]


def left_over(folder: Path) -> list[str]:
    """Files of the making of the database, and of runs that go on."""
    patterns = (".mlflow.db*", "mlflow.db-*", ".runs/*.lock")
    return sorted(file.name for pattern in patterns for file in folder.glob(pattern))


def ends(folder: Path) -> dict[str, bytes]:
    """The newest version of what a run ends with."""
    found = {}
    for name in NAMES:
        files = sorted((folder / "data").rglob(f"{name}/*/{name}"), key=lambda f: f.parent.name)
        found[name] = files[-1].read_bytes() if files else b""
    return found


def broken_artifacts(folder: Path) -> list[str]:
    """Names of artifacts that do not load."""
    output = folder.parent / f"{folder.name}.broken.txt"
    process = warm.CONTEXT.Process(target=_load_all, args=(folder, output))
    process.start()
    process.join()
    return output.read_text().split() if process.exitcode == 0 else ["no catalog"]


def _load_all(folder: Path, output: Path) -> None:
    from kedro.framework.project import pipelines
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    os.chdir(folder)
    bootstrap_project(folder)
    catalog = KedroSession.create(folder).load_context().catalog
    made = pipelines["__default__"].all_outputs()
    broken = []
    for name in sorted(made & set(catalog.filter())):
        try:
            catalog.load(name)
        except Exception:  # whatever is wrong with it
            broken.append(name)
    output.write_text("\n".join(broken))


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody kills.

    Attributes:
        ends: what it ends with.
        seconds: how long it takes.
        making: when the database is begun, and for how long it is being made.
    """

    ends: dict[str, bytes]
    seconds: float
    making: tuple[float, float]

    @classmethod
    def run(cls, folder: Path) -> "Undisturbed":
        """Run it, after the first process has imported everything."""
        warm.finished(
            warm.start(folder, "--version", output=folder / "version"), folder / "version"
        )
        began = time.monotonic()
        process = start(folder)
        seen = []
        while process.is_alive():
            if making_goes_on(folder):
                seen.append(time.monotonic() - began)
        if process.exitcode or not seen:
            raise SystemExit("the undisturbed run failed")
        return cls(ends(folder), time.monotonic() - began, (seen[0], seen[-1] - seen[0]))


def making_goes_on(folder: Path) -> bool:
    """Whether a database is being made right now; looks a hundred times a second."""
    time.sleep(0.01)
    return any(folder.glob(MAKING))


@dataclass(frozen=True)
class Kill:
    """When to kill: so long after the start, or after the making of the database has begun."""

    seconds: float
    making: bool

    @classmethod
    def draw(cls, number: int, undisturbed: Undisturbed, draw: random.Random) -> "Kill":
        """Every third while the database is being made."""
        making = number % 3 == 0
        longest = undisturbed.making[1] if making else undisturbed.seconds
        return cls(round(draw.uniform(0.0, longest), 2), making)

    def __str__(self) -> str:
        since = "the database was begun" if self.making else "the start"
        return f"killed {self.seconds} s after {since}"

    def done(self, process: BaseProcess, folder: Path) -> None:
        """Wait for the moment, and kill."""
        while self.making and process.is_alive() and not making_goes_on(folder):
            pass
        time.sleep(self.seconds)
        process.kill()
        process.join()


def wrong_after(kill: Kill, folder: Path, expected: dict[str, bytes]) -> str | None:
    """Kill the first run of a project and start it again; what was wrong, if anything."""
    kill.done(start(folder), folder)
    before = states(folder)
    resumed = start(folder)
    resumed.join()
    if code := resumed.exitcode:
        return f"the run could not be resumed: exit code {code}"
    if other := [name for name, ended in ends(folder).items() if ended != expected[name]]:
        return f"ends with another {', '.join(other)}"
    known = ["KILLED" if state == "RUNNING" else state for state in before]
    if states(folder) != [*known, "FINISHED"]:
        return f"runs before: {before}, after: {states(folder)}"
    if files := left_over(folder):
        return f"left over: {files}"
    if broken := broken_artifacts(folder):
        return f"broken artifacts: {broken}"
    return None


def attempts(
    work: Path, least: int, *, jobs: int = 1, seed: int = 0
) -> Iterator[tuple[str, str | None]]:
    """Kills one after the other, each with what was wrong.

    Args:
        work: an empty folder.
        least: how many.
        jobs: trials at a time, a thread each.
        seed: of the moments.
    """
    digits = few_digits()
    undisturbed = Undisturbed.run(project(work / "whole", digits))
    draw = random.Random(seed)
    kills = [Kill.draw(number, undisturbed, draw) for number in range(least)]

    def trial(number: int) -> tuple[str, str | None]:
        folder = project(work / f"cut{number}", digits)
        wrong = wrong_after(kills[number], folder, undisturbed.ends)
        shutil.rmtree(folder)
        return f"{kills[number]}", wrong

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(trial, range(least))


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, a thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    from counterdoor.tracking import commit_tags, hardware

    outcomes = {}
    with tempfile.TemporaryDirectory() as name:
        tried = attempts(Path(name), options.kills, jobs=options.jobs, seed=options.seed)
        for number, (moment, wrong) in enumerate(tried):
            outcomes[f"{number}: {moment}"] = wrong
            print(f"{number}: {moment}: {wrong or 'good'}", file=sys.stderr, flush=True)
    bad = {moment: wrong for moment, wrong in outcomes.items() if wrong is not None}
    result = {
        "name": "kills",
        "ratio": 1 - len(bad) / len(outcomes),
        "values": {"kills": list(outcomes), "wrong": bad},
        "commit": commit_tags(Path(__file__).resolve().parents[1]).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{len(outcomes)} tried, {len(outcomes) - len(bad)} good")


if __name__ == "__main__":
    main()
