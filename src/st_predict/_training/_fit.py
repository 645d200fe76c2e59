"""Train a network with Lightning. No other module imports Lightning."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import signal
import threading
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from st_predict import checkpoints
from st_predict._errors import Advice, InvalidValueError
from st_predict._progress import bar
from st_predict._runtime import pick_device, pick_precision
from st_predict._training._loader import for_training, in_order
from st_predict._training._loss import objective
from st_predict._training._parts import splits, take_parts
from st_predict._training._ranks import Ranks
from st_predict._training._scores import best_row, monitored, validation_scores
from st_predict._training._state import BEST, LAST, find_state, intact, replaced, versions
from st_predict._training._store import held_by
from st_predict.crops import Batch, augment, drop_levels, jitter_stain
from st_predict.models import SpotModel, get_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from st_predict._training._config import TrainConfig
    from st_predict._training._loader import Loader
    from st_predict._training._store import CropStore, Store
    from st_predict.specs import ModelCard

__all__ = ["Adapter", "History", "fit", "quiet"]

# Warnings of Lightning about intended behaviour.
_MEANT = (
    "You defined a `validation_step` but have no `val_dataloader`",
    "Checkpoint directory .* exists and is not empty",
    "GPU available but not used",
    "MPS available but not used",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # a frozen backbone
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)

_CHATTY = ("pytorch.utilities.rank_zero", "fabric.utilities.distributed", "fabric.utilities.rank_zero")
"""Loggers of Lightning that say which devices there are."""

_NEVER = 2**62
"""Step beyond any training."""

_ASK_EVERY = 50  # steps


def fit(
    card: ModelCard,
    data: Store,
    val_data: CropStore | None,
    *,
    config: TrainConfig,
    folder: Path,
    resume: bool,
    ranks: Ranks | None = None,
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Run Lightning; return the network of the best epoch (without validation, the last epoch) and the history."""
    ranks = ranks or Ranks()
    state = find_state(folder) if resume else None
    history, callbacks = _callbacks(config, folder / "checkpoints", validated=val_data is not None)
    device = _device(config, ranks)
    loader = for_training(held_by(device, data), card, config, ranks)
    with torch.random.fork_rng(_gpus(config)), quiet(), _interrupts(), _reading_state(folder):
        torch.manual_seed(config.seed)  # noqa: TID251  # initial weights know no other generator
        network = checkpoints.build(card)
        reference = in_order(data.measured, card, config)
        if not resume:
            network.load_pretrained()
            network.fit_inputs(reference)
        if config.start_at_mean:
            network.start_at(torch.from_numpy(data.target.mean(axis=0)))
        adapter = Adapter(
            network,
            config,
            loss=objective(config, data.measured.target),
            loader=loader,
            reference=reference,
            sections=None if val_data is None else val_data.section,
            splits=ranks.world == 1 and splits(network, config, section_level=get_spec(card.model).scope == "section"),
        )
        _trainer(config, callbacks, ranks).fit(
            adapter,
            loader,
            # mixed, because a contrastive loss compares the spots of a batch
            None if val_data is None else in_order(held_by(device, val_data), card, config, mixed=True),
            ckpt_path=state,
            weights_only=True,  # last.ckpt has only tensors, numbers and texts, no code
        )
    if val_data is not None:
        with _reading_state(folder):
            adapter = _load_best(adapter, folder / "checkpoints", epoch=int(best_row(history.rows, config)["epoch"]))
    return adapter.kept.eval(), history.rows


@contextmanager
def _reading_state(folder: Path) -> Iterator[None]:
    """Turn errors of reading a training state, damaged or with code in it, into one that names the folder."""
    try:
        yield
    except UnpicklingError as error:
        why = str(error).strip().partition("\n")[0]
        raise InvalidValueError(
            f"A file in {str(folder / 'checkpoints')!r} is damaged, or holds more than tensors, numbers and texts ({why}).",
            "start anew in another folder",
        ) from error


