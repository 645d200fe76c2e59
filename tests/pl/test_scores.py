from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import StepPatch

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.pl import scores

if TYPE_CHECKING:
    from pathlib import Path

GENES = ["a", "b", "c", "d"]
MODEL = {"C6": [0.1, 0.5, np.nan, -0.3], "B4": [0.2, 0.1, 0.0, 0.4]}
RIDGE = {"C6": [0.3, 0.2, 0.1, 0.0], "B4": [0.0, 0.1, 0.2, 0.3]}
CEILING = {"C6": [0.9, 0.8, np.nan, 0.6], "B4": [0.5, 0.6, 0.7, 0.8]}


@pytest.fixture
def frame() -> pd.DataFrame:
    parts = []
    for section in ("C6", "B4"):
        for name, values in (("pred_m2ost", MODEL[section]), ("section_mean", [np.nan] * 4), ("ridge", RIDGE[section])):
            part = pd.DataFrame({"section": section, "predictor": name, "gene": GENES, "partial": values})
            parts.append(part.assign(spearman=-part["partial"], ceiling_partial=CEILING[section]))
    return pd.concat(parts, ignore_index=True)


def lines(axes: plt.Axes) -> dict[str, np.ndarray]:
    return {line.get_label().split(":")[0]: line.get_ydata() for line in axes.lines if ":" in line.get_label()}


def ceiling(axes: plt.Axes) -> StepPatch:
    (area,) = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    return area


def labels(axes: plt.Axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_xticklabels()]


def test_genes_are_sorted_by_the_model(frame: pd.DataFrame) -> None:
    c6, b4 = scores(frame)
    assert (c6.get_title(), b4.get_title()) == ("C6", "B4")
    assert labels(c6) == ["b", "a", "d", "c"]  # undefined last
    np.testing.assert_array_equal(lines(c6)["pred_m2ost"], [0.5, 0.1, -0.3, np.nan])
    np.testing.assert_array_equal(lines(c6)["ridge"], [0.2, 0.3, 0.0, 0.1])
    assert labels(b4) == ["d", "a", "b", "c"]
    np.testing.assert_array_equal(lines(b4)["ridge"], [0.3, 0.0, 0.1, 0.2])


def test_legend_has_means_and_what_is_undefined(frame: pd.DataFrame) -> None:
    texts = [text.get_text() for text in scores(frame)[0].get_legend().get_texts()]
    assert texts == [
        "pred_m2ost: mean 0.100, 1 undefined",
        "noise ceiling: mean 0.767",
        "ridge: mean 0.150",
    ]


def test_each_gene_is_drawn_against_its_ceiling(frame: pd.DataFrame) -> None:
    c6, b4 = scores(frame)
    values, edges, baseline = ceiling(c6).get_data()
    np.testing.assert_array_equal(values, [0.8, 0.9, 0.6, np.nan])  # in the order of the genes
    np.testing.assert_array_equal(edges, [0.5, 1.5, 2.5, 3.5, 4.5])
    assert baseline == 0
    np.testing.assert_array_equal(ceiling(b4).get_data().values, [0.8, 0.5, 0.6, 0.7])
    assert c6.get_ylim()[1] > 0.9


def test_other_metrics_have_no_ceiling(frame: pd.DataFrame) -> None:
    for table, metric in ((frame, "spearman"), (frame.drop(columns="ceiling_partial"), "partial")):
        axes = scores(table, metric=metric)[0]
        assert not axes.patches
        assert not any("ceiling" in text.get_text() for text in axes.get_legend().get_texts())
    assert not scores(frame.assign(ceiling_partial=np.nan))[0].patches


def test_a_ceiling_that_is_undefined_in_one_section(frame: pd.DataFrame) -> None:
    frame.loc[frame["section"] == "B4", "ceiling_partial"] = np.nan
    c6, b4 = scores(frame)
    assert "noise ceiling: mean 0.767" in [text.get_text() for text in c6.get_legend().get_texts()]
    assert "noise ceiling: undefined" in [text.get_text() for text in b4.get_legend().get_texts()]


