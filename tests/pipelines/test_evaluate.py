"""The last stage: predictions, measures, seconds, warnings, figures, report."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from counterdoor.detectors import Adaptive
from counterdoor.ledger import new_ledger
from counterdoor.metrics import summarize
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.params import (
    AttackParams,
    DefenceParams,
    DetectParams,
    IngestParams,
    ModelParams,
    RelabelParams,
)
from counterdoor.pipelines.evaluate import nodes
from counterdoor.pipelines.evaluate.pipeline import FIGURES, TIMINGS
from counterdoor.stamp import WEAK_CONTRAST, Stamp, apply_stamp
from counterdoor.training import Fit

NAMES = ["a", "b", "c"]
INFO = {"class_names": NAMES}
STAMP = Stamp(size=4, colour="white")
ATTACK = AttackParams({"name": "badnets", "labels": {"name": "all_to_one", "target_class": 1}})
CLEAN = AttackParams({"name": "none"})
ALL_TO_ALL = AttackParams({"name": "badnets", "labels": {"name": "all_to_all"}})


def net_of(images, seed, stamp=None):
    """An untrained net that is in two minds about every image, so that all conditions differ."""
    model = DigitsCNN(width=3, hidden=8)
    net = build_net(model, images, 3, seed=seed, stream="x")
    floats = torch.tensor(images) / 255.0
    with torch.no_grad():
        for _ in range(40):  # statistics of the batch norm
            net.train()(floats)
        net.body[-1].bias -= net.eval()(floats).mean(0)
    return TrainedNet.of(model, images, 3, net.state_dict(), stamp)


@pytest.fixture
def case(noise):
    images = noise(40, seed=1)
    triggered = np.array(images)
    triggered[:, :, -6:-1, -6:-1] = 255
    return {
        "test_images": images,
        "triggered_test_images": triggered,
        "test_ledger": new_ledger(np.arange(40) % 3, np.zeros(40))[["sample_id", "label"]],
        "defended": net_of(images, 0, STAMP),
        "undefended": net_of(images, 1),
    }


@pytest.fixture
def predictions(case):
    return nodes.predict(**case, stamp=STAMP)["predictions"]


def test_predictions_have_a_row_an_image_and_a_column_a_condition(case, predictions):
    conditions = product(("defended", "undefended"), ("clean", "triggered"), ("plain", "stamped"))
    assert list(predictions) == ["sample_id", "true_label", *map("_".join, conditions)]
    assert predictions["sample_id"].tolist() == list(range(40))
    assert predictions["true_label"].tolist() == (np.arange(40) % 3).tolist()
    assert predictions.dtypes.unique().tolist() == [np.dtype(np.int64)]


def test_predictions_are_what_each_net_says_of_each_image(case, predictions):
    """Against direct calls, image by image, with the stamp written by hand."""
    for net_name, images_name, condition in product(
        ("defended", "undefended"), ("clean", "triggered"), ("plain", "stamped")
    ):
        net = case[net_name].build()
        images = case["test_images" if images_name == "clean" else "triggered_test_images"]
        images = np.array(images)
        if condition == "stamped":
            images[:, :, :4, :4] = 255
        with torch.inference_mode():
            expected = [int(net(torch.tensor(image[None]) / 255.0).argmax()) for image in images]
        assert predictions[f"{net_name}_{images_name}_{condition}"].tolist() == expected


def test_stamped_predictions_are_those_of_the_deployed_net(case):
    """Its own stamp, and its own map of labels; the run's stamp does not count."""
    own = Stamp(size=5, row=2, colour="bright")
    case["defended"] = replace(case["defended"], stamp=own, label_map=(2, 0, 1))
    predictions = nodes.predict(**case, stamp=STAMP)["predictions"]
    for images in ("test_images", "triggered_test_images"):
        with torch.inference_mode():
            logits = case["defended"].deployable()(torch.tensor(case[images]))
            plain = case["defended"].build()(torch.tensor(case[images]) / 255.0)
        name = "clean" if images == "test_images" else "triggered"
        stamped = predictions[f"defended_{name}_stamped"].tolist()
        assert stamped == logits.argmax(1).tolist()
        assert predictions[f"defended_{name}_plain"].tolist() == plain.argmax(1).tolist()
    assert len(set(stamped)) > 1


