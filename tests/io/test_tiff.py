"""Tiled TIFF, against OpenSlide and against the arrays that were written."""

from __future__ import annotations

import logging
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from st_predict._errors import InvalidValueError
from st_predict.io import OpenSlidePyramid, TiffPyramid, find_mpp, open_pyramid, open_slide, read_image
from st_predict.io._lazy import ReaderLevel
from st_predict.io._tiff import TileLevel

SVS = Path(__file__).parents[3] / "shared" / "data" / "wsi" / "CMU-1-Small-Region.svs"
needs_svs = pytest.mark.skipif(not SVS.is_file(), reason=f"no file {SVS}")

APERIO = (
    "Aperio Image Library v12.0.15 \r\n46000x32914 [0,0 46000x32893] (256x256) JPEG/RGB Q=30|AppMag = 20|MPP = 0.499"
)
RGB_JPEG = {"compression": "jpeg", "compressionargs": {"level": 80, "outcolorspace": "rgb"}}
STORED = {
    "JPEG, YCbCr 4:2:0": {"compression": "jpeg", "compressionargs": {"level": 80}, "subsampling": (2, 2)},
    "JPEG, YCbCr 4:2:2": {"compression": "jpeg", "compressionargs": {"level": 80}, "subsampling": (2, 1)},
    "JPEG, YCbCr 4:4:4": {"compression": "jpeg", "compressionargs": {"level": 80}, "subsampling": (1, 1)},
    "JPEG, RGB": RGB_JPEG,
    "deflate": {"compression": "deflate"},
    "deflate, differences": {"compression": "deflate", "predictor": True},
    "LZW": {"compression": "lzw"},
    "LZW, differences": {"compression": "lzw", "predictor": True},
    "uncompressed": {"compression": None},
    "BigTIFF": {"compression": "deflate", "bigtiff": True},
    "planes": {"compression": "deflate", "planarconfig": "separate"},
}


