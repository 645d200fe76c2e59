"""Features beside those of the neighbours, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from st_predict._sections._neighbourhood import join_neighbours, standardize

RNG = np.random.default_rng(0)


def features(n: int, d: int = 5) -> np.ndarray:
    return RNG.normal(3, 2, (n, d)).astype(np.float32)


def test_mean_of_the_nearest_others() -> None:
    x, xy = features(60), RNG.uniform(0, 100, (60, 2))
    distance, near = NearestNeighbors(n_neighbors=10).fit(xy).kneighbors(xy)
    clear = distance[:, 9] > 1.01 * distance[:, 8]  # which eight are the nearest
    assert clear.sum() > 40
    expected = x[near[:, 1:9]].mean(1)
    found = join_neighbours(x, xy, 8)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :5], x)
    np.testing.assert_allclose(found[clear, 5:], expected[clear], rtol=1e-5)


def test_spots_that_are_equally_far_all_count() -> None:
    rows, columns = np.mgrid[:5, :5]
    xy = np.column_stack([rows.ravel(), columns.ravel()]).astype(float) + RNG.normal(0, 1e-6, (25, 2))
    x = features(25)
    middle = join_neighbours(x, xy, 3)[12, 5:]
    np.testing.assert_allclose(middle, x[[7, 11, 13, 17]].mean(0), rtol=1e-5)


def test_order_of_spots_does_not_matter() -> None:
    x, xy = features(40), RNG.integers(0, 8, (40, 2)).astype(float)
    order = RNG.permutation(40)
    found = join_neighbours(x, xy, 4)
    np.testing.assert_allclose(join_neighbours(x[order], xy[order], 4), found[order], rtol=1e-5)


def test_spots_outside_the_image_are_nobodys_neighbours() -> None:
    x, xy = features(4), np.array([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    x[1] = np.nan
    found = join_neighbours(x, xy, 1)
    np.testing.assert_allclose(found[0, 5:], x[2])
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("n_known", [0, 1, 2])
def test_few_spots(n_known: int) -> None:
    x = features(3)
    x[n_known:] = np.nan
    found = join_neighbours(x, np.arange(6.0).reshape(3, 2), 8)
    expected = {0: x[:0], 1: x[:1], 2: x[[1, 0]]}[n_known]
    np.testing.assert_allclose(found[:n_known, 5:], expected)
    assert np.isnan(found[n_known:]).all()


def test_standardized_as_by_scikit_learn() -> None:
    x = features(50)
    x[:, 2] = 0.1  # constant
    x[7] = np.nan
    found = standardize(x)
    known = np.delete(np.arange(50), 7)
    np.testing.assert_allclose(found[known], StandardScaler().fit_transform(x[known].astype(float)), atol=1e-5)
    assert np.isnan(found[7]).all()
    assert (found[known, 2] == 0).all()
    assert np.isnan(standardize(np.full((3, 2), np.nan, np.float32))).all()
