"""``kedro`` in processes forked from one that has imported everything: a second, not ten, to start.

What they run is what ``kedro`` runs; they end, are killed and are waited for as any process.
"""

import contextlib
import multiprocessing
import os
import sys
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path

from overhead import project_copy

os.environ["OMP_NUM_THREADS"] = "1"  # both processes of a comparison add up in the same order

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "counterdoor.cli",
    "counterdoor.io",
    "counterdoor.pipelines.evaluate.nodes",
    "counterdoor.pipelines.export.nodes",
    "counterdoor.pipelines.train.nodes",
    "counterdoor.results",
    "counterdoor.settings",
    "counterdoor.pipelines.warmup.nodes",
    "kedro.framework.cli.cli",
    "kedro.framework.session",
    "kedro_datasets.json",
    "kedro_datasets.matplotlib.matplotlib_dataset",
    "kedro_datasets.pandas.csv_dataset",
    "kedro_datasets.pandas.parquet_dataset",
    "kedro_telemetry.plugin",
    "kedro_viz.integrations.kedro.hooks",
    "mlflow",
    "mlflow.pytorch",
    "mlflow.store.tracking.sqlalchemy_store",
    "alembic.command",
    "pandas",
    "sklearn",
    "torch",
    "torchvision",
)
INGEST = (
    *("run", "--pipelines", "ingest", "--params"),
    "source_name=image_folder,ingest.source.image_size=28,source_path=images",
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(IMPORTED))


def surroundings() -> dict[str, str]:
    """The environment variables, without the user's store of runs."""
    return {key: value for key, value in os.environ.items() if "MLFLOW" not in key}


def start(folder: Path, *arguments: str, output: Path, **variables: str) -> BaseProcess:
    """Start ``kedro`` in a project; its output goes to a file.

    Args:
        folder: the project.
        arguments: of the command.
        output: the file.
        variables: environment variables, besides :func:`surroundings`.
    """
    logging = {"KEDRO_LOGGING_CONFIG": str(ROOT / "conf" / "logging.yml"), "DO_NOT_TRACK": "true"}
    os.environ |= logging  # of the process that is forked, too
    environment = surroundings() | variables
    process = CONTEXT.Process(target=_kedro, args=(folder, arguments, output, environment))
    process.start()
    return process


def project_of_few_images(folder: Path) -> Path:
    """A fresh project with the smallest image folder that is data; :data:`INGEST` reads it."""
    import numpy as np
    from PIL import Image

    project_copy(folder)
    draw = np.random.default_rng(0)
    for part, name in product(("train", "test"), ("cat", "dog")):
        place = folder / "images" / part / name
        place.mkdir(parents=True)
        for number in range(5):
            pixels = draw.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def finished(process: BaseProcess, output: Path) -> tuple[int, str]:
    """Wait for it; its exit code and output."""
    process.join()
    return int(process.exitcode or 0), output.read_text(errors="replace")


def _kedro(
    folder: Path, arguments: tuple[str, ...], output: Path, environment: dict[str, str]
) -> None:
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["kedro", *arguments]
    with contextlib.suppress(ValueError):  # the folder of this script is not the user's
        sys.path.remove(str(Path(__file__).parent))
    from kedro.framework.cli.cli import main

    main()
