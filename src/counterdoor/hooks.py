"""Hooks other than tracking: checks before anything runs, and progress bars."""

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, DataCatalog, DatasetError
from kedro.io.core import VersionNotFoundError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

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

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start to show the trainings of a node."""
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._handler = _BarHandler()
            training = logging.getLogger(LIBRARY_LOGGER)
            training.addHandler(self._handler)
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
            training.propagate = True
            self._handler.close()
            self._handler = None


class _BarHandler(logging.Handler):
    """Draws records of trainings as a progress bar with loss, rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        super().__init__()
        self._tasks: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._progress.start()

    def emit(self, record: logging.LogRecord) -> None:
        metrics = getattr(record, "metrics", None)
        if metrics is None:
            return
        fields = {"loss": metrics["loss"], "rate": metrics["images_per_second"]}
        stream, step, steps = record.stream, record.step, record.steps  # type: ignore[attr-defined]
        if stream not in self._tasks:
            self._tasks[stream] = self._progress.add_task(stream, total=steps, **fields)
        self._progress.update(self._tasks[stream], completed=step, **fields)

    def close(self) -> None:
        self._progress.stop()
        super().close()
