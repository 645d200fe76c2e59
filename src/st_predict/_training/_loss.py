"""Training objectives that give genes equal weight, for models with the squared error as objective."""
# Shapes: B spots, G genes.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from st_predict._errors import Advice, InvalidValueError
from st_predict.models import SpotModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig
    from st_predict.crops import Batch
    from st_predict.models import ModelSpec

__all__ = ["check_objective", "objective"]

_EPSILON = 1e-8


def check_objective(network: SpotModel, config: TrainConfig, spec: ModelSpec, *, reads: str) -> None:
    """Refuse settings without effect on a model.

    Parameters
    ----------
    network
        Network to train.
    config
        Configuration of training.
    spec
        Specification of its model.
    reads
        Kind of input: ``"crops"``, ``"features"``, ``"cells"`` or ``"nothing"``.

    Raises
    ------
    ValueError
        If the config sets a loss for a model with its own objective; averaging of weights for a model in closed form; stain
        jitter or measured pixels for a model that does not read crops; or measured pixels for a model with frozen layers, which
        need the pixel normalisation of their training.
    """
    if config.loss != "model" and (spec.closed_form or type(network).loss is not SpotModel.loss):
        raise InvalidValueError(
            f"{spec.name!r} has its own objective, so the loss {config.loss!r} does not apply.",
            Advice("leave out 'loss' in {}", "config"),
        )
    if config.average and spec.closed_form:
        raise InvalidValueError(
            f"{spec.name!r} is trained in closed form, without steps over which weights could be averaged.",
            Advice("leave out 'average' in {}", "config"),
        )
    if config.teacher is not None and spec.closed_form:
        raise InvalidValueError(
            f"{spec.name!r} has a solution in closed form, which a teacher of the same kind cannot improve.",
            Advice("leave out 'teacher' in {}", "config"),
        )
    if config.stain_jitter and reads != "crops":
        raise InvalidValueError(
            f"{spec.name!r} reads {reads}, and stain jitter needs crops.",
            Advice("leave out 'stain_jitter' in {}", "config"),
        )
    if config.level_drop and not spec.masks_levels:
        raise InvalidValueError(
            f"{spec.name!r} needs all levels that it reads, and level_drop hides some.",
            Advice("leave out 'level_drop' in {}", "config"),
        )
    frozen = any(not parameter.requires_grad for parameter in network.parameters())
    if config.measure_pixels and (reads != "crops" or frozen):
        why = "has frozen layers, which need the pixel normalisation of their training" if frozen else f"reads {reads}"
        raise InvalidValueError(
            f"{spec.name!r} {why}, so pixels cannot be measured for it.",
            Advice("leave out 'measure_pixels' in {}", "config"),
        )


def objective(config: TrainConfig, target_BG: NDArray[np.float32]) -> Callable[[SpotModel, Batch], Tensor]:
    """Return the training objective of a batch.

    Parameters
    ----------
    config
        Configuration of training, with the name of the ``loss``.
    target_BG
        Targets of all training spots, whose standard deviations scale the errors.
    """
    if config.loss == "model":
        return lambda model, batch: model.loss(batch)
    std_G = torch.from_numpy(target_BG.std(axis=0)).float()
    varies_G = torch.from_numpy(
        np.ptp(target_BG, axis=0) > 0
    )  # the standard deviation of a constant may be above 0 by rounding
    std_G = torch.where(varies_G, std_G, 1)
    correlated = config.loss == "correlation"

    def loss(model: SpotModel, batch: Batch) -> Tensor:
        predicted_BG, measured_BG = model(batch).float(), batch.require("target")
        scale_G = std_G.to(measured_BG.device)
        predicted_BG, measured_BG = predicted_BG / scale_G, measured_BG / scale_G
        error = (predicted_BG - measured_BG).square().mean()
        return error + 1 - correlation(predicted_BG, measured_BG) if correlated else error

    return loss


def correlation(predicted_BG: Tensor, measured_BG: Tensor) -> Tensor:
    """Mean Pearson correlation per gene over the spots of a batch; genes that are constant in it count as 0."""
    predicted_BG = predicted_BG - predicted_BG.mean(0)
    measured_BG = measured_BG - measured_BG.mean(0)
    together_G = (predicted_BG * measured_BG).sum(0)
    norms_G = (predicted_BG.square().sum(0) * measured_BG.square().sum(0) + _EPSILON).sqrt()
    return (together_G / norms_G).mean()
