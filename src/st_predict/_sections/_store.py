"""Training stores: crops of measured sections, features of their spots, or both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._files import check_space
from st_predict._progress import track
from st_predict._sections._cells import join_cells
from st_predict._sections._inputs import features_of
from st_predict._sections._section import naming
from st_predict._training import CropStore
from st_predict.crops import iter_batches
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from st_predict._runtime import Compute
    from st_predict._sections._observed import Observed
    from st_predict.encoders import Encoder
    from st_predict.specs import CropSpec, ModelCard

__all__ = ["store_of"]


def store_of(
    observed: Sequence[Observed],
    card: ModelCard,
    encoder: Encoder | None,
    *,
    folder: Path,
    compute: Compute,
) -> CropStore:
    """Collect the training inputs: crops of measured sections in ``folder``, features by ``encoder``, or both."""
    features = None if encoder is None else _describe(observed, card, encoder, compute=compute)
    if get_spec(card.model).reads(card.hparams).kind != "crops":
        return _store(observed, features=features)
    return replace(cut_crops(observed, card.crop, folder=folder), features=features)


def _describe(
    observed: Sequence[Observed], card: ModelCard, encoder: Encoder, *, compute: Compute
) -> NDArray[np.float32]:
    """Return the features of every spot with a target."""
    features = []
    for one in observed:
        with naming(one.section):
            features.append(features_of(one.section, card, encoder, compute=compute))
    parts = zip(observed, join_cells(features), strict=True)
    return np.concatenate([values[one.rows] for one, values in parts])


def cut_crops(sections: Sequence[Observed], crop: CropSpec, *, folder: Path) -> CropStore:
    """Cut the crops of every spot with a target, into files in the new ``folder``."""
    folder.mkdir()
    lengths = [len(s.rows) for s in sections]
    check_space("crops", folder.parent, sum(lengths) * sum(3 * level.size**2 for level in crop.levels))
    shapes = [(sum(lengths), 3, level.size, level.size) for level in crop.levels]
    crops = tuple(
        np.lib.format.open_memmap(folder / f"level{i}.npy", mode="w+", dtype=np.uint8, shape=shape)
        for i, shape in enumerate(shapes)
    )
    present = []
    for start, section in zip(np.cumsum([0, *lengths[:-1]]), sections, strict=True):
        out = tuple(array[start : start + len(section.rows)] for array in crops)
        present.append(_cut_section(section, crop, out=out))
    mask = np.repeat(present, lengths, axis=0)
    return _store(sections, crops=crops, level_mask=None if mask.all() else mask)


def _store(
    sections: Sequence[Observed],
    *,
    crops: tuple[NDArray[np.uint8], ...] = (),
    features: NDArray[np.float32] | None = None,
    level_mask: NDArray[np.bool_] | None = None,
) -> CropStore:
    """Add targets, counts and positions of the spots."""
    return CropStore(
        crops=crops,
        features=features,
        level_mask=level_mask,
        target=np.concatenate([s.target for s in sections]),
        section=np.repeat(np.arange(len(sections)), [len(s.rows) for s in sections]),
        grid=_join(sections, [s.section.spots.grid for s in sections]),
        xy_um=_join(sections, [s.section.xy_um for s in sections]),
        counts=_counts(sections),
    )


def _counts(sections: Sequence[Observed]) -> NDArray[np.float32] | None:
    counts = [s.counts for s in sections if s.counts is not None]
    return np.concatenate(counts) if counts else None


def _join(sections: Sequence[Observed], places: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """Return the positions of the spots with a target; ``None`` if unknown in a section."""
    known = [place[section.rows] for section, place in zip(sections, places, strict=True) if place is not None]
    return np.concatenate(known) if len(known) == len(sections) else None


def _cut_section(observed: Observed, crop: CropSpec, *, out: tuple[NDArray[np.uint8], ...]) -> list[bool]:
    """Cut the crops of the spots with a target; other crops are not read. Return which levels the image has."""
    section = observed.section
    plan = section.plan(crop, observed.rows)
    batches = iter_batches(section.reader, plan, pad_value=crop.pad_value)
    for batch in track(batches, "Reading crops", len(observed.rows), unit="spot", size=len):
        for array, crops in zip(out, batch.crops, strict=True):
            array[batch.index.numpy()] = crops.numpy()
    return [not level.missing for level in plan]
