"""Scores against scipy and arithmetic by hand; baselines against numpy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.spatial import KDTree
from scipy.stats import pearsonr, spearmanr, wilcoxon
from shapely import Point
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict import metrics
from st_predict.specs import CropSpec, LevelSpec, ModelCard, Reference, TargetSpec
from st_predict.tl import LeakageError
from st_predict.tl import _beside as beside

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

    Make = Callable[..., SpatialData]

KEY = "pred_m2ost"


def target_of(sdata: SpatialData) -> np.ndarray:
    counts = np.asarray(sdata.tables["table"].X, dtype=float)
    return np.log1p(1e6 * counts / counts.sum(axis=1, keepdims=True))


def set_prediction(sdata: SpatialData, values: np.ndarray) -> None:
    sdata.tables["table"].obsm[KEY] = values.astype(np.float32)


@pytest.fixture
def predicted(measured: SpatialData, checkpoint: Callable[..., Path]) -> SpatialData:
    stp.tl.predict(measured, checkpoint())
    noise = np.random.default_rng(5).normal(size=(12, 4))
    set_prediction(measured, target_of(measured) + noise)
    return measured


def test_numbers(predicted: SpatialData) -> None:
    evaluation = stp.tl.evaluate(predicted)
    guess, truth = predicted.tables["table"].obsm[KEY].astype(float), target_of(predicted)
    pearson = [pearsonr(guess[:, i], truth[:, i]).statistic for i in range(4)]
    spearman = [spearmanr(guess[:, i], truth[:, i]).statistic for i in range(4)]
    spots = [pearsonr(guess[i], truth[i]).statistic for i in range(12)]
    row = evaluation.summary.set_index("predictor").loc[KEY]
    expected = {"n_spots": 12, "gene_pearson": np.mean(pearson), "gene_spearman": np.mean(spearman)}
    assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-5)
    assert row["n_undefined_genes"] == 0
    paper = evaluation.paper.set_index("predictor").loc[KEY]
    expected = {
        "n_spots": 12,
        "gene_pearson": np.mean(pearson),
        "spot_pearson": np.mean(spots),
        "n_undefined_spots": 0,
        "spot_rmse": np.mean([np.sqrt(((guess[i] - truth[i]) ** 2).mean()) for i in range(12)]),
        "mae": np.abs(guess - truth).mean(),
    }
    assert paper.drop("section").to_dict() == pytest.approx(expected, rel=1e-5)
    genes = evaluation.genes.query("predictor == @KEY", local_dict={"KEY": KEY})
    assert genes["gene"].tolist() == list("abcd")
    np.testing.assert_allclose(genes["pearson"], pearson, rtol=1e-5)
    np.testing.assert_allclose(genes["spearman"], spearman, rtol=1e-5)
    var = predicted.tables["table"].var
    np.testing.assert_allclose(var[f"{KEY}_pearson"], pearson, rtol=1e-5)
    np.testing.assert_allclose(var[f"{KEY}_spearman"], spearman, rtol=1e-5)


def test_definitions_say_what_everything_is(predicted: SpatialData, other: Make) -> None:
    evaluation = stp.tl.evaluate(predicted, train=other("P2"))
    for name in [*evaluation.summary["predictor"], *metrics.DEFINITIONS]:
        assert len(evaluation.definitions[name]) > 20
    assert "ln(1 + 1,000,000 * count / sum over panel genes)" in evaluation.definitions[KEY]
    scores = {*evaluation.summary, *evaluation.paper} - {"section", "predictor", "n_spots"}
    assert scores <= set(evaluation.definitions)


def test_without_training_sections_only_the_mean_of_the_section(predicted: SpatialData) -> None:
    summary = stp.tl.evaluate(predicted).summary
    assert summary["predictor"].tolist() == [KEY, "log_total", "section_mean", "neighbours", "ceiling"]


def tell_mpp(sdata: SpatialData, mpp: float) -> None:
    """Say how wide the pixels of the image are; sections that share the image know it too."""
    set_transformation(sdata.images["he"], Scale([mpp, mpp], axes=("x", "y")), "um")


def test_baselines(predicted: SpatialData, other: Make) -> None:
    tell_mpp(predicted, 1.0)
    second, third = other("P2", seed=1), other("P1", "S3", seed=2)
    evaluation = stp.tl.evaluate(predicted, train=[second, third])
    summary, paper = (table.set_index("predictor") for table in (evaluation.summary, evaluation.paper))
    truth = target_of(predicted)
    means = {
        "global_mean": np.concatenate([target_of(second), target_of(third)]).mean(axis=0),
        "patient_mean": target_of(third).mean(axis=0),
        "section_mean": truth.mean(axis=0),
    }
    for name, mean in means.items():
        errors = np.sqrt(((truth - mean) ** 2).mean(axis=1)).mean()
        assert paper.loc[name, "spot_rmse"] == pytest.approx(errors, rel=1e-5)
        assert paper.loc[name, "mae"] == pytest.approx(np.abs(truth - mean).mean(), rel=1e-5)
    assert set(summary.index) == {KEY, *means, "ridge", "log_total", "position", "neighbours", "ceiling"}


def test_only_the_named_baselines_are_fitted(
    predicted: SpatialData, other: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stp.tl.evaluate(predicted, train=other("P2")).summary.set_index("predictor")
    monkeypatch.setattr(beside, "_unfit_for_ridge", lambda _: pytest.fail("reads images"))
    some = stp.tl.evaluate(predicted, train=other("P2"), baselines=["position"]).summary.set_index("predictor")
    assert list(some.index) == ["pred_m2ost", "log_total", "section_mean", "neighbours", "position", "ceiling"]
    pd.testing.assert_frame_equal(some, whole.loc[some.index])
    none = stp.tl.evaluate(predicted, train=other("P2"), baselines=()).summary
    assert "position" not in set(none["predictor"])
    with pytest.raises(
        ValueError, match=r"baselines.*'global_mean', 'patient_mean', 'position' or 'ridge'.*got 'mean'"
    ):
        stp.tl.evaluate(predicted, train=other("P2"), baselines=["mean"])


def test_no_patient_mean_for_an_unknown_patient(predicted: SpatialData, other: Make) -> None:
    tell_mpp(predicted, 1.0)
    summary = stp.tl.evaluate(predicted, train=other("P2")).summary
    assert "patient_mean" not in summary["predictor"].tolist()
    assert {"global_mean", "ridge"} < set(summary["predictor"])


def test_constants_are_undefined_and_counted(predicted: SpatialData) -> None:
    values = predicted.tables["table"].obsm[KEY].copy()
    values[:, 1] = 3.0
    values[4] = 2.0
    values[4, 1] = 3.0
    values[7] = 3.0
    set_prediction(predicted, values)
    evaluation = stp.tl.evaluate(predicted)
    rows = evaluation.summary.set_index("predictor")
    assert rows.loc[KEY, "n_undefined_genes"] == 1
    assert evaluation.paper.set_index("predictor").loc[KEY, "n_undefined_spots"] == 1
    assert rows.loc["section_mean", "n_undefined_genes"] == 4
    assert np.isnan(rows.loc["section_mean", "gene_pearson"])
    truth = target_of(predicted)
    defined = [pearsonr(values[:, i], truth[:, i]).statistic for i in (0, 2, 3)]
    assert rows.loc[KEY, "gene_pearson"] == pytest.approx(np.mean(defined), rel=1e-5)
    assert predicted.tables["table"].var[f"{KEY}_pearson"].isna().tolist() == [False, True, False, False]


def test_ridge_finds_what_colours_tell(checkpoint: Callable[..., Path]) -> None:
    sections = stp.datasets.simulate(2, 1, n_genes=10, shape=(760, 760), mpp=1.9, seed=1).sections
    held_out, training = sections["P2S1"], sections["P1S1"]
    path = checkpoint(tuple(held_out.tables["table"].var_names), mpp=2.4)
    stp.tl.predict(held_out, path)
    summary = stp.tl.evaluate(held_out, train=training).summary.set_index("predictor")
    assert summary.loc["ridge", "gene_pearson"] > 0.2


def test_what_was_trained_on_is_not_scored(predicted: SpatialData, other: Make) -> None:
    with pytest.raises(LeakageError, match="in train and to be scored"):
        stp.tl.evaluate(predicted, train=[other("P2"), predicted])
    with pytest.raises(LeakageError, match="in train and to be scored"):
        stp.tl.evaluate(predicted, train=other("P1"))  # by patient and name, though another object


def test_sections_of_one_name_are_refused(predicted: SpatialData, other: Make, checkpoint: Callable[..., Path]) -> None:
    second = other("P2", "S1")
    stp.tl.predict(second, checkpoint())
    with pytest.raises(ValueError, match=r"Several sections are called \['S1'\]"):
        stp.tl.evaluate([predicted, second])
    assert predicted.tables["table"].var.empty  # refused before anything is written


def test_sections_stay_apart_and_in_order(predicted: SpatialData, other: Make, checkpoint: Callable[..., Path]) -> None:
    second = other("P2", "S2")
    stp.tl.predict(second, checkpoint())
    both = stp.tl.evaluate([second, predicted])
    assert both.summary["section"].unique().tolist() == ["S2", "S1"]
    alone = pd.concat([stp.tl.evaluate(s).summary for s in (second, predicted)], ignore_index=True)
    pd.testing.assert_frame_equal(both.summary, alone)


def test_sections_of_a_table(two_regions: SpatialData, checkpoint: Callable[..., Path]) -> None:
    images = {"spots": "he", "more": "mirrored"}
    stp.tl.predict(two_regions, checkpoint(), image_key=images)
    evaluation = stp.tl.evaluate(two_regions, image_key=images)
    table, truth = two_regions.tables["table"], target_of(two_regions)
    guess = table.obsm[KEY].astype(float)
    each = np.array([[pearsonr(guess[k::2, i], truth[k::2, i]).statistic for i in range(4)] for k in (0, 1)])
    rows = evaluation.summary.query("predictor == 'pred_m2ost'")
    assert rows["section"].tolist() == ["S1", "S9"]
    np.testing.assert_allclose(rows["gene_pearson"], each.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(table.var[f"{KEY}_pearson"], each.mean(axis=0), atol=1e-4)


def test_spots_without_prediction_or_counts_are_left_out(
    measured: SpatialData, other: Make, checkpoint: Callable[..., Path]
) -> None:
    training = other("P2")
    shapes = measured.shapes["spots"].copy()
    shapes.loc["s2", "geometry"] = Point(-40, 5)
    measured.shapes["spots"] = shapes
    stp.tl.predict(measured, checkpoint())
    table = measured.tables["table"]
    table.X[6] = 0
    table.obsm[KEY][9] = np.nan  # predicted from a smaller image, say
    evaluation = stp.tl.evaluate(measured, train=training)
    assert (evaluation.summary["n_spots"] == 9).all()
    kept = [i for i in range(12) if i not in {2, 6, 9}]
    guess, counts = table.obsm[KEY].astype(float)[kept], np.asarray(table.X, float)[kept]
    truth = np.log1p(1e6 * counts / counts.sum(axis=1, keepdims=True))
    expected = [pearsonr(guess[:, i], truth[:, i]).statistic for i in range(4)]
    np.testing.assert_allclose(table.var[f"{KEY}_pearson"], expected, atol=1e-4)
    table.obsm[KEY][:] = np.nan
    with pytest.raises(ValueError, match="No spot of section 'S1' has both counts and a prediction"):
        stp.tl.evaluate(measured)


def test_linked_table(
    measured: SpatialData, checkpoint: Callable[..., Path], link: Callable[[SpatialData, str], AnnData]
) -> None:
    old = measured.tables["table"]
    genes = [f"g{i}" for i in range(1002)]
    counts = np.random.default_rng(0).poisson(5, (12, 1002)).astype(np.float32)
    measured.tables["table"] = type(old)(counts, obs=old.obs, var=pd.DataFrame(index=genes), uns=dict(old.uns))
    stp.tl.predict(measured, checkpoint(tuple(genes[:1001])))
    guess = link(measured, KEY).X
    assert KEY not in measured.tables["table"].obsm
    evaluation = stp.tl.evaluate(measured)
    truth = np.log1p(1e6 * counts[:, :1001] / counts[:, :1001].sum(axis=1, keepdims=True))
    expected = [pearsonr(guess[:, i], truth[:, i]).statistic for i in range(1001)]
    assert evaluation.genes["pearson"][:1001].to_numpy() == pytest.approx(expected, abs=1e-3)
    var = measured.tables["table"].var
    assert var[f"{KEY}_pearson"].isna().tolist() == [False] * 1001 + [True]


def test_a_dataframe_of_an_earlier_version(predicted: SpatialData) -> None:
    expected = stp.tl.evaluate(predicted)
    table = predicted.tables["table"]
    table.obsm[KEY] = stp.get.frame(predicted)
    del table.uns["st_predict"][KEY]["genes"]
    evaluation = stp.tl.evaluate(predicted)
    pd.testing.assert_frame_equal(evaluation.summary, expected.summary)
    pd.testing.assert_frame_equal(evaluation.genes, expected.genes)


def test_genes_known_by_another_column(predicted: SpatialData) -> None:
    scores = stp.tl.evaluate(predicted).genes["pearson"][:4]
    table = predicted.tables["table"]
    table.var["symbol"] = list("abcd")
    table.var_names = [f"ENSG0000000000{i}" for i in range(4)]
    stp.tl.evaluate(predicted)
    np.testing.assert_allclose(table.var[f"{KEY}_pearson"], scores)


@pytest.mark.parametrize(
    ("mpp", "reason"),
    [(None, "mpp of the image of .* is unknown"), (3.0, "has 3 um/px, and colours are read at 2 um/px")],
)
def test_resolution_matters_only_for_ridge(
    measured: SpatialData,
    other: Make,
    checkpoint: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    mpp: float | None,
    reason: str,
) -> None:
    stp.tl.predict(measured, checkpoint(mpp=1.0), mpp=0.5)
    assert "ridge" not in stp.tl.evaluate(measured).summary["predictor"].tolist()
    if mpp is not None:
        tell_mpp(measured, mpp)
    summary = stp.tl.evaluate(measured, train=other("P2")).summary
    assert "global_mean" in summary["predictor"].tolist()
    assert "ridge" not in summary["predictor"].tolist()
    (message,) = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert re.search(f"'ridge' is left out: .*({reason})", message)


def test_baselines_are_the_models_of_that_name(tmp_path: Path) -> None:
    sections = stp.datasets.simulate(3, 1, n_genes=6, shape=(760, 760), mpp=1.9, seed=3).sections
    *training, held_out = sections.values()
    genes = list(held_out.tables["table"].var_names)
    for model, name in (("ridge", "ridge"), ("mean", "global_mean")):
        result = stp.tl.train(training, model, panel=genes, out=tmp_path / model, config={"device": "cpu"})
        stp.tl.predict(held_out, result.checkpoint, device="cpu", precision="float32")
        evaluation = stp.tl.evaluate(held_out, key=f"pred_{model}", train=training)
        own, baseline = (evaluation.summary.query("predictor == @which") for which in (f"pred_{model}", name))
        pd.testing.assert_frame_equal(
            own.drop(columns="predictor").reset_index(drop=True),
            baseline.drop(columns="predictor").reset_index(drop=True),
            rtol=1e-6,
        )


@pytest.mark.parametrize("key", ["ridge", "section_mean"])
def test_a_key_that_names_a_baseline(measured: SpatialData, checkpoint: Callable[..., Path], key: str) -> None:
    stp.tl.predict(measured, checkpoint(), key_added=key)
    with pytest.raises(ValueError, match="name of a baseline"):
        stp.tl.evaluate(measured, key=key)


def test_unfit_input(predicted: SpatialData, other: Make, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(KeyError, match=r"No prediction 'pred'; there are \['pred_m2ost'\]"):
        stp.tl.evaluate(predicted, key="pred")
    second = other("P2")
    stp.tl.predict(second, checkpoint(("a", "b")))
    with pytest.raises(ValueError, match="differ in panel or units"):
        stp.tl.evaluate([predicted, second])
    predicted.tables["table"].obsm["foreign"] = predicted.tables["table"].obsm[KEY]
    with pytest.raises(ValueError, match="gene names of 'foreign' are unknown"):
        stp.tl.evaluate(predicted, key="foreign")
    predicted.tables["table"].obsm["foreign"] = stp.get.frame(predicted)
    with pytest.raises(KeyError, match="'foreign' has no card"):
        stp.tl.evaluate(predicted, key="foreign")
    predicted.tables["table"].X[0, 0] = -3
    with pytest.raises(ValueError, match=r"1 count is negative.*layer="):
        stp.tl.evaluate(predicted)
    del predicted.tables["table"].obs["patient"]
    with pytest.raises(KeyError, match=r"no column 'patient'.*group_key="):
        stp.tl.evaluate(predicted)


# beyond sequencing depth


@pytest.fixture
def deep(other: Make) -> SpatialData:
    """Spots of very different depth, whose genes have a pattern of their own."""
    sdata = other("P2")
    table, generator = sdata.tables["table"], np.random.default_rng(3)
    depth = generator.gamma(2, 60, (12, 1))
    rates = generator.dirichlet(np.ones(4) * 5, size=12)
    table.X = generator.poisson(depth * rates).astype(np.float32) + 1
    return sdata


def with_card(sdata: SpatialData, values: np.ndarray, target: TargetSpec | None = None) -> None:
    card = ModelCard(
        model="mean", genes=tuple("abcd"), crop=CropSpec(levels=(LevelSpec(size=8),)), target=target or TargetSpec()
    )
    table = sdata.tables["table"]
    table.obsm["pred_mean"] = values.astype(np.float32)
    table.uns["st_predict"] = {"pred_mean": {"card": card.to_json(), "genes": np.array(card.genes), "version": "0"}}


def test_partial_and_residual_scores_are_those_of_scanpy_and_least_squares(deep: SpatialData) -> None:
    counts = np.asarray(deep.tables["table"].X, float)
    guess = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    with_card(deep, guess)
    genes = stp.tl.evaluate(deep).genes.query("predictor == 'pred_mean'")
    residuals = sc.experimental.pp.normalize_pearson_residuals(AnnData(counts.copy()), inplace=False)["X"]
    design = np.column_stack([np.ones(12), np.log(counts.sum(axis=1)), np.log(counts.sum(axis=1)) ** 2])
    hat = np.eye(12) - design @ np.linalg.pinv(design)
    for i, gene in enumerate("abcd"):
        row = genes.set_index("gene").loc[gene]
        assert row["residual"] == pytest.approx(pearsonr(guess[:, i], residuals[:, i]).statistic, abs=1e-6)
        expected = pearsonr(hat @ guess[:, i], hat @ residuals[:, i]).statistic
        assert row["partial"] == pytest.approx(expected, abs=1e-5)


def test_a_prediction_of_depth_is_told_in_words(deep: SpatialData) -> None:
    counts = np.asarray(deep.tables["table"].X, float)
    total = np.log(counts.sum(axis=1, keepdims=True))
    noise = np.random.default_rng(0).normal(0, 1e-2, (12, 4))
    with_card(deep, np.tile(total, (1, 4)) + noise, TargetSpec(transform="log1p"))
    evaluation = stp.tl.evaluate(deep)
    row = evaluation.summary.set_index("predictor").loc["pred_mean"]
    assert row["gene_pearson"] > 0.5
    assert any("comes from sequencing depth" in sentence for sentence in evaluation.words)
    text = str(evaluation)
    assert "comes from sequencing depth" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert "sequencing depth" in evaluation._repr_html_()
    with_card(deep, np.random.default_rng(2).normal(size=(12, 4)))
    assert not any("depth" in sentence for sentence in stp.tl.evaluate(deep).words)


def test_proportions_of_training_are_used_if_the_card_has_them(deep: SpatialData) -> None:
    counts = np.asarray(deep.tables["table"].X, float)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    reference = Reference(proportions=tuple(shares), median_total=100)
    guess = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    with_card(deep, guess, TargetSpec(transform="pearson_residuals", reference=reference, clip=10.0))
    genes = stp.tl.evaluate(deep).genes.query("predictor == 'pred_mean'").set_index("gene")
    mean = counts.sum(axis=1, keepdims=True) * shares
    residuals = ((counts - mean) / np.sqrt(mean + mean**2 / 100)).clip(-np.sqrt(12), np.sqrt(12))
    design = np.column_stack([np.ones(12), np.log(counts.sum(axis=1)), np.log(counts.sum(axis=1)) ** 2])
    hat = np.eye(12) - design @ np.linalg.pinv(design)
    own = sc.experimental.pp.normalize_pearson_residuals(AnnData(counts.copy()), inplace=False)["X"]
    for i, gene in enumerate("abcd"):
        expected = pearsonr(hat @ guess[:, i], hat @ residuals[:, i]).statistic
        assert genes.loc[gene, "partial"] == pytest.approx(expected, abs=1e-5)
        assert genes.loc[gene, "residual"] == pytest.approx(pearsonr(guess[:, i], own[:, i]).statistic, abs=1e-6)


def test_position_and_neighbours(predicted: SpatialData, other: Make) -> None:
    second = other("P2")
    evaluation = stp.tl.evaluate(predicted, train=second)
    xy = np.array([(x, y) for y in (50, 200, 390) for x in (10, 150, 300, 590)], float)
    target = target_of(predicted)
    nearest = KDTree(xy).query(xy, k=7)[1][:, 1:]  # among equal distances, whichever the tree finds
    genes = evaluation.genes.query("predictor == 'neighbours'").set_index("gene")
    means = target[nearest].mean(axis=1)
    assert genes.loc["a", "pearson"] == pytest.approx(pearsonr(means[:, 0], target[:, 0]).statistic, abs=1e-5)
    z = (xy - xy.mean(axis=0)) / xy.std(axis=0)
    design = np.column_stack([z[:, 0] ** i * z[:, 1] ** j for i in range(4) for j in range(4 - i)])
    fitted = design @ np.linalg.lstsq(design, target_of(second), rcond=None)[0]
    genes = evaluation.genes.query("predictor == 'position'").set_index("gene")
    assert genes.loc["b", "pearson"] == pytest.approx(pearsonr(fitted[:, 1], target[:, 1]).statistic, abs=1e-5)


@pytest.mark.parametrize(("min_counts", "n"), [(None, 12), (0, 12), (75, None), (10**6, 0)])
def test_spots_with_few_counts_are_left_out(
    predicted: SpatialData, caplog: pytest.LogCaptureFixture, min_counts: int | None, n: int | None
) -> None:
    sums = np.asarray(predicted.tables["table"].X).sum(axis=1)
    if n == 0:
        with pytest.raises(ValueError, match=r"All 12 spots have fewer than 1000000 counts.*min_counts="):
            stp.tl.evaluate(predicted, min_counts=min_counts)
        return
    evaluation = stp.tl.evaluate(predicted, min_counts=min_counts)
    kept = 12 if n == 12 else int((sums >= 75).sum())
    assert evaluation.summary["n_spots"].unique().tolist() == [kept]
    assert ("fewer than 75 counts" in caplog.text) == (kept < 12)


def test_spots_of_50_um_need_50_counts(predicted: SpatialData) -> None:
    tell_mpp(predicted, 2.75)  # circles of 20 px are 55 um wide
    predicted.tables["table"].X[3] = [10, 10, 10, 9]
    predicted.tables["table"].X[4] = [20, 10, 10, 10]
    assert stp.tl.evaluate(predicted).summary["n_spots"].iloc[0] == 11


def test_predictors_are_compared_gene_by_gene(predicted: SpatialData, other: Make) -> None:
    evaluation = stp.tl.evaluate(predicted, train=other("P2"))
    partial = evaluation.genes.pivot(index="gene", columns="predictor", values="partial")
    row = evaluation.comparisons.set_index("predictor").loc["position"]
    assert row["difference"] == pytest.approx((partial[KEY] - partial["position"]).mean())
    assert row["p"] == pytest.approx(wilcoxon(partial[KEY] - partial["position"]).pvalue)
    assert (evaluation.comparisons["q"] >= evaluation.comparisons["p"] - 1e-12).all()


def test_means_over_sections_vary_with_the_sections(other: Make) -> None:
    sections = [other("P1", "S1", seed=1), other("P1", "S2", seed=2)]
    for section, sign in zip(sections, (1, -1), strict=True):
        with_card(section, sign * target_of(section))
    evaluation = stp.tl.evaluate(sections, train=other("P2", "S3", seed=3))
    own = evaluation.summary.query("predictor == 'pred_mean'")
    assert own["gene_partial"].tolist() == pytest.approx([1, -1], abs=0.1)
    overall = evaluation.overall.set_index("predictor")
    means = evaluation.summary.groupby("predictor")[["gene_partial", "gene_residual", "gene_pearson"]].mean()
    pd.testing.assert_frame_equal(overall[means.columns].sort_index(), means)
    assert (overall["n_sections"] == 2).all()
    assert list(overall.index) == list(evaluation.summary["predictor"].unique())
    # a section may be drawn twice, so the interval spans both, and that of each section does not
    row = overall.loc["pred_mean"]
    assert row["gene_partial_low"] < -0.8
    assert row["gene_partial_high"] > 0.8
    assert own["gene_partial_low"].iloc[0] > 0.8
    assert own["gene_partial_high"].iloc[1] < -0.8
    assert np.isnan(row["difference_low"])
    assert overall.loc["position", "difference_low"] < 0 < overall.loc["position", "difference_high"]
    text = str(evaluation)
    assert "Mean of 2 sections" in text
    assert "Mean of 2 sections" in evaluation._repr_html_()
    assert max(map(len, text.splitlines())) <= 80
    assert "Mean of" not in str(stp.tl.evaluate(sections[0]))


def test_differences_are_paired(other: Make) -> None:
    section, training = other("P1"), other("P2", "S3", seed=3)
    with_card(section, target_of(section))
    right = stp.tl.evaluate(section, train=training).overall.set_index("predictor").loc["position"]
    with_card(section, -target_of(section))
    mirrored = stp.tl.evaluate(section, train=training).overall.set_index("predictor").loc["position"]
    assert right["difference_low"] > 0 > mirrored["difference_high"]
    assert right["gene_partial_low"] == mirrored["gene_partial_low"]
