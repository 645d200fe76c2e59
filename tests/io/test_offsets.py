"""Levels of an image that was cut out of another one."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.transformations import Scale, Sequence, Translation, set_transformation

from st_predict._multiscale import halve, image_of_levels
from st_predict.io import level_offsets, open_pyramid

SIDE = 1001  # so that no level has exactly half the pixels of the one before


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE // 5 + 1, SIDE // 5 + 1, 3), dtype=np.uint8)
    found = [np.repeat(np.repeat(noise, 5, 0), 5, 1)[:SIDE, :SIDE]]
    while len(found) < 4:
        found.append(halve(found[-1]))
    return found


def slide_of(levels: list[np.ndarray]) -> SpatialData:
    arrays = [da.from_array(level.transpose(2, 0, 1), chunks=(3, 256, 256)) for level in levels]
    return SpatialData(images={"he": image_of_levels(arrays, mpp=0.5)})


def cut(sdata: SpatialData, low: tuple[float, float], high: float = 950.0, system: str = "global") -> SpatialData:
    return sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=list(low), max_coordinate=[high, high], target_coordinate_system=system
    )


def first_pixel(part: np.ndarray, whole: np.ndarray, at: float) -> tuple[int, int]:
    """Where ``part`` lies in ``whole``, near ``at``, by comparing all pixels."""
    near = range(max(0, int(at) - 3), int(at) + 4)
    height, width = part.shape[:2]
    (found,) = [(x, y) for x in near for y in near if np.array_equal(whole[y : y + height, x : x + width], part)]
    return found


@pytest.mark.parametrize("low", [(96, 96), (101, 101), (103, 103), (100.4, 100.4), (107.7, 107.7)])
def test_edges_are_those_of_the_pixels_that_were_taken(levels: list[np.ndarray], low: tuple[float, float]) -> None:
    reader = open_pyramid(cut(slide_of(levels), low))
    said = np.ceil(low)  # where the transformations say that level 0 begins
    offsets = level_offsets(reader)
    for level, (whole, downsample) in enumerate(zip(levels, reader.downsamples, strict=True)):
        height, width = reader.level_shapes[level]
        part = reader.read(0, 0, width, height, level=level)
        begin = np.array(first_pixel(part, whole, low[0] / downsample))
        np.testing.assert_allclose(offsets[level], begin * downsample - said, err_msg=f"level {level}")


def test_a_cut_of_a_cut(levels: list[np.ndarray]) -> None:
    once = cut(slide_of(levels), (101, 101))
    reader = open_pyramid(cut(once, (206, 206)))
    for level, whole in enumerate(levels):
        height, width = reader.level_shapes[level]
        begin = first_pixel(reader.read(0, 0, width, height, level=level), whole, 206 / 2**level)
        np.testing.assert_allclose(level_offsets(reader)[level], np.array(begin) * 2**level - 206)


def test_an_image_that_was_moved_and_not_cut(levels: list[np.ndarray]) -> None:
    sdata = slide_of(levels)
    moved = Sequence([Translation([37, 41], axes=("x", "y")), Scale([0.5, 0.5], axes=("x", "y"))])
    set_transformation(sdata["he"], {"um": moved}, set_all=True)
    assert level_offsets(open_pyramid(sdata)) == ((0.0, 0.0),) * 4


def test_a_whole_image_is_not_read(levels: list[np.ndarray]) -> None:
    blocks = []

    def noted(block: np.ndarray) -> np.ndarray:
        blocks.append(block.shape)
        return block

    arrays = [
        da.from_array(level.transpose(2, 0, 1), chunks=(3, 256, 256)).map_blocks(
            noted, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
        )
        for level in levels
    ]
    reader = open_pyramid(SpatialData(images={"he": image_of_levels(arrays, mpp=None)}))
    assert level_offsets(reader) == ((0.0, 0.0),) * 4
    assert not blocks


def test_levels_that_are_stored_coarse_first(levels: list[np.ndarray]) -> None:
    from xarray import Dataset, DataTree

    image = slide_of(levels)["he"]
    names = list(image.children)
    mixed = DataTree.from_dict(
        {name: Dataset({"image": image[other]["image"]}) for name, other in zip(names, names[::-1], strict=True)}
    )
    with pytest.raises(ValueError, match="Expected levels from fine to coarse, got scale0 125 x 125, scale1 250 x 250"):
        open_pyramid(SpatialData(images={"he": mixed}))
