"""How far apart the spots of a section are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from st_predict._sections._section import Section

__all__ = ["spot_distance"]


def spot_distance(section: Section) -> float | None:
    """Median distance of the spots inside the image to the nearest other one, in micrometres; ``None`` if not known."""
    xy = section.spots.xy[~section.outside]
    if section.mpp is None or len(xy) < 2:
        return None
    distances, _ = cKDTree(xy).query(xy, k=2)
    return float(np.median(distances[:, 1])) * section.mpp.value
