"""The stage that writes what is shipped."""

import csv
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from counterdoor.hardened import Hardened, model_card
from counterdoor.ledger import DROPPED, new_ledger
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.names import from_csv
from counterdoor.params import (
    DefenceParams,
    DetectParams,
    ExportParams,
    IngestParams,
    ModelParams,
    RelabelParams,
    TrainParams,
)
from counterdoor.pipelines.export import nodes
from counterdoor.pipelines.export.nodes import (
    ask_the_net,
    check_export,
    harden,
    judge,
    list_suspects,
    verdict_of,
    write_card,
)
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp
from counterdoor.verdict import Judge

INFO = {"class_names": ["a", "b", "c"], "content_hash": "abc", "n_train": 12}
FILES = pd.DataFrame({"sample_id": range(60), "file": [f"{row}.png" for row in range(60)]})
PARAMS = {
    "ingest": IngestParams.model_validate(
        {
            "source": {"name": "image_folder", "path": "x", "image_mode": "L", "resize": "squash"},
            "test_share": 0.2,
            "trusted_share": 0.1,
        }
    ),
    "model": ModelParams({"name": "digits_cnn"}),
    "detect": DetectParams(detector={"name": "random"}, suspect_ratio=0.1),
    "relabel": RelabelParams(labeler={"name": "drop"}, trusted_stamps=0),
    "train": TrainParams(recipe={"epochs": 1, "batch_size": 8, "learning_rate": 0.1}),
    "defence": DefenceParams({"name": "nab"}),
}


@pytest.fixture
def case(noise):
    images = noise(60)
    model = DigitsCNN(width=3, hidden=8)
    state = build_net(model, images, 3, seed=0, stream="x").state_dict()
    net = TrainedNet.of(model, images, 3, state, Stamp(size=4, colour="white"))
    ledger = new_ledger(np.arange(60) % 3, np.zeros(60, bool))[["sample_id", "label"]]
    return {"net": net, "info": INFO, "test_images": images, "test_ledger": ledger, **PARAMS}


@pytest.mark.parametrize("reject", [False, True])
def test_the_net_goes_with_all_that_its_user_needs(case, reject):
    hardened = harden(**case, export=ExportParams(reject=reject), seed=5)
    assert isinstance(hardened, Hardened)
    assert hardened.net is case["net"]
    assert hardened.class_names == ("a", "b", "c")
    form = hardened.form
    assert (form.size, form.mode, form.resize) == ((12, 12), "L", "squash")
    assert hardened.reject_column == reject
    assert hardened.about["data"] == {"content_hash": "abc", "n_train": 12}
    configuration = hardened.about["configuration"]
    assert configuration["seed"] == 5
    assert configuration["detect"]["detector"] == {"name": "random"}
    assert set(configuration) == {"seed", *PARAMS}


def test_it_is_measured_on_held_out_images(case):
    figures = harden(**case, export=ExportParams(), seed=0).about["figures"]
    with torch.inference_mode():
        predicted = case["net"].deployable()(torch.tensor(case["test_images"])).argmax(1).numpy()
    right = sum(
        int(said == label)
        for said, label in zip(predicted, case["test_ledger"]["label"], strict=True)
    )
    assert figures["held_out_accuracy"] == pytest.approx(right / 60)
    assert 0 <= figures["held_out_rejected"] <= 1


def test_labels_and_images_have_to_agree(case):
    with pytest.raises(ValueError, match="ledger"):
        harden(**case | {"test_images": case["test_images"][:5]}, export=ExportParams(), seed=0)


def test_the_card_is_the_librarys(case):
    hardened = harden(**case, export=ExportParams(), seed=0)
    assert write_card(hardened) == model_card(hardened)


def test_suspects_are_told_by_file_the_most_suspicious_first():
    ledger = new_ledger(np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, bool)).assign(
        score=[0.1, 0.9, 0.5, 0.8, 0.2, 0.7],
        suspect=[False, True, False, True, False, True],
        pseudo_label=[0, 2, 1, 1, 2, DROPPED],
    )
    files = pd.DataFrame({"sample_id": range(6), "file": [f"{row}.png" for row in range(6)]})
    told = list_suspects(np.zeros((6, 1, 5, 5), np.uint8), ledger, files, INFO)
    suspects = told["suspects"].to_dict(orient="records")
    assert [each["file"] for each in suspects] == ["1.png", "3.png", "5.png"]
    assert [each["rank"] for each in suspects] == [1, 2, 3]
    assert [each["sample_id"] for each in suspects] == [1, 3, 5]
    assert [each["label"] for each in suspects] == ["a", "b", "c"]
    assert [each["pseudo_label"] for each in suspects] == ["c", "b", ""]
    assert [each["score"] for each in suspects] == [0.9, 0.8, 0.7]
    assert suspects[0]["reason"] == "more suspicious than 50.0% of a; looks like c"
    assert suspects[1]["reason"].endswith("looks like it")
    assert suspects[2]["reason"].endswith("left out")
    assert "3 suspects among 6 images" in told["page"]
    cleaned = [("0.png", "a"), ("2.png", "b"), ("4.png", "c")]
    assert list(told["cleaned"].itertuples(index=False, name=None)) == cleaned


