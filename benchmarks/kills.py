"""Kill a digits run at random moments, start it again, and compare what it ends with.

Every trial is a copy of the project of its own: `kedro run` is killed with SIGKILL at a moment
drawn from the time that an undisturbed run takes, and started again until it ends. The
nets and metrics must be those of the undisturbed run, byte for byte, and every artifact
must load.

    python benchmarks/kills.py [--kills 20] [--jobs 2] [--seed 0] [--json]

``ratio`` is the share of kills after which all was identical; anything below 1 is a defect.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from overhead import project_copy

NAMES = ("defended_net.safetensors", "undefended_net.safetensors", "metrics.json")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """`kedro run` on one thread, so that both processes add up numbers in the same order."""
    environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    environment |= {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "kedro", "run"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet)


def ends(folder: Path) -> dict[str, bytes]:
    """The newest version of what a run ends with."""
    found = {}
    for name in NAMES:
        files = sorted((folder / "data").rglob(f"{name}/*/{name}"), key=lambda f: f.parent.name)
        found[name] = files[-1].read_bytes() if files else b""
    return found


def broken_artifacts(folder: Path) -> list[str]:
    """Names of artifacts that do not load, and of files that were left half-written."""
    code = (
        "from pathlib import Path\n"
        "from kedro.framework.project import pipelines\n"
        "from kedro.framework.session import KedroSession\n"
        "from kedro.framework.startup import bootstrap_project\n"
        "bootstrap_project(Path.cwd())\n"
        "catalog = KedroSession.create(Path.cwd()).load_context().catalog\n"
        "made = pipelines['__default__'].all_outputs()\n"
        "for name in sorted(made & set(catalog.filter())):\n"
        "    try: catalog.load(name)\n"
        "    except Exception: print('BROKEN', name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("BROKEN")]


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, a thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    from counterdoor.tracking import commit_tags, hardware

    root = Path(__file__).resolve().parents[1]
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        whole = project_copy(Path(name) / "whole")
        began = time.perf_counter()
        if start(whole).wait():
            raise SystemExit("the undisturbed run failed")
        seconds = time.perf_counter() - began
        expected = ends(whole)
        drawn = [round(draw.uniform(0.0, seconds), 2) for _ in range(options.kills)]

        def trial(number: int) -> tuple[bool, list[str]]:
            """Kill, resume; whether it ended the same, and what is broken."""
            folder = project_copy(Path(name) / f"cut{number}")
            process = start(folder)
            time.sleep(drawn[number])
            process.kill()
            process.wait()
            if start(folder).wait():
                return False, ["the run could not be resumed"]
            same, broken = ends(folder) == expected, broken_artifacts(folder)
            print(f"killed after {drawn[number]} s: {same}", file=sys.stderr, flush=True)
            shutil.rmtree(folder)
            return same, broken

        with ThreadPoolExecutor(options.jobs) as pool:
            trials = list(pool.map(trial, range(options.kills)))
    identical = [same for same, _ in trials]
    broken = [name for _, names in trials for name in names]
    result = {
        "name": "kills",
        "ratio": sum(identical) / len(identical),
        "values": {
            "killed_after_seconds": drawn,
            "identical": identical,
            "broken_artifacts": broken,
            "undisturbed_seconds": round(seconds, 1),
        },
        "commit": commit_tags(root).get("commit", "unknown"),
        "hardware": hardware(),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{sum(identical)} of {len(identical)} killed runs ended with identical nets and metrics")
    print(f"broken artifacts: {broken or 'none'}")


if __name__ == "__main__":
    main()
