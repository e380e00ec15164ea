"""How many the adaptive rule suspects, and whom, at poison ratios from 0 up.

For every attack, ratio and seed: ingest, attack, warm-up, detect with LGA, once by the
adaptive rule and once by the fixed 5 %. Test images are not looked at. The oracle is, to
grade the rule. ``true`` and ``suspected`` are shares of the untrusted samples.

    export OMP_NUM_THREADS=1
    python benchmarks/suspect_share.py [--seeds 0 1 2] [--ratios 0 0.05]
    python benchmarks/suspect_share.py --parquet FOLDER [--images 10000]

The second reads CIFAR-10 in Parquet and warms up as ``conf/cifar10`` does, with a narrower net.
"""

import argparse
from typing import Any

import numpy as np
import pandas as pd
from overhead import resolved_parameters

from counterdoor import params as p
from counterdoor.detectors import Adaptive, Fixed, SuspectRule
from counterdoor.engine import Engine
from counterdoor.metrics import detection_rates
from counterdoor.pipelines.attack.nodes import attack, prepare_attack
from counterdoor.pipelines.detect.nodes import detect
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.pipelines.warmup.nodes import learn_features, train_plain, warm_up

RULES: dict[str, SuspectRule] = {"adaptive": Adaptive(), "fixed": Fixed()}


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


def scored_case(
    parameters: dict[str, Any], read: dict[str, Any], adversary: dict[str, Any], seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """The scored ledger of one poisoned training set, and who is poisoned."""
    attacking = p.AttackParams.model_validate(adversary)
    bad = poisoned_case(parameters, read, attacking, seed)
    scored = scored_ledger(parameters, read["info"], bad, seed)
    return scored, bad["oracle"]["is_poisoned"].to_numpy()


def case(
    parameters: dict[str, Any], read: dict[str, Any], adversary: dict[str, Any], seed: int
) -> list[dict[str, Any]]:
    """What each rule makes of one poisoned training set."""
    scored, is_poisoned = scored_case(parameters, read, adversary, seed)
    score, label, trusted = (scored[name].to_numpy() for name in ("score", "label", "trusted"))
    poisoned = is_poisoned[~trusted]
    rows = []
    for name, rule in RULES.items():
        suspect = rule(score, label, trusted)[~trusted]
        rates = detection_rates(suspect, score[~trusted], poisoned)
        rows.append({"rule": name, "true": poisoned.mean(), "suspected": suspect.mean(), **rates})
    return rows


def spread(values: pd.Series) -> str:
    """``mean ± std`` in percent, of those that are numbers."""
    if values.isna().all():
        return ""
    return f"{100 * np.nanmean(values):.2f} ± {100 * np.nanstd(values, ddof=1):.2f}"


def main() -> None:
    """Measure, and print a Markdown row for each attack, ratio and rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0, 0.005, 0.01, 0.05, 0.1, 0.2])
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blend"])
    add_data_options(parser)
    options = parser.parse_args()
    cases: list[dict[str, object]] = [{"name": "none"}] if 0 in options.ratios else []
    cases += [
        {"name": name, "poison_ratio": ratio}
        for name in options.attacks
        for ratio in options.ratios
        if ratio
    ]
    parameters = parameters_of(options)
    ingesting = p.IngestParams.model_validate(parameters["ingest"])
    reads = {seed: ingest(ingesting, seed) for seed in options.seeds}
    print("| attack | rule | true | suspected, each seed | precision | TPR | AUROC |")
    print("|---|---|---|---|---|---|---|")
    for adversary in cases:
        made = [case(parameters, read, adversary, seed) for seed, read in reads.items()]
        found = pd.DataFrame([row for rows in made for row in rows])
        for name, rows in found.groupby("rule"):
            each = ", ".join(f"{100 * share:.2f}" for share in rows["suspected"])
            rates = [spread(rows[rate]) for rate in ("precision", "tpr", "auroc")]
            true = f"{100 * rows['true'].mean():.2f}"
            cells = [adversary["name"], str(name), true, each, *rates]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
