"""Counts in a layer, in one of several tables, under other names: train, evaluate and calibrate find them."""

from __future__ import annotations

import gzip
import logging
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from spatialdata.models import TableModel
from spatialdata.transformations import Identity, Scale, set_transformation

import st_predict as stp
from st_predict import checkpoints
from st_predict._where import Where
from st_predict.models import get_spec
from st_predict.pp import make_target
from st_predict.tl._train import _panel

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

    Make = Callable[[str], SpatialData]
    Change = Callable[[SpatialData], None]

GENES = ["a", "b", "c", "d"]
KEY = "pred_mean"


@pytest.fixture
def pair(other: Make) -> tuple[SpatialData, SpatialData]:
    """Sections of two patients."""
    return other("P1"), other("P2")


def fit(sdatas: Any, out: Path, **options: Any) -> stp.tl.TrainResult:
    return stp.tl.train(sdatas, "mean", **{"panel": GENES, "out": out, "preset": "paper", **options})


def run(pair: tuple[SpatialData, SpatialData], out: Path, change: Change, **options: Any) -> list[pd.DataFrame]:
    """Train, predict, evaluate, calibrate and report on changed tables; return everything that can be compared."""
    for sdata in pair:
        change(sdata)
    table_key = options.get("table_key") or options.get("shapes_key", "table").replace("spots", "table")
    result = fit(pair[0], out, **options)
    for sdata in pair:
        stp.tl.predict(sdata, result, table_key=table_key)
    scores = stp.tl.evaluate(pair[1], key=KEY, train=pair[0], **options)
    calibration = stp.tl.calibrate(pair[1], key=KEY, coverage=0.5, spots="some", **options)
    report = calibration.report(pair[1], **options)
    frame = stp.get.frame(pair[1], KEY, table_key=table_key)
    return [frame, scores.summary, scores.genes, calibration.genes, report]


def mark(sdata: SpatialData) -> None:
    sdata.tables["table"].obs["some"] = np.arange(12) < 6


def to_layer(sdata: SpatialData) -> None:
    """Normalise and log, with the counts in a layer, as scanpy's tutorials do."""
    mark(sdata)
    table = sdata.tables["table"]
    table.layers["counts"] = table.X.copy()
    table.X = np.log1p(table.X / 3)


def to_three_tables(sdata: SpatialData) -> None:
    """Tables of three bin sizes, each of shapes of its own, as those of Visium HD."""
    mark(sdata)
    counted = sdata.tables.pop("table")
    for i, size in enumerate(("002um", "008um", "016um")):
        sdata.shapes[f"spots_{size}"] = sdata.shapes["spots"].copy()
        table = counted.copy()
        if size != "008um":
            table.X = table.X * 0 + i + 1
        table.obs["region"] = pd.Categorical([f"spots_{size}"] * table.n_obs)
        table.uns.pop("spatialdata_attrs", None)
        sdata.tables[f"table_{size}"] = TableModel.parse(
            table, region=f"spots_{size}", region_key="region", instance_key="instance"
        )


def with_names(names: list[str]) -> Change:
    def change(sdata: SpatialData) -> None:
        mark(sdata)
        sdata.tables["table"].var_names = names

    return change


def with_column(sdata: SpatialData) -> None:
    mark(sdata)
    sdata.tables["table"].var_names = [f"ENSG0000000000{i}" for i in range(4)]
    sdata.tables["table"].var["symbol"] = GENES
    sdata.tables["table"].var["old"] = ["d", "x", "y", "z"]


def split_in_two(sdata: SpatialData) -> None:
    """Carry gene b in two columns that sum to its counts."""
    mark(sdata)
    table = sdata.tables["table"]
    half = np.floor(table.X[:, 1] / 2)
    counts = np.column_stack([table.X[:, 0], half, table.X[:, 2:], table.X[:, 1] - half])
    with warnings.catch_warnings(action="ignore"):  # anndata, of names that are not unique
        sdata.tables["table"] = AnnData(
            counts, obs=table.obs, var=pd.DataFrame(index=[*GENES, "b"]), uns=dict(table.uns), obsm=dict(table.obsm)
        )


