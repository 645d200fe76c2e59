"""How to train."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from st_predict._errors import InvalidValueError
from st_predict.models import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_predict.models import ModelSpec

__all__ = ["TrainConfig", "configure", "get_preset"]

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
Monitor = Literal["pearson", "loss"]


@dataclass(frozen=True, kw_only=True, slots=True)
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

    epochs: int = 100
    batch_size: int = 96
    regions: int = 0
    regions_per_step: int = 1
    lr: float = 1e-4
    weight_decay: float = 0.0
    optimizer: Optimizer = "adam"
    momentum: float = 0.0
    schedule: Schedule = "constant"
    warmup: int = 0
    clip: float | None = None
    patience: int | None = None
    monitor: Monitor = "pearson"
    augment: bool = True
    measure_pixels: bool = False
    level_drop: float = 0.0
    start_at_mean: bool = True
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", Optimizer), ("schedule", Schedule), ("monitor", Monitor)):
            if (value := getattr(self, name)) not in get_args(choices):
                raise InvalidValueError(f"{name} must be one of {get_args(choices)}, got {value!r}.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        names = ("epochs", "batch_size", "regions", "regions_per_step", "warmup", "seed")
        whole = {name: getattr(self, name) for name in names}
        if not all(isinstance(value, int) for value in whole.values()):
            raise InvalidValueError(f"{', '.join(names)} are whole numbers, got {whole}.")
        if self.regions < 0 or self.regions_per_step < 1:
            raise InvalidValueError(
                "regions must not be negative and regions_per_step be at least 1, got "
                f"{self.regions} and {self.regions_per_step}."
            )
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0:
            raise InvalidValueError(
                f"epochs and batch_size must be at least 1 and lr above 0, got {self.epochs}, {self.batch_size}, {self.lr}."
            )
        if self.warmup < 0 or (self.clip is not None and self.clip <= 0):
            raise InvalidValueError(
                f"warmup must not be negative and clip be above 0, got {self.warmup} and {self.clip}."
            )
        if not 0 <= self.level_drop < 1:
            raise InvalidValueError(f"level_drop is a probability below 1, got {self.level_drop}.")
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimizer != "sgd"):
            raise InvalidValueError(
                f"momentum is below 1, and for optimizer='sgd' alone; got {self.momentum}, {self.optimizer!r}."
            )
        if self.seed < 0 or self.weight_decay < 0 or (self.patience is not None and self.patience < 1):
            raise InvalidValueError(
                "seed and weight_decay must not be negative, and patience must be at least 1 or None, got "
                f"{self.seed}, {self.weight_decay}, {self.patience}."
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
    """
    if isinstance(config, TrainConfig):
        return config
    changes = dict(config or {})
    if unknown := sorted(changes.keys() - (names := {f.name for f in fields(TrainConfig)})):
        raise InvalidValueError(f"config has no fields {unknown}; there are {sorted(names)}.")
    return TrainConfig(**{**preset.training, **changes})
