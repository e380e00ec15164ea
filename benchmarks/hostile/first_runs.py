"""First runs of a project at once, two or four of them: all succeed, and all are tracked.

    python benchmarks/hostile/first_runs.py [--least 20]

Every fifth attempt starts four at once. The runs are real, of the first stage.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kills import left_over, states
from overhead import project_copy

from hostile import main


def environment() -> dict[str, str]:
    """This one's, without the user's store."""
    kept = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    return kept | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}


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
    found = states(folder)
    if found != ["FINISHED"] * runs:
        return f"the database has {found} of {runs} runs"
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