def hgnc(folder: Path) -> Path:
    """A table in the form of HGNC's complete set."""
    path = folder / "complete_set.txt.gz"
    rows = "hgnc_id\tsymbol\talias_symbol\tprev_symbol\tensembl_gene_id\n1\ta\t\t\t\n2\tb\tB2|both\told_b\t\n3\tc\tboth\t\t\n4\td\t\t\t\n"
    with gzip.open(path, "wt") as file:
        file.write(rows)
    return path


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (to_layer, {"layer": "counts"}),
        (to_three_tables, {"table_key": "table_008um"}),
        (to_three_tables, {"shapes_key": "spots_008um"}),
        (with_names(["A", "b", "C", "d"]), {"ignore_case": True}),
        (with_column, {"id_column": "symbol"}),
        (with_names(["a", "old_b", "c", "d"]), {"aliases": "hgnc"}),
        (split_in_two, {"duplicates": "sum"}),
    ],
    ids=["layer", "table", "shapes", "case", "column", "alias", "duplicate"],
)
def test_the_same_counts_elsewhere_give_the_same(
    pair: tuple[SpatialData, SpatialData], other: Make, tmp_path: Path, change: Change, options: dict[str, Any]
) -> None:
    if "aliases" in options:
        options = {"aliases": hgnc(tmp_path)}
    plain = run((other("P1"), other("P2")), tmp_path / "plain", mark)
    elsewhere = run(pair, tmp_path / "elsewhere", change, **options)
    for one, same in zip(plain, elsewhere, strict=True):
        pd.testing.assert_frame_equal(one, same)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        (to_layer, "layer="),
        (to_three_tables, "table_key="),
        (with_names(["A", "b", "C", "d"]), "ignore_case=True"),
        (with_names(["a", "other", "c", "d"]), 'missing="drop"'),
        (with_names(["a", "other", "c", "d"]), "aliases="),
        (split_in_two, 'duplicates="sum"'),
    ],
)
@pytest.mark.parametrize("verb", ["train", "evaluate", "calibrate", "report"])
def test_advice_can_be_followed(
    pair: tuple[SpatialData, SpatialData], tmp_path: Path, change: Change, way_out: str, verb: str
) -> None:
    result = fit(pair[0], tmp_path / "model")
    for sdata in pair:
        stp.tl.predict(sdata, result)
        mark(sdata)
    calibration = stp.tl.calibrate(pair[1], key=KEY, coverage=0.5, spots="some")
    change(pair[1])
    call = {
        "train": lambda: fit(pair[1], tmp_path / "other"),
        "evaluate": lambda: stp.tl.evaluate(pair[1], key=KEY),
        "calibrate": lambda: stp.tl.calibrate(pair[1], key=KEY, coverage=0.5),
        "report": lambda: calibration.report(pair[1]),
    }[verb]
    with pytest.raises((KeyError, ValueError), match=re.escape(way_out)):
        call()


