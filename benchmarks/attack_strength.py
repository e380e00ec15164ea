"""How strong each attack is undefended: clean accuracy and success rate at its source's ratio.

Every attack at its component's defaults, and BadNets all-to-all, on the first ``--images``
training images of CIFAR-10 in Parquet, with the recipe of ``conf/cifar10`` and a narrower net, but
more epochs, since fewer images make fewer steps. For each seed a net is trained on the clean
images, and one for each attack from the same first weights. The test images are looked at
for the report alone; nothing is chosen by them.

    export OMP_NUM_THREADS=1
    python benchmarks/attack_strength.py --parquet <folder> --records strength.jsonl
    kedro attacks-page --images <folder> --records strength.jsonl

``--records`` gets a line for every attack and seed as soon as it is measured. What is in it
with the same settings is not measured again, so a killed run goes on where it was; begin a
new file when code has changed. An attack that these images are too few for is left out.
``ratio`` of the printed object is the smallest mean ASR.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from overhead import resolved_parameters

from counterdoor import params as p
from counterdoor.attack_page import strengths
from counterdoor.attacks import AllToAll, Attack, AttackBase, BadNets, NoAttack, draw_rows
from counterdoor.component import members
from counterdoor.metrics import attack_success_rate, backdoor_accuracy, clean_accuracy
from counterdoor.pipelines.attack.nodes import attack as poison_and_trigger
from counterdoor.pipelines.attack.nodes import prepare_attack
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.pipelines.train.nodes import train_undefended
from counterdoor.tracking import commit_tags, hardware
from counterdoor.training import predict_classes

ATTACKS: dict[str, AttackBase] = {
    **{kind.component_name(): kind() for kind in members(Attack) if kind is not NoAttack},
    "badnets_all_to_all": BadNets(labels=AllToAll()),
}


class Records:
    """A file of JSON lines that is added to and looked up in."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.all = [json.loads(line) for line in lines]

    def find(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record with these settings, if it has been made."""
        plain = json.loads(json.dumps(settings))
        same = (record for record in self.all if plain.items() <= record.items())
        return next(same, None)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self.all.append(json.loads(json.dumps(record)))
        with self.file.open("a") as opened:
            opened.write(json.dumps(record) + "\n")


def measure(
    adversary: AttackBase | None,
    read: dict[str, Any],
    model: p.ModelParams,
    training: p.TrainParams,
    seed: int,
) -> dict[str, Any]:
    """Train on poisoned (or, without an adversary, clean) images, and test."""
    started = time.perf_counter()
    images, ledger, info, tests = (read[k] for k in ("images", "ledger", "info", "test_images"))
    triggered, seconds = None, {}
    if adversary is not None:
        attacking = p.AttackParams(adversary)
        made = prepare_attack(images, ledger, info, attacking, seed)["preparation"]
        bad = poison_and_trigger(images, ledger, tests, info, attacking, seed, made)
        images, ledger, triggered = bad["images"], bad["ledger"], bad["triggered_test_images"]
        seconds["attack"] = round(time.perf_counter() - started, 2)
    trained = train_undefended(images, ledger, info, {}, training, model, seed)["net"]
    net, true = trained.build(), read["test_ledger"]["label"].to_numpy()
    figures: dict[str, Any] = {"ca": clean_accuracy(predict_classes(net, tests), true)}
    if adversary is not None and triggered is not None:
        wanted = adversary.labels.target_labels(true, len(info["class_names"]))
        predicted = predict_classes(net, triggered)
        figures |= {
            "asr": attack_success_rate(predicted, true, wanted),
            "ba": backdoor_accuracy(predicted, true),
            "n_poisoned": int(bad["oracle"]["is_poisoned"].sum()),
            "n_cover": int(bad["oracle"]["is_cover"].sum()),
        }
    return figures | {"seconds": seconds | {"all": round(time.perf_counter() - started, 2)}}


def refusal(adversary: AttackBase, read: dict[str, Any], seed: int) -> str | None:
    """Why the attack cannot be carried out on these images, if it cannot."""
    try:
        adversary.check(read["images"].shape[1:])
        draw_rows(adversary, read["ledger"], read["info"]["class_names"], seed=seed)
    except ValueError as error:
        return f"{adversary.name} is left out: {error}"
    return None


def main() -> None:
    """Measure what is not in the records yet, and print what is there then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parquet", required=True, help="folder with CIFAR-10 in Parquet")
    parser.add_argument("--data", default="CIFAR-10", help="its name on the page")
    parser.add_argument("--records", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--widths", type=int, nargs=3, default=[32, 64, 128], help="of the net")
    parser.add_argument("--plain", action="store_true", help="a net without whitening")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    parameters = resolved_parameters("cifar10")
    net = {"widths": options.widths, "whiten": not options.plain}
    model = p.ModelParams.model_validate(parameters["model"] | net)
    recipe = parameters["train"]["recipe"] | {"epochs": options.epochs}
    training = p.TrainParams.model_validate({"recipe": recipe})
    source = {"name": "parquet", "path": options.parquet, "limit": options.images}
    ingesting = {"source": source, "test_share": 0.2, "trusted_share": 0.0}
    read = ingest(p.IngestParams.model_validate(ingesting), seed=0)
    records = Records(options.records)
    fixed = {
        "data": options.data,
        "content_hash": read["info"]["content_hash"],
        "n_train": read["info"]["n_train"],
        "n_test": read["info"]["n_test"],
        "model": model.model_dump(mode="json"),
        "recipe": training.recipe.model_dump(mode="json"),
    }
    tags = commit_tags(Path(__file__).parent)
    commit = tags.get("commit", "unknown")[:8] + "+" * (tags.get("commit.dirty") == "true")
    made_by = {"commit": commit, "hardware": hardware()}
    wanted = []
    for seed in options.seeds:
        clean = None
        for adversary in (None, *(ATTACKS[name] for name in options.attacks)):
            if adversary is not None and (reason := refusal(adversary, read, seed)):
                print(reason, file=sys.stderr, flush=True)
                continue
            described = None if adversary is None else adversary.model_dump(mode="json")
            settings = fixed | {"attack": described, "seed": seed}
            record = records.find(settings)
            if record is None:
                record = settings | measure(adversary, read, model, training, seed) | made_by
                if clean is not None:
                    record["ca_clean"] = clean["ca"]
                records.add(record)
                if not options.json:
                    shown = {name: record.get(name) for name in ("ca", "asr", "seconds")}
                    print((described or {"name": "clean"})["name"], seed, shown, flush=True)
            if adversary is None:
                clean = record
            else:
                wanted.append(record)
    found = strengths(wanted)
    table = [
        {
            "attack": each.attack["name"],
            "labels": each.attack["labels"]["name"],
            "poison_ratio": each.attack["poison_ratio"],
            "seeds": each.seeds,
            **{name: [round(value, 4) for value in each.values[name]] for name in each.values},
        }
        for each in found
    ]
    result = {
        "name": "attack_strength",
        "ratio": round(min(fmean(each.values["asr"]) for each in found), 4),
        "values": {"setting": found[0].setting, "attacks": table},
        **made_by,
    }
    if options.json:
        print(json.dumps(result))
        return
    for row in table:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
