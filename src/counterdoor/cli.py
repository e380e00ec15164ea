"""Commands of the project: ``kedro run`` with readable errors, and the project's own."""

import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import KedroCliError
from pydantic import ValidationError

from counterdoor import names
from counterdoor.defending import OPTIONS, answering, project_path
from counterdoor.given import run_parameters
from counterdoor.refusal import one_line, shown

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from counterdoor.io import HardenedDataset

WIDE = ("started", "undefended_ba", "ca_drop", "ca_drop_worst_class")
"""Columns that the printed table leaves out unless asked for."""

FORMATS = click.Choice(["table", "json", "csv", "markdown"])


class ReadableError(KedroCliError):
    """An error that says what was wrong and what to do, without a traceback."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message to standard error; with ``--verbose`` the traceback as well."""
        if KedroCliError.VERBOSE_ERROR and self.__cause__ is not None:
            traceback.print_exception(self.__cause__, file=file or sys.stderr)
        click.secho(f"Error: {self.message}", file=file, err=True, fg="red")


def readable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command: errors of the user's making are told in words, others are raised."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from kedro.config import MissingConfigException
        from kedro.io import DatasetError
        from kedro.validation import ParameterValidationError
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        expected = (
            MissingConfigException,
            *(ValueError, DatasetError, ParameterValidationError),
            *(OmegaConfBaseException, YAMLError),
        )
        try:
            return command(*args, **kwargs)
        except expected as error:
            raise ReadableError(message(error)) from error

    return wrapper


