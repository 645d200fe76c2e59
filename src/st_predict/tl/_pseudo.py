"""Semi-supervised training: rounds in which a network labels spots that a fresh one then learns from as well."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from st_predict.crops import Batch
from st_predict.io import find_table
from st_predict.models import Inference, get_spec, load_checkpoint, save_checkpoint
from st_predict.models._device import pick_device
from st_predict.tl._crop_store import CropLoader
from st_predict.tl._observed import Observed
from st_predict.tl._sections import open_sections
from st_predict.tl._split import LeakageError, refuse_same_sections

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.models import ModelCard, SpotModel
    from st_predict.tl._config import TrainConfig
    from st_predict.tl._crop_store import CropStore
    from st_predict.tl._sections import Section

__all__ = ["JoinedStore", "fit_rounds", "label", "open_unlabelled", "split_rounds"]

logger = logging.getLogger(__name__)

_READ = 256  # spots that are labelled at a time


def open_unlabelled(
    slides: Sequence[SpatialData],
    card: ModelCard,
    *,
    training: Sequence[SpatialData],
    held_out: Sequence[SpatialData],
    group_key: str,
    allow_shared: Sequence[str] = (),
    image_key: Mapping[str, str] | str | None = None,
) -> list[Observed]:
    """Open slides for their spots alone; counts are not looked at, and there need not be any.

    Parameters
    ----------
    slides
        Slides with spots to label.
    card
        What the network needs.
    training
        Slides of training: their spots have a measured target, and get no other.
    held_out
        Slides of validation: none of their sections, images or patients may be labelled, as far as the same objects and
        the tables tell; an image that was read twice is not recognised.
    group_key
        Column of ``.obs`` that says whose tissue a spot is, where there is a table that has it.
    allow_shared
        Patients that may be, by name; other sections of them, that is.
    image_key
        As in :func:`st_predict.tl.train`.

    Returns
    -------
    Sections whose targets are ``(n_spots, 0)``, with the spots that lie in the image.

    Raises
    ------
    LeakageError
        If spots of validation, or of training, would be labelled.
    KeyError, ValueError
        If an element does not exist or is ambiguous, or mpp is needed and not known.
    """
    known = [slide for slide in slides if _patients(slide, group_key)]
    for others, where in ((held_out, "validation"), (training, "training")):
        refuse_same_sections(known, others, group_key=group_key, what=f"in {where} and to be labelled")
    patients = set().union(*(_patients(slide, group_key) for slide in held_out)) - set(allow_shared)
    images = [image for slide in held_out for image in slide.images.values()]
    for number, slide in enumerate(slides):
        shared = sorted(_patients(slide, group_key) & patients)
        if shared or any(image is other for image in slide.images.values() for other in images):
            raise LeakageError(
                f"Unlabelled slide {number} shows {f'patients {shared}' if shared else 'an image'} of validation, which would "
                "then not show how the network does on new tissue. Leave it out."
            )
    need_mpp = card.crop.mpp is not None
    opened = [open_sections(slide, image_key=image_key, need_mpp=need_mpp)[1] for slide in slides]
    return [_without_target(section) for sections in opened for section in sections]


def _patients(slide: SpatialData, group_key: str) -> set[str]:
    """Whose spots a slide holds, as far as its table says so."""
    table_key = find_table(slide, None)
    obs = {} if table_key is None else slide.tables[table_key].obs
    return set(obs[group_key].dropna().astype(str)) if group_key in obs else set()


def _without_target(section: Section) -> Observed:
    rows = np.flatnonzero(~section.outside())
    target = np.empty((len(rows), 0), dtype=np.float32)
    return Observed(name=section.region, patients=(), section=section, rows=rows, target=target)


def split_rounds(n_spots: int, rounds: int, seed: int) -> list[NDArray[np.int64]]:
    """Share spots out among the rounds at random, evenly; each is of one round.

    Raises
    ------
    ValueError
        If there are fewer spots than rounds.
    """
    if not 1 <= rounds <= n_spots:
        raise ValueError(
            f"rounds must be at least 1 and at most the number of unlabelled spots, {n_spots}; got {rounds}."
        )
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(n_spots), rounds)]


def label(inference: Inference, store: CropStore, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Predict some spots of a store, ``(n_spots, n_genes)``."""
    batches = (store.batch(rows[start : start + _READ]) for start in range(0, len(rows), _READ))
    return np.concatenate([prediction.numpy() for _, prediction in inference.over(batches)])


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedStore:
    """Measured spots, and behind them labelled ones; the crops of both stay where they are.

    Parameters
    ----------
    measured
        The training spots.
    unlabelled
        Where the labelled spots come from.
    rows
        ``(n_labelled,)``: which of ``unlabelled``.
    labels
        ``(n_labelled, n_genes)`` float32: their targets.
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

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of these rows."""
        n = len(self.measured)
        of_round = rows >= n
        added = rows[of_round] - n
        labelled = replace(self.unlabelled.batch(self.rows[added]), target=torch.from_numpy(self.labels[added]))
        # where each row is, once the labelled ones stand behind the measured ones
        place = torch.from_numpy(np.argsort(np.argsort(of_round, kind="stable")))
        joined = Batch.cat([self.measured.batch(rows[~of_round]), labelled])
        return replace(joined.take(place), index=torch.from_numpy(rows))

    def add(self, rows: NDArray[np.int64], labels: NDArray[np.float32]) -> JoinedStore:
        """Return a store that has these labelled spots as well."""
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
    """Train; then, in each round, label a new part of the unlabelled spots and train afresh on all that have a label.

    The labels of a spot stay those of its round, and those that were measured stay as they are.

    Parameters
    ----------
    card, data, val_data, config, folder, resume
        As of :func:`st_predict.tl._fit.fit`. What is trained before the first round is kept in ``folder`` as there;
        ``folder/rounds/{round}.safetensors`` is the network that each round ended with, and is not trained again when
        resuming. A round that is not at its end is in ``folder/rounds/{round}``.
    unlabelled
        Crops of spots to label.
    rounds
        How many.

    Returns
    -------
    The network of the round with the best validation; without validation, that of the last round. And the history of all
    rounds, with the column ``"round"``, 0 before the first.
    """
    parts = split_rounds(len(unlabelled), rounds, config.seed)
    nothing = np.empty((0, len(card.genes)), dtype=np.float32)
    store = JoinedStore(measured=data, unlabelled=unlabelled, rows=np.empty(0, dtype=np.int64), labels=nothing)
    where: dict[str, Any] = {"config": config, "folder": folder, "resume": resume}
    network, history = _fit_round(0, card, store, val_data, **where)
    for number, rows in enumerate(parts, start=1):
        store = store.add(rows, label(_inference(network, card, config), unlabelled, rows))
        logger.info("Round %d of %d: %d spots, of which %d are labelled.", number, rounds, len(store), len(store.rows))
        network, figures = _fit_round(number, card, store, val_data, **where)
        history = history + figures
    best = rounds if val_data is None else _best_round(history, config)
    return (network if best == rounds else _load(_file(folder, best))[0]), history


