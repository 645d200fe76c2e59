"""The thin adapter between a :class:`~st_predict.models.SpotModel` and Lightning."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import numpy as np
import torch
from torch.nn import functional as F

from st_predict.crops import Batch, augment, drop_levels
from st_predict.models import SpotModel
from st_predict.tl._validation import validation_scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from st_predict.tl._config import TrainConfig
    from st_predict.tl._section_loader import Loader

__all__ = ["Adapter", "History", "quiet"]

# Of each of these Lightning warns, and they are meant.
_MEANT = (
    "You defined a `validation_step` but have no `val_dataloader`",
    "Checkpoint directory .* exists and is not empty",
    "GPU available but not used",
    "MPS available but not used",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from telling which devices there are, from giving hints, and from warning of what is meant."""
    chatty = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = chatty.level
    chatty.setLevel(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            for message in _MEANT:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        chatty.setLevel(level)


class Adapter(L.LightningModule):
    """Trains a network; validates by the mean per-gene correlation within sections."""

    def __init__(
        self,
        network: SpotModel,
        config: TrainConfig,
        *,
        loader: Loader | None = None,
        reference: Loader | None = None,
        sections: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.loader = loader
        self.reference = reference
        self.sections = sections
        self._generator = torch.Generator()
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._losses: list[tuple[float, int]] = []

    def configure_optimizers(self) -> Any:
        options: dict[str, Any] = {"lr": self.config.lr, "weight_decay": self.config.weight_decay}
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if self.config.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, momentum=self.config.momentum, **options)
        else:
            optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.config.optimizer](
                trained, **options
            )
        steps = 1 if self.loader is None else len(self.loader)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_lr_factor, config=self.config, steps=steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        # of the epoch alone, so that a training that was resumed draws what it would have drawn
        seed = self.config.seed + 1_000_003 * self.current_epoch
        self._generator.manual_seed(seed)
        torch.manual_seed(seed)  # noqa: TID251  # dropout knows no other generator; restored by the caller
        if self.loader is not None:
            self.loader.epoch = self.current_epoch

    def training_step(self, batch: Batch, _: int) -> Tensor:
        if self.config.augment and batch.crops:
            batch = augment(batch, self._generator)
        if self.config.level_drop > 0:
            batch = drop_levels(batch, self.config.level_drop, self._generator)
        loss = self.network.loss(batch)
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=len(batch), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        assert self.reference is not None  # nothing is validated without it
        self.network.finalize(self.reference)

    def validation_step(self, batch: Batch, _: int) -> None:
        assert batch.target is not None
        prediction = self.network(batch).float()
        own = type(self.network).loss is not SpotModel.loss
        loss = self.network.loss(batch) if own else F.mse_loss(prediction, batch.target)
        self._losses.append((float(loss), len(batch)))
        self._seen.append((batch.index.cpu(), prediction.cpu(), batch.target.cpu()))

    def on_validation_epoch_end(self) -> None:
        index, prediction, target = (torch.cat(part).numpy() for part in zip(*self._seen, strict=True))
        self._seen.clear()
        losses, sizes = zip(*self._losses, strict=True)
        self._losses.clear()
        assert self.sections is not None  # nothing is validated without them
        scores = validation_scores(prediction, target, self.sections[index])
        self.log_dict({**scores, "val_loss": float(np.average(losses, weights=sizes))}, prog_bar=True)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        return batch.to(device)


def _lr_factor(step: int, *, config: TrainConfig, steps: int) -> float:
    """Learning rate of a step relative to ``config.lr``: a linear rise, then level, or half a cosine down to 0."""
    warmup, total = config.warmup * steps, config.epochs * steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class History(L.Callback):
    """Keeps the figures of each epoch, also over an interruption."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._lr = float("nan")

    def on_train_epoch_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # at the end of the epoch it is that of the next one

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **figures, "lr": self._lr})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
