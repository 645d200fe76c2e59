from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata
from anndata import AnnData
from safetensors.numpy import save_file
from scipy.sparse import csr_array
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._record import Record
from st_predict._results import Slot, write_bounds
from st_predict.get import frame, only_key, prediction, reliability, table_of
from st_predict.io import find_table
from st_predict.specs import CropSpec, LevelSpec, ModelCard, Reference, Reliability, TargetSpec

if TYPE_CHECKING:
    from pathlib import Path

PANEL = ["ERBB2", "COL1A1", "ACTB"]
CARD = ModelCard(model="m2ost", genes=tuple(PANEL), crop=CropSpec(levels=(LevelSpec(size=224),)))
RECORD = {"card": CARD.to_json(), "version": "0.1.0", "made_by": "somebody"}
AWKWARD = ("KRT6A/B", "", ".", "..", "_index", "__x", "a b", "HLA-A", "Ä")  # none of them may be the key of a file


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
    table.obsm["pred_m2ost"] = values.copy()
    table.uns["st_predict"] = {"pred_m2ost": {**RECORD, "genes": np.array(PANEL)}}
    return sdata


@pytest.fixture
def older(inside: SpatialData, values: np.ndarray) -> SpatialData:
    """The same prediction as earlier versions stored it: a DataFrame."""
    table = inside["table"]
    table.obsm["pred_m2ost"] = pd.DataFrame(values.copy(), index=table.obs_names, columns=PANEL)
    del table.uns["st_predict"]["pred_m2ost"]["genes"]
    return inside


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
    record = dict(result.uns["st_predict"]["pred_m2ost"])
    assert list(record.pop("genes", PANEL)) == PANEL
    assert record.pop("values") == "X"
    assert record == RECORD
    assert set(result.uns["st_predict"]) == {"pred_m2ost"}


def test_reads_obsm(inside: SpatialData, values: np.ndarray) -> None:
    check(prediction(inside), values)
    check(prediction(inside, table_key="table"), values)
    check(prediction(inside["table"]), values)
    assert table_of(inside, "pred_m2ost") == "table"


def test_reads_a_dataframe_of_an_earlier_version(older: SpatialData, values: np.ndarray) -> None:
    check(prediction(older), values)
    check(prediction(older["table"], genes=PANEL), values)
    with pytest.raises(ValueError, match=r"differ from the gene names stored .* Leave out genes="):
        prediction(older, genes=["a", "b", "c"])


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


@pytest.mark.parametrize("storage", ["inside", "older", "linked"])
def test_survives_writing(storage: str, request: pytest.FixtureRequest, values: np.ndarray, tmp_path: Path) -> None:
    sdata = request.getfixturevalue(storage)
    sdata.write(tmp_path / "section.zarr")
    check(prediction(read_zarr(tmp_path / "section.zarr")), values)


@pytest.mark.parametrize("storage", ["inside", "older", "linked"])
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
    inside["table"].obsm["pred_m2ost"][:] = 0.0
    inside["table"].uns["st_predict"]["pred_m2ost"]["version"] = "x"
    check(result, values)


def test_unknown_key_lists_the_others(inside: SpatialData, values: np.ndarray) -> None:
    add_linked(inside, "pred_big", values)
    with pytest.raises(KeyError, match=r"No prediction 'pred_x'; there are \['pred_big', 'pred_m2ost'\]"):
        prediction(inside, "pred_x")
    with pytest.raises(KeyError, match=r"there are \['pred_m2ost'\]"):
        prediction(inside["table"], "pred_x")


def test_no_prediction_says_how_to_make_one(sdata: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"No prediction found. Make one with st_predict.tl.predict"):
        prediction(sdata)


def test_unknown_table(inside: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"No table 'nope'; there are \['table'\]"):
        prediction(inside, table_key="nope")


def test_two_tables_with_the_key(inside: SpatialData, values: np.ndarray) -> None:
    second = inside["table"].copy()
    second.obsm["pred_m2ost"] = second.obsm["pred_m2ost"] + 1
    inside.tables["second"] = second
    with pytest.raises(ValueError, match=r"\['second', 'table'\]. Choose one with table_key="):
        prediction(inside)
    np.testing.assert_array_equal(prediction(inside, table_key="second").X, values + 1)


def test_a_table_and_its_linked_table_with_the_key(inside: SpatialData, values: np.ndarray) -> None:
    add_linked(inside, "pred_m2ost", values + 1)
    with pytest.raises(ValueError, match=r"\['pred_m2ost', 'table'\]. Choose one with table_key="):
        prediction(inside)
    check(prediction(inside, table_key="table"), values)
    check(prediction(inside, table_key="pred_m2ost"), values + 1)


