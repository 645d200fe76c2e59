"""Colours of training crops, to compare other slides with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._training import colours_of
from st_predict.crops import iter_batches
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict._sections._observed import Observed
    from st_predict._sections._section import Section
    from st_predict._training import CropStore
    from st_predict.specs import CropSpec, ModelCard

__all__ = ["describe_colours", "sample_crops"]

_PER_SECTION = 32
"""Number of crops per section, unless they are large, for a network that reads features."""

_PIXELS = 2**24
"""Maximum number of pixels per section."""


def describe_colours(sections: Sequence[Observed], card: ModelCard, store: CropStore) -> dict[str, Any] | None:
    """Return the card's entry about the colours of the training crops; ``None`` for a model that does not read the image.

    Parameters
    ----------
    sections
        Training sections.
    card
        Card with the crops of the network or of its encoder.
    store
        Network inputs of these sections.

    Returns
    -------
    dict of str to object or None
        See :func:`~st_predict._training.colours_of`.
    """
    if get_spec(card.model).reads(card.hparams).kind == "nothing":
        return None
    crops = store.crops or _cut(sections, card.crop)
    return colours_of(crops, mpp=card.crop.mpp, level_mask=store.level_mask)


def _cut(sections: Sequence[Observed], crop: CropSpec) -> tuple[NDArray[np.uint8], ...]:
    """Read crops of randomly drawn spots of each section, one array ``(n, 3, size, size)`` per level."""
    generator = np.random.default_rng(0)
    levels = [sample_crops(one.section, one.rows, crop, generator) for one in sections]
    return tuple(np.concatenate(parts) for parts in zip(*levels, strict=True))


def sample_crops(
    section: Section, rows: NDArray[np.int64], crop: CropSpec, generator: np.random.Generator | None = None
) -> tuple[NDArray[np.uint8], ...]:
    """Read crops of randomly drawn spots, one array ``(n, 3, size, size)`` per level that the image has.

    Parameters
    ----------
    section
        Image and spots.
    rows
        Rows of the spots to draw from.
    crop
        Crop to read.
    generator
        Random generator; by default with seed 0.
    """
    n_crops = min(_PER_SECTION, max(1, _PIXELS // sum(level.size**2 for level in crop.levels)))
    drawn = rows[np.sort((generator or np.random.default_rng(0)).permutation(len(rows))[:n_crops])]
    plan = section.plan(crop, drawn)
    (batch,) = iter_batches(section.reader, plan, batch_size=None, pad_value=crop.pad_value)
    return tuple(
        pixels.contiguous().numpy() for pixels, level in zip(batch.crops, plan, strict=True) if not level.missing
    )
