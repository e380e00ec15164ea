"""The ledger: rows, stratified draws, and the check that it belongs to the images."""

import numpy as np
import pandas as pd
import pytest

from counterdoor.ledger import check_ledger, new_ledger, stratified_rows


@pytest.fixture
def labels():
    return np.random.default_rng(1).permutation(np.repeat([0, 1, 3], [3, 25, 40])).astype(np.int64)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.5, 0.77, 1.0])
def test_stratified_rows_are_exact_per_class(labels, share):
    rows = stratified_rows(labels, share, np.random.default_rng(0))
    assert rows.dtype == np.int64
    assert list(rows) == sorted(set(rows.tolist()))
    for label in (0, 1, 3):
        n = sum(1 for value in labels if value == label)
        assert sum(1 for row in rows if labels[row] == label) == round(share * n)


def test_stratified_rows_repeat_and_vary(labels):
    first = stratified_rows(labels, 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(first, stratified_rows(labels, 0.5, np.random.default_rng(0)))
    other = stratified_rows(labels, 0.5, np.random.default_rng(1))
    assert not np.array_equal(first, other)


def test_stratified_rows_reach_every_sample(labels):
    drawn = [stratified_rows(labels, 0.5, np.random.default_rng(seed)) for seed in range(40)]
    assert set(np.concatenate(drawn).tolist()) == set(range(len(labels)))


def test_new_ledger_columns_and_types():
    ledger = new_ledger(np.array([2, 0, 1], dtype=np.uint8), np.array([0, 1, 0]))
    assert list(ledger) == ["sample_id", "label", "trusted"]
    assert ledger["sample_id"].tolist() == [0, 1, 2]
    assert ledger["label"].tolist() == [2, 0, 1]
    assert ledger["trusted"].tolist() == [False, True, False]
    assert ledger["sample_id"].dtype == np.int64
    assert ledger["label"].dtype == np.int64
    assert ledger["trusted"].dtype == bool


@pytest.fixture
def ledger():
    return new_ledger(np.array([2, 0, 1]), np.array([False, True, False]))


def test_check_accepts_the_right_ledger(ledger, noise):
    check_ledger(ledger, noise(3), "trusted")
    check_ledger(ledger.assign(score=0.5, suspect=True), noise(3), "score", "suspect")


def test_check_names_the_missing_columns_and_those_there_are(ledger, noise):
    with pytest.raises(ValueError, match="no column score, suspect") as raised:
        check_ledger(ledger, noise(3), "trusted", "score", "suspect")
    assert "'sample_id', 'label', 'trusted'" in str(raised.value)


def test_check_names_both_lengths(ledger, noise):
    with pytest.raises(ValueError, match="3 rows") as raised:
        check_ledger(ledger, noise(4))
    assert "4 images" in str(raised.value)
    assert "different runs" in str(raised.value)


@pytest.mark.parametrize("ids", [[0, 2, 1], [1, 2, 3], [0, 0, 2]], ids=str)
def test_check_refuses_rows_out_of_order(ledger, noise, ids):
    with pytest.raises(ValueError, match=r"sample_id is not 0\.\.N-1 in order"):
        check_ledger(ledger.assign(sample_id=ids), noise(3))


def test_check_refuses_a_ledger_without_sample_ids(noise):
    with pytest.raises(ValueError, match="no column sample_id"):
        check_ledger(pd.DataFrame({"label": [0, 1]}), noise(2))
