"""Readers of levels, against arrays."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from xarray import Dataset, DataTree
from zarr.codecs import BloscCodec, GzipCodec

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.io import PyramidReader, SpatialDataPyramid, open_pyramid
from st_predict.io._regions import level_downsamples


def _image(array):
    return Image2DModel.parse(array, dims=("c", "y", "x"))


def test_levels_are_finest_first(sdata):
    reader = open_pyramid(sdata)
    assert isinstance(reader, PyramidReader)
    assert reader.level_shapes == ((400, 600), (200, 300), (100, 150))
    assert reader.downsamples == (1, 2, 4)


def test_a_region_of_level_0_is_where_it_says(sdata):
    region = open_pyramid(sdata, "he").read(100, 40, 30, 20, level=0)
    yy, xx = np.mgrid[40:60, 100:130]
    np.testing.assert_array_equal(region, np.stack([xx // 4, yy // 4, 0 * xx], axis=-1))
    assert region.dtype == np.uint8


@pytest.mark.parametrize("level", [0, 1, 2])
def test_coordinates_are_pixels_of_the_level(sdata, level):
    reader = open_pyramid(sdata)
    stored = next(iter(sdata["he"][f"scale{level}"].values())).transpose("y", "x", "c").to_numpy()
    np.testing.assert_array_equal(reader.read(41, 13, 57, 31, level=level), stored[13:44, 41:98])


def test_single_scale_is_one_level():
    array = np.random.default_rng(0).integers(0, 256, (3, 50, 40), dtype=np.uint8)
    reader = SpatialDataPyramid(_image(array))
    assert reader.level_shapes == ((50, 40),)
    np.testing.assert_array_equal(reader.read(0, 0, 40, 50, level=0), array.transpose(1, 2, 0))


def test_an_image_on_disk_reads_the_same(sdata, tmp_path):
    sdata.write(tmp_path / "s.zarr")
    stored = open_pyramid(SpatialData.read(tmp_path / "s.zarr"))
    assert stored.level_shapes == open_pyramid(sdata).level_shapes
    np.testing.assert_array_equal(
        stored.read(10, 20, 100, 50, level=1), open_pyramid(sdata).read(10, 20, 100, 50, level=1)
    )


def test_threads_read_the_same(sdata):
    reader = open_pyramid(sdata)
    whole = reader.read(0, 0, 600, 400, level=0)
    places = [(x, y) for x in range(0, 550, 50) for y in range(0, 350, 50)]
    with ThreadPoolExecutor(4) as pool:
        regions = list(pool.map(lambda place: reader.read(*place, 50, 50, level=0), places))
    for (x, y), region in zip(places, regions, strict=True):
        np.testing.assert_array_equal(region, whole[y : y + 50, x : x + 50])


def test_reading_stays_in_its_own_thread(sdata):
    with dask.config.set(pool=None, scheduler=_fail):
        assert open_pyramid(sdata).read(0, 0, 5, 5, level=1).shape == (5, 5, 3)


def _fail(*_args, **_kwargs):
    raise AssertionError("dask's own scheduler was used")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((9274, 9911), (4637, 4955), (2318, 2477), (1159, 1238)), (1, 2, 4, 8)),  # odd sides are trimmed
        (((9274, 9911), (4637, 4956), (2319, 2478)), (1, 2, 4)),  # or rounded up
        (((1000, 2000), (250, 500)), (1, 4)),
        (((1000, 1000), (400, 400)), (1, 2.5)),
        (((703, 1205), (351, 602), (70, 120)), (1, 2, 10)),
        (((32914, 46000), (8228, 11500), (2057, 2875)), (1, 4, 16)),  # CMU-1.svs
        (((1000, 1501), (401, 600)), (1, (1000 / 401 + 1501 / 600) / 2)),  # 2.5, rounded up and down
        (((900, 900), (300, 301)), (1, (3 + 900 / 301) / 2)),  # 301 is no third of 900
    ],
)
def test_downsamples(shapes, expected):
    assert level_downsamples(shapes) == pytest.approx(expected)


@pytest.mark.parametrize("last", [(250, 500), (500, 480), (500, 504)])
def test_levels_that_are_shrunk_more_along_one_axis(last):
    with pytest.raises(
        ValueError, match=rf"Level 2 is shrunk {2000 / last[1]:.6g} times in x and {2000 / last[0]:.6g} "
    ):
        level_downsamples(((2000, 2000), (1000, 1000), last))


def test_the_image_with_such_a_level_is_named():
    level = {f"scale{i}": _image(np.zeros((3, *shape), np.uint8)) for i, shape in enumerate([(200, 200), (100, 50)])}
    tree = DataTree.from_dict({name: Dataset({"image": image}) for name, image in level.items()})
    with pytest.raises(ValueError, match="Image 'he': Level 1 is shrunk 4 times in x and 2 times in y"):
        open_pyramid(SpatialData(images={"he": tree}))


@pytest.mark.parametrize("n_channels", [1, 2, 4, 7])
def test_other_than_three_channels_are_refused(n_channels):
    with pytest.raises(ValueError, match=f"RGB image, got {n_channels} channels"):
        SpatialDataPyramid(_image(np.zeros((n_channels, 8, 8), np.uint8)))


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int64"])
def test_other_than_8_bits_are_refused(dtype):
    sdata = SpatialData(images={"he": _image(np.zeros((3, 8, 8), dtype))})
    with pytest.raises(ValueError, match=f"Image 'he': Expected an 8-bit image .*, got {dtype}"):
        open_pyramid(sdata)


def test_which_image(sdata):
    with pytest.raises(KeyError, match=re.escape("No image 'x' in sdata; there are ['he']")):
        open_pyramid(sdata, "x")
    sdata["other"] = _image(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(
        ValueError,
        match=re.escape(
            "There are several images in sdata: ['he', 'other']. Choose one with image_key=, or keep one of them."
        ),
    ):
        open_pyramid(sdata)
    assert open_pyramid(sdata, "other").level_shapes == ((8, 8),)
    with pytest.raises(ValueError, match="no image"):
        open_pyramid(SpatialData())


@pytest.mark.parametrize(
    "region",
    [(-1, 0, 2, 2), (0, 0, 9, 2), (0, 7, 2, 2), (0, 0, -1, 2), (0.5, 0, 2, 2), ("0", 0, 2, 2), (None, 0, 2, 2)],
)
def test_a_region_lies_inside_its_level(region):
    reader = SpatialDataPyramid(_image(np.zeros((3, 8, 8), np.uint8)))
    with pytest.raises(InvalidValueError, match="pixels inside level 0, which is 8 x 8 px"):
        reader.read(*region, level=0)


@pytest.mark.parametrize("level", [1, -1, 0.5, "0", None])
def test_a_level_exists(level):
    reader = SpatialDataPyramid(_image(np.zeros((3, 8, 8), np.uint8)))
    for call in (partial(reader.read, 0, 0, 2, 2, level=level), partial(reader.edges, level)):
        with pytest.raises(InvalidValueError, match=f"level must be a whole number from 0 to 0, got {level!r}"):
            call()


@pytest.mark.parametrize("compressor", ["blosc", "gzip", "none"])
def test_a_damaged_chunk_is_placed(tmp_path, compressor):
    codec = {"blosc": BloscCodec(), "gzip": GzipCodec(), "none": None}[compressor]
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(3, 128, 128), chunks=(3, 64, 64), dtype="uint8", compressors=codec
    )
    array[:] = np.random.default_rng(0).integers(0, 255, (3, 128, 128), dtype=np.uint8)
    chunk = tmp_path / "a.zarr" / "c" / "0" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    sdata = SpatialData(images={"he": _image(da.from_zarr(tmp_path / "a.zarr"))})
    reader = open_pyramid(sdata)
    for region in ((0, 64, 64, 64), (3, 70, 20, 10)):  # a chunk, and a part of it
        x, y, width, height = region
        with pytest.raises(
            OSError, match=rf"^Image 'he', level 0, x {x}, y {y}, {width} x {height} px: cannot be read"
        ):
            reader.read(*region, level=0)
    assert reader.read(64, 0, 64, 64, level=0).shape == (64, 64, 3)


def test_an_image_that_does_not_fit_into_memory(monkeypatch):
    reader = open_pyramid(
        SpatialData(images={"he": _image(da.zeros((3, 80_000, 80_000), dtype=np.uint8, chunks=(3, 8000, 8000)))})
    )

    def full(*_args):
        raise MemoryError("no more")

    monkeypatch.setattr(type(reader._levels[0]), "read", full)
    with pytest.raises(MemoryError, match=r"80000 x 80000 px: 19.2 GB do not fit into memory"):
        reader.read(0, 0, 80_000, 80_000, level=0)


@pytest.mark.parametrize("image", [None, np.zeros((3, 8, 8), np.uint8), "he"])
def test_an_image_is_an_element(image):
    with pytest.raises(InvalidTypeError, match="Expected an image element"):
        SpatialDataPyramid(image)
    with pytest.raises(InvalidValueError, match="got a DataTree without one"):
        SpatialDataPyramid(DataTree())
