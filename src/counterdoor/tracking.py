"""One MLflow run per ``kedro run``, driven by ``metadata.mlflow`` in the catalog.

``tags``: a table of plain values becomes tags ``data.<key>``; ``metrics``: numbers
become metrics; ``history``: a training's epochs, kept, and its images per second as a
metric (the epochs themselves are logged while it runs); ``seconds``: a table of
stages becomes ``seconds_<stage>`` and their sum ``seconds``; ``artifact``: the file is
kept with the run; ``answer``: the file is kept, its answer becomes a tag; ``model``: the
net is logged as an MLflow model, stamp and normalisation inside, or, if torch cannot
export it, as its file: a finished training is not lost for that, and a pickle would hold
code.

MLflow is imported when a run starts, not before.
"""

import atexit
import hashlib
import json
import logging
import math
import os
import platform
import signal
import subprocess
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset, DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from counterdoor.config import CHOICES as NAMED
from counterdoor.config import STAGES
from counterdoor.hardened import Hardened, levels_only
from counterdoor.hooks import LIBRARY_LOGGER
from counterdoor.models import TrainedNet
from counterdoor.running import Running, killed
from counterdoor.store import configured, connect

CHOICES = (*NAMED, "seed")
WRITE_SECONDS = 2.0
"""The metrics of epochs reach MLflow at most so often, so that curves are live but cheap."""

logger = logging.getLogger(__name__)


LIFE = "counterdoor.life"
"""The tag of a run by which the next run of the project finds it if it was killed."""


def close_killed(mlflow: Any, project_path: Path) -> None:
    """Mark runs of this project as KILLED whose process has died without a word."""
    client = mlflow.MlflowClient()
    for token in killed(project_path, configured()):
        known = [each.experiment_id for each in client.search_experiments()]
        query = f"tags.`{LIFE}` = '{token}' and attributes.status = 'RUNNING'"
        for run in client.search_runs(known, query):
            client.set_terminated(run.info.run_id, "KILLED")
            logger.info("run %s was killed; it is closed", run.info.run_name)


