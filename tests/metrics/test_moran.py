"""Spatial autocorrelation against scanpy, squidpy, formulas on small graphs, and permutations."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_array, csr_matrix
from scipy.stats import kstest, norm
from sklearn.neighbors import kneighbors_graph

from st_predict import metrics
from st_predict._errors import InvalidTypeError, InvalidValueError


def lattice(side: int = 12) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2).astype(float)


def jittered(seed: int = 0, side: int = 12) -> np.ndarray:
    """Positions without ties between distances."""
    return lattice(side) + np.random.default_rng(seed).uniform(-0.2, 0.2, (side**2, 2))


@pytest.mark.parametrize("k", [1, 6])
def test_neighbours_are_those_of_sklearn(k):
    xy = jittered()
    expected = kneighbors_graph(xy, k, include_self=False) / k
    np.testing.assert_allclose(metrics.neighbour_weights(xy, k=k).toarray(), expected.toarray())


def test_rows_of_weights_have_the_sum_1_and_no_diagonal():
    for xy in (lattice(), np.zeros((9, 2)), np.repeat(lattice(3), 5, axis=0), lattice(2), lattice(2)[:2]):
        weights = metrics.neighbour_weights(xy)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        assert not weights.diagonal().any()
        assert ((weights != 0).sum(axis=1) == min(6, len(xy) - 1)).all()


def test_same_as_scanpy():
    xy = jittered()
    rng = np.random.default_rng(0)
    values = np.column_stack([xy[:, 0], np.sin(xy).sum(axis=1), rng.normal(size=144), rng.poisson(0.1, 144)])
    for weights in (metrics.neighbour_weights(xy), csr_array(np.abs(rng.normal(size=(144, 144))))):
        expected = sc.metrics.morans_i(csr_matrix(weights), values.T.copy())
        np.testing.assert_allclose(metrics.morans_i(values, weights), expected, atol=1e-12)
        np.testing.assert_allclose(metrics.morans_i(values + 1e6, weights.toarray()), expected, atol=1e-8)


@pytest.mark.filterwarnings("ignore")  # of the imports of squidpy
def test_same_as_squidpy():
    import squidpy as sq

    xy = jittered()
    rng = np.random.default_rng(0)
    values = np.column_stack([xy[:, 0], np.sin(xy).sum(axis=1), rng.normal(size=(144, 20)), rng.poisson(0.3, (144, 9))])
    weights = metrics.neighbour_weights(xy)
    table = AnnData(values, obsp={"spatial_connectivities": csr_matrix(weights)})
    table.uns["spatial_neighbors"] = {"connectivities_key": "spatial_connectivities"}
    options = {"transformation": False, "n_perms": None, "two_tailed": False, "show_progress_bar": False, "copy": True}
    expected = sq.gr.spatial_autocorr(table, mode="moran", **options).loc[table.var_names]
    found = metrics.morans_i(values, weights)
    np.testing.assert_allclose(found, expected["I"], atol=1e-12)
    p = metrics.morans_i_pvalues(values, weights, assumption="normality")
    # squidpy gives the tail on the side of the observed value
    above = found > -1 / 143
    assert 5 < above.sum() < len(above)
    np.testing.assert_allclose(np.where(above, p, 1 - p), expected["pval_norm"], atol=1e-12)


def test_by_hand():
    chain = np.diag([1.0, 1, 1], 1) + np.diag([1.0, 1, 1], -1)
    values = np.array([[1.0, 1], [2, -1], [3, 1], [4, -1]])
    # deviations -1.5, -0.5, 0.5, 1.5: neighbours give 2 * (0.75 - 0.25 + 0.75) of 6 weights, squares 5
    np.testing.assert_allclose(metrics.morans_i(values, chain), [4 * 2.5 / (6 * 5), -1])


@pytest.mark.parametrize("kind", ["normal", "poisson"])
def test_pvalues_agree_with_permutations(kind):
    rng = np.random.default_rng(0)
    weights = metrics.neighbour_weights(jittered())
    values = rng.normal(size=144) if kind == "normal" else rng.poisson(0.3, 144).astype(float)
    permuted = rng.permuted(np.repeat(values[:, None], 20_000, axis=1), axis=0)
    null = metrics.morans_i(permuted, weights)
    p = metrics.morans_i_pvalues(permuted, weights)
    np.testing.assert_allclose(null.mean(), -1 / 143, atol=1e-3)
    # the variance that was used, recovered from the p-value of a Moran's I one standard deviation above expectation
    above = np.abs(p - 0.158655).argmin()
    np.testing.assert_allclose(null[above] + 1 / 143, null.std(), rtol=0.02)
    assert np.abs((p < 0.05).mean() - 0.05) < 0.01


def test_normality_is_right_for_normal_values():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(100, 5000))
    weights = metrics.neighbour_weights(jittered(side=10))
    p = metrics.morans_i_pvalues(values, weights, assumption="normality")
    assert kstest(p, "uniform").pvalue > 1e-3
    assert (np.abs(p - metrics.morans_i_pvalues(values, weights)) < 0.02).all()


@pytest.mark.parametrize("kind", ["normal", "depth"])
def test_signs_agree_with_random_signs(kind):
    """By Monte Carlo: magnitudes stay where they are, signs are drawn."""
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 1000, (300, 2))
    weights = metrics.neighbour_weights(xy)
    magnitude = np.abs(rng.normal(size=300)) * (1 if kind == "normal" else np.exp(1.2 * np.sin(xy[:, 0] / 150)))
    signed = magnitude[:, None] * rng.choice([-1, 1], (300, 20_000))
    null, p = metrics.morans_i(signed, weights), metrics.morans_i_pvalues(signed, weights, assumption="signs")
    share = (null[:200, None] <= null).mean(axis=1)
    np.testing.assert_allclose(p[:200], share, atol=0.04)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_signs_of_values_without_depth_agree_with_permutations():
    rng = np.random.default_rng(3)
    weights = metrics.neighbour_weights(rng.uniform(0, 1000, (300, 2)))
    values = rng.normal(size=300)
    permuted = np.column_stack([rng.permutation(values) for _ in range(20_000)])
    moran, p = metrics.morans_i(permuted, weights), metrics.morans_i_pvalues(permuted, weights, assumption="signs")
    z = (moran - moran.mean()) / moran.std()
    assert np.abs(norm.isf(p) - z).mean() < 0.1
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.01)


def test_pattern_is_found_at_a_false_discovery_rate():
    xy = jittered()
    values = np.random.default_rng(0).normal(size=(144, 200))
    values[:, :50] += np.sin(xy[:, :1])
    found = metrics.benjamini_hochberg(metrics.morans_i_pvalues(values, metrics.neighbour_weights(xy))) < 0.05
    assert found[:50].all()
    assert found[50:].mean() < 0.05


def test_constant_genes_and_few_spots_are_undefined():
    xy = jittered()
    weights = metrics.neighbour_weights(xy)
    values = np.column_stack([np.full(144, 0.1), xy[:, 0]])
    for score in (metrics.morans_i, metrics.morans_i_pvalues):
        assert np.isnan(score(values, weights)).tolist() == [True, False]
    two = metrics.neighbour_weights([[0, 0], [1, 0]])
    np.testing.assert_allclose(metrics.morans_i([[0.0], [1.0]], two), [-1])
    assert np.isnan(metrics.morans_i_pvalues([[0.0], [1.0]], two)).all()
    complete = metrics.neighbour_weights(xy[:5])  # all spots are neighbours: there is nothing to find
    assert np.isnan(metrics.morans_i_pvalues(values[:5], complete)).all()


def test_bad_input_is_refused_by_name():
    values, weights = np.ones((4, 2)), np.ones((4, 4))
    with pytest.raises(
        InvalidValueError, match=r"weights must be \(4, 4\), as there are 4 spots, got the shape \(3, 3\)"
    ):
        metrics.morans_i(values, csr_array(np.ones((3, 3))))
    for bad in (weights * 0, -weights, csr_array(weights * np.nan)):
        with pytest.raises(InvalidValueError, match=r"weights (must be finite, at least 0, and not all 0|has)"):
            metrics.morans_i(values, bad)
    with pytest.raises(InvalidTypeError, match="values is sparse"):
        metrics.morans_i(csr_array(values), weights)
    with pytest.raises(InvalidValueError, match="values has 8 NaN"):
        metrics.morans_i(values * np.nan, weights)
    with pytest.raises(InvalidValueError, match="assumption must be 'randomisation', 'normality' or 'signs', got 'z'"):
        metrics.morans_i_pvalues(values, weights, assumption="z")
    with pytest.raises(
        InvalidValueError, match=r"xy must be \(n_spots, 2\) with at least 2 spots, got the shape \(4, 3\)"
    ):
        metrics.neighbour_weights(np.ones((4, 3)))
    with pytest.raises(InvalidValueError, match=r"xy must be .* at least 2 spots"):
        metrics.neighbour_weights([[0, 0]])
    with pytest.raises(InvalidValueError, match="k must be at least 1, got 0"):
        metrics.neighbour_weights(lattice(), k=0)
