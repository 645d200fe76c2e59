"""Edges of the blocks of an image, along y and x."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Edges", "edges_of", "regular_edges"]

Edges = tuple["NDArray[np.int64]", "NDArray[np.int64]"]


def edges_of(chunks: Sequence[Sequence[int]]) -> Edges:
    """Where blocks begin and end along y and x, from the lengths of the blocks."""
    y, x = (np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) for lengths in chunks)
    return y, x


def regular_edges(shape: Sequence[int], block: Sequence[int]) -> Edges:
    """Where blocks of one size begin and end along y and x; the last may be smaller."""
    y, x = (np.append(np.arange(0, side, step), side) for side, step in zip(shape, block, strict=True))
    return y, x
