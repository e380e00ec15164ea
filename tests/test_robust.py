"""Robust covariance against slow versions, and on points of which some are planted."""

import numpy as np
import pytest

from counterdoor.robust import (
    inverse_root,
    principal_axes,
    trim,
    widest_form,
    within_classes,
)


@pytest.fixture
def points():
    generator = np.random.default_rng(0)
    return generator.normal(size=(200, 6)) @ np.diag([5.0, 3, 2, 1, 0.5, 0]) + 7


def test_axes_are_those_of_the_singular_value_decomposition(points):
    _, sizes, rows = np.linalg.svd(points - points.mean(0), full_matrices=False)
    axes = principal_axes(points, 3)
    np.testing.assert_allclose(np.abs(axes.T @ rows[:3].T), np.eye(3), atol=1e-9)
    assert principal_axes(points, 100).shape == (6, int((sizes > 1e-6).sum())) == (6, 5)


def test_the_inverse_root_whitens(points):
    covariance = np.cov(points[:, :5].T)
    root = inverse_root(covariance)
    np.testing.assert_allclose(root @ covariance @ root, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(root, root.T)


def test_residuals_have_the_classes_own_covariance(points):
    labels = np.arange(200) % 3
    residuals = within_classes(points, labels)
    for label in range(3):
        mine = residuals[labels == label]
        np.testing.assert_allclose(mine.T @ mine / len(mine), np.cov(points[labels == label].T))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_widest_form_is_the_top_eigenvector_of_the_fourth_moment(k):
    """The whole k^2 x k^2 matrix, written out."""
    generator = np.random.default_rng(k)
    raw = generator.standard_t(5, size=(300, k))
    white = raw @ inverse_root(raw.T @ raw / 300)
    flat = np.stack([np.outer(row, row).ravel() for row in white])
    identity = np.eye(k).ravel()
    values, vectors = np.linalg.eigh(flat.T @ flat / 300 - np.outer(identity, identity))
    variance, form = widest_form(white)
    assert variance == pytest.approx(values[-1], rel=1e-6)
    assert abs(form.ravel() @ vectors[:, -1]) == pytest.approx(1, abs=1e-4)


def test_the_filter_takes_planted_points_and_no_more_than_it_may():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(1000, 8))
    points[:50, 2] += 12
    points -= points.mean(0)
    kept = trim(points, share=0.05, limit=100)
    assert not kept[:50].any()
    assert kept.sum() >= 900
    assert trim(points, share=0.05, limit=20).sum() == 980
    assert trim(points, share=0.05, limit=0).all()


def test_the_filter_leaves_normal_points_alone():
    assert trim(np.random.default_rng(1).normal(size=(1000, 8)), share=0.05, limit=100).all()