def picture(height, width, seed=0):
    """Smooth colours and noise, so that tiles differ and JPEG has something to do: ``(height, width, 3)``."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 230, (height // 16 + 1, width // 16 + 1, 3))
    smooth = np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)[:height, :width]
    return np.clip(smooth + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


def write(path, levels=None, *, tile=256, description=None, bigtiff=False, byteorder=None, **options):
    """Write a pyramid; OpenSlide wants to know of levels that they are reduced."""
    levels = [picture(512, 768), picture(256, 384, 1), picture(128, 192, 2)] if levels is None else levels
    planar = options.get("planarconfig") == "separate"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as file:
        for i, level in enumerate(levels):
            file.write(
                np.moveaxis(level, -1, 0) if planar else level,
                tile=(tile, tile),
                photometric="rgb",
                subfiletype=int(i > 0 and description is None),
                description=description,
                metadata=None,
                resolution=(20000, 20000),
                resolutionunit="CENTIMETER",
                **options,
            )
    return path


def whole(reader, level=0):
    height, width = reader.level_shapes[level]
    return reader.read(0, 0, width, height, level=level)


def by_openslide(path, level=0):
    slide = openslide.OpenSlide(path)
    return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., :3]


@pytest.mark.parametrize("tile", [256, 512, 208])
@pytest.mark.parametrize("stored", STORED)
def test_every_pixel_is_that_of_openslide(tmp_path, stored, tile):
    path = write(tmp_path / "slide.tif", tile=tile, **STORED[stored])
    reader = open_slide(path)
    assert isinstance(reader, TiffPyramid)
    assert reader.level_shapes == ((512, 768), (256, 384), (128, 192))
    assert reader.tile_shapes == ((tile, tile),) * 3
    for level in range(3):
        if stored != "uncompressed" or tile != 208:  # which OpenSlide refuses, as tifffile pads them
            np.testing.assert_array_equal(whole(reader, level), by_openslide(path, level))
    if "JPEG" not in stored:
        np.testing.assert_array_equal(whole(reader), picture(512, 768))


@pytest.mark.parametrize("stored", ["JPEG, RGB", "JPEG, YCbCr 4:2:0"])
def test_aperio_is_what_openslide_reads(tmp_path, stored):
    path = write(tmp_path / "slide.svs", tile=240, description=APERIO, **STORED[stored])
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    reader = open_slide(path)
    assert isinstance(reader, TiffPyramid)
    for level in range(3):
        np.testing.assert_array_equal(whole(reader, level), by_openslide(path, level))
    assert reader.mpp == OpenSlidePyramid(path).mpp == (0.499, 0.499)


@needs_svs
def test_every_pixel_of_a_real_slide_is_that_of_openslide():
    reader = open_slide(SVS)
    assert isinstance(reader, TiffPyramid)
    np.testing.assert_array_equal(whole(reader), by_openslide(SVS))
    assert reader.mpp == OpenSlidePyramid(SVS).mpp


def test_levels_of_odd_sizes_are_what_was_written(tmp_path):
    """OpenSlide interpolates where the downsample is not whole; the comparison at opening must not take that for a fault."""
    levels = [picture(703, 1205), picture(351, 602, 1), picture(175, 301, 2)]
    reader = open_slide(write(tmp_path / "slide.tif", levels, tile=64, compression="lzw"))
    assert isinstance(reader, TiffPyramid)
    assert reader.downsamples == (1, 2, 4)
    for number, level in enumerate(levels):
        np.testing.assert_array_equal(whole(reader, number), level)


def test_a_region_is_at_its_place(tmp_path):
    truth = picture(1024, 1536)
    reader = open_slide(write(tmp_path / "slide.tif", [truth], tile=240, compression="deflate"))
    for x, y in np.random.default_rng(0).integers(0, (1536 - 500, 1024 - 300), (20, 2)):
        np.testing.assert_array_equal(reader.read(x, y, 500, 300, level=0), truth[y : y + 300, x : x + 500])
    assert reader.read(3, 4, 0, 5, level=0).shape == (5, 0, 3)
    np.testing.assert_array_equal(reader.edges(0)[0], [0, 720, 1024])


@pytest.mark.parametrize("unit", ["µm", "nm", "mm"])
def test_ome_has_its_levels_in_sub_ifds(tmp_path, unit):
    path, levels = tmp_path / "slide.ome.tif", [picture(512, 768), picture(256, 384, 1)]
    size = 0.25 / {"µm": 1, "nm": 1e-3, "mm": 1e3}[unit]
    with tifffile.TiffWriter(path, ome=True) as file:
        metadata = {"PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size, "PhysicalSizeYUnit": unit}
        options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
        file.write(levels[0], subifds=1, metadata={"axes": "YXS", **metadata}, **options)
        file.write(levels[1], subfiletype=1, **options)
    reader = open_slide(path)
    assert isinstance(reader, TiffPyramid)
    assert reader.mpp == pytest.approx((0.25, 0.25))
    for number, level in enumerate(levels):
        np.testing.assert_array_equal(whole(reader, number), level)
    assert find_mpp(read_image(path)).value == pytest.approx(0.25)


def test_channels_of_ome_that_are_images_of_their_own_are_refused(tmp_path):
    """OpenSlide shows the first of them as a grey slide."""
    path = tmp_path / "markers.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(
            np.moveaxis(picture(512, 512), -1, 0),
            tile=(256, 256),
            photometric="minisblack",
            metadata={"axes": "CYX"},
        )
    with pytest.raises(InvalidValueError, match=r"markers\.ome\.tif holds 3 images of 512 x 512 px \(axes CYX\)"):
        read_image(path)


def test_resolution_tags_are_read_as_openslide_reads_them(tmp_path):
    for unit, resolution in {"CENTIMETER": (20000, 20000), "INCH": (50800, 50800)}.items():
        path = tmp_path / f"{unit}.tif"
        tifffile.imwrite(
            path, picture(256, 256), tile=(64, 64), photometric="rgb", resolution=resolution, resolutionunit=unit
        )
        assert TiffPyramid(path).mpp == pytest.approx((0.5, 0.5))
        assert TiffPyramid(path).mpp == pytest.approx(OpenSlidePyramid(path).mpp)
    bare = tmp_path / "bare.tif"
    tifffile.imwrite(bare, picture(256, 256), tile=(64, 64), photometric="rgb", resolutionunit="NONE")
    assert TiffPyramid(bare).mpp is OpenSlidePyramid(bare).mpp is None


def test_tiles_that_were_never_written_are_white(tmp_path):
    path, truth = tmp_path / "sparse.tif", picture(512, 768)
    tiles = [truth[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256, 512)]
    with tifffile.TiffWriter(path) as file:
        file.write(
            (None if number == 4 else tile for number, tile in enumerate(tiles)),
            shape=truth.shape,
            dtype=np.uint8,
            tile=(256, 256),
            photometric="rgb",
            compression="deflate",
            metadata=None,
        )
    truth[256:, 256:512] = 255
    reader = open_slide(path)
    assert isinstance(reader, TiffPyramid)
    np.testing.assert_array_equal(whole(reader), truth)
    np.testing.assert_array_equal(whole(OpenSlidePyramid(path)), truth)


@pytest.mark.parametrize("compression", ["deflate", "lzw", "jpeg", None])
def test_files_that_openslide_does_not_open_are_what_was_written(tmp_path, compression):
    path = write(tmp_path / "slide.tif", byteorder=">", compression=compression)
    assert openslide.OpenSlide.detect_format(path) is None
    with tifffile.TiffFile(path) as file:
        for level, page in enumerate(file.pages):
            np.testing.assert_array_equal(whole(open_slide(path), level), page.asarray())


def damage(path, number, change):
    """Change the bytes of a tile of the first page."""
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[number], file.pages[0].databytecounts[number]
    data = bytearray(path.read_bytes())
    data[start : start + size] = change(bytes(data[start : start + size]))
    path.write_bytes(data)


@pytest.mark.parametrize("compression", ["deflate", "lzw", "jpeg"])
def test_a_damaged_tile_is_named_and_the_others_are_read(tmp_path, compression):
    path = write(tmp_path / "slide.tif", [picture(512, 768)], compression=compression)
    good = whole(TiffPyramid(path))
    damage(path, 4, lambda data: bytes(len(data)))  # row 1, column 1
    reader = open_slide(path)
    assert isinstance(reader, TiffPyramid)
    place = r"slide\.tif, level 0, x 200, y 300, 100 x 50 px: cannot be read.*the tile at x 256, y 256 of the level"
    with pytest.raises(OSError, match=place):
        reader.read(200, 300, 100, 50, level=0)
    np.testing.assert_array_equal(reader.read(0, 0, 768, 256, level=0), good[:256])


def test_a_jpeg_tile_that_ends_early_is_damaged(tmp_path):
    """Decoders of JPEG fill it with grey."""
    path = write(tmp_path / "slide.tif", [picture(512, 768)], compression="jpeg")
    damage(path, 4, lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(OSError, match="the tile at x 256, y 256 of the level: its JPEG stream ends too early"):
        whole(TiffPyramid(path))


def test_a_jpeg_tile_without_its_end_marker_is_read(tmp_path):
    path = write(tmp_path / "slide.tif", [picture(512, 768)], compression="jpeg")
    good = whole(TiffPyramid(path))
    damage(path, 4, lambda data: data[:-2] + bytes(2))
    np.testing.assert_array_equal(whole(TiffPyramid(path)), good)


def test_a_file_that_was_cut_off(tmp_path):
    path = write(tmp_path / "slide.tif", [picture(512, 768)], compression="jpeg")
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: last + 10])
    with pytest.raises(OSError, match=r"the tile at x 512, y 256 of the level: the file ends \d+ bytes before"):
        whole(open_slide(path))


def test_pixels_that_differ_fall_back_with_a_message(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "slide.tif", compression="jpeg")
    decode = TiffPyramid._decode
    monkeypatch.setattr(TiffPyramid, "_decode", lambda self, *args: decode(self, *args)[..., ::-1])
    with caplog.at_level(logging.WARNING):
        reader = open_slide(path)
    assert isinstance(reader, OpenSlidePyramid)
    assert "read through OpenSlide, which is slower: pixels of level 0 differ" in caplog.text


def test_a_level_that_differs_falls_back_even_where_openslide_interpolates(tmp_path, monkeypatch, caplog):
    levels = [picture(703, 1205), picture(351, 602, 1)]
    path = write(tmp_path / "slide.tif", levels, tile=64, compression="jpeg")
    of_page = TileLevel.of_page.__func__

    def dark(cls, page):
        level = of_page(cls, page)
        if level.shape == (703, 1205):
            return level
        decode = level.decode
        object.__setattr__(level, "decode", lambda *a, **k: (decode(*a, **k)[0] // 2,))
        return level

    monkeypatch.setattr(TileLevel, "of_page", classmethod(dark))
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_slide(path), OpenSlidePyramid)
    assert "pixels of level 1 differ" in caplog.text


def test_levels_that_differ_fall_back_with_a_message(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "slide.tif", compression="deflate")
    monkeypatch.setattr(OpenSlidePyramid, "level_shapes", property(lambda _self: ((512, 768), (256, 384))))
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_slide(path), OpenSlidePyramid)
    assert "its levels are 768 x 512, 384 x 256, 192 x 128 by tifffile and 768 x 512, 384 x 256 by" in caplog.text


def test_aperio_without_some_tiles_of_a_coarse_level_stays_with_openslide(tmp_path):
    """OpenSlide makes them from the next finer level."""
    path = write(tmp_path / "slide.svs", tile=256, description=APERIO, compression="deflate")
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[1].tags[325]
        tag.overwrite([0, *tag.value[1:]])
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    reader = open_slide(path)
    assert isinstance(reader, OpenSlidePyramid)
    assert not (reader.read(0, 0, 200, 200, level=1) == 255).all()


@pytest.mark.parametrize(
    "options",
    [{"photometric": "minisblack"}, {"extrasamples": ["unassalpha"]}],
    ids=["grey", "alpha"],
)
def test_other_layouts_stay_with_openslide(tmp_path, options):
    pixels = picture(512, 512)
    if "extrasamples" in options:
        pixels = np.concatenate([pixels, np.full((512, 512, 1), 255, np.uint8)], axis=-1)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path,
        pixels[..., 0] if "photometric" in options else pixels,
        tile=(256, 256),
        **{"photometric": "rgb", **options},
    )
    assert isinstance(open_slide(path), OpenSlidePyramid)


def test_deep_samples_are_not_shown_black(tmp_path):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, picture(512, 512).astype(np.uint16) * 16, tile=(256, 256), photometric="rgb")
    with pytest.raises(InvalidValueError, match=r"of type uint16.*value_range=\(0, 4095\)"):
        read_image(path)
    with pytest.raises(InvalidValueError, match="samples of 16 bits"):
        open_slide(path)


def test_lazy_blocks_come_straight_from_the_reader(tmp_path):
    path = write(tmp_path / "slide.tif", compression="jpeg")
    reader = open_pyramid(read_image(path))
    assert all(isinstance(level, ReaderLevel) for level in reader._levels)
    np.testing.assert_array_equal(reader.edges(0)[1], [0, 512, 768])
    np.testing.assert_array_equal(reader.read(100, 50, 600, 400, level=0), by_openslide(path)[50:450, 100:700])
    image = next(iter(read_image(path)["he"]["scale0"].data_vars.values()))
    part = np.moveaxis(image[:, 50:450, 100:700].to_numpy(), 0, -1)
    np.testing.assert_array_equal(part, reader.read(100, 50, 600, 400, level=0))


def test_every_tile_is_decoded_once(tmp_path, monkeypatch):
    from st_predict.crops import iter_batches, plan_crops
    from st_predict.specs import CropSpec, LevelSpec

    decoded, lock = [], threading.Lock()
    decode = TiffPyramid._decode

    def counting(self, index, number):
        with lock:
            decoded.append((index.shape, number))
        return decode(self, index, number)

    levels = [picture(1024, 1536), picture(512, 768, 1), picture(256, 384, 2)]
    path = write(tmp_path / "slide.tif", levels, compression="jpeg")
    reader = open_pyramid(read_image(path))
    monkeypatch.setattr(TiffPyramid, "_decode", counting)
    y, x = np.meshgrid(np.arange(150, 900, 56), np.arange(150, 1400, 56), indexing="ij")
    spec = CropSpec(levels=tuple(LevelSpec(size=64, downsample=downsample) for downsample in (1, 2, 4)))
    plan = plan_crops(np.stack([x.ravel(), y.ravel()], axis=1).astype(float), spec, downsamples=reader.downsamples)
    for _ in iter_batches(reader, plan, n_threads=2):
        pass
    assert len(decoded) > 20
    assert len(decoded) == len(set(decoded))


def test_threads_and_other_processes_read_the_same(tmp_path):
    path = write(tmp_path / "slide.tif", compression="jpeg")
    reader = open_slide(path)
    expected = whole(reader)
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(lambda _: whole(reader), range(16)):
            np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(reader))), expected)


def test_files_that_do_not_open(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        TiffPyramid(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("no slide")
    with pytest.raises(ValueError, match=r"text\.tif cannot be read as TIFF"):
        TiffPyramid(tmp_path / "text.tif")
    (tmp_path / "cut.tif").write_bytes(b"II*\0" + bytes(20))
    with pytest.raises(ValueError, match=r"cut\.tif"):
        read_image(tmp_path / "cut.tif")
    path = write(tmp_path / "slide.tif")
    with pytest.raises(InvalidValueError, match="pixels inside level 0, which is 768 x 512 px"):
        TiffPyramid(path).read(750, 0, 60, 1, level=0)
    with pytest.raises(InvalidValueError, match="level must be a whole number from 0 to 2, got 4"):
        TiffPyramid(path).edges(4)


@pytest.mark.parametrize("wrong", ["0", "-0.5", "nan", "a half"])
def test_wrong_mpp_of_a_file_is_refused_and_the_argument_wins(tmp_path, wrong):
    path = write(tmp_path / "slide.svs", description=APERIO.replace("0.499", wrong), compression="jpeg")
    with pytest.raises(ValueError, match=r"mpp must be a positive number, got .* from the properties of .*slide\.svs"):
        read_image(path)
    assert find_mpp(read_image(path, mpp=0.25)).value == pytest.approx(0.25)


def test_pixels_that_are_not_square(tmp_path):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, picture(256, 256), tile=(64, 64), photometric="rgb", resolution=(20000, 25000), resolutionunit=3
    )
    with pytest.raises(ValueError, match=re.escape("Pixels are not square: 0.5 by 0.4 um")):
        read_image(path)
    assert find_mpp(read_image(path, mpp=0.25)).value == pytest.approx(0.25)
