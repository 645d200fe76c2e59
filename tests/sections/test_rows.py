"""Tables in which two regions have the same barcodes, beside the same table with other names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from st_predict import checkpoints, get, pl, tl
from st_predict._errors import InvalidValueError
from st_predict._rows import rows_called, rows_in
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

IMAGES = {"spots": "he", "more": "mirrored"}

pytestmark = pytest.mark.filterwarnings("ignore:Observation names are not unique")


@pytest.fixture
def barcodes(two_regions: SpatialData) -> SpatialData:
    """Rows 2 i and 2 i + 1 are of two regions and have one name."""
    copy = type(two_regions)(images=dict(two_regions.images), shapes=dict(two_regions.shapes))
    table = two_regions.tables["table"].copy()
    table.obs_names = [f"s{i // 2}" for i in range(24)]
    copy.tables["table"] = table
    return copy


@pytest.fixture
def weights(checkpoint: Callable[..., Path], two_regions: SpatialData, barcodes: SpatialData) -> Path:
    """A network whose prediction both objects hold."""
    path = checkpoint()
    for sdata in (two_regions, barcodes):
        tl.predict(sdata, path, image_key=IMAGES)
    return path


def test_rows_are_found_by_region_and_name(barcodes: SpatialData) -> None:
    table = barcodes["table"]
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(rows_in(table[order].copy(), table), order)
    np.testing.assert_array_equal(rows_in(table, table[order].copy()), np.argsort(order))
    np.testing.assert_array_equal(np.flatnonzero(rows_called(table, ["s0", "s3"], ["more", "spots"])), [1, 6])
    np.testing.assert_array_equal(np.flatnonzero(rows_called(table, ["s0"], [])), [0, 1])
    twice = table.copy()
    twice.obs_names = ["s0"] * 24
    with pytest.raises(InvalidValueError, match=r"the first repeated one is \('spots', 's0'\).*obs_names_make_unique"):
        rows_in(table, twice)


@pytest.mark.usefixtures("weights")
def test_scores_do_not_depend_on_names(two_regions: SpatialData, barcodes: SpatialData) -> None:
    evaluations = [tl.evaluate(sdata, image_key=IMAGES, min_counts=0) for sdata in (two_regions, barcodes)]
    pd.testing.assert_frame_equal(evaluations[0].summary, evaluations[1].summary)
    pd.testing.assert_frame_equal(evaluations[0].genes, evaluations[1].genes)
    for column in ("pred_m2ost_partial", "pred_m2ost_pearson"):
        np.testing.assert_array_equal(two_regions["table"].var[column], barcodes["table"].var[column])


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("column", [None, "some"])
def test_intervals_do_not_depend_on_names(two_regions: SpatialData, barcodes: SpatialData, column: str | None) -> None:
    reports = []
    for sdata in (two_regions, barcodes):
        table = sdata["table"]
        table.obs["some"] = np.arange(24) % 4 < 2
        calibration = tl.calibrate(sdata, image_key=IMAGES, spots=column, coverage=0.5, min_counts=0, scaled=False)
        calibration.apply(sdata)
        if column is not None:
            reports.append(calibration.report(sdata, image_key=IMAGES, min_counts=0))
    for bound in ("lower", "upper"):
        first, second = (sdata["table"].obsm[f"pred_m2ost_{bound}"] for sdata in (two_regions, barcodes))
        np.testing.assert_array_equal(first, second)
    if reports:
        pd.testing.assert_frame_equal(*reports)
        assert reports[0]["n_spots"].eq(6).all()


def drawn(sdata: SpatialData, region: str, image: str) -> list[np.ndarray]:
    axes = pl.spatial(sdata, ["a", "b"], region=region, image_key=image, show=False).ravel()
    return [c.get_array() for one in axes for c in one.collections if c.get_array() is not None]


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("region", "image"), IMAGES.items())
def test_maps_show_the_rows_of_their_region(
    two_regions: SpatialData, barcodes: SpatialData, region: str, image: str
) -> None:
    maps = drawn(barcodes, region, image)
    expected = barcodes["table"].obsm["pred_m2ost"][(barcodes["table"].obs["region"] == region).to_numpy()]
    assert any(np.array_equal(np.sort(one), np.sort(expected[:, 0])) for one in maps)
    for one, other in zip(maps, drawn(two_regions, region, image), strict=True):
        np.testing.assert_array_equal(one, other)
    pl.pca_map(barcodes, region=region, image_key=image)


@pytest.mark.usefixtures("weights")
def test_predictions_are_taken_out_by_row(two_regions: SpatialData, barcodes: SpatialData) -> None:
    first, second = get.prediction(two_regions), get.prediction(barcodes)
    np.testing.assert_array_equal(first.X, second.X)
    assert list(second.obs["region"]) == list(barcodes["table"].obs["region"])
    np.testing.assert_array_equal(get.frame(barcodes).to_numpy(), first.X)


@pytest.mark.usefixtures("weights")
def test_predictions_in_tables_of_their_own_are_joined_by_row(
    two_regions: SpatialData, barcodes: SpatialData, link: Callable[[SpatialData, str], AnnData]
) -> None:
    expected = tl.evaluate(two_regions, image_key=IMAGES, min_counts=0).summary
    moved = link(barcodes, "pred_m2ost")
    barcodes.tables["pred_m2ost"] = moved[np.random.default_rng(1).permutation(24)].copy()
    scores = tl.evaluate(barcodes, key="pred_m2ost", table_key="table", image_key=IMAGES, min_counts=0)
    pd.testing.assert_frame_equal(scores.summary, expected)
    found = get.prediction(barcodes, "pred_m2ost")
    np.testing.assert_array_equal(
        found.obs["section"], barcodes["table"].obs["section"].iloc[rows_in(found, barcodes["table"])]
    )


def test_context_is_of_one_region(
    two_regions: SpatialData, barcodes: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spots whose counts were read are not scored; those of the same name in the other region are."""
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    spec = get_spec("stpath")
    card = ModelCard(model="stpath", genes=tuple("abcd"), crop=spec.crop_for(spec.tiny), hparams=dict(spec.tiny))
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(path, checkpoints.build(card), card)
    summaries = []
    for sdata in (two_regions, barcodes):
        sdata["table"].obs["known"] = np.arange(24) % 6 == 0
        tl.predict(sdata, path, context="known", image_key=IMAGES, mpp=0.5, device="cpu", precision="float32")
        summaries.append(tl.evaluate(sdata, image_key=IMAGES, min_counts=0).summary)
    pd.testing.assert_frame_equal(*summaries)
    assert set(summaries[1]["n_spots"]) == {8, 12}