def test_two_tables_of_the_spots(linked: SpatialData, values: np.ndarray) -> None:
    linked.tables["second"] = linked["table"].copy()
    with pytest.raises(ValueError, match=r"\['second', 'table'\]. Choose one with table_key="):
        prediction(linked)
    check(prediction(linked, table_key="table"), values)


def test_an_array_or_an_embedding_is_not_a_prediction(inside: SpatialData) -> None:
    table = inside["table"]
    table.obsm["X_pca"] = table.obsm["X_rgb"] = np.zeros((12, 2))
    table.uns["st_predict"]["X_rgb"] = {"encoder": "{}"}
    with pytest.raises(ValueError, match="The gene names of 'X_pca' are unknown"):
        prediction(inside, "X_pca")
    with pytest.raises(TypeError, match=r"is an embedding.*The predictions are \['pred_m2ost'\]"):
        prediction(inside, "X_rgb")


def test_a_dataframe_that_lost_where_it_came_from(older: SpatialData, values: np.ndarray) -> None:
    joined = ad.concat([older["table"]])
    result = prediction(joined)
    np.testing.assert_array_equal(result.X, values)
    assert list(result.var_names) == PANEL
    assert result.uns["st_predict"] == {"pred_m2ost": {"values": "X"}}


def parts(table: AnnData) -> list[AnnData]:
    """Two sections, whose predictions were made in different ways."""
    first, second = table[:5].copy(), table[5:].copy()
    first.uns["st_predict"]["pred_m2ost"]["params"] = "{}"
    second.uns["st_predict"]["pred_m2ost"]["params"] = '{"device": "cpu"}'
    return [first, second]


def test_concatenation_keeps_the_names_with_uns_merge(inside: SpatialData, values: np.ndarray) -> None:
    result = prediction(ad.concat(parts(inside["table"]), uns_merge="same"))
    np.testing.assert_array_equal(result.X, values)
    assert list(result.var_names) == PANEL
    assert result.uns["st_predict"]["pred_m2ost"]["card"] == CARD.to_json()


def joined_slides(sdata: SpatialData, **options: object) -> SpatialData:
    """Two slides as one object, with one table."""
    table = sdata["table"].copy()
    second = SpatialData(shapes={"spots": sdata["spots"]}, tables={"table": table})
    table.obs_names = [f"t{i}" for i in range(12)]
    first = SpatialData(shapes={"spots": sdata["spots"]}, tables={"table": sdata["table"]})
    return spatialdata.concatenate({"a": first, "b": second}, concatenate_tables=True, **options)


def test_slides_that_are_joined_keep_the_names_with_uns_merge(
    inside: SpatialData, values: np.ndarray, tmp_path: Path
) -> None:
    joined = joined_slides(inside, uns_merge="same")
    result = prediction(joined)
    np.testing.assert_array_equal(result.X, np.concatenate([values, values]))
    assert list(result.var_names) == PANEL
    joined["pred"] = result
    joined.write(tmp_path / "joined.zarr")
    assert list(frame(read_zarr(tmp_path / "joined.zarr"))) == PANEL


@pytest.mark.parametrize("joined_by", ["anndata", "spatialdata"])
def test_names_that_concatenation_lost_may_be_given(
    inside: SpatialData, values: np.ndarray, tmp_path: Path, joined_by: str
) -> None:
    if joined_by == "anndata":
        joined: AnnData | SpatialData = ad.concat(parts(inside["table"]))
    else:
        joined = joined_slides(inside)
        values = np.concatenate([values, values])
    with pytest.raises(ValueError, match=r'uns_merge="same".* give a list of 3 names, .* with genes='):
        prediction(joined)
    with pytest.raises(ValueError, match=r'uns_merge="same"'):
        frame(joined)
    path = tmp_path / "net.safetensors"
    save_file({"x": np.zeros(2)}, path, metadata={"st_predict.card": CARD.to_json()})
    for genes in (PANEL, tuple(PANEL), pd.Index(PANEL), path, str(path)):
        result = prediction(joined, genes=genes)
        pd.testing.assert_frame_equal(frame(joined, genes=genes), result.to_df())
        np.testing.assert_array_equal(result.X, values)
        assert list(result.var_names) == PANEL
    with pytest.raises(ValueError, match=r"has 2 names, but the prediction 'pred_m2ost' has 3 columns"):
        prediction(joined, genes=PANEL[:2])
    with pytest.raises(
        FileNotFoundError, match=r"The file 'ERBB2' does not exist; genes must be a list of names or the path"
    ):
        prediction(joined, genes="ERBB2")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"net\.safetensors' is not a complete safetensors file"):
        prediction(joined, genes=path)