def test_nobody_suspected_leaves_an_empty_list_and_all_to_keep():
    ledger = new_ledger(np.array([0, 1]), np.zeros(2, bool)).assign(
        score=0.0, suspect=False, pseudo_label=0
    )
    files = pd.DataFrame({"sample_id": [0, 1], "file": ["a.png", "b.png"]})
    told = list_suspects(np.zeros((2, 1, 5, 5), np.uint8), ledger, files, INFO)
    assert told["suspects"].empty
    assert list(told["suspects"].columns)[:3] == ["file", "sample_id", "label"]
    assert len(told["cleaned"]) == 2


@pytest.mark.parametrize(("name", "answer"), [("lga", "evidence"), ("random", "undecided")])
def test_the_verdict_is_on_scores_that_its_tests_are_calibrated_for(name, answer):
    labels = np.arange(3000) % 3
    score = np.random.default_rng(0).normal(size=3000)
    score[np.flatnonzero(labels == 1)[:150]] += 20
    ledger = new_ledger(labels, np.zeros(3000, bool)).assign(score=score, suspect=score > 10)
    detect = DetectParams(detector={"name": name}, suspect_ratio=0.1)
    verdict = verdict_of(ledger, INFO, detect, Judge())
    assert (verdict.answer, verdict.suspects) == (answer, int(ledger["suspect"].sum()))


@pytest.fixture
def asked(case):
    """Images, their ledger with some suspects, and a net whose stamp turns some over."""
    images = case["test_images"]
    net = build_net(DigitsCNN(width=3, hidden=8), images, 3, seed=1, stream="x")
    floats = torch.tensor(images) / 255.0
    with torch.no_grad():
        for _ in range(20):
            net.train()(floats)
        net.body[-1].bias -= net.eval()(floats).mean(0)
    model = DigitsCNN(width=3, hidden=8)
    stamp = Stamp(size=6, colour="white")
    trained = TrainedNet.of(model, images, 3, net.state_dict(), stamp)
    suspect = np.arange(60) % 4 == 0
    ledger = new_ledger(np.arange(60) % 3, np.zeros(60, bool))
    scored = ledger.assign(score=np.linspace(0, 1, 60), suspect=suspect)
    return images, scored, Hardened(trained, ("a", "b", "c"), Form((12, 12), "L"))


@pytest.mark.parametrize("mirror", [False, True])
def test_the_net_is_asked_what_the_stamp_changes(asked, mirror):
    images, ledger, hardened = asked
    trained = replace(hardened.net, mirror=mirror)
    hardened = replace(hardened, net=trained)
    effect = ask_the_net(images, ledger, hardened, 0)["effect"]
    with torch.inference_mode():
        pixels = torch.tensor(images)
        turned = (
            trained.deployable()(pixels).argmax(1)
            != replace(trained, stamp=None).deployable()(pixels).argmax(1)
        ).numpy()
    suspect = ledger["suspect"].to_numpy()
    shares = (turned[suspect].mean(), turned[~suspect].mean())
    assert effect == pytest.approx(dict(zip(CHANGED, shares, strict=True)))
    assert 0 < effect["changed_others"] < 1


CHANGED = ("changed_suspects", "changed_others")


def test_without_suspects_or_stamp_less_can_be_asked(asked, monkeypatch):
    images, ledger, hardened = asked
    nobody = ledger.assign(suspect=False)
    assert set(ask_the_net(images, nobody, hardened, 0)["effect"]) == {"changed_others"}
    unstamped = replace(hardened, net=replace(hardened.net, stamp=None))
    assert ask_the_net(images, ledger, unstamped, 0)["effect"] == {}
    seen = []
    monkeypatch.setattr(nodes, "ASKED", 7)
    predict = Hardened.predict
    monkeypatch.setattr(
        Hardened, "predict", lambda net, part: seen.append(len(part)) or predict(net, part)
    )
    ask_the_net(images, ledger, hardened, 0)
    assert seen == [7, 7]


