"""Table of all models: kind, inputs and cost."""

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
_N_SPOTS = 400  # size of a section, for section-level networks


def table() -> pd.DataFrame:
    """Table of all models in their published sizes, with 250 genes.

    Networks are neither filled with weights nor computed, so this takes seconds and little memory.

    Returns
    -------
    DataFrame
        One row per model, by name, with the columns

        ``family``, ``summary``
            Kind of model, and a sentence on it; see :class:`ModelSpec`.
        ``params``
            Parameters of the network.
        ``gmacs``
            Multiply-accumulates of one pass through the network, in 1e9 per spot: convolutions and matrix products, including
            attention. A model with 8 ``symmetries`` makes 8 passes. The search through measured spots is not counted. If ``scope``
            is ``"section"``, a section of 400 spots is passed.
        ``levels``
            Side of each level's crop in pixels, and relative width of a pixel: ``"224 at 1, 224 at 2"``.
        ``fov_px``, ``fov_um``
            Side of the largest field of view, in pixels of the finest level, and in micrometres if the model has a resolution.
        ``inputs``, ``scope``
            Kind of input, and whether the model reads single spots or sections.
        ``citation``, ``doi``, ``license``
            Key of the publication for :func:`cite`, its DOI or else its address, and the licence of its code.

        ``params`` and ``gmacs`` are missing for models in ``closed_form`` and if a required package is not installed.
        ``gmacs`` is also missing for models that read the features of an encoder, which does the work.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.models.table().loc[["m2ost", "stnet"], "levels"].to_dict()
    {'m2ost': '224 at 1, 224 at 2, 224 at 4', 'stnet': '224 at 1'}
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
        "inputs": spec.reads(spec.hparams).inputs,
        "scope": spec.scope,
        "citation": spec.citation,
        "doi": link_to(spec.citation),
        "license": spec.license,
    }


def _size(spec: ModelSpec) -> tuple[int | None, float | None]:
    """Count parameters, and multiply-accumulates per spot in 1e9."""
    from torch.utils.flop_counter import FlopCounterMode

    if spec.closed_form:
        return None, None
    # Tensors without content. Attention is computed as matrix products on them; the counter misses some fused kernels.
    with torch.device("meta"), torch.no_grad():
        try:
            network = spec.build(_N_GENES, **spec.hparams).eval()
        except ModuleNotFoundError:
            return None, None
        n_params = sum(parameter.numel() for parameter in network.parameters())
        if spec.reads(spec.hparams).inputs != "crops":
            return n_params, None
        n_spots = _N_SPOTS if spec.scope == "section" else 1
        batch = _batch(spec.crop_for(spec.hparams), n_spots)
        if spec.family == "retrieval":
            network.finalize([batch])  # a bank of one spot: the cost of a search depends on the training data
        with FlopCounterMode(display=False) as counter:
            network(batch)
    return n_params, counter.get_total_flops() / 2e9 / n_spots


def _batch(crop: CropSpec, n: int) -> Batch:
    crops = tuple(torch.empty(n, 3, level.size, level.size, dtype=torch.uint8) for level in crop.levels)
    index = torch.zeros(n, dtype=torch.int64)
    grid, xy_um, target = index.new_zeros(n, 2), torch.empty(n, 2), torch.empty(n, _N_GENES)
    return Batch(crops=crops, index=index, grid=grid, xy_um=xy_um, target=target)
