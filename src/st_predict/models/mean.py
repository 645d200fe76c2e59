"""Mean: each gene's mean over the training spots, whatever the image shows.

Published correlations over the genes of a spot are hardly higher than this constant's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from st_predict.models._base import ModelSpec, Reads, SpotModel
from st_predict.specs import CropSpec, LevelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict.crops import Batch

__all__ = ["SPEC", "Mean"]


class Mean(SpotModel):
    """One constant per gene."""

    mean_G: Tensor

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.register_buffer("mean_G", torch.zeros(n_genes))

    def forward(self, batch: Batch) -> Tensor:
        """Return the constants, ``(n_spots, n_genes)``."""
        return self.mean_G.expand(len(batch), -1)

    def finalize(self, batches: Iterable[Batch]) -> None:
        """Compute the means of the training spots."""
        sum_G, n = torch.zeros_like(self.mean_G, dtype=torch.float64), 0
        for batch in batches:
            sum_G, n = sum_G + batch.require("target").double().sum(0).to(sum_G.device), n + len(batch)
        self.mean_G.copy_(sum_G / n)


SPEC = ModelSpec(
    name="mean",
    summary="Mean of each gene over the training spots: a reference that every model should beat.",
    citation="Jaume2024",
    license="BSD-3-Clause (here)",
    family="baseline",
    build=Mean,
    crop=CropSpec(levels=(LevelSpec(size=224),)),
    reads_of=lambda **_: Reads(kind="nothing"),
    closed_form=True,
)
