"""Every picture by one function, against the arrays that were written and Pillow."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image, ImageOps
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation

import st_predict as stp
from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._multiscale import halve
from st_predict.io import _pictures, _stored, find_mpp, open_pyramid, read_image, to_rgb8
from st_predict.io._levels import ZarrLevel


def picture(height=600, width=900, seed=0):
    """Smooth, so that JPEG keeps it: ``(height, width, 3)``."""
    small = np.random.default_rng(seed).integers(30, 220, (height // 20, width // 20, 3)).astype(np.uint8)
    return np.repeat(np.repeat(small, 20, axis=0), 20, axis=1)


def whole(sdata, level=0):
    reader = open_pyramid(sdata)
    height, width = reader.level_shapes[level]
    return reader.read(0, 0, width, height, level=level)


def write(path, pixels, **options):
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **{"photometric": "rgb", "metadata": None, **options})
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h.png", {}),
        ("h.jpg", {"quality": 95}),
        ("h.tif", {}),
        ("h.tif", {"compression": "lzw", "rowsperstrip": 7}),
        ("h.tif", {"compression": "jpeg", "rowsperstrip": 64}),
        ("h.tif", {"compression": "deflate", "predictor": True, "planarconfig": "separate"}),
        ("h.tif", {"compression": "jpeg2000", "tile": (256, 256)}),
    ],
    ids=str,
)
def test_pictures_without_tiles_are_what_pillow_reads(tmp_path, name, options):
    planar = options.get("planarconfig") == "separate"
    path = write(tmp_path / name, np.moveaxis(picture(), -1, 0) if planar else picture(), **options)
    pixels = whole(read_image(path, cache=tmp_path / "cache"))
    expected = picture() if planar or "jpeg2000" in options.values() else np.asarray(Image.open(path))
    np.testing.assert_array_equal(pixels, expected)


def test_a_pyramid_is_stored_once_and_read_in_blocks(tmp_path, monkeypatch):
    path, truth = write(tmp_path / "h.png", picture(1600, 2400)), picture(1600, 2400)
    decoded = []
    read = _stored.read_picture
    monkeypatch.setattr(
        _stored, "read_picture", lambda *args, **options: (decoded.append(1), read(*args, **options))[1]
    )
    for _ in range(2):
        sdata = read_image(path, cache=tmp_path / "cache")
        reader = open_pyramid(sdata)
        assert reader.level_shapes == ((1600, 2400), (800, 1200), (400, 600))
        assert all(isinstance(level, ZarrLevel) and level._files is not None for level in reader._levels)
        np.testing.assert_array_equal(whole(sdata), truth)
        np.testing.assert_array_equal(whole(sdata, 1), halve(truth))
        np.testing.assert_array_equal(whole(sdata, 2), halve(halve(truth)))
    assert len(decoded) == 1
    write(path, picture(1600, 2400, seed=1))  # another picture of this name
    np.testing.assert_array_equal(whole(read_image(path, cache=tmp_path / "cache")), picture(1600, 2400, seed=1))
    moved = path.rename(tmp_path / "moved.png")
    read_image(moved, cache=tmp_path / "cache")
    assert len(decoded) == 2
    assert not list((tmp_path / "cache").glob(".st_predict-*"))


def test_the_cache_is_that_of_the_package_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "package"))
    path = write(tmp_path / "h.png", picture())
    read_image(path)
    assert len(list((tmp_path / "package" / "images").glob("*.zarr"))) == 1
    read_image(path, cache=str(tmp_path / "mine"))
    assert len(list((tmp_path / "mine").glob("*.zarr"))) == 1


def test_a_picture_that_fails_leaves_nothing_in_the_cache(tmp_path):
    path = write(tmp_path / "h.png", picture())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InvalidValueError, match=r"h\.png cannot be read: .*truncated.*Get it again"):
        read_image(path, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_names_the_cache(tmp_path, monkeypatch):
    path = write(tmp_path / "h.png", picture())
    usage = _stored.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(_stored.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(InvalidValueError, match=r"Name a folder with more room with cache="):
        read_image(path, cache=tmp_path / "cache")


def test_a_large_tiff_is_decoded_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_pictures, "IN_MEMORY", 1000)
    outs = []
    asarray = tifffile.TiffPage.asarray
    monkeypatch.setattr(
        tifffile.TiffPage, "asarray", lambda self, out=None, **o: (outs.append(out), asarray(self, out=out, **o))[1]
    )
    path = write(tmp_path / "h.tif", picture(), compression="lzw")
    np.testing.assert_array_equal(whole(read_image(path, cache=tmp_path / "cache")), picture())
    assert outs[0].startswith("memmap:")
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "tiled.tif"])
def test_orientation_is_applied_in_all_formats(tmp_path, caplog, kind, orientation):
    path, pixels = tmp_path / f"h.{kind}", picture()
    if kind.endswith("tif"):
        tile = {"tile": (128, 128)} if kind.startswith("tiled") else {}
        write(path, pixels, extratags=[(274, "H", 1, orientation, True)], **tile)
        expected = np.asarray(Image.open(path))  # Pillow turns TIFF by itself
    else:
        exif = Image.Exif()
        exif[274] = orientation
        write(path, pixels, exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    with caplog.at_level(logging.WARNING):
        found = whole(read_image(path, cache=tmp_path / "cache"))
    np.testing.assert_array_equal(found, expected)
    assert (f"has the orientation tag {orientation}: the image is turned upright" in caplog.text) == (orientation > 1)


def test_legacy_sections_follow_the_same_rule(tmp_path, caplog):
    (tmp_path / "c.tsv").write_text("\tA\tB\n" + "".join(f"{x}x{y}\t1\t1\n" for x in (2, 3) for y in (2, 3)))
    (tmp_path / "s.tsv").write_text(
        "x\ty\tpixel_x\tpixel_y\n" + "".join(f"{x}\t{y}\t{x * 100}\t{y * 100}\n" for x in (2, 3) for y in (2, 3))
    )
    for kind in ("jpg", "png", "tif"):
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(picture()).save(tmp_path / f"h.{kind}", exif=exif)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            sdata = stp.io.read_legacy_st(
                tmp_path / "c.tsv", tmp_path / "s.tsv", tmp_path / f"h.{kind}", section="S", patient="P", mpp=1.0
            )
        assert open_pyramid(sdata).level_shapes[0] == (900, 600)
        assert "has the orientation tag 6" in caplog.text
    for name in ("deep.tif", "deep.png"):  # 12 bits in 16, of which Pillow takes the upper 8
        deep = picture().astype(np.uint16) * 16
        write16(tmp_path / name, deep)
        with pytest.raises(
            InvalidValueError, match=rf"{name}: expected an 8-bit RGB image, got mode 'RGB' with .* uint16"
        ):
            stp.io.read_legacy_st(
                tmp_path / "c.tsv", tmp_path / "s.tsv", tmp_path / name, section="S", patient="P", mpp=1.0
            )


def write16(path, pixels, **options):
    if path.suffix == ".png":
        import imagecodecs

        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", **options)
    return path


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "tiled.tif"])
def test_deep_pictures_need_a_range(tmp_path, name):
    truth = picture().astype(np.uint16) * 16
    path = write16(tmp_path / name, truth, **({"tile": (128, 128)} if name == "tiled.tif" else {}))
    with pytest.raises(InvalidValueError, match=r"value_range=\(0, 4095\) for 12-bit data.*\(0, 65535\)"):
        read_image(path, cache=tmp_path)
    pixels = whole(read_image(path, value_range=(0, 4080), cache=tmp_path))
    np.testing.assert_array_equal(pixels, picture())
    with pytest.raises(InvalidValueError, match=r"values from .* to 3\d{3}, outside the value_range \(0, 255\)"):
        read_image(path, value_range=(0, 255), cache=tmp_path)


def test_transparency_is_put_on_white(tmp_path):
    rgba = np.concatenate([picture(), np.full((600, 900, 1), 255, np.uint8)], axis=-1)
    rgba[:300, :, 3] = 0
    expected = np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])
    for path in (
        write(tmp_path / "h.png", rgba),
        write(tmp_path / "h.tif", rgba, extrasamples=["unassalpha"]),
        write(tmp_path / "p.tif", rgba * (rgba[..., 3:] > 0), extrasamples=["assocalpha"]),
    ):
        np.testing.assert_array_equal(whole(read_image(path, cache=tmp_path / "cache")), expected)


@pytest.mark.parametrize("name", ["grey.png", "grey.jpg", "grey.tif", "stack.tif", "cmyk.tif"])
def test_pictures_that_are_not_rgb_are_refused(tmp_path, name):
    path, grey = tmp_path / name, picture()[..., 0]
    if name == "stack.tif":
        tifffile.imwrite(path, np.stack([picture()] * 2), photometric="rgb")
    elif name == "cmyk.tif":
        tifffile.imwrite(path, np.repeat(grey[..., None], 4, axis=-1), photometric="separated")
    else:
        write(path, grey, **({"photometric": "minisblack"} if name == "grey.tif" else {}))
    with pytest.raises(InvalidValueError, match=rf"{name}.*(expected an 8-bit RGB image|expected one RGB image)"):
        read_image(path, cache=tmp_path / "cache")


def test_mpp_is_asked_for_once(tmp_path):
    path = write(tmp_path / "h.png", picture(), dpi=(72, 72))
    assert find_mpp(read_image(path, cache=tmp_path)) is None  # dots per inch of a picture say nothing about tissue
    sdata = read_image(path, mpp=0.5, cache=tmp_path)
    assert find_mpp(sdata).value == pytest.approx(0.5)
    stp.pp.make_grid(sdata, pitch_um=100, tissue_only=False)
    centres = np.sort(np.unique(sdata["grid"].geometry.x))
    assert np.diff(centres) == pytest.approx(200)
    striped = write(tmp_path / "h.tif", picture(), resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert find_mpp(read_image(striped, cache=tmp_path)).value == pytest.approx(0.5)
    assert find_mpp(read_image(striped, mpp=0.25, cache=tmp_path)).value == pytest.approx(0.25)


def test_wrong_arguments(tmp_path):
    path = write(tmp_path / "h.png", picture())
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InvalidValueError, match="path must be a path"):
        read_image(3)
    with pytest.raises(InvalidValueError, match="cache must be a path"):
        read_image(path, cache=3)
    with pytest.raises(InvalidValueError, match="mpp must be a positive number"):
        read_image(path, mpp=-1)
    with pytest.raises(InvalidValueError, match="value_range must be ascending"):
        read_image(path, value_range=(5, 5), cache=tmp_path)
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(InvalidValueError, match=r"text\.svs is not TIFF, PNG or JPEG.*Leave out value_range="):
        read_image(tmp_path / "text.svs", value_range=(0, 1))


def element(pixels, names, **options):
    return Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=names, transformations={"um": Scale([0.5, 0.5], ("x", "y"))}, **options
    )


RGB = ["r", "g", "b"]
PLANES = np.moveaxis(picture(80, 120), -1, 0)


@pytest.mark.parametrize(
    ("pixels", "value_range"),
    [
        (PLANES, None),
        (PLANES.astype(np.uint16) * 16, (0, 4080)),
        (PLANES.astype(np.uint16) * 257, (0, 65535)),
        (PLANES / 255, None),
        ((PLANES / 255).astype(np.float32), (0, 1)),
        (PLANES.astype(np.float64), (0, 255)),
    ],
)
def test_to_rgb8_scales_as_it_is_told(pixels, value_range):
    before = pixels.copy()
    for options in ({}, {"scale_factors": [2]}):
        image = element(pixels, RGB, **options)
        result = to_rgb8(image, value_range=value_range)
        assert get_transformation(result, get_all=True).keys() == {"um"}
        Image2DModel().validate(result)
        finest = result if not options else next(iter(result["scale0"].data_vars.values()))
        assert finest.dtype == np.uint8
        assert list(finest.coords["c"].values) == RGB
        np.testing.assert_array_equal(finest.to_numpy(), PLANES)
    np.testing.assert_array_equal(pixels, before)


def test_to_rgb8_of_grey_and_transparent_images():
    grey = to_rgb8(element(PLANES[:1], ["c"]))
    np.testing.assert_array_equal(grey.to_numpy(), np.repeat(PLANES[:1], 3, axis=0))
    assert list(grey.coords["c"].values) == RGB
    alpha = np.zeros((1, 80, 120), np.uint8)
    alpha[:, :40] = 255
    clear = to_rgb8(element(np.concatenate([PLANES, alpha]), ["r", "g", "b", "a"]))
    np.testing.assert_array_equal(clear.to_numpy(), np.where(alpha == 0, 255, PLANES))
    scales = to_rgb8(element(np.concatenate([PLANES, alpha]), ["r", "g", "b", "a"], scale_factors=[2]))
    assert list(scales["scale1"].coords["c"].values) == RGB
    assert open_pyramid(_sdata(scales)).level_shapes == ((80, 120), (40, 60))


def _sdata(image):
    from spatialdata import SpatialData

    return SpatialData(images={"he": image})


def test_to_rgb8_refuses_to_guess():
    with pytest.raises(InvalidValueError, match=r"uint16, and nothing says.*value_range=\(0, 4095\) for 12-bit"):
        to_rgb8(element(PLANES.astype(np.uint16), RGB))
    with pytest.raises(InvalidValueError, match=r"values from 30 to 2\d\d, outside the value_range \(0, 1\)"):
        to_rgb8(element(PLANES.astype(np.float32), RGB)).compute()
    with pytest.raises(InvalidValueError, match="outside the value_range"):
        to_rgb8(element(np.full((3, 4, 4), np.nan), RGB)).compute()
    with pytest.raises(InvalidValueError, match="has 5 channels"):
        to_rgb8(element(np.zeros((5, 4, 4), np.uint8), list("abcde")))
    with pytest.raises(InvalidValueError, match="which are not numbers"):
        to_rgb8(element(np.zeros((3, 4, 4), bool), RGB))
    with pytest.raises(InvalidTypeError, match="image must be an image element"):
        to_rgb8(PLANES)


def test_errors_about_pixels_name_to_rgb8():
    for pixels, names in ((PLANES.astype(np.uint16), RGB), (PLANES[:1], ["c"])):
        with pytest.raises(InvalidValueError, match=re.escape("st_predict.io.to_rgb8")):
            open_pyramid(_sdata(element(pixels, names)))


def test_the_stored_levels_are_plain_arrays(tmp_path):
    path = write(tmp_path / "h.png", picture())
    read_image(path, cache=tmp_path / "cache")
    (store,) = (tmp_path / "cache").iterdir()
    level = zarr.open_array(store / "0", mode="r")
    np.testing.assert_array_equal(np.moveaxis(level[:], 0, -1), picture())


@pytest.mark.parametrize("shape", [(60, 20_000), (20_000, 60)])
def test_wide_pictures_are_stored_window_by_window(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(_stored, "WIDEST", 1024)
    sizes = []

    def watched(convert):
        return lambda pixels, **options: sizes.append(pixels.size) or convert(pixels, **options)

    monkeypatch.setattr(_stored, "rgb8", watched(_stored.rgb8))
    monkeypatch.setattr(_stored, "halve", watched(_stored.halve))
    path = write(tmp_path / "h.tif", picture(*shape), compression="deflate", rowsperstrip=20)
    sdata = read_image(path, cache=tmp_path / "cache")
    expected = picture(*shape)
    for level, found in enumerate(open_pyramid(sdata).level_shapes):
        assert found == expected.shape[:2]
        np.testing.assert_array_equal(whole(sdata, level), expected)
        expected = halve(expected)
    assert max(sizes) <= 3 * 60 * 2048


def test_a_tiff_is_opened_a_few_times_only(tmp_path, monkeypatch):
    path = write(tmp_path / "h.tif", picture(), tile=(256, 256), compression="jpeg")
    opened, init = [], tifffile.TiffFile.__init__
    monkeypatch.setattr(
        tifffile.TiffFile, "__init__", lambda *args, **options: opened.append(1) or init(*args, **options)
    )
    sdata = read_image(path)
    assert len(opened) <= 3
    np.testing.assert_array_equal(whole(sdata), tifffile.imread(path))
