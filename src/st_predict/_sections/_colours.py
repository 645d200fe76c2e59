"""Colours of the crops that a network was trained on, to compare slides with later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._training import measure_colours
from st_predict.crops import iter_batches
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict._sections._observed import Observed
    from st_predict._training import CropStore
    from st_predict.specs import CropSpec, ModelCard

__all__ = ["describe_colours"]

_OF_ALL = 256
"""Crops that are measured of those that a network reads."""

_PER_SECTION = 32
"""Crops that are cut of each section for a network that reads features, unless they are large."""

_PIXELS = 2**24
"""Most pixels that are cut of each section."""

_DIGITS = 4


def describe_colours(sections: Sequence[Observed], card: ModelCard, store: CropStore) -> dict[str, Any] | None:
    """Return what a card says of the colours of the training crops; ``None`` for a model that reads nothing of the image.

    Parameters
    ----------
    sections
        Sections of training.
    card
        Crops of the network, or of the encoder whose features it reads.
    store
        What the network reads of these sections.

    Returns
    -------
    ``mean`` and ``sd`` of red, green and blue from 0 to 1, over all levels; ``n_crops``; ``mpp`` of the finest level.
    """
    if get_spec(card.model).reads(card.hparams).kind == "nothing":
        return None
    crops = store.crops or _cut(sections, card.crop)
    rows = np.sort(np.random.default_rng(0).permutation(len(crops[0]))[:_OF_ALL])
    colours = measure_colours(crops, rows)
    return {
        "mean": [round(value, _DIGITS) for value in colours.mean],
        "sd": [round(value, _DIGITS) for value in colours.std],
        "n_crops": len(rows),
        "mpp": card.crop.mpp,
    }


def _cut(sections: Sequence[Observed], crop: CropSpec) -> tuple[NDArray[np.uint8], ...]:
    """Cut crops of spots that are drawn at random from each section, one array ``(n, 3, size, size)`` per level."""
    generator, levels = np.random.default_rng(0), []
    n_crops = min(_PER_SECTION, max(1, _PIXELS // sum(level.size**2 for level in crop.levels)))
    for one in sections:
        section, rows = one.section, one.rows[np.sort(generator.permutation(len(one.rows))[:n_crops])]
        (batch,) = iter_batches(section.reader, section.plan(crop, rows), batch_size=None, pad_value=crop.pad_value)
        levels.append([level.contiguous().numpy() for level in batch.crops])
    return tuple(np.concatenate(parts) for parts in zip(*levels, strict=True))
