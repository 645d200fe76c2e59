"""The tissue of simulated sections, against what the image itself shows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2hed

from st_predict.datasets._histology import GRID_UM, Histology, _jittered, draw_style, grow_tissue, smooth_noise


@pytest.fixture(scope="module", params=[0.7, 1.3])
def mpp(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture(scope="module")
def tissue(mpp: float) -> Histology:
    rng = np.random.default_rng(4)
    return grow_tissue(rng, draw_style(rng), shape=(800, 1000), mpp=mpp)


def test_image_and_maps_cover_the_same_extent(tissue: Histology, mpp: float):
    assert tissue.image.shape == (800, 1000, 3)
    assert tissue.image.dtype == np.uint8
    assert tissue.body.shape == tissue.epithelium.shape
    assert tissue.body.shape == (np.ceil(800 * mpp / GRID_UM), np.ceil(1000 * mpp / GRID_UM))


def test_outside_of_the_tissue_is_white(tissue: Histology, mpp: float):
    outside = at_pixels(ndimage.binary_dilation(tissue.body, iterations=4), mpp) == 0
    assert outside.mean() > 0.05
    # the outline is ragged: a strand may hang out
    assert (tissue.image[outside].min(axis=-1) < 220).mean() < 1e-3


def test_nuclei_are_where_the_image_has_hematoxylin(tissue: Histology, mpp: float):
    hematoxylin = ndimage.gaussian_filter(rgb2hed(tissue.image)[..., 0], 1)
    col, row = (tissue.nuclei[["x", "y"]].to_numpy() / mpp).astype(int).T
    at_nuclei = hematoxylin[row, col]
    assert np.median(at_nuclei) > np.quantile(hematoxylin, 0.8)
    shifted = hematoxylin[(row + 400) % 800, (col + 500) % 1000]
    assert np.median(at_nuclei) > 1.5 * np.median(shifted)


def test_kinds_of_nuclei_lie_in_their_tissue_and_differ_in_size(tissue: Histology):
    nuclei = tissue.nuclei
    cells = (nuclei[["y", "x"]].to_numpy() / GRID_UM).astype(int)
    in_epithelium = tissue.epithelium[tuple(cells.T)]
    kind = nuclei["kind"]
    assert in_epithelium[kind == "epithelium"].mean() > 0.99
    assert in_epithelium[kind == "stroma"].mean() < 0.01
    assert in_epithelium[kind == "lymphocyte"].mean() < 0.01
    mean = nuclei.groupby("kind", observed=True)["area"].mean()
    assert mean["epithelium"] > 1.3 * mean["lymphocyte"]
    assert 3 < np.sqrt(mean["lymphocyte"] / np.pi) * 2 < 8  # um, as lymphocytes have


def test_epithelium_is_bluer_than_stroma(tissue: Histology, mpp: float):
    epithelium = at_pixels(ndimage.binary_erosion(tissue.epithelium, iterations=2), mpp) > 0
    no_epithelium = tissue.body & ~ndimage.binary_dilation(tissue.epithelium, iterations=3)
    stroma = at_pixels(ndimage.binary_erosion(no_epithelium, iterations=2), mpp) > 0
    stroma &= tissue.image[..., 1] < 200  # neither fat nor clefts
    red, blue = tissue.image[..., 0].astype(float), tissue.image[..., 2].astype(float)
    assert np.mean((blue / red)[epithelium]) > np.mean((blue / red)[stroma]) + 0.1


def test_stains_differ_between_patients():
    styles = [draw_style(np.random.default_rng(seed)) for seed in range(20)]
    for style in styles:
        np.testing.assert_allclose(np.linalg.norm(style.stains, axis=1), 1)
        assert (style.stains > 0).all()
    # hematoxylin absorbs more red than eosin does, in every patient
    assert all(style.stains[0, 0] > style.stains[1, 0] + 0.2 for style in styles)
    assert np.std([style.stains[:, 0] for style in styles], axis=0).min() > 0.01


@pytest.mark.parametrize("scale", [1.0, 4.0, 20.0])
def test_noise_has_unit_variance_and_the_scale_that_was_asked_for(scale: float):
    noise = smooth_noise(np.random.default_rng(0), (900, 1100), scale)
    assert noise.shape == (900, 1100)
    assert np.var(noise) == pytest.approx(1, abs=0.2)
    # white noise under a Gaussian of width s has the correlation exp(-d^2 / (4 s^2))
    lag = round(2 * scale)
    correlation = np.mean(noise[:, lag:] * noise[:, :-lag]) / np.var(noise)
    assert correlation == pytest.approx(np.exp(-1), abs=0.12)


def at_pixels(mask: np.ndarray, mpp: float) -> np.ndarray:
    row, col = ((np.arange(n) + 0.5) * mpp / GRID_UM for n in (800, 1000))
    return mask[np.ix_(row.astype(int), col.astype(int))]


def test_a_point_that_rounds_to_the_border_is_not_inside():
    class Shaken:
        """Moves every point to just inside the border of a map of 8 x 8 cells."""

        def normal(self, _mean: float, _sd: float, shape: tuple[int, int]) -> np.ndarray:
            height = width = 8 * GRID_UM
            rows, cols = np.arange(0, height, 10 * 0.87), np.arange(0, width, 10)
            x = cols[None, :] + (np.arange(len(rows)) % 2)[:, None] * 5.0
            at = np.stack([x, np.broadcast_to(rows[:, None], x.shape)], axis=-1).reshape(shape)
            return np.array([width, height]) - 1e-9 - at

    points = _jittered(Shaken(), (8, 8), pitch_um=10, jitter=1)
    assert (points < 8 * GRID_UM).all()
