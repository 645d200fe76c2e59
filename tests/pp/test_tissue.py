from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from st_predict import pp
from st_predict.pp import _tissue

HER2ST = Path(os.environ.get("ST_PREDICT_CACHE", Path(__file__).parents[3] / "shared" / "data" / "her2st"))


def as_sdata(image: np.ndarray, **kwargs) -> SpatialData:
    return SpatialData(images={"he": Image2DModel.parse(image, dims=("y", "x", "c"), **kwargs)})


def slide(height: int = 600, width: int = 800) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse of grainy tissue on glass that stain has run onto, and a speck of dust; and where the ellipse is."""
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:height, :width]
    ellipse = ((xx - 300) / 200) ** 2 + ((yy - 320) / 150) ** 2 < 1
    image = np.full((height, width, 3), 240.0)
    image[..., 1] -= 60 * xx / width
    image += rng.normal(0, 2, image.shape)
    image[ellipse] = [190, 120, 170]
    image[ellipse] += rng.normal(0, 25, (int(ellipse.sum()), 1))
    image[50:56, 700:706] = 0
    return image.clip(0, 255).astype(np.uint8), ellipse


def test_an_ellipse_of_tissue():
    image, ellipse = slide()
    tissue = pp.find_tissue(as_sdata(image))
    assert tissue.downsample == 1
    wrong = tissue.mask ^ ellipse
    assert wrong.mean() < 0.03
    assert not tissue.mask[40:66, 690:716].any()  # the speck
    assert tissue.mask[200:440, 250:350].all()


def test_coarse_level_is_read_and_places_agree():
    image, _ = slide()
    large = np.kron(image, np.ones((4, 4, 1), np.uint8))
    sdata = as_sdata(large, scale_factors=[2, 2])
    tissue = pp.find_tissue(sdata, size=800)
    assert (tissue.mask.shape, tissue.downsample) == ((600, 800), 4)
    np.testing.assert_array_equal(tissue.mask, pp.find_tissue(as_sdata(image)).mask)
    xy = np.array([[1200.0, 1280.0], [3100, 100], [-1, 1280], [1200, 2400], [3200, 100]])
    assert tissue.at(xy).tolist() == [True, False, False, False, False]


class Reader:
    """A white image with a black right edge that counts what is read of it."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        self.level_shapes = shapes
        self.downsamples = tuple(shapes[0][0] / height for height, _ in shapes)
        self.read_levels: set[int] = set()
        self.largest = 0

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> np.ndarray:
        assert x >= 0 and x + width <= self.level_shapes[level][1]
        assert y >= 0 and y + height <= self.level_shapes[level][0]
        self.read_levels.add(level)
        self.largest = max(self.largest, width * height)
        region = np.full((height, width, 3), 255, np.uint8)
        region[:, max(0, self.level_shapes[level][1] - 3 - x) :] = 0
        return region


def test_an_image_without_coarse_levels_is_read_in_blocks():
    reader = Reader((5003, 7001))
    grey, downsample = _tissue._read_grey(reader, size=1000)
    assert (grey.shape, downsample) == ((626, 876), 8)
    assert reader.largest <= 2048**2
    np.testing.assert_allclose(grey[:, :-1].mean(axis=0)[:-1], 1, rtol=1e-6)
    # 7001 = 875 * 8 + 1: the last column of the mask is one pixel wide and black, the one before has two of eight
    np.testing.assert_allclose(grey[:, -1], 0, atol=1e-6)
    np.testing.assert_allclose(grey[:, -2], 6 / 8, rtol=1e-6)


@pytest.mark.parametrize(("size", "level"), [(1000, 2), (1001, 1), (2000, 1), (9000, 0), (10, 2)])
def test_the_coarsest_level_that_is_large_enough(size, level):
    reader = Reader((4000, 3000), (2000, 1500), (1000, 750))
    grey, downsample = _tissue._read_grey(reader, size=size)
    assert reader.read_levels == {level}
    assert max(grey.shape) <= size
    assert downsample == pytest.approx(4000 / grey.shape[0], rel=0.01)


@pytest.mark.parametrize("noise", [0, 2])
@pytest.mark.parametrize("value", [250, 40])
def test_an_empty_image_has_no_tissue(noise, value):
    image = value + np.random.default_rng(0).normal(0, noise, (300, 400, 3))
    tissue = pp.find_tissue(as_sdata(image.clip(0, 255).astype(np.uint8)))
    assert not tissue.mask.any()


def test_an_image_full_of_tissue_is_not_split():
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 1, (300, 400, 1)) * np.where(np.arange(400) < 200, 15, 45)[:, None]
    image = (150 + np.broadcast_to(grain, (300, 400, 3))).clip(0, 255).astype(np.uint8)
    assert pp.find_tissue(as_sdata(image)).mask.mean() > 0.99


def test_threshold_and_area_are_those_that_were_asked_for():
    image, ellipse = slide()
    sdata = as_sdata(image)
    assert not pp.find_tissue(sdata, threshold=0.9).mask.any()
    assert pp.find_tissue(sdata, threshold=1e-9).mask.all()
    assert pp.find_tissue(sdata, min_area=0).mask[50:56, 700:706].any()  # the speck stays
    assert not pp.find_tissue(sdata, min_area=1.1 * ellipse.mean()).mask.any()


def test_bad_arguments():
    sdata = as_sdata(slide()[0])
    for name, value, must in (("size", 0, "at least 1"), ("threshold", 0, "above 0"), ("min_area", 1, "below 1")):
        with pytest.raises(ValueError, match=f"{name} must be {must}, got {value}"):
            pp.find_tissue(sdata, **{name: value})
    with pytest.raises(KeyError, match="nope"):
        pp.find_tissue(sdata, "nope")


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("section", "file"), [("C2", "C/C2/5714_HE_BT_C2.jpg"), ("B4", "B/B4/BT10737_D2_HE.jpg")])
def test_spots_that_were_chosen_by_hand_are_on_tissue(section, file):
    """The selection of her2st is what its authors took for tissue: 200 um squares around spots, 291 px wide."""
    if not HER2ST.is_dir():
        pytest.skip(f"no her2st in {HER2ST}")
    with Image.open(HER2ST / "data/ST-imgs" / file) as jpeg:
        width = jpeg.width
        jpeg.draft("RGB", (jpeg.width // 8, jpeg.height // 8))
        image = np.asarray(jpeg.convert("RGB"))
    scale = width / image.shape[1]
    spots = pd.read_csv(HER2ST / f"data/ST-spotfiles/{section}_selection.tsv", sep="\t")
    tissue = pp.find_tissue(as_sdata(image))
    assert tissue.at(spots[["pixel_x", "pixel_y"]].to_numpy() / scale).mean() > 0.97
    area = tissue.mask.sum() * (tissue.downsample * scale) ** 2
    assert area == pytest.approx(len(spots) * 291.4**2, rel=0.1)


@pytest.mark.parametrize(("side", "filled"), [(24, True), (160, False)])
def test_small_holes_in_the_tissue_are_filled(side, filled):
    """A glassy square in the middle of texture is a hole, unless it is smaller than the share of the image that counts."""
    pixels = np.full((400, 400, 3), 240, np.uint8)
    pixels[60:340, 60:340] = np.random.default_rng(0).integers(60, 220, (280, 280, 1))
    first = 200 - side // 2
    pixels[first : first + side, first : first + side] = 240
    image = Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    mask = pp.find_tissue(SpatialData(images={"he": image}), size=400, min_area=0.01).mask
    assert mask[200, 200] == filled
    assert mask[70, 200]
