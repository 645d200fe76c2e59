"""Cells of a cross-validation are those of single calls, resume, and see nothing of their test sections."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict.cohort import _audit, _cell, _fit, _run_cell
from st_predict.cohort._cross_validate import models_of
from st_predict.cohort._sources import sources_of
from st_predict.datasets import Fold

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

pytestmark = pytest.mark.slow

MODELS = {"ridge": {"hparams": {"n_components": 4, "rank": 2}}}
SMALL = {"panel_method": "mean", "panel": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def sections() -> dict[str, SpatialData]:
    return stp.datasets.simulate(3, 1, n_genes=12, shape=(720, 880), mpp=1.2, seed=4).sections


@pytest.fixture(scope="module")
def loud(sections: dict[str, SpatialData]) -> dict[str, SpatialData]:
    """The same sections; in the third, a gene that is rare elsewhere has the highest mean."""
    mean = np.mean([np.asarray(s["table"].X.mean(axis=0)).ravel() for s in sections.values()], axis=0)
    sdata = with_counts(sections["P3S1"], lambda counts: counts * np.where(mean == mean.min(), 1000, 1))
    return {**sections, "P3S1": sdata}


def with_counts(sdata: SpatialData, change: Callable[[Any], Any]) -> SpatialData:
    table = sdata["table"].copy()
    table.X = csr_matrix(change(table.X.toarray()).astype(np.float32))
    return _cell_copy(sdata, table)


def _cell_copy(sdata: SpatialData, table: Any) -> SpatialData:
    from st_predict.cohort._sources import with_tables

    return with_tables(sdata, {"table": table})


def tiny_of(name: str) -> dict[str, Any]:
    return {**stp.models.get_spec(name).tiny, **({"spot_um": 100, "weights": None} if name == "deepspace" else {})}


def third(**changes: Any) -> Fold:
    """Test the third patient."""
    fold = Fold(name="third", train=("P1S1", "P2S1"), test=("P3S1",), note="")
    return replace(fold, **changes)


def test_a_cell_has_the_scores_of_single_calls(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    before = {name: s["table"].copy() for name, s in sections.items()}
    table = stp.cohort.cross_validate(sections, MODELS, out=tmp_path / "out", folds=[third()], **SMALL)
    assert set(sections["P3S1"]["table"].var.columns) == set(before["P3S1"].var.columns)
    assert set(sections["P3S1"]["table"].obsm) == set(before["P3S1"].obsm)
    train, test = [sections["P1S1"], sections["P2S1"]], _cell_copy(sections["P3S1"], before["P3S1"].copy())
    panel = stp.pp.select_panel(train, n_genes=4, method="mean")
    result = stp.tl.train(train, "ridge", panel=panel, out=tmp_path / "one", hparams=MODELS["ridge"]["hparams"])
    stp.tl.predict(test, result)
    scores = stp.tl.evaluate(test, key="pred_ridge")
    expected = scores.genes.query("predictor == 'pred_ridge'").reset_index(drop=True)
    columns = ["gene", "partial", "partial_low", "residual", "pearson", "ceiling_partial"]
    pd.testing.assert_frame_equal(table[columns], expected[columns])
    paper = scores.paper.query("predictor == 'pred_ridge'").iloc[0]
    assert table["spot_pearson"].unique().tolist() == [paper["spot_pearson"]]
    assert table["n_spots"].unique().tolist() == [paper["n_spots"]]
    assert table[["held_out", "leaks", "patient"]].drop_duplicates().to_numpy().tolist() == [["patient", "", "P3"]]


def test_predictors_without_an_image_are_those_of_evaluate(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    names = ["neighbours", "log_total", "global_mean", "position"]
    table = stp.cohort.cross_validate(sections, names, out=tmp_path / "out", folds=[third()], **SMALL)
    train, test = [sections["P1S1"], sections["P2S1"]], _cell_copy(sections["P3S1"], sections["P3S1"]["table"].copy())
    result = stp.tl.train(train, "mean", panel=table["gene"].unique().tolist(), out=tmp_path / "one")
    stp.tl.predict(test, result)
    scores = stp.tl.evaluate(test, key="pred_mean", train=train).genes
    for name in names:
        expected = scores[scores["predictor"] == name].set_index("gene")["pearson"]
        found = table[table["model"] == name].set_index("gene")["pearson"]
        pd.testing.assert_series_equal(found, expected)


def test_a_second_run_reads_what_is_there(
    sections: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, **SMALL)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(files) == 3
    done = []
    run = _run_cell.run_cell
    monkeypatch.setattr("st_predict.cohort._cross_validate.run_cell", lambda *a: (done.append(a[0].name), run(*a))[1])
    again = stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, **SMALL)
    pd.testing.assert_frame_equal(again, first)
    assert done == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")} == files
    changed = {**sections, "P1S1": with_counts(sections["P1S1"], lambda counts: counts[::-1])}
    stp.cohort.cross_validate(changed, ["mean"], out=tmp_path, **SMALL)
    assert len(done) == 3  # P1S1 is on some side of each fold
    stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, **{**SMALL, "panel": 3})
    assert len(done) == 6


def test_a_file_that_is_no_result_is_refused(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, folds=[third()], **SMALL)
    (path,) = tmp_path.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"is not the result of model 'mean', fold 'third', seed 0"):
        stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, folds=[third()], **SMALL)


def test_workers_give_the_same_table(client: Any, sections: dict[str, SpatialData], tmp_path: Path) -> None:
    stores = {name: tmp_path / f"{name}.zarr" for name in sections}
    for name, path in stores.items():
        _cell_copy(sections[name], sections[name]["table"].copy()).write(path)
    here = stp.cohort.cross_validate(sections, ["ridge", "mean"], out=tmp_path / "here", **SMALL)
    there = stp.cohort.cross_validate(stores, ["ridge", "mean"], out=tmp_path / "there", client=client, **SMALL)
    pd.testing.assert_frame_equal(there, here)


def test_failed_cells_do_not_stop_others(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    models = {"mean": "mean", "broken": {"model": "ridge", "hparams": {"encoder": "no_such_encoder"}}}
    with pytest.raises(ValueError, match=r"1 of 2 cells failed.*'broken', fold 'third'.*no_such_encoder"):
        stp.cohort.cross_validate(sections, models, out=tmp_path, folds=[third()], **SMALL)
    table = stp.cohort.cross_validate(sections, models, out=tmp_path, folds=[third()], skip_failed=True, **SMALL)
    assert table["model"].unique().tolist() == ["mean"]


def test_seeds_are_of_networks_that_use_them(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    tiny = {"hparams": stp.models.get_spec("m2ost").tiny, "config": {"epochs": 1, "batch_size": 8}, "preset": "paper"}
    table = stp.cohort.cross_validate(
        sections, {"m2ost": tiny, "mean": "mean"}, out=tmp_path, folds=[third()], seeds=[3, 4], **SMALL
    )
    assert {name: sorted(set(rows["seed"])) for name, rows in table.groupby("model")} == {"m2ost": [3, 4], "mean": [3]}
    by_seed = table[table["model"] == "m2ost"].pivot(index="gene", columns="seed", values="pearson")
    assert (by_seed[3] != by_seed[4]).any()


# splits


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (third(train=("P1S1", "P3S1")), r"Sections \['P3S1'\] are on several sides of the fold 'third'"),
        (third(validation=("P3S1",)), r"Sections \['P3S1'\] are on several sides"),
        (
            third(train=("P1S1", "other")),
            r"Patients \['P3'\] are on several sides of the fold 'third'.*shared_patients",
        ),
        (third(validation=("other",)), r"Patients \['P3'\] are on several sides"),
    ],
)
def test_a_split_that_shares_a_group_is_refused(
    sections: dict[str, SpatialData], tmp_path: Path, fold: Fold, message: str
) -> None:
    table = sections["P3S1"]["table"].copy()
    table.obs["section"] = "other"
    four = {**sections, "other": _cell_copy(sections["P3S1"], table)}
    with pytest.raises(stp.tl.LeakageError, match=message):
        stp.cohort.cross_validate(four, ["mean"], out=tmp_path, folds=[fold], **SMALL)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_declared_patient_is_named_in_the_table(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    table = sections["P3S1"]["table"].copy()
    table.obs["section"] = "other"
    four = {**sections, "other": _cell_copy(sections["P3S1"], table)}
    fold = third(train=("P1S1", "other"), shared_patients=("P3",))
    found = stp.cohort.cross_validate(four, ["mean"], out=tmp_path, folds=[fold], **SMALL)
    assert found[["held_out", "leaks"]].drop_duplicates().to_numpy().tolist() == [["section", "patient"]]


def test_an_unknown_section_and_no_folds(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"unknown sections \['P9'\]; there are \['P1S1'"):
        stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, folds=[third(test=("P9",))], **SMALL)
    with pytest.raises(ValueError, match="at least one"):
        stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, folds=[], **SMALL)
    with pytest.raises(TypeError, match=r"datasets\.Fold, got 3"):
        stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, folds=[3], **SMALL)


# leaks


def test_the_panel_does_not_see_the_test_section(loud: dict[str, SpatialData], tmp_path: Path) -> None:
    everywhere = stp.pp.select_panel(list(loud.values()), n_genes=4, method="mean")
    training = stp.pp.select_panel([loud["P1S1"], loud["P2S1"]], n_genes=4, method="mean")
    assert set(everywhere) != set(training)
    table = stp.cohort.cross_validate(loud, ["mean"], out=tmp_path / "a", folds=[third()], **SMALL)
    assert set(table["gene"]) == set(training)
    options = {**SMALL, "panel": everywhere}
    with pytest.raises(stp.tl.LeakageError, match="the method 'mean' selects on all sections, test sections included"):
        stp.cohort.cross_validate(loud, ["mean"], out=tmp_path / "b", folds=[third()], **options)
    known = [gene for gene in loud["P1S1"]["table"].var_names if gene not in everywhere][:4]
    other = stp.cohort.cross_validate(loud, ["mean"], out=tmp_path / "c", folds=[third()], **{**SMALL, "panel": known})
    assert set(other["gene"]) == set(known)


def test_an_audit_finds_nothing_in_our_fits(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    tiny = {"hparams": stp.models.get_spec("m2ost").tiny, "config": {"epochs": 1, "batch_size": 8}}
    models = {**MODELS, "m2ost": tiny, "deepspace": {"preset": "original", "config": {"epochs": 1, "batch_size": 8}}}
    models["deepspace"]["hparams"] = tiny_of("deepspace")
    options = {"folds": [third()], "seeds": [0], "audit": True, **SMALL}
    table = stp.cohort.cross_validate(sections, models, out=tmp_path, **options)
    assert table["model"].nunique() == 3


def leaky_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _fit,
        "choose_panel",
        lambda sections, fold, study: _fit.select_on(list(sections.values()), study, n_genes=4, method="mean"),
    )


def leaky_training(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _fit.train_fold

    def leaky(sections: Any, cell: Any, study: Any, **rest: Any) -> Any:
        return honest(sections, replace(cell, fold=replace(cell.fold, train=tuple(sections))), study, **rest)

    monkeypatch.setattr(_fit, "train_fold", leaky)


def leaky_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only gene proportions, or limits, of all sections."""
    honest = _fit.train_fold

    def leaky(sections: Any, cell: Any, study: Any, *, panel: Any, out: Any) -> Any:
        result = honest(sections, cell, study, panel=panel, out=out)
        everything = replace(cell, fold=replace(cell.fold, train=tuple(sections)))
        of_all = honest(sections, everything, study, panel=panel, out=out.with_name(f"{out.name}-all"))
        return replace(result, card=replace(result.card, target=of_all.card.target))

    monkeypatch.setattr(_fit, "train_fold", leaky)