def test_baselines_without_points_are_left_out(frame: pd.DataFrame) -> None:
    frame.loc[(frame["section"] == "B4") & (frame["predictor"] == "ridge"), "partial"] = np.nan
    c6, b4 = scores(frame)
    assert set(lines(c6)) == {"pred_m2ost", "ridge"}
    assert set(lines(b4)) == {"pred_m2ost"}
    frame["partial"] = np.nan
    texts = [text.get_text() for text in scores(frame)[0].get_legend().get_texts()]
    assert texts[0] == "pred_m2ost: undefined for all 4 genes"


def test_residual_scores_have_their_own_ceiling(frame: pd.DataFrame) -> None:
    frame["residual"], frame["ceiling_residual"] = frame["partial"], 0.42
    axes = scores(frame, metric="residual")[0]
    np.testing.assert_array_equal(ceiling(axes).get_data().values, [0.42] * 4)
    assert axes.get_ylabel() == "Correlation with Pearson residuals"


def test_no_tick_above_one(frame: pd.DataFrame) -> None:
    axes = scores(frame.assign(ceiling_partial=1.0))[0]
    assert axes.get_ylim()[1] > 1.1  # room for the legend
    assert max(axes.get_yticks()) == pytest.approx(1)


def test_zero_is_drawn_and_panels_have_the_same_limits(frame: pd.DataFrame) -> None:
    c6, b4 = scores(frame)
    assert any(list(line.get_ydata()) == [0, 0] for line in c6.lines)
    assert c6.get_ylim() == b4.get_ylim()
    assert c6.get_ylim()[0] < -0.3
    assert c6.get_ylim()[1] > 0.5
    assert c6.get_ylabel() == "Partial correlation given log total count"


def test_another_metric_and_order(frame: pd.DataFrame) -> None:
    c6, _ = scores(frame, metric="spearman", sort_by="ridge")
    np.testing.assert_array_equal(lines(c6)["ridge"], [0.0, -0.1, -0.2, -0.3])
    np.testing.assert_array_equal(lines(c6)["pred_m2ost"], [0.3, np.nan, -0.5, -0.1])
    assert c6.get_ylabel() == "Spearman correlation"


def test_takes_an_evaluation(frame: pd.DataFrame) -> None:
    assert len(scores(SimpleNamespace(genes=frame))) == 2


def test_many_genes_are_ranked_not_named(frame: pd.DataFrame) -> None:
    many = [frame.assign(gene=frame["gene"] + str(i)) for i in range(20)]
    axes = scores(pd.concat(many))[0]
    heading, ends = axes.get_xlabel().split("\n", 1)
    assert heading == "80 genes, sorted by pred_m2ost"
    assert re.fullmatch(r"best: (b\d+, ){2}b\d+; worst: (d\d+, ){2}d\d+", ends.replace("\n", " "))
    assert "b0" not in labels(axes)


def test_all_undefined(frame: pd.DataFrame) -> None:
    axes = scores(frame[frame["predictor"] == "section_mean"].drop(columns="ceiling_partial"))
    low, high = axes[0].get_ylim()
    assert -0.01 < low < 0 < high < 0.05
    assert axes[0].get_legend().get_texts()[0].get_text() == "section_mean: undefined for all 4 genes"


def test_axes_left_over_are_removed(frame: pd.DataFrame) -> None:
    four = pd.concat([frame, frame.assign(section=frame["section"] + "x")])
    axes = scores(four)
    assert [one.get_title() for one in axes] == ["C6", "B4", "C6x", "B4x"]
    assert len(axes[0].figure.axes) == 4


