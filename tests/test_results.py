"""Slots: what may be written where, and what is never touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from spatialdata import read_zarr

from st_predict import get
from st_predict._errors import InvalidValueError
from st_predict._record import Record
from st_predict._results import Slot, _fill
from st_predict.specs import CropSpec, LevelSpec, ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

    from st_predict._record import Kind

VALUES = np.arange(24, dtype=np.float32).reshape(12, 2)


def record(genes: tuple[str, ...] = ("a", "b")) -> Record:
    return Record(card=ModelCard(model="m2ost", genes=genes, crop=CropSpec(levels=(LevelSpec(size=224),))))


def slot_of(sdata: SpatialData, key: str = "p", table_key: str | None = "table") -> Slot:
    xy = None if table_key else np.zeros((12, 2))
    return Slot(sdata=sdata, key=key, table_key=table_key, regions=("spots",), xy=xy)


@pytest.mark.parametrize("key", ["a/b", "", "a b", "ä" * 3 + "/"])
def test_keys_that_cannot_be_stored(measured: SpatialData, key: str) -> None:
    with pytest.raises(ValueError, match=r"key_added (must consist of letters|must be a string that is not empty)"):
        slot_of(measured, key).check_free("prediction")


@pytest.mark.parametrize("kind", ["prediction", "embedding"])
@pytest.mark.parametrize("key", [".", "..", "__", "__x", "zarr.json", ".zgroup"])
def test_names_that_are_reserved(measured: SpatialData, key: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match=rf"must not be .* {key!r} cannot be stored"):
        slot_of(measured, key).check_free(kind)


@pytest.mark.parametrize("key", ["p" * 201, "ä" * 101])
def test_names_that_are_too_long(measured: SpatialData, key: str) -> None:
    with pytest.raises(ValueError, match=r"at most 200 characters .* got 20[12]: "):
        slot_of(measured, key).check_free("prediction")


@pytest.mark.parametrize("key", ["p" * 200, "...", "_x", "ä-1.2"])
def test_keys_that_can_be_stored(measured: SpatialData, key: str, tmp_path: Path) -> None:
    slot_of(measured, key).check_free("prediction", derived=[f"{key}_std"])
    slot_of(measured, key).write_prediction(VALUES, record(), std=VALUES)
    measured.write(tmp_path / "s.zarr")
    again = get.prediction(read_zarr(tmp_path / "s.zarr"), key)
    np.testing.assert_array_equal(again.layers["std"], VALUES)


def test_a_prediction_replaces_an_earlier_one_with_all_that_belongs_to_it(measured: SpatialData) -> None:
    table, slot = measured.tables["table"], slot_of(measured)
    slot.check_free("prediction", derived=["p_std"])
    slot.write_prediction(np.ones((12, 4), np.float32), record(("a", "b", "c", "d")), std=np.ones((12, 4), np.float32))
    assert {"p", "p_std"} <= set(table.obsm) and "p" in table.layers
    slot.check_free("prediction", derived=["p_std"])
    slot.write_prediction(VALUES, record())
    assert "p" in table.obsm and "p_std" not in table.obsm and "p" not in table.layers
    np.testing.assert_array_equal(get.prediction(measured, "p").X, VALUES)


@pytest.mark.parametrize(("where", "kind"), [("obsm", "prediction"), ("layers", "prediction"), ("obsm", "embedding")])
def test_what_is_the_users_is_refused(measured: SpatialData, where: str, kind: str) -> None:
    table = measured.tables["table"]
    getattr(table, where)["p"] = np.zeros(table.shape)
    with pytest.raises(ValueError, match=rf"\.{where}\['p'\] is not an? {kind} of st_predict"):
        slot_of(measured).check_free(kind)


def test_a_derived_key_of_the_user_is_refused(measured: SpatialData) -> None:
    measured.tables["table"].obsm["p_std"] = np.zeros((12, 2))
    slot_of(measured).check_free("prediction")
    with pytest.raises(ValueError, match=r"obsm\['p_std'\] was not written by st_predict"):
        slot_of(measured).check_free("prediction", derived=["p_std"])


def test_a_record_whose_values_were_deleted_blocks_nothing(measured: SpatialData) -> None:
    slot_of(measured).write_features(VALUES, Record(encoder={"name": "rgb"}))
    del measured.tables["table"].obsm["p"]
    slot_of(measured).check_free("prediction")
    slot_of(measured).write_prediction(VALUES, record())
    assert Record.kind_of(measured.tables["table"].uns, "p") == "prediction"


def test_a_prediction_with_a_newer_card_can_be_read_and_replaced(measured: SpatialData) -> None:
    slot_of(measured).write_prediction(VALUES, record())
    stored = measured.tables["table"].uns["st_predict"]["p"]
    stored["card"] = stored["card"].replace('"format_version": 1', '"format_version": 99')
    np.testing.assert_array_equal(get.prediction(measured, "p").X, VALUES)
    slot_of(measured).check_free("prediction")
    slot_of(measured).write_prediction(VALUES + 1, record())
    np.testing.assert_array_equal(get.prediction(measured, "p").X, VALUES + 1)


def test_shapes_without_a_table_get_a_linked_one(measured: SpatialData) -> None:
    slot = slot_of(measured, table_key=None)
    slot.check_free("prediction")
    slot.write_prediction(VALUES, record())
    np.testing.assert_array_equal(measured.tables["p"].X, VALUES)
    assert measured.tables["p"].uns["spatialdata_attrs"]["region"] == "spots"
    with pytest.raises(ValueError, match="is not an embedding of st_predict"):
        slot.check_free("embedding")
    elsewhere = Slot(sdata=measured, key="p", table_key=None, regions=("others",), xy=np.zeros((12, 2)))
    with pytest.raises(ValueError, match="is a prediction for other spots"):
        elsewhere.check_free("prediction")


def test_advice_names_key_added_only_where_it_is_an_argument(measured: SpatialData) -> None:
    measured.tables["table"].obsm["p"] = np.zeros((12, 2))
    with pytest.raises(InvalidValueError) as caught:
        slot_of(measured).check_free("prediction")
    assert caught.value.arguments == {"key_added"}
    assert "key_added" not in str(caught.value)
    assert caught.value.say(lambda way: f"{way.argument}=").endswith("Choose another name with key_added=.")


@pytest.mark.parametrize("key", [3, None, ["p"]])
def test_keys_are_texts(measured: SpatialData, key: object) -> None:
    with pytest.raises(InvalidValueError, match="key_added must be a string"):
        slot_of(measured, key).check_free("prediction")


def test_cells_that_do_not_fit_into_memory() -> None:
    class Huge:
        shape, n_obs, n_vars = (10**9, 10**9), 10**9, 10**9

    with pytest.raises(
        MemoryError, match=r"1000000000 cells of 1000000000 genes need 4e\+09 GB.*superresolve\(\.\.\., out=\)"
    ):
        _fill(Huge(), [])


def test_a_large_layer_is_not_written(
    measured: SpatialData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = measured.tables["table"]
    names = tuple(table.var_names)
    values = np.arange(table.n_obs * len(names), dtype=np.float32).reshape(table.n_obs, -1)
    monkeypatch.setattr("st_predict._results.LARGEST_LAYER", values.nbytes - 1)
    with caplog.at_level("INFO", logger="st_predict"):
        slot_of(measured).write_prediction(values, record(names))
    assert "p" not in table.layers
    assert "not also written as a layer" in caplog.text
    np.testing.assert_array_equal(get.prediction(measured, "p", units="model").X, values)
    monkeypatch.setattr("st_predict._results.LARGEST_LAYER", values.nbytes)
    slot_of(measured).write_prediction(values, record(names))
    np.testing.assert_array_equal(table.layers["p"], values)
