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

PART = 16
"""Spots per part: M2OST of the paper's size then takes 2.6 GiB instead of about 11 for a batch of 96."""


def splits(network: SpotModel, config: TrainConfig, *, section_level: bool) -> bool:
    """Return whether the loss of a batch is the mean of its spots' losses."""
    return not section_level and config.loss != "correlation" and type(network).loss is SpotModel.loss


def take_parts(batch: Batch, network: nn.Module) -> list[Batch]:
    """Split a batch of crops on a CPU; a GPU, and batch statistics, need it whole."""
    whole = not batch.crops or batch.crops[0].device.type != "cpu" or len(batch) <= PART
    if whole or any(isinstance(module, _BatchNorm) and module.training for module in network.modules()):
        return [batch]
    return [batch.take(slice(start, start + PART)) for start in range(0, len(batch), PART)]
