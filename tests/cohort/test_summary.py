"""Means, intervals and tests are over patients or sections, never over genes or seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp, wilcoxon

import st_predict as stp


def scores(n_patients: int = 7, n_sections: int = 2, n_genes: int = 3, n_seeds: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (model, f"P{patient}", f"P{patient}S{section}", seed, f"G{gene}")
        for model in ("low", "constant", "high")
        for patient in range(n_patients)
        for section in range(n_sections)
        for seed in range(n_seeds)
        for gene in range(n_genes)
    ]
    table = pd.DataFrame(rows, columns=["model", "patient", "section", "seed", "gene"]).assign(
        protocol="lopo", fold="f"
    )
    table["partial"] = rng.normal(size=len(table)) + table["model"].map({"low": 0, "high": 3, "constant": np.nan})
    table["ceiling_partial"] = 5.0 + table["gene"].str[1:].astype(int)
    return table


@pytest.mark.parametrize("unit", ["patient", "section"])
def test_a_row_per_model_over_units(unit) -> None:
    table = scores()
    found = stp.cohort.summarize(table, unit=unit).set_index("model")
    assert found.index.tolist() == ["high", "low", "constant"]
    means = {
        model: np.array([rows["partial"].mean() for _, rows in table[table["model"] == model].groupby(unit)])
        for model in ("high", "low")
    }  # balanced, so that the mean of means is the mean
    for model, values in means.items():
        np.testing.assert_allclose(found.loc[model, "mean"], values.mean())
        np.testing.assert_allclose(
            found.loc[model, ["low", "high"]].astype(float), ttest_1samp(values, 0).confidence_interval()
        )
        assert found.loc[model, "n_units"] == len(values) == {"patient": 7, "section": 14}[unit]
    p = wilcoxon(means["high"], means["low"]).pvalue
    np.testing.assert_allclose(found.loc["low", "p_to_best"], p)
    assert found.loc["high", "mean_rank"] == 1
    assert found.loc["low", "ceiling"] == 6
    assert found.loc["constant", ["mean", "mean_rank", "p_to_best", "n_units"]].isna().tolist() == [
        True,
        True,
        True,
        False,
    ]


def test_more_genes_or_seeds_do_not_make_more_units() -> None:
    """Copies of genes, and of seeds, change neither intervals nor p-values."""
    table = scores(n_seeds=1)
    expected = stp.cohort.summarize(table)
    genes = pd.concat([table, *(table.assign(gene=table["gene"] + f"copy{i}") for i in range(5))])
    seeds = pd.concat([table.assign(seed=seed) for seed in range(5)])
    columns = ["model", "n_units", "mean", "low", "high", "mean_rank", "p_to_best"]
    for more in (genes, seeds):
        pd.testing.assert_frame_equal(stp.cohort.summarize(more)[columns], expected[columns])
    assert expected["seed_sd"].isna().all()
    assert stp.cohort.summarize(seeds)["seed_sd"].dropna().tolist() == pytest.approx([0, 0])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t.drop(columns="gene"), {}, "no column 'gene'"),
        (lambda t: t.drop(columns="fold"), {}, "no column 'fold'"),
        (lambda t: t, {"score": "best"}, "no column 'best'"),
        (lambda t: t, {"score": "gene"}, "'gene' of the table is not numbers"),
        (lambda t: t.iloc[:0], {}, "no rows"),
        (lambda t: t, {"unit": "gene"}, "unit must be 'patient' or 'section'"),
        (lambda t: pd.concat([t, t.assign(protocol="hest")]), {}, r"several protocols, \['lopo', 'hest'\]"),
        (lambda t: t.to_dict(), {}, "must be the DataFrame of a cross-validation"),
    ],
)
def test_tables_of_other_shapes(change, options, message) -> None:
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        stp.cohort.summarize(change(scores()), **options)
