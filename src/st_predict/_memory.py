"""Smaller batches when out of memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_parts", "is_out_of_memory"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory, or a size beyond all memory."""
    text = str(error)
    named = (
        isinstance(error, MemoryError | OverflowError) or type(error).__name__ == "OutOfMemoryError"
    )  # torch's class
    return named or any(sign in text for sign in _NO_MEMORY)


def in_parts(n: int, cut: Callable[[slice], T], *, size: int, together: int | None = None) -> list[T]:
    """Cut spots together, halving their number whenever out of memory.

    Parameters
    ----------
    n
        Number of spots, at least 1.
    cut
        Function that cuts the spots of a slice.
    size
        Side of the squares to read, in pixels, for messages.
    together
        Number of spots to start with; by default all.

    Returns
    -------
    list of object
        Results of ``cut`` per slice, in order.

    Raises
    ------
    MemoryError
        If memory is too small for one spot.
    """
    done: list[T] = []
    start, step = 0, n if together is None else max(1, min(n, together))
    while start < n:
        part = slice(start, min(start + step, n))
        try:
            done.append(cut(part))
        except (RuntimeError, MemoryError) as error:
            step = _smaller(error, part.stop - part.start, size=size)
        else:
            start = part.stop
    return done


def _smaller(error: Exception, n: int, *, size: int) -> int:
    """Return the number of spots to try after ``n`` were too many."""
    if not is_out_of_memory(error):
        raise error
    if n == 1:
        raise MemoryError(
            f"Out of memory for one crop of {size} x {size} px, {3e-9 * size**2:.3g} GB. Such large crops may come "
            "from a wrong mpp, or from an image without coarser levels."
        ) from error
    logger.warning("Out of memory for %d crops of %d x %d px; continuing with %d.", n, size, size, n // 2)
    return n // 2
