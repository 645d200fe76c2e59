"""The command line: files in, files out, one line for an error."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata
import tifffile
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import st_predict as stp
from st_predict.cli import app
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

TINY = dict(get_spec("m2ost").tiny)


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """The command line sets levels of loggers, which other tests read."""
    loggers = [
        logging.getLogger(n) for n in (None, "st_predict", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero")
    ]
    levels, handlers = [logger.level for logger in loggers], list(logging.getLogger().handlers)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    logging.getLogger().handlers = handlers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sections of two patients, a panel, and a small checkpoint."""
    folder = tmp_path_factory.mktemp("cli")
    simulation = stp.datasets.simulate(2, 1, n_genes=6, shape=(720, 880), mpp=1.2, seed=0)
    for name, section in simulation.sections.items():
        section.write(folder / f"{name}.zarr")
    genes = list(simulation.genes.index[:4])
    (folder / "panel.txt").write_text("\n".join(genes))
    stp.tl.train(
        simulation.sections["P1S1"],
        panel=genes,
        out=folder / "model",
        hparams=TINY,
        config=stp.tl.TrainConfig(epochs=1, device="cpu", precision="float32"),
    )
    return folder


@pytest.fixture
def model(folder: Path) -> Path:
    return folder / "model" / "m2ost.safetensors"


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("options", "level"), [([], logging.WARNING), (["--verbose"], logging.INFO)])
def test_lines_of_other_packages_are_shown_from_warnings_on(
    monkeypatch: pytest.MonkeyPatch, options: list[str], level: int
) -> None:
    """Distributed sets its loggers to INFO, whatever the level of the root logger is."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert run(*options, "models").exit_code == 0
    assert [handler.level for handler in logging.getLogger().handlers] == [level]


def check_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    error = [line for line in result.stderr.splitlines() if line]
    assert error[0].startswith("Error: ")
    for word in words:
        assert word in " ".join(error)


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in (
        "demo",
        "train",
        "predict",
        "calibrate",
        "superresolve",
        "evaluate",
        "export",
        "models",
        "card",
        "download",
    ):
        assert command in result.output


@pytest.mark.slow
def test_export(folder: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "predicted.zarr"
    assert run("predict", folder / "P2S1.zarr", "--model", model, "--out", store, "--device", "cpu").exit_code == 0
    sdata = spatialdata.read_zarr(store)
    prediction = stp.get.prediction(sdata)
    first, second = prediction.var_names[:2]
    for name, *options in (
        ("a.geojson", "--color", second),
        ("a.parquet",),
        ("a.csv",),
        ("a.ome.tif", "--downsample", 4),
        ("a.ome.zarr", "--square"),
    ):
        result = run("export", store, "--out", tmp_path / name, "--gene", first, *options)
        assert result.exit_code == 0, result.output
        assert name in result.output.replace("\n", "")
        check_refused(run("export", store, "--out", tmp_path / name), "exists")
    objects = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [one["properties"]["name"] for one in objects] == list(prediction.obs_names)
    assert {*objects[0]["properties"]["measurements"]} == {first}
    assert len({tuple(one["properties"]["color"]) for one in objects}) > 1
    table = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_allclose(table[first], prediction[:, first].X[:, 0])
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "a.csv")[["x_um", first]], table[["x_um", first]], rtol=1e-6, check_dtype=False
    )
    assert tifffile.imread(tmp_path / "a.ome.tif").shape == (180, 220)


def test_export_says_what_it_can_write(folder: Path, tmp_path: Path) -> None:
    section = folder / "P1S1.zarr"
    check_refused(run("export", section, "--out", tmp_path / "a.shp"), "must end in one of", ".geojson", ".ome.zarr")
    check_refused(run("export", section, "--out", tmp_path / "a.csv", "--color", "x"), "does not apply to .csv files")
    check_refused(run("export", section, "--out", tmp_path / "a.csv"), "No prediction found")
    assert not list(tmp_path.iterdir())


def test_train(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {}
    train = stp.tl.train

    def tiny(*args: Any, **options: Any) -> stp.tl.TrainResult:
        calls.update(options)
        return train(*args, **options)

    monkeypatch.setattr("st_predict.tl.train", tiny)
    options = ["--panel", folder / "panel.txt", "--out", tmp_path / "out", "--epochs", 1, "--device", "cpu"]
    options += ["--hparams", json.dumps(TINY)]
    sections = [folder / "P1S1.zarr", folder / "P2S1.zarr"]
    result = run("train", *sections, *options, "--hold-out", "P2", "--schedule", "cosine", "--lr", 0.002)
    assert result.exit_code == 0, result.output
    assert f"Wrote {tmp_path / 'out' / 'm2ost.safetensors'}" in result.output.replace("\n", " ")
    _, card = stp.checkpoints.load(tmp_path / "out" / "m2ost.safetensors")
    assert list(card.genes) == (folder / "panel.txt").read_text().split()
    assert [s["section"] for s in card.training["validation"]] == ["P2S1"]
    assert calls["config"] == {"epochs": 1, "lr": 0.002, "schedule": "cosine", "device": "cpu"}
    assert card.training["preset"] == calls["preset"] == "recommended"
    assert {name: card.hparams[name] for name in TINY} == TINY
    check_refused(run("train", *sections, *options), "already holds a training")


def test_slides_in_the_colours_of_training(folder: Path, tmp_path: Path) -> None:
    options = ["--panel", folder / "panel.txt", "--hparams", json.dumps({"encoder": "rgb"}), "--out", tmp_path / "out"]
    result = run("train", folder / "P1S1.zarr", "--model", "ridge", "--stain", "reinhard", *options)
    assert result.exit_code == 0, result.output
    weights = tmp_path / "out" / "ridge.safetensors"
    assert stp.specs.ModelCard.of_file(weights).training["stain"]["method"] == "reinhard"
    values = {}
    for name, more in (("by_card", []), ("as_it_is", ["--ignore-stain"])):
        out = tmp_path / f"{name}.h5ad"
        result = run("predict", folder / "P2S1.zarr", "--out", out, "--model", weights, *more)
        assert result.exit_code == 0, result.output
        values[name] = anndata.read_h5ad(out).X
    assert not np.allclose(values["by_card"], values["as_it_is"], equal_nan=True)
    wrong = [*options[:-1], tmp_path / "wrong"]
    check_refused(
        run("train", folder / "P1S1.zarr", "--model", "ridge", "--stain", "blue", *wrong), "stain must be", "blue"
    )


def test_train_refuses(folder: Path, tmp_path: Path) -> None:
    section, out = folder / "P1S1.zarr", ["--out", tmp_path / "out", "--panel", "3"]
    check_refused(run("train", section, *out, "--validation", section), "same section")
    check_refused(run("train", section, *out, "--validation", section, "--hold-out", "P1"), "exclude each other")
    check_refused(run("train", tmp_path / "none.zarr", *out), "does not exist", "none.zarr")
    check_refused(run("train", section, *out, "--schedule", "step"), "schedule must be 'constant' or 'cosine'")
    check_refused(run("train", section, *out, "--model", "m3ost"), "No model 'm3ost'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "timm", None)
        check_refused(
            run("train", section, *out, "--model", "vit", "--preset", "paper"), "needs timm", "pip install timm"
        )
    check_refused(run("train", section, *out, "--preset", "mine"), "preset must be one of")
    check_refused(run("train", section, *out, "--hparams", "depth=3"), "--hparams must be a JSON object", "depth=3")
    assert list(tmp_path.iterdir()) == []


def test_predict_and_evaluate(folder: Path, model: Path, tmp_path: Path) -> None:
    section = folder / "P2S1.zarr"
    expected = spatialdata.read_zarr(section)
    stp.tl.predict(expected, model, device="cpu")
    values = expected.tables["table"].obsm["pred_m2ost"]
    for name in ("out.zarr", "out.h5ad"):
        result = run("predict", section, "--out", tmp_path / name, "--model", model, "--device", "cpu")
        assert result.exit_code == 0, result.output
    written = spatialdata.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_allclose(written.tables["table"].obsm["pred_m2ost"], values, atol=1e-5)
    assert set(written.images) == {"he"}
    alone = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(alone.X, stp.get.prediction(expected).X, atol=1e-5)
    assert list(alone.var_names) == (folder / "panel.txt").read_text().split()
    assert "pred_m2ost" not in spatialdata.read_zarr(section).tables["table"].obsm  # the input is as it was
    scores = tmp_path / "scores.csv"
    result = run("evaluate", tmp_path / "out.zarr", "--out", scores, "--train", folder / "P1S1.zarr")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(scores)
    expected = {"pred_m2ost", "log_total", "section_mean", "neighbours", "position", "global_mean", "ridge", "ceiling"}
    assert set(table["predictor"]) == expected
    assert "Section P2S1" in result.output
    direct = stp.tl.evaluate(written, key="pred_m2ost").summary
    assert table["gene_partial"][0] == pytest.approx(direct["gene_partial"][0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5ad", "out.zarr", "scores.csv"]


@pytest.mark.slow
def test_predict_draws_samples_of_several_checkpoints(folder: Path, model: Path, tmp_path: Path) -> None:
    section = folder / "P2S1.zarr"
    network, card = stp.checkpoints.load(model)
    other, dropping = tmp_path / "other.safetensors", tmp_path / "dropping.safetensors"
    changed = stp.checkpoints.build(replace(card, hparams={**TINY, "drop": 0.3}))
    stp.checkpoints.save(other, changed, card)  # other weights
    changed.load_state_dict(network.state_dict())
    stp.checkpoints.save(dropping, changed, replace(card, hparams={**TINY, "drop": 0.3}))
    options = ["--key", "pred", "--device", "cpu"]

    def std(name: str, *arguments: object) -> np.ndarray:
        result = run("predict", section, "--out", tmp_path / name, *arguments, *options)
        assert result.exit_code == 0, result.output
        return anndata.read_h5ad(tmp_path / name).layers["std"]

    assert (std("ensemble.h5ad", "--model", model, "--model", other) > 0).all()
    samples = [std(f"{seed}.h5ad", "--model", dropping, "--n-samples", 3, "--seed", seed) for seed in (0, 1)]
    assert (samples[0] > 0).all()
    assert (samples[0] != samples[1]).any()
    refused = ["predict", section, "--out", tmp_path / "no.h5ad", "--model", model]
    check_refused(run(*refused, "--n-samples", 3), "M2OST has no dropout")
    check_refused(run(*refused, "--context", "known"), "['m2ost'] cannot read counts of other spots")
    check_refused(run(*refused, "--model", model), "is the same checkpoint as")


def test_calibrate_and_predict_with_intervals(folder: Path, model: Path, tmp_path: Path) -> None:
    result = run("predict", folder / "P2S1.zarr", "--out", tmp_path / "held_out.zarr", "--model", model)
    assert result.exit_code == 0, result.output
    out = tmp_path / "calibration.json"
    result = run("calibrate", tmp_path / "held_out.zarr", "--out", out, "--coverage", 0.8)
    assert result.exit_code == 0, result.output
    held_out = spatialdata.read_zarr(tmp_path / "held_out.zarr")
    calibration = stp.tl.calibrate(held_out, coverage=0.8)
    pd.testing.assert_frame_equal(stp.tl.Calibration.load(out).genes, calibration.genes)
    options = ["--model", model, "--calibration", out]
    result = run("predict", folder / "P2S1.zarr", "--out", tmp_path / "intervals.h5ad", *options)
    assert result.exit_code == 0, result.output
    written = anndata.read_h5ad(tmp_path / "intervals.h5ad")
    calibration.apply(held_out)
    np.testing.assert_allclose(written.layers["lower"], stp.get.prediction(held_out).layers["lower"], atol=1e-5)
    assert (written.layers["upper"] >= written.layers["lower"]).all()
    check_refused(run("calibrate", folder / "P1S1.zarr", "--out", tmp_path / "no.json"), "No prediction found")
    refused = ["predict", folder / "P2S1.zarr", "--out", tmp_path / "no.h5ad", *options]
    check_refused(run(*refused, "--key", "mine"), "The calibration is for the prediction 'pred_m2ost', not 'mine'")


def test_trust(folder: Path, model: Path, tmp_path: Path) -> None:
    card = json.loads(stp.specs.ModelCard.of_file(model).to_json())
    card["crop"]["levels"][0]["downsample"] = 0.5
    forged = tmp_path / "forged.safetensors"
    save_file(load_file(model), forged, metadata={"st_predict.card": json.dumps(card)})
    command = ("predict", folder / "P2S1.zarr", "--out", tmp_path / "out.h5ad", "--model", forged, "--device", "cpu")
    check_refused(run(*command), "The network reads crops")
    card["hparams"] = {**stp.models.get_spec("ridge").tiny, "encoder": "resnet18.a1_in1k"}
    save_file(
        {"weight_DG": torch.zeros(5, 4), "bias_G": torch.zeros(4)},
        forged,
        metadata={"st_predict.card": json.dumps({**card, "model": "ridge"})},
    )
    check_refused(run(*command), "encoder must be one of", "with --trust.")


def test_superresolve(folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    section = folder / "P1S1.zarr"
    checkpoint = stp.tl.train(
        spatialdata.read_zarr(section),
        "istar",
        panel=stp.pp.read_panel(folder / "panel.txt"),
        out=tmp_path / "istar",
        mpp=4,
        hparams=dict(get_spec("istar").tiny),
        config={"epochs": 1, "device": "cpu"},
    ).checkpoint
    result = run("superresolve", section, "--out", tmp_path / "cells.h5ad", "--model", checkpoint, "--device", "cpu")
    assert result.exit_code == 0, result.output
    expected = spatialdata.read_zarr(section)
    stp.tl.superresolve(expected, checkpoint, device="cpu")
    written = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_allclose(written.X, stp.get.prediction(expected).X, atol=1e-5)
    check_refused(run("superresolve", section, "--out", tmp_path / "no.h5ad", "--model", model), "m2ost")


def test_embed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    reading = ["--neighbours", "3", "--standardize"]
    result = run("embed", folder / "P1S1.zarr", "--out", tmp_path / "out.zarr", *reading, "--device", "cpu")
    assert result.exit_code == 0, result.output
    expected = spatialdata.read_zarr(folder / "P1S1.zarr")
    stp.tl.embed(expected, "rgb", neighbours=3, standardize=True, device="cpu")
    written = spatialdata.read_zarr(tmp_path / "out.zarr").tables["table"].obsm["X_rgb"]
    np.testing.assert_array_equal(written, expected.tables["table"].obsm["X_rgb"])
    check_refused(run("embed", folder / "P1S1.zarr", "--out", tmp_path / "out.zarr"), "exists")
    check_refused(
        run("embed", folder / "P1S1.zarr", "--out", tmp_path / "no.zarr", "--encoder", "ini"), "No encoder 'ini'"
    )
    fields = ["--fields", "112", "--fields", "224"]
    check_refused(run("embed", folder / "P1S1.zarr", "--out", tmp_path / "no.zarr", *fields), "Leave out --fields")


def test_predict_lays_a_grid_on_a_slide_without_spots(folder: Path, model: Path, tmp_path: Path) -> None:
    section = spatialdata.read_zarr(folder / "P1S1.zarr")
    spatialdata.SpatialData(images={"he": section.images["he"]}).write(tmp_path / "slide.zarr")
    options = ["--out", tmp_path / "out.h5ad", "--model", model, "--pitch-um", 250]
    result = run("predict", tmp_path / "slide.zarr", *options)
    assert result.exit_code == 0, result.output
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert written.n_obs > 3
    assert {"array_row", "array_col"} <= set(written.obs)


def test_predict_without_the_finest_level(folder: Path, model: Path, tmp_path: Path) -> None:
    card = ModelCard.of_file(model)
    network, _ = stp.checkpoints.load(model)
    fine = tmp_path / "fine.safetensors"
    stp.checkpoints.save(fine, network, replace(card, crop=replace(card.crop, mpp=0.6)))  # the image has 1.2 um/px
    options = ["--out", tmp_path / "out.h5ad", "--model", fine]
    refused = run("predict", folder / "P1S1.zarr", *options)
    check_refused(refused, "with --missing-levels mask")
    result = run("predict", folder / "P1S1.zarr", *options, "--missing-levels", "mask")
    assert result.exit_code == 0, result.output
    assert np.isfinite(anndata.read_h5ad(tmp_path / "out.h5ad").X).any()


@pytest.mark.parametrize("name", ["out.zarr", "out.h5ad"])
def test_existing_outputs_are_refused_before_any_work(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_predict.tl.predict", lambda *_, **__: pytest.fail("there was work"))
    (tmp_path / name).write_text("mine")
    check_refused(run("predict", folder / "P1S1.zarr", "--out", tmp_path / name), "exists; choose another name")
    assert (tmp_path / name).read_text() == "mine"


def test_unfit_outputs_are_refused(folder: Path, tmp_path: Path, model: Path) -> None:
    section = folder / "P1S1.zarr"
    check_refused(run("predict", section, "--out", tmp_path / "out.csv", "--model", model), "must end in one of")
    check_refused(run("evaluate", section, "--out", tmp_path / "out.txt"), "must end in one of")
    nowhere = tmp_path / "none" / "out.zarr"
    check_refused(run("predict", section, "--out", nowhere, "--model", model), "Cannot write to the folder")
    check_refused(run("evaluate", section, "--out", tmp_path / "out.csv"), "Make one with st-predict predict")
    check_refused(run("predict", section, "--out", tmp_path / "out.zarr", "--model", "m3ost"), "'m3ost'")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_if_writing_fails(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: Any, path: Path, **__: Any) -> None:
        Path(path).mkdir()
        (Path(path) / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spatialdata.SpatialData.write", half)
    result = run("predict", folder / "P1S1.zarr", "--out", tmp_path / "out.zarr", "--model", model)
    check_refused(result, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = run("models")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines() if line.strip()]
    text = "\n".join(map(" ".join, lines))
    for name in stp.models.list_models():
        spec = stp.models.get_spec(name)
        described, counted = [line for line in lines if line[0] == name]
        assert described[1] == spec.family
        assert any(stp.models.link_to(spec.citation).startswith(word) for word in described[-2:])
        assert " ".join(counted).endswith(spec.license.partition(" (")[0])
        assert (counted[1] == "-") == spec.closed_form
        reads = spec.reads(spec.hparams)
        assert (counted[2] == "-") == (spec.closed_form or reads.kind != "crops" or reads.load_encoder is not None)
        assert counted[2] == "-" or float(counted[1]) > float(counted[2]) / 10 > 0
    assert "\nm2ost 7.04 4.22 896 px 224 at 1, 224 at 2, 224 at 4 MIT\n" in text
    released = {line[0] for line in lines if "@" in line[0]}
    assert released == {f"{weights.name}@{weights.version}" for weights in stp.checkpoints.list_weights()}
    assert max(map(len, result.output.splitlines())) <= 100


def test_download_of_an_unknown_name() -> None:
    check_refused(run("download", "m3ost"), "No released checkpoint 'm3ost'")


def test_traceback_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST_PREDICT_DEBUG", "1")
    result = run("download", "m3ost")
    assert isinstance(result.exception, KeyError)


@pytest.fixture
def layered(folder: Path, tmp_path: Path) -> list[Path]:
    """The sections with counts in a layer of one of two tables, and a gene called by its old name."""
    paths = []
    for name in ("P1S1", "P2S1"):
        sdata = spatialdata.read_zarr(folder / f"{name}.zarr")
        table = sdata.tables.pop("table")
        sdata.tables["cells"] = table.copy()
        table.layers["counts"] = table.X.copy()
        table.X = np.log1p(table.X)
        table.var_names = ["old", *table.var_names[1:]]
        sdata.tables["counted"] = table
        sdata.write(tmp_path / f"{name}.zarr")
        paths.append(tmp_path / f"{name}.zarr")
    return paths


@pytest.mark.slow
def test_counts_elsewhere(folder: Path, layered: list[Path], model: Path, tmp_path: Path) -> None:
    first = (folder / "panel.txt").read_text().split()[0]
    (tmp_path / "names.tsv").write_text(f"symbol\tprev_symbol\n{first}\told\n")
    place = ["--table-key", "counted", "--layer", "counts", "--aliases", tmp_path / "names.tsv"]
    plain, elsewhere = tmp_path / "plain", tmp_path / "elsewhere"
    for out, sections, options in ((plain, [folder / f"{p.name}" for p in layered], []), (elsewhere, layered, place)):
        out.mkdir()
        arguments = ["--panel", folder / "panel.txt", "--out", out / "model", *options]
        result = run("train", *sections, "--model", "mean", *arguments)
        assert result.exit_code == 0, result.output
        table = options[:2]
        predicted = out / "P2S1.zarr"
        assert run("predict", sections[1], "--model", model, "--out", predicted, *table).exit_code == 0
        scored = run("evaluate", predicted, "--train", sections[0], "--out", out / "scores.csv", *options)
        assert scored.exit_code == 0, scored.output
        calibrated = run("calibrate", predicted, "--out", out / "c.json", "--coverage", 0.5, *options)
        assert calibrated.exit_code == 0, calibrated.output
    assert (plain / "scores.csv").read_text() == (elsewhere / "scores.csv").read_text()
    quantiles = [json.loads((out / "c.json").read_text())["genes"] for out in (plain, elsewhere)]
    assert quantiles[0] == quantiles[1]
    assert stp.checkpoints.load(plain / "model" / "mean.safetensors")[0].state_dict().keys()


def test_errors_speak_of_files_and_options(folder: Path, layered: list[Path], model: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    panel = ["--panel", folder / "panel.txt", "--model", "mean", *out]
    check_refused(
        run("train", folder / "P2S1.zarr", layered[0], *panel),
        f"{layered[0]}: There are several tables in the file: ['cells', 'counted']. Choose one with --table-key",
    )
    check_refused(run("train", *layered, *panel, "--table-key", "counted"), "with --missing drop", "with --aliases.")
    check_refused(
        run(
            "predict",
            layered[0],
            "--model",
            model,
            "--out",
            tmp_path / "out.zarr",
            "--table-key",
            "spots",
            "--n-samples",
            1,
        ),
        "--n-samples must be at least 2, got 1",
    )
    (tmp_path / "broken.zarr").mkdir()
    check_refused(
        run("evaluate", tmp_path / "broken.zarr", "--out", tmp_path / "s.csv"),
        "broken.zarr",
        "not a readable SpatialData",
    )
    result = run("train", layered[0], *panel, "--table-key", "counted", "--device", "abacus")
    check_refused(result, "Device 'abacus' cannot be used here", "with --device auto")
    assert "config" not in result.stderr


def test_files_of_users_are_no_faults_of_ours(folder: Path, tmp_path: Path) -> None:
    section, out = folder / "P1S1.zarr", ["--out", tmp_path / "out", "--model", "mean"]
    check_refused(run("train", section, section, "--panel", 4, *out), "Files occur twice")
    (tmp_path / "latin.txt").write_bytes("GENE\xe9".encode("latin-1"))
    check_refused(run("train", section, "--panel", tmp_path / "latin.txt", *out), "latin.txt", "UTF-8")
    check_refused(run("train", section, "--panel", "\u00b2", *out), "No such file")
    check_refused(run("train", section, "--panel", 0, *out), "panel must be at least 1, got 0")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
@pytest.mark.parametrize("place", ["st_predict.tl.evaluate", "spatialdata.read_zarr"])
def test_too_little_memory_is_no_fault_of_ours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    result = run("evaluate", folder / "P1S1.zarr", "--out", tmp_path / "s.csv")
    check_refused(result, f"Out of memory ({error}).")
    assert "fault of" not in result.stderr


def test_a_fault_of_ours_says_how_to_report_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("st_predict.tl.evaluate", fail)
    arguments = ("evaluate", folder / "P1S1.zarr", "--out", tmp_path / "s.csv")
    check_refused(
        run(*arguments), "fault of st_predict", "ZeroDivisionError: division by zero", "report it", "ST_PREDICT_DEBUG=1"
    )
    monkeypatch.setenv("ST_PREDICT_DEBUG", "1")
    assert isinstance(run(*arguments).exception, ZeroDivisionError)


def test_spots_with_few_counts(folder: Path, model: Path, tmp_path: Path) -> None:
    predicted = tmp_path / "P2S1.zarr"
    assert run("predict", folder / "P2S1.zarr", "--model", model, "--out", predicted).exit_code == 0
    counts = spatialdata.read_zarr(predicted).tables["table"][:, (folder / "panel.txt").read_text().split()].X
    sums = np.asarray(counts.sum(axis=1)).ravel()
    least = int(np.median(sums)) + 1
    few = ["--min-counts", least]
    scores, quantiles = tmp_path / "scores.csv", tmp_path / "c.json"
    scored = run("evaluate", predicted, "--out", scores, *few)
    assert scored.exit_code == 0, scored.output
    assert set(pd.read_csv(scores)["n_spots"]) == {(sums >= least).sum()}
    calibrated = run("calibrate", predicted, "--out", quantiles, "--coverage", 0.5, *few)
    assert calibrated.exit_code == 0, calibrated.output
    assert f"on {(sums >= least).sum()} spots" in calibrated.output
    everything = ["--min-counts", int(sums.max()) + 1]
    check_refused(run("evaluate", predicted, "--out", tmp_path / "none.csv", *everything), "--min-counts")
    check_refused(run("calibrate", predicted, "--out", tmp_path / "none.json", *everything), "--min-counts")
    out = ["--panel", folder / "panel.txt", "--out", tmp_path / "model"]
    check_refused(run("train", predicted, "--model", "mean", *out, "--min-counts", 10**6), "--min-counts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P2S1.zarr", "c.json", "scores.csv"]


@pytest.fixture
def scored(folder: Path, model: Path, tmp_path: Path) -> Path:
    """The checkpoint with scores of its genes on another patient, of which two may be trusted."""
    network, about = stp.checkpoints.load(model)
    scores = stp.specs.Reliability(
        held_out="patient",
        sections=("P2S1",),
        patients=("P2",),
        n_spots=40,
        partial=(0.41, 0.32, None, -0.2),
        low=(0.2, 0.1, None, -0.3),
        high=(0.6, 0.5, None, -0.1),
        ceiling=(0.9, 0.8, None, 0.6),
    )
    stp.checkpoints.save(tmp_path / "scored.safetensors", network, replace(about, reliability=(scores,)))
    return tmp_path / "scored.safetensors"


def test_card_of_a_name_a_file_and_a_folder(folder: Path, model: Path, scored: Path, tmp_path: Path) -> None:
    genes = (folder / "panel.txt").read_text().split()
    result = run("card", scored)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for part in (
        "4 genes (symbols, organism: unknown)",
        "section P1S1 of patient P1",
        "Another patient: section P2S1 of patient P2, 40 spots. Partial correlation of 3 genes: mean 0.18.",
        "The 95 % interval is above 0 for 2 genes, about 1 of them by chance.",
        f"{genes[0]} 0.41 0.20 to 0.60 0.90",
        f"{genes[3]} -0.20 -0.30 to -0.10 0.60",
        "- Licence.",
        "- How well another section of a training patient is predicted.",
    ):
        assert part in text
    assert genes[2] not in text  # undefined
    assert "..." in run("card", scored, "--genes", 1).output
    of_folder = run("card", folder / "model").output
    assert "- Which genes to trust: no scores on held-out sections are in the card." in of_folder
    assert "250 genes (symbols, organism: Homo sapiens)" in run("card", "m2ost").output
    check_refused(run("card", tmp_path / "none.safetensors"), "Found no checkpoint")
    check_refused(run("card", "m3ost"), "No released checkpoint 'm3ost'")
    (tmp_path / "second.safetensors").write_bytes(model.read_bytes())
    check_refused(run("card", tmp_path), "has 2 .safetensors files: ['scored.safetensors', 'second.safetensors']")


def test_predict_writes_genes_to_trust(folder: Path, model: Path, scored: Path, tmp_path: Path) -> None:
    section, genes = folder / "P2S1.zarr", (folder / "panel.txt").read_text().split()
    common = ["--model", scored, "--device", "cpu"]
    result = run("predict", section, "--out", tmp_path / "a.h5ad", *common, "--reliable")
    assert result.exit_code == 0, result.output
    written = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert written.var_names.tolist() == genes[:2]
    assert written.var["partial"].tolist() == [0.41, 0.32]
    run("predict", section, "--out", tmp_path / "b.h5ad", *common, "--min-score", 0.4)
    assert anndata.read_h5ad(tmp_path / "b.h5ad").var_names.tolist() == genes[:1]
    out = ["--out", tmp_path / "c.h5ad"]
    check_refused(run("predict", section, *out, "--model", model, "--reliable"), "no scores", "--reliable")
    check_refused(
        run("predict", section, *out, *common, "--model", model, "--reliable"), "genes of an ensemble have no scores"
    )
    check_refused(
        run("predict", section, "--out", tmp_path / "c.zarr", *common, "--reliable"), "need an .h5ad as output"
    )
    check_refused(
        run("predict", section, *out, *common, "--held-out", "patient"), "--held-out only applies to --reliable"
    )
    check_refused(run("predict", section, *out, *common, "--reliable", "--held-out", "section"), "not for 'section'")
    check_refused(run("predict", section, *out, *common, "--min-score", 0.9), "None of 4 genes", "--min-score")
    check_refused(run("predict", section, *out, *common, "--reliable", "--held-out", "foo"), "not for 'foo'")
    with pytest.MonkeyPatch.context() as patch:  # all of this before any work
        patch.setattr(stp.tl, "predict", None)
        check_refused(
            run("predict", section, *out, *common, "--reliable", "--held-out", "section"), "not for 'section'"
        )
        check_refused(run("predict", section, *out, *common, "--min-score", 0.9), "None of 4 genes")
    assert not (tmp_path / "c.h5ad").exists()


def test_a_folder_does_not_hide_released_weights(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m2ost").mkdir()
    (tmp_path / "m2ost" / "mine.safetensors").write_bytes(model.read_bytes())
    assert "250 genes" in run("card", "m2ost").output
    assert "4 genes" in run("card", "./m2ost").output


@pytest.mark.parametrize(
    "notes",
    [
        {"sections": ["A"]},
        {"sections": 5},
        {"colours": {"mean": [1, 1, 1]}},
        {"sections": [{"n_spots": None, "patients": "P1"}]},
    ],
)
def test_a_card_with_notes_of_any_shape_is_shown(model: Path, tmp_path: Path, notes: dict[str, Any]) -> None:
    network, about = stp.checkpoints.load(model)
    stp.checkpoints.save(tmp_path / "a.safetensors", network, replace(about, training=notes))
    result = run("card", tmp_path / "a.safetensors")
    assert result.exit_code == 0, result.output
    assert ("of patient P1" in result.output) == (notes.get("sections") == [{"n_spots": None, "patients": "P1"}])


def test_download_of_all_from_a_mirror(loopback: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"some weights"
    entry = {"version": "1", "sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content), "embedded": False}
    names = [{**entry, "name": name, "file": f"{name}.safetensors", "summary": "Of a test."} for name in ("one", "two")]
    index = {"base_url": "http://127.0.0.1:9/closed", "weights": names}
    monkeypatch.setattr("st_predict.checkpoints._released._index", lambda: index)
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
    loopback.files = {f"/mirror/{name}.safetensors": content for name in ("one", "two")}
    result = run("download", "--all", "--mirror", f"{loopback.url}/mirror")
    assert result.exit_code == 0, result.output
    for name in ("one", "two"):
        assert (tmp_path / "weights" / f"{name}.safetensors").read_bytes() == content
        assert f"{name}@1: " in result.output
    check_refused(run("download"), "Name the checkpoints to download, or give --all", "['one@1', 'two@1']")
    check_refused(run("download", "one", "--all"), "Name the checkpoints to download, or give --all")


def test_version_and_short_help() -> None:
    assert run("--version").stdout == f"st-predict {version('st-predict')}\n"
    assert run("-h").stdout == run("--help").stdout
    assert "--out" in run("predict", "-h").stdout


@pytest.mark.slow
def test_reference_of_a_model() -> None:
    assert run("cite", "stnet").stdout.startswith("@article{He2020,\n")
    assert "10.1038/s41551" in run("models").stdout


@pytest.mark.slow
def test_report(folder: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_predict.pl._report_figures.DPI", 40)
    for name in ("P1S1", "P2S1"):
        result = run("predict", folder / f"{name}.zarr", "--out", tmp_path / f"{name}.zarr", "--model", model)
        assert result.exit_code == 0, result.output
    first, second = (tmp_path / f"{name}.zarr" for name in ("P1S1", "P2S1"))
    out = tmp_path / "one.html"
    result = run("report", first, "--out", out, "--n-genes", 1, "--train", second)
    assert result.exit_code == 0, result.output
    assert "<td>position</td>" in out.read_text(encoding="utf-8")
    check_refused(run("report", first, "--out", out), "exists")
    result = run("report", first, second, "--out", tmp_path / "all", "--n-genes", 1, "--no-score")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["P1S1.html", "P2S1.html", "index.html"]
