"""Loss and scores of a training, epoch by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._validated import Text, check
from st_predict.pl._figure import Output, make_axes, plot, tidy
from st_predict.pl._labels import FONT, SMALL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from st_predict.tl import TrainResult

__all__ = ["training"]

TRAINED, VALIDATED = "#0072b2", "#d55e00"
"""Colours of Okabe and Ito."""

SCORES = {
    "val_pearson": "Mean correlation per gene",
    "val_mse": "Mean squared error",
    "val_spot_pearson": "Mean correlation per spot",
}


@plot
def training(
    result: TrainResult | pd.DataFrame | PathLike[str] | str,
    *,
    score: str = "val_pearson",
    ax: Axes | Sequence[Axes] | NDArray[np.object_] | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: int = 300,
    save: str | PathLike[str] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> NDArray[np.object_] | Figure:
    """Draw the training curve: losses, and a validation score with its best epoch.

    A validation score that falls while the training loss still falls is overfitting. A jumping loss asks for a smaller
    learning rate or a larger batch.

    Parameters
    ----------
    result
        Result of :func:`st_predict.tl.train`, its ``history``, or the folder of a training that has ended.
    score
        Column of the history to draw as validation score.
    ax
        Two Axes to draw on, or one without validation; by default a new figure.
    title
        Title of the figure.
    figsize
        Size of a new figure in inches.
    dpi
        Resolution of a saved raster image in dots per inch.
    save
        File to write; an existing file is replaced. The suffix selects the format. A new figure is then closed, unless
        ``show`` or ``return_fig`` is set.
    show
        Whether to show all open figures now. By default, a window opens unless ``save``, ``ax`` or ``return_fig`` is
        given, and a notebook shows the figure when the cell ends.
    return_fig
        Whether to return the Figure, which stays open, instead of its Axes. In a notebook, it is shown where a cell
        ends with it.

    Returns
    -------
    ndarray or Figure
        Axes, ``(2,)``: losses and score, or ``(1,)`` for a training without validation. With ``return_fig``, the figure.

    Raises
    ------
    FileNotFoundError
        If the folder has no ``history.csv``.
    TypeError
        If ``result`` is another object.
    ValueError
        If the history has no losses, or an argument has another type or range.

    Examples
    --------
    >>> history = pd.DataFrame(
    ...     {"epoch": [0, 1], "train_loss": [1.0, 0.5], "val_loss": [1.1, 0.9], "val_pearson": [0.1, 0.2]}
    ... )
    >>> axes = training(history)
    >>> axes[1].get_title()
    'Best epoch: 1 (0.200)'
    """
    check("score", score, Text)
    output = Output.of(ax=ax, title=title, figsize=figsize, dpi=dpi, save=save, show=show, return_fig=return_fig)
    history = _history(result)
    validated = score in history and history[score].notna().any()
    axes = make_axes(1, 1 + validated, ax=ax, size=figsize or (3.6 * (1 + validated), 2.6)).ravel()
    _draw_losses(axes[0], history)
    if validated:
        _draw_score(axes[1], history, score)
    return output.finish(axes)


def _history(result: Any) -> pd.DataFrame:
    """Figures of each epoch, of a result, a table or a folder."""
    history = getattr(result, "history", result)
    if isinstance(history, str | Path):
        path = Path(history) / "history.csv"
        if not path.is_file():
            raise FileNotFoundError(f"There is no {str(path)!r}: the training has not ended, or is in another folder.")
        history = pd.read_csv(path)
    if not isinstance(history, pd.DataFrame):
        raise InvalidTypeError(
            f"result must be the result of a training, its history or its folder, got {type(result).__name__}."
        )
    if history.empty or not {"train_loss", "val_loss"} & set(history):
        raise InvalidValueError(
            f"The history has no losses; its columns are {list(history)}. A model in closed form has none."
        )
    return history


def _draw_losses(axes: Axes, history: pd.DataFrame) -> None:
    for column, colour, label in (("train_loss", TRAINED, "training"), ("val_loss", VALIDATED, "validation")):
        if column in history:
            axes.plot(_epochs(history), history[column], color=colour, label=label, linewidth=1.2)
    _label(axes, "Loss")
    axes.legend(fontsize=SMALL, frameon=False)


def _draw_score(axes: Axes, history: pd.DataFrame, score: str) -> None:
    values = history[score].to_numpy(np.float64)
    best = int(np.nanargmin(values) if score.endswith(("loss", "mse")) else np.nanargmax(values))
    epochs = _epochs(history)
    axes.plot(epochs, values, color=VALIDATED, linewidth=1.2)
    axes.plot(epochs[best], values[best], "o", color=VALIDATED, markersize=5)
    axes.set_title(f"Best epoch: {epochs[best]:g} ({values[best]:.3f})", fontsize=FONT)
    _label(axes, SCORES.get(score, score))


def _epochs(history: pd.DataFrame) -> NDArray[np.float64]:
    counted = "epoch" in history and history["epoch"].is_unique  # rounds of pseudo-labelling begin again at 0
    return np.asarray(history["epoch"] if counted else np.arange(len(history)), dtype=np.float64)


def _label(axes: Axes, quantity: str) -> None:
    axes.set_xlabel("Epoch", fontsize=FONT)
    axes.set_ylabel(quantity, fontsize=FONT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)
