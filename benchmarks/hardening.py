"""Everything that users and attackers have broken a tool like this with, tried on this one.

    python benchmarks/hardening.py [--only values models] [--share 1.0] [--json]

Each family is a module of ``benchmarks/hostile``, or ``benchmarks/kills.py``. Printed are how many
things were tried, how many came out right, the seconds, and a line for each that did not. The exit
code is 1 if anything came out wrong, or less was tried than :data:`FAMILIES` asks for.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

FAMILIES = {
    "values": 500,
    "damage": 200,
    "content": 80,
    "first_runs": 20,
    "databases": 20,
    "kills": 50,
    "models": 100,
    "names": 20,
    "layouts": 20,
    "parquet": 20,
    "exports": 72,
    "defend": 2,
}
"""By module, how many things it has to try at least."""


def run(family: str, least: int) -> dict[str, object]:
    """Try all that a family has, in an empty folder."""
    module = "kills" if family == "kills" else f"hostile.{family}"
    attempts = importlib.import_module(module).attempts
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = list(attempts(Path(folder), least))
    bad = {name: wrong for name, wrong in outcomes if wrong is not None}
    return {
        "family": family,
        "least": least,
        "tried": len(outcomes),
        "good": len(outcomes) - len(bad),
        "seconds": round(time.perf_counter() - started, 1),
        "bad": bad,
    }


def main() -> None:
    """Try the families that were asked for, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--share", type=float, default=1.0, help="Of what is to be tried.")
    parser.add_argument("--json", action="store_true", help="One JSON object a family.")
    options = parser.parse_args()
    failed = False
    for family in options.only:
        told = run(family, max(1, round(options.share * FAMILIES[family])))
        failed |= bool(told["bad"]) or told["tried"] < told["least"]
        if options.json:
            print(json.dumps(told), flush=True)
            continue
        print("{family:<12} {tried:>4} tried, {good:>4} good, {seconds:>6} s".format(**told))
        for name, wrong in told["bad"].items():
            print(f"  {name!a}: {wrong}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
