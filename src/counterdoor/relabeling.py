"""From suspects and pseudo-labels to the plan that the defended training follows."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from counterdoor.feed import Samples
from counterdoor.ledger import DROPPED, stratified_rows
from counterdoor.seeding import numpy_generator


@dataclass(frozen=True)
class Relabeled:
    """What the stage *relabel* gives.

    Attributes:
        ledger: the ledger with ``pseudo_label`` and ``stamped``.
        plan: one row for every sample of the defended training, in this order:
            ``sample_id``, ``label`` (to train with), ``stamped``, and ``role``:
            ``kept``, ``confirmed`` (a suspect whose pseudo-label agrees),
            ``stamped`` (a suspect relabelled and stamped) or ``trusted_stamp``
            (a stamped copy of a trusted sample, with its own label), ``agreed_stamp``
            (the same of an untrusted sample that nothing speaks against) or
            ``calm_stamp`` (the same of one of the least suspicious samples).
    """

    ledger: pd.DataFrame
    plan: pd.DataFrame


def make_plan(
    ledger: pd.DataFrame,
    pseudo_labels: np.ndarray,
    *,
    trusted_stamps: int = 0,
    agreed_stamps: float = 0.0,
    calm_stamps: float = 0.0,
    stamp_repeats: int = 1,
    balanced_stamps: bool = False,
    seed: int = 0,
) -> Relabeled:
    """Relabel every suspect, and stamp those whose label changed.

    That alone leaves no stamped sample with the target label, so a net that sees the
    stamp clearly learns "stamped = not the target class" as well and misreads clean
    images of that class. Stamped samples that keep their label mend that: trusted
    ones, and untrusted ones that nothing speaks against. A poisoned sample can be
    among the latter only if it was not suspected *and* the labeler, which has not
    seen the trigger's label, takes it for the target. Calm stamps need neither
    trusted images nor pseudo-labels, only the detector's scores.

    Args:
        ledger: with ``label``, ``trusted`` and ``suspect``; not changed.
        pseudo_labels: int64, shape (N,), class indices or ``DROPPED``.
        trusted_stamps: how many stamped copies of every trusted sample, with its own
            label, are added; without effect where no suspect is stamped.
        agreed_stamps: share of every class's untrusted, unsuspected samples with a
            pseudo-label equal to their label, of which a stamped copy is added; in
            [0, 1]; without effect where no suspect is stamped.
        calm_stamps: share of every class's untrusted, unsuspected samples, the least
            suspicious ones by ``score``, of which a stamped copy is added with the label
            they came with; in [0, 1]; without effect where no suspect is stamped.
        stamp_repeats: how often a stamped suspect occurs.
        balanced_stamps: stamped copies of more agreed samples are added to the classes that are
            rarer among the stamped samples than among the agreed ones, as many as they lack or
            have, so that the stamp says less about the class; without effect where no suspect is
            stamped.
        seed: the run's seed; draws the agreed samples.

    Raises:
        ValueError: if nothing is left to train on.

    Source: NAB, section 4.2; all but the relabelled suspects' stamps are ours.
    """
    suspect = ledger["suspect"].to_numpy()
    given = ledger["label"].to_numpy()
    dropped = suspect & (pseudo_labels == DROPPED)
    stamped = suspect & ~dropped & (pseudo_labels != given)
    relabeled = ledger.assign(pseudo_label=pseudo_labels, stamped=stamped)
    plan = pd.DataFrame(
        {
            "sample_id": ledger["sample_id"],
            "label": np.where(stamped, pseudo_labels, given),
            "stamped": stamped,
            "role": np.select([stamped, suspect], ["stamped", "confirmed"], "kept"),
        }
    )[~dropped]
    if stamped.any():
        again = ledger[["sample_id", "label"]].assign(stamped=True)
        trusted = again[ledger["trusted"]].assign(role="trusted_stamp")
        free = ~suspect & ~ledger["trusted"].to_numpy()
        agreed = np.flatnonzero(free & (pseudo_labels == given))
        generator = numpy_generator(seed, "relabel/agreed")
        drawn = agreed[stratified_rows(given[agreed], agreed_stamps, generator)]
        parts = [
            plan,
            *[plan[plan["stamped"]]] * (stamp_repeats - 1),
            *[trusted] * trusted_stamps,
            again.iloc[drawn].assign(role="agreed_stamp"),
            again.iloc[_calmest(ledger, free, calm_stamps)].assign(role="calm_stamp"),
        ]
        if balanced_stamps:
            stamps = pd.concat(part[part["stamped"]] for part in parts)
            more = _rarest(stamps["label"].to_numpy(), given, agreed, drawn, seed)
            parts.append(again.iloc[more].assign(role="agreed_stamp"))
        plan = pd.concat(parts, ignore_index=True)
    if not len(plan):
        raise ValueError("every sample is a suspect and dropped: nothing is left to train on")
    return Relabeled(relabeled, plan.reset_index(drop=True))


def _rarest(
    stamped_labels: np.ndarray, given: np.ndarray, agreed: np.ndarray, drawn: np.ndarray, seed: int
) -> np.ndarray:
    """Of the agreed rows not drawn yet, what each class lacks to have its share of the stamped.

    Its share is that of the agreed rows: of all labels, the attacker's are among them.
    """
    generator = numpy_generator(seed, "relabel/balanced")
    left = np.setdiff1d(agreed, drawn)
    chosen = []
    for label in np.unique(given[agreed]):
        wanted = len(stamped_labels) * (given[agreed] == label).mean()
        missing = max(0, math.ceil(wanted - (stamped_labels == label).sum()))
        chosen.append(generator.permutation(left[given[left] == label])[:missing])
    return np.sort(np.concatenate(chosen)) if chosen else left


def _calmest(ledger: pd.DataFrame, free: np.ndarray, share: float) -> np.ndarray:
    """Rows of round(share * n) least suspicious free samples of each class, sorted."""
    if not share:
        return np.empty(0, dtype=np.int64)
    by_score = ledger.loc[free, ["label", "score"]].sort_values("score", kind="stable")
    classes = by_score.groupby("label", sort=False)
    calm = by_score[classes.cumcount() < (classes["score"].transform("size") * share).round()]
    return np.sort(calm.index.to_numpy(dtype=np.int64))


def plan_samples(images_nchw: np.ndarray, plan: pd.DataFrame) -> Samples:
    """The samples of the defended training; images uint8, shape (N, C, H, W)."""
    return Samples(
        images_nchw,
        plan["sample_id"].to_numpy(),
        plan["label"].to_numpy(),
        plan["stamped"].to_numpy(),
    )


def ledger_samples(images_nchw: np.ndarray, ledger: pd.DataFrame) -> Samples:
    """All samples with the labels they came with, nothing stamped: the undefended twin's."""
    return Samples(images_nchw, ledger["sample_id"].to_numpy(), ledger["label"].to_numpy())
