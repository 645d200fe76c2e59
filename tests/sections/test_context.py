"""Counts of some spots help to predict the others, and those of the others are never read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import st_predict as stp
from st_predict import checkpoints
from st_predict._sections._context import read_context
from st_predict._where import Where
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

KEY = "pred_stpath"
HOW: dict[str, Any] = {"device": "cpu", "precision": "float32", "mpp": 0.5}


@pytest.fixture
def slide(measured: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpatialData:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    measured.tables["table"].obs["known"] = np.arange(12) < 4
    return measured


@pytest.fixture
def card() -> ModelCard:
    spec = get_spec("stpath")
    return ModelCard(
        model="stpath",
        genes=tuple("abcd"),
        crop=spec.crop_for(spec.tiny),
        pixels=spec.pixels_for(spec.tiny),
        target=spec.target,
        hparams=dict(spec.tiny),
    )


@pytest.fixture
def path(card: ModelCard, tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        network = checkpoints.build(card)
    checkpoints.save(tmp_path / "tiny.safetensors", network, card)
    return tmp_path / "tiny.safetensors"


def predict(slide: SpatialData, path: Path, **options: Any) -> np.ndarray:
    stp.tl.predict(slide, path, **HOW, **options)
    return slide.tables["table"].obsm[KEY].copy()


def test_it_is_read_of_the_spots_that_may_be_read_alone(slide: SpatialData, path: Path) -> None:
    table = slide.tables["table"]
    without, with_context = predict(slide, path), predict(slide, path, context="known")
    assert np.abs(with_context - without)[4:].min(axis=1).max() > 0
    table.X[4:] += 50  # what is not to be read
    np.testing.assert_array_equal(predict(slide, path, context="known"), with_context)
    table.X[0] += 50
    assert (predict(slide, path, context="known") != with_context).any()
    assert json.loads(table.uns["st_predict"][KEY]["params"])["context"] == {
        "column": "known",
        "spots": table.obs_names[:4].tolist(),
    }


def test_evaluation_leaves_these_spots_out(slide: SpatialData, path: Path) -> None:
    predict(slide, path, context="known")
    slide.tables["table"].obs["known"] = np.arange(12) > 10  # what was read is not what the column says now
    summary = stp.tl.evaluate(slide, key=KEY).summary
    assert summary["n_spots"].unique().tolist() == [8]


def test_counts_are_in_the_order_of_the_panel_and_nan_elsewhere(slide: SpatialData) -> None:
    table = slide.tables["table"]
    genes = ("d", "missing", "a")
    card = ModelCard(model="stpath", genes=genes, crop=get_spec("stpath").crop, hparams={})
    context = read_context(slide, "known", [card], Where(), table_key="table")
    assert context is not None
    assert context.spots == tuple(table.obs_names[:4])
    counts = context.counts
    np.testing.assert_array_equal(counts[:4, [0, 2]], table.X[:4, [3, 0]])
    np.testing.assert_array_equal(counts[:4, 1], 0)
    assert np.isnan(counts[4:]).all()


@pytest.mark.parametrize(
    ("column", "values", "error", "message"),
    [
        ("there is none", None, KeyError, "No column 'there is none'"),
        ("x", np.arange(12.0), ValueError, r"must be true or false .* float64\. Convert it"),
        ("x", np.zeros(12, bool), ValueError, "is false for all spots"),
    ],
)
def test_unfit_columns(slide: SpatialData, path: Path, column: str, values: Any, error: Any, message: str) -> None:
    if values is not None:
        slide.tables["table"].obs[column] = values
    with pytest.raises(error, match=message):
        predict(slide, path, context=column)


def test_a_slide_without_a_table_has_no_context(slide: SpatialData, path: Path) -> None:
    del slide.tables["table"]
    with pytest.raises(ValueError, match=r"'known' is not found: the slide has no table\. Leave out context="):
        stp.tl.predict(slide, path, context="known", **HOW)


def test_a_network_that_reads_none_is_named_beside_those_that_do(slide: SpatialData, card: ModelCard) -> None:
    m2ost = ModelCard(model="m2ost", genes=card.genes, crop=get_spec("m2ost").crop)
    with pytest.raises(ValueError, match=r"\['m2ost'\] cannot read counts .*'stpath'"):
        read_context(slide, "known", [card, m2ost], Where(), table_key="table")
