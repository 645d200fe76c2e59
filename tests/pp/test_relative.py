"""Targets relative to the depth of a spot and to the spots of training, against scanpy and arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from st_predict import get, pp
from st_predict.specs import CropSpec, LevelSpec, ModelCard, Reference, TargetSpec

RESIDUALS = TargetSpec(transform="pearson_residuals")


@pytest.fixture
def counts() -> np.ndarray:
    """Counts of 60 spots and 40 genes, of very different depth."""
    generator = np.random.default_rng(0)
    return generator.poisson(generator.gamma(1, 2, (60, 1)) * generator.gamma(0.5, 2, (1, 40))).astype(float) + (
        np.arange(40) == 0
    )


def test_pearson_residuals_are_those_of_scanpy(counts: np.ndarray) -> None:
    expected = sc.experimental.pp.normalize_pearson_residuals(AnnData(counts[:, counts.sum(0) > 0]), inplace=False)["X"]
    kept = counts[:, counts.sum(0) > 0]
    spec = pp.fit_target(kept, kept.sum(axis=1), RESIDUALS)
    np.testing.assert_allclose(pp.to_target(kept, spec), expected, atol=1e-5)
    assert spec.clip == pytest.approx(np.sqrt(60))
    assert spec.reference.median_total == np.median(kept.sum(axis=1))


def test_a_panel_is_relative_to_all_genes(counts: np.ndarray) -> None:
    totals, panel = counts.sum(axis=1), [3, 0, 7]
    spec = pp.fit_target(counts[:, panel], totals, RESIDUALS)
    whole = pp.fit_target(counts, totals, RESIDUALS)
    np.testing.assert_allclose(spec.reference.proportions, np.array(whole.reference.proportions)[panel])
    expected = pp.to_target(counts, whole)[:, panel]
    np.testing.assert_array_equal(pp.to_target(counts, spec, panel_index=panel), expected)
    np.testing.assert_array_equal(pp.to_target(counts[:, panel], spec, totals=totals), expected)
    table = AnnData(counts, var=pd.DataFrame(index=[f"g{i}" for i in range(40)]))
    target = pp.make_target(table, ["g3", "g0", "g7"], spec)
    np.testing.assert_array_equal(target.values, expected)
    assert spec.over == "all"


def test_the_section_that_is_predicted_does_not_matter(counts: np.ndarray) -> None:
    spec = pp.fit_target(counts, counts.sum(axis=1), RESIDUALS)
    np.testing.assert_array_equal(pp.to_target(counts[:5], spec), pp.to_target(counts, spec)[:5])


def test_other_transforms_by_hand(counts: np.ndarray) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts.sum(axis=0) / counts.sum()
    fold = pp.fit_target(counts, totals[:, 0], TargetSpec(transform="log_fold"))
    np.testing.assert_allclose(pp.to_target(counts, fold), np.log((counts + 1) / (totals * shares + 1)), atol=1e-6)
    ten = TargetSpec(transform="log10_total", total=1e4)
    np.testing.assert_allclose(pp.to_target(counts, ten), np.log10(1 + 1e4 * counts / totals), atol=1e-6)
    adata = AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(pp.to_target(counts, TargetSpec(transform="log1p_10k")), adata.X, atol=1e-5)


@given(st.sampled_from(["pearson_residuals", "log_fold", "log1p_10k", "log10_total"]), st.integers(0, 5))
def test_counts_come_back(transform: str, seed: int) -> None:
    counts = np.random.default_rng(seed).poisson(5, (20, 6)).astype(float) + 1
    totals = counts.sum(axis=1)
    spec = pp.fit_target(counts, totals, replace(TargetSpec(transform=transform), clip=None))
    if transform == "pearson_residuals":
        spec = replace(spec, clip=100.0)
    np.testing.assert_allclose(pp.from_target(pp.to_target(counts, spec), spec, totals), counts, atol=1e-3)


def test_rates_at_the_median_total(counts: np.ndarray) -> None:
    totals = counts.sum(axis=1)
    spec = pp.fit_target(counts, totals, RESIDUALS)
    shares, median = np.array(spec.reference.proportions), spec.reference.median_total
    # a residual of 0 is the share of training
    np.testing.assert_allclose(pp.to_log1p_10k(np.zeros((1, 40)), spec)[0], np.log1p(1e4 * shares), rtol=1e-5)
    mean = median * shares
    expected = np.log1p(1e4 * np.maximum(mean + 2 * np.sqrt(mean + mean**2 / 100), 0) / median)
    np.testing.assert_allclose(pp.to_log1p_10k(np.full((1, 40), 2.0), spec)[0], expected, rtol=1e-5)
    assert (pp.to_log1p_10k(np.full((1, 40), -50.0), spec) == 0).all()
    with pytest.raises(ValueError, match="cannot be turned into rates"):
        pp.to_log1p_10k(np.zeros((1, 40)), TargetSpec())


def test_what_training_has_to_set_is_asked_for(counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"lacks statistics of training spots.*fit_target"):
        pp.to_target(counts, RESIDUALS)
    spec = pp.fit_target(counts, counts.sum(axis=1), RESIDUALS)
    with pytest.raises(ValueError, match="proportions of 40 genes, for a panel of 3"):
        pp.to_target(counts[:, :3], spec, totals=counts.sum(axis=1))
    with pytest.raises(ValueError, match=r"Only \['pearson_residuals', 'log_fold'\]"):
        TargetSpec(reference=spec.reference)
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        Reference(proportions=(1.5,), median_total=1)


def test_minmax_of_a_relative_target_is_that_of_training(counts: np.ndarray) -> None:
    totals = counts.sum(axis=1)
    spec = pp.fit_target(counts, totals, TargetSpec(transform="log_fold", scale="minmax"))
    values = pp.to_target(counts, spec, totals=totals)
    varies = np.ptp(values, axis=0) > 0
    np.testing.assert_allclose(values[:, varies].min(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(values[:, varies].max(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize(("min_counts", "left"), [(0, 3), (1, 2), (5, 1)])
def test_spots_with_few_counts_of_the_panel(caplog: pytest.LogCaptureFixture, min_counts: int, left: int) -> None:
    table = AnnData(np.array([[0.0, 9], [2, 9], [7, 9]]), var=pd.DataFrame(index=["a", "b"]))
    target = pp.make_target(table, ["a"], TargetSpec(transform="counts", over="all"), min_counts=min_counts)
    assert len(target) == left
    assert ("More than half" in caplog.text) == (left == 1)
    assert ("min_counts=5" in caplog.text) == (left == 1)


# cards and results


def card_of(counts: np.ndarray, spec: TargetSpec) -> ModelCard:
    genes = tuple(f"g{i}" for i in range(counts.shape[1]))
    return ModelCard(model="mean", genes=genes, crop=CropSpec(levels=(LevelSpec(size=8),)), target=spec)


def test_cards_keep_the_statistics(counts: np.ndarray) -> None:
    card = card_of(counts, pp.fit_target(counts, counts.sum(axis=1), RESIDUALS))
    again = ModelCard.from_json(card.to_json())
    assert again == card
    assert again.target.only([2, 0]).reference.proportions == tuple(
        card.target.reference.proportions[i] for i in (2, 0)
    )
    # of other units, the text has nothing new
    plain = card_of(counts, TargetSpec())
    assert not {"theta", "clip", "reference"} & set(plain.to_json().split('"'))
    with pytest.raises(ValueError, match="proportions of the target must be one per gene, got 40 for 2 genes"):
        replace(card, genes=("a", "b"))


def predicted(counts: np.ndarray, spec: TargetSpec) -> tuple[AnnData, np.ndarray]:
    values = np.random.default_rng(1).normal(size=counts.shape).astype(np.float32)
    card = card_of(counts, spec)
    table = AnnData(counts.copy(), var=pd.DataFrame(index=card.genes))
    table.obsm["pred_mean"], table.obsm["pred_mean_std"] = values, np.full(counts.shape, 0.1, np.float32)
    record = {"card": card.to_json(), "genes": np.array(card.genes), "version": "0", "derived": '["pred_mean_std"]'}
    table.uns["st_predict"] = {"pred_mean": record}
    return table, values


def test_predictions_are_given_as_expression(counts: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    spec = pp.fit_target(counts, counts.sum(axis=1), RESIDUALS)
    table, values = predicted(counts, spec)
    caplog.set_level("INFO", logger="st_predict")
    result = get.prediction(table)
    expected = pp.to_log1p_10k(values, spec)
    np.testing.assert_array_equal(result.X, expected)
    assert result.uns["st_predict"]["pred_mean"]["units"] == "log1p_10k"
    assert "units='model'" in caplog.text
    # to first order, a small step in the units of the network
    step = pp.to_log1p_10k(values + 0.005, spec) - pp.to_log1p_10k(values - 0.005, spec)
    away = result.X > 0.5  # at a rate of 0 the curve has a kink
    assert away.mean() > 0.5
    np.testing.assert_allclose(result.layers["std"][away], 10 * step[away], rtol=0.05, atol=0.02)
    np.testing.assert_array_equal(get.prediction(table, units="model").X, values)
    np.testing.assert_array_equal(get.frame(table, units="model").to_numpy(), values)
    np.testing.assert_array_equal(table.obsm["pred_mean"], values)


def test_units_that_cannot_be_had_are_refused(counts: np.ndarray) -> None:
    table, values = predicted(counts, TargetSpec())
    np.testing.assert_array_equal(get.prediction(table).X, values)
    with pytest.raises(
        ValueError, match=r"cannot be converted to 'log1p_10k': its units are ln\(1 \+.*units=\"model\""
    ):
        get.prediction(table, units="log1p_10k")
    with pytest.raises(ValueError, match="units must be 'log1p_10k' or 'model'"):
        get.prediction(table, units="cpm")


def test_totals_over_other_genes_are_noticed(counts: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    panel = list(range(25))
    spec = pp.fit_target(
        counts[:, panel], counts.sum(axis=1) * 4, RESIDUALS
    )  # three quarters of the counts are elsewhere
    names = pd.DataFrame(index=[f"g{i}" for i in range(40)])
    pp.make_target(AnnData(counts, var=names), list(names.index[:25]), spec)
    assert "use tables with the same genes" in caplog.text
    caplog.clear()
    whole = AnnData(np.column_stack([counts, 3 * counts.sum(axis=1)]), var=pd.DataFrame(index=[*names.index, "rest"]))
    target = pp.make_target(whole, list(names.index[:25]), spec)
    assert not caplog.text
    np.testing.assert_array_equal(target.counts, counts[:, panel])
    np.testing.assert_array_equal(target.table_totals, 4 * counts.sum(axis=1))
    # single genes differ between patients
    pp.to_target(counts[:, [3]], pp.fit_target(counts[:, [3]], counts.sum(axis=1) * 9, RESIDUALS), totals=counts.sum(1))
    assert not caplog.text
