"""CONTRIBUTING's example of a new attack, followed to the letter."""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def example():
    """The code blocks of the section: the new file, and the line in the union."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## Add an attack")[1].split("\n## ")[0]
    file, line = re.findall(r"   ```python\n(.*?)   ```", section, flags=re.DOTALL)
    (path,) = re.findall(r"Write `(src/counterdoor/attacks/\w+\.py)`", section)
    return path, "".join(row[3:] or "\n" for row in file.splitlines(keepends=True)), line[3:]


@pytest.fixture
def project(tmp_path, example):
    """A copy of the project with the attack of the example, and small trainings."""
    package = tmp_path / "src" / "counterdoor"
    copytree(ROOT / "src" / "counterdoor", package, ignore=ignore_patterns("__pycache__"))
    copytree(ROOT / "conf" / "base", tmp_path / "conf" / "base")
    copy(ROOT / "conf" / "logging.yml", tmp_path / "conf")
    copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "conf" / "local").mkdir()
    short = {"recipe": {"epochs": 1}}
    small = {"warmup": short, "train": short, "relabel": {"labeler": short}}
    (tmp_path / "conf" / "local" / "parameters.yml").write_text(yaml.safe_dump(small))

    path, file, line = example
    (tmp_path / path).write_text(file)
    union = package / "attacks" / "__init__.py"
    head, tail = union.read_text().split("\nAttack = Annotated[\n")
    members, rest = tail.split(",\n", 1)
    imported = "from counterdoor.attacks.corner import Corner"
    union.write_text(
        f"{head}{imported}\n\nAttack = Annotated[\n{members}\n{line.rstrip()},\n{rest}"
    )
    return tmp_path


def kedro(project, *arguments):
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    environment |= {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "kedro", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_attack_is_one_file_and_one_line_and_runs_through_the_dag(project):
    assert "One white pixel in the bottom right corner." in kedro(project, "components")
    kedro(project, "run", "--params", "attack.name=corner,attack.inset=1")

    def made(name, folder="02_intermediate"):
        variant = project / "data" / folder / "digits" / "corner-0.1-all_to_one"
        (file,) = variant.glob(f"**/{name}/*/{name}")
        return file

    (clean,) = project.glob("data/01_raw/**/clean_images.npy/*/clean_images.npy")
    images, before = np.load(made("images.npy")), np.load(clean)
    oracle = pd.read_parquet(made("oracle.parquet"))
    poisoned = oracle["is_poisoned"].to_numpy()
    assert poisoned.sum() == 10 * round(0.1 * 380)
    changed = np.argwhere(images != before)
    assert set(changed[:, 0]) <= set(np.flatnonzero(poisoned))
    assert (changed[:, 2:] == 26).all()
    assert (images[poisoned, 0, 26, 26] == 255).all()
    assert (np.load(made("triggered_test_images.npy"))[:, 0, 26, 26] == 255).all()
    assert "corner on digits, seed 0" in made("report.html", "08_reporting").read_text()
