"""A slide is looked over before its crops are read."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

import st_predict as stp
from st_predict._multiscale import halve, image_of_levels, transformations
from st_predict._sections._cut import fields_cut
from st_predict.io import find_mpp
from st_predict.pp import Tissue, find_tissue
from st_predict.specs import CropSpec, LevelSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

GLASS = 243
GENES = tuple("abcd")


def tissue_image(height: int = 960, width: int = 1200, box: tuple[int, int, int, int] = (0, 0, 960, 700)) -> Any:
    """Glass with textured tissue in a box of top, left, bottom and right."""
    generator = np.random.default_rng(0)
    image = np.full((height, width, 3), GLASS, np.uint8)
    top, left, bottom, right = box
    noise = generator.integers(60, 230, (height // 8, width // 8, 3), dtype=np.uint8)
    image[top:bottom, left:right] = np.repeat(np.repeat(noise, 8, 0), 8, 1)[top:bottom, left:right]
    return image


def slide(
    image: NDArray[np.uint8],
    xy: Any,
    *,
    mpp: float | None = 1.0,
    grid: Any = None,
    n_levels: int = 3,
    radius: float = 25.0,
) -> SpatialData:
    levels = [image]
    for _ in range(n_levels - 1):
        levels.append(halve(levels[-1]))
    arrays = [da.from_array(level.transpose(2, 0, 1), chunks=(3, 256, 256)) for level in levels]
    names = [f"s{i}" for i in range(len(xy))]
    frame = gpd.GeoDataFrame({"radius": radius}, geometry=shapely.points(np.asarray(xy, float)), index=names)
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(xy)), "instance": names, "patient": "P1"}, index=names)
    if grid is not None:
        obs["array_row"], obs["array_col"] = np.asarray(grid).T
    counts = np.random.default_rng(1).poisson(20, (len(xy), 4)).astype(np.float32)
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES)))
    return SpatialData(
        images={"he": image_of_levels(arrays, mpp=mpp)},
        shapes={"spots": ShapesModel.parse(frame, transformations=transformations(mpp))},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )


def lattice(n_rows: int = 4, n_columns: int = 6, step: float = 100.0, at: float = 80.0) -> tuple[Any, Any]:
    grid = np.array([(row, column) for row in range(n_rows) for column in range(n_columns)])
    return grid, at + step * grid[:, ::-1]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.WARNING)
    return lambda: caplog.text


def test_a_good_slide_says_nothing(checkpoint: Callable[..., Path], said: Callable[[], str]) -> None:
    grid, xy = lattice()
    stp.tl.predict(slide(tissue_image(box=(40, 40, 900, 900)), xy, grid=grid), checkpoint(mpp=1.0))
    assert said() == ""


@pytest.mark.parametrize(
    ("change", "mirrored"),
    [
        (lambda xy: xy, False),
        (lambda xy: xy[:, ::-1], True),
        (lambda xy: [700, 0] + xy * [-1, 1], True),
        (lambda xy: [0, 600] + xy * [1, -1], True),
        (lambda xy: [700, 600] - xy, False),  # turned by 180 degrees
        (lambda xy: [600, 0] + xy[:, ::-1] * [-1, 1], False),  # by 90
    ],
)
@pytest.mark.parametrize("verb", ["predict", "embed", "train"])
def test_mirrored_lattices(
    checkpoint: Callable[..., Path],
    said: Callable[[], str],
    tmp_path: Path,
    change: Callable[[Any], Any],
    mirrored: bool,
    verb: str,
) -> None:
    grid, xy = lattice()
    sdata = slide(tissue_image(), change(xy), grid=grid)
    if verb == "predict":
        stp.tl.predict(sdata, checkpoint())
    elif verb == "embed":
        stp.tl.embed(sdata, "rgb", cache=False)
    else:
        stp.tl.train([sdata], "ridge", panel=list(GENES), out=tmp_path / "run")
    assert ("The lattice of the spots of 'spots' is mirrored on the image 'he'" in said()) == mirrored
    if mirrored:
        on = find_tissue(sdata).at(np.asarray(change(xy))[:, ::-1]).sum()
        assert f"{on} with x and y exchanged" in said()


def test_a_lattice_of_other_spots(checkpoint: Callable[..., Path], said: Callable[[], str]) -> None:
    grid, xy = lattice()
    sdata = slide(tissue_image(), xy, grid=np.random.default_rng(0).permutation(grid))
    stp.tl.predict(sdata, checkpoint())
    assert "off the lattice of array_row and array_col, and 100 px apart" in said()


def test_spots_of_one_place(checkpoint: Callable[..., Path], said: Callable[[], str]) -> None:
    stp.tl.predict(slide(tissue_image(), [(200, 300)] * 9), checkpoint())
    assert "The 9 spots of 'spots' have only 1 distinct positions" in said()


def test_spots_on_glass(checkpoint: Callable[..., Path], said: Callable[[], str]) -> None:
    image = tissue_image(box=(100, 100, 400, 400))
    _, xy = lattice(8, 9)
    sdata = slide(image, xy)
    stp.tl.predict(sdata, checkpoint())
    places = (xy, xy[:, ::-1], [1200, 0] + xy * [-1, 1])
    on, exchanged, mirrored = (find_tissue(sdata).at(np.asarray(place)).sum() for place in places)
    assert f"{len(xy) - on} of {len(xy)} spots of 'spots' are on bare glass" in said()
    assert f"of {len(xy)}: {on} as they are, {exchanged} with x and y exchanged, {mirrored} with x mirrored" in said()


def test_spots_beside_the_tissue_by_space_ranger_are_expected_there(
    checkpoint: Callable[..., Path], said: Callable[[], str]
) -> None:
    _, xy = lattice(8, 9)
    sdata = slide(tissue_image(box=(100, 100, 400, 400)), xy)
    sdata["table"].obs["in_tissue"] = find_tissue(sdata).at(xy).astype(int)
    stp.tl.predict(sdata, checkpoint())
    assert "bare glass" not in said()


def test_an_image_of_zeros_and_ones(checkpoint: Callable[..., Path]) -> None:
    _, xy = lattice()
    sdata = slide((tissue_image() / 255).astype(np.uint8) + np.uint8(1), xy)
    with pytest.raises(ValueError, match=r"Image 'he' is black: the brightest grey value is 1 of 255\. .*to_rgb8"):
        stp.tl.predict(sdata, checkpoint())


@pytest.mark.parametrize(("mpp", "share"), [(1.0, None), (0.15, 22), (0.08, None)])
def test_the_field_of_view_is_compared_with_the_image(
    checkpoint: Callable[..., Path], said: Callable[[], str], mpp: float, share: int | None
) -> None:
    _, xy = lattice()
    path = checkpoint(mpp=2.0)
    widest = max(level.size * level.downsample for level in stp.checkpoints.load(path)[1].crop.levels) * 2 / mpp
    part = min(1, 1200 / widest) * min(1, 960 / widest)
    sdata = slide(tissue_image(), xy, mpp=mpp)
    text = f"Image 'he' is 1200 x 960 px and the widest field of view {widest:.0f} px (at {mpp} um per pixel, from coordinate system"
    if part < 1 / 8:
        with pytest.raises(
            ValueError, match=r"the rest padding\. Correct the resolution of the image with mpp="
        ) as error:
            stp.tl.predict(sdata, path)
        assert text in str(error.value)
        return
    stp.tl.predict(sdata, path)
    assert (text in said()) == (part < 1 / 2)


def test_an_image_that_is_too_coarse_names_the_source(checkpoint: Callable[..., Path]) -> None:
    _, xy = lattice()
    with pytest.raises(
        ValueError, match="Image 'he', mpp 6 from coordinate system 'um': The image has 6 um/px, the model"
    ):
        stp.tl.predict(slide(tissue_image(), xy, mpp=6.0), checkpoint(mpp=0.6))


@pytest.mark.parametrize(("radius", "text"), [(25.0, ""), (0.2, "are 0.4 um wide"), (900.0, "are 1.8e+03 um wide")])
def test_sizes_of_spots(checkpoint: Callable[..., Path], said: Callable[[], str], radius: float, text: str) -> None:
    _, xy = lattice()
    stp.tl.predict(slide(tissue_image(), xy, radius=radius), checkpoint(mpp=1.0))
    assert (text in said()) if text else ("um wide" not in said())


@pytest.mark.parametrize(("step", "text"), [(100.0, ""), (1.4, "are 0.7 um apart")])
def test_distances_of_spots(checkpoint: Callable[..., Path], said: Callable[[], str], step: float, text: str) -> None:
    _, xy = lattice(step=step)
    stp.tl.predict(slide(tissue_image(), xy, mpp=0.5), checkpoint(mpp=0.5))
    assert (text in said()) if text else ("um apart" not in said())


def test_all_outside_says_what_exchange_would_do(checkpoint: Callable[..., Path]) -> None:
    xy = np.column_stack([np.linspace(10, 900, 7), np.linspace(970, 1190, 7)])
    with pytest.raises(ValueError, match=r"All 7 spots .* With x and y exchanged, 7 would be inside"):
        stp.tl.predict(slide(tissue_image(), xy), checkpoint())


def test_fields_that_are_cut_against_every_pixel() -> None:
    generator = np.random.default_rng(3)
    mask = generator.random((30, 40)) > 0.9
    mask[:2, 10:20], mask[-2:, :], mask[:, :2] = True, False, False
    tissue = Tissue(mask=mask, downsample=4.0, threshold=0.01)
    xy, field = generator.uniform(0, (160, 120), (300, 2)), 40.0
    expected = []
    for x, y in xy:
        left, right, top, bottom = x - field / 2, x + field / 2, y - field / 2, y + field / 2
        rows = [i for i in range(30) if 4 * i < bottom and 4 * (i + 1) > top]
        columns = [j for j in range(40) if 4 * j < right and 4 * (j + 1) > left]
        expected.append(
            (left < 0 and mask[rows, :2].any())
            or (right > 160 and mask[rows, -2:].any())
            or (top < 0 and mask[:2, columns].any())
            or (bottom > 120 and mask[-2:, columns].any())
        )
    assert 0 < np.sum(expected) < 300
    np.testing.assert_array_equal(fields_cut(xy, field, tissue, shape=(120, 160)), expected)


def test_spots_at_a_cut_are_counted_and_may_be_left_out(
    checkpoint: Callable[..., Path], said: Callable[[], str]
) -> None:
    """Tissue touches the left, top and bottom edge; a field of 4 x 64 px leaves the image there."""
    grid, xy = lattice(8, 10, at=90.0)
    sdata, path = slide(tissue_image(), xy, grid=grid), checkpoint()
    field = max(level.size * level.downsample for level in stp.checkpoints.load(path)[1].crop.levels)
    left, top, bottom = xy[:, 0] < field / 2, xy[:, 1] < field / 2, xy[:, 1] > 960 - field / 2
    near = xy[:, 0] - field / 2 < 700  # tissue goes as far to the right
    cut = left | ((top | bottom) & near)
    stp.tl.predict(sdata, path, key_added="kept")
    assert f"{cut.sum()} of {len(xy)} spots of 'spots' have a field of view that leaves the image" in said()
    stp.tl.predict(sdata, path, cut_tissue="nan", key_added="left_out")
    kept, left_out = sdata["table"].obsm["kept"], sdata["table"].obsm["left_out"]
    assert np.isfinite(kept).all()
    np.testing.assert_array_equal(np.isnan(left_out).all(axis=1), cut)
    np.testing.assert_array_equal(left_out[~cut], kept[~cut])
    assert sdata["table"].uns["st_predict"]["left_out"]["params"] != sdata["table"].uns["st_predict"]["kept"]["params"]
    with pytest.raises(ValueError, match="cut_tissue must be 'keep' or 'nan', got 'white'"):
        stp.tl.predict(sdata, path, cut_tissue="white")


def test_spots_at_a_cut_are_said_with_the_name_of_their_section(
    checkpoint: Callable[..., Path], said: Callable[[], str]
) -> None:
    grid, xy = lattice(8, 10, at=90.0)
    sdata = slide(tissue_image(), xy, grid=grid)
    sdata["table"].obs["section"] = "P5S1"
    stp.tl.predict(sdata, checkpoint())
    assert f"of {len(xy)} spots of 'spots', section P5S1, have a field of view" in said()


@pytest.mark.parametrize("low", [(103.0, 101.0), (103.4, 101.2)])
def test_spots_away_from_a_cut_do_not_move(checkpoint: Callable[..., Path], low: tuple[float, float]) -> None:
    """Offsets that no level's factor divides, with and without a fraction."""
    _, xy = lattice(3, 4, at=430.3)
    sdata, path = slide(tissue_image(1200, 1200, box=(0, 0, 1200, 1200)), xy, n_levels=4), checkpoint()
    stp.tl.predict(sdata, path, key_added="p")
    part = sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=list(low), max_coordinate=[1150.0, 1150.0], target_coordinate_system="global"
    )
    stp.tl.predict(part, path, key_added="p")
    np.testing.assert_allclose(part["table"].obsm["p"], sdata["table"].obsm["p"], rtol=0, atol=1e-6)


def test_a_level_of_one_spec_is_the_field(checkpoint: Callable[..., Path]) -> None:
    _, xy = lattice()
    sdata = slide(tissue_image(), xy, mpp=0.5)
    section = stp._sections.open_sdata(sdata, stp._where.Where(), need_mpp=True).sections[0]
    crop = CropSpec(levels=(LevelSpec(size=10), LevelSpec(size=20, downsample=3.0)), mpp=1.0)
    assert stp._sections._scale.field_px(section, crop) == 10 * 6 * 2
    assert stp._sections._scale.field_px(section, replace(crop, mpp=None)) == 60
    assert find_mpp(sdata).value == 0.5
