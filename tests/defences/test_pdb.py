"""The defender's own backdoor: labels there and back, and who carries the trigger."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from counterdoor.defences import PDB
from counterdoor.feed import Samples
from counterdoor.models import TrainedNet, build_net
from counterdoor.stamp import Stamp, apply_stamp
from counterdoor.training import fit

SMALL = Stamp(size=3, colour="bright")


@pytest.mark.parametrize(("classes", "shift"), [(2, 1), (3, 1), (3, 2), (10, 7), (10, -1)])
def test_the_mapping_and_its_inverse_are_exact(case, classes, shift):
    label_map = PDB(shift=shift).label_map(classes)
    assert sorted(label_map) == list(range(classes))
    assert list(label_map) == [(label + shift) % classes for label in range(classes)]
    net = replace(case.undefended, num_classes=classes, label_map=label_map)
    learnt = torch.nn.functional.one_hot(torch.tensor(label_map), classes).float()
    assert net.mapped(learnt).argmax(1).tolist() == list(range(classes))


def test_the_deployed_net_is_triggered_and_mapped_back(case):
    made = PDB(trigger=SMALL)(case).net
    assert made.stamp == SMALL
    assert made.label_map == (1, 2, 0)
    images = torch.tensor(case.images_nchw)
    with torch.inference_mode():
        triggered = apply_stamp(images / 255.0, SMALL, made.state["mean"])
        assert float(triggered.max()) == 2.0
        raw = made.build()(triggered)
        deployed = made.deployable()(images)
    expected = torch.stack([raw[:, 1], raw[:, 2], raw[:, 0]], dim=1)
    torch.testing.assert_close(deployed, expected)


@pytest.mark.parametrize("carriers", ["trusted", "all"])
def test_it_is_fit_on_all_samples_and_shifted_copies(case, carriers):
    made = PDB(trigger=SMALL, carriers=carriers, repeats=2)(case).net
    given = case.ledger["label"].tolist()
    rows = [(row, given[row], False) for row in range(48)]
    copied = [row for row in range(48) if carriers == "all" or case.ledger["trusted"][row]]
    rows += [(row, (given[row] + 1) % 3, True) for row in 2 * copied]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    net = build_net(case.model, case.images_nchw, 3, seed=0, stream="train/init")
    samples = Samples(case.images_nchw, *columns)
    expected = fit(net, samples, case.recipe, seed=0, stream="defended", stamp=SMALL)
    assert all(torch.equal(made.state[name], each) for name, each in expected.state.items())


def test_carriers_are_a_share_of_every_class(case):
    rows = PDB(share=0.5).carrier_rows(case.ledger, seed=1)
    chosen = case.ledger.loc[rows]
    assert chosen["trusted"].all()
    assert chosen["label"].value_counts().to_dict() == {0: 2, 1: 2, 2: 2}
    assert rows.tolist() != PDB(share=0.5).carrier_rows(case.ledger, seed=2).tolist()


def test_it_learns_both_and_tells_them_apart(digits_case):
    """On the samples it was trained on: plain ones their label, triggered ones the next."""
    quick = digits_case.recipe.model_copy(update={"epochs": 12})
    made: TrainedNet = PDB(carriers="all", repeats=1)(replace(digits_case, recipe=quick)).net
    labels = digits_case.ledger["label"].to_numpy()
    images = torch.tensor(digits_case.images_nchw)
    with torch.inference_mode():
        plain = made.build()(images / 255.0).argmax(1).numpy()
        deployed = made.deployable()(images).argmax(1).numpy()
    assert (plain == labels).mean() > 0.85
    assert (deployed == labels).mean() > 0.85


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shift": 3}, "shift 3 moves no label of 3 classes; use one from 1 to 2"),
        ({"shift": 0}, "shift 0 moves no label"),
        ({"share": 0.01}, "share 0.01 of every class's carriers is nobody"),
    ],
)
def test_what_would_do_nothing_is_refused(case, settings, words):
    with pytest.raises(ValueError, match=words):
        PDB(**settings).check(case.images_nchw, case.ledger, 3, case.model)


def test_carriers_of_all_samples_need_no_trusted_ones(case):
    PDB(carriers="all").check(case.images_nchw, case.ledger.assign(trusted=False), 3, case.model)