def test_columns_that_were_taken_away(inside: SpatialData) -> None:
    table = inside["table"]
    table.obsm["pred_m2ost"] = table.obsm["pred_m2ost"][:, :2]
    with pytest.raises(
        ValueError, match=r"The record has 3 names, .* has 2 columns. Give a list of 2 names, .* with genes="
    ):
        prediction(inside)
    assert list(prediction(inside, genes=PANEL[:2]).var_names) == PANEL[:2]


def test_names_are_read_without_the_card(inside: SpatialData) -> None:
    inside["table"].uns["st_predict"]["pred_m2ost"]["card"] = "damaged"
    assert list(frame(inside)) == PANEL


@pytest.mark.parametrize("storage", ["inside", "older", "linked"])
def test_frame(storage: str, request: pytest.FixtureRequest, values: np.ndarray) -> None:
    sdata = request.getfixturevalue(storage)
    expected = pd.DataFrame(values, index=[f"s{i}" for i in range(12)], columns=PANEL)
    pd.testing.assert_frame_equal(frame(sdata), expected)
    pd.testing.assert_frame_equal(frame(sdata, "pred_m2ost", table_key="table"), expected)
    changed = frame(sdata)
    changed.iloc[:] = 0
    check(prediction(sdata), values)


@pytest.fixture
def awkward(inside: SpatialData) -> SpatialData:
    """A prediction of genes whose names cannot be the key of a file, with standard deviations and bounds."""
    values = np.arange(12 * len(AWKWARD), dtype=np.float32).reshape(12, -1)
    slot = Slot(sdata=inside, key="p", table_key="table", regions=("spots",))
    slot.write_prediction(values, Record(card=replace(CARD, genes=AWKWARD)), std=values + 1)
    write_bounds(inside["table"], "p", values - 1, values + 2, calibration={"coverage": 0.9})
    return inside


def check_awkward(result: AnnData) -> None:
    values = np.arange(12 * len(AWKWARD), dtype=np.float32).reshape(12, -1)
    assert tuple(result.var_names) == AWKWARD
    np.testing.assert_array_equal(result.X, values)
    for layer, shift in (("std", 1), ("lower", -1), ("upper", 2)):
        np.testing.assert_array_equal(result.layers[layer], values + shift)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")  # anndata; all others are errors
def test_any_gene_name_survives_files(awkward: SpatialData, tmp_path: Path) -> None:
    awkward["table"].write_h5ad(tmp_path / "table.h5ad")
    awkward["table"].write_zarr(tmp_path / "table.zarr")
    awkward.write(tmp_path / "section.zarr")
    read = [ad.read_h5ad(tmp_path / "table.h5ad"), ad.read_zarr(tmp_path / "table.zarr")]
    for data in (*read, read_zarr(tmp_path / "section.zarr")):
        check_awkward(prediction(data, "p"))
        record = Record.read((data["table"] if isinstance(data, SpatialData) else data).uns, "p")
        assert record is not None
        assert record.genes == AWKWARD
        assert "genes" not in record.others


def test_a_prediction_is_an_element_of_its_own(awkward: SpatialData, tmp_path: Path) -> None:
    awkward["pred"] = prediction(awkward, "p")
    awkward.write(tmp_path / "section.zarr")
    again = read_zarr(tmp_path / "section.zarr")
    check_awkward(again["pred"])
    assert again["pred"].uns["spatialdata_attrs"] == again["table"].uns["spatialdata_attrs"]
    matched = spatialdata.match_element_to_table(again, "spots", "pred")[1]
    assert matched.n_obs == 12
    check_awkward(prediction(again, "p"))


def test_links_are_those_of_the_rows(two_regions: SpatialData, tmp_path: Path) -> None:
    sdata, some = two_regions, two_regions["table"].obs["region"] == "more"
    sdata["table"].uns["spatialdata_attrs"]["region"] = ["spots", "more"]
    own = AnnData(np.ones((12, 3), np.float32), obs=sdata["table"].obs[some], var=pd.DataFrame(index=PANEL))
    own.uns["st_predict"] = {"p": copy.deepcopy(RECORD)}
    sdata["p"] = TableModel.parse(own, region="more", region_key="region", instance_key="instance")
    sdata["pred"] = prediction(sdata, "p")
    assert sdata["pred"].uns["spatialdata_attrs"]["region"] == ["more"]
    sdata.write(tmp_path / "section.zarr")
    assert read_zarr(tmp_path / "section.zarr")["pred"].shape == (12, 3)


