"""Levels that are finer than the image, and networks that do without them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import check
from st_predict._where import MissingLevels
from st_predict.models import get_spec, list_models

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict._sections._section import Section
    from st_predict.specs import CropSpec

__all__ = ["check_missing_levels", "warn_of_missing_levels"]

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


def warn_of_missing_levels(section: Section, crop: CropSpec) -> None:
    """Log which levels of a crop the image lacks."""
    plan = section.plan(crop, np.empty(0, np.int64))
    if lacking := [i for i, level in enumerate(plan) if level.missing]:
        logger.warning(
            "Image %r is coarser than the levels %s of %d that the network reads: they are masked, and the prediction "
            "rests on the others.",
            *(section.image_key, lacking, len(plan)),
        )
