"""Are detection and pseudo-labels as good as published? The method's parts, one at a time.

For each attack and seed, on CIFAR-10 in Parquet with the parameters of ``conf/cifar10``:
ingest, attack, warm-up, LGA with a fixed share of suspects, and what VD and NC call these: as
published, and as ``conf/cifar10`` has them (*aligned*; of VD all names, and the surest alone, which
it does; NC by the last layer's features, by those of all layers, and by those of patches).
*Longer* is VD aligned, all named, trained by ``LONGER``. Test images are not looked at. The oracle
is, to grade; NC's alignment was chosen by seed 0 with 10,000 images, and ``LONGER`` by validation
images with 10,000. ``nc-layers (trusted)`` is NC's accuracy on the trusted images, which a defender
can see; they are among those that its centres are of.

    python benchmarks/fidelity.py --parquet FOLDER --records FILE
    python benchmarks/fidelity.py --records FILE --table

``--records`` gets a line for each attack and seed; what stands in it is not made again.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
from attack_strength import Records
from overhead import resolved_parameters

from counterdoor import params as p
from counterdoor.engine import Engine
from counterdoor.features.learnt import KEY
from counterdoor.ledger import DROPPED
from counterdoor.metrics import detection_rates
from counterdoor.pipelines.attack.nodes import attack
from counterdoor.pipelines.detect.nodes import detect
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.pipelines.relabel.nodes import relabel
from counterdoor.pipelines.warmup.nodes import learn_features, warm_up
from counterdoor.stamp import Stamp
from counterdoor.tracking import commit_tags, hardware

NAMERS = {
    "vd": "VD",
    "vd-aligned": "VD, aligned",
    "vd-longer": "VD, aligned, longer",
    "vd-surest": "VD, aligned, the surest quarter",
    "nc": "NC",
    "nc-aligned": "NC, aligned",
    "nc-layers": "NC, aligned, all layers",
    "nc-patches": "NC, aligned, patches",
}

LONGER = {
    "epochs": 32,
    "batch_size": 64,
    "muon": {"learning_rate": 0.12, "momentum": 0.6},
    "learning_rate": 0.4,
    "weight_decay": 1.33e-3,
    "label_smoothing": 0.2,
}
"""What the longer recipe of VD changes in that of ``conf/cifar10``."""


def case(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Precision of the suspects and accuracy of each labeler on them."""
    parameters = resolved_parameters("cifar10")
    source = {"name": "parquet", "path": options.parquet, "limit": options.images}
    parameters["ingest"]["source"] = source
    parameters["model"] |= {"widths": options.widths}
    engine = Engine.model_validate(parameters["engine"])
    model = p.ModelParams.model_validate(parameters["model"])
    detecting = p.DetectParams.model_validate(
        {"detector": {"name": "lga"}, "suspect_ratio": options.suspects}
    )
    read = ingest(p.IngestParams.model_validate(parameters["ingest"]), seed)
    info, first = read["info"], read["test_images"][:1]
    adversary = p.AttackParams.model_validate({"name": name, "poison_ratio": options.poison})
    bad = attack(read["images"], read["ledger"], first, info, adversary, seed)
    images, ledger, oracle = bad["images"], bad["ledger"], bad["oracle"]

    started = time.perf_counter()
    warming = p.WarmupParams.model_validate(parameters["warmup"])
    net = warm_up(images, ledger, info, {}, warming, model, seed, engine)["net"]
    scored = detect(images, ledger, info, net, net, detecting, seed, engine)["ledger"]
    seconds = {"detect": round(time.perf_counter() - started, 1)}
    untrusted = ~scored["trusted"].to_numpy()
    suspect, score = scored["suspect"].to_numpy(), scored["score"].to_numpy()
    rates = detection_rates(
        suspect[untrusted], score[untrusted], oracle["is_poisoned"].to_numpy()[untrusted]
    )
    found: dict[str, Any] = {"precision": rates["precision"], "auroc": rates["auroc"]}
    true = oracle["true_label"].to_numpy()
    features: dict[str, Any] = {}
    for labeler in options.labelers:
        started = time.perf_counter()
        name, *how = labeler.split("-")
        source = "patches" if how == ["patches"] else "simclr"
        own = resolved_parameters("cifar10", {"labeler_name": name, "features_name": source})
        if source == "simclr":
            own["features"]["recipe"]["epochs"] = options.feature_epochs
            own["features"]["contrast"]["temperature"] = options.temperature
            own["features"]["contrast"]["views"]["size"] = options.view_size
        if name == "vd" and how != ["surest"]:
            own["relabel"]["labeler"] |= {"surest": 1, "align": how != []}
            if how == ["longer"]:
                own["relabel"]["labeler"]["recipe"] |= LONGER
        elif not how:
            own["relabel"]["labeler"] = {"name": name}
        naming = p.RelabelParams.model_validate(own["relabel"])
        learning = p.FeaturesParams.model_validate(own["features"])
        features[source] = known = learn_features(
            *(images, {}, learning, model, detecting, naming, seed, engine),
            cached=features.get(source),
        )["features"]
        if source == "simclr" and how != ["layers"]:  # what the net's head would get
            known = {KEY: known[KEY]}
        stamp = Stamp.model_validate(own["stamp"])
        named = relabel(
            *(images, scored, info, naming, model, stamp, seed, engine),
            features=known,
            learner=learning,
        )["ledger"]
        names = named["pseudo_label"].to_numpy()
        right = names == true
        found[labeler] = float(right[suspect & (names != DROPPED)].mean())
        if name == "nc":
            found[f"{labeler} (trusted)"] = float(right[~untrusted].mean())
        seconds[labeler] = round(time.perf_counter() - started, 1)
    return found | {
        "n_train": len(ledger),
        "n_trusted": int(ledger["trusted"].sum()),
        "n_suspects": int(suspect.sum()),
        "seconds": seconds,
    }


