"""The quantum entropy score against its formula, and the choice of k."""

import numpy as np
import pytest
import torch

from counterdoor.detectors.spectre import quantum_entropy_scores, squares
from counterdoor.robust import inverse_root


def cloud(n, k, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, k)) @ generator.normal(size=(k, k)) + generator.normal(size=k)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("alpha", [0.5, 4.0, 30.0])
def test_quantum_entropy_scores(k, alpha):
    """Against torch's matrix exponential and an eigendecomposition, sample by sample."""
    white = cloud(50, k)
    covariance = np.cov(white.T, bias=True).reshape(k, k)
    norm = np.linalg.svd(covariance)[1][0]
    exponent = alpha * (covariance - np.eye(k)) / (norm - 1)
    values, vectors = np.linalg.eigh(exponent)
    by_eigenvalues = vectors @ np.diag(np.exp(values)) @ vectors.T
    by_torch = torch.linalg.matrix_exp(torch.tensor(exponent)).numpy()
    scores = quantum_entropy_scores(white, alpha)
    for weights in (by_eigenvalues, by_torch):
        weights = weights / np.trace(weights)
        expected = [float(row @ weights @ row) for row in white]
        np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_the_exponential_is_not_taken_entry_by_entry():
    white = cloud(50, 5)
    covariance = np.cov(white.T, bias=True)
    exponent = 4 * (covariance - np.eye(5)) / (np.linalg.norm(covariance, 2) - 1)
    weights = np.exp(exponent) / np.trace(np.exp(exponent))
    wrong = np.einsum("ni,ij,nj->n", white, weights, white)
    assert np.abs(quantum_entropy_scores(white, 4) / wrong - 1).max() > 0.1


def test_white_points_have_scores_of_one_on_average():
    points = cloud(500, 6)
    centred = points - points.mean(0)
    white = centred @ inverse_root(centred.T @ centred / 500)
    assert quantum_entropy_scores(white, 4).mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        quantum_entropy_scores(white / 2, 4), ((white / 2) ** 2).sum(1) / 6, rtol=1e-9
    )


def test_a_large_alpha_leaves_the_widest_direction_alone():
    white = np.random.default_rng(0).normal(size=(2000, 4)) * [1, 1, 3, 1]
    scores = quantum_entropy_scores(white, 200)
    np.testing.assert_allclose(scores, white[:, 2] ** 2, rtol=0.2, atol=0.5)


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (3, [1]), (4, [1, 4]), (20, [1, 4, 9, 16])]
)
def test_squares(most, expected):
    assert squares(most) == expected
