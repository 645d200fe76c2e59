"""The only code that runs Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar

from st_predict.models import build_model
from st_predict.models._device import pick_device
from st_predict.tl._device import pick_precision
from st_predict.tl._lightning import Adapter, History, quiet
from st_predict.tl._section_loader import for_training, in_order

if TYPE_CHECKING:
    from pathlib import Path

    from st_predict.models import ModelCard, SpotModel
    from st_predict.tl._config import TrainConfig
    from st_predict.tl._crop_store import CropStore, Store

__all__ = ["fit"]


def fit(
    card: ModelCard,
    data: Store,
    val_data: CropStore | None,
    *,
    config: TrainConfig,
    folder: Path,
    resume: bool,
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Run Lightning; return the network with its best weights, and the history."""
    monitor, mode = ("val_pearson", "max") if config.monitor == "pearson" else ("val_loss", "min")
    history = History()
    where: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
    }
    keep = ModelCheckpoint(filename="best", monitor=monitor if val_data is not None else None, mode=mode, **where)
    # not save_last=True, which saves only where an epoch is the best; behind keep, whose state it holds
    last = ModelCheckpoint(filename="last", **where)
    callbacks: list[L.Callback] = [history, keep, last]
    if val_data is not None and config.patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=config.patience, check_finite=False))
    if config.progress:
        callbacks.append(TQDMProgressBar())
    loader = for_training(data, card, config)
    with torch.random.fork_rng(_gpus(config)), quiet():
        torch.manual_seed(config.seed)  # noqa: TID251  # initial weights know no other generator
        network = build_model(card)
        if not resume:
            network.load_pretrained()
        if config.start_at_mean:
            network.start_at(torch.from_numpy(data.target.mean(axis=0)))
        adapter = Adapter(
            network,
            config,
            loader=loader,
            reference=in_order(data.measured, card, config),
            sections=None if val_data is None else val_data.section,
        )
        _trainer(config, callbacks).fit(
            adapter,
            loader,
            # mixed, as a contrastive loss compares the spots of a batch
            None if val_data is None else in_order(val_data, card, config, mixed=True),
            ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None,
            weights_only=False if resume else None,  # the file is our own
        )
    if val_data is not None:
        best = Adapter.load_from_checkpoint(
            keep.best_model_path, network=adapter.network, config=config, map_location="cpu", weights_only=False
        )
        return best.network.eval(), history.rows
    return adapter.network.eval(), history.rows


def _gpus(config: TrainConfig) -> list[torch.device]:
    device = pick_device(config.device)
    return [device] if device.type == "cuda" else []


def _trainer(config: TrainConfig, callbacks: list[L.Callback]) -> L.Trainer:
    device = pick_device(config.device)
    return L.Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision=pick_precision(config.precision, device),
        max_epochs=config.epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=config.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=config.clip,
    )
