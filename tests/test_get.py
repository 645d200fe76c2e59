from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel

from st_predict.get import prediction, table_of
from st_predict.specs import CropSpec, LevelSpec, ModelCard

if TYPE_CHECKING:
    from pathlib import Path

PANEL = ["ERBB2", "COL1A1", "ACTB"]
CARD = ModelCard(model="m2ost", genes=tuple(PANEL), crop=CropSpec(levels=(LevelSpec(size=224),)))
RECORD = {"card": CARD.to_json(), "version": "0.1.0", "made_by": "somebody"}


@pytest.fixture
def values() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    values[4] = np.nan
    return values


@pytest.fixture
def inside(sdata: SpatialData, values: np.ndarray) -> SpatialData:
    """A prediction in ``.obsm``."""
    table = sdata["table"]
    table.obs["patient"] = "P1"
    table.obsm["spatial"] = np.arange(24.0).reshape(12, 2)
    table.obsm["pred_m2ost"] = pd.DataFrame(values.copy(), index=table.obs_names, columns=PANEL)
    table.uns["st_predict"] = {"pred_m2ost": copy.deepcopy(RECORD)}
    return sdata


@pytest.fixture
def linked(inside: SpatialData, values: np.ndarray) -> SpatialData:
    """The same prediction in a table of its own, beside the table of the spots."""
    table = inside["table"]
    del table.obsm["pred_m2ost"], table.uns["st_predict"]
    add_linked(inside, "pred_m2ost", values)
    return inside


def add_linked(sdata: SpatialData, key: str, values: np.ndarray) -> None:
    obs = sdata["table"].obs[["region", "instance"]].copy()
    own = AnnData(values.copy(), obs=obs, var=pd.DataFrame(index=PANEL))
    own.uns["st_predict"] = {key: copy.deepcopy(RECORD)}
    sdata.tables[key] = TableModel.parse(own, region="spots", region_key="region", instance_key="instance")


def check(result: AnnData, values: np.ndarray) -> None:
    assert result.X.dtype == np.float32
    np.testing.assert_array_equal(result.X, values)
    assert list(result.var_names) == PANEL
    assert list(result.obs_names) == [f"s{i}" for i in range(12)]
    assert set(result.obs["patient"]) == {"P1"}
    np.testing.assert_array_equal(result.obsm["spatial"], np.arange(24.0).reshape(12, 2))
    assert result.uns["st_predict"] == {"pred_m2ost": RECORD}


def test_reads_obsm(inside: SpatialData, values: np.ndarray) -> None:
    check(prediction(inside), values)
    check(prediction(inside, table_key="table"), values)
    check(prediction(inside["table"]), values)
    assert table_of(inside, "pred_m2ost") == "table"


def test_reads_a_table_of_its_own_the_same_way(linked: SpatialData, values: np.ndarray) -> None:
    check(prediction(linked), values)
    check(prediction(linked, table_key="table"), values)
    check(prediction(linked, table_key="pred_m2ost"), values)
    assert table_of(linked, "pred_m2ost") == "pred_m2ost"


def test_a_slide_without_a_table(linked: SpatialData, values: np.ndarray) -> None:
    del linked.tables["table"]
    result = prediction(linked)
    np.testing.assert_array_equal(result.X, values)
    assert list(result.obs_names) == [f"s{i}" for i in range(12)]
    assert "spatial" not in result.obsm


@pytest.mark.parametrize("storage", ["inside", "linked"])
def test_survives_writing(storage: str, request: pytest.FixtureRequest, values: np.ndarray, tmp_path: Path) -> None:
    sdata = request.getfixturevalue(storage)
    sdata.write(tmp_path / "section.zarr")
    check(prediction(read_zarr(tmp_path / "section.zarr")), values)


@pytest.mark.parametrize("storage", ["inside", "linked"])
def test_changing_the_result_changes_nothing_else(
    storage: str, request: pytest.FixtureRequest, values: np.ndarray
) -> None:
    sdata = request.getfixturevalue(storage)
    result = prediction(sdata)
    result.X[:] = 7
    result.obs["patient"] = "someone"
    result.obs.index = [f"other{i}" for i in range(12)]
    result.var.index = ["a", "b", "c"]
    result.obsm["spatial"][:] = -1
    result.uns["st_predict"]["pred_m2ost"]["card"] = "gone"
    result.uns["spatialdata_attrs"]["region"] = "gone"
    check(prediction(sdata), values)
    assert sdata["table"].uns["spatialdata_attrs"]["region"] == "spots"


def test_changing_the_object_does_not_change_the_result(inside: SpatialData, values: np.ndarray) -> None:
    result = prediction(inside)
    frame = inside["table"].obsm["pred_m2ost"]
    frame.iloc[:, :] = 0.0
    inside["table"].uns["st_predict"]["pred_m2ost"]["version"] = "x"
    check(result, values)


def test_unknown_key_lists_the_others(inside: SpatialData, values: np.ndarray) -> None:
    add_linked(inside, "pred_big", values)
    with pytest.raises(KeyError, match=r"No prediction 'pred_x'; there are \['pred_big', 'pred_m2ost'\]"):
        prediction(inside, "pred_x")
    with pytest.raises(KeyError, match=r"there are \['pred_m2ost'\]"):
        prediction(inside["table"], "pred_x")


def test_no_prediction_says_how_to_make_one(sdata: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"none yet. st_predict.tl.predict"):
        prediction(sdata)


def test_unknown_table(inside: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"No table 'nope'; there are \['table'\]"):
        prediction(inside, table_key="nope")


def test_two_tables_with_the_key(inside: SpatialData, values: np.ndarray) -> None:
    second = inside["table"].copy()
    second.obsm["pred_m2ost"] = second.obsm["pred_m2ost"] + 1
    inside.tables["second"] = second
    with pytest.raises(ValueError, match=r"pass table_key=, one of \['second', 'table'\]"):
        prediction(inside)
    np.testing.assert_array_equal(prediction(inside, table_key="second").X, values + 1)


def test_two_tables_of_the_spots(linked: SpatialData, values: np.ndarray) -> None:
    linked.tables["second"] = linked["table"].copy()
    with pytest.raises(ValueError, match=r"one of \['second', 'table'\]"):
        prediction(linked)
    check(prediction(linked, table_key="table"), values)


def test_an_array_is_no_prediction(inside: SpatialData) -> None:
    inside["table"].obsm["X_pca"] = np.zeros((12, 2))
    with pytest.raises(TypeError, match=r"is a ndarray.*The predictions are \['pred_m2ost'\]"):
        prediction(inside, "X_pca")


def test_a_table_that_lost_where_it_came_from(inside: SpatialData, values: np.ndarray) -> None:
    joined = ad.concat([inside["table"]])
    result = prediction(joined)
    np.testing.assert_array_equal(result.X, values)
    assert "st_predict" not in result.uns


def test_something_else_is_refused(values: np.ndarray) -> None:
    with pytest.raises(TypeError, match="must be AnnData or SpatialData, got ndarray"):
        prediction(values)
