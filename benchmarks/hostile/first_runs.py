"""First runs of a project at once, two or four of them: all succeed, and all are tracked.

Every fifth attempt starts four at once. The runs are real, of the first stage.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import warm
from kills import left_over, states


def wrong_with(folder: Path, runs: int) -> str | None:
    """Start ``runs`` first runs at once in a fresh project; what was wrong."""
    *command, images = warm.INGEST
    outputs = [folder.parent / f"output{seed}.txt" for seed in range(runs)]
    started = [
        warm.start(folder, *command, f"{images},seed={seed}", output=output)
        for seed, output in enumerate(outputs)
    ]
    for code, told in [warm.finished(*each) for each in zip(started, outputs, strict=True)]:
        if code:
            return f"exit code {code}: {told.strip().splitlines()[-1:]}"
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
        folder = warm.project_of_few_images(work / f"project{number}")
        yield f"{runs} first runs at once, {number}", wrong_with(folder, runs)
        shutil.rmtree(folder)
