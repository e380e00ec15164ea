"""What the verdict says of clean and poisoned data: the calibration of ``counterdoor.verdict``.

For every attack, poison ratio and seed: ingest, attack, warm-up, detect, judge, as the pipeline
``defend`` does it, without trusted images. Test images are not looked at. The verdict does not
depend on the training that follows.

    export OMP_NUM_THREADS=1
    python benchmarks/verdicts.py --records FILE [--seeds 0 1 2 3 4]
    python benchmarks/verdicts.py --records FILE --parquet FOLDER [--images 10000] [--seeds 0 1]
    python benchmarks/verdicts.py --records FILE --table

The second line reads CIFAR-10 in Parquet and warms up as ``conf/cifar10`` does, with a narrower
net. Every case is appended to ``--records`` as one JSON line, and not made again.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from attack_strength import Records
from detection import add_data_options, parameters_of, poisoned_case, scored_ledger

from counterdoor import params as p
from counterdoor.defending import spelt_out
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.tracking import commit_tags, hardware
from counterdoor.verdict import Judge

ATTACKS = ("badnets", "blend", "sig", "wanet")
RATIOS = (0.01, 0.05, 0.1)
ANSWERS = ("evidence", "undecided", "no evidence")


def case(parameters: dict[str, Any], name: str, ratio: float, seed: int) -> dict[str, Any]:
    """The verdict on one data set, and how good the suspects are."""
    read = ingest(p.IngestParams.model_validate(parameters["ingest"]), seed)
    info = read["info"]
    # Of a clean-label attack the ratio is one of the target class, which it does not fill.
    share = min(ratio * len(info["class_names"]), 0.9) if name == "sig" else ratio
    adversary = {"name": name, **({"poison_ratio": share} if ratio else {})}
    bad = poisoned_case(parameters, read, p.AttackParams.model_validate(adversary), seed)
    scored = scored_ledger(parameters, info, bad, seed)
    poisoned = bad["oracle"]["is_poisoned"].to_numpy()
    detector = p.DetectParams.model_validate(parameters["detect"]).detector
    verdict = Judge()(scored, info["class_names"], in_parts=detector.in_parts)
    hit = int((poisoned & scored["suspect"].to_numpy()).sum())
    return {
        "answer": verdict.answer,
        "chance": verdict.chance,
        "valley": verdict.valley,
        "n": len(scored),
        "poisoned": int(poisoned.sum()),
        "suspects": verdict.suspects,
        "suspects_poisoned": hit,
    }


def table(records: Path) -> str:
    """Markdown: how often each answer was given, a row a data set, attack and ratio."""
    found = pd.DataFrame(Records(records).all)
    rows = [
        "| detector | data | attack | poisoned | n | evidence | undecided | no evidence "
        "| precision | found |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    found["detector"] = (
        found.get("detector", pd.Series(dtype=str)).reindex(found.index).fillna("lga")
    )
    keys = ["detector", "data", "attack", "ratio"]
    for (detector, data, name, ratio), each in found.groupby(keys, sort=False):
        answers = [str((each["answer"] == answer).sum()) for answer in ANSWERS]
        suspects, hit = each["suspects"].sum(), each["suspects_poisoned"].sum()
        precision = f"{hit / suspects:.1%}" if suspects else ""
        part = f"{hit / each['poisoned'].sum():.1%}" if ratio else ""
        cells = [detector, data, name, f"{ratio:.0%}", str(len(each)), *answers, precision, part]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is not measured yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, required=True)
    add_data_options(parser)
    parser.add_argument("--detector", default="ac", help="of those that are judged")
    parser.add_argument("--attacks", nargs="+", default=["none", *ATTACKS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true", help="print the table of --records")
    options = parser.parse_args()
    if options.table:
        print(table(options.records))
        return
    given = spelt_out({"detector_name": options.detector}, ["defend"])
    parameters = parameters_of(options, given)
    records, data = Records(options.records), "CIFAR-10" if options.parquet else "digits"
    about = {"hardware": hardware(), "commit": commit_tags(Path(__file__).parent).get("commit")}
    for seed in options.seeds:
        cases = [
            (each, r) for each in options.attacks for r in (RATIOS if each != "none" else (0.0,))
        ]
        for name, ratio in cases:
            told: dict[str, Any] = {"data": data, "attack": name, "ratio": ratio, "seed": seed}
            told["detector"] = options.detector
            if records.find(told):
                continue
            told |= case(parameters, name, ratio, seed)
            records.add(told | about)
            print(seed, name, ratio, told["answer"], told["suspects_poisoned"], flush=True)


if __name__ == "__main__":
    main()
