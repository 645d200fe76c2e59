"""Bootstrap intervals: the fast sums against scores of the resampled rows, and coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from st_predict import metrics
from st_predict._errors import InvalidValueError


def section(seed: int = 0, n_spots: int = 180, n_genes: int = 7):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 10, (n_spots, 2))
    true = rng.normal(size=(n_spots, n_genes)) + xy[:, :1] / 3
    pred = true + rng.normal(size=true.shape) * np.arange(n_genes)
    totals = np.exp(rng.normal(6, 1, n_spots) + xy[:, 1] / 5)
    return pred, true, metrics.depth_covariates(totals), metrics.spatial_blocks(xy, 12)


@pytest.mark.parametrize(("n_spots", "n_blocks"), [(180, 12), (101, 7), (5, 5), (9, 1)])
def test_blocks_are_of_equal_size_and_compact(n_spots, n_blocks):
    xy = np.random.default_rng(0).uniform(0, 10, (n_spots, 2))
    blocks = metrics.spatial_blocks(xy, n_blocks)
    sizes = np.bincount(blocks)
    assert len(sizes) == n_blocks
    assert np.ptp(sizes) <= 2
    if n_spots > 50:
        spread = np.mean([xy[blocks == block].std(axis=0) for block in range(n_blocks)])
        assert spread < 1.5 * 10 / np.sqrt(12 * n_blocks)  # of squares that tile the section


@pytest.mark.parametrize("partial", [False, True])
def test_sums_give_the_scores_of_the_resampled_rows(partial):
    pred, true, covariates, blocks = section()
    fast = metrics.bootstrap_pearson(pred, true, blocks, seed=3, n=150, covariates=covariates if partial else None)

    def scores_of(rows):
        if partial:
            return metrics.partial_pearson(pred[rows], true[rows], covariates[rows])
        return metrics.pearson(pred[rows], true[rows], axis=0)

    slow = metrics.bootstrap_mean(scores_of, blocks, seed=3, n=150)
    assert fast.shape == (150, 7)
    np.testing.assert_allclose(fast.mean(axis=1), slow, atol=1e-12)
    one = metrics.bootstrap_mean(lambda rows: scores_of(rows)[4:5], blocks, seed=3, n=150)
    np.testing.assert_allclose(fast[:, 4], one, atol=1e-12)


def test_undefined_in_a_resample_is_undefined_there():
    pred, true, covariates, blocks = section(n_genes=2)
    blocks = blocks % 3
    true[:, 1] = np.where(blocks == 1, true[:, 1], 0.1)  # constant where block 1 is not drawn
    fast = metrics.bootstrap_pearson(pred, true, blocks, seed=0, n=400)
    share = np.isnan(fast).mean(axis=0)
    assert share[0] == 0
    assert abs(share[1] - (2 / 3) ** 3) < 0.06
    slow = metrics.bootstrap_mean(
        lambda rows: metrics.pearson(pred[rows], true[rows], axis=0)[1:], blocks, seed=0, n=400
    )
    np.testing.assert_allclose(fast[:, 1], slow, atol=1e-9)
    few = metrics.bootstrap_pearson(pred[:2], true[:2], [0, 1], seed=0, n=50, covariates=covariates[:2])
    assert np.isnan(few).all()


def test_offset_and_scale_cancel():
    pred, true, covariates, blocks = section()
    expected = metrics.bootstrap_pearson(pred, true, blocks, seed=0, n=50, covariates=covariates)
    moved = metrics.bootstrap_pearson(pred * 1e-3 + 1e4, true, blocks, seed=0, n=50, covariates=covariates * 1e3 + 7)
    np.testing.assert_allclose(moved, expected, atol=1e-7)


def test_spread_is_that_of_theory_for_independent_spots():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(400, 50))
    pred = true + rng.normal(size=true.shape)
    r = metrics.bootstrap_pearson(pred, true, np.arange(400), seed=0, n=300)
    # of a bivariate normal sample: (1 - r**2) / sqrt(n)
    np.testing.assert_allclose(r.std(axis=0).mean(), 0.5 / np.sqrt(400), rtol=0.1)


def test_intervals_cover_where_neighbours_are_alike():
    """Errors are shared by whole blocks: intervals of single spots are too narrow, those of blocks are not."""
    rng = np.random.default_rng(0)
    blocks, single = np.repeat(np.arange(30), 10), np.arange(300)
    inside = {"blocks": 0, "single": 0}
    for _ in range(100):
        true, noise = (rng.normal(size=(30, 1))[blocks] + rng.normal(size=(300, 1)) * 0.1 for _ in range(2))
        for name, labels in (("blocks", blocks), ("single", single)):
            r = metrics.bootstrap_pearson(true + noise, true, labels, seed=1, n=200)[:, 0]
            low, high = metrics.percentile_interval(r, level=0.9)
            inside[name] += low < np.sqrt(0.5) < high
    assert 82 <= inside["blocks"] <= 97
    assert inside["single"] < 60


def test_the_seed_decides():
    pred, true, _, blocks = section()
    a, b, c = (metrics.bootstrap_pearson(pred, true, blocks, seed=seed, n=10) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_sections_are_drawn_as_well():
    rng = np.random.default_rng(0)
    samples = rng.normal([0, 3, 6], 1, size=(2000, 3))
    drawn = metrics.bootstrap_sections(samples, seed=0, n=20_000)
    # variance of the mean of three: between sections (6) and within (1)
    np.testing.assert_allclose([drawn.mean(), drawn.var()], [3, 7 / 3], rtol=0.05)
    one = metrics.bootstrap_sections(samples[:, :1], seed=0, n=20_000)
    np.testing.assert_allclose(one.std(), 1, rtol=0.05)
    only = metrics.bootstrap_sections([[0.0, 3, np.nan]], seed=0)
    assert set(np.round(only[~np.isnan(only)], 6)) <= {0, 1, 1.5, 2, 3}
    assert np.isnan(only).any()


def test_percentile_interval():
    samples = np.random.default_rng(0).normal(size=200_000)
    np.testing.assert_allclose(metrics.percentile_interval(samples), norm.ppf([0.025, 0.975]), atol=0.03)
    with_gaps = np.append(samples, [np.nan] * 1000)
    assert metrics.percentile_interval(with_gaps) == metrics.percentile_interval(samples)
    assert np.isnan(metrics.percentile_interval([np.nan])).all()


def test_bad_input_is_refused_by_name():
    good, blocks = np.ones((4, 2)), [0, 0, 1, 1]
    with pytest.raises(InvalidValueError, match="blocks must have one row per spot, got 3 rows for 4 spots"):
        metrics.bootstrap_pearson(good, good, [0, 1, 2], seed=0)
    with pytest.raises(InvalidValueError, match="blocks must have at least 2 different values to resample, got 1"):
        metrics.bootstrap_pearson(good, good, [0] * 4, seed=0)
    with pytest.raises(InvalidValueError, match="covariates must have one row per spot"):
        metrics.bootstrap_pearson(good, good, blocks, seed=0, covariates=good[:3])
    with pytest.raises(InvalidValueError, match="n must be at least 1, got 0"):
        metrics.bootstrap_pearson(good, good, blocks, seed=0, n=0)
    with pytest.raises(InvalidValueError, match="seed must be a whole number, got None"):
        metrics.bootstrap_mean(lambda rows: good[rows].mean(axis=0), blocks, seed=None)
    with pytest.raises(InvalidValueError, match=r"Result of scores_of must be \(n_genes,\)"):
        metrics.bootstrap_mean(lambda rows: good[rows], blocks, seed=0)
    with pytest.raises(InvalidValueError, match=r"samples must be \(n_resamples, n_sections\)"):
        metrics.bootstrap_sections([1, 2], seed=0)
    with pytest.raises(InvalidValueError, match=r"xy must be \(n_spots, 2\)"):
        metrics.spatial_blocks(np.ones((4, 3)), 2)
    with pytest.raises(InvalidValueError, match="n_blocks must be at most the number of spots, 4, got 5"):
        metrics.spatial_blocks(np.ones((4, 2)), 5)
    for level in (0, 1, 95):
        with pytest.raises(InvalidValueError, match="level must be"):
            metrics.percentile_interval([1, 2], level=level)
