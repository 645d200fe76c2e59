"""Features of the tiles around each spot."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from st_predict._sections._features import section_features
from st_predict._sections._scale import field_px
from st_predict.io import Spots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict._runtime import Compute
    from st_predict._sections._section import Section
    from st_predict.encoders import Encoder
    from st_predict.specs import CropSpec

__all__ = ["tile_features"]

_ROUNDING = 0.5  # level-0 pixels; crops are aligned to whole pixels


def tile_features(
    section: Section, encoder: Encoder, *, crop: CropSpec, n: int, compute: Compute
) -> NDArray[np.float32]:
    """Compute encoder features of a square of tiles around every spot inside the image.

    Features are cached like the features of crops (:func:`st_predict._sections._features.section_features`). Each spot has its
    own tiles, so time, memory and disk space are ``n**2`` times a crop's.

    Parameters
    ----------
    section
        Section with spots and image.
    encoder
        Encoder, which reads its own field of view at the centre of each tile, at the resolution of ``crop``.
    crop
        Crops of the network; tiles are as wide as its finest level.
    n
        Side of the square, in tiles; an odd number.
    compute
        Device, precision and number of tiles per batch.

    Returns
    -------
    ``(n_spots, n**2, n_features)``, by row from the top left. NaN for spots outside the image, and for tiles that leave it. A
    spot's own tile, in the centre, is always there; what it has outside the image is padded.
    """
    side = field_px(section, replace(crop, levels=crop.levels[:1]))
    steps = side * (np.arange(n) - n // 2)
    dy, dx = np.meshgrid(steps, steps, indexing="ij")
    xy = (section.spots.xy[:, None] + np.stack([dx.ravel(), dy.ravel()], axis=1)).reshape(-1, 2)
    size = section.reader.level_shapes[0][::-1]
    there = ((xy - side / 2 >= -_ROUNDING) & (xy + side / 2 <= np.add(size, _ROUNDING))).all(axis=1)
    there[n**2 // 2 :: n**2] = True
    tiles = replace(
        section,
        rows=np.arange(len(xy)),
        spots=Spots(names=section.spots.names.repeat(n**2), xy=xy),
        outside=~there | section.outside.repeat(n**2),
    )
    shown = replace(encoder.spec.crop, mpp=crop.mpp)
    features = section_features(tiles, encoder, crop=shown, compute=compute)
    return features.reshape(-1, n**2, features.shape[1])
