"""Conformal statistics against sorted lists, and against the coverage that exchangeable draws must have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from st_predict.specs import TargetSpec
from st_predict.tl._intervals import Intervals

COUNTS = TargetSpec(transform="counts")


def fit(target: Any, mean: Any, sd: Any = None, *, coverage: float = 0.9, units: TargetSpec = COUNTS) -> Intervals:
    target, mean = np.asarray(target, np.float32), np.asarray(mean, np.float32)
    genes = [f"g{i}" for i in range(target.shape[1])]
    sd = None if sd is None else np.asarray(sd, np.float32)
    return Intervals.fit(target, mean, sd, coverage=coverage, genes=genes, units=units)


def draw(n: int, n_genes: int, seed: int = 0, *, largest_sd: float = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured values far above zero, their predictions, and standard deviations of the errors."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(1000, 1100, (n, n_genes))
    sd = rng.uniform(1, largest_sd, (n, n_genes))
    return rng.normal(mean, sd).astype(np.float32), mean.astype(np.float32), sd.astype(np.float32)


def sorted_quantile(errors: list[float], percent: int) -> float:
    """Error whose rank is ``percent`` of ``n + 1``, rounded up; computed with integers only."""
    rank = -(-(len(errors) + 1) * percent // 100)
    return sorted(errors)[rank - 1]


# fit


@pytest.mark.parametrize("percent", [5, 50, 55, 80, 90, 95])
@pytest.mark.parametrize("n", [19, 20, 99, 100, 157])
def test_quantile_of_sorted_errors(n: int, percent: int) -> None:
    target, mean, _ = draw(n, 3, seed=n)
    genes = fit(target, mean, coverage=percent / 100).genes
    for i in range(3):
        errors = [abs(float(a) - float(b)) for a, b in zip(target[:, i], mean[:, i], strict=True)]
        assert genes["quantile"].iloc[i] == sorted_quantile(errors, percent)
    assert genes["floor"].tolist() == [1, 1, 1]
    assert genes.index.tolist() == ["g0", "g1", "g2"]
    assert genes.index.name == "gene"


def test_quantile_of_sorted_scaled_errors() -> None:
    target, mean, sd = draw(50, 2)
    sd[:10, 0], sd[:, 1] = 0, 0
    genes = fit(target, mean, sd, coverage=0.8).genes
    squares = [float(value) ** 2 for value in sd[:, 0]]
    floors = [0.1 * math.sqrt(sum(squares) / len(squares)), 1.0]
    assert genes["floor"].tolist() == pytest.approx(floors, rel=1e-12)
    for i, floor in enumerate(floors):
        rows = zip(target[:, i].tolist(), mean[:, i].tolist(), sd[:, i].tolist(), strict=True)
        scores = [abs(a - b) / max(s, floor) for a, b, s in rows]
        assert genes["quantile"].iloc[i] == pytest.approx(sorted_quantile(scores, 80), rel=1e-12)


def test_fit_does_not_depend_on_the_order_of_spots() -> None:
    target, mean, _ = draw(40, 4)
    order = np.random.default_rng(1).permutation(40)
    pd.testing.assert_frame_equal(fit(target, mean).genes, fit(target[order], mean[order]).genes, check_exact=True)


@pytest.mark.parametrize(
    ("n", "coverage", "needed"), [(0, 0.5, 1), (8, 0.9, 9), (18, 0.95, 19), (98, 0.99, 99), (998, 0.999, 999)]
)
def test_too_few_spots(n: int, coverage: float, needed: int) -> None:
    with pytest.raises(
        ValueError, match=f"coverage of {coverage:g} needs at least {needed} calibration spots, got {n}"
    ):
        fit(np.ones((n, 1)), np.ones((n, 1)), coverage=coverage)
    enough = fit(np.arange(needed)[:, None], np.zeros((needed, 1)), coverage=coverage)
    assert enough.genes["quantile"].tolist() == [needed - 1]


# bounds


def test_bounds_are_the_prediction_plus_and_minus_the_width() -> None:
    target, mean, sd = draw(60, 3)
    for spread, widths in ((None, np.ones_like(sd)), (sd, sd)):
        intervals = fit(target, mean, spread)
        half = intervals.genes["quantile"].to_numpy() * widths
        lower, upper = intervals.bounds(mean, spread)
        assert lower.dtype == upper.dtype == np.float32
        np.testing.assert_allclose(mean - lower, half, atol=2e-4)  # 1000 has a spacing of 6e-5 in float32
        np.testing.assert_allclose(upper - mean, half, atol=2e-4)
        assert (lower < mean - half).all()  # rounded outwards
        assert (upper > mean + half).all()


def test_a_small_standard_deviation_gives_the_width_of_the_floor() -> None:
    target, mean, sd = draw(60, 1)
    intervals = fit(target, mean, sd)
    quantile, floor = intervals.genes.iloc[0]
    lower, upper = intervals.bounds(np.full((2, 1), 1000, np.float32), np.array([[0], [floor / 2]], np.float32))
    np.testing.assert_allclose(upper - lower, 2 * quantile * floor, atol=4e-4)


def test_every_spot_of_rank_or_less_is_inside() -> None:
    counts = np.random.default_rng(0).poisson(3, (99, 20))
    intervals = fit(counts, np.full((99, 20), 2.9))
    lower, upper = intervals.bounds(np.full((99, 20), 2.9, np.float32), None)
    inside = (lower <= counts) & (counts <= upper)
    assert (inside.sum(axis=0) >= 90).all()  # ties on the bound count as well


def test_a_value_exactly_on_a_bound_is_covered() -> None:
    values = np.arange(1, 2000, dtype=np.float32)[:, None]
    table = pd.DataFrame({"quantile": [1.3], "floor": [1.0]}, index=["g0"])
    intervals = Intervals(genes=table, units=COUNTS)
    lower, _ = intervals.bounds((values + np.float64(1.3)).astype(np.float32), None)
    assert (lower <= values).all()  # rounded to the nearest float32, 3, 63 and 1023 would be below their bound
    _, upper = intervals.bounds((values - np.float64(1.3)).astype(np.float32), None)
    assert (values <= upper).all()


def test_nan_stays() -> None:
    target, mean, sd = draw(20, 2)
    intervals = fit(target, mean, sd)
    mean[3] = sd[3] = np.nan
    for bound in intervals.bounds(mean, sd):
        assert np.isnan(bound[3]).all()
        assert np.isfinite(np.delete(bound, 3, axis=0)).all()


@pytest.mark.parametrize(
    ("units", "least", "largest"),
    [
        (TargetSpec(), 0, math.log(1_000_001)),
        (TargetSpec(total=100), 0, math.log(101)),
        (TargetSpec(transform="log1p"), 0, math.inf),
        (COUNTS, 0, math.inf),
        (TargetSpec(transform="log_proportion"), -math.inf, 0),
        # ln(101) scaled from 0.5..2.5 to 0..1; a gene that does not vary is always 0
        (
            TargetSpec(total=100, scale="minmax", limits=((0.5, 1), (2.5, 1))),
            [-0.25, 0],
            [(math.log(101) - 0.5) / 2, 0],
        ),
    ],
)
def test_bounds_stay_in_the_range_of_the_units(units: TargetSpec, least: Any, largest: Any) -> None:
    intervals = Intervals(genes=pd.DataFrame({"quantile": [2.0, 2.0], "floor": [1.0, 1.0]}), units=units)
    for value in (-100, -1, 0, 1, 100):
        lower, upper = intervals.bounds(np.full((1, 2), value, np.float32), None)
        np.testing.assert_allclose(lower[0], np.clip([value - 2] * 2, least, largest), rtol=1e-6)
        np.testing.assert_allclose(upper[0], np.clip([value + 2] * 2, least, largest), rtol=1e-6)


# coverage


@pytest.mark.parametrize("scaled", [False, True])
def test_coverage_is_the_share_inside_the_bounds(*, scaled: bool) -> None:
    target, mean, sd = draw(80, 3)
    spread = sd if scaled else None
    intervals = fit(target[:30], mean[:30], sd[:30] if scaled else None, coverage=0.7)
    found, (lower, upper) = intervals.coverage(target, mean, spread), intervals.bounds(mean, spread)
    assert found.index.tolist() == ["g0", "g1", "g2"]
    for i in range(3):
        inside = [a <= b <= c for a, b, c in zip(lower[:, i], target[:, i], upper[:, i], strict=True)]
        widths = [float(c) - float(a) for a, c in zip(lower[:, i], upper[:, i], strict=True)]
        assert found["coverage"].iloc[i] == sum(inside) / 80
        assert found["width"].iloc[i] == pytest.approx(math.fsum(widths) / 80, rel=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("n", "percent"), [(12, 90), (19, 90), (30, 50), (45, 95)])
def test_a_new_exchangeable_spot_is_covered_with_the_probability_of_its_rank(
    n: int, percent: int, *, scaled: bool
) -> None:
    n_genes = 20_000  # one calibration and one new spot per gene: independent draws
    target, mean, sd = draw(n + 1, n_genes, seed=n)
    intervals = fit(target[:n], mean[:n], sd[:n] if scaled else None, coverage=percent / 100)
    found = intervals.coverage(target[n:], mean[n:], sd[n:] if scaled else None)
    expected = -(-(n + 1) * percent // 100) / (n + 1)
    error = math.sqrt(expected * (1 - expected) / n_genes)
    assert set(found["coverage"]) == {0, 1}
    assert abs(found["coverage"].mean() - expected) < 4 * error


def test_scaled_intervals_are_narrower_where_errors_are_smaller() -> None:
    target, mean, sd = draw(2000, 5, largest_sd=20)
    calibration, new = slice(0, 1000), slice(1000, 2000)
    quiet = sd[new] < 4
    shares = {}
    for scaled in (True, False):
        intervals = fit(target[calibration], mean[calibration], sd[calibration] if scaled else None)
        lower, upper = intervals.bounds(mean[new], sd[new] if scaled else None)
        shares[scaled] = ((lower <= target[new]) & (target[new] <= upper))[quiet].mean()
    assert shares[True] == pytest.approx(0.9, abs=0.04)
    assert shares[False] > 0.99
