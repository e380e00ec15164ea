"""Label mappings against their definition, class by class."""

import numpy as np
import pytest

from counterdoor.attacks import AllToAll, AllToOne


@pytest.mark.parametrize("target", range(4))
def test_all_to_one(target):
    true = np.array([0, 3, 1, target, 2])
    mapped = AllToOne(target_class=target).target_labels(true, 4)
    assert mapped.tolist() == [target] * 5
    assert mapped.dtype == np.int64
    assert AllToOne(target_class=target).single_target == target


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_all_to_all_is_the_next_class_and_comes_round(dtype):
    mapped = AllToAll().target_labels(np.array([0, 1, 2, 3, 3], dtype=dtype), 4)
    assert mapped.tolist() == [1, 2, 3, 0, 0]
    assert mapped.dtype == np.int64
    assert AllToAll().single_target is None


def test_all_to_all_of_many_classes_does_not_wrap_round_in_the_labels_type():
    assert AllToAll().target_labels(np.array([255], dtype=np.uint8), 1000).tolist() == [256]


def test_a_target_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"target_class is 2, but the data has 2 classes, 0\.\.1"):
        AllToOne(target_class=2).check(["a", "b"])
    AllToOne(target_class=1).check(["a", "b"])
    AllToAll().check(["a", "b"])
