"""Spot distance of a section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from st_predict._sections._section import Section

__all__ = ["spot_distance"]


def spot_distance(section: Section) -> float | None:
    """Return the median nearest-neighbour distance of spots inside the image, in micrometres; ``None`` if unknown."""
    xy = section.spots.xy[~section.outside]
    if section.mpp is None or len(xy) < 2:
        return None
    distances, _ = cKDTree(xy).query(xy, k=2)
    return float(np.median(distances[:, 1])) * section.mpp.value
