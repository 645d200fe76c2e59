"""Training on slides without counts, through tl.train."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from spatialdata.models import Image2DModel

import st_predict as stp
from st_predict import checkpoints
from st_predict.models import get_spec
from st_predict.tl import LeakageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

GENES = ("a", "b", "c", "d")
QUICK = {"epochs": 2, "batch_size": 6, "lr": 3e-3, "device": "cpu", "precision": "float32"}
OPTIONS = {"panel": GENES, "hparams": dict(get_spec("m2ost").tiny), "config": QUICK}


@pytest.fixture
def bare(measured: SpatialData) -> SpatialData:
    """A slide with spots and no counts, mirrored."""
    pixels = measured.images["he"]["scale0"]["image"].data[:, ::-1, ::-1]
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=[2, 2], c_coords=["r", "g", "b"])
    return type(measured)(images={"he": image}, shapes={"spots": measured.shapes["spots"]})


@pytest.mark.slow
def test_rounds(measured: SpatialData, other: Callable[..., SpatialData], bare: SpatialData, tmp_path: Path) -> None:
    held_out = other("P2")
    result = stp.tl.train(measured, out=tmp_path / "out", validation=[held_out], unlabelled=bare, rounds=3, **OPTIONS)
    assert result.history[["round", "epoch"]].to_numpy().tolist() == [[r, e] for r in range(4) for e in range(2)]
    _, card = checkpoints.load(result.checkpoint)
    assert card.training["rounds"] == 3
    assert [section["n_spots"] for section in card.training["unlabelled"]] == [12]
    best = result.history.loc[result.history["val_pearson"].idxmax()]
    assert card.training["best"] == pytest.approx(dict(best))
    stp.tl.predict(held_out, result.checkpoint, device="cpu", precision="float32")
    scored = stp.tl.evaluate(held_out).summary.set_index("predictor")
    assert scored.loc["pred_m2ost", "gene_pearson"] == pytest.approx(best["val_pearson"], abs=1e-4)


def test_without_rounds_nothing_changes(measured: SpatialData, bare: SpatialData, tmp_path: Path) -> None:
    alone = stp.tl.train(measured, out=tmp_path / "alone", **OPTIONS)
    both = stp.tl.train(measured, out=tmp_path / "both", unlabelled=bare, rounds=1, **OPTIONS)
    first = both.history[both.history["round"] == 0]
    np.testing.assert_array_equal(first["train_loss"], alone.history["train_loss"])
    assert both.history["train_loss"].iloc[-1] != alone.history["train_loss"].iloc[-1]


def test_rounds_that_ended_are_not_gone_on_with(measured: SpatialData, bare: SpatialData, tmp_path: Path) -> None:
    options = {**OPTIONS, "out": tmp_path / "out", "unlabelled": bare, "rounds": 1}
    stp.tl.train(measured, **options)
    with pytest.raises(ValueError, match=r"started with another config\.epochs"):
        stp.tl.train(measured, **{**options, "config": {**QUICK, "epochs": 3}}, resume=True)


def test_positions_may_be_an_array(measured: SpatialData, tmp_path: Path) -> None:
    hparams = {**get_spec("bleep").tiny, "encoded": np.array([2, 0])}
    result = stp.tl.train(measured, "bleep", panel=GENES, out=tmp_path / "out", hparams=hparams, config=QUICK)
    network, card = checkpoints.load(result.checkpoint, hparams={"mode": "simple"})
    assert card.hparams["encoded"] == [2, 0]
    assert network.config.mode == "simple"


def test_validation_is_never_labelled(measured: SpatialData, other: Callable[..., SpatialData], tmp_path: Path) -> None:
    held_out = other("P2")
    with pytest.raises(LeakageError):
        stp.tl.train(measured, out=tmp_path / "out", validation=[held_out], unlabelled=[held_out], **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_training_sections_are_not_labelled_again(measured: SpatialData, tmp_path: Path) -> None:
    with pytest.raises(LeakageError, match=r"in training and to be labelled: \[\('P1', 'S1'\)\]"):
        stp.tl.train(measured, out=tmp_path / "out", unlabelled=[measured], **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_not_for_a_solution_in_closed_form(measured: SpatialData, bare: SpatialData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not for 'mean'"):
        stp.tl.train(measured, "mean", panel=GENES, out=tmp_path / "out", unlabelled=bare)
    assert not (tmp_path / "out").exists()
