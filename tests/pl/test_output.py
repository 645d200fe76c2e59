"""Windows, files and returned objects, the same for all plots."""

from __future__ import annotations

import inspect

import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import st_predict as stp

HISTORY = pd.DataFrame({"epoch": [0, 1], "train_loss": [2.0, 1.0], "val_loss": [2.0, 1.5], "val_pearson": [0.1, 0.3]})
PLOTS = [getattr(stp.pl, name) for name in stp.pl.__all__ if name != "report"]


@pytest.fixture
def shows(monkeypatch):
    """Count the calls of ``plt.show``."""
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    return calls


@pytest.fixture
def window(monkeypatch):
    """Let figures be drawn as if a window could show them."""
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "tk")


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_every_plot_has_the_options_of_scanpy(plot):
    parameters = inspect.signature(plot).parameters
    assert parameters["show"].default is None
    assert parameters["return_fig"].default is False
    assert {"save", "ax", "dpi", "title", "figsize"} <= set(parameters)


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, 1), ({"show": True}, 1), ({"show": False}, 0), ({"return_fig": True}, 0)],
)
def test_a_window_opens_unless_something_else_is_wanted(shows, window, options, shown):
    stp.pl.training(HISTORY, **options)
    assert len(shows) == shown


def test_no_window_for_a_file_or_axes_of_the_user(shows, window, tmp_path):
    stp.pl.training(HISTORY, save=tmp_path / "curve.png")
    stp.pl.training(HISTORY, ax=plt.subplots(1, 2)[1])
    plt.ion()
    try:
        stp.pl.training(HISTORY)  # windows open by themselves
    finally:
        plt.ioff()
    assert not shows


def test_no_window_without_a_display(shows):
    stp.pl.training(HISTORY)
    assert not shows


@pytest.mark.parametrize("saved", [True, False])
def test_the_returned_figure_stays_open(tmp_path, saved):
    save = tmp_path / "curve.png" if saved else None
    figure = stp.pl.training(HISTORY, return_fig=True, save=save)
    assert isinstance(figure, Figure)
    assert figure.number in plt.get_fignums()
    assert len(figure.axes) == 2
    assert (tmp_path / "curve.png").exists() is saved
    assert isinstance(stp.pl.training(HISTORY), np.ndarray)


@pytest.mark.parametrize(("argument", "value"), [("show", "yes"), ("return_fig", None), ("return_fig", 1)])
def test_other_values_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        stp.pl.training(HISTORY, **{argument: value})
    assert not plt.get_fignums()


@pytest.mark.slow
def test_a_notebook_shows_each_figure_once(tmp_path):
    head = (
        f"%matplotlib inline\nimport pandas as pd, st_predict as stp\nhistory = pd.DataFrame({HISTORY.to_dict('list')})"
    )
    cells = {
        "axes = stp.pl.training(history)": 1,
        "stp.pl.training(history)": 1,
        "stp.pl.training(history, show=True)": 1,
        "axes = stp.pl.training(history, show=False)": 1,  # the notebook shows whatever is open
        "stp.pl.training(history, return_fig=True)": 1,
        "figure = stp.pl.training(history, return_fig=True)": 0,
        "figure.axes[0].set_title('changed')\nfigure": 1,
        f"stp.pl.training(history, save={str(tmp_path / 'curve.png')!r})": 0,
        "for _ in range(2):\n    stp.pl.training(history)": 2,
    }
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (head, *cells)])
    nbclient.NotebookClient(notebook, timeout=300).execute()
    shown = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells[1:]]
    assert dict(zip(cells, shown, strict=True)) == cells


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_vector_files_have_texts_and_leave_the_settings(tmp_path, suffix):
    before = dict(plt.rcParams)
    path = tmp_path / f"curve.{suffix}"
    stp.pl.training(HISTORY, save=path, title="A title to search for")
    assert dict(plt.rcParams) == before
    content = path.read_bytes()
    if suffix == "svg":
        assert b"A title to search for" in content
    else:
        assert b"/CIDFontType2" in content  # TrueType, which editors can change
        assert b"/Type3" not in content


def test_print_size():
    """No text is below 7 points on a page, and lines are thin."""
    frame = pd.DataFrame(
        {
            "section": "S1",
            "predictor": np.repeat(["model", "log_total"], 30),
            "gene": [f"GENE{i}" for i in range(30)] * 2,
            **{name: np.linspace(-0.2, 0.8, 60) for name in ("partial", "residual", "pearson", "spearman")},
        }
    )
    figures = [getattr(stp.pl, name)(frame, return_fig=True) for name in ("scores", "heatmap", "depth")]
    for figure in [*figures, stp.pl.training(HISTORY, return_fig=True)]:
        figure.canvas.draw()
        assert figure.get_figwidth() <= 7.2
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 7
        spines = [spine for one in figure.axes for spine in one.spines.values() if spine.get_visible()]
        assert all(spine.get_linewidth() <= 0.8 for spine in spines)


def test_a_figure_of_the_user_stays_open(tmp_path):
    figure, axes = plt.subplots(1, 2)
    stp.pl.training(HISTORY, ax=axes, save=tmp_path / "curve.png")
    assert plt.fignum_exists(figure.number)
    assert (tmp_path / "curve.png").exists()
    plt.close(figure)


def test_a_colour_map_that_does_not_exist_makes_no_figure():
    rows = pd.DataFrame({"section": "A", "predictor": "pred_x", "gene": ["a", "b"], "pearson": [0.1, 0.2]})
    with pytest.raises(ValueError, match="nope"):
        stp.pl.heatmap(rows, metrics=["pearson"], cmap="nope")
    assert not plt.get_fignums()
