from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.pl import scores

if TYPE_CHECKING:
    from pathlib import Path

GENES = ["a", "b", "c", "d"]
MODEL = {"C6": [0.1, 0.5, np.nan, -0.3], "B4": [0.2, 0.1, 0.0, 0.4]}
RIDGE = {"C6": [0.3, 0.2, 0.1, 0.0], "B4": [0.0, 0.1, 0.2, 0.3]}


@pytest.fixture
def frame() -> pd.DataFrame:
    parts = []
    for section in ("C6", "B4"):
        for name, values in (("pred_m2ost", MODEL[section]), ("section_mean", [np.nan] * 4), ("ridge", RIDGE[section])):
            part = pd.DataFrame({"section": section, "predictor": name, "gene": GENES, "pearson": values})
            parts.append(part.assign(spearman=-part["pearson"]))
    return pd.concat(parts, ignore_index=True)


def lines(axes: plt.Axes) -> dict[str, np.ndarray]:
    return {line.get_label().split(":")[0]: line.get_ydata() for line in axes.lines if ":" in line.get_label()}


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
        "section_mean: undefined for all 4 genes",
        "ridge: mean 0.150",
    ]


def test_zero_is_drawn_and_panels_have_the_same_limits(frame: pd.DataFrame) -> None:
    c6, b4 = scores(frame)
    assert any(list(line.get_ydata()) == [0, 0] for line in c6.lines)
    assert c6.get_ylim() == b4.get_ylim()
    assert c6.get_ylim()[0] < -0.3
    assert c6.get_ylim()[1] > 0.5
    assert c6.get_ylabel() == "Pearson correlation within section"


def test_another_metric_and_order(frame: pd.DataFrame) -> None:
    c6, _ = scores(frame, metric="spearman", sort_by="ridge")
    np.testing.assert_array_equal(lines(c6)["ridge"], [0.0, -0.1, -0.2, -0.3])
    np.testing.assert_array_equal(lines(c6)["pred_m2ost"], [0.3, np.nan, -0.5, -0.1])
    assert c6.get_ylabel() == "Spearman correlation within section"


def test_takes_an_evaluation(frame: pd.DataFrame) -> None:
    assert len(scores(SimpleNamespace(genes=frame))) == 2


def test_many_genes_are_ranked_not_named(frame: pd.DataFrame) -> None:
    many = [frame.assign(gene=frame["gene"] + str(i)) for i in range(20)]
    axes = scores(pd.concat(many))[0]
    assert axes.get_xlabel() == "80 genes, sorted by pred_m2ost"
    assert "b0" not in labels(axes)


def test_all_undefined(frame: pd.DataFrame) -> None:
    axes = scores(frame[frame["predictor"] == "section_mean"])
    assert axes[0].get_ylim() == pytest.approx((-0.005, 0.005))


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
    with pytest.raises(ValueError, match=r"12 rows are of a section.*\['C6', 'pred_m2ost', 'a'\]"):
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
    axes = scores(pd.DataFrame(rows, columns=["section", "predictor", "gene", "pearson"]))
    colours = [{line.get_label().split(":")[0]: line.get_color() for line in one.lines} for one in axes]
    assert colours[0]["b"] == colours[1]["b"] != colours[0]["a"]
    plt.close("all")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("metric", None),
        ("sort_by", 3),
        ("n_cols", 0),
        ("n_cols", "3"),
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
    with pytest.raises(InvalidValueError, match="Column 'pearson' of the table of scores should have finite numbers"):
        scores(frame.assign(pearson=value))
