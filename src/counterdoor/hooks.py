"""Hooks other than tracking: checks before anything runs, and progress bars."""

import logging
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, DataCatalog, DatasetError
from kedro.io.core import VersionNotFoundError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from counterdoor.checkpoint import checkpoints_in
from counterdoor.config import variant_path

LIBRARY_LOGGER = "counterdoor.training"
"""The logger whose records carry ``stream``, ``step``, ``steps`` and ``metrics``."""


class PreflightHooks:
    """Refuse a run before its first node, if it could not end well."""

    @hook_impl(tryfirst=True)  # so that a refused run leaves no trace in tracking
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Read every artifact that the run needs from disk, and try every output folder.

        Raises:
            DatasetError: naming a missing or damaged artifact, or a folder that
                cannot be written to, and what to do.
        """
        for name in sorted(pipeline.outputs() | pipeline.all_outputs()):
            ensure_writable(catalog[name])
        for name in sorted(pipeline.inputs()):
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


def ensure_readable(name: str, catalog: DataCatalog) -> None:
    """Raise ``DatasetError`` unless the artifact ``name`` is there and whole."""
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


class ProgressHooks:
    """A bar for each training, on a terminal only; elsewhere the log has a line an epoch."""

    def __init__(self) -> None:
        self._handler: _BarHandler | None = None
        self._level = logging.NOTSET

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start to show the trainings of a node."""
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._handler = _BarHandler()
            training = logging.getLogger(LIBRARY_LOGGER)
            training.addHandler(self._handler)
            self._level = training.level
            training.setLevel(logging.DEBUG)  # progress within an epoch
            training.propagate = False  # the bar says what the console's lines would

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
            training = logging.getLogger(LIBRARY_LOGGER)
            training.removeHandler(self._handler)
            training.setLevel(self._level)
            training.propagate = True
            self._handler.close()
            self._handler = None


class _BarHandler(logging.Handler):
    """Draws records of trainings as a progress bar with loss, rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__()
        self._tasks: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._progress.start()

    def emit(self, record: logging.LogRecord) -> None:
        progress = getattr(record, "progress", None)
        if progress is None:
            return
        stream = progress["stream"]
        if stream not in self._tasks:
            self._tasks[stream] = self._progress.add_task(stream, **progress)
        self._progress.update(self._tasks[stream], completed=progress["done"], **progress)

    def close(self) -> None:
        self._progress.stop()
        super().close()


class CheckpointHooks:
    """Trainings are saved once an epoch under ``data/``, until the run has ended well.

    The same run, started again after a kill, goes on from there.
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