def test_a_net_that_mirrors_is_measured_with_one_view_as_well(case, predictions, training):
    case["defended"] = replace(case["defended"], mirror=True)
    both = nodes.predict(**case, stamp=STAMP)["predictions"]
    new = ["defended_clean_plain_one_view", "defended_clean_stamped_one_view"]
    assert set(both) - set(predictions) == set(new)
    for name in new:
        assert both[name].tolist() == predictions[name.removesuffix("_one_view")].tolist()
    with torch.inference_mode():
        logits = case["defended"].deployable()(torch.tensor(case["test_images"]))
    assert both["defended_clean_stamped"].tolist() == logits.argmax(1).tolist()
    assert both["undefended_clean_plain"].tolist() == predictions["undefended_clean_plain"].tolist()
    metrics = nodes.measure(both, *training, INFO, case["defended"], ATTACK)
    right = both["defended_clean_stamped_one_view"] == both["true_label"]
    assert metrics["ca_one_view"] == pytest.approx(right.mean())
    assert metrics["ca"] == pytest.approx(
        (both["defended_clean_stamped"] == both["true_label"]).mean()
    )
    assert "undefended_ca_one_view" not in metrics


def test_the_conditions_differ(predictions):
    """Otherwise a swapped column would go unnoticed above."""
    columns = [tuple(predictions[name]) for name in list(predictions)[2:]]
    assert len(set(columns)) == len(columns)


def test_predictions_with_a_foreign_ledger_are_refused(case):
    case["test_ledger"] = case["test_ledger"].iloc[:-1]
    with pytest.raises(ValueError, match="39 rows, but there are 40 images"):
        nodes.predict(**case, stamp=STAMP)


@pytest.fixture
def training(noise):
    """Ledger and oracle of 60 training samples."""
    generator = np.random.default_rng(0)
    ledger = new_ledger(generator.integers(0, 3, 60), np.arange(60) < 6)
    suspect = np.zeros(60, dtype=bool)
    suspect[10:30] = True
    ledger = ledger.assign(
        score=generator.normal(size=60),
        suspect=suspect,
        pseudo_label=generator.integers(0, 3, 60),
        stamped=suspect & (np.arange(60) % 2 == 0),
    )
    oracle = pd.DataFrame(
        {
            "sample_id": ledger["sample_id"],
            "true_label": generator.integers(0, 3, 60),
            "is_poisoned": (np.arange(60) > 20) & (np.arange(60) < 45),
            "is_cover": np.arange(60) >= 45,
        }
    )
    return ledger, oracle


@pytest.mark.parametrize("stamp", [STAMP, None])
@pytest.mark.parametrize("attack", [ATTACK, ALL_TO_ALL], ids=["all_to_one", "all_to_all"])
def test_measure_is_the_summary_of_the_net_as_deployed(case, predictions, training, attack, stamp):
    net = net_of(case["test_images"], 0, stamp)
    metrics = nodes.measure(predictions, *training, INFO, net, attack)
    expected = summarize(
        predictions,
        *training,
        labels=attack.root.labels,
        num_classes=3,
        deployed_stamped=stamp is not None,
    )
    assert metrics == pytest.approx(expected, nan_ok=True)
    condition = "plain" if stamp is None else "stamped"
    hits = [
        predicted == true
        for predicted, true in zip(
            predictions[f"defended_clean_{condition}"], predictions["true_label"], strict=True
        )
    ]
    assert metrics["ca"] == pytest.approx(sum(hits) / 40)


def test_seconds_are_in_the_order_of_the_stages():
    timings = {stage: {"seconds": 1.5 * number} for number, stage in enumerate(TIMINGS)}
    table = nodes.gather_seconds(**timings)
    assert table["stage"].tolist() == list(TIMINGS)
    assert table["seconds"].tolist() == [1.5 * number for number in range(len(TIMINGS))]


SOUND = {"n_suspects": 20.0, "n_stamped": 10.0, "undefended_asr": 0.99, "ca_drop_worst_class": 0.01}


def test_a_sound_run_has_no_warning():
    assert nodes.warnings_about(SOUND, 0.5) == []


@pytest.mark.parametrize(
    ("change", "contrast", "words"),
    [
        ({}, 0.04, ["hardly differs", "0.040", "another colour, size or place"]),
        ({"n_stamped": 0.0}, 0.5, ["No suspect was stamped"]),
        ({"n_suspects": 0.0, "n_stamped": 0.0}, 0.5, ["Nobody is suspected", "as usual"]),
        ({"undefended_asr": 0.312}, 0.5, ["attack itself is weak", "31.2%"]),
        ({"ca_drop_worst_class": 0.123}, 0.5, ["One class lost 12.3%"]),
    ],
)
def test_each_warning_alone(change, contrast, words):
    (note,) = nodes.warnings_about(SOUND | change, contrast)
    assert all(word in note for word in words)


def test_all_warnings_together():
    worst = {"n_suspects": 9.0, "n_stamped": 0.0, "undefended_asr": 0.0, "ca_drop_worst_class": 1.0}
    assert len(nodes.warnings_about(SOUND | worst, 0.0)) == 4