def test_something_else_is_refused(values: np.ndarray) -> None:
    with pytest.raises(TypeError, match="data must be AnnData or SpatialData, got a ndarray"):
        prediction(values)


def test_a_copy_of_a_prediction_is_no_table_of_spots(inside: SpatialData, tmp_path: Path) -> None:
    inside["counts"] = inside["table"].copy()
    del inside.tables["table"], inside["counts"].obsm["pred_m2ost"]  # a table of spots whose prediction was deleted
    inside["counts"].obsm["pred_other"] = np.zeros((12, 3), np.float32)
    inside["counts"].uns["st_predict"]["pred_other"] = {**RECORD, "genes": np.array(PANEL)}
    inside["pred"] = prediction(inside, "pred_other")
    assert find_table(inside, None) == "counts"
    inside.write(tmp_path / "s.zarr")
    assert find_table(read_zarr(tmp_path / "s.zarr"), None) == "counts"
    inside["pred"].write_h5ad(tmp_path / "pred.h5ad")
    inside.tables["pred"] = ad.read_h5ad(tmp_path / "pred.h5ad")
    assert find_table(inside, None) == "counts"
    assert find_table(inside, "pred") == "pred"
    assert list(prediction(inside).var_names) == PANEL  # the copy is not a second prediction


def test_the_only_prediction_is_the_default(inside: SpatialData, values: np.ndarray) -> None:
    table = inside["table"]
    for slots in (table.obsm, table.uns["st_predict"]):
        slots["mine"] = slots.pop("pred_m2ost")
    table.obsm["X_rgb"] = np.zeros((12, 2))
    table.uns["st_predict"]["X_rgb"] = {"encoder": "{}"}
    for data in (inside, table):
        np.testing.assert_array_equal(prediction(data).X, values)
        assert list(frame(data)) == PANEL
        assert only_key(data, None) == "mine"
        assert only_key(data, "another") == "another"
    add_linked(inside, "pred_big", values)
    with pytest.raises(
        InvalidValueError, match=r"Several predictions found: \['mine', 'pred_big'\]. Choose one with key=\."
    ):
        prediction(inside)
    assert only_key(inside, None, table_key="pred_big") == "pred_big"


def test_predictions_of_cells_and_embeddings_are_not_the_default(linked: SpatialData, values: np.ndarray) -> None:
    add_linked(linked, "cells", values)
    add_linked(linked, "X_rgb", values)
    linked.shapes["cells_grid"] = linked.shapes["spots"].copy()
    linked.tables["X_rgb"].uns["st_predict"]["X_rgb"] = {"encoder": "{}"}
    assert only_key(linked, None) == "pred_m2ost"
    del linked.tables["pred_m2ost"]
    assert only_key(linked, None) == "cells"
    del linked.tables["cells"]
    with pytest.raises(NotFoundError, match=r"No prediction found. Make one with st_predict.tl.predict"):
        only_key(linked, None)


def test_a_table_chooses_among_predictions(inside: SpatialData) -> None:
    second = inside["table"].copy()
    second.obsm["pred_b"], second.uns["st_predict"] = second.obsm.pop("pred_m2ost"), {"pred_b": {**RECORD}}
    inside.tables["second"] = second
    assert only_key(inside, None, table_key="second") == "pred_b"
    assert only_key(inside, None, table_key="table") == "pred_m2ost"
    with pytest.raises(InvalidValueError, match=r"\['pred_b', 'pred_m2ost'\]"):
        only_key(inside, None)


def test_first_arguments_of_another_type_say_what_to_do(inside: SpatialData) -> None:
    for read in (prediction, frame, partial(only_key, key=None)):
        for data, advice in (
            ("section.zarr", r"the path 'section\.zarr'.*spatialdata\.read_zarr"),
            ([inside], "a list of 1. Call this function once"),
            (None, "a NoneType"),
        ):
            with pytest.raises(InvalidTypeError, match=f"data must be AnnData or SpatialData, got {advice}"):
                read(data)
    with pytest.raises(InvalidTypeError, match="sdata must be a SpatialData object, got an AnnData"):
        table_of(inside["table"], "pred_m2ost")


