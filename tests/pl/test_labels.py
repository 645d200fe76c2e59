"""Texts of figures do not overlap, measured by the renderer."""

from __future__ import annotations

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.text import Text
from spatialdata.models import TableModel

import st_predict as stp
from st_predict.specs import CropSpec, LevelSpec, ModelCard, Reliability

pytestmark = pytest.mark.slow

LONG = "ENSG00000141736_ERBB2_probe"


def overlaps(figure, monkeypatch):
    """Pairs of texts that are drawn over each other, and texts beyond the edge of the figure."""
    drawn = []
    draw = Text.draw

    def noted(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            drawn.append((self.get_text(), self.get_window_extent(renderer)))
        draw(self, renderer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", noted)
        figure.canvas.draw()
    assert len(drawn) >= 3
    edge = figure.bbox.padded(2)
    beyond = [text for text, box in drawn if not (edge.contains(box.x0, box.y0) and edge.contains(box.x1, box.y1))]
    pairs = [
        (one, other)
        for (one, a), (other, b) in combinations(drawn, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    return pairs, beyond


def scores_of(n, *, long, n_sections=2):
    rng = np.random.default_rng(0)
    names = [f"{LONG}_{i}" if long and i % 3 == 0 else f"GENE{i}" for i in range(n)]
    sections = ["C2", "a_section_of_breast_cancer_of_patient_C"][:n_sections]
    rows = [
        (section, predictor, gene, *rng.uniform(-0.2, 0.7, 4), 0.8)
        for section in sections
        for predictor in ("pred_m2ost", "log_total", "neighbours", "a_baseline_with_a_long_name")
        for gene in names
    ]
    columns = ["section", "predictor", "gene", "partial", "residual", "pearson", "spearman", "ceiling_partial"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("n", [5, 25, 40, 250])
@pytest.mark.parametrize("plot", ["scores", "heatmap", "depth"])
def test_scores(monkeypatch, plot, n, long):
    options = {"n_genes": n} if plot == "heatmap" else {}
    figure = getattr(stp.pl, plot)(scores_of(n, long=long), return_fig=True, title="Scores of all sections", **options)
    assert overlaps(figure, monkeypatch) == ([], [])


@pytest.mark.parametrize("plot", ["scores", "heatmap", "depth"])
def test_scores_on_a_small_figure(monkeypatch, plot):
    figure = getattr(stp.pl, plot)(scores_of(25, long=False), return_fig=True, figsize=(6, 5))
    assert overlaps(figure, monkeypatch) == ([], [])


def test_a_legend_lies_above_the_points_of_its_panel():
    """One section has many baselines, the other none."""
    frame = scores_of(12, long=False)
    frame = frame[(frame.section != "C2") | (frame.predictor == "pred_m2ost")]
    figure = stp.pl.scores(frame, metric="pearson", return_fig=True)
    figure.canvas.draw()
    for axes in figure.axes:
        bottom = axes.transData.inverted().transform(axes.get_legend().get_window_extent())[0, 1]
        assert max(np.nanmax(line.get_ydata()) for line in axes.get_lines()) < bottom


def test_names_without_room_are_said():
    (few,) = stp.pl.scores(scores_of(25, long=False, n_sections=1), figsize=(2.5, 3))
    frame = scores_of(25, long=False, n_sections=1)
    best = frame[frame.predictor == "pred_m2ost"].sort_values("partial", ascending=False)["gene"].tolist()
    note = few.get_xlabel().replace("\n", " ")
    assert note == f"25 genes, sorted by pred_m2ost best: {', '.join(best[:3])}; worst: {', '.join(best[-3:])}"
    (axes,) = stp.pl.heatmap(frame, n_genes=25, figsize=(4, 2))
    named = [label.get_text() for label in axes.get_yticklabels()]
    step = int(axes.get_ylabel().removeprefix("1 of ").removesuffix(" genes is named"))
    assert step > 1
    assert len(named) == -(-25 // step)


def section(sdata, n, *, long):
    """Prediction and counts of n genes, with scores on another patient."""
    names = [f"{LONG}_{i}" if long and i % 3 == 0 else f"GENE{i}" for i in range(n)]
    rng = np.random.default_rng(0)
    table = AnnData(
        rng.poisson(9, (12, n)).astype(np.float32), obs=sdata["table"].obs.copy(), var=pd.DataFrame(index=names)
    )
    table.obsm["pred_m2ost"] = rng.normal(12, 0.2, (12, n)).astype(np.float32)
    held_out = Reliability(
        held_out="patient",
        sections=("X1",),
        patients=("X",),
        n_spots=99,
        partial=(0.11,) * n,
        low=(-0.05,) * n,
        high=(0.25,) * n,
        ceiling=(0.5,) * n,
    )
    card = ModelCard(
        model="m2ost",
        genes=tuple(names),
        crop=CropSpec(levels=(LevelSpec(size=224),)),
        reliability=(held_out,),
    )
    table.uns["st_predict"] = {"pred_m2ost": {"card": card.to_json(), "genes": np.array(names), "version": "0.1.0"}}
    sdata.tables["table"] = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return names


@pytest.mark.parametrize(("n", "long"), [(5, True), (25, True), (30, False)])
def test_scatter(monkeypatch, sdata, n, long):
    names = section(sdata, n, long=long)
    figure = stp.pl.scatter(sdata, names, return_fig=True, title=f"Section {LONG}")
    assert overlaps(figure, monkeypatch) == ([], [])


@pytest.mark.parametrize(("n", "options"), [(1, {}), (3, {"scale": "shared"}), (5, {"tissue": False})])
def test_maps(monkeypatch, sdata, n, options):
    names = section(sdata, 6, long=True)[:n]
    figure = stp.pl.spatial(sdata, names, return_fig=True, title=" ".join([LONG] * 6), **options)
    assert overlaps(figure, monkeypatch) == ([], [])


def test_all_genes_as_one_map(monkeypatch, sdata):
    section(sdata, 6, long=True)
    for components in ((1, 2), (1, 2, 3)):
        figure = stp.pl.pca_map(sdata, return_fig=True, components=components, title=" ".join([LONG] * 6))
        assert overlaps(figure, monkeypatch) == ([], [])


def test_crops_and_training(monkeypatch, sdata):
    crop = CropSpec(levels=(LevelSpec(size=224), LevelSpec(size=224, downsample=2)))
    assert overlaps(stp.pl.crops(sdata, crop, return_fig=True), monkeypatch) == ([], [])
    history = pd.DataFrame({"epoch": range(300), "train_loss": np.linspace(12345, 9876, 300), "val_loss": 1e4})
    assert overlaps(stp.pl.training(history, return_fig=True), monkeypatch) == ([], [])
    plt.close("all")
