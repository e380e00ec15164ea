"""Which detector sees which attack: how it ranks the poisoned, and whom it suspects.

For every attack, detector and seed: ingest, attack, the warm-up that the detector needs, detect;
once with the fixed 5 %, once with a rule that looks at the scores where one goes with the
detector (``lga``: adaptive, ``ac``: apart, ``agpd`` with the weight "sure": strange,
``either``: those of any of its members). Test
images are not looked at. The oracle is, to grade the detectors. A net that several detectors
look at is trained once.

    export OMP_NUM_THREADS=1
    python benchmarks/detection.py --records detection.jsonl [--parquet FOLDER] [--ratio 0.01]
    python benchmarks/detection.py --records detection.jsonl --table

``--ratio`` is the share of all samples, and without it each attack has its own default; a
clean-label attack takes at most 95 % of its class. ``--records`` is added to, and what is in it is
not measured again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from attack_strength import ATTACKS, Records
from suspect_share import add_data_options, parameters_of, poisoned_case, scored_ledger

from counterdoor import params as p
from counterdoor.attack_page import percent
from counterdoor.attacks import AttackBase, NoAttack
from counterdoor.checkpoint import results_shared_in
from counterdoor.detectors import Fixed
from counterdoor.metrics import detection_rates
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.tracking import commit_tags, hardware

DETECTORS: dict[str, dict[str, Any]] = {
    "lga": {"detector_name": "lga", "detect": {"suspect_ratio": "adaptive"}},
    "ac": {"detector_name": "ac", "detect": {"suspect_ratio": "apart"}},
    "agpd sure": {
        "detector_name": "agpd",
        "detect": {"suspect_ratio": {"name": "strange"}, "detector": {"weight": "sure"}},
    },
    "either": {"detector_name": "either", "detect": {"suspect_ratio": "either"}},
    "agpd": {
        "detector_name": "agpd",
        "detect": {"suspect_ratio": 0.05, "detector": {"weight": "trusted"}},
    },
    **{
        name: {"detector_name": name, "detect": {"suspect_ratio": 0.05}}
        for name in ("scan", "spectre", "ensemble")
    },
}


def with_ratio(adversary: AttackBase, ratio: float | None, num_classes: int) -> AttackBase:
    """The attack on so many of all samples."""
    if ratio is None or isinstance(adversary, NoAttack):
        return adversary
    share = min(ratio * num_classes, 0.95) if adversary.clean_label else ratio
    return adversary.model_copy(update={"poison_ratio": share})


def graded(
    parameters: dict[str, Any], info: dict[str, Any], bad: dict[str, Any], seed: int
) -> dict[str, Any]:
    """The rates of one detector on one poisoned training set."""
    scored = scored_ledger(parameters, info, bad, seed)
    score, label, trusted = (scored[name].to_numpy() for name in ("score", "label", "trusted"))
    poisoned = bad["oracle"]["is_poisoned"].to_numpy()[~trusted]
    rule = p.DetectParams.model_validate(parameters["detect"]).suspect_ratio
    suspect = {"fixed": Fixed()(score, label, trusted), "own": scored["suspect"].to_numpy()}
    found: dict[str, Any] = {"rule": str(rule), "true": poisoned.mean()}
    for name, each in suspect.items():
        rates = detection_rates(each[~trusted], score[~trusted], poisoned)
        found |= {f"{name}_{rate}": rates[rate] for rate in ("precision", "tpr")}
        found |= {f"{name}_share": each[~trusted].mean(), "auroc": rates["auroc"]}
    return {name: each if name == "rule" else float(each) for name, each in found.items()}


def table(records: Path) -> str:
    """Markdown: a row an attack and detector, mean ± std over the seeds in percent."""
    found = pd.DataFrame([json.loads(line) for line in records.read_text().splitlines()])
    rows = [
        "| data | attack | poisoned | detector | n | AUROC | precision at 5 % "
        "| own rule: suspected | precision | found |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    found["ratio"] = found["ratio"].fillna(-1)
    for (data, name, _, detector), each in found.groupby(
        ["data", "attack", "ratio", "detector"], sort=False
    ):
        columns = ("auroc", "fixed_precision", "own_share", "own_precision", "own_tpr")
        true = f"{100 * each['true'].mean():.1f}"
        rates = [percent(each[c].dropna()) if each[c].notna().any() else "" for c in columns]
        cells = [data, name, true, detector, str(len(each)), *rates]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is not measured yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, required=True)
    add_data_options(parser)
    parser.add_argument(
        "--attacks", nargs="+", choices=["none", *ATTACKS], default=["none", *ATTACKS]
    )
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--ratio", type=float, help="share of the samples that is poisoned")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nets", type=Path, help="folder to keep trained nets in, for another run")
    parser.add_argument("--table", action="store_true", help="print the table of --records")
    options = parser.parse_args()
    if options.table:
        print(table(options.records))
        return
    records = Records(options.records)
    about = {"hardware": hardware(), "commit": commit_tags(Path(__file__).parent).get("commit")}
    data = f"CIFAR-10, {options.images}" if options.parquet else "digits"
    configured = {name: parameters_of(options, DETECTORS[name]) for name in options.detectors}
    if options.nets:
        options.nets.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        ingesting = configured[options.detectors[0]]["ingest"]
        read = ingest(p.IngestParams.model_validate(ingesting), seed)
        for name in options.attacks:
            told = {"data": data, "attack": name, "ratio": options.ratio, "seed": seed}
            missing = [
                each for each in options.detectors if not records.find(told | {"detector": each})
            ]
            if not missing:
                continue
            num_classes = len(read["info"]["class_names"])
            adversary = ATTACKS.get(name, NoAttack())
            attacking = p.AttackParams(with_ratio(adversary, options.ratio, num_classes))
            bad = poisoned_case(configured[missing[0]], read, attacking, seed)
            with (
                tempfile.TemporaryDirectory() as folder,
                results_shared_in(options.nets or Path(folder)),
            ):
                for each in missing:
                    rates = graded(configured[each], read["info"], bad, seed)
                    records.add(told | {"detector": each} | rates | about)
                    print(seed, name, each, f"AUROC {rates['auroc']:.3f}", flush=True)


if __name__ == "__main__":
    main()
