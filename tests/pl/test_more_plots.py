"""Observed against predicted, heatmaps of scores and training curves, read back from the artists."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import pearsonr

import st_predict as stp
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict.specs import CropSpec, LevelSpec


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def predicted(measured, checkpoint):
    stp.tl.predict(measured, checkpoint(mpp=0.5), mpp=0.5, key_added="pred")
    return measured


def in_units(sdata, genes):
    """Counts in the units of the prediction."""
    spec = Record.read(sdata["table"].uns, "pred").card.target
    return stp.pp.to_target(sdata["table"].X, spec, panel_index=np.arange(4))[:, ["abcd".index(g) for g in genes]]


def test_points_are_predicted_and_observed(predicted):
    axes = stp.pl.scatter(predicted, ["b", "d"], key="pred")
    values = predicted["table"].obsm["pred"]
    for one, column in zip(axes, (1, 3), strict=True):
        points = one.collections[0].get_offsets()
        np.testing.assert_allclose(points[:, 0], values[:, column], rtol=1e-5)
        np.testing.assert_allclose(points[:, 1], in_units(predicted, "abcd")[:, column], rtol=1e-5)
        r = pearsonr(points[:, 0], points[:, 1]).statistic
        assert f"plain r = {r:z.2f}" in one.get_title()
        assert "12 spots" in one.get_title()


def test_a_spot_without_a_prediction_is_no_point(predicted):
    predicted["table"].obsm["pred"][2] = np.nan
    (axes,) = stp.pl.scatter(predicted, "a", key="pred")
    assert len(axes.collections[0].get_offsets()) == 11


def test_intervals_and_their_coverage(predicted):
    table = predicted["table"]
    values, observed = table.obsm["pred"], in_units(predicted, "abcd")
    width = np.sort(np.abs(observed - values)[:, 0])[8]  # the ninth smallest error covers nine spots
    table.obsm[Keys.lower("pred")], table.obsm[Keys.upper("pred")] = values - width, values + width
    stored = Record.read(table.uns, "pred")
    Record(card=stored.card, params=stored.params, derived=(Keys.lower("pred"), Keys.upper("pred"))).write(
        table.uns, "pred"
    )
    (axes,) = stp.pl.scatter(predicted, ["a"], key="pred", intervals=True)
    assert "75% of 12 spots covered" in axes.get_title()
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_ydata(), np.sort(values[:, 0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"genes": ["z"]}, KeyError, "'z'"),
        ({"intervals": True}, ValueError, "no prediction intervals.*intervals=False"),
        ({"dpi": 0}, ValueError, "dpi"),
        ({"ncols": 0}, ValueError, "ncols"),
        ({"title": 3}, ValueError, "title"),
    ],
)
def test_scatter_refuses(predicted, changes, error, words):
    with pytest.raises(error, match=words):
        stp.pl.scatter(predicted, **{"genes": ["a"], "key": "pred", **changes})
    assert not plt.get_fignums()


def test_nothing_to_compare_with(sdata, checkpoint):
    del sdata.tables["table"]
    stp.tl.predict(sdata, checkpoint(mpp=0.5), mpp=0.5, key_added="pred")
    with pytest.raises(ValueError, match=r"None of \['a'\] was measured.*pl\.spatial"):
        stp.pl.scatter(sdata, "a", key="pred")


SCORES = pd.DataFrame(
    [
        (section, predictor, gene, value, value / 2)
        for section in ("S1", "S2")
        for predictor, sign in (("model", 1), ("other", -1))
        for gene, value in (("low", 0.1 * sign), ("high", 0.8 * sign), ("none", np.nan))
    ],
    columns=["section", "predictor", "gene", "partial", "pearson"],
)


def test_a_heatmap_has_genes_in_the_order_of_the_first_score():
    axes = stp.pl.heatmap(SCORES, metrics=["partial", "pearson"])
    assert [one.get_title() for one in axes] == ["S1", "S2"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["high", "low", "none"]
    drawn = np.ma.filled(axes[1].images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn, [[0.8, 0.4], [0.1, 0.05], [np.nan, np.nan]])
    assert axes[0].images[0].get_clim() == (-1, 1)


def test_a_heatmap_of_another_predictor_and_fewer_genes():
    axes = stp.pl.heatmap(SCORES, metrics=["pearson"], predictor="other", n_genes=1)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["low"]
    with pytest.raises(KeyError, match=r"'third'.*'model', 'other'"):
        stp.pl.heatmap(SCORES, metrics=["pearson"], predictor="third")
    with pytest.raises(KeyError, match="'ssim'"):
        stp.pl.heatmap(SCORES, metrics=["ssim"])


HISTORY = pd.DataFrame(
    {"epoch": [0, 1, 2], "train_loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 2.5, 2.8], "val_pearson": [0.1, 0.3, 0.2]}
)


def test_a_training_curve_marks_the_best_epoch():
    losses, score = stp.pl.training(HISTORY)
    assert {line.get_label(): list(line.get_ydata()) for line in losses.lines} == {
        "training": [3, 2, 1],
        "validation": [3, 2.5, 2.8],
    }
    assert list(score.lines[1].get_xdata()) == [1]
    assert list(score.lines[1].get_ydata()) == [0.3]


def test_the_lowest_error_is_the_best():
    _, score = stp.pl.training(HISTORY, score="val_loss")
    assert score.get_title() == "Best epoch: 1 (2.500)"


def test_a_training_without_validation_has_one_panel(tmp_path):
    HISTORY[["epoch", "train_loss"]].to_csv(tmp_path / "history.csv", index=False)
    save = tmp_path / "curve.png"
    assert stp.pl.training(tmp_path, save=save, dpi=50, figsize=(4, 2), title="Run 1").shape == (1,)
    with Image.open(save) as picture:
        assert picture.size == (200, 100)
    assert not plt.get_fignums()


def test_rounds_of_a_training_follow_each_other():
    rounds = pd.concat([HISTORY.assign(round=0), HISTORY.assign(round=1)], ignore_index=True)
    losses, _ = stp.pl.training(rounds)
    assert list(losses.lines[0].get_xdata()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (3, TypeError, "got int"),
        ("nowhere", FileNotFoundError, "history.csv"),
        (pd.DataFrame({"epoch": [0], "val_pearson": [0.4]}), ValueError, "closed form"),
    ],
)
def test_other_histories_are_refused(result, error, words):
    with pytest.raises(error, match=words):
        stp.pl.training(result)


DEPTH = pd.concat([SCORES.replace({"predictor": {"other": "log_total"}}), SCORES[:0]], ignore_index=True)


@pytest.mark.parametrize(
    "draw",
    [
        lambda _, **options: stp.pl.scores(SCORES, **options),
        lambda _, **options: stp.pl.depth(DEPTH, **options),
        lambda sdata, **options: stp.pl.spatial(sdata, "a", key="pred", **options),
        lambda sdata, **options: stp.pl.pca_map(sdata, key="pred", **options),
        lambda sdata, **options: stp.pl.crops(sdata, CropSpec(levels=(LevelSpec(size=16),)), **options),
    ],
    ids=["scores", "depth", "spatial", "pca_map", "crops"],
)
def test_every_plot_takes_a_title_and_a_resolution(predicted, tmp_path, draw):
    axes = draw(predicted, title="Section 1")
    assert axes.flat[0].get_figure(root=True).get_suptitle() == "Section 1"
    draw(predicted, figsize=(12, 6), dpi=50, save=tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == (600, 300)
    with pytest.raises(ValueError, match="dpi"):
        draw(predicted, dpi=-1)