def test_other_arguments_of_another_type_are_named(inside: SpatialData) -> None:
    for key in (3, ["pred_m2ost"], np.zeros(2)):
        with pytest.raises(InvalidValueError, match=r"^key must be a string"):
            prediction(inside, key)
        with pytest.raises(InvalidValueError, match=r"^table_key must be a string"):
            prediction(inside, table_key=key)
    for genes in (3, [1, 2, 3], {}.items):
        with pytest.raises(InvalidTypeError, match="genes must be a list of names or the path of a checkpoint"):
            prediction(inside, genes=genes)
    with pytest.raises(InvalidValueError, match=r"AnnData has no tables .*Leave out table_key=\."):
        prediction(inside["table"], table_key="table")


@pytest.mark.parametrize("slot", [np.zeros((12, 3, 2)), np.full((12, 3), "x")])
def test_slots_that_hold_no_prediction(inside: SpatialData, slot: np.ndarray) -> None:
    inside["table"].obsm["pred_m2ost"] = slot
    with pytest.raises(InvalidValueError, match=r"\.obsm\['pred_m2ost'\] must be"):
        prediction(inside)


def test_a_sparse_slot_is_read(inside: SpatialData, values: np.ndarray) -> None:
    inside["table"].obsm["pred_m2ost"] = csr_array(np.nan_to_num(values))
    np.testing.assert_array_equal(prediction(inside).X, np.nan_to_num(values))


# Genes to trust

ON_PATIENT = Reliability(
    held_out="patient",
    sections=("X1", "X2"),
    patients=("X",),
    n_spots=300,
    partial=(0.5, 0.3, None),
    low=(0.4, -0.1, None),
    high=(0.6, 0.6, None),
    ceiling=(0.9, 0.8, 0.7),
)
ON_SECTION = replace(
    ON_PATIENT, held_out="section", partial=(0.1, 0.7, 0.6), low=(-0.1, 0.6, 0.5), high=(0.2, 0.8, 0.7)
)


def with_card(sdata: SpatialData, card: ModelCard) -> SpatialData:
    sdata["table"].uns["st_predict"]["pred_m2ost"]["card"] = card.to_json()
    return sdata


@pytest.fixture
def scored(inside: SpatialData) -> SpatialData:
    return with_card(inside, replace(CARD, reliability=(ON_PATIENT, ON_SECTION)))


@pytest.mark.parametrize(
    ("options", "genes"),
    [
        ({}, PANEL),
        ({"reliable": True}, ["ERBB2"]),
        ({"min_score": 0.3}, ["ERBB2", "COL1A1"]),
        ({"min_score": 0.4}, ["ERBB2"]),
        ({"min_score": 0.3, "reliable": True}, ["ERBB2"]),
        ({"reliable": True, "held_out": "section"}, ["COL1A1", "ACTB"]),
        ({"reliable": True, "held_out": "section", "min_score": 0.65}, ["COL1A1"]),
        ({"min_score": -1}, ["ERBB2", "COL1A1"]),
    ],
)
def test_genes_to_trust(scored: SpatialData, values: np.ndarray, options: dict, genes: list[str]) -> None:
    before = copy.deepcopy(dict(scored["table"].uns["st_predict"]))
    columns = [PANEL.index(gene) for gene in genes]
    result = prediction(scored, **options)
    assert result.var_names.tolist() == genes
    np.testing.assert_array_equal(result.X, values[:, columns])
    own = ON_SECTION if options.get("held_out") == "section" else ON_PATIENT
    for name, scores in (
        ("partial", own.partial),
        ("partial_low", own.low),
        ("partial_high", own.high),
        ("ceiling_partial", own.ceiling),
    ):
        np.testing.assert_array_equal(result.var[name], np.array(scores, dtype=float)[columns])
    pd.testing.assert_frame_equal(
        frame(scored, **options), pd.DataFrame(values[:, columns], scored["table"].obs_names, genes)
    )
    assert repr(scored["table"].uns["st_predict"]) == repr(before)
    assert Record.read(result.uns, "pred_m2ost").genes == tuple(genes)


