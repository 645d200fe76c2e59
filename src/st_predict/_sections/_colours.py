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
    from st_predict._sections._section import Section
    from st_predict._training import CropStore
    from st_predict.specs import CropSpec, ModelCard

__all__ = ["describe_colours", "describe_pixels", "sample_crops"]

_OF_ALL = 256
"""Crops that are measured of those that a network reads."""

_PER_SECTION = 32
"""Crops that are cut of each section for a network that reads features, unless they are large."""

_PIXELS = 2**24
"""Most pixels that are cut of each section."""

_DIGITS = 4

# Optical density of red, green and blue of haematoxylin, eosin and DAB, which stands for the rest: Ruifrok and Johnston 2001.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_DENSITIES = -np.log((np.arange(256) + 1) / 256)


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
    ``mean`` and ``sd`` of red, green and blue from 0 to 1, over all levels; ``stain``, mean optical density of haematoxylin and eosin;
    ``n_crops``; ``mpp`` of the finest level.
    """
    if get_spec(card.model).reads(card.hparams).kind == "nothing":
        return None
    crops = store.crops or _cut(sections, card.crop)
    rows = np.sort(np.random.default_rng(0).permutation(len(crops[0]))[:_OF_ALL])
    measured = describe_pixels(tuple(level[rows] for level in crops))
    rounded = {name: [round(value, _DIGITS) for value in values.tolist()] for name, values in measured.items()}
    return {**rounded, "n_crops": len(rows), "mpp": card.crop.mpp}


def describe_pixels(crops: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float64]]:
    """Return ``mean`` and ``sd`` of red, green and blue, ``(3,)``, and ``stain``, ``(2,)``; see :func:`describe_colours`.

    Parameters
    ----------
    crops
        One array ``(n, 3, size, size)`` per level.
    """
    colours = measure_colours(crops, np.arange(len(crops[0])))
    return {"mean": np.array(colours.mean), "sd": np.array(colours.std), "stain": _measure_stain(crops)}


def _measure_stain(crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Mean optical density of haematoxylin and eosin, ``(2,)``, over all pixels of all levels."""
    sums, n = np.zeros(3), 0
    for level in crops:
        for crop in level:
            sums, n = sums + _DENSITIES[crop].sum((1, 2)), n + crop[0].size
    return np.asarray(np.linalg.solve(_STAINS.T, sums / n)[:2])


def _cut(sections: Sequence[Observed], crop: CropSpec) -> tuple[NDArray[np.uint8], ...]:
    """Cut crops of spots that are drawn at random from each section, one array ``(n, 3, size, size)`` per level."""
    generator = np.random.default_rng(0)
    levels = [sample_crops(one.section, one.rows, crop, generator) for one in sections]
    return tuple(np.concatenate(parts) for parts in zip(*levels, strict=True))


def sample_crops(
    section: Section, rows: NDArray[np.int64], crop: CropSpec, generator: np.random.Generator | None = None
) -> tuple[NDArray[np.uint8], ...]:
    """Cut crops of spots that are drawn at random, one array ``(n, 3, size, size)`` per level.

    Parameters
    ----------
    section
        Image and spots.
    rows
        Spots to draw from.
    crop
        What to cut.
    generator
        Source of random numbers; by default one with the seed 0.
    """
    n_crops = min(_PER_SECTION, max(1, _PIXELS // sum(level.size**2 for level in crop.levels)))
    drawn = rows[np.sort((generator or np.random.default_rng(0)).permutation(len(rows))[:n_crops])]
    (batch,) = iter_batches(section.reader, section.plan(crop, drawn), batch_size=None, pad_value=crop.pad_value)
    return tuple(level.contiguous().numpy() for level in batch.crops)
