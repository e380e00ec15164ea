"""No attack: nothing is changed, nobody is poisoned."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from counterdoor.attacks import NoAttack, draw_rows, poison

NAMES = ["zero", "one", "two", "three"]


def test_nothing_is_changed(noise, unbalanced_ledger):
    images = noise(len(unbalanced_ledger), 3)
    poisoned = poison(NoAttack(), images, unbalanced_ledger, NAMES, seed=3)
    np.testing.assert_array_equal(poisoned.images_nchw, images)
    assert not np.shares_memory(poisoned.images_nchw, images)
    pd.testing.assert_frame_equal(poisoned.ledger, unbalanced_ledger)
    assert poisoned.oracle["true_label"].equals(unbalanced_ledger["label"])
    for flag in ("is_poisoned", "is_cover"):
        assert poisoned.oracle[flag].dtype == bool
        assert not poisoned.oracle[flag].any()
    rows = draw_rows(NoAttack(), unbalanced_ledger, NAMES, seed=3)
    assert len(rows.poisoned) == len(rows.cover) == 0


def test_triggered_images_are_a_copy(noise):
    images = noise(5)
    triggered = NoAttack()(images)
    np.testing.assert_array_equal(triggered, images)
    assert triggered.flags.writeable
    assert not np.shares_memory(triggered, images)


def test_it_has_no_target_and_prepares_nothing():
    assert NoAttack().target_class is None
    assert not NoAttack().needs_preparation
    assert "changes nothing" in NoAttack.capability


@pytest.mark.parametrize("settings", [{"poison_ratio": 0.1}, {"cover_ratio": 0.1}], ids=str)
def test_it_has_no_ratio_but_0(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        NoAttack(**settings)
