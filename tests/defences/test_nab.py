"""NAB's net, and the one of nobody."""

from dataclasses import replace

import torch

from counterdoor.defences import NAB, NoDefence
from counterdoor.models import build_net
from counterdoor.relabeling import plan_samples
from counterdoor.training import fit


def test_nab_is_fit_on_the_plan_from_the_twins_initial_weights(case):
    made = NAB()(case)
    net = build_net(case.model, case.images_nchw, 3, seed=0, stream="train/init")
    samples = plan_samples(case.images_nchw, case.plan)
    expected = fit(net, samples, case.recipe, seed=0, stream="defended", stamp=case.stamp)
    assert all(torch.equal(made.net.state[name], each) for name, each in expected.state.items())
    assert made.history["loss"].tolist() == expected.history["loss"].tolist()
    assert made.net.stamp == case.stamp
    assert made.net.label_map is None


def test_nab_is_deployed_without_the_stamp_if_nobody_was_stamped(case):
    plain = replace(case, plan=case.plan.assign(stamped=False))
    assert NAB()(plain).net.stamp is None


def test_no_defence_gives_the_undefended_net_back(case):
    made = NoDefence()(case)
    assert made.net is case.undefended
    assert made.history is case.undefended_history
