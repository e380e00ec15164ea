"""Hooks other than tracking: checks before anything runs, progress bars, paths, checkpoints."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, DataCatalog, DatasetError
from kedro.io.core import VersionNotFoundError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from pydantic import BaseModel

from counterdoor.checkpoint import checkpoints_in, results_shared_in
from counterdoor.component import in_full
from counterdoor.config import variant_path
from counterdoor.engine import Engine
from counterdoor.params import (
    DefenceParams,
    DetectParams,
    FeaturesParams,
    IngestParams,
    RelabelParams,
    WarmupParams,
    check,
)

LIBRARY_LOGGER = "counterdoor.training"
"""The logger whose records carry ``stream``, ``step``, ``steps`` and ``metrics``."""

READING_LOGGER = "counterdoor.sources.progress"
"""The logger whose records tell how far the reading of images is."""

FEATURES_LOGGER = "counterdoor.features.patches"
"""The logger whose records tell of how many images there are features."""


class PreflightHooks:
    """Refuse a run before its first node, if it could not end well."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Check the parameters of all stages, whichever of them are run.

        Raises:
            ValueError: naming the first that is wrong, and what is valid.
        """
        check(context.config_loader["parameters"])

    @hook_impl(tryfirst=True)  # so that a refused run leaves no trace in tracking
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Read every artifact that the run needs from disk, and try every output folder.

        Raises:
            DatasetError: naming a missing or damaged artifact, or a folder that
                cannot be written to, and what to do.
            ValueError: if a component looks at the truth, and the pipeline withholds it,
                parameters know what nobody can know of data of unknown origin, what is
                chosen does not go together, or this machine lacks the engine's devices.
        """
        if "params:engine" in catalog:
            Engine.model_validate(catalog.load("params:engine")).check_here()
        ensure_truth_is_given(pipeline, catalog)
        ensure_nothing_is_known(pipeline, catalog)
        ensure_choices_agree(pipeline, catalog)
        for name in sorted(pipeline.outputs() | pipeline.all_outputs()):
            ensure_writable(catalog[name])
        for name in sorted(needed(pipeline, catalog, run_params)):
            if not name.startswith("params:") and name != "parameters":
                ensure_readable(name, catalog)


def ensure_writable(dataset: Any) -> None:
    """Raise ``DatasetError`` unless a file can be made where ``dataset`` will be saved."""
    if not isinstance(dataset, AbstractVersionedDataset):
        return
    folder = Path(dataset._filepath)
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be written to ({error.strerror}): give yourself write permission, or "
            "run the project from a copy that you own"
        ) from error


def needed(pipeline: Pipeline, catalog: DataCatalog, run_params: Mapping[str, Any]) -> set[str]:
    """Names of what a run may read from disk: its inputs, and what it would not make again."""
    names = pipeline.inputs()
    if run_params.get("only_missing_outputs"):
        names |= {name for name in pipeline.all_outputs() if catalog.exists(name)}
    return names


def ensure_readable(name: str, catalog: DataCatalog) -> None:
    """Raise ``DatasetError`` unless the artifact ``name`` is there and as it was saved."""
    try:
        catalog.load(name)
    except DatasetError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, VersionNotFoundError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise DatasetError(
            f"this run needs {name!r}, which is not on disk for this choice of parameters: run the "
            "stages before it first (a plain `kedro run` runs all), or give the parameters that it "
            f"was made with. {error.__cause__ or error}"
        ) from error


