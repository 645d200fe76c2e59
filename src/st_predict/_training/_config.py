"""Configuration of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from st_predict._errors import InvalidTypeError, InvalidValueError, StPredictError
from st_predict._validated import (
    Count,
    Device,
    Fields,
    Flag,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Probability,
    validated,
)

if TYPE_CHECKING:
    from st_predict.models import ModelSpec, Preset

__all__ = ["TrainConfig", "configure", "get_preset"]

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
Monitor = Literal["pearson", "loss"]
_BELOW_OVERFLOW = Field(lt=1e38)  # larger numbers are infinite in float32


@validated
class TrainConfig:
    """Configuration of training. The defaults are the M2OST paper's :cite:p:`Wang2025`.

    Parameters
    ----------
    epochs
        Number of passes over the training spots.
    batch_size
        Number of spots per step, for spot-level models.
    lr
        Learning rate.
    weight_decay
        Weight decay of the optimiser.
    optimizer
        Optimiser: ``"adam"``, ``"adamw"`` or ``"sgd"``.
    loss
        Training objective. ``"model"``: the model's own. For models with the squared error as objective also ``"standardized"``:
        errors relative to each gene's standard deviation over the training spots, so that genes have equal weight; and
        ``"correlation"``: the same plus one minus the mean correlation per gene over the spots of a batch.
    regions
        Section-level models: number of random regions sampled per section and epoch. A region is a random spot with its
        nearest neighbours, from 2 spots to the whole section. 0 uses whole sections.
    regions_per_step
        Section-level models: number of sections or regions per step.
    momentum
        Momentum of ``optimizer="sgd"``.
    schedule
        Schedule of the learning rate; ``"cosine"`` falls to 0 over ``epochs``.
    warmup
        Number of epochs over which the learning rate rises to ``lr``. M2OST has no norm before its first attention and can
        collapse to the mean without warmup.
    clip
        Largest norm of the gradient; larger gradients are scaled down. ``None`` does not clip.
    patience
        Number of epochs without a better validation score before early stopping; ``None`` never stops early. Without
        validation it has no effect.
    monitor
        Validation score of the best epoch: ``"pearson"``, mean per-gene correlation within validation sections, or ``"loss"``,
        :meth:`st_predict.models.SpotModel.loss`. Without validation the last epoch is kept.
    augment
        Whether to augment crops by random rotations and reflections, equal at all levels.
    stain_jitter
        Stain augmentation: largest relative change of haematoxylin, eosin and a residual, in optical density. It is random per
        spot and step, and equal at all levels (:func:`st_predict.crops.jitter_stain`). 0 turns it off.
    measure_pixels
        Whether to normalise pixels by mean and standard deviation of the training crops, which the card keeps, instead of the
        model's.
    level_drop
        Probability of hiding a level of a spot in training, so that the network tolerates missing levels.
    start_at_mean
        Whether the network starts by predicting the mean of each gene, if it can (:meth:`st_predict.models.SpotModel.start_at`).
        Published trainings start at zero, which costs small data sets most of their steps.
    average
        Decay per step of an exponential moving average of the weights :cite:p:`Polyak1992`, which is validated and kept. 0 keeps
        the optimiser's weights. The decay rises to this value as ``(1 + step) / (10 + step)``, so that the average forgets the
        first weights; 0.99 averages over about 100 steps.
    teacher
        Hyper-parameters of a teacher for distillation, such as ``{"encoder": "efficientnet_lite0", "rank": 8}``: ridge regression
        (model ``"ridge"``) that predicts each training section after it was fitted to the others. ``None`` trains without.
    teacher_share
        Weight of the teacher's prediction in the target, 0 to 1; the rest is the measured target.
    smooth
        Whether each training target is the mean over a spot and its measured neighbours: those up to 1.57 spot distances away, 8 on a
        square lattice and 6 on a hexagonal one. Validation and evaluation always use measured targets.
    seed
        Random seed for initial weights, order of spots and augmentation.
    device
        Device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. On CUDA, the crops of all spots are kept in GPU memory
        if they need at most 30 % of the free memory; else they are copied batch by batch.
    precision
        Precision: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for bfloat16 if the device supports it natively.

    Examples
    --------
    >>> import st_predict as stp
    >>> config = stp.tl.TrainConfig(epochs=20, schedule="cosine", seed=1)
    >>> config.epochs, config.lr
    (20, 0.0001)
    """

    epochs: Count = 100
    batch_size: Count = 96
    loss: Literal["model", "standardized", "correlation"] = "model"
    regions: Natural = 0
    regions_per_step: Count = 1
    lr: Annotated[Positive, _BELOW_OVERFLOW] = 1e-4
    weight_decay: Annotated[NotNegative, _BELOW_OVERFLOW] = 0.0
    optimizer: Optimizer = "adam"
    momentum: Probability = 0.0
    schedule: Schedule = "constant"
    warmup: Natural = 0
    clip: Positive | None = None
    patience: Count | None = None
    monitor: Monitor = "pearson"
    augment: Flag = True
    stain_jitter: Fraction = 0.0
    measure_pixels: Flag = False
    level_drop: Probability = 0.0
    start_at_mean: Flag = True
    average: Probability = 0.0
    teacher: Fields | None = None
    teacher_share: Fraction = 0.5
    smooth: Flag = False
    seed: Annotated[Natural, Field(lt=2**62)] = 0
    device: Device = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise InvalidValueError(
                f"momentum is only for the optimizer 'sgd', got {self.momentum} and the optimizer {self.optimizer!r}."
            )


def get_preset(spec: ModelSpec, name: str) -> Preset:
    """Return a training preset: ``"recommended"``; ``"paper"``, the M2OST paper's; ``"original"``, the model's own paper's.

    Raises
    ------
    ValueError
        If the preset does not exist.
    """
    presets = {"recommended": spec.recommended, "paper": spec.paper, "original": spec.original}
    if name not in presets:
        raise InvalidValueError(f"preset must be one of {list(presets)}, got {name!r}.")
    return presets[name]


def configure(preset: Preset, config: TrainConfig | Mapping[str, Any] | None) -> TrainConfig:
    """Return the configuration of a preset, updated by a mapping or replaced by a :class:`TrainConfig`.

    Raises
    ------
    ValueError
        If ``config`` has an unknown field or an invalid value.
    TypeError
        If ``config`` is of another type.
    """
    if isinstance(config, TrainConfig):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise InvalidTypeError(
            f"config must be a TrainConfig, or a mapping from its fields to values, got {type(config).__name__}."
        )
    try:
        return TrainConfig(**{**preset.training, **{str(name): value for name, value in (config or {}).items()}})
    except StPredictError as error:
        raise error.about("config is invalid.") from error
