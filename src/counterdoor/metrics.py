"""The field's measures, each defined once. All rates are in [0, 1].

Arguments are one-dimensional arrays over samples: ``predicted`` and ``true`` hold
class indices, flags are bool. A rate over no sample is NaN.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from counterdoor.attacks import LabelMappingBase
from counterdoor.ledger import DROPPED


def _rate(hits: np.ndarray) -> float:
    return float(np.mean(hits)) if len(hits) else float("nan")


def clean_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """CA: mean(pred = y) on clean test images."""
    return _rate(predicted == true)


def class_accuracies(predicted: np.ndarray, true: np.ndarray, num_classes: int) -> np.ndarray:
    """Accuracy within each class, float64, shape (K,); NaN for a class without samples."""
    return np.array(
        [_rate(predicted[true == label] == label) for label in range(num_classes)], dtype=np.float64
    )


def attack_success_rate(predicted: np.ndarray, true: np.ndarray, target: np.ndarray) -> float:
    """ASR: share taken for the target among triggered test images that are not of it anyway.

    ``target`` is what the attacker wants each image to be taken for. With one target
    class its own images do not count; in an all-to-all attack every image does.
    """
    other = true != target
    return _rate(predicted[other] == target[other])


def backdoor_accuracy(
    predicted: np.ndarray, true: np.ndarray, *, without_class: int | None = None
) -> float:
    """BA: mean(pred = y) on triggered test images.

    The NAB authors count the target class; BackdoorBench leaves it out
    (``without_class``) and calls the figure RA.
    """
    counted = np.ones(len(true), dtype=bool) if without_class is None else true != without_class
    return _rate(predicted[counted] == true[counted])


def defense_effectiveness_rating(
    undefended_ca: float, defended_ca: float, undefended_asr: float, defended_asr: float
) -> float:
    """DER = [max(0, drop of ASR) - max(0, drop of CA) + 1] / 2; 0.5 = no effect, 1 = perfect.

    NaN without an attack.
    """
    if np.isnan(undefended_asr) or np.isnan(defended_asr):
        return float("nan")
    return (
        max(0.0, undefended_asr - defended_asr) - max(0.0, undefended_ca - defended_ca) + 1.0
    ) / 2.0


def filter_rates(
    clean_plain: np.ndarray,
    clean_stamped: np.ndarray,
    triggered_plain: np.ndarray,
    triggered_stamped: np.ndarray,
    true: np.ndarray,
) -> dict[str, float]:
    """Test data filtering: an image whose prediction changes under the stamp is rejected.

    Args:
        clean_plain: predictions on clean test images.
        clean_stamped: on the same images, stamped.
        triggered_plain: on triggered test images.
        triggered_stamped: on the same images, stamped.
        true: true labels of all four.

    Returns:
        ``c_rej`` and ``b_rej``, rejected shares of clean and triggered images;
        ``psr`` (prediction success), clean images accepted and right; ``dsr``
        (defence success), triggered images rejected or right.

    Source: NAB, section 4.3.
    """
    clean_rejected = clean_plain != clean_stamped
    triggered_rejected = triggered_plain != triggered_stamped
    return {
        "c_rej": _rate(clean_rejected),
        "psr": _rate((clean_stamped == true) & ~clean_rejected),
        "b_rej": _rate(triggered_rejected),
        "dsr": _rate((triggered_stamped == true) | triggered_rejected),
    }


def detection_rates(
    suspect: np.ndarray, score: np.ndarray, is_poisoned: np.ndarray
) -> dict[str, float]:
    """How well suspects are poisoned samples.

    Args:
        suspect: bool, flagged samples.
        score: float, higher = more suspicious.
        is_poisoned: bool, from the oracle.

    Returns:
        ``precision`` = TP / flagged (the authors' "accuracy"), ``tpr``, ``fpr``,
        and ``auroc`` of the score; NaN where a rate has no sample to count.
    """
    from sklearn.metrics import roc_auc_score

    both = is_poisoned.any() and not is_poisoned.all()
    return {
        "precision": _rate(is_poisoned[suspect]),
        "tpr": _rate(suspect[is_poisoned]),
        "fpr": _rate(suspect[~is_poisoned]),
        "auroc": float(roc_auc_score(is_poisoned, score)) if both else float("nan"),
    }


def summarize(
    predictions: pd.DataFrame,
    ledger: pd.DataFrame,
    oracle: pd.DataFrame,
    *,
    labels: LabelMappingBase,
    num_classes: int,
    deployed_stamped: bool,
) -> dict[str, float]:
    """Every measure of a run, from predictions, the ledger and the oracle.

    Args:
        predictions: one row a test image with ``true_label`` and the class that
            each net predicts in each condition: ``{defended,undefended}_
            {clean,triggered}_{plain,stamped}``; ``…_one_view`` may be there, too.
        ledger: the training ledger with all columns.
        oracle: ``true_label``, ``is_poisoned`` and ``is_cover`` of the training samples.
        labels: the attack's label mapping.
        num_classes: number of classes K.
        deployed_stamped: whether the defended net is deployed with the stamp.

    Returns:
        Metrics by name. ``ca``, ``asr``, ``ba`` are the defended net's as deployed;
        ``*_unstamped`` without the stamp; ``undefended_*`` the twin's; ``*_drop``
        are undefended minus defended, so below 0 is a gain; ``detection_*`` are
        over the untrusted samples, where a cover sample counts as clean.
        ``ca_one_view`` is CA without the mirror image, where the net looks at it.
        ``ca_target_class`` and ``ba_without_target`` are there if the attack has one
        target class. Detection rates are NaN if nobody is a suspect, and those of
        pseudo-labels if nobody has one: such a defence detects or labels nothing. Where
        nobody is poisoned, what is measured on triggered images is NaN.
    """
    attacked = bool(oracle["is_poisoned"].any())
    true = predictions["true_label"].to_numpy()
    deployed = "stamped" if deployed_stamped else "plain"
    wanted = labels.target_labels(true, num_classes)
    target_class = labels.single_target if attacked else None

    def predicted(net: str, images: str, condition: str) -> np.ndarray:
        return predictions[f"{net}_{images}_{condition}"].to_numpy()

    def net_figures(net: str, condition: str) -> tuple[dict[str, float], np.ndarray]:
        clean, triggered = (predicted(net, images, condition) for images in ("clean", "triggered"))
        classes = class_accuracies(clean, true, num_classes)
        figures = {
            "ca": clean_accuracy(clean, true),
            "ca_worst_class": float(np.nanmin(classes)),
            "asr": attack_success_rate(triggered, true, wanted) if attacked else math.nan,
            "ba": backdoor_accuracy(triggered, true) if attacked else math.nan,
        }
        one_view = f"{net}_clean_{condition}_one_view"
        if one_view in predictions:
            figures["ca_one_view"] = clean_accuracy(predictions[one_view].to_numpy(), true)
        if target_class is not None:
            figures |= {
                "ca_target_class": float(classes[target_class]),
                "ba_without_target": backdoor_accuracy(triggered, true, without_class=target_class),
            }
        return figures, classes

    defended, defended_classes = net_figures("defended", deployed)
    unstamped, _ = net_figures("defended", "plain")
    undefended, undefended_classes = net_figures("undefended", "plain")
    rejected = filter_rates(
        clean_plain=predicted("defended", "clean", "plain"),
        clean_stamped=predicted("defended", "clean", "stamped"),
        triggered_plain=predicted("defended", "triggered", "plain"),
        triggered_stamped=predicted("defended", "triggered", "stamped"),
        true=true,
    )
    if not attacked:
        rejected |= {"b_rej": math.nan, "dsr": math.nan}
    suspect = ledger["suspect"].to_numpy()
    pseudo_labels = ledger["pseudo_label"].to_numpy()
    named = pseudo_labels != DROPPED
    pseudo = pseudo_labels == oracle["true_label"].to_numpy()
    untrusted = ~ledger["trusted"].to_numpy()  # a trusted sample is never suspected
    detection = detection_rates(
        suspect[untrusted],
        ledger["score"].to_numpy()[untrusted],
        oracle["is_poisoned"].to_numpy()[untrusted],
    )
    if not suspect.any():
        detection = dict.fromkeys(detection, float("nan"))
    metrics: dict[str, float] = {
        **defended,
        **{f"{name}_unstamped": value for name, value in unstamped.items()},
        **{f"undefended_{name}": value for name, value in undefended.items()},
        "ca_drop": undefended["ca"] - defended["ca"],
        "ca_drop_worst_class": float(np.nanmax(undefended_classes - defended_classes)),
        "der": defense_effectiveness_rating(
            undefended["ca"], defended["ca"], undefended["asr"], defended["asr"]
        ),
        **rejected,
        **{f"detection_{name}": value for name, value in detection.items()},
        "pseudo_label_accuracy": _rate(pseudo[suspect & named]),
        "pseudo_label_accuracy_all": _rate(pseudo[named]),
        **_counts(ledger, oracle),
    }
    return metrics


def _counts(ledger: pd.DataFrame, oracle: pd.DataFrame) -> Mapping[str, float]:
    return {
        "n_train": float(len(ledger)),
        "n_trusted": float(ledger["trusted"].sum()),
        "n_poisoned": float(oracle["is_poisoned"].sum()),
        "n_cover": float(oracle["is_cover"].sum()),
        "n_suspects": float(ledger["suspect"].sum()),
        "n_stamped": float(ledger["stamped"].sum()),
    }