def table(records: Records) -> str:
    """Markdown: a row an attack and a scale, mean ± std over the seeds."""
    found = pd.DataFrame(records.all)
    rows = [
        "| attack | images | net; epochs; pixels; temperature | n | LGA: precision | "
        f"{' | '.join(NAMERS.values())} |",
        f"|---|---|---|---|---|{'---|' * len(NAMERS)}",
    ]
    found["net"] = ["compact, " + "/".join(map(str, widths)) for widths in found["widths"]]
    for key in ("feature_epochs", "view_size", "temperature"):
        found["net"] += "; " + found[key].astype(str)
    for (name, images, net), each in found.groupby(["attack", "n_train", "net"], sort=False):
        each = each.groupby("seed").first()  # lines of several labelers, one seed
        cells = [str(name), f"{images:,}", str(net), str(len(each))]
        for key in ("precision", *NAMERS):
            values = 100 * each.get(key, pd.Series(dtype=float)).dropna()
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread} %" if len(values) else "")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is not measured yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parquet", help="folder with CIFAR-10 in Parquet")
    parser.add_argument("--records", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blend"])
    parser.add_argument("--labelers", nargs="+", default=["vd"], choices=list(NAMERS))
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--widths", type=int, nargs=3, default=[64, 256, 256], help="of the net")
    parser.add_argument("--feature-epochs", type=int, default=10, help="of NC's features")
    parser.add_argument("--view-size", type=int, default=24, help="side of their views, pixels")
    parser.add_argument("--temperature", type=float, default=0.2, help="of their loss")
    parser.add_argument("--poison", type=float, default=0.1)
    parser.add_argument("--suspects", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="print what is in the records")
    options = parser.parse_args()
    records = Records(options.records)
    if options.table:
        print(table(records))
        return
    if options.parquet is None:
        parser.error("--parquet is needed to measure")
    learning = ("feature_epochs", "view_size", "temperature")
    told = ("images", "widths", "poison", "suspects", "labelers", *learning)
    for seed in options.seeds:
        for name in options.attacks:
            settings = {"attack": name, "seed": seed, **{k: getattr(options, k) for k in told}}
            if records.find(settings) is None:
                about = {"commit": commit_tags(Path(__file__).parent).get("commit")}
                made = case(options, name, seed)
                records.add({**settings, **made, **about, "hardware": hardware()})
                print(records.all[-1], flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
