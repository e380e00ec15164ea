"""``kedro run --pipelines defend``: what it implies, what it will cost, and what it answers."""

import copy
import functools
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from counterdoor.component import LARGEST
from counterdoor.refusal import shown

if TYPE_CHECKING:
    from counterdoor.forecast import Forecast

EVIDENCE, UNDECIDED = 3, 4
"""Exit codes of ``kedro run --pipelines defend``; 0 is no evidence, others are errors."""

SHOWN = {
    "suspects_page": ("suspects_page.html", "suspects"),
    "suspects": ("suspects.csv", "as a table"),
    "cleaned": ("cleaned.csv", "the others"),
    "hardened": ("hardened.safetensors", "the net"),
    "hardened_onnx": ("hardened_onnx.onnx", "as ONNX"),
    "model_card": ("model_card.md", "its card"),
}
"""What the answer points to: its file, and what people call it."""

EXPORT_SECONDS = 30.0
"""What the exports, the trial of them and their copies take, about, whatever the data."""

OPTIONS: list[click.Parameter] = [
    click.Option(
        ["--dry-run"],
        is_flag=True,
        help="With --pipelines defend: read and check the images, measure the speed of a few "
        "batches, say what would be done and what it would take. Writes nothing.",
    ),
    click.Option(
        ["--self-test"],
        is_flag=True,
        help="With --pipelines defend: also plant a harmless backdoor of our own, a canary, in a "
        "copy of the data, and say whether this configuration finds it. Detects a second time.",
    ),
    click.Option(["--quiet"], is_flag=True, help="No log but warnings."),
    click.Option(
        ["--json", "as_json"],
        is_flag=True,
        help="With --pipelines defend: one JSON object on standard output in place of text; "
        "quiet as well.",
    ),
]
"""Of ``kedro run``, besides Kedro's own."""


def spelt_out(params: Mapping[str, Any], pipelines: Iterable[str]) -> dict[str, Any]:
    """Run parameters with their short names in full, and what ``defend`` and ``selftest`` imply.

    ``source_path`` is ``ingest.source.path``, and ``trusted_path`` ``ingest.trusted_path``. Of
    data of unknown origin nothing is known: there is no attack to make, the detector is ``ac``
    and as many are suspected as stand out. Without trusted images nobody is trusted, features
    learnt without labels tell which part of a class is honest, and the labeler is ``ud``, or
    ``nc`` with another detector, which may leave more of the poison unsuspected; more agreed
    samples are stamped, in place of trusted ones. What is given stays.

    Raises:
        ValueError: if a value stands where a mapping is needed, or a path is none.
    """
    given = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in params.items()
    }
    ingest = _mapping(given, "ingest")
    if "source_path" in given:
        path = _place(given, "source_path")
        ingest["source"] = {**_mapping(ingest, "source", "ingest."), "path": path}
    if "trusted_path" in given:
        ingest["trusted_path"] = _place(given, "trusted_path")
    if {"defend", "selftest"} & set(pipelines):
        given.setdefault("attack_name", "none")
        named = _mapping(_mapping(given, "detect"), "detector", "detect.").get("name")
        own = (named or given.setdefault("detector_name", "ac")) == "ac"
        detect = {"suspect_ratio": "apart" if own else "adaptive", **_mapping(given, "detect")}
        given["detect"] = detect
        if ingest.get("trusted_path") is None:
            if own:
                detect["detector"] = {"honest": "features", **detect.get("detector", {})}
            ingest.setdefault("trusted_share", 0)
            given.setdefault("labeler_name", "ud" if own else "nc")
            stamps = {"trusted_stamps": 0, "agreed_stamps": 0.2}
            given["relabel"] = {**stamps, **_mapping(given, "relabel")}
    return given | ({"ingest": ingest} if ingest else {})


def _mapping(given: Mapping[str, Any], name: str, place: str = "") -> dict[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}{name} is {shown(value)}; it must be a mapping of parameters")
    return dict(value)