@pytest.mark.parametrize(
    ("change", "contrast"),
    [
        ({}, WEAK_CONTRAST),
        ({"undefended_asr": 0.5}, 0.5),
        ({"ca_drop_worst_class": 0.05}, 0.5),
        ({"n_stamped": 1.0}, 0.5),
        ({"ca_drop_worst_class": -0.3}, 0.5),
    ],
)
def test_no_warning_at_the_limit(change, contrast):
    assert nodes.warnings_about(SOUND | change, contrast) == []


def test_the_stamped_samples_shown_are_those_of_the_defence(case, monkeypatch):
    shown = {}

    def keep(clean, triggered, stamped, labels, names):
        shown.update(clean=clean, triggered=triggered, stamped=stamped, labels=labels)
        return Figure()

    monkeypatch.setattr(nodes.plots, "plot_samples", keep)
    images = [case[name] for name in ("test_images", "triggered_test_images", "test_ledger")]
    nodes.draw_samples(*images, INFO, case["defended"], STAMP)
    assert shown["labels"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(shown["clean"], case["test_images"][:3])
    np.testing.assert_array_equal(shown["triggered"], case["triggered_test_images"][:3])
    floats = torch.tensor(case["test_images"][:3]) / 255.0
    expected = apply_stamp(floats, STAMP, case["defended"].state["mean"]) * 255
    np.testing.assert_array_equal(shown["stamped"], expected.round().numpy())


def test_scores_are_drawn_with_the_threshold_of_the_least_suspect(training, monkeypatch):
    ledger, oracle = training
    calls = []
    monkeypatch.setattr(nodes.plots, "plot_warmup_losses", lambda *args: calls.append(args))
    nodes.draw_scores(ledger, oracle)
    ((scores, poisoned, threshold),) = calls
    assert scores.tolist() == ledger["score"].tolist()
    assert poisoned.tolist() == oracle["is_poisoned"].tolist()
    assert threshold == min(ledger["score"][ledger["suspect"]])


@pytest.mark.parametrize("stamp", [STAMP, None])
def test_confusion_is_of_the_nets_as_deployed(case, predictions, monkeypatch, stamp):
    calls = []
    monkeypatch.setattr(nodes.plots, "plot_confusion", lambda *args: calls.append(args))
    nodes.draw_confusion(predictions, INFO, net_of(case["test_images"], 0, stamp))
    ((true, shown, names),) = calls
    condition = "plain" if stamp is None else "stamped"
    assert names == NAMES
    assert true.tolist() == predictions["true_label"].tolist()
    assert {title: each.tolist() for title, each in shown.items()} == {
        "undefended, clean": predictions["undefended_clean_plain"].tolist(),
        "undefended, triggered": predictions["undefended_triggered_plain"].tolist(),
        "defended, clean": predictions[f"defended_clean_{condition}"].tolist(),
        "defended, triggered": predictions[f"defended_triggered_{condition}"].tolist(),
    }


@pytest.mark.parametrize("attack", [ATTACK, ALL_TO_ALL, CLEAN], ids=["one", "all", "none"])
@pytest.mark.parametrize("suspects", [True, False])
def test_every_figure_can_be_drawn(case, predictions, training, noise, attack, suspects):
    ledger, oracle = training
    if not suspects:
        ledger = ledger.assign(suspect=False, stamped=False)
    if attack is CLEAN:
        oracle = oracle.assign(is_poisoned=False, is_cover=False)
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "accuracy": [0.1, 0.9]})
    metrics = nodes.measure(predictions, ledger, oracle, INFO, case["defended"], attack)
    images = [case[name] for name in ("test_images", "triggered_test_images", "test_ledger")]
    figures = [
        nodes.draw_outcome(metrics),
        nodes.draw_samples(*images, INFO, case["defended"], STAMP),
        nodes.draw_suspects(noise(60), ledger, oracle, INFO),
        nodes.draw_scores(ledger, oracle),
        nodes.draw_curves(history, history, history),
        nodes.draw_confusion(predictions, INFO, case["defended"]),
        nodes.draw_classes(predictions, INFO, attack),
    ]
    assert len(figures) == len(FIGURES)
    assert all(isinstance(figure, Figure) and figure.axes for figure in figures)


def test_every_figure_can_be_drawn_without_suspects(case, predictions, training, noise):
    ledger, oracle = training
    ledger = ledger.assign(score=0.0, suspect=False, pseudo_label=-1, stamped=False)
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "accuracy": [0.1, 0.9]})
    net = net_of(case["test_images"], 0)
    metrics = nodes.measure(predictions, ledger, oracle, INFO, net, ATTACK)
    figures = [
        nodes.draw_outcome(metrics),
        nodes.draw_suspects(noise(60), ledger, oracle, INFO),
        nodes.draw_scores(ledger, oracle),
        nodes.draw_curves(Fit.of({}, []).history, history, history),
    ]
    assert all(isinstance(figure, Figure) and figure.axes for figure in figures)
    names = [text.get_text() for text in figures[-1].legends[0].get_texts()]
    assert names == ["undefended", "defended"]


