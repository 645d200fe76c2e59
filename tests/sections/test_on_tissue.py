"""Spots beside the tissue: neither learned from nor scored, unless they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from st_predict import pp, tl
from st_predict._errors import InvalidValueError
from st_predict._on_tissue import on_tissue
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

OFF = [1, 4, 7]


@pytest.fixture
def flagged(other: Callable[[str], SpatialData]) -> SpatialData:
    """A section whose spots 1, 4 and 7 lie beside the tissue and have absurd counts."""
    sdata = other("P2")
    table = sdata.tables["table"]
    table.obs["in_tissue"] = 1
    table.obs.iloc[OFF, table.obs.columns.get_loc("in_tissue")] = 0
    table.X[OFF] = [900, 1, 1, 1]
    return sdata


def without(sdata: SpatialData) -> SpatialData:
    """The same section, of whose table the other spots were removed."""
    copy = type(sdata)(images=dict(sdata.images), shapes=dict(sdata.shapes))
    table = sdata.tables["table"][np.delete(np.arange(12), OFF)].copy()
    del table.obs["in_tissue"]
    copy.tables["table"] = table
    return copy


@pytest.mark.parametrize(
    "flags",
    [
        [1, 0, 1],
        [True, False, True],
        [1.0, 0.0, 1.0],
        ["1", "0", "1"],
        ["True", "False", "True"],
        pd.Categorical([1, 0, 1]),
        np.array([1, 0, 1], np.uint8),
        pd.array([1, 0, 1], dtype="Int64"),
    ],
)
def test_flags_of_all_types(flags: object, caplog: pytest.LogCaptureFixture) -> None:
    obs = pd.DataFrame({"in_tissue": flags}, index=["a", "b", "c"])
    assert on_tissue(obs, only=True, label="S1").tolist() == [True, False, True]
    assert "S1: 1 of 3 spots are off the tissue (in_tissue is 0)" in caplog.text
    assert on_tissue(obs, only=False).all()
    assert on_tissue(obs[[]], only=True).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([1, 2, 0], "must be 0 or 1 for every spot; 1 of 3 are not, the first is '2' of 'b'"),
        ([1, np.nan, 0], "the first is 'nan' of 'b'"),
        (["yes", "no", "no"], "3 of 3 are not, the first is 'yes' of 'a'"),
        ([0, 0, 0], r"All 3 spots have \.obs\['in_tissue'\] 0"),
    ],
)
def test_flags_that_say_nothing_are_refused(flags: list, message: str) -> None:
    obs = pd.DataFrame({"in_tissue": flags}, index=["a", "b", "c"])
    with pytest.raises(InvalidValueError, match=message):
        on_tissue(obs, only=True)


def test_the_way_out_is_an_argument(flagged: SpatialData, tmp_path: Path) -> None:
    flagged["table"].obs["in_tissue"] = "no"
    with pytest.raises(InvalidValueError, match="tissue_only=False"):
        tl.train(flagged, "mean", panel=["a", "b"], out=tmp_path / "m")


@pytest.mark.parametrize("panel", [["a", "b", "c"], 3])
def test_training_and_scores_are_those_without_these_spots(
    flagged: SpatialData, measured: SpatialData, tmp_path: Path, panel: object
) -> None:
    cards, scores = [], []
    for name, sdata in (("all", flagged), ("less", without(flagged))):
        result = tl.train(sdata, "mean", panel=panel, out=tmp_path / name, preset="paper", min_counts=0)
        cards.append(result.card)
        assert result.card.training["sections"][0]["n_spots"] == 9
        tl.predict(sdata, result.checkpoint)
        tl.predict(measured, result.checkpoint, key_added=name)
        scores.append(tl.evaluate({name: sdata}).summary)
    assert cards[0].genes == cards[1].genes
    np.testing.assert_array_equal(measured["table"].obsm["all"], measured["table"].obsm["less"])
    pd.testing.assert_frame_equal(scores[0], scores[1])
    kept = tl.train(flagged, "mean", panel=["a", "b"], out=tmp_path / "kept", tissue_only=False)
    assert kept.card.training["sections"][0]["n_spots"] == 12


def test_targets_and_calibrations_leave_them_out(flagged: SpatialData, measured: SpatialData, tmp_path: Path) -> None:
    table = flagged["table"]
    target = pp.make_target(table, ["a", "b"], TargetSpec())
    np.testing.assert_array_equal(target.rows, np.delete(np.arange(12), OFF))
    assert target.dropped == ()
    assert len(pp.make_target(table, ["a", "b"], TargetSpec(), tissue_only=False)) == 12
    result = tl.train(measured, "mean", panel=["a", "b"], out=tmp_path / "m", preset="paper")
    tl.predict(flagged, result.checkpoint)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(table.obsm["pred_mean"]).all(axis=1)), OFF)
    tl.predict(flagged, result.checkpoint, tissue_only=False)
    assert np.isfinite(table.obsm["pred_mean"]).all()
    assert tl.calibrate(flagged, coverage=0.5, min_counts=0).n_spots == 9
    assert tl.calibrate(flagged, coverage=0.5, min_counts=0, tissue_only=False).n_spots == 12


@pytest.mark.parametrize("method", ["mean", "m2ost", "hvg", "spatial"])
def test_panels_are_chosen_without_them(flagged: SpatialData, method: str) -> None:
    options = {"n_genes": 2, "method": method} | ({"fdr": 1} if method == "spatial" else {})
    flagged["table"].X[OFF] = [0, 1, 900, 800]
    assert pp.select_panel([flagged], **options) == pp.select_panel([without(flagged)], **options)
    if method == "mean":
        assert pp.select_panel([flagged], **options, tissue_only=False) == ["c", "d"]


def test_sections_without_a_value_count_as_without_the_column() -> None:
    """A table of two sections, of which one has the column."""
    obs = pd.DataFrame({"in_tissue": [1, 0, np.nan, np.nan], "region": list("aabb")})
    found = [on_tissue(obs[obs["region"] == name], only=True) for name in "ab"]
    np.testing.assert_array_equal(np.concatenate(found), [True, False, True, True])
    with pytest.raises(ValueError, match="must be 0 or 1 for every spot; 2 of 4 are not"):
        on_tissue(obs, only=True)
