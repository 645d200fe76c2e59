from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.spatial import KDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

from st_predict import io, pp
from st_predict._errors import InvalidValueError
from st_predict.io._mpp import lattice_pitch
from st_predict.pp._grid import _share
from st_predict.pp._tissue import Tissue

DISC_CENTRE, DISC_RADIUS = np.array([300.0, 220.0]), 150.0


def make_sdata(height: int = 400, width: int = 600, **kwargs) -> SpatialData:
    """White, with a disc of grain around (300, 220)."""
    yy, xx = np.mgrid[:height, :width]
    disc = np.hypot(xx - DISC_CENTRE[0], yy - DISC_CENTRE[1]) < DISC_RADIUS
    image = np.full((height, width, 3), 245, np.uint8)
    image[disc] = np.random.default_rng(0).integers(80, 200, (int(disc.sum()), 1), dtype=np.uint8)
    return SpatialData(images={"he": Image2DModel.parse(image, dims=("y", "x", "c"), **kwargs)})


def centres(sdata: SpatialData, key: str = "grid") -> np.ndarray:
    shapes = sdata.shapes[key]
    return np.column_stack([shapes.geometry.x, shapes.geometry.y])


def test_square_lattice_over_the_whole_image():
    sdata = make_sdata()
    pp.make_grid(sdata, mpp=0.5, pitch_um=25, diameter_um=10, tissue_only=False)
    grid, xy = sdata.shapes["grid"], centres(sdata)
    assert len(grid) == 12 * 8
    assert (grid["radius"] == 10).all()
    np.testing.assert_allclose(xy, 25 + 50.0 * grid[["array_col", "array_row"]].to_numpy())
    np.testing.assert_allclose(xy.mean(axis=0), [300, 200])  # centred on the image
    assert grid.index[13] == "1x1" and grid.index.is_unique


def test_hexagonal_lattice_has_six_neighbours_at_one_pitch():
    sdata = make_sdata()
    pp.make_grid(sdata, mpp=2, pitch_um=60, diameter_um=20, tissue_only=False, layout="hex")
    grid, xy = sdata.shapes["grid"], centres(sdata)
    np.testing.assert_allclose(xy.max(axis=0) + xy.min(axis=0), [600, 400], atol=15)
    assert (grid[["array_row", "array_col"]].sum(axis=1) % 2 == 0).all()
    inner = ((xy > 40) & (xy < [560, 360])).all(axis=1)
    distances, _ = KDTree(xy).query(xy[inner], k=8)
    np.testing.assert_allclose(distances[:, 1:7], 30)
    assert (distances[:, 7] > 50).all()
    assert len(grid) == pytest.approx(600 * 400 / (30**2 * np.sqrt(3) / 2), rel=0.1)


@pytest.mark.parametrize("layout", ["square", "hex"])
@pytest.mark.parametrize("min_tissue", [0.05, 0.5, 1])
def test_only_spots_with_enough_tissue_are_kept(layout, min_tissue):
    sdata = make_sdata()
    pp.make_grid(sdata, mpp=1, pitch_um=20, diameter_um=20, min_tissue=min_tissue, layout=layout)
    pp.make_grid(sdata, mpp=1, pitch_um=20, diameter_um=20, tissue_only=False, layout=layout, key_added="all")
    kept = sdata.shapes["all"].index.isin(sdata.shapes["grid"].index)
    # how far the edge of the spot reaches into the disc; the mask is some pixels larger than the disc
    depth = DISC_RADIUS - np.hypot(*(centres(sdata, "all") - DISC_CENTRE).T)
    needed = {0.05: -10, 0.5: 0, 1: 10}[min_tissue]
    assert kept[depth > needed + 2].all()
    assert not kept[depth < needed - 10].any()


def test_a_spot_is_round():
    """A half-plane whose edge is some way from the centre cuts off a segment of the circle."""
    yy, xx = np.mgrid[:400, :400] + 0.5
    for distance in (0, 0.5, 1.1):  # at 1.1 radii nothing is cut off, while the corner of a square would be
        edge = (xx - 200) + (yy - 200) > distance * 100 * np.sqrt(2)
        tissue = Tissue(mask=edge, downsample=2.0, threshold=0.01)
        share = _share(tissue, np.array([[400.0, 400.0]]), 200.0)
        segment = np.arccos(min(distance, 1)) - min(distance, 1) * np.sqrt(max(0, 1 - distance**2))
        np.testing.assert_allclose(share, segment / np.pi, atol=0.05 if distance < 1 else 0)