@pytest.mark.parametrize(
    ("defence", "told", "untold"),
    [
        ("nab", ["random", "0.07", "drop", "4x4 white"], []),
        ("abl", ["random", "0.03"], ["0.07", "drop", "4x4 white"]),
        ("fp", [], ["random", "0.07", "drop", "4x4 white"]),
        ("pdb", ["7x7 bright"], ["random", "0.07", "drop", "4x4 white"]),
    ],
)
def test_the_report_tells_the_defence_and_what_it_reads(
    case, predictions, training, defence, told, untold
):
    metrics = nodes.measure(predictions, *training, INFO, case["defended"], ATTACK)
    own = {"isolation_ratio": 0.03} if defence == "abl" else {}
    report = nodes.write_report(
        metrics | {"n_stamped": 0.0},
        nodes.gather_seconds(ingest={"seconds": 1.0}),
        {"stamp_contrast": float("nan")},
        IngestParams(source={"name": "digits"}, test_share=0.2, trusted_share=0.05),
        ATTACK,
        DetectParams(detector={"name": "random"}, suspect_ratio=0.07),
        RelabelParams(labeler={"name": "drop"}, trusted_stamps=2),
        ModelParams({"name": "resnet18"}),
        STAMP,
        31,
        DefenceParams({"name": defence, **own}),
    )
    assert f"{defence} against badnets on digits, seed 31" in report
    choices = report.split('id="choices"')[1].split('id="glossary"')[0]
    for word in [defence, *told]:
        assert f"<td>{word}" in choices, word
    for word in untold:
        assert f"<td>{word}" not in choices, word
    assert ("No suspect was stamped" in report) == (defence == "nab")


def test_the_report_of_clean_data_without_suspects(case, predictions, training):
    ledger, oracle = training
    ledger = ledger.assign(suspect=False, stamped=False)
    oracle = oracle.assign(true_label=ledger["label"], is_poisoned=False, is_cover=False)
    net = net_of(case["test_images"], 0)
    metrics = nodes.measure(predictions, ledger, oracle, INFO, net, CLEAN)
    report = nodes.write_report(
        metrics,
        nodes.gather_seconds(ingest={"seconds": 1.0}),
        {"stamp_contrast": 0.5},
        IngestParams(source={"name": "digits"}, test_share=0.2, trusted_share=0.05),
        CLEAN,
        DetectParams(detector={"name": "random"}, suspect_ratio=Adaptive(floor=0.01)),
        RelabelParams(labeler={"name": "vd"}, trusted_stamps=2),
        ModelParams({"name": "resnet18"}),
        STAMP,
        31,
    )
    for words in (
        "none on digits, seed 31",
        "Nobody is poisoned. With the defence, the clean accuracy",
        "Nobody is suspected",
        "changes nothing: the data set is clean",
        "adaptive: none, or 0.01 to 0.3",
        "n/a",
    ):
        assert words in report, words
    assert "attack itself is weak" not in report
    assert "CA of the target class" not in report


@pytest.mark.parametrize(
    ("attack", "mapping"), [(ATTACK, "all_to_one, class 1"), (ALL_TO_ALL, "all_to_all")]
)
def test_the_report_tells_choices_figures_and_warnings(
    case, predictions, training, attack, mapping
):
    metrics = nodes.measure(predictions, *training, INFO, case["defended"], attack)
    metrics |= {"n_stamped": 0.0}
    seconds = nodes.gather_seconds(ingest={"seconds": 1.0}, attack={"seconds": 2.0})
    report = nodes.write_report(
        metrics,
        seconds,
        {"stamp_contrast": 0.02},
        IngestParams(source={"name": "digits"}, test_share=0.2, trusted_share=0.05),
        attack,
        DetectParams(detector={"name": "random"}, suspect_ratio=0.07),
        RelabelParams(labeler={"name": "drop"}, trusted_stamps=2),
        ModelParams({"name": "resnet18"}),
        STAMP,
        31,
        outcome=b"\x89PNG one",
        samples=b"\x89PNG two",
    )
    for word in ("badnets", "digits", "resnet18", "random", "0.07", "drop", "4x4 white at (0, 0)"):
        assert word in report, word
    assert "badnets on digits, seed 31" in report
    assert mapping in report
    assert attack.root.capability in report
    assert "hardly differs" in report
    assert "No suspect was stamped" in report
    assert report.count("data:image/png;base64,") == 2
    assert "http://" not in report.replace("http://www.w3.org", "")