def leaky_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the weights, which principal components of all sections have gone into."""
    honest = _fit.train_fold

    def leaky(sections: Any, cell: Any, study: Any, *, panel: Any, out: Any) -> Any:
        result = honest(sections, cell, study, panel=panel, out=out)
        everything = replace(cell, fold=replace(cell.fold, train=tuple(sections)))
        of_all = honest(sections, everything, study, panel=panel, out=out.with_name(f"{out.name}-all"))
        save_file(load_file(of_all.checkpoint), result.checkpoint)
        return result

    monkeypatch.setattr(_fit, "train_fold", leaky)


def leaky_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _fit.train_fold

    def leaky(sections: Any, cell: Any, study: Any, **rest: Any) -> Any:
        chooses = replace(cell.fold, validation=cell.fold.test)
        return honest(sections, replace(cell, fold=chooses), study, **rest)

    monkeypatch.setattr(_fit, "train_fold", leaky)


PLANTED = {
    "panel": (leaky_panel, "ridge", "'panel'"),
    "all fits": (leaky_training, "ridge", "'target', 'weights'"),
    "gene proportions": (leaky_target, "ridge", r"\['target'\]"),
    "limits": (leaky_target, "deepspace", r"\['target'\]"),
    "principal components": (leaky_components, "ridge", r"\['weights'\]"),
    "epoch": (leaky_epoch, "m2ost", r"\['weights'\]"),
}


@pytest.mark.parametrize("leak", PLANTED)
def test_a_planted_leak_is_caught(
    sections: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: str
) -> None:
    plant, name, differs = PLANTED[leak]
    plant(monkeypatch)
    models: Any = {
        "ridge": MODELS["ridge"],
        "deepspace": {"preset": "original", "hparams": {}, "config": {"epochs": 1, "batch_size": 8}},
        "m2ost": {"preset": "paper", "config": {"epochs": 6, "batch_size": 8, "lr": 0.05}},
    }
    if name != "ridge":
        models[name]["hparams"] = tiny_of(name)
    options = {"folds": [third()], "seeds": [0], "audit": True, **SMALL}
    with pytest.raises(stp.tl.LeakageError, match=rf"depends on its test sections.*differs in .*{differs}"):
        stp.cohort.cross_validate(sections, {name: models[name]}, out=tmp_path, **options)
    assert not list(tmp_path.glob("*.parquet"))


def test_an_audit_changes_counts_and_pixels(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    sdata = sections["P1S1"]
    study = _cell.Study(
        protocol=stp.cohort.get_protocol("lopo"), panel=4, where=_where(), min_counts=None, device="cpu", audit=True
    )
    other = _audit.scrambled(sdata, study)
    ours, theirs = (np.asarray(s["he"]["scale0"]["image"]) for s in (sdata, other))
    np.testing.assert_array_equal(theirs, 255 - ours)
    means = [np.asarray(s["table"].X.mean(axis=0)).ravel() for s in (sdata, other)]
    np.testing.assert_allclose(means[1], means[0][::-1], rtol=1e-5)
    assert stp.io.find_mpp(other, image_key="he").value == stp.io.find_mpp(sdata, image_key="he").value


def _where() -> Any:
    from st_predict._where import Where

    return Where()


def test_an_audit_of_a_protocol_that_leaks_is_refused(sections: dict[str, SpatialData], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'hest' leaks panel from the test sections"):
        stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, protocol="hest", audit=True)


# arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "models is empty"),
        ({"models": ["mean", "mean"]}, r"models names \['mean'\] twice"),
        ({"models": {"a": 3}}, r"models\['a'\] must be a name, a mapping or a BenchmarkModel, got 3"),
        ({"models": ["no_such"]}, "no_such"),
        ({"models": {"ridge": {"hparams": {"no_such": 1}}}}, "no_such"),
        ({"models": {"ridge": {"config": {"seed": 1}}}}, "config sets the seed 1"),
        ({"protocol": "no_such"}, r"No protocol 'no_such'; there are \['hest'"),
        ({"panel": []}, "panel is empty"),
        ({"panel_method": "best"}, "panel_method must be"),
        ({"seeds": [-1]}, "seeds.* must be at least 0"),
        ({"sdatas": []}, "sdatas must be a mapping from the names of sections"),
        ({"sdatas": {}}, "sdatas is empty"),
        ({"sdatas": {"a": "no_such.zarr"}}, r"of the section 'a' does not exist"),
        ({"client": "tcp://127.0.0.1:1", "n_workers": 1}, "client and n_workers exclude each other"),
        ({"group_key": "donor"}, "donor"),
    ],
)
def test_invalid_arguments(
    sections: dict[str, SpatialData], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    given = {"sdatas": sections, "models": ["mean"], **SMALL, **change}
    with pytest.raises((ValueError, KeyError, TypeError, FileNotFoundError), match=message):
        stp.cohort.cross_validate(given.pop("sdatas"), given.pop("models"), out=tmp_path, **given)


def test_another_resolution_of_the_same_pixels_is_other_work(sections: dict[str, SpatialData]) -> None:
    section = with_counts(next(iter(sections.values())), lambda counts: counts)
    section.images["he"] = section.images["he"].copy()
    before = sources_of({"one": section})["one"].digest()
    assert sources_of({"one": section})["one"].digest() == before
    set_transformation(section.images["he"], Scale([0.5, 0.5], axes=("x", "y")), to_coordinate_system="um")
    assert sources_of({"one": section})["one"].digest() != before


@pytest.mark.parametrize("seeds", [[], [0, 1, 0]])
def test_seeds_are_different_numbers(seeds: list[int], sections: dict[str, SpatialData], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seeds must be different numbers, at least one"):
        stp.cohort.cross_validate(sections, ["ridge"], out=tmp_path, seeds=seeds, **SMALL)


def test_models_by_name_by_fields_and_as_objects() -> None:
    found = models_of({"a": "ridge", "ridge": {"preset": "paper"}, "c": stp.cohort.BenchmarkModel(model="mean")})
    assert [(m.model, m.preset) for m in found.values()] == [("ridge", None), ("ridge", "paper"), ("mean", None)]
