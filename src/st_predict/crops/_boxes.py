"""Boxes of whole pixels, as arrays of their sides."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import EllipsisType

    from numpy.typing import DTypeLike, NDArray

    Ints: TypeAlias = NDArray[np.integer[Any]]
    Selection: TypeAlias = tuple[EllipsisType, slice, slice]

__all__ = ["Boxes"]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of whole pixels; each side is an integer array ``(n_boxes,)``.

    Parameters
    ----------
    top, left
        First row and first column.
    bottom, right
        One past the last row and the last column.
    """

    top: Ints
    left: Ints
    bottom: Ints
    right: Ints

    @classmethod
    def squares(cls, origins: NDArray[np.int64], size: int) -> Boxes:
        """Return squares whose left and top ``(x, y)`` are ``origins``, ``(n_boxes, 2)``."""
        left, top = origins.T
        return cls(top, left, top + size, left + size)

    @classmethod
    def cat(cls, parts: Sequence[Boxes]) -> Boxes:
        """Concatenate boxes."""
        sides = ("top", "left", "bottom", "right")
        return cls(*(np.concatenate([getattr(part, side) for part in parts]) for side in sides))

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Boolean mask of boxes without pixels."""
        return (self.top >= self.bottom) | (self.left >= self.right)

    def __getitem__(self, which: slice | Ints) -> Boxes:
        return self._map(lambda side: side[which])

    def astype(self, dtype: DTypeLike) -> Boxes:
        """Return the boxes with another type of integer."""
        return self._map(lambda side: side.astype(dtype))

    def intersect(self, other: Boxes) -> Boxes:
        """Return the overlap of each box with its counterpart in ``other``, which may also be a single box."""
        return Boxes(
            np.maximum(self.top, other.top),
            np.maximum(self.left, other.left),
            np.minimum(self.bottom, other.bottom),
            np.minimum(self.right, other.right),
        )

    def within(self, other: Boxes) -> NDArray[np.bool_]:
        """Return a boolean mask of boxes that lie wholly inside their counterpart in ``other``."""
        rows = (self.top >= other.top) & (self.bottom <= other.bottom)
        return rows & (self.left >= other.left) & (self.right <= other.right)

    def relative_to(self, other: Boxes) -> Boxes:
        """Return each box in the frame that begins at the top left of its counterpart in ``other``."""
        y, x = other.top, other.left
        return Boxes(self.top - y, self.left - x, self.bottom - y, self.right - x)

    def selections(self) -> Iterator[Selection]:
        """Return the index that selects each box from an array ``(..., height, width)``."""
        rows = map(slice, self.top.tolist(), self.bottom.tolist())
        cols = map(slice, self.left.tolist(), self.right.tolist())
        return zip(repeat(...), rows, cols, strict=False)

    def _map(self, fn: Callable[[Ints], Ints]) -> Boxes:
        return Boxes(fn(self.top), fn(self.left), fn(self.bottom), fn(self.right))
