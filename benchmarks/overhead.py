"""What Kedro, MLflow and the report cost: ``kedro run`` against the same stages as bare calls.

Both are whole processes, start-up and imports included, run in turn (A B A B …) on the
embedded default. The bare one calls the library's functions in order and writes nothing.
The Kedro one starts each time from a project without data and without MLflow store, which
is its worst case: the first run makes the store. In that run the artifacts' checksums are timed,
those written with each and those verified before each is read.

    python benchmarks/overhead.py [--runs 3] [--json]

``ratio`` is the share of ``kedro run``'s time that the bare process does not need, checksums
included; the project's bar is 0.25.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def bare(parameters: dict[str, Any]) -> None:
    """Run all stages as plain function calls, up to the metrics."""
    from counterdoor import params as p
    from counterdoor.pipelines.attack.nodes import attack
    from counterdoor.pipelines.detect.nodes import detect
    from counterdoor.pipelines.evaluate.nodes import measure, predict
    from counterdoor.pipelines.ingest.nodes import ingest
    from counterdoor.pipelines.relabel.nodes import relabel
    from counterdoor.pipelines.train.nodes import train_defended, train_undefended
    from counterdoor.pipelines.warmup.nodes import check_plan, train_plain, warm_up
    from counterdoor.stamp import Stamp

    seed = parameters["seed"]
    model = p.ModelParams.model_validate(parameters["model"])
    adversary = p.AttackParams.model_validate(parameters["attack"])
    detecting = p.DetectParams.model_validate(parameters["detect"])
    relabeling = p.RelabelParams.model_validate(parameters["relabel"])
    training = p.TrainParams.model_validate(parameters["train"])
    warming = p.WarmupParams.model_validate(parameters["warmup"])
    stamp = Stamp.model_validate(parameters["stamp"])

    read = ingest(p.IngestParams.model_validate(parameters["ingest"]), seed)
    info = read["info"]
    bad = attack(read["images"], read["ledger"], read["test_images"], info, adversary, seed)
    images, ledger = bad["images"], bad["ledger"]
    check = check_plan(
        *(images, ledger, info, detecting, relabeling, training, stamp, model, warming),
        p.FeaturesParams.model_validate(parameters["features"]),
    )["report"]
    warm = warm_up(images, ledger, info, check, warming, model, seed)
    plain = train_plain(images, ledger, info, check, warming, model, seed)
    scored = detect(images, ledger, info, warm["net"], plain["net"], detecting, seed)["ledger"]
    planned = relabel(images, scored, info, relabeling, model, stamp, seed)
    twin = train_undefended(images, ledger, info, check, training, model, seed)
    defended = train_defended(
        *(images, planned["ledger"], planned["plan"], info, twin["net"], twin["history"]),
        *(training, model, stamp, p.USUAL_DEFENCE, seed),
    )
    net = defended["net"]
    triggered = bad["triggered_test_images"]
    predicted = predict(
        read["test_images"], triggered, read["test_ledger"], net, twin["net"], stamp
    )
    metrics = measure(
        predicted["predictions"], planned["ledger"], bad["oracle"], info, net, adversary
    )
    print(json.dumps(metrics))


def whole(written: Path) -> None:
    """`kedro run` in this process; the seconds that its checksums took go to ``written``."""
    from kedro.framework.cli.cli import main as kedro

    from counterdoor.io import checksum

    seconds = {"write": 0.0, "verify": 0.0}

    def clocked(name: str) -> Callable[..., None]:
        function = getattr(checksum, name)

        def call(*places: Path) -> None:
            began = time.perf_counter()
            try:
                function(*places)
            finally:
                seconds[name] += time.perf_counter() - began

        return call

    for name in seconds:
        setattr(checksum, name, clocked(name))
    sys.argv = ["kedro", "run"]
    try:
        kedro()
    finally:
        written.write_text(json.dumps(seconds))


def project_copy(folder: Path) -> Path:
    """A project without data and runs that uses the installed package."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "data").mkdir()
    (folder / "src").mkdir()  # a link in its place would lie outside the project for Kedro
    (folder / "src" / "counterdoor").symlink_to(ROOT / "src" / "counterdoor")
    return folder


def resolved_parameters(
    env: str | None = None, given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The parameters that a ``kedro run`` uses with ``--env`` and ``--params``, or without."""
    from counterdoor.config import VariantConfigLoader
    from counterdoor.settings import CONFIG_LOADER_ARGS

    options = {**CONFIG_LOADER_ARGS, "runtime_params": given}
    return VariantConfigLoader(str(ROOT / "conf"), env=env, **options)["parameters"]


def timed(command: list[str], cwd: Path) -> tuple[float, str]:
    """Seconds that a process takes, and what it prints."""
    environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - started, done.stdout


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(json.loads(options.bare.read_text()))
        return
    if options.whole:
        whole(options.whole)
        return
    from counterdoor.tracking import commit_tags, hardware

    kedro_seconds, bare_seconds, checksum_seconds = [], [], []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as name:
            folder = project_copy(Path(name) / "project")
            parameters = Path(name) / "parameters.json"
            parameters.write_text(json.dumps(resolved_parameters()))
            own = [sys.executable, str(Path(__file__).resolve())]
            told = Path(name) / "checksums.json"
            seconds, _ = timed([*own, "--whole", str(told)], folder)
            kedro_seconds.append(seconds)
            checksum_seconds.append(sum(json.loads(told.read_text()).values()))
            seconds, printed = timed([*own, "--bare", str(parameters)], folder)
            bare_seconds.append(seconds)
            tracked = next((folder / "data/08_reporting").rglob("metrics.json/*/metrics.json"))
            if json.loads(printed.splitlines()[-1]) != json.loads(tracked.read_text()):
                raise SystemExit("the two did not compute the same metrics")
    shares = [1 - b / k for k, b in zip(kedro_seconds, bare_seconds, strict=True)]
    sums = [c / k for k, c in zip(kedro_seconds, checksum_seconds, strict=True)]
    result = {
        "name": "overhead",
        "ratio": round(median(shares), 4),
        "values": {
            "kedro_seconds": [round(value, 2) for value in kedro_seconds],
            "bare_seconds": [round(value, 2) for value in bare_seconds],
            "checksum_seconds": [round(value, 3) for value in checksum_seconds],
            "checksum_share": round(median(sums), 4),
        },
        "commit": commit_tags(ROOT).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"kedro run  {median(kedro_seconds):7.1f} s")
    print(f"bare calls {median(bare_seconds):7.1f} s")
    print(f"Kedro, MLflow and report take {result['ratio']:.1%} of the run (bar: 25%)")
    print(f"of it, checksums of artifacts: {median(sums):.2%} of the run")


if __name__ == "__main__":
    main()
