"""Cost of the defence as a multiple of one undefended training, from whole runs.

    python benchmarks/cost.py [--env cifar10] [--params a=b,c=d] [--runs 3] [--json]

``ratio`` is the median of (warm-up + detect + relabel + defended training) / undefended
training, in seconds of the stages; the project's bar is 1.35. Every run is a project copy
without data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import pandas as pd
from overhead import project_copy

DEFENCE = ["warmup", "detect", "relabel", "defended"]


def stage_seconds(environment: str | None, params: str) -> dict[str, float]:
    """Seconds of each stage of one run."""
    command = [sys.executable, "-m", "kedro", "run"]
    command += ["--env", environment] if environment else []
    command += ["--params", params] if params else []
    variables = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    with tempfile.TemporaryDirectory() as name:
        folder = project_copy(Path(name) / "project")
        subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True)
        (file,) = (folder / "data").rglob("seconds.parquet/*/seconds.parquet")
        table = pd.read_parquet(file)
    return dict(zip(table["stage"], table["seconds"].round(2), strict=True))


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", help="configuration environment, such as cifar10")
    parser.add_argument("--params", default="", help="run parameters")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    from counterdoor.tracking import commit_tags, hardware

    runs = [stage_seconds(options.env, options.params) for _ in range(options.runs)]
    ratios = [sum(run[stage] for stage in DEFENCE) / run["undefended"] for run in runs]
    result = {
        "name": "cost",
        "ratio": round(median(ratios), 3),
        "values": {"env": options.env or "base", "params": options.params, "seconds": runs},
        "commit": commit_tags(Path(__file__).parent).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
        return
    for run in runs:
        print("  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in run.items()))
    print(f"the defence costs {result['ratio']:.2f} undefended trainings (bar: 1.35)")


if __name__ == "__main__":
    main()
