"""Damage every kind of artifact of a finished run, and start a run that needs it.

Each damage is done to one artifact of a small digits run and undone after. The run that needs it
has to be refused before its first node, in one line that names the file. A few are started as a
user does it, as processes of their own.
"""

import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog, DatasetError
from kedro.io.core import is_parameter
from overhead import project_copy
from PIL import Image

from counterdoor.hooks import PreflightHooks

SMALL = {
    "warmup": {"recipe": {"epochs": 1}},
    "train": {"recipe": {"epochs": 1}},
    "relabel": {"labeler": {"recipe": {"epochs": 1}}},
}
NEWER = "2100-01-01T00.00.00.000Z"


@dataclass(frozen=True)
class Target:
    """An artifact on disk, the node that reads it, and a pipeline that the node is in."""

    name: str
    file: Path
    pipeline: str
    node: str

    @property
    def sidecar(self) -> Path:
        """The file with its checksum."""
        return self.file.with_name(f"{self.file.name}.sha256")


Damage = Callable[[Target, list[Target], random.Random], Path | None]
"""Does the damage; gives back the file that the refusal has to name, or None if there is none."""


def truncated(target: Target, others: list[Target], draw: random.Random) -> Path:
    """Cut at a random place."""
    os.truncate(target.file, draw.randrange(1, target.file.stat().st_size))
    return target.file


