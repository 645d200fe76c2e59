"""Structural similarity against scikit-image, and on lattices with holes."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from st_predict import metrics
from st_predict._errors import InvalidValueError


def square(rows: int = 15, columns: int = 13) -> np.ndarray:
    return np.argwhere(np.ones((rows, columns)))


def maps(grid: np.ndarray, n_genes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = (
        np.sin(grid[:, :1] / 2 + np.arange(n_genes))
        + np.cos(grid[:, 1:] / 3)
        + rng.normal(size=(len(grid), n_genes)) / 4
    )
    return true * 0.7 + rng.normal(size=true.shape) * np.arange(n_genes) / 4, true


@pytest.mark.parametrize("window", [3, 7])
def test_same_as_skimage_on_a_full_lattice(window):
    grid = square()
    pred, true = maps(grid)
    expected = [
        structural_similarity(
            p.reshape(15, 13) - t.min(), t.reshape(15, 13) - t.min(), win_size=window, data_range=np.ptp(t)
        )
        for p, t in zip(pred.T, true.T, strict=True)
    ]
    got = metrics.ssim(pred, true, grid + np.array([3, 10]), window=window, min_share=1)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    shuffled = np.random.default_rng(1).permutation(len(grid))
    got = metrics.ssim(pred[shuffled], true[shuffled], grid[shuffled], window=window, min_share=1)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def by_loops(pred, true, grid, window, min_share):
    """The definition, spot by spot."""
    p, t = ((values - true.min()) / np.ptp(true) for values in (pred, true))
    scores = []
    for place in grid:
        inside = (np.abs(grid - place) <= window // 2).all(axis=1)
        if inside.sum() >= min_share * window**2:
            (vp, c), (_, vt) = np.cov(p[inside], t[inside])
            mp, mt = p[inside].mean(), t[inside].mean()
            scores.append((2 * mp * mt + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mt**2 + 1e-4) * (vp + vt + 9e-4)))
    return np.mean(scores)


@pytest.mark.parametrize("min_share", [0.1, 0.5, 0.7])
def test_places_without_a_spot_are_left_out(min_share):
    grid = square()
    grid = grid[np.random.default_rng(2).random(len(grid)) < 0.75]
    pred, true = maps(grid)
    expected = [by_loops(p, t, grid, 5, min_share) for p, t in zip(pred.T, true.T, strict=True)]
    np.testing.assert_allclose(metrics.ssim(pred, true, grid, window=5, min_share=min_share), expected, atol=1e-12)


@pytest.mark.parametrize("parity", [0, 1])
def test_hexagonal_lattices_have_no_holes(parity):
    grid = square()
    pred, true = maps(grid)
    hexagonal = np.column_stack([grid[:, 0], 2 * grid[:, 1] + (grid[:, 0] + parity) % 2])
    expected = metrics.ssim(pred, true, grid, min_share=1)
    np.testing.assert_allclose(metrics.ssim(pred, true, hexagonal, min_share=1), expected, atol=1e-12)


def test_limits():
    grid = square()
    _, true = maps(grid)
    np.testing.assert_allclose(metrics.ssim(true, true, grid), 1)
    blurred, noisy = true * 0.9 + 0.1 * true.mean(axis=0), np.random.default_rng(0).normal(size=true.shape)
    assert (metrics.ssim(blurred, true, grid) > 0.9).all()
    assert (metrics.ssim(noisy, true, grid) < 0.4).all()
    # other units lower the score, unless each map has its own
    assert (metrics.ssim(true * 3 + 5, true, grid) < 0.5).all()
    np.testing.assert_allclose(metrics.ssim(true * 3 + 5, true, grid, scale="own"), 1)


def test_constant_maps_and_scattered_spots_are_undefined():
    grid = square()
    pred, true = maps(grid)
    constant = true.copy()
    constant[:, 1] = 0.1
    assert np.isnan(metrics.ssim(pred, constant, grid)).tolist() == [False, True, False]
    assert not np.isnan(metrics.ssim(constant, true, grid)).any()
    assert np.isnan(metrics.ssim(constant, true, grid, scale="own")).tolist() == [False, True, False]
    assert np.isnan(metrics.ssim(pred[:2], true[:2], [[0, 0], [0, 1]])).all()
    assert not np.isnan(metrics.ssim(pred[:2], true[:2], [[0, 0], [0, 1]], window=3, min_share=0.2)).any()
    assert np.isnan(metrics.ssim(pred[:1], true[:1], [[0, 0]], window=3, min_share=0.1)).all()


def test_bad_input_is_refused_by_name():
    values, grid = np.eye(4), square(2, 2)
    with pytest.raises(InvalidValueError, match="grid must have a different place per spot, got 2 places for 4 spots"):
        metrics.ssim(values, values, grid * [1, 0])
    with pytest.raises(InvalidValueError, match="grid must be whole numbers, but 8 of 8 values are not"):
        metrics.ssim(values, values, grid + 0.5)
    with pytest.raises(InvalidValueError, match="grid must have one row per spot, got 3 rows for 4 spots"):
        metrics.ssim(values, values, grid[:3])
    with pytest.raises(InvalidValueError, match=r"grid must be \(n_spots, 2\), row and column"):
        metrics.ssim(values, values, values)
    for window in (1, 4):
        with pytest.raises(InvalidValueError, match=f"window must be odd and at least 3, got {window}"):
            metrics.ssim(values, values, grid, window=window)
    with pytest.raises(InvalidValueError, match="min_share must be above 0"):
        metrics.ssim(values, values, grid, min_share=0)
    with pytest.raises(InvalidValueError, match="scale must be 'observed' or 'own', got 'both'"):
        metrics.ssim(values, values, grid, scale="both")
    with pytest.raises(InvalidValueError, match="pred has 16 NaN"):
        metrics.ssim(values * np.nan, values, grid)