def _place(given: dict[str, Any], name: str) -> str:
    value = given.pop(name)
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"{name} is {shown(value)}; it must be the path of a folder or file")
    return str(value)


def answering(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``kedro run``: parameters are :func:`spelt_out`, and ``defend`` says its verdict.

    Its exit code is then 0 for no evidence of poisoning, :data:`EVIDENCE` or
    :data:`UNDECIDED`. If something fails once the verdict is known, the verdict and what there is
    are told all the same, and the exit code is 1. It takes :data:`OPTIONS`, and the parameter
    ``max_minutes``: the trainings are then cut so that the run takes about so long.
    """

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        dry_run: bool = False,
        self_test: bool = False,
        quiet: bool = False,
        as_json: bool = False,
        **kwargs: Any,
    ) -> Any:
        selected = [
            name for name in (kwargs.get("pipeline"), *(kwargs.get("pipelines") or ())) if name
        ]
        given = dict(kwargs.get("params") or {})
        minutes = given.pop("max_minutes", None)
        if "defend" not in selected and (dry_run or self_test or as_json or minutes is not None):
            raise ValueError(
                "--dry-run, --self-test, --json and max_minutes go with --pipelines defend alone"
            )
        if self_test and "selftest" not in selected:
            selected.append("selftest")
            kwargs |= {"pipeline": None, "pipelines": selected}
        params = kwargs["params"] = spelt_out(given, selected)
        note = _note(params, kwargs.get("env"))
        with _quietly(quiet or as_json):
            if dry_run or minutes is not None:
                limit = None if minutes is None else _positive(minutes)
                ahead = read_ahead(params, kwargs.get("env"), kwargs.get("conf_source"))
                hashed = ahead.read["info"]["content_hash"]
                epochs = _noted(note, limit, hashed)
                if dry_run or epochs is None:
                    plan, about = look_ahead(ahead, self_test="selftest" in selected)
                    if epochs is None and limit is not None:
                        spent = about["reading_seconds"] + EXPORT_SECONDS
                        epochs = plan.within(60.0 * limit, besides=spent)
                if dry_run:
                    _tell_plan(plan.cut(epochs or {}), about, as_json)
                    return None
                note.parent.mkdir(parents=True, exist_ok=True)
                del ahead  # the run reads the images itself
                told = {"minutes": limit, "content_hash": hashed, "epochs": epochs}
                note.write_text(json.dumps(told))
                kwargs["params"] = _with_epochs(params, epochs or {})
            with _telling_what_is_known(as_json) if "defend" in selected else nullcontext():
                made = command(*args, **kwargs)
        note.unlink(missing_ok=True)
        if "defend" in selected and "verdict" in made:
            sys.exit(_tell(made, as_json))
        if "self_test" in made:
            click.echo(made["self_test"].load()["words"])
        return made

    return wrapper


@contextmanager
def _telling_what_is_known(as_json: bool) -> Iterator[None]:
    """If the block fails, tell the verdict that its run has reached by then."""
    from counterdoor.hooks import KNOWN

    KNOWN.datasets = {}  # of another run of this process
    try:
        yield
    except Exception as error:
        if "verdict" in KNOWN.datasets:
            _tell(KNOWN.datasets, as_json, failed=error)
        raise


def _positive(minutes: Any) -> float:
    number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not number or not 0 < minutes <= LARGEST:
        raise ValueError(
            f"max_minutes is {shown(minutes)}; it must be a number above 0 and at most {LARGEST}"
        )
    return float(minutes)


@contextmanager
def _quietly(quiet: bool) -> Iterator[None]:
    """Inside the block, consoles show warnings alone; what listens for records hears them all."""
    shown = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    levels = [each.level for each in shown]
    if quiet:
        for each in shown:
            each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(shown, levels, strict=True):
            each.setLevel(level)


def _note(params: Mapping[str, Any], env: str | None) -> Path:
    """Where it stands what these parameters' ``max_minutes`` was found to mean.

    A run that was killed goes on with the same epochs, if its images are still the same.
    """
    named = json.dumps([params, env], sort_keys=True, default=str)
    name = f"max_minutes-{hashlib.sha256(named.encode()).hexdigest()[:12]}.json"
    return project_path() / "data" / "checkpoints" / name


def _noted(note: Path, minutes: float | None, hashed: str) -> dict[str, int] | None:
    """The epochs of the note, if it is there, whole, and of so many minutes for these images."""
    if minutes is None or not note.exists():
        return None
    try:
        found = json.loads(note.read_text())
        same = (found["minutes"], found["content_hash"]) == (minutes, hashed)
        return dict(found["epochs"]) if same else None
    except (ValueError, KeyError, TypeError):
        return None


def _with_epochs(params: Mapping[str, Any], epochs: Mapping[str, int]) -> dict[str, Any]:
    """The parameters with other epochs, by dotted key; the ones given stay as they are."""
    changed = copy.deepcopy(dict(params))
    for key, value in epochs.items():
        *path, last = key.split(".")
        place = changed
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    told = ", ".join(f"{key}={value}" for key, value in epochs.items())
    logging.getLogger("counterdoor").info("max_minutes: %s", told or "nothing has to be cut")
    return changed


@dataclass(frozen=True)
class Ahead:
    """What a run of ``defend`` would read and be told.

    Attributes:
        project: its folder.
        read: what the stage *ingest* gives.
        chosen: parameters by name.
        seconds: what reading took.
    """

    project: Path
    read: Mapping[str, Any]
    chosen: Mapping[str, Any]
    seconds: float


def read_ahead(params: dict[str, Any], env: str | None, conf_source: str | None) -> Ahead:
    """Read and check the images as a run of ``defend`` would; write nothing.

    Raises:
        ValueError: whatever the run itself would refuse before its first training.
    """
    from kedro.framework.project import pipelines, settings

    from counterdoor.component import in_full
    from counterdoor.hooks import PreflightHooks
    from counterdoor.params import FeaturesParams, IngestParams
    from counterdoor.pipelines.export.nodes import check_export
    from counterdoor.pipelines.ingest.nodes import ingest
    from counterdoor.pipelines.warmup.nodes import check_plan

    create = {"env": env, "conf_source": conf_source, "runtime_params": params}
    with settings.SESSION_CLASS.create(**create) as session:
        context = session.load_context()
        catalog, project = context.catalog, Path(context.project_path)
        PreflightHooks().before_pipeline_run({}, pipelines["defend"], catalog)
        names = ("warmup", "detect", "relabel", "train", "defence", "model", "engine", "stamp")
        chosen = {name: catalog.load(f"params:{name}") for name in names}
        chosen["features"] = FeaturesParams.model_validate(catalog.load("params:features"))
        export = catalog.load("params:export")
        reading = in_full(IngestParams.model_validate(catalog.load("params:ingest")), project)
        started = time.perf_counter()
        read = ingest(reading, catalog.load("params:seed"))
        seconds = time.perf_counter() - started
    checked = {name: each for name, each in chosen.items() if name != "engine"}
    check_plan(read["images"], read["ledger"], read["info"], **checked)
    shipped = {name: chosen[name] for name in ("model", "train", "defence", "stamp")}
    check_export(read["images"], read["info"], {}, export=export, **shipped)
    return Ahead(project, read, chosen, seconds)


def look_ahead(ahead: Ahead, *, self_test: bool = False) -> tuple["Forecast", dict[str, Any]]:
    """Forecast a run of ``defend``; write nothing.

    With ``self_test`` it plants a canary as well.

    Returns:
        The forecast, and plain values about the images.

    Raises:
        ValueError: if the disk has too little room.
    """
    from counterdoor.forecast import forecast

    images, ledger, info = (ahead.read[name] for name in ("images", "ledger", "info"))
    chosen = {name: each for name, each in ahead.chosen.items() if name != "stamp"}
    project = ahead.project
    with _quietly(True):  # of the batches that are tried
        plan = forecast(images, ledger, info, **chosen)
    if self_test:
        plan = plan.tested(images.nbytes)
    free = shutil.disk_usage(project / "data").free
    if plan.disk > free:
        raise ValueError(
            f"the run would write about {plan.disk / 1e6:,.0f} MB, but {project / 'data'} has "
            f"{free / 1e6:,.0f} MB free; make room, or run the project from another disk"
        )
    counts = {name: info[name] for name in ("n_train", "n_test", "n_trusted", "n_rejected")}
    about = {
        **counts,
        "classes": len(info["class_names"]),
        "image_shape": info["image_shape"],
        "reading_seconds": round(ahead.seconds, 1),
        "free_bytes": free,
    }
    return plan, about


def _tell_plan(plan: "Forecast", about: Mapping[str, Any], as_json: bool) -> None:
    """Print what a run would do and take."""
    if as_json:
        rows = [
            {
                "stage": each.stage,
                "images": each.images,
                "epochs": each.recipe.epochs,
                "images_per_second": round(each.rate, 1),
                "seconds": round(each.seconds, 1),
            }
            for each in plan.trainings
        ]
        whole = {"seconds": round(plan.seconds, 1), "disk_bytes": plan.disk}
        click.echo(json.dumps({**about, "trainings": rows, **whole}))
        return
    shape = "x".join(str(size) for size in about["image_shape"])
    click.echo(
        f"{about['n_train']:,} images of {about['classes']} classes to train on, "
        f"{about['n_test']:,} held out, {shape} each; {about['n_trusted']:,} are trusted, "
        f"{about['n_rejected']:,} files cannot be read. "
        f"Reading took {about['reading_seconds']:.0f} s."
    )
    for each in plan.trainings:
        click.echo(
            f"  {each.stage:<15} {each.recipe.epochs:>5} epochs of {each.images:,} images, "
            f"{each.rate:,.0f} images/s: {_duration(each.seconds)}"
        )
    click.echo(f"  {'all else':<15} {_duration(plan.predicting + EXPORT_SECONDS)}")
    total = plan.seconds + about["reading_seconds"] + EXPORT_SECONDS
    click.echo(
        f"In all about {_duration(total)} and {plan.disk / 1e6:,.0f} MB of disk "
        f"({about['free_bytes'] / 1e9:,.0f} GB are free). Nothing was written."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _tell(made: Mapping[str, Any], as_json: bool, failed: Exception | None = None) -> int:
    """Print the verdict and where things lie; gives back the exit code."""
    from counterdoor.verdict import Verdict

    verdict = Verdict.model_validate(made["verdict"].load())
    if "stamp_effect" in made:
        verdict = verdict.under_the_stamp(**made["stamp_effect"].load())
    code = {"evidence": EVIDENCE, "undecided": UNDECIDED}.get(verdict.answer, 0)
    if failed is not None:
        code = 1
    own = Path(made["verdict"]._get_load_path())  # <name>/<version>/<name>, as all of them
    folder, version = own.parents[2], own.parent.name
    places = {name: folder / file / version / file for name, (file, _) in SHOWN.items()}
    files = {name: str(place) for name, place in places.items() if place.exists()}
    self_test = made["self_test"].load() if "self_test" in made else None
    if as_json:
        told = verdict.model_dump(mode="json") | ({"self_test": self_test} if self_test else {})
        if failed is not None:
            told["error"] = str(failed)
        click.echo(json.dumps({**told, "exit_code": code, "files": files}))
        return code
    click.secho(f"\n{verdict.words}", bold=True)
    for reason in verdict.reasons:
        click.echo(f"  {reason}")
    if self_test:
        click.echo(f"  {self_test['words']}")
    click.echo("")
    for name, file in files.items():
        click.echo(f"  {SHOWN[name][1]:<14} {file}")
    return code


def project_path() -> Path:
    """The folder of the project that the working directory is in, or that directory."""
    from kedro.utils import find_kedro_project

    found = find_kedro_project(Path.cwd())
    return Path(found) if found else Path.cwd()