def bit_flipped(target: Target, others: list[Target], draw: random.Random) -> Path:
    """One bit at a random place."""
    content = bytearray(target.file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    target.file.write_bytes(content)
    return target.file


def emptied(target: Target, others: list[Target], draw: random.Random) -> Path:
    """Nothing left, as after a power cut."""
    target.file.write_bytes(b"")
    return target.file


def zeros(target: Target, others: list[Target], draw: random.Random) -> Path:
    """As long as before, and all of it zero."""
    target.file.write_bytes(bytes(target.file.stat().st_size))
    return target.file


def longer(target: Target, others: list[Target], draw: random.Random) -> Path:
    """A few bytes behind the end."""
    with target.file.open("ab") as file:
        file.write(draw.randbytes(9))
    return target.file


def folder(target: Target, others: list[Target], draw: random.Random) -> Path:
    """An empty folder in its place."""
    target.file.unlink()
    target.file.mkdir()
    return target.file


def pipe(target: Target, others: list[Target], draw: random.Random) -> Path:
    """A pipe in its place, which nobody writes to."""
    target.file.unlink()
    os.mkfifo(target.file)
    return target.file


def link(target: Target, others: list[Target], draw: random.Random) -> Path:
    """A link to another file in its place."""
    target.file.unlink()
    target.file.symlink_to(draw.choice(others).file)
    return target.file


def lost(target: Target, others: list[Target], draw: random.Random) -> Path:
    """The file is gone, its checksum is left."""
    target.file.unlink()
    return target.file


def _alike(target: Target, others: list[Target], draw: random.Random) -> Target | None:
    content = target.file.read_bytes()
    alike = [each for each in others if each.file.suffix == target.file.suffix]
    different = [each for each in alike if each.file.read_bytes() != content]
    return draw.choice(different) if different else None


def another(target: Target, others: list[Target], draw: random.Random) -> Path | None:
    """The content of another artifact of the same type."""
    chosen = _alike(target, others, draw)
    if chosen is None:
        return None
    shutil.copyfile(chosen.file, target.file)
    return target.file


def another_with_checksum(target: Target, others: list[Target], draw: random.Random) -> Path | None:
    """The same, and its checksum came along."""
    chosen = _alike(target, others, draw)
    if chosen is None:
        return None
    shutil.copyfile(chosen.file, target.file)
    text = chosen.sidecar.read_text().replace(f"  {chosen.file.name}", f"  {target.file.name}")
    target.sidecar.write_text(text)
    return target.file


def no_checksum(target: Target, others: list[Target], draw: random.Random) -> Path:
    """The checksum is gone."""
    target.sidecar.unlink()
    return target.file


def edited_checksum(target: Target, others: list[Target], draw: random.Random) -> Path:
    """One character of the checksum is another."""
    text = target.sidecar.read_text()
    place = draw.randrange(len(text))
    other = draw.choice([each for each in "0123456789abcdef" if each != text[place]])
    target.sidecar.write_text(text[:place] + other + text[place + 1 :])
    return target.file


def empty_checksum(target: Target, others: list[Target], draw: random.Random) -> Path:
    """The checksum is an empty file."""
    target.sidecar.write_bytes(b"")
    return target.file


def renamed_version(target: Target, others: list[Target], draw: random.Random) -> Path:
    """The version under the name of a newer one."""
    newer = target.file.parent.with_name(NEWER)
    shutil.copytree(target.file.parent, newer)
    return newer / target.file.name


DAMAGES: list[Damage] = [
    *(truncated, bit_flipped, emptied, zeros, longer, folder, pipe, link, lost),
    *(another, another_with_checksum, no_checksum, edited_checksum, empty_checksum),
    renamed_version,
]


def kedro(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the project's, as a user gives it."""
    environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    command = [sys.executable, "-m", "kedro", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=600
    )


def finished(project: Path) -> None:
    """Run the experiment and the export, as small as they get."""
    for pipelines in ("__default__", "export"):
        done = kedro(project, "run", "--pipelines", pipelines, "--params", params(SMALL))
        if done.returncode:
            raise SystemExit(f"the undamaged run failed: {done.stderr[-2000:]}")


def params(values: Any, prefix: str = "") -> str:
    """Nested parameters as ``--params`` takes them."""
    if not isinstance(values, dict):
        return f"{prefix[:-1]}={values}"
    return ",".join(params(value, f"{prefix}{key}.") for key, value in values.items())


def targets(catalog: DataCatalog) -> list[Target]:
    """Every artifact on disk that a node of the experiment or the export reads."""
    from kedro.framework.project import pipelines

    found: dict[str, Target] = {}
    for pipeline in ("__default__", "export"):
        for node in pipelines[pipeline].nodes:
            for name in node.inputs:
                if name.startswith("param") or name in found or not catalog.exists(name):
                    continue
                file = Path(catalog[name]._get_load_path())
                found[name] = Target(name, file, pipeline, node.name)
    return [found[name] for name in sorted(found)]


def refusal(catalog: DataCatalog, target: Target) -> str | None:
    """What the check before a run of the node that needs it says; None if it says nothing."""
    from kedro.framework.project import pipelines

    needing = pipelines[target.pipeline].only_nodes(target.node)
    for name in needing.inputs():
        if not is_parameter(name):
            catalog.release(name)  # so that versions are looked for anew
    try:
        PreflightHooks().before_pipeline_run({}, needing, catalog)
    except DatasetError as error:
        return str(error)
    return None


def judged(said: str | None, named: Path) -> str | None:
    """What is wrong with a refusal, or None."""
    if said is None:
        return "not found: the first node would have run"
    if "\n" in said:
        return f"the refusal has {len(said.splitlines())} lines: {said!r}"
    if str(named) not in said:
        return f"the refusal does not name {named}: {said}"
    return None if "run again the pipeline that makes it" in said else f"no remedy: {said}"


def trial(
    catalog: DataCatalog, target: Target, others: list[Target], damage: Damage, seed: int
) -> tuple[bool, str | None]:
    """Damage, try, restore: whether the damage can be done to it, and what was wrong."""
    versions = target.file.parents[1]
    kept = versions.with_name(f"{versions.name}.kept")
    shutil.copytree(versions, kept)
    try:
        named = damage(target, others, random.Random(seed))
        if named is None:
            return False, None
        return True, judged(refusal(catalog, target), named)
    except Exception as error:
        return True, f"{type(error).__name__}: {error}".replace("\n", " ")
    finally:
        shutil.rmtree(versions)
        kept.rename(versions)


def as_a_user(project: Path, target: Target, damage: Damage, command: list[str]) -> str | None:
    """The same with a process of its own."""
    kept = project / "kept"
    versions = target.file.parents[1]
    shutil.copytree(versions, kept)
    before = set((project / "data").rglob("*"))
    try:
        named = damage(target, [target], random.Random(0))
        done = kedro(project, *command)
        said = " ".join((done.stdout + done.stderr).split())
        if done.returncode == 0:
            return "exit code 0"
        if "Traceback" in said or "Running node" in said:
            return f"a traceback, or a node ran: {said[-500:]}"
        if "".join(str(named).split()) not in "".join(said.split()):
            return f"it does not name {named}: {said[-500:]}"
        new = {
            each for each in set((project / "data").rglob("*")) - before if NEWER not in each.parts
        }
        return f"it has written {sorted(new)[0]}" if new else None
    finally:
        shutil.rmtree(versions)
        kept.rename(versions)


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """Each damage of each artifact, then further bit flips up to ``least``, then a few commands."""
    project = project_copy(work / "project")
    finished(project)
    bootstrap_project(project)
    with KedroSession.create(project, runtime_params=SMALL) as session:
        catalog = session.load_context().catalog
    found = targets(catalog)
    for target in {(each.pipeline, each.node): each for each in found}.values():
        if said := refusal(catalog, target):
            raise SystemExit(f"undamaged, and refused: {said}")
    tried = 0
    rounds: list[list[Damage]] = [DAMAGES]
    for number, damages in enumerate(rounds):
        for seed, (damage, target) in enumerate(itertools.product(damages, found)):
            others = [each for each in found if each is not target]
            done, wrong = trial(catalog, target, others, damage, 10_000 * number + seed)
            if done:
                tried += 1
                yield f"{damage.__name__} {target.name}", wrong
        if tried < least:
            rounds.append([bit_flipped, truncated])
    by_name = {each.name: each for each in found}
    small = ["--params", params(SMALL)]
    (file,) = (project / "data").glob("**/hardened.safetensors/*/hardened.safetensors")
    by_name["hardened"] = Target("hardened", file, "export", "")
    picture = project / "picture.png"
    Image.new("L", (28, 28)).save(picture)
    for name, damage, command in (
        ("defended_net", bit_flipped, ["run", "--pipelines", "evaluate", *small]),
        ("triggered_test_images", folder, ["run", "--pipelines", "evaluate", *small]),
        ("images", pipe, ["run", "--pipelines", "warmup", *small]),
        ("relabeled_ledger", renamed_version, ["run", "--from-nodes", "train_defended", *small]),
        ("ledger", lost, ["run", "--pipelines", "detect", *small]),
        ("hardened", bit_flipped, ["predict", str(picture)]),
        ("hardened", no_checksum, ["predict", str(picture)]),
    ):
        wrong = as_a_user(project, by_name[name], damage, command)
        yield f"kedro {' '.join(command[:3])}: {damage.__name__} {name}", wrong
