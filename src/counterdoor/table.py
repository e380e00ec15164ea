"""What ``kedro table`` does: which cells are left, their progress, their records, and the page."""

import json
import math
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from counterdoor import comparison_page as pages
from counterdoor.cells import Job, Outcome, runs_of
from counterdoor.comparison import Grid, by_path, read_published
from counterdoor.results import Results

KEPT = ("attack_name", "defence_name", "label_mapping", "train.recipe.epochs", "model.")
"""Parameters that a record keeps, or their beginning: what the page tells, and no path."""
KEPT_TAGS = ("commit", "commit.dirty", "hardware")
"""Tags that a record keeps."""

Record = Mapping[str, Any]
Records = Mapping[tuple[str, int], Record]
"""Cells measured before or elsewhere, by :attr:`Job.record_key`."""


def read_records(path: Path | None) -> dict[tuple[str, int], Record]:
    """The cells of a file of records; none if there is no such file yet.

    Raises:
        ValueError: naming the line that is no record.
    """
    found: dict[tuple[str, int], Record] = {}
    if path is None or not path.exists():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            key = str(record["variant"]), int(record["seed"])
            found[key] = {name: dict(record[name]) for name in ("metrics", "parameters", "tags")}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number}, is no record of a cell ({type(error).__name__}: {error}): "
                "take the line out"
            ) from error
    return found


def append_records(
    path: Path, jobs: Sequence[Job], results: Results, known: Records
) -> list[pages.Measured]:
    """Add the cells that have run and are not known to a file of records, a JSON line each.

    Returns:
        The ones added.
    """
    new = [job for job in jobs if job.record_key not in known]
    rows = runs_of(new, results)
    added = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for job in new:
            if job.key in rows:
                cell = _measured(job, rows[job.key], results)
                parameters = {k: v for k, v in cell.parameters.items() if k.startswith(KEPT)}
                tags = {name: cell.tags[name] for name in KEPT_TAGS if name in cell.tags}
                told = {"attack": job.cell.attack, "defence": job.cell.defence}
                key = dict(zip(("variant", "seed"), job.record_key, strict=True))
                metrics = {k: v for k, v in cell.metrics.items() if "/" not in k}  # no curves
                figures = {"metrics": metrics, "parameters": parameters, "tags": tags}
                file.write(json.dumps({**told, **key, **figures}) + "\n")
                added.append(cell)
    return added


def waiting(project_path: Path, jobs: Sequence[Job], known: Records) -> list[Job]:
    """The jobs that have not run, and are not known from records."""
    done = runs_of(jobs, Results.read(project_path))
    return [job for job in jobs if job.key not in done and job.record_key not in known]


def follow(outcomes: Iterator[Outcome], *, done: int, total: int, console: Console) -> int:
    """Show outcomes as they come: a bar on a terminal, else a line each.

    Args:
        outcomes: of an engine; it is closed at the end, and when this is interrupted.
        done: cells that had run before.
        total: all cells.
        console: where to show it.

    Returns:
        How many have failed.
    """
    failed = 0
    columns = (
        TextColumn("cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    left = total - done
    bar = Progress(
        *columns, console=console, disable=not console.is_terminal, speed_estimate_period=1e9
    )
    with bar, _terminated_as_interrupted(), closing(outcomes):  # type: ignore[type-var]
        task = bar.add_task("", total=left)
        for count, outcome in enumerate(outcomes, start=1):
            failed += bool(outcome.error)
            bar.advance(task)
            if outcome.error or not console.is_terminal:
                became = f"FAILED: {outcome.error}" if outcome.error else "finished"
                line = f"[{done + count}/{total}] {outcome.job.cell}: {became}"
                line += "" if outcome.error else f" in {outcome.seconds:.0f} s"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    return failed


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside the block SIGTERM unwinds as Ctrl-C does, so that running cells are stopped."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def write_page(
    project_path: Path,
    grids: Mapping[Path, tuple[Grid, Sequence[Job]]],
    out: Path,
    *,
    params: Mapping[str, Any],
    known: Records,
    records: Path | None = None,
) -> bool:
    """Write the page of grids from MLflow, and its pictures beside it; not if no cell has run.

    Args:
        project_path: the project's root.
        grids: with their jobs, by their file.
        out: the page.
        params: further run parameters that the grids were read with.
        known: cells of records, which count where there is no run.
        records: their file, which the page names.

    Returns:
        Whether it is written.

    Raises:
        ValueError: if a file of published figures is not one.
    """
    results = Results.read(project_path)
    sections = [
        pages.Section(grid, measured(jobs, results, known), _published(path, grid))
        for path, (grid, jobs) in grids.items()
    ]
    if not any(section.measured for section in sections):
        return False
    folder = out.with_suffix("")
    pictures: dict[tuple[int, int], dict[str, str]] = {}
    for number, section in enumerate(sections):
        for position, (_, cells) in enumerate(section.scales):
            stem = f"{list(grids)[number].stem}{position + 1 if position else ''}"
            folder.mkdir(parents=True, exist_ok=True)
            drawn = pictures[number, position] = {}
            for shown, draw in {"overview": pages.overview, "price": pages.price}.items():
                name = f"{stem}_{shown}.png"
                figure = draw(section.grid, cells)
                figure.savefig(folder / name, dpi=110, metadata={"Software": None})
                drawn[shown] = f"{folder.name}/{name}"
    command = _command(project_path, grids, out, params, records)
    text = pages.page(sections, command=command, pictures=pictures)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return True


def measured(jobs: Sequence[Job], results: Results, known: Records) -> list[pages.Measured]:
    """The cells that have run, or are known from records."""
    rows = runs_of(jobs, results)
    found = []
    for job in jobs:
        if job.key in rows:
            found.append(_measured(job, rows[job.key], results))
        elif job.record_key in known:
            found.append(pages.Measured(job.cell, **known[job.record_key]))
    return found


def _measured(job: Job, row: int, results: Results) -> pages.Measured:
    metrics = {
        str(name): float(value)
        for name, value in results.metrics.iloc[row].items()
        if not math.isnan(value)
    }
    parameters = _texts(results.parameters.iloc[row].items())
    return pages.Measured(job.cell, metrics, parameters, _texts(results.tags.iloc[row].items()))


def _texts(items: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    return {str(name): value for name, value in items if isinstance(value, str)}


def _published(path: Path, grid: Grid) -> Any:
    return read_published(path.parent / grid.published) if grid.published else ()


def _command(
    project_path: Path,
    grids: Iterable[Path],
    out: Path,
    params: Mapping[str, Any],
    records: Path | None,
) -> str:
    def within(path: Path) -> str:
        inside = path.resolve().is_relative_to(project_path.resolve())
        return os.path.relpath(path, project_path) if inside else path.name

    words = ["kedro", "table", *map(within, grids)]
    if params:
        told = ",".join(f"{name}={pages.public(value)}" for name, value in by_path(params).items())
        words += ["--params", told]
    if records is not None:
        words += ["--records", within(records)]
    return " ".join([*words, "--out", within(out)])
