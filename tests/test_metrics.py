"""Every measure against a count in plain loops."""

import math

import numpy as np
import pandas as pd
import pytest

from counterdoor.attacks import AllToAll, AllToOne
from counterdoor.ledger import DROPPED
from counterdoor.metrics import (
    attack_success_rate,
    backdoor_accuracy,
    class_accuracies,
    clean_accuracy,
    defense_effectiveness_rating,
    detection_rates,
    filter_rates,
    summarize,
)

K = 4


def share(hits):
    hits = list(hits)
    return sum(map(bool, hits)) / len(hits) if hits else math.nan


def slow_ca(predicted, true):
    return share(p == t for p, t in zip(predicted, true, strict=True))


def slow_asr(predicted, true, target):
    """Of one target class, or with ``target`` None, all to all."""
    if target is None:
        return share(p == (t + 1) % K for p, t in zip(predicted, true, strict=True))
    return share(p == target for p, t in zip(predicted, true, strict=True) if t != target)


def slow_ba(predicted, true, without=None):
    return share(p == t for p, t in zip(predicted, true, strict=True) if t != without)


def slow_class_accuracies(predicted, true):
    return [
        share(p == t for p, t in zip(predicted, true, strict=True) if t == label)
        for label in range(K)
    ]


def slow_auroc(score, is_poisoned):
    wins = pairs = 0.0
    for i, poisoned in enumerate(is_poisoned):
        for j, other in enumerate(is_poisoned):
            if poisoned and not other:
                pairs += 1
                wins += 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
    return wins / pairs if pairs else math.nan


def slow_detection(suspect, score, is_poisoned):
    flagged = [i for i, flag in enumerate(suspect) if flag]
    poisoned = [i for i, flag in enumerate(is_poisoned) if flag]
    clean = [i for i, flag in enumerate(is_poisoned) if not flag]
    return {
        "precision": share(is_poisoned[i] for i in flagged),
        "tpr": share(suspect[i] for i in poisoned),
        "fpr": share(suspect[i] for i in clean),
        "auroc": slow_auroc(score, is_poisoned),
    }


def slow_filter(clean_plain, clean_stamped, triggered_plain, triggered_stamped, true):
    n = range(len(true))
    return {
        "c_rej": share(clean_plain[i] != clean_stamped[i] for i in n),
        "psr": share(clean_plain[i] == clean_stamped[i] and clean_stamped[i] == true[i] for i in n),
        "b_rej": share(triggered_plain[i] != triggered_stamped[i] for i in n),
        "dsr": share(
            triggered_plain[i] != triggered_stamped[i] or triggered_stamped[i] == true[i] for i in n
        ),
    }


def some_predictions(generator, true, right):
    """Predictions that are right for about so large a share."""
    return np.where(generator.random(len(true)) < right, true, generator.integers(0, K, len(true)))


@pytest.fixture(params=range(4))
def generator(request):
    return np.random.default_rng(request.param)


@pytest.fixture
def true(generator):
    return generator.integers(0, K, 57)


def test_clean_accuracy(generator, true):
    predicted = some_predictions(generator, true, 0.7)
    assert clean_accuracy(predicted, true) == pytest.approx(slow_ca(predicted, true), abs=1e-12)


def test_class_accuracies(generator, true):
    predicted = some_predictions(generator, true, 0.7)
    accuracies = class_accuracies(predicted, true, K)
    assert accuracies.dtype == np.float64
    assert accuracies == pytest.approx(slow_class_accuracies(predicted, true), abs=1e-12)


def test_class_without_samples_is_nan():
    accuracies = class_accuracies(np.array([0, 2]), np.array([0, 0]), 3)
    np.testing.assert_array_equal(accuracies, [0.5, np.nan, np.nan])


