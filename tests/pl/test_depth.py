from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError
from st_predict.pl import depth

if TYPE_CHECKING:
    from pathlib import Path

GENES = ["a", "b", "c", "d"]
PLAIN = {"pred_x": [0.5, 0.3, np.nan, -0.1], "log_total": [0.6, 0.2, 0.4, -0.3], "ridge": [0.1, 0.2, 0.3, 0.4]}
PARTIAL = {"pred_x": [0.05, 0.09, np.nan, np.nan], "log_total": [np.nan] * 4, "ridge": [0.0, 0.1, 0.2, 0.3]}


def rows(section: str, predictor: str) -> pd.DataFrame:
    scores = {"pearson": PLAIN[predictor], "partial": PARTIAL[predictor]}
    return pd.DataFrame({"section": section, "predictor": predictor, "gene": GENES, **scores})


@pytest.fixture
def frame() -> pd.DataFrame:
    parts = [rows("C6", name) for name in PLAIN]
    shuffled = [rows("B4", name).sample(frac=1, random_state=seed) for seed, name in enumerate(PLAIN)]
    return pd.concat([*parts, *shuffled], ignore_index=True)


def points(axes: plt.Axes) -> np.ndarray:
    (collection,) = axes.collections
    offsets = np.asarray(collection.get_offsets())
    return offsets[np.argsort(offsets[:, 0])]


def test_points_are_genes_with_both_scores(frame: pd.DataFrame) -> None:
    axes = depth(frame)
    assert axes.shape == (2, 2)
    for plain, partial in axes:  # also where the rows of predictors are in different orders
        np.testing.assert_array_equal(points(plain), [[-0.3, -0.1], [0.2, 0.3], [0.6, 0.5]])
        np.testing.assert_array_equal(points(partial), [[0.2, 0.09], [0.6, 0.05]])


def test_only_the_plain_panel_has_the_diagonal(frame: pd.DataFrame) -> None:
    plain, partial = depth(frame)[0]
    (line,) = [line for line in plain.lines if line.get_linestyle() == "--"]
    assert line.get_xy1() == (0, 0)
    assert line.get_slope() == 1
    assert not any(line.get_linestyle() == "--" for line in partial.lines)
    for one in (plain, partial):
        assert any(list(line.get_ydata()) == [0, 0] for line in one.lines if line.get_linestyle() == "-")


def test_titles_say_what_the_figure_shows(frame: pd.DataFrame) -> None:
    plain, partial = depth(frame)[1]
    assert plain.get_title() == ("B4: plain correlation, mean 0.23\n2 of 3 genes above total count (dashed, mean 0.17)")
    assert partial.get_title() == (
        "B4: given the total count, mean 0.07, 2 genes\nZero: nothing predicted beyond sequencing depth"
    )
    assert plain.get_xlabel() == "Correlation of the observed gene with log total count"
    assert (plain.get_ylabel(), partial.get_ylabel()) == ("pred_x: Pearson correlation", "pred_x: partial correlation")


def test_all_panels_have_the_same_limits(frame: pd.DataFrame) -> None:
    axes = depth(frame).ravel()
    assert len({one.get_xlim() for one in axes}) == len({one.get_ylim() for one in axes}) == 1
    assert axes[0].get_xlim()[0] < -0.3
    assert axes[0].get_xlim()[1] > 0.6


def test_another_predictor(frame: pd.DataFrame) -> None:
    axes = depth(frame, predictor="ridge")
    np.testing.assert_array_equal(points(axes[0, 1])[:, 1], [0.3, 0.1, 0.2, 0.0])
    assert axes[0, 0].get_ylabel() == "ridge: Pearson correlation"
    with pytest.raises(NotFoundError, match=r"No predictor 'x' .* to draw; there are \['pred_x', 'ridge'\]"):
        depth(frame, predictor="x")


def test_the_first_predictor_may_be_the_total_count(frame: pd.DataFrame) -> None:
    first = pd.concat([rows("C6", "log_total"), rows("C6", "ridge")])
    assert depth(first)[0, 0].get_ylabel() == "ridge: Pearson correlation"


def test_takes_an_evaluation_of_one_section(frame: pd.DataFrame) -> None:
    assert depth(SimpleNamespace(genes=frame[frame["section"] == "C6"])).shape == (1, 2)


def test_scores_that_are_all_undefined(frame: pd.DataFrame) -> None:
    plain, partial = depth(frame.assign(partial=np.nan, pearson=np.nan))[0]
    assert len(points(plain)) == len(points(partial)) == 0
    assert "mean undefined" in plain.get_title()
    assert "mean undefined" in partial.get_title()


def test_an_evaluation_without_the_total_count(frame: pd.DataFrame) -> None:
    with pytest.raises(
        InvalidValueError,
        match=r"no rows of the predictor 'log_total'.*it has \['pred_x', 'ridge'\]\. Score .*tl.evaluate",
    ):
        depth(frame[frame["predictor"] != "log_total"])
    with pytest.raises(InvalidValueError, match=r"only has rows of 'log_total'"):
        depth(frame[frame["predictor"] == "log_total"])
    for name in ("log_total", "pred_x"):
        lacking = frame[(frame["section"] == "C6") | (frame["predictor"] != name)]
        with pytest.raises(InvalidValueError, match=rf"Sections \['B4'\] have no rows of the predictor '{name}'"):
            depth(lacking)
    assert not plt.get_fignums()


def test_what_is_wrong_with_a_table(frame: pd.DataFrame) -> None:
    with pytest.raises(NotFoundError, match=r"no column 'partial'; it has \['section'"):
        depth(frame.drop(columns="partial"))
    with pytest.raises(InvalidValueError, match="is empty"):
        depth(frame.iloc[:0])
    with pytest.raises(InvalidValueError, match="12 rows repeat the section"):
        depth(pd.concat([frame, frame.iloc[:12]]))
    with pytest.raises(InvalidValueError, match="Column 'partial' of the table of scores should have finite numbers"):
        depth(frame.assign(partial=np.inf))
    assert not plt.get_fignums()


def test_axes_of_the_user_and_the_file(frame: pd.DataFrame, tmp_path: Path) -> None:
    before = frame.copy()
    _, given = plt.subplots(2, 2)
    assert list(depth(frame, ax=given, save=tmp_path / "depth.svg").ravel()) == list(given.ravel())
    assert "<svg" in (tmp_path / "depth.svg").read_text()
    pd.testing.assert_frame_equal(frame, before)
    with pytest.raises(InvalidValueError, match="2 x 2 panels, so ax needs 4 Axes, got 2"):
        depth(frame, ax=given[0])


@pytest.mark.parametrize(
    ("argument", "value"),
    [("predictor", 3), ("predictor", ""), ("figsize", 3), ("save", 3), ("show", "yes")],
)
def test_arguments_of_another_type_are_named(frame: pd.DataFrame, argument: str, value: object) -> None:
    with pytest.raises(InvalidValueError, match=f"^{argument}.* must be"):
        depth(frame, **{argument: value})
    for evaluation in (None, 3, "scores.csv", {"genes": frame}):
        with pytest.raises(InvalidTypeError, match="evaluation must be an Evaluation or its table of genes"):
            depth(evaluation)
    assert not plt.get_fignums()
