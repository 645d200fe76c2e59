"""Panels of few genes, whose sum says nothing of depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from st_predict import pl, pp, tl
from st_predict._errors import InvalidValueError
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

COUNTS = np.array([[3, 0, 5], [1, 2, 0], [7, 7, 17]])


@pytest.mark.parametrize("transform", ["log1p_total", "log10_total", "log_proportion"])
def test_a_target_that_is_a_constant_is_refused(transform: str) -> None:
    """Such as ln(1 + 1e6 * c / c)."""
    with pytest.raises(
        InvalidValueError,
        match=r"the same in every spot, as the panel has one gene.*over='all', or the transform 'log1p', in spec=",
    ):
        pp.to_target(COUNTS, TargetSpec(transform=transform), panel_index=[0])
    whole = pp.to_target(COUNTS, TargetSpec(transform=transform, over="all"), panel_index=[0])
    assert np.unique(whole).size == 3
    with pytest.raises(InvalidValueError, match="as the table has one gene"):
        pp.to_target(COUNTS[:, :1], TargetSpec(transform=transform, over="all"))


@pytest.mark.parametrize("transform", ["log1p", "counts"])
def test_units_of_single_genes_may_have_one(transform: str) -> None:
    assert np.unique(pp.to_target(COUNTS, TargetSpec(transform=transform), panel_index=[0])).size == 3


def test_sums_that_are_given_are_not_of_the_panel() -> None:
    given = pp.to_target(COUNTS, TargetSpec(), panel_index=[0], totals=COUNTS.sum(axis=1))
    np.testing.assert_allclose(given[:, 0], np.log1p(1e6 * COUNTS[:, 0] / COUNTS.sum(axis=1)), rtol=1e-6)


@pytest.mark.parametrize("model", ["mean", "ridge"])
def test_training_on_one_gene_names_the_other_targets(measured: SpatialData, tmp_path: Path, model: str) -> None:
    with pytest.raises(InvalidValueError, match=r'Name more genes with panel=.*preset="recommended"'):
        tl.train(measured, model, panel=["a"], out=tmp_path / "m", preset="paper")
    assert not (tmp_path / "m").exists()


def test_a_few_genes_get_a_warning(
    measured: SpatialData, tmp_path: Path, caplog: pytest.LogCaptureFixture, quick: Callable
) -> None:
    tl.train(measured, "mean", panel=["a", "b"], out=tmp_path / "m", preset="paper", config=quick())
    assert "relative to a sum over 2 genes of the panel" in caplog.text
    caplog.clear()
    tl.train(measured, "mean", panel=["a", "b"], out=tmp_path / "n", config=quick())
    assert "relative to a sum over 4 genes of the table" in caplog.text


def test_a_network_of_one_gene_says_that_it_predicts_a_constant(
    measured: SpatialData, checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    tl.predict(measured, checkpoint(("a",)))
    assert "The prediction of a is a constant" in caplog.text
    caplog.clear()
    tl.predict(measured, checkpoint(("a", "b")), key_added="two")
    assert "constant" not in caplog.text
    with pytest.raises(InvalidValueError, match="the same in every spot"):
        tl.evaluate(measured, key="pred_m2ost")


def test_a_constant_is_drawn_without_what_was_measured(
    measured: SpatialData, checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    tl.predict(measured, checkpoint(("a",)))
    assert len(pl.spatial(measured, "a", show=False).ravel()) == 2  # tissue and prediction
    assert "are constant for a single gene: only the prediction is drawn" in caplog.text