def message(error: Exception) -> str:
    """An error's text without the configuration library's trailer, the validator's on one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{error.title}: {place} is {shown(first['input'])}; {first['msg']}"
    lines = [
        line
        for line in str(error).splitlines()
        if not line.lstrip().startswith(("full_key:", "object_type="))
    ]
    text = "\n".join(lines).removeprefix("ConfigError raised while resolving interpolation: ")
    key = getattr(error, "full_key", None)  # of the configuration library's own errors
    return f"{key}: {text}" if key and text == lines[0] else text


@click.group(name="counterdoor")
def cli() -> None:
    """Commands of counterdoor."""


def _typed_params(_: click.Context, __: click.Parameter, value: Any) -> dict[str, Any]:
    """Of an option ``--params``; a configuration file gives a mapping."""
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return run_parameters(value)
    except ValueError as error:
        raise ReadableError(str(error)) from error


run = kedro_run
assert run.callback is not None
run.callback = readable(answering(run.callback))
for option in run.params:
    if option.name == "params":
        option.callback = _typed_params
run.params += OPTIONS
cli.add_command(run)


@cli.command()
@click.option("--format", "form", type=FORMATS, default="table", help="How to print.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest so many runs.")
@click.option("--filter", "where", default="", help="MLflow filter, e.g. params.seed = '0'.")
@click.option("--last", is_flag=True, help="The newest run alone, undefended beside defended.")
@click.option("--summary", is_flag=True, help="Mean and standard deviation over seeds.")
@click.option("--columns", default="", help="Only these columns, separated by commas.")
@readable
def results(
    form: str, limit: int | None, where: str, last: bool, summary: bool, columns: str
) -> None:
    """Print one row a run from MLflow, newest first."""
    from counterdoor.results import Results

    found = Results.read(project_path(), where=where, limit=1 if last else limit)
    if last and form == "table":
        _print_last(found)
    else:
        table = found.summary() if summary else found.table
        names = [str(name) for name in table.columns]
        shown = [name for name in names if form != "table" or name not in WIDE]
        wanted = [name.strip() for name in columns.split(",") if name.strip()] or shown
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"no column {', '.join(unknown)}; there are {', '.join(names)}")
        _print_table(table[wanted], form)


@cli.command()
@click.option("--format", "form", type=FORMATS, default="table", help="How to print.")
@readable
def components(form: str) -> None:
    """List what can be chosen: sources, attacks, models, detectors, labelers, defences."""
    from counterdoor.catalogue import catalogue

    families = catalogue()
    if form == "json":
        click.echo(json.dumps(families, indent=2))
        return
    import pandas as pd

    rows = [
        {
            "family": family,
            "name": part["name"],
            "parameters": ", ".join(
                each["name"] if each["required"] else f"{each['name']}={each['default']}"
                for each in part["parameters"]
            ),
            "what it is": part["summary"],
        }
        for family, parts in families.items()
        for part in parts
    ]
    _print_table(pd.DataFrame(rows), form)


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--model",
    "file",
    type=click.Path(path_type=Path),
    help="A hardened.safetensors; without it the newest in this project.",
)
@click.option("--format", "form", type=FORMATS, default="table", help="How to print.")
@readable
def predict(paths: tuple[Path, ...], file: Path | None, form: str) -> None:
    """Label image files, or all in a folder, with a net that `--pipelines export` has written.

    `rejected` says that the class is another one without the stamp: such an image may carry a
    trigger. Exit code 1 if a file could not be read.
    """
    import numpy as np
    import pandas as pd
    import torch

    from counterdoor.io import HardenedDataset
    from counterdoor.sources.decoding import Content, UnreadableError, read_images
    from counterdoor.sources.image_folder import files_below

    saved = HardenedDataset(filepath=str(file)) if file else _newest_hardened()
    hardened, chosen = saved.load(), saved._get_load_path()
    found: list[tuple[Path, Content]] = []
    for path in paths:
        try:
            found += files_below(path, within=path) if path.is_dir() else [(path, path)]
        except ValueError:
            found.append((path, UnreadableError("there is no file in it")))
    files = [names.plain(str(file)) for file, _ in found]
    items = [(files[row], content, row) for row, (_, content) in enumerate(found)]
    read = read_images(items, len(items), hardened.form, on_corrupt="skip")
    try:
        logits, rejected = hardened.predict(read.images_nchw)
        if not np.isfinite(logits).all():
            raise ValueError("its net gives logits that are no finite numbers, so no label")
    except ValueError as error:
        raise ValueError(
            f"{chosen} cannot be used as a net: {error}. Take a file as "
            "`kedro run --pipelines export` has written it"
        ) from error
    shares = torch.from_numpy(logits).softmax(1).numpy()
    best = logits.argmax(axis=1)
    table = pd.DataFrame(
        {
            "file": [files[row] for row in read.labels],
            "label": [hardened.class_names[label] for label in best],
            "probability": shares.max(axis=1, initial=0.0).astype(float),
            "rejected": rejected,
        }
    )
    _print_table(table, form)
    for name, reason in read.rejected:
        click.echo(f"{names.shown(name)} cannot be read: {reason}", err=True)
    if read.rejected:
        sys.exit(1)


def _newest_hardened() -> "HardenedDataset":
    """The hardened net that was saved last in this project, as a version with its checksum."""
    from kedro.io import Version

    from counterdoor.io import HardenedDataset

    name = "hardened.safetensors"
    found = {each.parents[1] for each in project_path().glob(f"data/06_models/**/{name}/*/*")}
    saved = [HardenedDataset(filepath=str(each), version=Version(None, None)) for each in found]
    newest = max((each for each in saved if each.exists()), key=_version, default=None)
    if newest is None:
        raise ValueError(
            "there is no exported net in this project: `kedro run --pipelines export` writes one "
            "after a `kedro run` with the same parameters; or name a file with --model"
        )
    return newest


def _version(dataset: "HardenedDataset") -> str:
    return dataset.resolve_load_version() or ""


@cli.command(name="attacks-page")
@click.option(
    "--images",
    "where",
    required=True,
    help="Images for the pictures: a source's name, or a folder for the source parquet.",
)
@click.option(
    "--records",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=(
        "What benchmarks/attack_strength.py has written; may be given several times. Without it "
        "nothing counts as measured."
    ),
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/attacks.md"),
    show_default=True,
    help="The page; its pictures go into a folder of its name beside it.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Images read; attacks that need a net of their own train it on them.",
)
@readable
def attacks_page(where: str, records: tuple[Path, ...], out: Path, limit: int) -> None:
    """Write the catalogue of attacks: pictures, parameters, sources, measured strength."""
    from counterdoor import attack_page as pages
    from counterdoor.attacks import Attack, NoAttack
    from counterdoor.component import members

    measured = pages.strengths(each for file in records for each in pages.read_records(file))
    images, labels, names = _some_images(where, limit)
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    attacks: list[Any] = [kind for kind in members(Attack) if kind is not NoAttack]
    pictures = {}
    for kind in attacks:
        file = folder / f"{kind.component_name()}.png"
        figure = pages.picture(kind(), images, labels, names)
        figure.savefig(file, dpi=90, metadata={"Software": None})
        pictures[kind.component_name()] = f"{folder.name}/{file.name}"
    source = where if not Path(where).exists() else "<folder of Parquet files>"
    command = f"kedro attacks-page --images {source} --limit {limit}"
    for file in records:  # no place of this machine alone
        command += f" --records {file.name if file.is_absolute() else file}"
    out.write_text(
        pages.page(attacks, measured, command=command, pictures=pictures), encoding="utf-8"
    )
    click.echo(f"{out}: {len(attacks)} attacks, {len(measured)} measurements")


@cli.command()
@click.argument(
    "grids",
    metavar="GRID...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--params",
    default="",
    callback=_typed_params,
    help="Run parameters of every cell, as kedro run takes them.",
)
@click.option(
    "--jobs",
    "at_once",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cells at a time on this machine; each has its share of the cores.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where cells run: here, or on a Ray cluster.",
)
@click.option(
    "--address",
    default="local",
    show_default=True,
    help="Ray: address of the cluster; local starts one.",
)
@click.option(
    "--cpus-per-cell",
    "cpus",
    type=click.FloatRange(min=0, min_open=True),
    default=1,
    show_default=True,
    help="Ray: cores that a cell claims.",
)
@click.option(
    "--gpus-per-cell",
    "gpus",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    help="Ray: GPUs that a cell claims.",
)
@click.option("--dry-run", is_flag=True, help="Say what has run and what would, and run nothing.")
@click.option("--only-page", is_flag=True, help="Write the page from what has run.")
@click.option(
    "--records",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Cells of the same data measured before or elsewhere, a JSON line each: they are not run "
    "again, wherever the data lie here, and new ones are added.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/results.md"),
    show_default=True,
    help="The page; its pictures go into a folder of its name beside it.",
)
@readable
def table(
    grids: tuple[Path, ...],
    params: dict[str, Any],
    at_once: int,
    engine: str,
    address: str,
    cpus: float,
    gpus: float,
    dry_run: bool,
    only_page: bool,
    records: Path | None,
    out: Path,
) -> None:
    """Run a grid of attacks, defences and seeds, and write the page of its results.

    Cells that have run are not run again. Exit code 1: a cell has failed.
    """
    from counterdoor import cells
    from counterdoor import table as tables
    from counterdoor.comparison import read_grid
    from counterdoor.results import Results

    project = project_path()
    environment = cells.environment(
        int(cpus) if engine == "ray" else (os.cpu_count() or 1) // at_once
    )
    read = {path: read_grid(path, params) for path in grids}
    jobs = {path: cells.jobs_of(project, grid.cells(), environment) for path, grid in read.items()}
    known = tables.read_records(records)
    every = list({job.key: job for each in jobs.values() for job in each}.values())
    failed = 0
    try:
        if not only_page:
            waiting = tables.waiting(project, every, known)
            done = len(every) - len(waiting)
            click.echo(f"{len(every)} cells, {done} finished, {len(waiting)} to run")
            if dry_run:
                left = {job.key for job in waiting}
                for job in every:
                    click.echo(f"  {'to run  ' if job.key in left else 'finished'}  {job.cell}")
                return
            outcomes = (
                cells.run_on_ray(waiting, address=address, cpus=cpus, gpus=gpus)
                if engine == "ray"
                else cells.run_here(waiting, at_once=at_once)
            )
            failed = tables.follow(outcomes, done=done, total=len(every), console=_console())
    finally:  # also of a table that is interrupted
        if records is not None and not dry_run:
            tables.append_records(records, every, Results.read(project), known)
    sections = {path: (read[path], jobs[path]) for path in read}
    written = tables.write_page(project, sections, out, params=params, known=known, records=records)
    click.echo(f"{out} is written" if written else f"{out} is left as it is: no cell has run")
    if failed:
        raise ReadableError(f"{failed} of the cells failed; the same command runs them again")


def _some_images(where: str, limit: int) -> tuple["np.ndarray", "np.ndarray", tuple[str, ...]]:
    """The first training images of a source, their labels, and the class names."""
    import numpy as np
    from pydantic import TypeAdapter

    from counterdoor.component import in_full
    from counterdoor.sources import Source
    from counterdoor.sources.base import SourceBase

    settings = {"name": "parquet", "path": str(Path(where).absolute()), "limit": limit}
    chosen = settings if Path(where).is_dir() else {"name": where}
    try:
        source: SourceBase = TypeAdapter(Source).validate_python(chosen)
    except ValidationError as error:
        raise ValueError(f"--images: {one_line(error, Source, chosen)}, or a folder") from error
    data = in_full(source, project_path())()
    rows = np.linspace(0, len(data.labels) - 1, min(limit, len(data.labels))).astype(np.int64)
    return data.images_nchw[rows], data.labels[rows], data.class_names


def _print_table(table: "pd.DataFrame", form: str) -> None:
    if form == "json":
        click.echo(table.to_json(orient="records", indent=2, double_precision=15))
    elif form == "csv":
        click.echo(_for_spreadsheets(table).to_csv(index=False), nl=False)
    elif form == "markdown":
        click.echo("| " + " | ".join(table.columns) + " |")
        click.echo("|" + "---|" * len(table.columns))
        for row in table.itertuples(index=False):
            click.echo("| " + " | ".join(names.markdown(_cell(value)) for value in row) + " |")
    else:
        from rich.table import Table
        from rich.text import Text

        shown = Table(show_lines=False, header_style="bold")
        for column in table.columns:
            shown.add_column(column.replace("_", " "), overflow="fold")
        if "run_id" in table:
            table = table.assign(run_id=table["run_id"].astype(str).str[:8])
        for row in table.itertuples(index=False):
            shown.add_row(*(Text(names.shown(_cell(value))) for value in row))  # no markup
        _console().print(shown)
        if table.empty:
            click.echo("No evaluated run yet: `kedro run` makes one.")


def _for_spreadsheets(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with text that no spreadsheet takes for a formula."""
    safe = table.copy()
    for name in table.columns:
        guard = names.csv_path if name == "file" else names.csv_text
        safe[name] = [guard(value) if isinstance(value, str) else value for value in table[name]]
    return safe


