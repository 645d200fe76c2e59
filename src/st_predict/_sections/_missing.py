"""Levels that are finer than the image, and networks that do without them."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from st_predict._errors import Advice, InvalidValueError, StPredictError
from st_predict._validated import check
from st_predict._where import MissingLevels
from st_predict.models import get_spec, list_models

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from st_predict._sections._section import Section
    from st_predict.specs import CropSpec

__all__ = ["advice_for", "check_missing_levels", "warn_of_missing_levels"]

logger = logging.getLogger(__name__)


def check_missing_levels(missing_levels: Any, models: Iterable[str]) -> MissingLevels:
    """Return a valid value, which these models can follow.

    Raises
    ------
    ValueError
        If levels are to be masked for a model that needs all of them.
    """
    chosen: MissingLevels = check("missing_levels", missing_levels, MissingLevels)
    if chosen == "mask" and (unable := [name for name in models if not get_spec(name).masks_levels]):
        able = [name for name in list_models() if get_spec(name).masks_levels]
        raise InvalidValueError(
            f"{unable[0]!r} needs all levels that it was trained with; models that do without some are {able}.",
            Advice("leave out {}", "missing_levels"),
        )
    return chosen


@contextmanager
def advice_for(models: Iterable[str]) -> Iterator[None]:
    """Remove advice about ``missing_levels`` from errors, unless all models can follow it."""
    try:
        yield
    except StPredictError as error:
        if all(get_spec(name).masks_levels for name in models):
            raise
        raise error.without({"missing_levels"}) from error


def warn_of_missing_levels(section: Section, crop: CropSpec) -> None:
    """Log which levels of a crop the image lacks."""
    if lacking := section.lacks(crop):
        logger.warning(
            "Image %r is coarser than the levels %s of %d that the network reads, or narrower: they are masked, and the "
            "prediction rests on the others.",
            *(section.image_key, lacking, len(crop.levels)),
        )
