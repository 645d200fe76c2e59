"""Noise ceiling against the correlation of known rates with simulated counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from st_predict import metrics
from st_predict._errors import InvalidTypeError, InvalidValueError

THETA = 100


class Counts:
    """Poisson counts of a panel with known rates, and totals over the panel and other genes."""

    def __init__(self, *, n_spots: int, mean_total: float, n_genes: int = 100, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.depth = np.exp(rng.normal(np.log(mean_total), 0.7, n_spots))
        spread = rng.uniform(0, 1, n_genes)
        self.rates = np.exp(rng.normal(-6.5, 1, n_genes)) * np.exp(rng.normal(size=(n_spots, n_genes)) * spread)
        self.counts = rng.poisson(self.depth[:, None] * self.rates)
        self.totals = self.counts.sum(axis=1) + rng.poisson(self.depth * 0.8)
        self.proportions = self.counts.sum(axis=0) / self.totals.sum()

    def residuals(self, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Analytic Pearson residuals."""
        mean = totals[:, None] * self.proportions
        return (counts - mean) / np.sqrt(mean + mean**2 / THETA + 1e-12)

    @property
    def perfect(self) -> np.ndarray:
        """Expected residuals, which only a predictor of the rates and the depth knows."""
        return self.residuals(self.depth[:, None] * self.rates, self.totals)


@pytest.mark.parametrize(("n_spots", "mean_total"), [(2000, 1000), (2000, 5000), (180, 2000)])
def test_ceiling_is_the_score_of_known_rates(n_spots, mean_total):
    data = Counts(n_spots=n_spots, mean_total=mean_total)
    ceiling = metrics.noise_ceiling(data.counts, data.totals, data.residuals, seed=0)
    reached = metrics.pearson(data.perfect, data.residuals(data.counts, data.totals), axis=0)
    assert abs(ceiling.mean() - reached.mean()) < (0.01 if n_spots > 1000 else 0.04)
    assert np.abs(ceiling - reached).mean() < (0.04 if n_spots > 1000 else 0.1)
    # the reliability, which two measurements would reach, is far lower
    assert (ceiling**2).mean() < reached.mean() - 0.08


def test_partial_ceiling_is_the_partial_score_of_known_rates():
    data = Counts(n_spots=2000, mean_total=2000)
    covariates = metrics.depth_covariates(data.totals)
    ceiling = metrics.noise_ceiling(data.counts, data.totals, data.residuals, seed=0, covariates=covariates)
    reached = metrics.partial_pearson(data.perfect, data.residuals(data.counts, data.totals), covariates)
    assert abs(ceiling.mean() - reached.mean()) < 0.02


def test_partial_ceiling_is_lower_where_depth_is_what_the_halves_share():
    data = Counts(n_spots=1000, mean_total=1000)
    of_log = {"transform": lambda counts, totals: np.log1p(counts), "seed": 0}
    plain = metrics.noise_ceiling(data.counts, data.totals, **of_log)
    covariates = metrics.depth_covariates(data.totals)
    partial = metrics.noise_ceiling(data.counts, data.totals, **of_log, covariates=covariates)
    assert partial.mean() < plain.mean() - 0.1


def test_halves_add_up_and_totals_are_split_by_the_same_draws():
    data = Counts(n_spots=50, mean_total=500)
    seen = []

    def transform(counts, totals):
        seen.append((counts, totals))
        return counts

    metrics.noise_ceiling(data.counts, data.totals, transform, seed=0, n_splits=2)
    assert len(seen) == 4
    for (a, a_totals), (b, b_totals) in (seen[:2], seen[2:]):
        np.testing.assert_array_equal(a + b, data.counts)
        np.testing.assert_array_equal(a_totals + b_totals, data.totals)
        assert (a_totals >= a.sum(axis=1)).all() and (b_totals >= b.sum(axis=1)).all()
        # of binomial halves: mean 1/2 and variance 1/4 per count
        assert abs(a.sum() / data.counts.sum() - 0.5) < 0.01
        z = (a_totals - data.totals / 2) / np.sqrt(data.totals / 4)
        assert 0.6 < z.std() < 1.4
    assert (seen[0][0] != seen[2][0]).any()


def test_genes_without_signal_get_0_and_those_without_counts_none():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (1000, 40))
    counts[:, 0] = 0
    ceiling = metrics.noise_ceiling(counts, counts.sum(axis=1), lambda counts, totals: counts, seed=0)
    assert np.isnan(ceiling).tolist() == [True] + [False] * 39
    assert (ceiling[1:] == 0).mean() > 0.25
    assert (ceiling[1:] < 0.4).all()


def test_two_spots_are_enough_to_run():
    ceiling = metrics.noise_ceiling([[90, 2], [3, 70]], [100, 100], lambda counts, totals: counts, seed=0)
    np.testing.assert_allclose(ceiling, 1)


def test_the_seed_decides():
    data = Counts(n_spots=50, mean_total=500)
    a, b, c = (metrics.noise_ceiling(data.counts, data.totals, data.residuals, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_bad_input_is_refused_by_name():
    counts, totals = np.ones((3, 2)), np.full(3, 5)

    def ceiling(counts=counts, totals=totals, transform=lambda counts, totals: counts, **options):
        return metrics.noise_ceiling(counts, totals, transform, **{"seed": 0} | options)

    with pytest.raises(InvalidValueError, match="counts must be whole numbers, but 6 of 6 values are not"):
        ceiling(counts * 0.5)
    with pytest.raises(InvalidValueError, match="counts must be at least 0, got -1"):
        ceiling(-counts)
    with pytest.raises(InvalidValueError, match="totals are sums over all genes, but 3 of 3 are below"):
        ceiling(totals=np.ones(3))
    with pytest.raises(InvalidValueError, match="totals must have one row per spot, got 2 rows for 3 spots"):
        ceiling(totals=totals[:2])
    with pytest.raises(InvalidValueError, match=r"transform must give the shape \(3, 2\) of the counts, got \(3, 1\)"):
        ceiling(transform=lambda counts, totals: totals[:, None])
    with pytest.raises(InvalidValueError, match="Result of transform has 6 NaN"):
        ceiling(transform=lambda counts, totals: counts * np.nan)
    with pytest.raises(InvalidValueError, match="n_splits must be at least 1, got 0"):
        ceiling(n_splits=0)
    with pytest.raises(InvalidValueError, match="seed must be a whole number"):
        ceiling(seed=0.5)
    with pytest.raises(InvalidTypeError, match="counts is sparse"):
        ceiling(csr_array(counts))


def test_ceilings_of_several_scores_are_those_of_each():
    data, called = Counts(n_spots=80, mean_total=800), []

    def relative(counts, totals):
        called.append(len(counts))
        return data.residuals(counts, totals)

    covariates = metrics.depth_covariates(data.totals)
    found = metrics.noise_ceilings(
        data.counts, data.totals, [(relative, covariates), (relative, None)], seed=4, n_splits=3
    )
    assert len(called) == 6  # once per half, though two scores use it
    for one, given in zip(found, (covariates, None), strict=True):
        alone = metrics.noise_ceiling(data.counts, data.totals, data.residuals, seed=4, n_splits=3, covariates=given)
        np.testing.assert_array_equal(one, alone)
