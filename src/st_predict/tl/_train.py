"""Train a network on measured sections."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import st_predict
from st_predict._keys import Keys
from st_predict.models import ModelCard, get_spec, save_checkpoint
from st_predict.models._device import pick_device
from st_predict.pp import select_panel
from st_predict.tl._config import TrainConfig
from st_predict.tl._crop_store import CropLoader, CropStore
from st_predict.tl._device import pick_precision
from st_predict.tl._observed import observe
from st_predict.tl._sections import as_list
from st_predict.tl._split import split_patients

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from spatialdata import SpatialData

    from st_predict.models import SpotModel
    from st_predict.tl._observed import Observed
    from st_predict.tl._sections import Sections

__all__ = ["TrainResult", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What training left: the file of the best weights, the figures of each epoch, the card."""

    checkpoint: Path
    history: pd.DataFrame
    card: ModelCard


def train(  # noqa: PLR0913  # every one is a keyword that users of trainers look for
    sdatas: Sections,
    model: str = "m2ost",
    *,
    panel: Sequence[str] | int,
    out: PathLike[str] | str,
    validation: Sections | Sequence[str] | None = None,
    group_key: str = Keys.PATIENT,
    allow_shared: Sequence[str] = (),
    image_key: Mapping[str, str] | str | None = None,
    mpp: float | None = None,
    hparams: Mapping[str, Any] | None = None,
    config: TrainConfig | None = None,
    resume: bool = False,
    card: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a network to predict the expression of spots from the image around them.

    Parameters
    ----------
    sdatas
        Measured sections: each with an image, spots, and a table of raw counts that names the patient of each spot.
    model
        Name of a model (:func:`st_predict.models.list_models`).
    panel
        Genes to predict, in order; a number selects so many by the rule of M2OST
        (:func:`st_predict.pp.select_panel`) from the training sections.
    out
        Folder for the results, made if it does not exist. Results that are there already are never overwritten.
    validation
        Sections that choose the best epoch, or names of patients in ``sdatas`` to hold out for that.
        Without it, the last epoch is kept.
    group_key
        Column of ``.obs`` that says whose tissue a spot is. No patient may be both in training and in validation.
    allow_shared
        Patients that may be, by name; validation on them says how well the network does on *other sections of
        patients it knows*, and the card says so.
    image_key
        RGB image of the sections; may be left out where there is one. A mapping from region to image, for tables of
        several sections.
    mpp
        Resolution to train at, in um/px of the finest level; the mpp of every image must then be known.
        By default that of the model, for most ``None``: pixels as they are.
    hparams
        Hyper-parameters of the network that differ from the published ones.
    config
        How to train.
    resume
        Go on from the last epoch that ``out`` holds.
    card
        More fields of the :class:`~st_predict.models.ModelCard`: ``organism``, ``license``, ``citation``...

    Returns
    -------
    The best checkpoint, the history and the card. In ``out``: ``{model}.safetensors``, ``history.csv``, and
    ``checkpoints/``, from which an interrupted run resumes.

    Raises
    ------
    LeakageError
        If a patient is in training and in validation and is not in ``allow_shared``.
    FileExistsError
        If ``out`` holds results and ``resume`` is false.
    KeyError
        If the model or a column does not exist.
    ValueError
        If the panel, the counts, the patients, the images or the settings are unfit; the message says how.
    """
    from st_predict.tl._fit import fit  # takes two seconds, which those who only predict need not wait

    config = config or TrainConfig()
    device = pick_device(config.device)
    pick_precision(config.precision, device)
    spec = get_spec(model)
    training, held_out = split_patients(as_list(sdatas), validation, group_key=group_key, allow_shared=allow_shared)
    genes = _panel(panel, training)
    hparams = {**spec.hparams, **(hparams or {})}
    model_card = ModelCard(
        model=model,
        genes=genes,
        crop=replace(spec.crop_for(hparams), mpp=spec.crop.mpp if mpp is None else mpp),
        pixels=spec.pixels,
        target=spec.target,
        hparams=hparams,
        **(card or {}),
    )
    observed, val_observed = (
        [o for sdata in sdatas for o in observe(sdata, model_card, group_key=group_key, image_key=image_key)]
        for sdatas in (training, held_out)
    )
    folder = _prepare(Path(out), model, resume=resume)
    sections_of_card = {
        "sections": [o.describe() for o in observed],
        "validation": [o.describe() for o in val_observed],
    }
    _note(folder / "checkpoints" / "begun.json", model_card, config, sections=sections_of_card, resume=resume)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".crops-") as crops:
        data = CropStore.cut(observed, model_card.crop, folder=Path(crops) / "training")
        val_data = (
            CropStore.cut(val_observed, model_card.crop, folder=Path(crops) / "validation") if val_observed else None
        )
        network, history = fit(model_card, data, val_data, config=config, folder=folder, resume=resume)
        hparams |= network.finalize(CropLoader(data, config.batch_size))
    training_of_card = {
        **sections_of_card,
        "shared_patients": sorted(_patients(observed) & _patients(val_observed)),
        "config": asdict(config),
        "best": _best_row(history, config) if held_out else history[-1],
        "st_predict": st_predict.__version__,
        **model_card.training,
    }
    return _save(folder, network, replace(model_card, hparams=hparams, training=training_of_card), history)


def _panel(panel: Sequence[str] | int, training: list[SpatialData]) -> tuple[str, ...]:
    if isinstance(panel, str):
        raise TypeError(f"panel must be a list of genes or how many to select, got {panel!r}.")
    return tuple(select_panel(training, n_genes=panel) if isinstance(panel, int) else panel)


def _patients(sections: list[Observed]) -> set[str]:
    return {patient for section in sections for patient in section.patients}


def _prepare(out: Path, model: str, *, resume: bool) -> Path:
    """Make the folder; results that are there are kept."""
    checkpoint, last = out / f"{model}.safetensors", out / "checkpoints" / "last.ckpt"
    if resume and not last.is_file():
        raise FileNotFoundError(f"There is nothing to resume: no {str(last)!r}.")
    if not resume and any(path.exists() for path in (checkpoint, last, out / "history.csv")):
        raise FileExistsError(f"{str(out)!r} already holds a training: resume it, or name another folder.")
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"Can't write results to {str(out)!r}: {error.strerror}") from error
    return out


def _note(path: Path, card: ModelCard, config: TrainConfig, *, sections: dict[str, Any], resume: bool) -> None:
    """Note what is trained on what, and refuse to resume with something else."""
    free = {"epochs", "patience", "device", "precision", "progress"}  # what may change on the way
    now = json.loads(card.to_json()) | json.loads(json.dumps(sections))
    now |= {f"config.{name}": value for name, value in asdict(config).items() if name not in free}
    if not resume:  # a note that is there is of a training that ended before its first epoch did
        path.write_text(json.dumps(now), encoding="utf-8")
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    if changed := sorted(name for name in now.keys() | begun.keys() if now.get(name) != begun.get(name)):
        raise ValueError(
            f"{str(path.parent)!r} was begun with another {' and '.join(changed)}: resume with the same, or start anew in "
            "another folder."
        )


def _best_row(history: list[dict[str, float]], config: TrainConfig) -> dict[str, float]:
    if config.monitor == "pearson":
        return max(history, key=lambda row: row["val_pearson"])
    return min(history, key=lambda row: row["val_loss"])


def _save(folder: Path, network: SpotModel, card: ModelCard, history: list[dict[str, float]]) -> TrainResult:
    path = folder / f"{card.model}.safetensors"
    save_checkpoint(path, network, card)
    table = pd.DataFrame(history)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".history-") as fresh:
        whole = Path(fresh) / "history.csv"
        table.to_csv(whole, index=False)
        whole.replace(folder / "history.csv")
    logger.info("Wrote %s.", path)
    return TrainResult(checkpoint=path, history=table, card=card)
