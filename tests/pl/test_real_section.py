"""A real section: spots are where they were measured, and a figure is drawn in seconds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from st_predict.datasets import her2st
from st_predict.pl import pca_map, spatial
from st_predict.specs import CropSpec, LevelSpec, ModelCard

if TYPE_CHECKING:
    from spatialdata import SpatialData

CACHE = Path(os.environ.get("ST_PREDICT_CACHE", Path(__file__).parents[3] / "shared" / "data" / "her2st"))
PANEL = ["ERBB2", "COL3A1", "CD74", "KRT8"]

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not CACHE.is_dir(), reason=f"The sections of her2st are not at {CACHE}."),
]


@pytest.fixture(scope="module")
def section() -> SpatialData:
    """C2, with its own expression, noisy, as prediction."""
    sdata = her2st("C2", cache=CACHE)
    table = sdata["table"]
    counts = table[:, PANEL].to_df()
    target = np.log1p(1e6 * counts.div(counts.sum(axis=1), axis=0))
    table.obsm["pred_x"] = (target + np.random.default_rng(0).normal(0, 1, target.shape)).to_numpy(np.float32)
    card = ModelCard(model="m2ost", genes=tuple(PANEL), crop=CropSpec(levels=(LevelSpec(size=224),)))
    table.uns["st_predict"] = {"pred_x": {"card": card.to_json(), "genes": np.array(PANEL), "version": "0"}}
    return sdata


@pytest.mark.slow
def test_spots_are_where_the_authors_say(section: SpatialData) -> None:
    started = time.perf_counter()
    axes = spatial(section, ["ERBB2", "COL3A1"], key="pred_x")
    axes[0, 0].figure.canvas.draw()
    assert time.perf_counter() - started < 20
    (spots,) = axes[0, 1].collections
    published = pd.read_csv(CACHE / "data" / "ST-spotfiles" / "C2_selection.tsv", sep="\t")
    pixels = {(round(x, 1), round(y, 1)) for x, y in published[["pixel_x", "pixel_y"]].to_numpy()}
    drawn = {(round(x, 1), round(y, 1)) for x, y in np.asarray(spots.get_offsets())}
    measured = np.asarray(section["table"][:, PANEL].X.sum(axis=1)).ravel() > 0
    assert len(drawn) == measured.sum() > 180
    assert drawn <= pixels
    # 100 um wide, 200 um apart
    x = np.sort(np.asarray(spots.get_offsets())[:, 0])
    gaps = np.diff(x)[np.diff(x) > 100]
    assert spots.get_widths()[0] == pytest.approx(np.median(gaps) / 2, rel=0.1)
    assert axes[0, 0].artists[0].txt_label.get_text() == "1 mm"


def test_spots_lie_on_tissue(section: SpatialData) -> None:
    axes = pca_map(section, key="pred_x")
    image = axes[0, 0].images[0]
    left, right, bottom, top = image.get_extent()
    pixels = np.asarray(image.get_array()).mean(axis=2)
    height, width = pixels.shape
    xy = np.asarray(axes[0, 1].collections[0].get_offsets())
    col = ((xy[:, 0] - left) / (right - left) * width).astype(int)
    row = ((xy[:, 1] - top) / (bottom - top) * height).astype(int)
    # glass is brighter than tissue: a swapped axis or a wrong level would put spots on it
    assert np.median(pixels[row, col]) < np.median(pixels) - 20
