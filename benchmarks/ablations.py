"""What each option of the stamp rule does, measured on a validation split of the training images.

For every seed: draw training and validation images from the training set, poison them
(``--attack``), warm up, suspect, name the suspects, and train the undefended twin; then one
defended training a setting. Test images are never read. Every measurement is appended to
``--records`` as one JSON line, and is not made again when it stands there.

    export OMP_NUM_THREADS=1
    python benchmarks/ablations.py --parquet FOLDER --records FILE [--attack blend] [--only TEXT]
    python benchmarks/ablations.py --parquet FOLDER --records FILE --unknown
    python benchmarks/ablations.py --records FILE --table

Recipes and detector are those of ``conf/cifar10``, with fewer images and epochs and a smaller net;
``--sgd`` lets SGD step the convolutions too, in place of Muon. ``--unknown`` takes what ``defend``
does in that environment, where nobody is trusted: detector ``ac``, and who names its suspects.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from overhead import resolved_parameters

from counterdoor import labelers
from counterdoor import params as p
from counterdoor.attacks import poison
from counterdoor.defending import spelt_out
from counterdoor.engine import Engine
from counterdoor.features import features_of
from counterdoor.ledger import DROPPED, new_ledger, stratified_rows
from counterdoor.metrics import attack_success_rate, class_accuracies, clean_accuracy
from counterdoor.models import NormalisedNet, build_net
from counterdoor.pipelines.detect.nodes import detect
from counterdoor.pipelines.warmup.nodes import learn_features, warm_up
from counterdoor.recipe import Recipe
from counterdoor.relabeling import ledger_samples, make_plan, plan_samples
from counterdoor.seeding import numpy_generator
from counterdoor.sources import Parquet
from counterdoor.stamp import Stamp
from counterdoor.tracking import commit_tags, hardware
from counterdoor.training import fit, predict_classes

PAPER_STAMP = {"size": 2, "colour": "mean"}
WHITE_2 = {"size": 2, "colour": "white"}
WHITE_3 = {"size": 3, "colour": "white"}

TWICE = {"trusted_stamps": 1, "agreed_stamps": 0.02, "stamp_repeats": 2}

# name: (stamp, suspect ratio, options of make_plan, changes of the recipe, who names suspects)
Setting = tuple[dict[str, Any], float | str, dict[str, Any], dict[str, Any], str]
SETTINGS: dict[str, Setting] = {
    "the paper's rule: grey 2x2": (PAPER_STAMP, 0.05, {}, {}, "vd"),
    "… with true labels": (PAPER_STAMP, 0.05, {}, {}, "oracle"),
    "… twice the epochs": (PAPER_STAMP, 0.05, {}, {"epochs": 2}, "vd"),
    "… suspects 10 %": (PAPER_STAMP, 0.10, {}, {}, "vd"),
    "… stamped suspects 3 times": (PAPER_STAMP, 0.05, {"stamp_repeats": 3}, {}, "vd"),
    "… trusted stamps": (PAPER_STAMP, 0.05, {"trusted_stamps": 1}, {}, "vd"),
    "white 2x2": (WHITE_2, 0.05, {}, {}, "vd"),
    "white 3x3": (WHITE_3, 0.05, {}, {}, "vd"),
    "white 3x3, label smoothing off": (WHITE_3, 0.05, {}, {"label_smoothing": 0.0}, "vd"),
    "white 3x3, trusted stamps": (WHITE_3, 0.05, {"trusted_stamps": 1}, {}, "vd"),
    "white 3x3, agreed stamps 5 %": (WHITE_3, 0.05, {"agreed_stamps": 0.05}, {}, "vd"),
    "white 3x3, calm stamps 5 %": (WHITE_3, 0.05, {"calm_stamps": 0.05}, {}, "vd"),
    "white 3x3, trusted stamps, suspects twice": (
        WHITE_3,
        0.05,
        {"trusted_stamps": 1, "stamp_repeats": 2},
        {},
        "vd",
    ),
    "white 3x3, trusted stamps, agreed stamps 2 %, suspects twice": (
        WHITE_3,
        0.05,
        TWICE,
        {},
        "vd",
    ),
    "white 3x3, trusted stamps, agreed stamps 2 %, suspects 10 %": (
        WHITE_3,
        0.10,
        {"trusted_stamps": 1, "agreed_stamps": 0.02},
        {},
        "vd",
    ),
    "white 3x3, trusted stamps, agreed stamps 2 %, suspects twice, as many as stand out": (
        WHITE_3,
        "adaptive",
        TWICE,
        {},
        "vd",
    ),
    "… suspects once": (
        *(WHITE_3, "adaptive", {"trusted_stamps": 1, "agreed_stamps": 0.02}, {}, "vd"),
    ),
    "… the surest half alone, twice": (WHITE_3, "adaptive", TWICE, {}, "vd surest half"),
    "… the surest three quarters, twice": (
        WHITE_3,
        "adaptive",
        TWICE,
        {},
        "vd surest three quarters",
    ),
    "… the surest half, balanced, twice": (
        *(WHITE_3, "adaptive", TWICE | {"balanced_stamps": True}, {}, "vd surest half"),
    ),
    "… the surest half aligned, balanced, twice": (
        *(WHITE_3, "adaptive", TWICE | {"balanced_stamps": True}, {}, "vd surest half aligned"),
    ),
    "… the surest quarter aligned, balanced, twice": (
        *(WHITE_3, "adaptive", TWICE | {"balanced_stamps": True}, {}, "vd surest quarter aligned"),
    ),
    "… the surest quarter, wrong names left out": (
        *(WHITE_3, "adaptive", TWICE | {"balanced_stamps": True}, {}),
        "vd surest quarter aligned, wrong left out",
    ),
    "… the surest half aligned, once": (
        *(WHITE_3, "adaptive", TWICE | {"stamp_repeats": 1}, {}, "vd surest half aligned"),
    ),
    "… the surest half aligned, twice, agreed stamps 10 %": (
        *(WHITE_3, "adaptive", TWICE | {"agreed_stamps": 0.1}, {}, "vd surest half aligned"),
    ),
}
NAMERS: dict[str, dict[str, Any]] = {
    "vd surest half": {"surest": 0.5},
    "vd surest three quarters": {"surest": 0.75},
    "vd surest half aligned": {"surest": 0.5, "align": True},
    "vd surest quarter aligned": {"surest": 0.25, "align": True},
    "ud aligned": {"align": True},
    "nc": {"distance": "euclidean", "align": False},
    "nc aligned": {},
}

WRONG = ", wrong left out"

FIFTH = {"agreed_stamps": 0.2, "stamp_repeats": 2}
NOT_TRUSTED: dict[str, Setting] = {
    "nc, agreed stamps 2 %": (WHITE_3, "apart", FIFTH | {"agreed_stamps": 0.02}, {}, "nc"),
    "nc, agreed stamps 20 %": (WHITE_3, "apart", FIFTH, {}, "nc"),
    "nc, all agreed stamped, suspects once": (WHITE_3, "apart", {"agreed_stamps": 1.0}, {}, "nc"),
    "nc aligned, agreed stamps 20 %": (WHITE_3, "apart", FIFTH, {}, "nc aligned"),
    "ud, agreed stamps 20 %": (WHITE_3, "apart", FIFTH, {}, "ud"),
    "ud aligned, agreed stamps 20 %": (WHITE_3, "apart", FIFTH, {}, "ud aligned"),
    "true labels, agreed stamps 20 %": (WHITE_3, "apart", FIFTH, {}, "oracle"),
}


class Case:
    """All that the settings of one seed share."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> None:
        given = spelt_out({}, ["defend"]) if options.unknown else {}
        given |= {"attack_name": options.attack}
        self.parameters = resolved_parameters("cifar10", given)
        self.engine = Engine.model_validate(self.parameters["engine"])
        model = self.parameters["model"] | {"widths": options.widths}
        self.model = p.ModelParams.model_validate(model)
        train = self.parameters["train"]["recipe"] | {"epochs": options.epochs}
        if options.sgd:
            train["muon"] = None
        self.recipe = Recipe.model_validate(train)
        adversary = self.parameters["attack"] | {"poison_ratio": options.poison_ratio}
        self.attack = p.AttackParams.model_validate(adversary).root
        self.seed, self.classes = options.seed, int(labels.max()) + 1
        order = numpy_generator(self.seed, "ablations/split").permutation(len(images))
        held, used = order[: options.validation], order[options.validation :][: options.images]
        self.validation, self.true = images[held], labels[held]
        self.triggered = self.attack(self.validation)
        trusted = np.zeros(len(used), dtype=bool)
        generator = numpy_generator(self.seed, "ablations/trusted")
        share = self.parameters["ingest"]["trusted_share"]
        trusted[stratified_rows(labels[used], share, generator)] = True
        names = [str(label) for label in range(self.classes)]
        bad = poison(
            self.attack, images[used], new_ledger(labels[used], trusted), names, seed=self.seed
        )
        self.images, self.ledger, self.oracle = bad.images_nchw, bad.ledger, bad.oracle
        self.warmed: dict[str, Any] = {}
        self.named: dict[str, np.ndarray] = {}

    def scored(self, suspect_ratio: float | str) -> pd.DataFrame:
        """The ledger with scores and suspects; the warm-up is made once."""
        info = {"class_names": list(range(self.classes))}
        if not self.warmed:
            warmup = p.WarmupParams.model_validate(self.parameters["warmup"])
            made = warm_up(
                self.images, self.ledger, info, {}, warmup, self.model, self.seed, self.engine
            )
            self.warmed["net"] = made["net"]
            learning = p.FeaturesParams.model_validate(self.parameters["features"])
            detecting = p.DetectParams.model_validate(self.parameters["detect"])
            relabel = p.RelabelParams.model_validate(self.parameters["relabel"])
            self.warmed["features"] = learn_features(
                *(self.images, {}, learning, self.model, detecting, relabel, self.seed),
                engine=self.engine,
            )["features"]
        net = self.warmed["net"]
        settings = self.parameters["detect"] | {"suspect_ratio": suspect_ratio}
        detecting = p.DetectParams.model_validate(settings)
        return detect(
            *(self.images, self.ledger, info, net, net, detecting, self.seed),
            engine=self.engine,
            features=self.warmed["features"],
        )["ledger"]

    def pseudo_labels(self, who: str, scored: pd.DataFrame, stamp: Stamp) -> np.ndarray:
        """Of a labeler (asked once), or the oracle's."""
        if who == "oracle":
            return self.oracle["true_label"].to_numpy()
        if who.endswith(WRONG):
            named = self.pseudo_labels(who.removesuffix(WRONG), scored, stamp)
            wrong = scored["suspect"].to_numpy() & (named != self.oracle["true_label"].to_numpy())
            return np.where(wrong, DROPPED, named)
        if who not in self.named:
            name, *_ = who.split()
            labeler = resolved_parameters("cifar10", {"labeler_name": name})["relabel"]["labeler"]
            labeler |= {"surest": 1} if name == "vd" else {}
            labeler |= NAMERS.get(who, {})
            if name == "ud":
                labeler["recipe"] = self.recipe
            relabel = p.RelabelParams(labeler=labeler, trusted_stamps=0)
            kept, n = self.warmed["features"], len(self.images)
            features = features_of(kept, n) if relabel.labeler.needs_features else None
            case = labelers.Case(
                *(self.images, scored, self.classes, self.model.root, stamp), features=features
            )
            self.named[who] = relabel.labeler(case, seed=self.seed, engine=self.engine)
        return self.named[who]

    def undefended(self) -> dict[str, float]:
        """Figures of the twin."""
        samples = ledger_samples(self.images, self.ledger)
        return self.measure(self.train(samples, None, self.recipe), None)

    def defended(
        self,
        stamp: dict[str, Any],
        suspect_ratio: float | str,
        plan: dict[str, Any],
        recipe: dict[str, Any],
        who: str,
    ) -> dict[str, float]:
        """Figures of one setting."""
        mark, scored = Stamp.model_validate(stamp), self.scored(suspect_ratio)
        pseudo = self.pseudo_labels(who, scored, mark)
        made = make_plan(scored, pseudo, seed=self.seed, **plan)
        longer = self.recipe.epochs * recipe.get("epochs", 1)
        changed = self.recipe.model_copy(update=recipe | {"epochs": longer})
        net = self.train(plan_samples(self.images, made.plan), mark, changed)
        suspect = scored["suspect"].to_numpy()
        poisoned = self.oracle["is_poisoned"].to_numpy()
        right = pseudo == self.oracle["true_label"].to_numpy()
        named = suspect & (pseudo != DROPPED)
        return self.measure(net, mark) | {
            "precision": float(poisoned[suspect].mean()),
            "pseudo_label_accuracy": float(right[named].mean()),
            "samples": len(made.plan) / len(self.ledger),
        }

    def train(self, samples: Any, stamp: Stamp | None, recipe: Recipe) -> NormalisedNet:
        """A trained net."""
        net = build_net(
            self.model.root, self.images, self.classes, seed=self.seed, stream="train/init"
        )
        stream = "defended" if stamp else "undefended"
        made = fit(
            net, samples, recipe, seed=self.seed, stream=stream, stamp=stamp, engine=self.engine
        )
        net.load_state_dict(made.state)
        return net

    def measure(self, net: NormalisedNet, stamp: Stamp | None) -> dict[str, float]:
        """Figures on the validation images."""
        target = self.attack.labels.target_labels(self.true, self.classes)
        clean = predict_classes(net, self.validation, stamp=stamp, engine=self.engine)
        plain = predict_classes(net, self.validation, engine=self.engine)
        hit = predict_classes(net, self.triggered, stamp=stamp, engine=self.engine)
        classes = class_accuracies(clean, self.true, self.classes)
        return {
            "ca": clean_accuracy(clean, self.true),
            "ca_unstamped": clean_accuracy(plain, self.true),
            "ca_target": float(classes[self.attack.labels.single_target or 0]),
            "ca_worst": float(classes.min()),
            "asr": attack_success_rate(hit, self.true, target),
            "ba": clean_accuracy(hit, self.true),
        }


