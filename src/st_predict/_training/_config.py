"""How to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from st_predict._errors import InvalidTypeError, InvalidValueError, StPredictError
from st_predict._validated import Count, Natural, NotNegative, Positive, Probability, validated
from st_predict.models import Preset

if TYPE_CHECKING:
    from st_predict.models import ModelSpec

__all__ = ["TrainConfig", "configure", "get_preset"]

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
Monitor = Literal["pearson", "loss"]


@validated
class TrainConfig:
    """How to train. The defaults are those of the M2OST paper :cite:p:`Wang2025`.

    Parameters
    ----------
    epochs, batch_size, lr, weight_decay, optimizer
        As everywhere; ``batch_size`` is of networks that see single spots.
    regions
        Of networks that see sections as a whole: how many parts of each section an epoch has, each a spot drawn at random
        with those nearest to it, from 2 to all of the section. 0 takes sections whole.
    regions_per_step
        Sections, or such parts of them, for each step of the optimiser.
    momentum
        Of ``optimizer="sgd"``.
    schedule
        Of the learning rate; ``"cosine"`` falls to 0 over ``epochs``.
    warmup
        Epochs over which the learning rate rises to ``lr``. M2OST has no norm in front of its first attention and
        can collapse to the mean without one.
    clip
        Largest norm of the gradient; larger ones are scaled down to it.
    patience
        Stop after so many epochs without a better validation; ``None`` never stops early. Without validation it has no
        effect.
    monitor
        What makes a checkpoint the best: ``"pearson"``, the mean per-gene correlation within validation sections,
        or ``"loss"``, that of the network (:meth:`st_predict.models.SpotModel.loss`). Without validation there is nothing
        to monitor: the last epoch is kept.
    augment
        Turn and mirror spots, the same way at all levels.
    measure_pixels
        Normalise colours by mean and standard deviation of the training crops, instead of by those of the model; the
        card keeps them.
    level_drop
        Probability of hiding a level of a spot in training, so that the network learns to do without.
    start_at_mean
        Let the network predict the mean of each gene before it has learned anything, if it can
        (:meth:`st_predict.models.SpotModel.start_at`). Published trainings begin at zero, which costs small data sets
        most of their steps.
    seed
        Of initial weights, order and augmentation.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` takes bfloat16 where the device computes in it; ``"float32"``, ``"bfloat16"``.
    progress
        Show a progress bar.
    """

    epochs: Count = 100
    batch_size: Count = 96
    regions: Natural = 0
    regions_per_step: Count = 1
    lr: Positive = 1e-4
    weight_decay: NotNegative = 0.0
    optimizer: Optimizer = "adam"
    momentum: Probability = 0.0
    schedule: Schedule = "constant"
    warmup: Natural = 0
    clip: Positive | None = None
    patience: Count | None = None
    monitor: Monitor = "pearson"
    augment: bool = True
    measure_pixels: bool = False
    level_drop: Probability = 0.0
    start_at_mean: bool = True
    seed: Annotated[Natural, Field(lt=2**62)] = 0
    device: str = "auto"
    precision: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise InvalidValueError(
                f"momentum is for the optimizer 'sgd' only, got {self.momentum} and the optimizer {self.optimizer!r}."
            )


def get_preset(spec: ModelSpec, name: str) -> Preset:
    """Return how to train a model: ``"paper"``, as the M2OST paper trained all, or ``"original"``, as its own did.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    presets = {"paper": Preset(), "original": spec.original}
    if name not in presets:
        raise InvalidValueError(f"preset must be one of {list(presets)}, got {name!r}.")
    return presets[name]


def configure(preset: Preset, config: TrainConfig | Mapping[str, Any] | None) -> TrainConfig:
    """Return the configuration of a preset, with the fields that ``config`` changes; a whole one replaces it.

    Raises
    ------
    ValueError
        If ``config`` has a field that does not exist, or a value that is unfit.
    TypeError
        If ``config`` is something else.
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
        raise error.about("config is unfit.") from error