def _load_best(adapter: Adapter, folder: Path, *, epoch: int) -> Adapter:
    """Load the weights of the best epoch from one of two files: a killed run may have replaced the newer one."""
    for path in versions(folder / BEST):
        if intact(path):
            best: Adapter = Adapter.load_from_checkpoint(
                path, network=adapter.network, config=adapter.config, map_location="cpu", weights_only=True
            )
            if best.epoch == epoch:
                return best
    raise InvalidValueError(
        f"The weights of the best epoch, {epoch}, are not in {str(folder / BEST)!r}: it is damaged or from another epoch.",
        "start anew in another folder",
    )


def _callbacks(config: TrainConfig, folder: Path, *, validated: bool) -> tuple[History, list[L.Callback]]:
    """Make the callbacks of a training."""
    monitor, mode = monitored(config)
    history = History()
    save = partial(Keep, dirpath=folder, enable_version_counter=False, save_on_train_epoch_end=True)
    keep = [save(filename=Path(BEST).stem, monitor=monitor, mode=mode)] if validated else []
    # not save_last=True, which saves only best epochs; last, because it stores the state of keep
    callbacks: list[L.Callback] = [history, *keep, save(filename=Path(LAST).stem)]
    if validated and config.patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=config.patience, check_finite=False))
    return history, [*callbacks, Bar()]


def _gpus(config: TrainConfig) -> list[torch.device]:
    device = pick_device(config.device)
    return [device] if device.type == "cuda" else []


def _device(config: TrainConfig, ranks: Ranks) -> torch.device:
    """Return the device of this process."""
    device = pick_device(config.device)
    if ranks.world == 1 or device.type != "cuda":
        return device
    return torch.device("cuda", ranks.local_rank if isinstance(ranks.devices, int) else ranks.devices[ranks.local_rank])


def _trainer(config: TrainConfig, callbacks: list[L.Callback], ranks: Ranks) -> L.Trainer:
    device = pick_device(config.device)
    one = 1 if device.index is None else [device.index]
    # processes that this package started are known by the environment, whatever else runs on the machine
    known = [LightningEnvironment()] if ranks.world > 1 and not ranks.external else []
    return L.Trainer(
        accelerator=device.type,
        devices=one if ranks.world == 1 and isinstance(ranks.devices, int) else ranks.devices,
        num_nodes=ranks.num_nodes,
        strategy=ranks.strategy,
        precision=_precision_of_lightning(config.precision, device),
        max_epochs=config.epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,  # replaced by Bar, which is silent in logs
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=config.clip,
        plugins=[Files(), *known],
    )