def ensure_truth_is_given(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Raise ``ValueError`` if a detector or labeler needs the truth and would not get it."""
    for made, choice, family in (
        ("scored_ledger", "params:detect", "detector"),
        ("relabeled_ledger", "params:relabel", "labeler"),
    ):
        for node in pipeline.nodes:
            outputs = {name.rpartition(".")[2] for name in node.outputs}  # of a namespace, too
            if made in outputs and "oracle" not in node.inputs:
                chosen = getattr(catalog.load(choice), family)
                if chosen.needs_truth:
                    raise ValueError(
                        f"{family} {chosen.name!r} looks at the truth, which no defender has: it "
                        "is for ablations only, `kedro run --pipelines ablation`; in every other "
                        f"pipeline choose another {family}"
                    )


def ensure_nothing_is_known(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Raise ``ValueError`` if data of unknown origin is said to be attacked, or partly verified."""
    first = ("check_plan", "canary.plant")
    if not any(node.name in first and "clean_images" in node.inputs for node in pipeline.nodes):
        return
    attack = catalog.load("params:attack_name")
    if attack != "none":
        raise ValueError(
            f"attack_name is {attack!r}, but this pipeline takes the data as it comes: give "
            "attack_name=none (`kedro run` does it for you), or run the experiment to attack it"
        )
    ingest = IngestParams.model_validate(catalog.load("params:ingest"))
    if ingest.trusted_share and ingest.trusted_path is None:
        raise ValueError(
            f"ingest.trusted_share is {ingest.trusted_share}, but nobody has verified a share of "
            "data of unknown origin: give ingest.trusted_share=0, or trusted_path with images that "
            "you have verified"
        )


def ensure_choices_agree(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Raise ``ValueError`` if what is chosen does not go together, whatever the data."""
    from counterdoor.pipelines.warmup.nodes import check_choices

    if any(node.name.rpartition(".")[2] == "check_plan" for node in pipeline.nodes):
        check_choices(
            DetectParams.model_validate(catalog.load("params:detect")),
            RelabelParams.model_validate(catalog.load("params:relabel")),
            WarmupParams.model_validate(catalog.load("params:warmup")),
            FeaturesParams.model_validate(catalog.load("params:features")),
            DefenceParams.model_validate(catalog.load("params:defence")),
        )


class ProgressHooks:
    """A bar for each training and reading, on a terminal only; the log has a line an epoch."""

    def __init__(self) -> None:
        self._handler: _BarHandler | None = None
        self._levels: dict[str, int] = {}

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start to show the trainings and readings of a node."""
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._handler = _BarHandler()
            for name in (LIBRARY_LOGGER, READING_LOGGER, FEATURES_LOGGER):
                told = logging.getLogger(name)
                told.addHandler(self._handler)
                self._levels[name] = told.level
                told.setLevel(logging.DEBUG)  # progress within an epoch
                told.propagate = False  # the bar says what the console's lines would

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Take the bars away."""
        self._stop()

    @hook_impl
    def on_node_error(self, error: Exception) -> None:
        """Take the bars away."""
        self._stop()

    def _stop(self) -> None:
        if self._handler is not None:
            for name, level in self._levels.items():
                told = logging.getLogger(name)
                told.removeHandler(self._handler)
                told.setLevel(level)
                told.propagate = True
            self._handler.close()
            self._handler = None


class _BarHandler(logging.Handler):
    """Draws records of trainings and readings as progress bars with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__()
        self._tasks: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._progress.start()

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        if progress is None:
            return
        stream, total = progress["stream"], progress["total"]
        detail = f"{progress['rate']:,.0f} images/s"
        if "epoch" in progress:
            detail = (
                f"epoch {progress['epoch']}/{progress['epochs']}  loss {progress['loss']:.3f}  "
                + detail
            )
        if stream not in self._tasks:
            self._tasks[stream] = self._progress.add_task(stream, total=total, detail=detail)
        task, done = self._tasks[stream], progress["done"]
        self._progress.update(task, completed=done, total=total, detail=detail)

    def close(self) -> None:
        self._progress.stop()
        super().close()


class PathHooks:
    """A relative path in a parameter is one within the project, wherever Kedro was started."""

    def __init__(self) -> None:
        self._project = Path()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Note the project's folder."""
        self._project = Path(context.project_path)

    @hook_impl
    def before_node_run(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Give nodes that read files the paths in full.

        The parameters keep the relative one, so the place of the project is no part of
        the variant.
        """
        full = {
            name: in_full(params, self._project)
            for name, params in inputs.items()
            if name.startswith("params:") and isinstance(params, BaseModel)
        }
        return {name: each for name, each in full.items() if each != inputs[name]} or None


SHARED_RESULTS = "COUNTERDOOR_SHARED_RESULTS"
"""Environment variable: a folder in which runs find trainings that others have made."""


class CheckpointHooks:
    """Trainings are saved once an epoch under ``data/``, until the run has ended well.

    The same run, started again after a kill, goes on from there. The runs of a table also share
    the results of their trainings: the undefended net of an attack is the same for every defence.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._saving = ExitStack()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Choose the folder of this variant."""
        variant = variant_path(context.config_loader["parameters"], "evaluate")
        self._folder = Path(context.project_path) / "data" / "checkpoints" / variant

    @hook_impl(trylast=True)  # so that nothing can fail between this and the first node
    def before_pipeline_run(self) -> None:
        """Save from now on."""
        self._saving.close()
        if self._folder is not None:
            self._saving.enter_context(checkpoints_in(self._folder))
        if shared := os.environ.get(SHARED_RESULTS):
            self._saving.enter_context(results_shared_in(Path(shared)))

    @hook_impl
    def after_pipeline_run(self) -> None:
        """The run has its results: its checkpoints are not needed any more."""
        self._saving.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # a folder that holds another variant stays
                for folder in self._folder.parents:
                    if folder.name == "data":
                        break
                    folder.rmdir()

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Leave the checkpoints for the next attempt."""
        self._saving.close()


KEPT = ("verdict", "stamp_effect", "self_test", "suspects_page")
"""The data sets that the answer is made of, and that whose place is told at once."""


class KnownHooks:
    """Keeps what a run has found out so far, and says the verdict as soon as it is known."""

    def __init__(self) -> None:
        self.datasets: dict[str, Any] = {}
        """Of :data:`KEPT`, what the run in progress, or the last one, has saved."""
        self._catalog: Any = None

    @hook_impl
    def before_pipeline_run(self, catalog: Any) -> None:
        """Begin anew."""
        self.datasets, self._catalog = {}, catalog

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Keep it, and say what people wait for."""
        if dataset_name not in KEPT or self._catalog is None:
            return
        dataset = self.datasets[dataset_name] = self._catalog[dataset_name]
        told = logging.getLogger("counterdoor")
        if dataset_name == "verdict":
            from counterdoor.verdict import Verdict

            verdict = Verdict.model_validate(data)
            told.info("%s %s", verdict.words, " ".join(verdict.reasons))
        elif dataset_name == "suspects_page":
            told.info("the suspects: %s", dataset._get_load_path())


KNOWN = KnownHooks()
"""The hooks of this process."""