def table(records: Path) -> str:
    """Markdown: mean ± std over seeds, a row a setting; CA is told as the fall from the twin's."""
    found = pd.DataFrame([json.loads(line) for line in records.read_text().splitlines()])
    found = found if "ba" in found else found.assign(ba=float("nan"))
    twins = found[found["setting"] == "undefended"].set_index("seed")
    rows = [
        "| setting | n | fall of CA, stamped | unstamped | target class | ASR | BA | samples |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def spread(values: pd.Series) -> str:
        known = 100 * values.dropna()
        deviation = f" ± {known.std():.1f}" if len(known) > 1 else ""
        return f"{known.mean():.1f}{deviation}" if len(known) else ""

    twin = f"| undefended | {len(twins)} | (CA {spread(twins['ca'])}) | | "
    shown = [spread(twins[name]) for name in ("asr", "ba")]
    rows.append(f"{twin}({spread(twins['ca_target'])}) | {' | '.join(shown)} | 1.00 |")
    for setting in [name for name in SETTINGS | NOT_TRUSTED if name in set(found["setting"])]:
        each = found[found["setting"] == setting].set_index("seed")
        falls = {name: twins["ca"] - each[name] for name in ("ca", "ca_unstamped")}
        falls["ca_target"] = twins["ca_target"] - each["ca_target"]
        cells = [spread(falls[name]) for name in ("ca", "ca_unstamped", "ca_target")]
        samples = f"{each['samples'].mean():.2f}"
        cells = [setting, str(len(each)), *cells, spread(each["asr"]), spread(each["ba"]), samples]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is not measured yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parquet", help="CIFAR-10 in Parquet")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--validation", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--widths", type=int, nargs=3, default=[32, 64, 128], help="of the net")
    parser.add_argument("--poison-ratio", type=float, default=0.1)
    parser.add_argument("--attack", default="badnets", help="attack_name; default: %(default)s")
    parser.add_argument("--sgd", action="store_true", help="without Muon")
    parser.add_argument("--unknown", action="store_true", help="nobody is trusted")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help="settings whose name holds one of these texts, and the twin",
    )
    parser.add_argument("--table", action="store_true", help="print the table of --records")
    options = parser.parse_args()
    if options.table:
        print(table(options.records))
        return
    lines = options.records.read_text().splitlines() if options.records.exists() else []
    done = {(each["setting"], each["seed"]) for each in map(json.loads, lines)}
    read = Parquet(path=options.parquet)()
    about = {"hardware": hardware(), "commit": commit_tags(Path(__file__).parent).get("commit")}
    told = ("attack", "images", "validation", "epochs", "widths", "poison_ratio", "sgd", "unknown")
    settings = NOT_TRUSTED if options.unknown else SETTINGS
    about |= {name: getattr(options, name) for name in told}
    for seed in options.seeds:
        options.seed = seed
        case = Case(read.images_nchw, read.labels, options)
        for setting in ["undefended", *settings]:
            twin = setting == "undefended"  # what all others are compared with
            wanted = twin or any(text in setting for text in options.only)
            if (setting, seed) in done or not wanted:
                continue
            figures = case.undefended() if twin else case.defended(*settings[setting])
            with options.records.open("a") as file:
                print(json.dumps({"setting": setting, "seed": seed, **figures, **about}), file=file)
            print(f"{seed} {setting}: CA {figures['ca']:.3f}, ASR {figures['asr']:.3f}", flush=True)


if __name__ == "__main__":
    main()
