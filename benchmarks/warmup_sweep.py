"""How the warm-up's rate and gamma change detection, on training digits alone.

For every setting and seed: ingest, attack, warm-up, detect; then precision at the
suspect ratio and AUROC of the score. Nothing is tested: the test set is not looked at.
The oracle is, to grade the detector, as whoever chooses a default has to.

    export OMP_NUM_THREADS=1
    python benchmarks/warmup_sweep.py --ratio 0.05 --setting 0.02 0.2 --setting 0.05 0.2
"""

import argparse
from typing import Any

import pandas as pd
from overhead import resolved_parameters

from counterdoor import params as p
from counterdoor.metrics import detection_rates
from counterdoor.pipelines.attack.nodes import attack
from counterdoor.pipelines.detect.nodes import detect
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.pipelines.warmup.nodes import warm_up


def rates(parameters: dict[str, Any], seed: int) -> dict[str, float]:
    """Detection rates of one run."""
    read = ingest(p.IngestParams.model_validate(parameters["ingest"]), seed)
    adversary = p.AttackParams.model_validate(parameters["attack"])
    info = read["info"]
    bad = attack(read["images"], read["ledger"], read["test_images"], info, adversary, seed)
    images, ledger = bad["images"], bad["ledger"]
    model = p.ModelParams.model_validate(parameters["model"])
    warming = p.WarmupParams.model_validate(parameters["warmup"])
    net = warm_up(images, ledger, info, {}, warming, model, seed)["net"]
    detecting = p.DetectParams.model_validate(parameters["detect"])
    scored = detect(images, ledger, info, net, net, detecting, seed)["ledger"]
    kept = ~scored["trusted"].to_numpy()
    poisoned = bad["oracle"]["is_poisoned"].to_numpy()
    suspect, score = scored["suspect"].to_numpy(), scored["score"].to_numpy()
    return detection_rates(suspect[kept], score[kept], poisoned[kept])


def main() -> None:
    """Sweep, and print a Markdown row a setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratio", type=float, default=0.05, help="poison ratio")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--setting",
        type=float,
        nargs=2,
        action="append",
        metavar=("RATE", "GAMMA"),
        default=[],
    )
    options = parser.parse_args()
    print("| rate | gamma | poison ratio | n | precision | worst | AUROC |")
    print("|---|---|---|---|---|---|---|")
    for rate, gamma in options.setting:
        parameters = resolved_parameters()
        parameters["attack"]["poison_ratio"] = options.ratio
        recipe = parameters["warmup"]["recipe"]
        recipe |= {"learning_rate": rate, "loss": {"name": "flooding", "gamma": gamma}}
        found = pd.DataFrame([rates(parameters, seed) for seed in options.seeds])
        precision, area = found["precision"], found["auroc"]
        print(
            f"| {rate:g} | {gamma:g} | {options.ratio:g} | {len(found)} "
            f"| {precision.mean():.3f} ± {precision.std():.3f} | {precision.min():.3f} "
            f"| {area.mean():.3f} ± {area.std():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
