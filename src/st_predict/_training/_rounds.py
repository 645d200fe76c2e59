"""Pseudo-labelling: in each round, a network labels spots on which a fresh network is then trained as well."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from st_predict import checkpoints
from st_predict._errors import InvalidValueError
from st_predict._progress import track
from st_predict._runtime import Inference, pick_device
from st_predict._training._fit import fit
from st_predict._training._loader import CropLoader
from st_predict._training._scores import best_row
from st_predict._training._state import is_begun
from st_predict._validated import Count, check
from st_predict.crops import Batch
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig
    from st_predict._training._store import CropStore
    from st_predict.models import SpotModel

__all__ = ["JoinedStore", "fit_rounds", "label", "split_rounds"]

logger = logging.getLogger(__name__)

_READ = 256  # spots labelled at a time


def split_rounds(n_spots: int, rounds: int, seed: int) -> list[NDArray[np.int64]]:
    """Split spots evenly and at random among the rounds.

    Raises
    ------
    ValueError
        If there are fewer spots than rounds.
    """
    if check("rounds", rounds, Count) > n_spots:
        raise InvalidValueError(f"rounds must be at most the number of unlabelled spots, {n_spots}, got {rounds}.")
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(n_spots), rounds)]


def label(inference: Inference, store: CropStore, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Predict selected spots of a store, ``(n_spots, n_genes)``."""
    batches = (store.batch(rows[start : start + _READ]) for start in range(0, len(rows), _READ))
    done = track(inference.over(batches), "Labelling", len(rows), unit="spot", size=lambda one: len(one[0]))
    return np.concatenate([prediction.numpy() for _, prediction in done])


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedStore:
    """Measured spots followed by pseudo-labelled ones, without copying crops.

    Parameters
    ----------
    measured
        Training spots.
    unlabelled
        Store of the spots without measured target.
    rows
        Rows of ``unlabelled`` that have labels, ``(n_labelled,)``.
    labels
        Targets of these rows, ``(n_labelled, n_genes)`` float32.
    """

    measured: CropStore
    unlabelled: CropStore
    rows: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.measured) + len(self.rows)

    @property
    def target(self) -> NDArray[np.float32]:
        """``(n_spots, n_genes)``."""
        return np.concatenate([self.measured.target, self.labels])

    @property
    def n_bytes(self) -> int:
        """Memory of all crops and features."""
        return self.measured.n_bytes + self.unlabelled.n_bytes

    def to(self, device: torch.device) -> JoinedStore:
        """Return a store that is held by a device, where batches are made."""
        return replace(self, measured=self.measured.to(device), unlabelled=self.unlabelled.to(device))

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of these rows."""
        n = len(self.measured)
        of_round = rows >= n
        added = rows[of_round] - n
        crops = self.unlabelled.batch(self.rows[added])
        device = crops.index.device
        labelled = replace(crops, target=torch.from_numpy(self.labels[added]).to(device))
        # places in the result: measured rows come first, then labelled ones
        place = torch.from_numpy(np.argsort(np.argsort(of_round, kind="stable"))).to(device)
        joined = Batch.cat([self.measured.batch(rows[~of_round]), labelled])
        return replace(joined.take(place), index=torch.from_numpy(rows).to(device))

    def add(self, rows: NDArray[np.int64], labels: NDArray[np.float32]) -> JoinedStore:
        """Return a store with further labelled spots."""
        return replace(self, rows=np.concatenate([self.rows, rows]), labels=np.concatenate([self.labels, labels]))


def fit_rounds(
    card: ModelCard,
    data: CropStore,
    val_data: CropStore | None,
    unlabelled: CropStore,
    *,
    config: TrainConfig,
    folder: Path,
    resume: bool,
    rounds: int,
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Train; then in each round label a new part of the unlabelled spots and train anew on all labelled spots.

    Pseudo-labels keep the values of their round; measured targets do not change.

    Parameters
    ----------
    card, data, val_data, config, folder, resume
        Arguments of :func:`~st_predict._training._fit.fit`. The network before the first round is kept in ``folder``. Finished
        rounds are kept in ``folder/rounds/{round}.safetensors`` and not trained again when resuming. An unfinished round is in
        ``folder/rounds/{round}``.
    unlabelled
        Crops of spots to label.
    rounds
        Number of rounds.

    Returns
    -------
    tuple of SpotModel and list
        The network of the round with the best validation score (without validation, of the last round), and the history
        of all rounds, with the column ``"round"``, 0 before the first.
    """
    parts = split_rounds(len(unlabelled), rounds, config.seed)
    nothing = np.empty((0, len(card.genes)), dtype=np.float32)
    store = JoinedStore(measured=data, unlabelled=unlabelled, rows=np.empty(0, dtype=np.int64), labels=nothing)
    train = partial(_fit_round, card=card, val_data=val_data, config=config, folder=folder, resume=resume)
    network, history = train(0, store)
    for number, rows in enumerate(parts, start=1):
        store = store.add(rows, label(_inference(network, card, config), unlabelled, rows))
        logger.info("Round %d of %d: %d spots, of which %d are labelled.", number, rounds, len(store), len(store.rows))
        network, figures = train(number, store)
        history = history + figures
    best = rounds if val_data is None else int(best_row(history, config)["round"])
    return (network if best == rounds else _load(_file(folder, best), card)[0]), history


def _fit_round(
    number: int,
    store: JoinedStore,
    *,
    card: ModelCard,
    val_data: CropStore | None,
    config: TrainConfig,
    folder: Path,
    resume: bool,
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Train a round, or load its result."""
    file = _file(folder, number)
    if resume and file.is_file():
        return _load(file, card)
    place = folder if number == 0 else folder / "rounds" / str(number)
    network, figures = fit(card, store, val_data, config=config, folder=place, resume=resume and is_begun(place))
    network.finalize(CropLoader(store.measured, config.batch_size))
    history = [{"round": number, **row} for row in figures]
    file.parent.mkdir(exist_ok=True)
    checkpoints.save(file, network, replace(card, training={"history": history}))
    if number > 0:
        shutil.rmtree(place)  # two files, each three times as large as the weights
    return network, history


def _file(folder: Path, number: int) -> Path:
    return folder / "rounds" / f"{number}.safetensors"


def _load(file: Path, card: ModelCard) -> tuple[SpotModel, list[dict[str, float]]]:
    """Read the weights of a round into the network of ``card``, and its history."""
    stored = ModelCard.of_file(file)
    if (stored.model, stored.genes, stored.hparams) != (card.model, card.genes, card.hparams):
        raise InvalidValueError(f"{str(file)!r} belongs to another training.", "start anew in another folder")
    network, stored = checkpoints.load(file, trust=True)  # its card equals the caller's
    return network, stored.training["history"]


def _inference(network: SpotModel, card: ModelCard, config: TrainConfig) -> Inference:
    return Inference(
        network,
        device=pick_device(config.device),
        precision=config.precision,
        symmetries=get_spec(card.model).symmetries,
    )
