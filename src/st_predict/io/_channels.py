"""Which channel of an image is red, green and blue."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from xarray import DataArray

__all__ = ["is_rgba", "rgb_order"]

_COLOURS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_NUMBERED = re.compile(r"(?:c|ch|chan|channel|band|sample)?[ _:-]*(\d+)")
_WAYS_OUT = (
    "name the channels of an RGB image r, g and b with SpatialData.set_channel_names",
    "choose another image",
)


def rgb_order(level: DataArray) -> list[int]:
    """Positions of red, green and blue among the three channels of an image.

    Channels are told apart by name, in any order; those that are only numbered are red, green and blue by their numbers.

    Parameters
    ----------
    level
        Has an axis ``"c"`` of length 3.

    Returns
    -------
    list of int
        ``[0, 1, 2]`` if they are stored in this order.

    Raises
    ------
    ValueError
        If the names do not name colours, such as the markers of a stain, or one of them is there twice.
    """
    if "c" not in level.coords:
        return [0, 1, 2]
    names = level.coords["c"].to_numpy().tolist()
    places = [_place(name) for name in names]
    if sorted(place for place in places if isinstance(place, int)) == [0, 1, 2]:
        return [places.index(colour) for colour in range(3)]
    numbers = [_number(name) for name in names]
    if None not in numbers:
        first = min(numbers)
        if sorted(number - first for number in numbers) == [0, 1, 2]:
            return [numbers.index(first + colour) for colour in range(3)]
    raise InvalidValueError(
        f"Expected the channels red, green and blue, got channels called {names}, which are other stains or colours.",
        *_WAYS_OUT,
    )


def is_rgba(level: DataArray) -> bool:
    """Whether the channels of an image are called red, green, blue and alpha, in this order; numbers say nothing.

    Readers give such an image of a file with an alpha channel. Four other channels are as many stains.
    """
    if level.sizes.get("c") != 4 or "c" not in level.coords:
        return False
    *colours, last = level.coords["c"].to_numpy().tolist()
    return [_place(name) for name in colours] == [0, 1, 2] and str(last).strip().casefold() in {"a", "alpha"}


def _place(name: Any) -> int | None:
    return _COLOURS.get(re.sub(r"[ _-]*channel$", "", str(name).strip().casefold()))


def _number(name: Any) -> Any:
    """Number in a name that says nothing else."""
    found = _NUMBERED.fullmatch(str(name).strip().casefold())
    return None if found is None else int(found[1])
