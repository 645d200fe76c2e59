"""Parts of a large batch whose gradients add up to the batch's, so that a CPU needs the memory of one part only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from st_predict.models import SpotModel

if TYPE_CHECKING:
    from torch import nn

    from st_predict._training._config import TrainConfig
    from st_predict.crops import Batch

__all__ = ["splits", "take_parts"]

PIXELS = 16 * 3 * 224**2
"""Pixels per part, of all levels: 16 spots of M2OST of the paper's size, which takes 2.6 GiB, not about 11, for a batch of 96.

Small crops are not split, as many small products take longer than few large ones.
"""


def splits(network: SpotModel, config: TrainConfig, *, section_level: bool) -> bool:
    """Return whether the loss of a batch is the mean of its spots' losses."""
    return not section_level and config.loss != "correlation" and type(network).loss is SpotModel.loss


def take_parts(batch: Batch, network: nn.Module) -> list[Batch]:
    """Split a batch of crops on a CPU; a GPU, and batch statistics, need it whole."""
    if not batch.crops or batch.crops[0].device.type != "cpu":
        return [batch]
    step = max(1, PIXELS // sum(crop.shape[-1] * crop.shape[-2] for crop in batch.crops))
    if len(batch) <= step or any(isinstance(part, _BatchNorm) and part.training for part in network.modules()):
        return [batch]
    return [batch.take(slice(start, start + step)) for start in range(0, len(batch), step)]
