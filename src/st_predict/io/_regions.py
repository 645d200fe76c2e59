"""Regions and levels of pyramids: checks before reading, and messages when reading fails."""

from __future__ import annotations

import errno
import math
import struct
import zlib
from numbers import Integral
from operator import index
from typing import TYPE_CHECKING

from st_predict._errors import InvalidValueError, StPredictError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["FAILURES", "check_file", "check_level", "check_region", "level_downsamples", "reading"]

FAILURES = (EOFError, KeyError, OSError, RuntimeError, ValueError, struct.error, zlib.error)
"""What libraries raise when pixels cannot be read or decoded."""

_GET_AGAIN = "Get the file again."


def check_file(path: Path) -> None:
    """Refuse a path without a file.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        If it is a folder.
    """
    if path.is_dir():
        raise InvalidValueError(
            f"{path} is a folder, and a slide is a file.",
            "name the file of a picture",
            "read a SpatialData store with spatialdata.read_zarr",
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")


def check_level(level: int, shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse a level that a pyramid does not have."""
    if not isinstance(level, Integral) or not 0 <= level < len(shapes):
        raise InvalidValueError(f"level must be a whole number from 0 to {len(shapes) - 1}, got {level!r}.")


def check_region(x: int, y: int, width: int, height: int, *, level: int, shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse a region that does not lie inside a level; cheap beside reading it."""
    check_level(level, shapes)
    full = shapes[level]
    try:
        inside = 0 <= index(x) <= x + index(width) <= full[1] and 0 <= index(y) <= y + index(height) <= full[0]
    except TypeError:
        inside = False
    if not inside or width < 0 or height < 0:
        raise InvalidValueError(
            f"x {x!r}, y {y!r}, width {width!r} and height {height!r} must be whole numbers of pixels inside level "
            f"{level}, which is {full[1]} x {full[0]} px."
        )


class reading:  # noqa: N801  # a context manager, in a fifth of the time of contextlib's
    """Say which region of an image it was where reading it fails.

    Parameters
    ----------
    what
        Image, or file.
    region
        Left, top, width and height, in pixels of the level.
    level
        Which level.

    Raises
    ------
    MemoryError
        If the region does not fit into memory.
    OSError
        If its pixels are damaged or cannot be read.
    """

    __slots__ = ("_level", "_region", "_what")

    def __init__(self, what: str, region: tuple[int, int, int, int], level: int) -> None:
        self._what, self._region, self._level = what, region, level

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if error is None or isinstance(error, StPredictError) or getattr(error, "errno", None) == errno.ENOSPC:
            return
        x, y, width, height = self._region
        place = f"{self._what}, level {self._level}, x {x}, y {y}, {width} x {height} px"
        if isinstance(error, MemoryError):
            raise MemoryError(
                f"{place}: {width * height * 3 / 1e9:.3g} GB do not fit into memory ({error})."
            ) from error
        if isinstance(error, FAILURES):
            again = "" if _GET_AGAIN in str(error.__cause__ or error) else f" {_GET_AGAIN}"
            why = error if error.__cause__ is None else f"{str(error).partition(', level ')[0]}: {error.__cause__}"
            raise OSError(f"{place}: cannot be read, perhaps because it is damaged ({why}).{again}") from error


def level_downsamples(shapes: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """Downsamples of the levels of a pyramid, from their shapes.

    A level that was made by an integer factor ends at a whole pixel, so that the ratio of the shapes is slightly off.
    The factor is taken to be that integer whenever both sides agree with it.

    Parameters
    ----------
    shapes
        ``(height, width)`` of each level, finest first.

    Returns
    -------
    tuple of float
        Width of a pixel of each level in level-0 pixels; the first is 1.

    Raises
    ------
    ValueError
        If a level is shrunk more along one axis than along the other, beyond what whole pixels explain.
    """
    return tuple(_downsample(shapes[0], shape, level) for level, shape in enumerate(shapes))


def _downsample(full: tuple[int, int], shape: tuple[int, int], level: int) -> float:
    y, x = (f / s for f, s in zip(full, shape, strict=True))
    if not _one_factor_explains(full, shape):
        raise InvalidValueError(
            f"Level {level} is shrunk {x:.6g} times in x and {y:.6g} times in y, from {full[1]} x {full[0]} to "
            f"{shape[1]} x {shape[0]} pixels: more different than whole pixels explain.",
            "make the levels again, by the same factor in x and y",
        )
    ratio = (x + y) / 2
    whole = max(1, round(ratio))
    trimmed_or_rounded = all(f // whole <= s <= -(-f // whole) for f, s in zip(full, shape, strict=True))
    return float(whole) if trimmed_or_rounded else ratio


def _one_factor_explains(full: tuple[int, int], shape: tuple[int, int]) -> bool:
    """Whether some factor leads to both sides of ``shape``, each less or more by at most a pixel."""
    smallest = max(f / (s + 1) for f, s in zip(full, shape, strict=True))
    largest = min(f / (s - 1) if s > 1 else math.inf for f, s in zip(full, shape, strict=True))
    return smallest <= largest