def test_genes_that_a_table_lacks_are_left_out(
    pair: tuple[SpatialData, SpatialData], other: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for sdata in pair:
        mark(sdata)
    pair[0].tables["table"] = pair[0].tables["table"][:, ["a", "c", "d"]].copy()
    result = fit(pair, tmp_path / "model", missing="drop")
    assert result.card.genes == ("a", "c", "d")
    assert "1 of 4 panel genes" in caplog.text
    whole = fit(other("P3"), tmp_path / "whole")
    stp.tl.predict(pair[1], whole)
    pair[1].tables["table"] = pair[1].tables["table"][:, ["a", "c", "d"]].copy()
    caplog.clear()
    scores = stp.tl.evaluate(pair[1], key=KEY, train=pair[0], missing="drop")
    assert scores.genes["gene"].unique().tolist() == ["a", "c", "d"]
    assert set(pair[1].tables["table"].var) >= {f"{KEY}_pearson"}
    # a mean of ln(1 + 1e6 / 4) for each gene: what is left out is a quarter
    assert float(re.search(r"make up (\S+) %", caplog.text)[1]) == pytest.approx(25, abs=3)
    calibration = stp.tl.calibrate(pair[1], key=KEY, coverage=0.5, spots="some", missing="drop")
    assert calibration.genes["quantile"].isna().tolist() == [False, True, False, False]
    calibration.save(tmp_path / "c.json")
    again = stp.tl.Calibration.load(tmp_path / "c.json")
    pd.testing.assert_frame_equal(again.genes, calibration.genes)
    again.apply(pair[1])
    lower = pair[1].tables["table"].obsm[f"{KEY}_lower"]
    assert np.isnan(lower[:, 1]).all()
    assert np.isfinite(lower[:, [0, 2, 3]]).all()
    report = again.report(pair[1], missing="drop")
    assert report["gene"].unique().tolist() == ["a", "c", "d"]


def test_sums_over_all_genes_do_not_depend_on_the_panel(
    pair: tuple[SpatialData, SpatialData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = fit(pair[0], tmp_path / "model")
    network, card = checkpoints.load(result.checkpoint)
    path = tmp_path / "all.safetensors"
    checkpoints.save(path, network, replace(card, target=replace(card.target, over="all")))
    stp.tl.predict(pair[1], path)
    pair[1].tables["table"].var_names = ["a", "x", "c", "d"]
    stp.tl.evaluate(pair[1], missing="drop")
    assert "make up" not in caplog.text


def test_a_number_of_genes_is_chosen_from_the_layer_by_its_ids(
    pair: tuple[SpatialData, SpatialData], tmp_path: Path
) -> None:
    for sdata in pair:
        with_column(sdata)
        to_layer(sdata)
    result = fit(pair, tmp_path / "m", panel=np.int64(3), layer="counts", id_column="symbol", preset="original")
    assert len(result.card.genes) == 3
    assert set(result.card.genes) < set(GENES)
    assert result.card.gene_id_type == "symbol"
    ensembl = fit(pair, tmp_path / "e", panel=3, layer="counts", preset="original")
    assert all(gene.startswith("ENSG") for gene in ensembl.card.genes)
    assert ensembl.card.gene_id_type == "ensembl"


def test_a_section_of_a_table_of_several(two_regions: SpatialData, tmp_path: Path) -> None:
    images = {"spots": "he", "more": "mirrored"}
    result = fit(two_regions, tmp_path / "m", image_key=images, shapes_key="more")
    assert [section["patients"] for section in result.card.training["sections"]] == [["P2"]]
    assert result.card.training["sections"][0]["n_spots"] == 12
    with pytest.raises(KeyError, match=r"No table annotates the shapes 'nope'.*shapes_key="):
        fit(two_regions, tmp_path / "n", image_key=images, shapes_key="nope")


@pytest.mark.parametrize("organism", ["human", "Homo sapiens"])
def test_another_organism_is_refused(pair: tuple[SpatialData, SpatialData], tmp_path: Path, organism: str) -> None:
    human = ["ERBB2", "GNAS", "ACTB", "CD74"]
    for sdata in pair:
        sdata.tables["table"].var_names = human
    result = fit(pair[0], tmp_path / "model", panel=human, card={"organism": organism})
    stp.tl.predict(pair[1], result)
    pair[1].tables["table"].var_names = ["Erbb2", "Gnas", "Actb", "Cd74"]
    for ignore_case in (False, True):
        with pytest.raises(ValueError, match=r"The panel's organism is human.*Erbb2.*another organism"):
            stp.tl.evaluate(pair[1], ignore_case=ignore_case)
    pair[1].tables["table"].var_names = [f"ENSMUSG0000000000{i}" for i in range(4)]
    pair[1].tables["table"].var["symbol"] = human
    with pytest.raises(ValueError, match="is human, but the table has Ensembl identifiers of mouse"):
        stp.tl.evaluate(pair[1])


def test_what_nobody_reads_is_refused(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"\['layer'\] only concern counts of context spots.*context=, or leave"):
        stp.tl.predict(measured, checkpoint(), layer="mine")


def test_a_minmax_target_is_read_once(
    pair: tuple[SpatialData, SpatialData], tmp_path: Path, quick: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    pair[0].tables["table"].X[0] = 0
    with caplog.at_level(logging.INFO, logger="st_predict"):
        result = stp.tl.train(
            pair[0],
            "deepspace",
            panel=GENES,
            out=tmp_path / "m",
            preset="original",
            hparams={**get_spec("deepspace").tiny, "weights": None, "field": None},
            config=quick(epochs=1),
        )
    assert caplog.text.count("panel genes found") == 1
    assert caplog.text.count("Dropped 1 of 12 spots") == 1
    plain = make_target(pair[0].tables["table"], GENES, replace(result.card.target, scale="none", limits=None))
    assert np.array_equal(result.card.target.limits, [plain.values.min(axis=0), plain.values.max(axis=0)])


def test_a_spot_outside_the_image_is_told_once(
    pair: tuple[SpatialData, SpatialData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for sdata in pair:
        shapes = sdata.shapes["spots"].copy()
        geometry = shapes.geometry.to_numpy().copy()
        geometry[0] = type(geometry[0])(-50, -50)
        shapes["geometry"] = geometry
        sdata.shapes["spots"] = shapes
        set_transformation(sdata.images["he"], Identity(), "um")
    result = stp.tl.train(pair[0], "ridge", panel=GENES, out=tmp_path / "m")
    assert caplog.text.count("outside the image") == 1
    caplog.clear()
    stp.tl.predict(pair[1], result)
    assert caplog.text.count("outside the image") == 1


# what a table of another name, or shapes, must not hide


def with_another_table(sdata: SpatialData) -> SpatialData:
    """Move the counts to the table ``hd``, beside a table of other patients without names of sections."""
    mark(sdata)
    counted = sdata.tables.pop("table")
    sdata.tables["hd"] = counted
    strange = counted.copy()
    strange.obs["patient"] = "nobody"
    del strange.obs["section"]
    sdata.tables["table"] = strange
    return sdata


def test_leakage_is_looked_for_in_the_table_of_the_prediction(other: Make, tmp_path: Path) -> None:
    trained, same = with_another_table(other("P1")), with_another_table(other("P1"))
    result = fit(trained, tmp_path / "m", table_key="hd")
    network, card = checkpoints.load(result.checkpoint)
    checkpoints.save(tmp_path / "m.safetensors", network, replace(card, training={}))
    stp.tl.predict(same, tmp_path / "m.safetensors", table_key="hd")
    assert stp.tl.evaluate(same).summary["n_spots"].iloc[0] == 12
    with pytest.raises(stp.tl.LeakageError, match="in train and to be scored"):
        stp.tl.evaluate(same, train=trained)
    with pytest.raises(stp.tl.LeakageError, match="was trained on"):
        stp.tl.calibrate(same, train=trained, coverage=0.5)


def test_shapes_select_the_table_of_prediction_and_counts(other: Make, tmp_path: Path) -> None:
    sdata = other("P2")
    result = fit(other("P1"), tmp_path / "m")
    sdata.shapes["fine"] = sdata.shapes["spots"].copy()
    fine = sdata.tables["table"].copy()
    fine.X = fine.X[::-1].copy()  # other counts of spots of the same names
    fine.obs["region"] = pd.Categorical(["fine"] * 12)
    fine.uns.pop("spatialdata_attrs")
    sdata.tables["fine_table"] = TableModel.parse(fine, region="fine", region_key="region", instance_key="instance")
    stp.tl.predict(sdata, result, table_key="table")
    plain = stp.tl.evaluate(sdata, shapes_key="spots").summary
    with pytest.raises(KeyError, match=r"pred_mean|no prediction"):
        stp.tl.evaluate(sdata, key=KEY, shapes_key="fine")
    stp.tl.predict(sdata, result, table_key="fine_table")
    pd.testing.assert_frame_equal(plain, stp.tl.evaluate(sdata, shapes_key="spots").summary)
    # a copy of the prediction annotates the spots too, and is not the table of the counts
    sdata["copy"] = stp.get.prediction(sdata, KEY, table_key="table")
    pd.testing.assert_frame_equal(plain, stp.tl.evaluate(sdata, shapes_key="spots").summary)


def test_a_numeric_panel_is_chosen_by_the_spots_of_training(two_regions: SpatialData) -> None:
    table = two_regions.tables["table"]
    table.X[1::2, 0] = 1000  # gene a, of the other region
    table.X[::2, 3] = 90
    assert _panel(1, [two_regions], Where(shapes_key="spots"), method="mean") == ("d",)
    assert _panel(1, [two_regions], Where(), method="mean") == ("a",)


def test_shapes_do_not_hide_the_patient_of_an_unlabelled_slide(
    other: Make, tmp_path: Path, quick: Callable[..., Any]
) -> None:
    train, validation, slide = other("P1"), other("P2"), other("P2", "S2")
    slide.images["he"] = slide.images["he"].copy()
    slide.shapes["other"] = slide.shapes["spots"].copy()
    table = slide.tables.pop("table")
    table.obs["region"] = pd.Categorical(["other"] * 12)
    table.uns.pop("spatialdata_attrs")
    slide.tables["table"] = TableModel.parse(table, region="other", region_key="region", instance_key="instance")
    with pytest.raises(stp.tl.LeakageError, match=r"patients \['P2'\] of validation"):
        stp.tl.train(
            train,
            "m2ost",
            panel=GENES,
            out=tmp_path / "m",
            validation=validation,
            unlabelled=slide,
            shapes_key="spots",
            hparams=dict(get_spec("m2ost").tiny),
            config=quick(epochs=1),
        )


def test_a_card_cannot_hide_what_was_trained_on(other: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"card\['training'\] cannot set \['sections'\]"):
        fit(other("P1"), tmp_path / "m", card={"training": {"sections": []}})
    assert fit(other("P1"), tmp_path / "m", card={"training": {"note": 1}}).card.training["note"] == 1


# messages


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_the_slide_that_is_unfit_is_named(pair: tuple[SpatialData, SpatialData], tmp_path: Path, verb: str) -> None:
    for sdata in pair:
        to_layer(sdata)
    result = fit(pair[0], tmp_path / "m", layer="counts")
    for sdata in pair:
        stp.tl.predict(sdata, result)
    pair[1].tables["table"].layers["counts"][0, 0] = 0.5
    calls = {
        "train": lambda slides: fit(slides, tmp_path / "n", layer="counts"),
        "evaluate": lambda slides: stp.tl.evaluate(slides, layer="counts"),
    }
    for slides, name in (({"one": pair[0], "two": pair[1]}, "two:"), (list(pair), "Slide 2 of 2:")):
        with pytest.raises(ValueError, match=f"^{name} 1 count is not a whole number"):
            calls[verb](slides)


def test_sections_may_be_any_iterable(pair: tuple[SpatialData, SpatialData], tmp_path: Path) -> None:
    slides = dict(zip("ab", pair, strict=True))
    for number, given in enumerate((slides.values(), (sdata for sdata in pair), pair)):
        assert len(fit(given, tmp_path / str(number)).card.training["sections"]) == 2
    held = fit(pair, tmp_path / "held", validation=np.array(["P2"])).card.training
    assert [section["patients"] for section in held["validation"]] == [["P2"]]
    with pytest.raises(TypeError, match=r"sdatas, or each of several in a list or a mapping, must be a SpatialData"):
        fit(pair[0].tables["table"], tmp_path / "x")


def test_the_resolution_to_train_at_is_not_that_of_the_image(
    pair: tuple[SpatialData, SpatialData], tmp_path: Path, quick: Callable[..., Any]
) -> None:
    set_transformation(pair[0].images["he"], Scale([3.0, 3.0], axes=("x", "y")), "um")
    options = {"hparams": dict(get_spec("m2ost").tiny), "config": quick(epochs=1)}
    with pytest.raises(ValueError, match="3 um/px") as error:
        stp.tl.train(pair[0], "m2ost", panel=GENES, out=tmp_path / "m", mpp=1.0, **options)
    assert "with mpp=" not in str(error.value)


@pytest.mark.parametrize("panel", [0, -1, [], np.array(2), {"a": 1}, "ERBB2", True])
def test_unfit_panels_are_called_panel(pair: tuple[SpatialData, SpatialData], tmp_path: Path, panel: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^panel (must be|is empty)"):
        fit(pair[0], tmp_path / "m", panel=panel)


CACHE = Path(os.environ.get("ST_PREDICT_CACHE", Path(__file__).parents[3] / "shared" / "data" / "her2st"))

# symbols of 2018 and of today, with identifiers, from HGNC
RENAMED = pd.DataFrame(
    {
        "symbol": ["CIBAR1", "ERBB2", "CD74"],
        "prev_symbol": ["FAM92A", "NGL", "DHLAG"],
        "ensembl_gene_id": ["ENSG00000188343", "ENSG00000141736", "ENSG00000019582"],
    }
)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not CACHE.is_dir(), reason=f"The sections of her2st are not at {CACHE}.")
def test_a_real_section_with_a_layer_and_other_names(tmp_path: Path) -> None:
    plain = stp.datasets.her2st("C2", cache=CACHE)
    scanpy_like = type(plain)(images=dict(plain.images), shapes=dict(plain.shapes))
    scanpy_like.tables["table"] = plain["table"].copy()
    panel = ["ERBB2", "CD74", "KRT8", "COL3A1", "FAM132A"]
    table = scanpy_like["table"]
    table.layers["counts"] = table.X.copy()
    sc.pp.normalize_total(table)
    sc.pp.log1p(table)
    names = {"ERBB2": "ENSG00000141736.14", "CD74": "DHLAG"}
    table.var_names = [names.get(name, name) for name in table.var_names]
    scanpy_like.tables["table"] = table[:, [name for name in table.var_names if name != "FAM132A"]].copy()

    place = {"layer": "counts", "aliases": RENAMED, "missing": "drop"}
    one = fit(plain, tmp_path / "plain", panel=panel[:4])
    same = fit(scanpy_like, tmp_path / "scanpy", panel=panel, **place)
    assert same.card.genes == one.card.genes == tuple(panel[:4])
    stp.tl.predict(plain, one)
    stp.tl.predict(scanpy_like, one)
    scores = [stp.tl.evaluate(sdata, **options) for sdata, options in ((plain, {}), (scanpy_like, place))]
    # the total count lacks the gene that was filtered, and residuals with it
    columns = ["section", "predictor", "n_spots", "gene_pearson", "gene_spearman"]
    rows = [one.summary.query("predictor == 'pred_mean'")[columns] for one in scores]
    pd.testing.assert_frame_equal(rows[0], rows[1])
    pd.testing.assert_frame_equal(*(one.paper.query("predictor != 'log_total'") for one in scores))
    weights = [checkpoints.load(result.checkpoint)[0].state_dict() for result in (one, same)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
