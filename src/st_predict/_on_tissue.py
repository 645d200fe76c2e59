"""Spots off the tissue, as detected by the assay."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["beside_tissue", "on_tissue"]

logger = logging.getLogger(__name__)

_WORDS = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}


def on_tissue(obs: pd.DataFrame, *, only: bool, label: str = "", level: int = logging.WARNING) -> NDArray[np.bool_]:
    """Return the spots to use: spots on tissue by the column ``in_tissue``, or all.

    Parameters
    ----------
    obs
        ``.obs`` of the spots. Spots without the column or without a value count as on tissue, because a table of
        several sections may only have it for some.
    only
        Whether to leave out spots off the tissue; their number is logged.
    label
        Name of the section, for the message.
    level
        Log level of the message.

    Returns
    -------
    ndarray
        ``(n_spots,)``.

    Raises
    ------
    ValueError
        If a value is neither 0 nor 1, or all spots are off the tissue.
    """
    if not only or Keys.IN_TISSUE not in obs or obs[Keys.IN_TISSUE].isna().all():
        return np.ones(len(obs), dtype=bool)
    words = _words(obs)
    keep_all = Advice("keep all spots with {}", "tissue_only", value=False)
    if len(unknown := words[~words.isin(_WORDS)]):
        raise InvalidValueError(
            f".obs[{Keys.IN_TISSUE!r}] must be 0 or 1 for every spot; {len(unknown)} of {len(words)} are not, the first is "
            f"{unknown.iloc[0]!r} of {unknown.index[0]!r}.",
            "correct the column",
            keep_all,
        )
    on = ~beside_tissue(obs)
    if not on.any():
        raise InvalidValueError(f"All {len(on)} spots have .obs[{Keys.IN_TISSUE!r}] 0.", "correct the column", keep_all)
    if not on.all():
        logger.log(
            level,
            "%s%d of %d spots are off the tissue (%s is 0) and left out; tissue_only=False keeps them.",
            *(f"{label}: " if label else "", (~on).sum(), len(on), Keys.IN_TISSUE),
        )
    return on


def beside_tissue(obs: pd.DataFrame) -> NDArray[np.bool_]:
    """Return the spots off the tissue by the column ``in_tissue``, ``(n_spots,)``; none without the column or a value."""
    if Keys.IN_TISSUE not in obs:
        return np.zeros(len(obs), dtype=bool)
    return np.array([_WORDS.get(word, True) is False for word in _words(obs)], dtype=bool)


def _words(obs: pd.DataFrame) -> pd.Series:
    return obs[Keys.IN_TISSUE].astype(str).str.lower()