class TrackingHooks:
    """Keeps an MLflow run beside a Kedro run."""

    def __init__(self) -> None:
        self._project_path = Path.cwd()
        self._parameters: dict[str, Any] = {}
        self._env: str | None = None
        self._mlflow: Any = None
        self._run_id: str | None = None
        self._running: Running | None = None
        self._catalog: DataCatalog | None = None
        self._handler: _MetricsHandler | None = None
        self._signals: dict[int, Any] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Note where the project is and what its parameters are."""
        self._project_path = Path(context.project_path)
        self._parameters = context.config_loader["parameters"]
        self._env = context.env

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Start the run: name, tags, parameters, the versions of what is read from disk."""
        self._end("KILLED")
        self._mlflow = connect(self._project_path)
        close_killed(self._mlflow, self._project_path)
        self._catalog = catalog
        self._running = Running(self._project_path, configured())
        run = self._mlflow.start_run(
            run_name=run_name(self._parameters), tags={LIFE: self._running.token}
        )
        self._run_id = run.info.run_id
        atexit.register(self._end, "KILLED")
        self._catch_signals()
        selected = run_params.get("pipeline_names") or run_params.get("pipeline_name")
        tags = {
            "kedro.run_id": run_params.get("run_id") or run_params.get("session_id"),
            "kedro.pipelines": ",".join(selected) if isinstance(selected, list) else selected,
            "kedro.env": self._env,
            "variant": variant_of(self._parameters),
            "defence": self._parameters["defence_name"],
            "hardware": hardware(),
            **commit_tags(self._project_path),
        }
        self._mlflow.set_tags({key: str(value) for key, value in tags.items() if value})
        self._mlflow.log_params(flatten(self._parameters))
        for name in sorted(pipeline.inputs()):
            self._note_input(name)
        self._handler = _MetricsHandler(self._mlflow, self._run_id)
        logging.getLogger(LIBRARY_LOGGER).addHandler(self._handler)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log what was saved, as the catalog's metadata says."""
        if self._run_id is None or self._catalog is None:
            return
        dataset = self._catalog[dataset_name]
        match _mlflow_metadata(dataset):
            case "tags":
                self._tag_data(data)
            case "metrics":
                self._log_metrics(data)
            case "seconds":
                seconds = dict(zip(data["stage"], data["seconds"], strict=True))
                self._log_metrics({f"seconds_{stage}": value for stage, value in seconds.items()})
                self._log_metrics({"seconds": sum(seconds.values())})
            case "artifact" | "history" as kind:
                if kind == "history" and len(data):
                    images = (data["images_per_second"] * data["seconds"]).sum()
                    stage = dataset_name.removesuffix("_history")
                    rate = images / data["seconds"].sum()
                    self._log_metrics({f"images_per_second_{stage}": rate})
                self._log_file(dataset)
            case "answer":
                self._mlflow.set_tag(dataset_name, data["answer"])
                self._log_file(dataset)
            case "model":
                self._log_model(dataset_name, dataset, data)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Keep the curves of a copy's trainings apart from those of the data itself."""
        if self._handler is not None:
            self._handler.prefix = f"{node.namespace}." if node.namespace else ""

    @hook_impl
    def after_pipeline_run(self) -> None:
        """End the run well."""
        self._end("FINISHED")

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """End the run as failed, with the error as a tag."""
        if self._run_id is not None:
            self._mlflow.set_tag("error", f"{type(error).__name__}: {error}"[:5000])
        self._end("FAILED")

    def _end(self, status: str) -> None:
        if self._run_id is None:
            return
        self._run_id = None
        atexit.unregister(self._end)
        for number, former in self._signals.items():
            signal.signal(number, former)
        self._signals = {}
        if self._handler is not None:
            logging.getLogger(LIBRARY_LOGGER).removeHandler(self._handler)
            self._handler.flush()
            self._handler = None
        self._mlflow.end_run(status)
        if self._running is not None:
            self._running.end()
            self._running = None

    def _catch_signals(self) -> None:
        # SystemExit unwinds as Ctrl-C does, so that the exit handler can mark the run KILLED.
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._signals[number] = signal.signal(number, self._stop)
        except ValueError:
            logger.debug("not in the main thread: signals are left alone")

    def _stop(self, number: int, _: object) -> None:
        stop = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        if self._handler is not None:
            self._handler.stop = stop
        raise stop

    def _note_input(self, name: str) -> None:
        dataset = self._catalog[name] if self._catalog is not None else None
        if isinstance(dataset, AbstractVersionedDataset) and dataset.exists():
            self._mlflow.set_tag(f"input.{name}", str(dataset.resolve_load_version()))
            if _mlflow_metadata(dataset) == "tags":
                self._tag_data(dataset.load())

    def _tag_data(self, data: Mapping[str, Any]) -> None:
        self._mlflow.set_tags({f"data.{key}": str(value)[:5000] for key, value in data.items()})

    def _log_model(self, name: str, dataset: Any, trained: TrainedNet | Hardened) -> None:
        try:
            if isinstance(trained, Hardened):
                log_hardened(self._mlflow, name, trained)
            else:
                log_net(self._mlflow, name, trained)
        except self._mlflow.MlflowException:
            raise
        except Exception as error:  # whatever torch.export makes of somebody else's code
            logger.warning(
                "%s cannot be exported: the run keeps its safetensors file, not an MLflow model "
                "(%s: %s)",
                name,
                type(error).__name__,
                str(error).partition("\n")[0],
            )
            self._log_file(dataset)

    def _log_file(self, dataset: Any) -> None:
        if isinstance(dataset, AbstractVersionedDataset):
            self._mlflow.log_artifact(str(dataset._get_load_path()))

    def _log_metrics(self, data: Mapping[str, Any]) -> None:
        finite = {key: float(value) for key, value in data.items() if math.isfinite(value)}
        self._mlflow.log_metrics(finite)