def _precision_of_lightning(precision: str, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    return "bf16-mixed" if pick_precision(precision, device) == "bfloat16" else "32-true"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's device messages, hints, and warnings about intended behaviour."""
    chatty = [logging.getLogger(f"lightning.{name}") for name in _CHATTY]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            for message in _MEANT:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interrupts() -> Iterator[None]:
    """Keep Ctrl-C a ``KeyboardInterrupt``: Lightning would ignore further ones and end the process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


class Files(TorchCheckpointIO):
    """Writes files atomically, so that a kill or a full disk leaves the last two intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replaced(Path(path)) as fresh:
            torch.save(checkpoint, fresh)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
            missing = {"state_dict", "callbacks", "loops", "optimizer_states"} - checkpoint.keys()
        except (AttributeError, EOFError, KeyError, RuntimeError) as error:
            raise InvalidValueError(
                f"{str(path)!r} cannot be read ({error}).", "start anew in another folder"
            ) from error
        if missing:
            raise InvalidValueError(
                f"{str(path)!r} is not the state of a training: it lacks {sorted(missing)}.",
                "start anew in another folder",
            )
        return checkpoint


class Keep(ModelCheckpoint):
    """Keeps files in the folder of the training, also if it was moved."""

    @property
    def state_key(self) -> str:
        return super().state_key.replace(
            type(self).__name__, ModelCheckpoint.__name__, 1
        )  # states of earlier versions have this key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        moved = {name: here(state_dict[name]) for name in state_dict if name.endswith("_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "dirpath": self.dirpath, "best_k_models": best})


class Bar(L.Callback):
    """One progress bar for the steps of all epochs, with the scores of the last epoch."""

    def __init__(self) -> None:
        self._bar: Any = None  # before training begins

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = int(trainer.num_training_batches)
        self._bar = bar("Training", steps * (trainer.max_epochs or 0), unit="step", start=trainer.global_step)

    def on_train_batch_end(self, *_: object) -> None:
        self._bar.update()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores = {
            name: float(trainer.callback_metrics[name])
            for name in ("val_pearson", "train_loss")  # a narrow terminal cuts the last
            if name in trainer.callback_metrics
        }
        self._bar.set_postfix(epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}", **scores)

    def on_train_end(self, *_: object) -> None:
        self._bar.close()

    def on_exception(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class Adapter(L.LightningModule):
    """Trains a network; validates it, or its averaged weights, by the mean per-gene correlation within sections."""

    def __init__(
        self,
        network: SpotModel,
        config: TrainConfig,
        *,
        loss: Callable[[SpotModel, Batch], Tensor] | None = None,
        loader: Loader | None = None,
        reference: Loader | None = None,
        sections: NDArray[np.int64] | None = None,
        splits: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(requires_grad=False) if config.average else None
        self.config = config
        self.loss = loss
        self.loader = loader
        self.reference = reference
        self.sections = sections
        self.splits = splits
        self._has_gradients = False
        self._generator = torch.Generator()
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._losses: list[tuple[float, int]] = []
        self._diverged_at: Tensor | None = None
        self.epoch: int | None = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.epoch = checkpoint.get("epoch")

    @property
    def kept(self) -> SpotModel:
        """Network that is validated and kept."""
        return self.network if self.average is None else self.average

    def configure_optimizers(self) -> Any:
        trained, lr, decay = (
            [p for p in self.network.parameters() if p.requires_grad],
            self.config.lr,
            self.config.weight_decay,
        )
        if self.config.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                trained, lr=lr, weight_decay=decay, momentum=self.config.momentum
            )
        else:
            make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.config.optimizer]
            optimizer = make(trained, lr=lr, weight_decay=decay)
        steps = 1 if self.loader is None else len(self.loader)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_lr_factor, config=self.config, steps=steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        # depends only on the epoch, so that a resumed training draws the same random numbers
        seed = self.config.seed + 1_000_003 * self.current_epoch + 7_919 * self.global_rank
        self._generator.manual_seed(seed)
        torch.manual_seed(seed)  # noqa: TID251  # dropout knows no other generator; restored by the caller
        if self.loader is not None:
            self.loader.epoch = self.current_epoch

    def training_step(self, batch: Batch, step: int) -> Tensor:
        if self.config.augment and batch.crops:
            batch = augment(batch, self._generator)
        if self.config.stain_jitter and batch.crops:
            batch = jitter_stain(batch, self.config.stain_jitter, self._generator)
        if self.config.level_drop > 0:
            batch = drop_levels(batch, self.config.level_drop, self._generator)
        weight = 1.0 if self.loader is None else self.loader.weight(step)
        loss, rest = self._descend(batch, weight)
        self._watch(loss)
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=len(batch), prog_bar=True, sync_dist=True)
        return rest

    def _descend(self, batch: Batch, weight: float) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and the part that has no gradients yet: the last one's share."""
        first, *others = take_parts(batch, self.network) if self.splits else [batch]
        rest, whole = self._share(first, batch), torch.zeros(())
        if others:
            self.network.zero_grad()
            self._has_gradients = True
        for part in others:
            with torch.autocast(self.device.type, enabled=False):  # gradients have the precision of the forward pass
                torch.autograd.backward(rest * weight)
            whole = whole + rest.detach()
            rest = self._share(part, batch)
        return whole.to(rest.device) + rest.detach(), rest * weight

    def _share(self, part: Batch, batch: Batch) -> Tensor:
        loss = self.network.loss(part) if self.loss is None else self.loss(self.network, part)
        return loss if part is batch else loss * (len(part) / len(batch))

    def optimizer_zero_grad(self, *args: Any) -> None:
        """Keep the gradients of the first parts, which the training step has added."""
        if not self._has_gradients:
            super().optimizer_zero_grad(*args)
        self._has_gradients = False

    def on_train_batch_end(self, *_: object) -> None:
        if self.average is not None:
            step = self.global_step
            update_average(self.average, self.network, decay=min(self.config.average, (1 + step) / (10 + step)))

    def on_validation_epoch_start(self) -> None:
        assert self.reference is not None  # validation needs it
        self._check_finite()
        self.kept.finalize(self.reference)

    def validation_step(self, batch: Batch, _: int) -> None:
        assert batch.target is not None
        prediction = self.kept(batch).float()
        own = type(self.kept).loss is not SpotModel.loss
        loss = self.kept.loss(batch) if own else F.mse_loss(prediction, batch.target)
        self._losses.append((float(loss), len(batch)))
        self._seen.append((batch.index.cpu(), prediction.cpu(), batch.target.cpu()))

    def on_validation_epoch_end(self) -> None:
        index, prediction, target = (torch.cat(part).numpy() for part in zip(*self._seen, strict=True))
        self._seen.clear()
        losses, sizes = zip(*self._losses, strict=True)
        self._losses.clear()
        assert self.sections is not None  # validation needs them
        scores = validation_scores(prediction, target, self.sections[index])
        loss = float(np.average(losses, weights=sizes))
        if not math.isfinite(loss):
            raise self._diverged("validation loss", loss, step=self.global_step - 1)
        self.log_dict({**scores, "val_loss": loss}, prog_bar=True, sync_dist=True)  # equal in all processes

    def on_train_epoch_end(self) -> None:
        self._check_finite()  # callbacks save weights afterwards

    def _watch(self, loss: Tensor) -> None:
        """Record the first step with a non-finite loss. Read it from a GPU only now and then, as reading synchronises."""
        step = self.global_step
        found = torch.where(torch.isfinite(loss), _NEVER, step)
        self._diverged_at = found if self._diverged_at is None else torch.minimum(self._diverged_at, found)
        if loss.device.type == "cpu" or step % _ASK_EVERY == 0:
            self._check_losses()

    def _check_losses(self) -> None:
        if self._diverged_at is not None and (step := int(self._diverged_at)) != _NEVER:
            raise self._diverged("loss", "not finite", step=step)

    def _check_finite(self) -> None:
        """Refuse losses and weights that are not finite."""
        self._check_losses()
        tensors = itertools.chain(self.kept.named_parameters(), self.network.named_parameters())
        for name, weights in tensors:
            if not bool(torch.isfinite(weights).all()):
                raise self._diverged(f"weight {name!r}", "not finite", step=self.global_step - 1)

    def _diverged(self, what: str, value: float | str, *, step: int) -> InvalidValueError:
        steps = 1 if self.loader is None else len(self.loader)
        lr = self.config.lr * _lr_factor(step, config=self.config, steps=steps)
        return InvalidValueError(
            f"Training diverged: the {what} is {value} at epoch {self.current_epoch}, step {step}, with a learning rate of "
            f"{lr:g}.",
            Advice("start anew in another folder with a smaller 'lr', or with 'clip' or 'warmup', in {}", "config"),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        return batch.to(device)


def update_average(average: SpotModel, network: SpotModel, *, decay: float) -> None:
    """Update the moving average of a network's weights and running statistics.

    Integer buffers, and buffers whose size :meth:`SpotModel.finalize` sets, stay. Torch's ``AveragedModel`` averages either no
    buffers or all, truncates integers, and refuses other sizes; Lightning's callback copies the training data as well.
    """
    tensors = zip(
        itertools.chain(average.parameters(), average.buffers()),
        itertools.chain(network.parameters(), network.buffers()),
        strict=True,
    )
    pairs = [(a.detach(), b.detach()) for a, b in tensors if a.is_floating_point() and a.shape == b.shape]
    averages, currents = ([*part] for part in zip(*pairs, strict=True))
    get_ema_multi_avg_fn(decay)(averages, currents, 0)  # type: ignore[no-untyped-call]


def _lr_factor(step: int, *, config: TrainConfig, steps: int) -> float:
    """Learning rate of a step relative to ``config.lr``: linear warmup, then constant, or half a cosine down to 0."""
    warmup, total = config.warmup * steps, config.epochs * steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class History(L.Callback):
    """Keeps the scores of each epoch, also over an interruption."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._lr = float("nan")

    def on_train_epoch_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        self._lr = trainer.optimizers[0].param_groups[0][
            "lr"
        ]  # at the end of the epoch it already belongs to the next one

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **figures, "lr": self._lr})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
