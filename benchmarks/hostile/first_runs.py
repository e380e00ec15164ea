"""First runs of a project at once, two or four of them: all succeed, and all are tracked.

    python benchmarks/hostile/first_runs.py [--least 20]

Every fifth attempt starts four at once. The runs are real, of the first stage.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from overhead import project_copy

from hostile import main


def environment() -> dict[str, str]:
    """This one's, without the user's store."""
    kept = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    return kept | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}


def tracked(folder: Path) -> list[str]:
    """The states of the runs in a project's database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return [state for (state,) in database.execute("SELECT status FROM runs")]


def left_over(folder: Path) -> list[str]:
    """Files of the making and of the runs that should not be there any more."""
    patterns = ("mlflow.db?*", ".mlflow.db*", ".runs/*.lock")
    return sorted(file.name for pattern in patterns for file in folder.glob(pattern))


def wrong_with(folder: Path, runs: int) -> str | None:
    """Start ``runs`` first runs at once in a fresh project; what was wrong, if anything."""
    command = [sys.executable, "-m", "kedro", "run", "--pipelines", "ingest"]
    started = [
        subprocess.Popen(
            [*command, "--params", f"seed={seed}"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in range(runs)
    ]
    outputs = [process.communicate()[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        if process.returncode:
            return f"exit code {process.returncode}: {output.strip().splitlines()[-1:]}"
    states = tracked(folder)
    if states != ["FINISHED"] * runs:
        return f"the database has {states} of {runs} runs"
    if files := left_over(folder):
        return f"left over: {files}"
    return None


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """Pairs, and fours as every fifth, in fresh projects."""
    for number in range(least):
        runs = 4 if number % 5 == 4 else 2
        folder = project_copy(work / f"project{number}")
        yield f"{runs} first runs at once, {number}", wrong_with(folder, runs)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(attempts, 20)