def _print_last(found: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    if found.table.empty:
        click.echo("No evaluated run yet: `kedro run` makes one.")
        return
    row: Mapping[str, Any] = found.table.iloc[0].to_dict()
    shown = Table(title=Text(names.shown(found.names[0])), header_style="bold")
    shown.add_column("")
    shown.add_column("undefended", justify="right")
    shown.add_column("defended", justify="right")
    for label, metric in (
        ("clean accuracy (CA)", "ca"),
        ("attack success rate (ASR)", "asr"),
        ("accuracy on triggered images (BA)", "ba"),
    ):
        shown.add_row(label, _percent(row[f"undefended_{metric}"]), _percent(row[metric]))
    console = _console()
    console.print(shown)
    rates = {
        "suspects that are poisoned": row["detection_precision"],
        "pseudo-labels right": row["pseudo_label_accuracy"],
    }
    told = [f"{name}: {rate:.1%}" for name, rate in rates.items() if rate == rate]  # no NaN
    console.print("   ".join([*told, f"seconds: {row['seconds']:.0f}"]))
    report = f"{found.artifacts[0]}/report.html"
    where = f"\nOpen next:\n  report       {names.shown(report)}"
    console.print(where, soft_wrap=True, markup=False)
    console.print("  the DAG      kedro viz run")
    console.print("  all runs     kedro results, or make mlflow and open the page it names")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _percent(rate: float) -> str:
    return "n/a" if math.isnan(rate) else f"{rate:.1%}"


def _console() -> Any:
    from rich.console import Console

    # Not a terminal: as wide as the table, so that nothing is cut in a log or a pipe.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 250)
