"""Boxes, ceilings and ranks of a benchmark, read back from the artists."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare, rankdata, wilcoxon

import st_predict as stp

MODELS = ["first", "second", "third", "constant"]
GENES = [f"G{i}" for i in range(5)]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Six patients of two sections, two seeds; models differ by more than the noise, genes in their ceiling."""
    rng = np.random.default_rng(0)
    rows = [
        (model, f"P{p}", f"P{p}S{s}", seed, gene)
        for model in MODELS
        for p in range(6)
        for s in range(2)
        for seed in range(2)
        for gene in GENES
    ]
    table = pd.DataFrame(rows, columns=["model", "patient", "section", "seed", "gene"]).assign(
        fold="f", protocol="lopo"
    )
    better = table["model"].map({"first": 0.0, "second": 0.4, "third": 0.45, "constant": np.nan})
    table["partial"] = rng.normal(0, 0.1, len(table)) + better
    table["ceiling_partial"] = 0.5 + 0.1 * table["gene"].str[1:].astype(int) + rng.normal(0, 0.01, len(table))
    return table


def boxes(axes) -> dict[str, np.ndarray]:
    """Lower quartile, and upper quartile, of each box by its name."""
    found = {}
    for patch in axes.patches:
        y = patch.get_path().vertices[:, 1]
        found[patch.get_gid()] = np.array([y.min(), y.max()])
    return found


def averaged(table: pd.DataFrame, model: str) -> pd.DataFrame:
    rows = table[table["model"] == model]
    return rows.pivot_table(index="section", columns="gene", values="partial", aggfunc="mean")


def artist(axes, gid):
    return [one for one in [*axes.lines, *axes.collections] if one.get_gid() == gid]


def test_boxes_are_quartiles_over_sections_and_over_genes(table: pd.DataFrame) -> None:
    genes, sections, _ = stp.pl.benchmark(table, n_genes=3)
    assert [label.get_text() for label in genes.get_xticklabels()] == ["G4", "G3", "G2"]  # by ceiling
    by_gene, by_section = boxes(genes), boxes(sections)
    assert set(by_gene) == {f"{gene}|{model}" for gene in ("G4", "G3", "G2") for model in MODELS[:3]}
    assert len(by_section) == 12 * 3
    for model in MODELS[:3]:
        values = averaged(table, model)
        np.testing.assert_allclose(by_gene[f"G3|{model}"], np.percentile(values["G3"], [25, 75]))
        np.testing.assert_allclose(by_section[f"P2S1|{model}"], np.percentile(values.loc["P2S1"], [25, 75]))


def test_ceilings_are_means(table: pd.DataFrame) -> None:
    genes, sections, _ = stp.pl.benchmark(table, genes=["G0", "G4"])
    shown = table[table["model"] != "constant"]
    (lines,) = artist(genes, "noise ceiling")
    heights = [segment[0, 1] for segment in lines.get_segments()]
    np.testing.assert_allclose(heights, [shown.loc[shown["gene"] == g, "ceiling_partial"].mean() for g in ("G0", "G4")])
    (lines,) = artist(sections, "noise ceiling")
    expected = shown.groupby("section", sort=False)["ceiling_partial"].mean()
    np.testing.assert_allclose([segment[0, 1] for segment in lines.get_segments()], expected)
    without, _, _ = stp.pl.benchmark(table.drop(columns="ceiling_partial"))
    assert not artist(without, "noise ceiling")
    assert [label.get_text() for label in without.get_xticklabels()] == GENES


@pytest.mark.parametrize(("unit", "n"), [("patient", 6), ("section", 12)])
def test_ranks_and_tests_are_over_units(table: pd.DataFrame, unit: str, n: int) -> None:
    ranks = stp.pl.benchmark(table, unit=unit)[2]
    means = np.stack(
        [table[table["model"] == model].groupby(unit)["partial"].mean().to_numpy() for model in MODELS[:3]], axis=1
    )
    expected = rankdata(-means, axis=1).mean(axis=0)
    order = np.argsort(expected)
    (points,) = artist(ranks, "mean ranks")
    np.testing.assert_allclose(points.get_xdata(), expected[order])
    label = " ".join(ranks.get_xlabel().split())
    assert f"over {n} {unit}s" in label
    assert f"Friedman p = {friedmanchisquare(*means.T).pvalue:.2g}" in label
    difference = 2.3437 * np.sqrt(3 * 4 / (6 * n))  # critical value of the Nemenyi test for three models
    assert f"critical difference {difference:.2f}" in label
    assert "without a defined score: constant" in label
    names = [text.get_text() for text in ranks.get_yticklabels()]
    best, second, last = (MODELS[i] for i in order)
    raw = [wilcoxon(means[:, i], means[:, j]).pvalue for i, j in ((0, 1), (0, 2), (1, 2))]
    adjusted = dict(zip(("01", "02", "12"), _holm(raw), strict=True))
    p = [adjusted["".join(sorted(f"{order[0]}{i}"))] for i in order[1:]]
    assert names == [best, f"{second} (p = {p[0]:.2g})", f"{last} (p = {p[1]:.2g})"]
    assert last == "first"
    bars = artist(ranks, "not told apart")
    joined = [tuple(np.round(bar.get_xdata() + np.array([0.05, -0.05]), 6)) for bar in bars]
    close = expected[order][1] - expected[order][0] < difference
    far = expected[order][2] - expected[order][0] < difference
    assert joined[0] == tuple(np.round(expected[order][[0, 2 if far else 1]], 6)) if close else not joined


def _holm(p: list[float]) -> list[float]:
    order, adjusted, most = np.argsort(p), [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        most = adjusted[i] = max(most, min(1.0, (len(p) - place) * p[i]))
    return adjusted


def test_copies_of_genes_do_not_change_a_test(table: pd.DataFrame) -> None:
    many = pd.concat([table, *(table.assign(gene=table["gene"] + str(i)) for i in range(4))])
    labels = [stp.pl.benchmark(one)[2].get_xlabel() for one in (table, many)]
    assert labels[0] == labels[1]


def test_models_in_a_given_order_and_the_users_axes(table: pd.DataFrame) -> None:
    given = plt.subplots(3, 1)[1]
    axes = stp.pl.benchmark(table, models=["third", "first"], ax=given, score="partial")
    assert axes.tolist() == given.tolist()
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["third", "first", "noise ceiling"]
    assert "constant" not in axes[2].get_xlabel()


def test_too_few_units_are_said(table: pd.DataFrame) -> None:
    one = table[table["patient"] == "P0"]
    ranks = stp.pl.benchmark(one)[2]
    assert re.search("Ranks need two models and two patients; there are 3 and 1", " ".join(ranks.get_xlabel().split()))
    assert not artist(ranks, "mean ranks")
    assert artist(stp.pl.benchmark(one, unit="section")[2], "mean ranks")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t, {"models": ["best"]}, r"No models \['best'\] in the table; there are \['first'"),
        (lambda t: t, {"genes": ["VIM"]}, r"No genes \['VIM'\] in the table"),
        (lambda t: t, {"models": ["constant"]}, "No model has a defined 'partial'"),
        (lambda t: t, {"unit": "gene"}, "unit must be 'patient' or 'section'"),
        (lambda t: t, {"score": "best"}, "no column 'best'"),
        (lambda t: t.iloc[:0], {}, "no rows"),
        (lambda t: t, {"ax": []}, "ax needs 3 Axes, got 0"),
        (lambda t: t, {"alpha": 2}, "alpha must be"),
    ],
)
def test_what_cannot_be_drawn(table: pd.DataFrame, change, options, message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        stp.pl.benchmark(change(table), **options)