def test_transformations_are_those_of_the_image_and_the_grid_can_be_read():
    turn = Affine([[0, -2.0, 7], [2, 0, 3], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    transformations = {"global": Identity(), "um": Scale([0.5, 0.5], axes=("x", "y")), "other": turn}
    sdata = make_sdata(transformations=transformations, scale_factors=[2])
    pp.make_grid(sdata, pitch_um=25, diameter_um=10)  # mpp from the coordinate system "um"
    assert get_transformation(sdata.shapes["grid"], get_all=True) == transformations
    spots = io.read_spots(sdata, shapes_key="grid")
    np.testing.assert_allclose(spots.xy, centres(sdata))
    assert list(spots.names) == list(sdata.shapes["grid"].index)
    assert np.diff(np.unique(spots.xy[:, 0]))[0] == pytest.approx(50)


def test_the_grid_survives_zarr(tmp_path):
    sdata = make_sdata()
    pp.make_grid(sdata, mpp=1, pitch_um=40, diameter_um=20)
    sdata.write(tmp_path / "slide.zarr")
    back = SpatialData.read(tmp_path / "slide.zarr")
    np.testing.assert_allclose(centres(back), centres(sdata))
    assert list(back.shapes["grid"].index) == list(sdata.shapes["grid"].index)
    assert (back.shapes["grid"]["array_col"] == sdata.shapes["grid"]["array_col"]).all()


def test_nothing_else_is_changed(caplog):
    sdata = make_sdata()
    before = sdata.images["he"].to_numpy().copy()
    with caplog.at_level(logging.INFO, logger="st_predict"):
        pp.make_grid(sdata, mpp=1, pitch_um=40)
    np.testing.assert_array_equal(sdata.images["he"].to_numpy(), before)
    assert [name for _, name, _ in sdata.gen_elements()] == ["he", "grid"]
    assert f"Added {len(sdata.shapes['grid'])} of 150 spots as shapes 'grid' (mpp 1 from argument)" in caplog.text


@pytest.mark.parametrize("taken", ["he", "grid"])
def test_nothing_is_overwritten(taken):
    sdata = make_sdata()
    pp.make_grid(sdata, mpp=1)
    first = sdata.shapes["grid"].copy()
    with pytest.raises(ValueError, match=f"'{taken}' already exists in sdata.*key_added="):
        pp.make_grid(sdata, mpp=2, key_added=taken)
    assert sdata.shapes["grid"].equals(first)


def test_no_tissue():
    image = np.full((200, 300, 3), 255, np.uint8)
    sdata = SpatialData(images={"he": Image2DModel.parse(image, dims=("y", "x", "c"))})
    with pytest.raises(ValueError, match=r"No tissue found in image 'he': 0 % .* none of 6 spots .*tissue_only=False"):
        pp.make_grid(sdata, mpp=1)
    assert not len(sdata.shapes)
    pp.make_grid(sdata, mpp=1, tissue_only=False)
    assert len(sdata.shapes["grid"]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mpp": None}, "how many micrometres .*with mpp="),
        (
            {"mpp": 40, "pitch_um": 20},
            r"is 0\.5 px at 40 um per pixel, from argument, which is finer than.*pitch_um=.*mpp=",
        ),
        ({"mpp": 200}, r"has 200 um per pixel, from argument\. .* have mpp from 0\.05 to 50\. Correct mpp="),
        (
            {"mpp": 0.1},
            "is 1000 px at 0.1 um per pixel, from argument, which is larger than the image, 600 x 400 px.*pitch_um=.*mpp=",
        ),
        ({"mpp": -1}, "mpp must be a positive number, got -1"),
        ({"pitch_um": 0}, "pitch_um must be above 0, got 0"),
        ({"diameter_um": np.nan}, "diameter_um must be a finite number, got nan"),
        ({"min_tissue": 0}, "min_tissue must be above 0, got 0"),
        ({"min_tissue": 1.5}, "min_tissue must be at most 1, got 1.5"),
        ({"layout": "round"}, "layout must be 'square' or 'hex', got 'round'"),
    ],
)
def test_bad_arguments(arguments, message):
    sdata = make_sdata()
    with pytest.raises(ValueError, match=message):
        pp.make_grid(sdata, **{"mpp": 1, **arguments})
    assert not len(sdata.shapes)


def test_which_image():
    sdata = make_sdata()
    sdata.images["other"] = make_sdata().images["he"]
    with pytest.raises(ValueError, match="image_key"):
        pp.make_grid(sdata, mpp=1)
    pp.make_grid(sdata, mpp=1, image_key="other")
    assert len(sdata.shapes["grid"])


@pytest.mark.parametrize(
    ("pattern", "pitch", "diameter", "layout"),
    [
        ("visium", 100, 55, "hex"),
        ("visium_hd_16um", 16, 16, "square"),
        ("visium_hd_8um", 8, 8, "square"),
        ("legacy_st", 200, 100, "square"),
    ],
)
def test_patterns_of_assays(sdata, pattern, pitch, diameter, layout):
    """The lattice is the one from which the mpp of such an assay is read, and nearest spots are a pitch apart."""
    pp.make_grid(sdata, mpp=2, tissue_only=False, pattern=pattern)
    shapes = sdata.shapes["grid"]
    xy = np.column_stack([shapes.geometry.x, shapes.geometry.y])
    grid = shapes[["array_row", "array_col"]].to_numpy()
    assert lattice_pitch(xy, grid, hexagonal=layout == "hex") * 2 == pytest.approx(pitch)
    assert (shapes["radius"] * 2 * 2 == diameter).all()
    nearest = KDTree(xy).query(xy, k=2)[0][:, 1]
    np.testing.assert_allclose(nearest * 2, pitch)


def test_a_pattern_or_numbers(sdata):
    with pytest.raises(InvalidValueError, match=r"pattern 'visium' sets pitch.*\['pitch_um'\] are given too"):
        pp.make_grid(sdata, mpp=2, pattern="visium", pitch_um=50)
    with pytest.raises(InvalidValueError, match="pattern must be 'visium'"):
        pp.make_grid(sdata, mpp=2, pattern="xenium")
