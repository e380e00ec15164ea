"""Which detector sees which attack: how it ranks the poisoned, and whom it suspects.

For every attack, detector and seed: ingest, attack, the warm-up that the detector needs, detect;
once with the fixed 5 %, once with a rule that looks at the scores where one goes with the
detector (``lga``: adaptive, ``ac``: apart, ``agpd`` with the weight "sure": strange,
``pattern``: carriers, ``either``: those of any of its members). Test images are not looked at.
The oracle is, to grade the detectors. A net that several detectors look at is trained once.

    export OMP_NUM_THREADS=1
    python benchmarks/detection.py --records detection.jsonl [--parquet FOLDER] [--ratios 0.01 0.1]
    python benchmarks/detection.py --records detection.jsonl --table

``--ratios`` are shares of all samples, and without them each attack has its own default; a
clean-label attack takes at most 95 % of its class. ``--parquet`` warms up as ``conf/cifar10``
does, with a narrower net. ``--records`` is added to, and what is in it is
not measured again.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from attack_strength import ATTACKS, Records
from overhead import resolved_parameters

from counterdoor import params as p
from counterdoor.attack_page import percent
from counterdoor.attacks import AttackBase, NoAttack
from counterdoor.checkpoint import results_shared_in
from counterdoor.detectors import Fixed
from counterdoor.engine import Engine
from counterdoor.metrics import detection_rates
from counterdoor.pipelines.attack.nodes import attack, prepare_attack
from counterdoor.pipelines.detect.nodes import detect
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.pipelines.warmup.nodes import check_plan, learn_features, train_plain, warm_up
from counterdoor.stamp import Stamp
from counterdoor.tracking import commit_tags, hardware

DETECTORS: dict[str, dict[str, Any]] = {
    "lga": {"detector_name": "lga", "detect": {"suspect_ratio": "adaptive"}},
    "ac": {"detector_name": "ac", "detect": {"suspect_ratio": "apart"}},
    "agpd sure": {
        "detector_name": "agpd",
        "detect": {"suspect_ratio": {"name": "strange"}, "detector": {"weight": "sure"}},
    },
    "pattern": {"detector_name": "pattern", "detect": {"suspect_ratio": "carriers"}},
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


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What :func:`parameters_of` reads."""
    parser.add_argument("--parquet", help="CIFAR-10 in Parquet, in place of the digits")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--widths", type=int, nargs=3, default=[32, 64, 128], help="of the net")


def parameters_of(
    options: argparse.Namespace, given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The parameters of the embedded default, or of CIFAR-10 with a narrower net."""
    if options.parquet is None:
        return resolved_parameters(None, given)
    parameters = resolved_parameters("cifar10", given)
    source = {"name": "parquet", "path": options.parquet, "limit": options.images}
    parameters["ingest"]["source"] = source
    parameters["model"] |= {"widths": options.widths}
    return parameters


def poisoned_case(
    parameters: dict[str, Any], read: dict[str, Any], attacking: p.AttackParams, seed: int
) -> dict[str, Any]:
    """One poisoned training set: ``images``, ``ledger`` and ``oracle``."""
    images, ledger, info, tests = (read[k] for k in ("images", "ledger", "info", "test_images"))
    engine = Engine.model_validate(parameters["engine"])
    made = prepare_attack(images, ledger, info, attacking, seed, engine)["preparation"]
    return attack(images, ledger, tests[:1], info, attacking, seed, made)


def scored_ledger(
    parameters: dict[str, Any], info: dict[str, Any], bad: dict[str, Any], seed: int
) -> pd.DataFrame:
    """The ledger that ``detect`` makes of a poisoned training set, after its warm-up."""
    engine = Engine.model_validate(parameters["engine"])
    images, ledger = bad["images"], bad["ledger"]
    model = p.ModelParams.model_validate(parameters["model"])
    warming = p.WarmupParams.model_validate(parameters["warmup"])
    detecting = p.DetectParams.model_validate(parameters["detect"])
    learning = p.FeaturesParams.model_validate(parameters["features"])
    relabelling = p.RelabelParams.model_validate({"labeler": {"name": "drop"}, "trusted_stamps": 0})
    training = p.TrainParams.model_validate(parameters["train"])
    stamp = Stamp.model_validate(parameters["stamp"])
    check_plan(  # that the nets that the detector looks at are trained, among others
        images, ledger, info, detecting, relabelling, training, stamp, model, warming, learning
    )
    net = warm_up(images, ledger, info, {}, warming, model, seed, engine)["net"]
    plain = train_plain(images, ledger, info, {}, warming, model, seed, engine)["net"]
    features = learn_features(
        images, {}, learning, model, detecting, relabelling, seed, engine=engine
    )["features"]
    found = detect(
        images, ledger, info, net, plain, detecting, seed, engine=engine, features=features
    )
    scored: pd.DataFrame = found["ledger"]
    return scored


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
    found = pd.DataFrame(Records(records).all)
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
    parser.add_argument(
        "--ratios", nargs="+", type=float, default=[None], help="shares of the samples poisoned"
    )
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
        cases = [
            (name, ratio)
            for name in options.attacks
            for ratio in (options.ratios if name in ATTACKS else [0.0])
        ]
        for name, ratio in cases:
            told = {"data": data, "attack": name, "ratio": ratio, "seed": seed}
            missing = [
                each for each in options.detectors if not records.find(told | {"detector": each})
            ]
            if not missing:
                continue
            num_classes = len(read["info"]["class_names"])
            adversary = ATTACKS.get(name, NoAttack())
            attacking = p.AttackParams(with_ratio(adversary, ratio, num_classes))
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