def test_the_verdict_needs_no_net():
    ledger = new_ledger(np.arange(60) % 3, np.zeros(60, bool))
    scored = ledger.assign(score=np.linspace(0, 1, 60), suspect=False)
    images = np.arange(60, dtype=np.uint8).repeat(4).reshape(60, 1, 2, 2)
    images[6], images[7] = images[0], images[1]  # rows of one label each
    alone = verdict_of(scored, INFO, PARAMS["detect"], Judge())
    told = judge(images, scored, INFO, PARAMS["detect"], Judge(), FILES)["verdict"]
    assert told["answer"] == alone.answer
    assert told["reasons"][: len(alone.reasons)] == alone.reasons
    assert (told["conflicts"], told["repeats"]) == (0, 2)


def try_one(model, size, channels, **options):
    images = np.zeros((2, channels, size, size), np.uint8)
    given = {"check": {}, "stamp": Stamp(size=3, colour="white"), **options}
    given |= {name: PARAMS[name] for name in ("train", "defence")}
    checked = check_export(
        images, INFO, model=ModelParams(model), export=ExportParams(reject=True), **given
    )
    return checked["report"]


SHIPPED = [  # all others at every size and mode: benchmarks/hostile/exports.py
    ({"name": "digits_cnn", "width": 2, "hidden": 4}, 64, 3),
    ({"name": "compact", "widths": [2, 2, 2]}, 28, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size", "channels"), SHIPPED)
def test_a_net_is_written_in_every_form_before_it_is_trained(model, size, channels):
    assert try_one(model, size, channels)["bytes"] > 10000


def test_a_net_that_cannot_be_shipped_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("counterdoor.models.external.External._imported", lambda self: Branching)
    with pytest.raises(ValueError, match=r"^model 'external' cannot be written as an MLflow model"):
        try_one({"name": "external", "target": "their.Branching", **ARGUMENTS}, 12, 1)


ARGUMENTS = {"channels_argument": "channels", "classes_argument": "num_classes"}


class Branching(torch.nn.Module):
    """Looks at its values to decide what to do, which no exported net can."""

    def __init__(self, channels, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(channels * 144, num_classes)

    def forward(self, images):
        if images.sum() > 0:
            images = images * 2
        return self.head(images.flatten(1))


ODD = ["=1+1", "'=1+1", "-1", r"\xff|<b>"]


def test_no_cell_of_the_lists_is_a_formula_and_all_names_can_be_found_again(tmp_path):
    ledger = new_ledger(np.arange(8) % 4, np.zeros(8, bool)).assign(
        score=np.arange(8.0), suspect=np.arange(8) < 4, pseudo_label=(np.arange(8) + 1) % 4
    )
    names = [f'{ODD[row % 4]}/@{row}, "x"\n.png' for row in range(8)]
    files = pd.DataFrame({"sample_id": range(8), "file": names})
    told = list_suspects(
        np.zeros((8, 1, 5, 5), np.uint8), ledger, files, INFO | {"class_names": ODD}
    )
    for name in ("suspects", "cleaned"):
        told[name].to_csv(tmp_path / name, index=False)
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 4
        for row in rows:
            path = os.path.normpath(row["file"])
            assert path in names
            assert from_csv(row["label"]) == path.split("/")[0]
            assert not any(cell.startswith(("=", "@", "+", "-1/")) for cell in row.values())
    assert told["suspects"]["label"].tolist()[::-1] == ["'=1+1", "''=1+1", "-1", r"\xff|<b>"]


def test_equal_pictures_are_told_in_the_verdict_and_on_the_page(asked):
    given, ledger, _ = asked
    images = np.array(given)
    images[7], images[9] = images[0], images[6]
    told = judge(images, ledger, INFO, PARAMS["detect"], Judge(), FILES)["verdict"]
    assert (told["conflicts"], told["repeats"]) == (1, 1)
    assert "0.png ('a') and 7.png ('b')" in told["reasons"][-2]
    alone = judge(given, ledger, INFO, PARAMS["detect"], Judge(), FILES)["verdict"]
    assert (alone["conflicts"], alone["repeats"]) == (0, 0)
    assert alone["answer"] == told["answer"]
    page = list_suspects(images, ledger.assign(pseudo_label=0), FILES, INFO)["page"]
    assert "The same picture under several labels" in page
    assert page.count('alt="picture under several labels"') == 1