def _fit_round(
    number: int,
    card: ModelCard,
    store: JoinedStore,
    val_data: CropStore | None,
    *,
    config: TrainConfig,
    folder: Path,
    resume: bool,
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Train a round, or load what it ended with."""
    from st_predict.tl._fit import fit  # takes two seconds, which those who only predict need not wait

    file = _file(folder, number)
    if resume and file.is_file():
        return _load(file)
    place = folder if number == 0 else folder / "rounds" / str(number)
    begun = (place / "checkpoints" / "last.ckpt").is_file()
    network, figures = fit(card, store, val_data, config=config, folder=place, resume=resume and begun)
    network.finalize(CropLoader(store.measured, config.batch_size))
    history = [{"round": number, **row} for row in figures]
    file.parent.mkdir(exist_ok=True)
    save_checkpoint(file, network, replace(card, training={"history": history}))
    if number > 0:
        shutil.rmtree(place)  # three times as large as the weights, twice
    return network, history


def _file(folder: Path, number: int) -> Path:
    return folder / "rounds" / f"{number}.safetensors"


def _load(file: Path) -> tuple[SpotModel, list[dict[str, float]]]:
    with torch.random.fork_rng(devices=[]):  # which the weights that are replaced are drawn from
        network, card = load_checkpoint(file)
    return network, card.training["history"]


def _inference(network: SpotModel, card: ModelCard, config: TrainConfig) -> Inference:
    return Inference(
        network,
        device=pick_device(config.device),
        precision=config.precision,
        symmetries=get_spec(card.model).symmetries,
    )


def _best_round(history: list[dict[str, float]], config: TrainConfig) -> int:
    if config.monitor == "pearson":
        return int(max(history, key=lambda row: row["val_pearson"])["round"])
    return int(min(history, key=lambda row: row["val_loss"])["round"])
