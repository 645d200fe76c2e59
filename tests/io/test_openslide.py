"""Slides, against OpenSlide itself and against the arrays that were written."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from spatialdata import SpatialData

from st_predict._errors import InvalidValueError
from st_predict.io import OpenSlidePyramid, PyramidReader, find_mpp, open_pyramid, read_wsi
from st_predict.io._lazy import lazy_level
from st_predict.io._rgb8 import on_white

SVS = Path(__file__).parents[3] / "shared" / "data" / "wsi" / "CMU-1-Small-Region.svs"
SHAPES = ((703, 1205), (351, 602), (175, 301), (70, 120))

needs_svs = pytest.mark.skipif(not SVS.parent.is_dir(), reason=f"no folder {SVS.parent}")


def _level(shape):
    """Red falls from left to right, green from top to bottom, smoothly over the whole image; blue is constant."""
    y, x = ((np.arange(n) + 0.5) / n for n in shape)
    return np.stack(
        [np.tile(250 * x, (shape[0], 1)), np.tile(250 * y[:, None], (1, shape[1])), np.full(shape, 100.0)], axis=-1
    ).astype(np.uint8)


def _write(path, shapes=SHAPES, resolution=(20000, 20000)):
    with tifffile.TiffWriter(path) as file:
        for i, shape in enumerate(shapes):
            file.write(
                _level(shape),
                tile=(64, 64),
                photometric="rgb",
                subfiletype=int(i > 0),
                resolution=resolution,
                resolutionunit="CENTIMETER",
            )
    return path


@pytest.fixture
def tiff(tmp_path):
    return _write(tmp_path / "slide.tif")


def test_levels(tiff):
    reader = OpenSlidePyramid(tiff)
    assert isinstance(reader, PyramidReader)
    assert reader.level_shapes == SHAPES
    assert reader.downsamples == pytest.approx((1, 2, 4, 10), rel=0.005)
    assert reader.downsamples[:3] == (1, 2, 4)  # sizes are trimmed to whole pixels
    assert reader.mpp == pytest.approx((0.5, 0.5))
    assert reader.tile_shapes == ((64, 64),) * 4


@pytest.mark.parametrize("level", range(4))
def test_a_whole_level_is_what_was_written(tiff, level):
    height, width = SHAPES[level]
    np.testing.assert_array_equal(OpenSlidePyramid(tiff).read(0, 0, width, height, level=level), _level(SHAPES[level]))


@pytest.mark.parametrize("level", range(4))
def test_a_region_is_at_its_place(tiff, level):
    reader, truth = OpenSlidePyramid(tiff), _level(SHAPES[level])
    height, width = SHAPES[level]
    for x, y in np.random.default_rng(level).integers(0, (width - 40, height - 30), (20, 2)):
        region = reader.read(x, y, 40, 30, level=level)
        assert region.shape == (30, 40, 3)
        # OpenSlide may interpolate between neighbours, which differ by at most 3 here
        assert np.abs(region.astype(int) - truth[y : y + 30, x : x + 40]).max() <= (0 if level == 0 else 3)


def test_lazy_image_of_a_tiff(tiff, tmp_path):
    sdata = read_wsi(tiff)
    reader = open_pyramid(sdata)
    assert reader.level_shapes == SHAPES
    np.testing.assert_array_equal(reader.read(500, 300, 100, 80, level=0), _level(SHAPES[0])[300:380, 500:600])
    sdata.write(tmp_path / "slide.zarr")
    stored = SpatialData.read(tmp_path / "slide.zarr")
    assert open_pyramid(stored).level_shapes == SHAPES
    np.testing.assert_array_equal(open_pyramid(stored).read(0, 0, 1205, 703, level=0), _level(SHAPES[0]))
    assert find_mpp(stored).value == pytest.approx(0.5)


def test_at_most_one_tile_per_level_is_read_on_opening(tiff, monkeypatch):
    regions = []
    read_region = openslide.OpenSlide.read_region
    monkeypatch.setattr(
        openslide.OpenSlide, "read_region", lambda self, *args: (regions.append(args), read_region(self, *args))[1]
    )
    read_wsi(tiff)
    assert all(width <= 64 and height <= 64 for _, _, (width, height) in regions)
    assert len(regions) <= 2 * len(SHAPES)  # two where OpenSlide interpolates


def test_one_read_a_block_and_blocks_are_whole_tiles(tiff, monkeypatch):
    regions = []
    read_region = openslide.OpenSlide.read_region
    monkeypatch.setattr(
        openslide.OpenSlide, "read_region", lambda self, *args: (regions.append(args), read_region(self, *args))[1]
    )
    lazy_level(OpenSlidePyramid(tiff), 0).compute(scheduler="synchronous")
    assert sorted(corner for corner, _, _ in regions) == [(x, y) for x in (0, 512, 1024) for y in (0, 512)]


def test_one_level_stays_one_level(tmp_path):
    sdata = read_wsi(_write(tmp_path / "one.tif", SHAPES[:1]))
    assert sdata["he"].shape == (3, 703, 1205)
    assert open_pyramid(sdata).level_shapes == SHAPES[:1]


def test_outside_is_white_and_half_seen_is_mixed():
    rgba = np.array([[[0, 0, 0, 0], [10, 20, 30, 255], [100, 0, 200, 51]]], np.uint8).transpose(2, 0, 1)
    np.testing.assert_array_equal(on_white(rgba)[:, 0].T, [[255, 255, 255], [10, 20, 30], [224, 204, 244]])


def test_mpp_argument_wins_and_none_is_none(tiff, tmp_path):
    assert find_mpp(read_wsi(tiff, mpp=0.25)).value == pytest.approx(0.25)
    assert find_mpp(read_wsi(tiff)).source == "coordinate system 'um'"
    with pytest.raises(ValueError, match="mpp must be a positive number"):
        read_wsi(tiff, mpp=0)
    bare = tmp_path / "bare.tif"
    tifffile.imwrite(bare, _level(SHAPES[0]), tile=(64, 64), photometric="rgb", resolutionunit="NONE")
    assert OpenSlidePyramid(bare).mpp is None
    assert find_mpp(read_wsi(bare)) is None


def test_pixels_that_are_not_square(tmp_path):
    path = _write(tmp_path / "s.tif", resolution=(20000, 25000))
    with pytest.raises(ValueError, match=re.escape("Pixels are not square: 0.5 by 0.4 um")):
        _ = OpenSlidePyramid(path).mpp
    with pytest.raises(ValueError, match=re.escape("Pixels are not square: 0.5 by 0.4 um")):
        read_wsi(path)
    assert find_mpp(read_wsi(path, mpp=0.25)).value == pytest.approx(0.25)


@pytest.mark.parametrize("wrong", ["0", "-0.5", "nan", "a half"])
def test_wrong_properties_are_refused(tiff, monkeypatch, wrong):
    properties = {"openslide.mpp-x": wrong, "openslide.mpp-y": wrong}
    monkeypatch.setattr(openslide.OpenSlide, "properties", properties)
    with pytest.raises(ValueError, match=r"mpp must be a positive number, got .* from the properties of .*slide\.tif"):
        _ = OpenSlidePyramid(tiff).mpp


def test_files_that_do_not_open(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        OpenSlidePyramid(tmp_path / "none.svs")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(ValueError, match=r"OpenSlide cannot open .*text\.svs"):
        read_wsi(tmp_path / "text.svs")


def test_another_process_can_read(tiff):
    copy = pickle.loads(pickle.dumps(OpenSlidePyramid(tiff)))
    np.testing.assert_array_equal(copy.read(5, 6, 7, 8, level=0), _level(SHAPES[0])[6:14, 5:12])


@needs_svs
def test_a_real_slide_is_what_openslide_reads():
    slide = openslide.OpenSlide(SVS)
    sdata = read_wsi(SVS)
    assert open_pyramid(sdata).level_shapes == ((slide.dimensions[1], slide.dimensions[0]),)
    for place in ((0, 0), (1000, 700), (slide.dimensions[0] - 300, slide.dimensions[1] - 200)):
        truth = np.asarray(slide.read_region(place, 0, (300, 200)))[..., :3]
        np.testing.assert_array_equal(OpenSlidePyramid(SVS).read(*place, 300, 200, level=0), truth)
        np.testing.assert_array_equal(open_pyramid(sdata).read(*place, 300, 200, level=0), truth)
    assert find_mpp(sdata).value == pytest.approx(float(slide.properties["aperio.MPP"]))


def test_a_damaged_tile_is_placed_and_the_others_are_read(tmp_path):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(_level((256, 256)), tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]  # row 1, column 1
    reader = OpenSlidePyramid(path)
    good = reader.read(0, 0, 64, 64, level=0)
    data = bytearray(path.read_bytes())
    data[start : start + size] = bytes(size)
    path.write_bytes(bytes(data))
    reader = OpenSlidePyramid(path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"slide\.tif, level 0, x 64, y 64, 64 x 64 px: cannot be read.*OpenSlide"):
            reader.read(64, 64, 64, 64, level=0)
        np.testing.assert_array_equal(reader.read(0, 0, 64, 64, level=0), good)
    with pytest.raises(OSError, match="Image 'he', level 0, x 64, y 64"):
        open_pyramid(read_wsi(path)).read(64, 64, 64, 64, level=0)


def test_arguments_of_another_type_are_named(tiff):
    for path in (None, 3, [tiff]):
        with pytest.raises(InvalidValueError, match="path must be a path, got"):
            read_wsi(path)
    for name in (None, "a/b", "__x", 3):
        with pytest.raises(InvalidValueError, match=r"image_key must be a name of letters, digits, _, - and \."):
            read_wsi(tiff, image_key=name)
    with pytest.raises(InvalidValueError, match="mpp must be a positive number, got 'half' from argument"):
        read_wsi(tiff, mpp="half")
    with pytest.raises(InvalidValueError, match="pixels inside level 0, which is 1205 x 703 px"):
        OpenSlidePyramid(tiff).read(1200, 0, 6, 1, level=0)
    with pytest.raises(InvalidValueError, match="level must be a whole number from 0 to 3, got 4"):
        OpenSlidePyramid(tiff).edges(4)


def test_a_wrong_resolution_says_how_to_give_another(tmp_path):
    path = _write(tmp_path / "slide.tif", resolution=(20000, 25000))
    with pytest.raises(InvalidValueError, match=r"Resample the image, or give it with mpp=\.$"):
        read_wsi(path)


def test_values_of_12_bits_are_not_shown_black(tmp_path):
    pixels = np.full((512, 512, 3), 4095, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), photometric="rgb")
    with pytest.raises(ValueError, match=r"samples of 16 bits"):
        OpenSlidePyramid(tmp_path / "a.tif")