@pytest.mark.parametrize("target", range(K))
def test_attack_success_rate(generator, true, target):
    predicted = some_predictions(generator, true, 0.4)
    expected = slow_asr(predicted, true, target)
    wanted = AllToOne(target_class=target).target_labels(true, K)
    assert attack_success_rate(predicted, true, wanted) == pytest.approx(expected, abs=1e-12)


def test_attack_success_rate_all_to_all_counts_every_image(generator, true):
    predicted = np.where(generator.random(57) < 0.5, (true + 1) % K, true)
    expected = slow_asr(predicted, true, None)
    wanted = AllToAll().target_labels(true, K)
    assert attack_success_rate(predicted, true, wanted) == pytest.approx(expected, abs=1e-12)


def test_attack_success_rate_leaves_the_target_class_out():
    predicted = true = np.array([1, 1, 0])
    assert attack_success_rate(predicted, true, np.array([1, 1, 1])) == 0.0


@pytest.mark.parametrize("without", [None, 0, 1, 3])
def test_backdoor_accuracy_both_ways(generator, true, without):
    predicted = some_predictions(generator, true, 0.5)
    expected = slow_ba(predicted, true, without)
    measured = backdoor_accuracy(predicted, true, without_class=without)
    assert measured == pytest.approx(expected, abs=1e-12)


def test_backdoor_accuracy_ways_differ_where_they_should():
    predicted, true = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])
    assert backdoor_accuracy(predicted, true) == 0.5
    assert backdoor_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1])) == 0.5
    left = backdoor_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1]), without_class=0)
    assert left == 0.0


@pytest.mark.parametrize(
    ("ca", "defended_ca", "asr", "defended_asr", "expected"),
    [
        (0.9, 0.9, 1.0, 0.0, 1.0),
        (0.9, 0.9, 1.0, 1.0, 0.5),
        (0.9, 0.0, 1.0, 1.0, 0.05),
        (0.9, 0.95, 1.0, 0.25, 0.875),
        (0.9, 0.8, 0.1, 0.4, 0.45),
        (0.5, 0.25, 0.75, 0.25, 0.625),
    ],
)
def test_defense_effectiveness_rating(ca, defended_ca, asr, defended_asr, expected):
    rating = defense_effectiveness_rating(ca, defended_ca, asr, defended_asr)
    assert rating == pytest.approx(expected, abs=1e-12)


def test_filter_rates(generator, true):
    four = [some_predictions(generator, true, right) for right in (0.9, 0.8, 0.3, 0.6)]
    assert filter_rates(*four, true) == pytest.approx(slow_filter(*four, true), abs=1e-12)


def test_filter_rates_by_hand():
    true = np.array([0, 0, 0, 0])
    rates = filter_rates(
        clean_plain=np.array([0, 0, 1, 1]),
        clean_stamped=np.array([0, 1, 0, 1]),
        triggered_plain=np.array([1, 1, 1, 0]),
        triggered_stamped=np.array([1, 0, 2, 0]),
        true=true,
    )
    assert rates == {"c_rej": 0.5, "psr": 0.25, "b_rej": 0.5, "dsr": 0.75}


@pytest.mark.parametrize("ties", [False, True])
def test_detection_rates(generator, ties):
    is_poisoned = generator.random(40) < 0.3
    score = generator.normal(size=40) + is_poisoned
    if ties:
        score = np.round(score)
    suspect = score > 0.5
    expected = slow_detection(suspect, score, is_poisoned)
    assert detection_rates(suspect, score, is_poisoned) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("suspect", "is_poisoned", "undefined"),
    [
        ([False, False], [True, False], {"precision"}),
        ([True, False], [False, False], {"tpr", "auroc"}),
        ([True, False], [True, True], {"fpr", "auroc"}),
    ],
)
def test_detection_rates_over_nothing_are_nan(suspect, is_poisoned, undefined):
    rates = detection_rates(np.array(suspect), np.array([0.1, 0.2]), np.array(is_poisoned))
    assert {name for name, rate in rates.items() if math.isnan(rate)} == undefined