def test_a_table_of_some_genes_can_be_read_and_written(scored: SpatialData, tmp_path: Path) -> None:
    target = TargetSpec(transform="log_fold", reference=Reference(proportions=(0.1, 0.2, 0.3), median_total=1e3))
    with_card(scored, replace(CARD, target=target, reliability=(ON_SECTION,)))
    whole = prediction(scored)
    result = prediction(scored, reliable=True, units="model")
    scored["table"].obsm.clear()
    scored["pred_m2ost"] = result
    scored.write(tmp_path / "a.zarr")
    again = prediction(read_zarr(tmp_path / "a.zarr"))
    assert again.var_names.tolist() == ["COL1A1", "ACTB"]
    np.testing.assert_allclose(again.X, whole[:, ["COL1A1", "ACTB"]].X, rtol=1e-6)
    np.testing.assert_array_equal(again.var["partial"], [0.7, 0.6])


@pytest.mark.parametrize("order", [["ACTB", "COL1A1", "ERBB2"], ["COL1A1", "ERBB2"]])
def test_scores_and_units_follow_the_names_of_the_genes(scored: SpatialData, order: list[str]) -> None:
    target = TargetSpec(transform="log_fold", reference=Reference(proportions=(0.1, 0.2, 0.3), median_total=1e3))
    with_card(scored, replace(CARD, target=target, reliability=(ON_SECTION,)))
    expected, trusted = prediction(scored), prediction(scored, reliable=True).var_names
    linked = prediction(scored, units="model")
    scored["table"].obsm.clear()
    scored["pred_m2ost"] = linked[:, order].copy()
    result = prediction(scored)
    assert result.var_names.tolist() == order
    np.testing.assert_allclose(result.X, expected[:, order].X, rtol=1e-6)
    np.testing.assert_array_equal(result.var["partial"], expected.var["partial"][order])
    assert set(prediction(scored, reliable=True).var_names) == set(trusted) & set(order)


def test_the_table_of_scores(scored: SpatialData) -> None:
    table = reliability(scored)
    assert table.index.tolist() == PANEL
    np.testing.assert_array_equal(table["partial"], [0.5, 0.3, np.nan])
    assert table["trusted"].tolist() == [True, False, False]
    assert set(table["held_out"]) == {"patient"}
    assert set(table["sections"]) == {"X1, X2"}
    assert set(table["n_spots"]) == {300}
    assert reliability(scored["table"], held_out="section")["trusted"].tolist() == [False, True, True]
    with pytest.raises(NotFoundError, match="No prediction 'nope'"):
        reliability(scored["table"], "nope")


def test_genes_are_not_selected_without_scores(inside: SpatialData) -> None:
    for options in ({"reliable": True}, {"min_score": 0.1}):
        with pytest.raises(
            InvalidValueError, match=r"card of 'pred_m2ost' has no scores.*add_reliability.*leave out reliable="
        ):
            prediction(inside, **options)
    with pytest.raises(InvalidValueError, match="has no scores"):
        reliability(inside)
    assert list(prediction(inside).var) == []
    with_card(inside, replace(CARD, reliability=(ON_SECTION,)))
    assert prediction(inside, reliable=True).var_names.tolist() == ["COL1A1", "ACTB"]  # as there is nothing else
    with pytest.raises(
        InvalidValueError, match=r"has scores for \['section'\], not for 'patient'.*leave out held_out="
    ):
        prediction(inside, reliable=True, held_out="patient")
    del inside["table"].uns["st_predict"]
    with pytest.raises(InvalidValueError, match="has no scores"):
        prediction(inside, "pred_m2ost", genes=PANEL, reliable=True)


def test_no_gene_passes(scored: SpatialData) -> None:
    with pytest.raises(
        InvalidValueError, match=r"None of 3 genes has a partial correlation of at least 0.9 on another patient"
    ) as raised:
        prediction(scored, min_score=0.9)
    assert "(X1, X2); the best score is 0.50. Lower min_score=" in str(raised.value)
    for options, message in (
        ({"min_score": "high"}, "min_score must be"),
        ({"reliable": 1}, "reliable must be True or False"),
        ({"held_out": "organ"}, "held_out must be 'patient' or 'section'"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            frame(scored, **options)


def test_genes_that_pass_by_chance_are_said_to(inside: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    chance = replace(ON_PATIENT, low=(0.4, -0.4, -0.3), high=(0.6, -0.1, -0.1), partial=(0.5, -0.2, -0.2))
    with_card(inside, replace(CARD, reliability=(chance,)))
    prediction(inside, reliable=True)
    assert "interval is above 0 for 1 genes of 'pred_m2ost', about 1 of them by chance" in caplog.text
    caplog.clear()
    prediction(with_card(inside, replace(CARD, reliability=(ON_PATIENT,))), reliable=True)
    assert not caplog.text
