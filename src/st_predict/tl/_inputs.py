"""What a network reads of a section: its crops, or features of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from st_predict._keys import Keys
from st_predict.crops import Batch, iter_batches
from st_predict.models import get_spec, load_encoder
from st_predict.models._dense import DENSE_HPARAMS, DenseEncoder, file_digest, load_dense
from st_predict.tl._cells import spot_cells
from st_predict.tl._features import section_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from st_predict.models import Encoder, ModelCard, ModelSpec
    from st_predict.tl._sections import Section

__all__ = ["check_needs", "encoder_of", "features_of", "inputs_of", "needs_mpp", "pinned"]


def needs_mpp(card: ModelCard) -> bool:
    """Whether the mpp of an image has to be known."""
    return card.crop.mpp is not None or "xy_um" in get_spec(card.model).needs


def check_needs(sections: Sequence[Section], card: ModelCard) -> None:
    """Refuse sections of which it is not known what the network reads.

    Raises
    ------
    ValueError
        If it reads the lattice of the assay and a section has none, or a larger one than it knows.
    """
    if "grid" not in get_spec(card.model).needs:
        return
    _check_lattice(sections, card)
    if without := [section.region for section in sections if section.spots.grid is None]:
        raise ValueError(
            f"{card.model!r} reads the row and column of each spot on the lattice of the assay, of which nothing is known for "
            f"{without}: add the columns {Keys.ARRAY_ROW!r} and {Keys.ARRAY_COL!r} to .obs of the table, or predict a lattice "
            "of pp.make_grid."
        )


def _check_lattice(sections: Sequence[Section], card: ModelCard) -> None:
    n_pos = card.hparams.get("n_pos")
    last = {s.region: int(s.spots.grid.max()) for s in sections if s.spots.grid is not None}
    if n_pos is not None and (wider := {region: place for region, place in last.items() if place >= n_pos}):
        raise ValueError(
            f"{card.model!r} knows n_pos={n_pos} rows and columns of a lattice, 0 to {n_pos - 1}; the last ones of the sections "
            f"are {wider}. Train it with hparams={{'n_pos': {max(wider.values()) + 1}}} or more."
        )


def inputs_of(
    section: Section,
    card: ModelCard,
    encoder: Encoder | None,
    *,
    batch_size: int | None,
    device: torch.device,
    precision: str,
) -> Iterator[Batch]:
    """Give what the network of ``card`` reads of a section, in batches; ``None`` gives all spots at once."""
    if encoder is not None:
        features = features_of(section, card, encoder, device=device, precision=precision)
        yield from _split(section, features, batch_size)
        return
    batches = iter_batches(
        section.reader,
        section.plan(card.crop),
        batch_size=batch_size,
        pad_value=card.crop.pad_value,
        device=device if device.type == "cuda" else None,
    )
    yield from map(section.place, batches)


def pinned(spec: ModelSpec, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Add to hyper-parameters that name a file with the weights of an encoder which file that is.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if spec.inputs != "cells" or hparams.get("weights") is None:
        return dict(hparams)
    return {**hparams, "weights_sha256": file_digest(hparams["weights"])}


def encoder_of(card: ModelCard) -> Encoder | None:
    """Load the encoder whose features a network reads; ``None`` for one that reads crops."""
    inputs = get_spec(card.model).inputs
    if inputs == "cells":
        return load_dense(**{name: card.hparams[name] for name in DENSE_HPARAMS if name in card.hparams})
    return load_encoder(card.hparams["encoder"]) if inputs == "features" else None


def features_of(
    section: Section, card: ModelCard, encoder: Encoder, *, device: torch.device, precision: str
) -> NDArray[np.float32]:
    """Return what an encoder says of each spot, ``(n_spots, n_features)``, or of its cells, ``(n_spots, n_cells, n_features)``."""
    how: dict[str, Any] = {"crop": card.crop, "device": device, "precision": precision}
    if isinstance(encoder, DenseEncoder):
        return spot_cells(section, encoder, radius_um=card.hparams.get("radius_um"), **how)
    return section_features(section, encoder, **how)


def _split(section: Section, features: NDArray[np.float32], batch_size: int | None) -> Iterator[Batch]:
    step = batch_size or max(len(features), 1)
    for start in range(0, len(features), step):
        values = features[start : start + step]
        index = torch.arange(start, start + len(values))
        yield section.place(Batch(crops=(), features=torch.from_numpy(values), index=index))