def test_rates_over_nothing_are_nan():
    none = np.array([], dtype=np.int64)
    assert math.isnan(clean_accuracy(none, none))
    assert math.isnan(attack_success_rate(np.array([1]), np.array([1]), np.array([1])))
    assert math.isnan(backdoor_accuracy(np.array([1]), np.array([1]), without_class=1))


def test_rating_without_an_attack_is_nan():
    assert math.isnan(defense_effectiveness_rating(0.9, 0.8, math.nan, math.nan))


@pytest.fixture
def run(generator, true):
    """Predictions, ledger and oracle of a made-up run."""
    names = [
        f"{net}_{images}_{condition}"
        for net in ("defended", "undefended")
        for images in ("clean", "triggered")
        for condition in ("plain", "stamped")
    ]
    predictions = pd.DataFrame(
        {"true_label": true}
        | {name: some_predictions(generator, true, generator.random()) for name in names}
    )
    n = 30
    label = generator.integers(0, K, n)
    is_poisoned = generator.random(n) < 0.4
    suspect = generator.random(n) < 0.5
    ledger = pd.DataFrame(
        {
            "sample_id": np.arange(n),
            "label": np.where(is_poisoned, 1, label),
            "trusted": ~is_poisoned & ~suspect & (generator.random(n) < 0.5),
            "score": generator.normal(size=n),
            "suspect": suspect,
            "pseudo_label": some_predictions(generator, label, 0.6),
            "stamped": suspect & (generator.random(n) < 0.7),
        }
    )
    oracle = pd.DataFrame(
        {
            "sample_id": np.arange(n),
            "true_label": label,
            "is_poisoned": is_poisoned,
            "is_cover": ~is_poisoned & (generator.random(n) < 0.3),
        }
    )
    return predictions, ledger, oracle


def test_pseudo_labels_are_graded_where_there_is_one(run):
    predictions, ledger, oracle = run
    suspects = np.flatnonzero(ledger["suspect"])
    given = {"labels": AllToAll(), "num_classes": K, "deployed_stamped": True}
    pseudo = oracle["true_label"].to_numpy().copy()
    pseudo[suspects[0]] = (pseudo[suspects[0]] + 1) % K
    for left_out, right in ((suspects[1:2], 1 - 1 / (len(suspects) - 1)), (suspects[:1], 1.0)):
        some = pseudo.copy()
        some[left_out] = DROPPED
        metrics = summarize(predictions, ledger.assign(pseudo_label=some), oracle, **given)
        assert metrics["pseudo_label_accuracy"] == pytest.approx(right)
    none = ledger.assign(pseudo_label=np.where(ledger["suspect"], DROPPED, pseudo))
    assert math.isnan(summarize(predictions, none, oracle, **given)["pseudo_label_accuracy"])


