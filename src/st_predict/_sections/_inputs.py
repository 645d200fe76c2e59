"""Network inputs of a section: crops, features of crops, or both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from st_predict._sections._cells import spot_cells
from st_predict._sections._features import section_features
from st_predict._sections._tiles import tile_features
from st_predict.crops import Batch
from st_predict.encoders import CellEncoder
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from st_predict._runtime import Compute
    from st_predict._sections._section import Section
    from st_predict.encoders import Encoder
    from st_predict.specs import ModelCard

__all__ = ["encoder_of", "features_of", "inputs_of"]


def encoder_of(card: ModelCard) -> Encoder | None:
    """Load the encoder for a network to be trained; ``None`` if it does not read features."""
    load = get_spec(card.model).reads(card.hparams).load_encoder
    return None if load is None else load()


def inputs_of(
    section: Section,
    card: ModelCard,
    encoder: Encoder | None,
    *,
    compute: Compute,
    batch_size: int | None,
) -> Iterator[Batch]:
    """Yield the network inputs of a section, ``batch_size`` spots at a time; ``None`` for all at once.

    Crops of spots outside the image or off the tissue are not read; their features are NaN.
    """
    features = None if encoder is None else features_of(section, card, encoder, compute=compute)
    if get_spec(card.model).reads(card.hparams).kind != "crops":
        yield from _split(section, batch_size, features)
        return
    device = compute.place if compute.place.type == "cuda" else None
    for batch in section.batches(card.crop, batch_size=batch_size, device=device):
        values = None if features is None else torch.from_numpy(features[batch.index.numpy()])
        yield section.place(replace(batch, features=values))


def _split(section: Section, batch_size: int | None, features: NDArray[np.float32] | None = None) -> Iterator[Batch]:
    n = len(section.rows)
    step = batch_size or max(n, 1)
    for start in range(0, n, step):
        index = torch.arange(start, min(start + step, n))
        values = None if features is None else torch.from_numpy(features[start : start + step])
        yield section.place(Batch(crops=(), features=values, index=index))


def features_of(section: Section, card: ModelCard, encoder: Encoder, *, compute: Compute) -> NDArray[np.float32]:
    """Return features per spot, ``(n_spots, n_features)``, or per cell or tile, ``(n_spots, n, n_features)``."""
    reads = get_spec(card.model).reads(card.hparams)
    if isinstance(encoder, CellEncoder):
        return spot_cells(section, encoder, crop=card.crop, radius_um=reads.radius_um, compute=compute)
    if reads.tiles:
        return tile_features(section, encoder, crop=card.crop, n=reads.tiles, compute=compute)
    return section_features(section, encoder, crop=card.crop, compute=compute)
