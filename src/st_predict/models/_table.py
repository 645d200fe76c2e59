"""All models beside each other: what they are, what they see, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from st_predict.crops import Batch
from st_predict.models._citations import link_to
from st_predict.models._registry import get_spec, list_models

if TYPE_CHECKING:
    import pandas as pd

    from st_predict.models._base import ModelSpec
    from st_predict.specs import CropSpec

__all__ = ["table"]

_N_GENES = 250
_N_SPOTS = 400  # of a section, for networks that see all of it


def table() -> pd.DataFrame:
    """All models that can be built, in the size of their publications, with 250 genes.

    Networks are neither filled with weights nor computed, so that this takes seconds and no memory.

    Returns
    -------
    A row a model, by name, with the columns

    ``family``, ``summary``
        What it is; see :class:`ModelSpec`.
    ``params``
        Parameters of the network.
    ``gmacs``
        Multiply-accumulates of one pass through the network, in 1e9 a spot: all of convolutions and matrix products, those
        of queries with keys and of weights with values included. A model with 8 ``symmetries`` makes 8 passes; what a
        search through measured spots takes is not in it. Where ``scope`` is ``"section"``, one of 400 spots is passed.
    ``levels``
        Side of the crop of each level in pixels, and how wide these are: ``"224 at 1, 224 at 2"``.
    ``fov_px``, ``fov_um``
        Side of the largest field of view, in pixels of the finest level, and in micrometres if the model asks for a resolution.
    ``inputs``, ``scope``
        What it reads, and how many spots at a time.
    ``citation``, ``doi``, ``license``
        Key of the publication for :func:`cite`, its DOI or else its address, and the licence of its code.

    ``params`` and ``gmacs`` are missing where there is no network to count (``closed_form``) and where it needs a package that
    is not installed; ``gmacs`` where the work is that of an encoder, whose features are read.
    """
    import pandas as pd

    rows = {name: _row(get_spec(name)) for name in list_models()}
    types = {"params": "Int64", "gmacs": "Float64", "fov_px": "Float64", "fov_um": "Float64"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name").astype(types)


def _row(spec: ModelSpec) -> dict[str, Any]:
    crop = spec.crop_for(spec.hparams)
    fov = max(level.fov for level in crop.levels)
    n_params, gmacs = _size(spec)
    return {
        "family": spec.family,
        "summary": spec.summary,
        "params": n_params,
        "gmacs": gmacs,
        "levels": ", ".join(f"{level.size} at {level.downsample:.3g}" for level in crop.levels),
        "fov_px": fov,
        "fov_um": None if crop.mpp is None else fov * crop.mpp,
        "inputs": spec.reads(spec.hparams).kind,
        "scope": spec.scope,
        "citation": spec.citation,
        "doi": link_to(spec.citation),
        "license": spec.license,
    }


def _size(spec: ModelSpec) -> tuple[int | None, float | None]:
    """Count parameters, and 1e9 multiply-accumulates a spot."""
    from torch.utils.flop_counter import FlopCounterMode

    if spec.closed_form:
        return None, None
    # Tensors without content. Attention is computed in products there, while the counter does not see every fused kernel.
    with torch.device("meta"), torch.no_grad():
        try:
            network = spec.build(_N_GENES, **spec.hparams).eval()
        except ModuleNotFoundError:
            return None, None
        n_params = sum(parameter.numel() for parameter in network.parameters())
        if spec.reads(spec.hparams).kind != "crops":
            return n_params, None
        n_spots = _N_SPOTS if spec.scope == "section" else 1
        batch = _batch(spec.crop_for(spec.hparams), n_spots)
        if spec.family == "retrieval":
            network.finalize([batch])  # a bank of one, as what a search takes depends on how many were measured
        with FlopCounterMode(display=False) as counter:
            network(batch)
    return n_params, counter.get_total_flops() / 2e9 / n_spots


def _batch(crop: CropSpec, n: int) -> Batch:
    crops = tuple(torch.empty(n, 3, level.size, level.size, dtype=torch.uint8) for level in crop.levels)
    index = torch.zeros(n, dtype=torch.int64)
    grid, xy_um, target = index.new_zeros(n, 2), torch.empty(n, 2), torch.empty(n, _N_GENES)
    return Batch(crops=crops, index=index, grid=grid, xy_um=xy_um, target=target)