def run_name(parameters: Mapping[str, Any]) -> str:
    """A readable name: the choices of a run, ``digits badnets-0.1-all_to_one … s0``."""
    name = (
        "{source_name} {attack_name}-{poison_ratio}-{label_mapping} {model_name} {detector_name} "
        "{labeler_name} {defence_name} s{seed}"
    )
    return name.format(**parameters)


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted name; those whose name begins with ``_`` are left out."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if str(key).startswith("_"):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def commit_tags(project_path: Path) -> dict[str, str]:
    """The git commit of the project, and whether files differ from it; empty outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "commit.dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def log_net(mlflow: Any, name: str, trained: TrainedNet) -> None:
    """Log a net as MLflow model: plain images (N, C, H, W), levels 0 to 255, in, logits out.

    Loaded by ``mlflow.pytorch``, it takes uint8 or other whole numbers. Served, it takes
    numbers: the signature says float32, since MLflow would cut those of a body to uint8, and
    so read an image in [0, 1] as black, before the net could refuse it.

    The archive has one pickle, the example that the net was traced with: MLflow writes it, and
    with ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`` loads no archive without one and none
    with more in it than tensors.
    """
    net = levels_only(trained.deployable(), trained)
    _log_torch(mlflow, name, net, trained.image_shape, trained.image_shape, trained.num_classes)


def log_hardened(mlflow: Any, name: str, hardened: Hardened) -> None:
    """As :func:`log_net`, for images of any height and width."""
    channels, height, width = hardened.net.image_shape
    columns = hardened.net.num_classes + hardened.reject_column
    example = (channels, height + 1, width + 2)  # equal sizes would be taken for one
    _log_torch(mlflow, name, hardened.served(), example, (channels, -1, -1), columns)


def _log_torch(
    mlflow: Any,
    name: str,
    net: Any,
    shape: tuple[int, int, int],
    taken: tuple[int, int, int],
    columns: int,
) -> None:
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *taken))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, columns))]),
    )
    ramp = np.linspace(0, 255, 2 * math.prod(shape)).astype(np.uint8)
    requirements = [f"torch=={torch.__version__.split('+')[0]}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.log_model(
            net,
            name=name,
            input_example=ramp.reshape(2, *shape),
            pip_requirements=requirements,
            signature=signature,
        )


PLACES = ("ingest.source.path", "ingest.trusted_path")
"""Where images lie; another on every machine."""
REPEATED = ("features_name",)
"""Short names that are no part of a variant's digest: cells were recorded before there were these,
and the component that they choose has its name in it."""


def variant_of(parameters: Mapping[str, Any], *, places: bool = True) -> str:
    """A digest of the experiment's parameters but the seed: equal for runs that differ by it alone.

    Those that only stages after the evaluation read are no part of it.

    Args:
        parameters: all parameters of the run, resolved.
        places: whether the places of the images are a part; without them the digest is the same on
            every machine, also for other images, and that of ``places`` if none is given.
    """
    later = {key for stage in ("export", "selftest") for key in STAGES[stage][1]}
    kept = {key: value for key, value in parameters.items() if key not in later}
    told = {key: value for key, value in flatten(kept).items() if key not in ("seed", *REPEATED)}
    rest = {k: v for k, v in told.items() if places or v is None or k not in PLACES}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:12]


def hardware() -> str:
    """Processor, cores and GPU of this machine, in words."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"


def _mlflow_metadata(dataset: Any) -> str | None:
    metadata = getattr(dataset, "metadata", None) or {}
    kind = metadata.get("mlflow")
    return None if kind is None else str(kind)


class _MetricsHandler(logging.Handler):
    """Forwards the records of trainings to the active MLflow run, every few seconds.

    A short epoch takes less time than a write to the store does.
    """

    def __init__(self, mlflow: Any, run_id: str) -> None:
        super().__init__()
        self._client = mlflow.MlflowClient()
        self._metric = mlflow.entities.Metric
        self._run_id = run_id
        self._waiting: list[Any] = []
        self.prefix = ""
        """Of the names of all metrics."""
        self.stop: BaseException | None = None
        """Raised at the next epoch: Python loses what a signal raises in a destructor."""
        self._written = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        if self.stop is not None:
            raise self.stop
        metrics = getattr(record, "metrics", None)
        if metrics is None:
            return
        stream, step = record.stream, record.step  # type: ignore[attr-defined]
        now = int(1000 * record.created)
        self._waiting += [
            self._metric(f"{self.prefix}{stream}/{key}", value, now, step)
            for key, value in metrics.items()
            if key != "seconds"
        ]
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits; MLflow takes 1,000 metrics at a time."""
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), 1000):
            self._client.log_batch(self._run_id, metrics=waiting[start : start + 1000])
        self._written = time.monotonic()