@pytest.mark.parametrize("deployed_stamped", [True, False])
@pytest.mark.parametrize("labels", [AllToOne(target_class=1), AllToAll()], ids=lambda it: it.name)
def test_summarize(run, labels, deployed_stamped):
    predictions, ledger, oracle = run
    target = 1 if labels.name == "all_to_one" else None
    columns = {name: predictions[name].tolist() for name in predictions}
    true = columns.pop("true_label")

    def figures(net, condition):
        clean, triggered = (columns[f"{net}_{i}_{condition}"] for i in ("clean", "triggered"))
        classes = slow_class_accuracies(clean, true)
        measured = {
            "ca": slow_ca(clean, true),
            "ca_worst_class": min(classes),
            "asr": slow_asr(triggered, true, target),
            "ba": slow_ba(triggered, true),
        }
        if target is None:
            return measured
        return measured | {
            "ca_target_class": classes[target],
            "ba_without_target": slow_ba(triggered, true, target),
        }

    condition = "stamped" if deployed_stamped else "plain"
    defended, plain = figures("defended", condition), figures("defended", "plain")
    undefended = figures("undefended", "plain")
    drops = [
        before - after
        for before, after in zip(
            slow_class_accuracies(columns["undefended_clean_plain"], true),
            slow_class_accuracies(columns[f"defended_clean_{condition}"], true),
            strict=True,
        )
    ]
    suspect, poisoned = ledger["suspect"].tolist(), oracle["is_poisoned"].tolist()
    untrusted = [row for row in range(len(ledger)) if not ledger["trusted"][row]]
    detection = slow_detection(
        [suspect[row] for row in untrusted],
        [ledger["score"][row] for row in untrusted],
        [poisoned[row] for row in untrusted],
    )
    named = [p == t for p, t in zip(ledger["pseudo_label"], oracle["true_label"], strict=True)]
    expected = (
        defended
        | {f"{name}_unstamped": value for name, value in plain.items()}
        | {f"undefended_{name}": value for name, value in undefended.items()}
        | {
            "ca_drop": undefended["ca"] - defended["ca"],
            "ca_drop_worst_class": max(drops),
            "der": (
                max(0, undefended["asr"] - defended["asr"])
                - max(0, undefended["ca"] - defended["ca"])
                + 1
            )
            / 2,
        }
        | slow_filter(
            columns["defended_clean_plain"],
            columns["defended_clean_stamped"],
            columns["defended_triggered_plain"],
            columns["defended_triggered_stamped"],
            true,
        )
        | {f"detection_{name}": value for name, value in detection.items()}
        | {
            "pseudo_label_accuracy": share(
                hit for hit, flag in zip(named, suspect, strict=True) if flag
            ),
            "pseudo_label_accuracy_all": share(named),
            "n_train": len(ledger),
            "n_trusted": sum(ledger["trusted"].tolist()),
            "n_poisoned": sum(poisoned),
            "n_cover": sum(oracle["is_cover"].tolist()),
            "n_suspects": sum(suspect),
            "n_stamped": sum(ledger["stamped"].tolist()),
        }
    )
    metrics = summarize(
        predictions,
        ledger,
        oracle,
        labels=labels,
        num_classes=K,
        deployed_stamped=deployed_stamped,
    )
    assert set(metrics) == set(expected)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize("detects", [True, False])
def test_a_defence_that_detects_or_labels_nothing_has_no_rates_of_it(run, detects):
    predictions, ledger, oracle = run
    ledger = ledger.assign(suspect=ledger["suspect"] & detects, pseudo_label=-1, stamped=False)
    settings = {"labels": AllToOne(target_class=1), "num_classes": K, "deployed_stamped": False}
    metrics = summarize(predictions, ledger, oracle, **settings)
    undefined = {"pseudo_label_accuracy", "pseudo_label_accuracy_all"}
    if not detects:
        undefined |= {name for name in metrics if name.startswith("detection_")}
        assert len(undefined) == 6
    assert {name for name, value in metrics.items() if math.isnan(value)} == undefined


def test_without_an_attack_what_triggered_images_measure_is_nan(run):
    predictions, ledger, oracle = run
    clean = oracle.assign(is_poisoned=False, is_cover=False)
    settings = {"labels": AllToOne(), "num_classes": K, "deployed_stamped": True}
    usual = summarize(predictions, ledger, oracle, **settings)
    metrics = summarize(predictions, ledger, clean, **settings)
    gone = {name for name, value in metrics.items() if math.isnan(value)}
    rates = [f"{net}{rate}" for net in ("", "undefended_") for rate in ("asr", "ba")]
    more = {"asr_unstamped", "ba_unstamped", "der", "b_rej", "dsr"}
    assert gone == {*rates, *more, "detection_tpr", "detection_auroc"}
    assert not [name for name in metrics if "target" in name]
    assert metrics["detection_precision"] == 0
    for name in ("ca", "ca_unstamped", "undefended_ca", "ca_drop", "c_rej", "psr", "n_suspects"):
        assert metrics[name] == usual[name]