def test_one_axes_of_the_user(frame: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert scores(frame[frame["section"] == "B4"], ax=ax)[0] is ax
    with pytest.raises(ValueError, match="ax needs 2 Axes, got 1"):
        scores(frame, ax=ax)


def test_what_is_wrong_with_a_table(frame: pd.DataFrame) -> None:
    with pytest.raises(KeyError, match=r"no column 'rmse'; it has \['section'"):
        scores(frame, metric="rmse")
    with pytest.raises(KeyError, match=r"No predictor 'x' .* there are \['pred_m2ost', 'section_mean', 'ridge'\]"):
        scores(frame, sort_by="x")
    with pytest.raises(ValueError, match="is empty"):
        scores(frame.iloc[:0])
    with pytest.raises(ValueError, match=r"12 rows repeat the section.*\['C6', 'pred_m2ost', 'a'\]"):
        scores(pd.concat([frame, frame.iloc[:12]]))
    assert not plt.get_fignums()


def test_the_table_is_not_changed_and_the_figure_saved(frame: pd.DataFrame, tmp_path: Path) -> None:
    before = frame.copy()
    scores(frame, save=tmp_path / "scores.svg")
    pd.testing.assert_frame_equal(frame, before)
    assert "<svg" in (tmp_path / "scores.svg").read_text()
    assert not plt.get_fignums()


def test_a_predictor_looks_the_same_in_every_panel() -> None:
    rows = [
        (section, predictor, gene, 0.1)
        for section, predictors in {"s": ["m", "a", "b"], "t": ["m", "b"]}.items()
        for predictor in predictors
        for gene in "xyz"
    ]
    axes = scores(pd.DataFrame(rows, columns=["section", "predictor", "gene", "partial"]))
    colours = [{line.get_label().split(":")[0]: line.get_color() for line in one.lines} for one in axes]
    assert colours[0]["b"] == colours[1]["b"] != colours[0]["a"]
    plt.close("all")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("metric", None),
        ("sort_by", 3),
        ("ncols", 0),
        ("ncols", "3"),
        ("figsize", 3),
        ("figsize", (0, 1)),
        ("save", 3),
        ("show", "yes"),
    ],
)
def test_arguments_of_another_type_are_named(frame: pd.DataFrame, argument: str, value: object) -> None:
    with pytest.raises(InvalidValueError, match=f"^{argument}.* must be"):
        scores(frame, **{argument: value})
    for evaluation in (None, 3, "scores.csv", {"genes": frame}):
        with pytest.raises(InvalidTypeError, match="evaluation must be an Evaluation or its table of genes"):
            scores(evaluation)
    assert not plt.get_fignums()


@pytest.mark.parametrize("value", [np.inf, "x"])
def test_scores_are_numbers(frame: pd.DataFrame, value: object) -> None:
    with pytest.raises(InvalidValueError, match="Column 'partial' of the table of scores should have finite numbers"):
        scores(frame.assign(partial=value))
    with pytest.raises(InvalidValueError, match="Column 'ceiling_partial'"):
        scores(frame.assign(ceiling_partial=value))


@pytest.fixture
def crowded() -> pd.DataFrame:
    """Nine predictors of 60 genes."""
    generator = np.random.default_rng(0)
    names = [f"pred_{i}" for i in range(9)]
    return pd.concat(
        pd.DataFrame({"section": "C6", "predictor": name, "gene": range(60), "partial": generator.normal(size=60)})
        for name in names
    )


def test_many_predictors_differ_in_looks_and_leave_the_points_uncovered(crowded: pd.DataFrame) -> None:
    axes = scores(crowded)[0]
    points = [line for line in axes.lines if ":" in line.get_label()]
    assert len({(line.get_color(), line.get_marker()) for line in points}) == 9
    axes.figure.canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert legend.x0 >= axes.bbox.x1
    assert legend.x1 <= axes.figure.bbox.x1
    few = scores(crowded[crowded["predictor"] < "pred_4"])[0]
    few.figure.canvas.draw()
    assert few.get_legend().get_window_extent().x1 < few.bbox.x1


def test_baselines_of_many_genes_have_a_running_mean(crowded: pd.DataFrame) -> None:
    axes = scores(crowded)[0]
    table = crowded.pivot(index="gene", columns="predictor", values="partial").sort_values("pred_0", ascending=False)
    running = [line for line in axes.lines if ":" not in line.get_label() and len(line.get_xdata()) == 60]
    assert len(running) == 8
    expected = {round(table[f"pred_{i}"].iloc[18:43].mean(), 9) for i in range(1, 9)}  # 25 genes around the 31st
    assert {round(float(line.get_ydata()[30]), 9) for line in running} == expected
    assert len({(line.get_color(), line.get_linestyle()) for line in running}) == 8
