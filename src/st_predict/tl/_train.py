"""Train a network on measured sections."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import st_predict
from st_predict._keys import Keys
from st_predict.models import Inference, ModelCard, build_model, get_spec, save_checkpoint
from st_predict.models._device import pick_device
from st_predict.pp import fit_limits, select_panel
from st_predict.tl._cells import join_cells
from st_predict.tl._config import configure, get_preset
from st_predict.tl._crop_store import CropStore
from st_predict.tl._device import pick_precision
from st_predict.tl._inputs import encoder_of, features_of, pinned
from st_predict.tl._observed import observe
from st_predict.tl._pseudo import fit_rounds, open_unlabelled
from st_predict.tl._section_loader import in_order
from st_predict.tl._sections import as_list
from st_predict.tl._split import split_patients
from st_predict.tl._validation import validation_scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from spatialdata import SpatialData

    from st_predict.models import Encoder, ModelSpec, SpotModel
    from st_predict.tl._config import TrainConfig
    from st_predict.tl._observed import Observed
    from st_predict.tl._section_loader import Loader
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
    preset: str = "paper",
    hparams: Mapping[str, Any] | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    unlabelled: Sections | None = None,
    rounds: int = 5,
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
        Genes to predict, in order; a number selects so many from the training sections, by the rule of the preset
        (:func:`st_predict.pp.select_panel`).
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
    preset
        ``"paper"`` trains every model as the M2OST paper did, so that models can be compared; ``"original"`` as the
        publication of the model itself did: target, hyper-parameters, rule of the panel, optimiser. What of that is not
        reproduced is in ``original.notes`` of its :class:`~st_predict.models.ModelSpec`.
    hparams
        Hyper-parameters of the network that differ from those of the preset.
    config
        Fields of :class:`TrainConfig` that differ from those of the preset, as a mapping; a whole :class:`TrainConfig`
        replaces them all.
    unlabelled
        More slides, measured or not, for semi-supervised training: in each of ``rounds`` rounds the network labels a new
        part of their spots, and a fresh network is trained on these as well :cite:p:`Monjo2022`. Their counts are not
        used, and sections of training or validation are refused.
    rounds
        How many such rounds.
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
        If the preset, the panel, the counts, the patients, the images or the settings are unfit; the message says how.
    ModuleNotFoundError
        If the model needs timm and that is not installed.
    ConnectionError
        If the hyper-parameters ask for weights that are not in the cache and cannot be got.
    """
    spec = get_spec(model)
    setting = get_preset(spec, preset)
    config = configure(setting, config)
    if config.regions and spec.scope == "spot":
        raise ValueError(f"regions={config.regions} is for networks that see sections; {model!r} sees single spots.")
    pick_precision(config.precision, pick_device(config.device))
    training, held_out = split_patients(as_list(sdatas), validation, group_key=group_key, allow_shared=allow_shared)
    hparams = pinned(spec, _plain({**spec.hparams, **setting.hparams, **(hparams or {})}))
    crop = spec.crop_for(hparams)
    if mpp is not None and crop.mpp not in {None, mpp}:
        logger.warning("mpp=%g replaces the %g um/px that the hyper-parameters of %r ask for.", mpp, crop.mpp, model)
    model_card = ModelCard(
        model=model,
        genes=_panel(panel, training, method=setting.panel),
        crop=crop if mpp is None else replace(crop, mpp=mpp),
        pixels=spec.pixels_for(hparams),
        target=setting.target or spec.target,
        hparams=hparams,
        **(card or {}),
    )
    where: dict[str, Any] = {"group_key": group_key, "image_key": image_key}
    model_card = _with_limits(model_card, training, **where)
    observed, val_observed = (
        [o for sdata in sdatas for o in observe(sdata, model_card, counts="counts" in spec.needs, **where)]
        for sdatas in (training, held_out)
    )
    with torch.device("meta"):  # without memory: unfit hyper-parameters show before any work
        build_model(model_card)
    extra = (
        []
        if unlabelled is None
        else _open_unlabelled(
            unlabelled, model_card, training=training, held_out=held_out, allow_shared=allow_shared, **where
        )
    )
    folder = _prepare(Path(out), spec, resume=resume)
    sections_of_card = {
        "sections": [o.describe() for o in observed],
        "validation": [o.describe() for o in val_observed],
        **({"unlabelled": [o.describe() for o in extra], "rounds": rounds} if extra else {}),
    }
    _note(folder / "checkpoints" / "begun.json", model_card, config, sections=sections_of_card, resume=resume)
    work = _Work(config=config, folder=folder, resume=resume, rounds=rounds)
    model_card, network, history = _learn(model_card, observed, val_observed, extra, work=work)
    training_of_card = {
        **sections_of_card,
        "shared_patients": sorted(_patients(observed) & _patients(val_observed)),
        "group_key": group_key,
        "preset": preset,
        "config": asdict(config),
        "best": _best_row(history, config) if held_out else history[-1],
        "st_predict": st_predict.__version__,
        **model_card.training,
    }
    return _save(folder, network, replace(model_card, training=training_of_card), history)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """How, and where, to train."""

    config: TrainConfig
    folder: Path
    resume: bool
    rounds: int


def _learn(
    card: ModelCard, observed: list[Observed], val_observed: list[Observed], extra: list[Observed], *, work: _Work
) -> tuple[ModelCard, SpotModel, list[dict[str, float]]]:
    """Train on what was measured, and on ``extra`` spots that were not; return the card with what was measured for it."""
    config = work.config
    with tempfile.TemporaryDirectory(dir=work.folder, prefix=".crops-") as crops:
        store = partial(_store, card=card, config=config, encoder=encoder_of(card))
        data, val_data, spots = (
            store(sections, folder=Path(crops) / name) if sections else None
            for name, sections in (("training", observed), ("validation", val_observed), ("unlabelled", extra))
        )
        assert data is not None  # there is a section to train on
        if config.measure_pixels and data.crops:
            card = replace(card, pixels=data.measure_pixels())
        if get_spec(card.model).closed_form:
            return card, *_solve(card, data, val_data, config=config)
        from st_predict.tl._fit import fit  # takes two seconds, which those who only predict need not wait

        how: dict[str, Any] = {"config": config, "folder": work.folder, "resume": work.resume}
        if spots is None:
            network, history = fit(card, data, val_data, **how)
        else:
            network, history = fit_rounds(card, data, val_data, spots, rounds=work.rounds, **how)
        network.finalize(in_order(data, card, config))
        return card, network, history


def _plain(hparams: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as the card keeps them; arrays become lists."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(hparams, default=lambda value: value.tolist()))
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"hparams are numbers, texts, lists and mappings, which a card can keep; got {hparams}."
        ) from error
    return plain


def _panel(panel: Sequence[str] | int, training: list[SpatialData], *, method: Any) -> tuple[str, ...]:
    if isinstance(panel, str):
        raise TypeError(f"panel must be a list of genes or how many to select, got {panel!r}.")
    return tuple(select_panel(training, n_genes=panel, method=method) if isinstance(panel, int) else panel)


def _with_limits(card: ModelCard, training: list[SpatialData], **where: Any) -> ModelCard:
    """Add to a card the limits of each gene among the training spots, if its target is scaled to them."""
    if card.target.scale == "none":
        return card
    plain = replace(card, target=replace(card.target, scale="none", limits=None))
    values = [o.target for sdata in training for o in observe(sdata, plain, **where)]
    return replace(card, target=replace(card.target, limits=fit_limits(np.concatenate(values))))


def _open_unlabelled(unlabelled: Sections, card: ModelCard, **where: Any) -> list[Observed]:
    spec = get_spec(card.model)
    if spec.closed_form or spec.scope == "section":
        raise ValueError(
            f"unlabelled= is for networks that see single spots and learn by gradients, not for {card.model!r}."
        )
    return open_unlabelled(as_list(unlabelled), card, **where)


def _store(
    observed: list[Observed], *, card: ModelCard, config: TrainConfig, encoder: Encoder | None, folder: Path
) -> CropStore:
    """Cut the crops of measured sections, or compute the features that the model reads instead."""
    if encoder is None:
        return CropStore.cut(observed, card.crop, folder=folder)
    how: dict[str, Any] = {"device": pick_device(config.device), "precision": config.precision}
    features = [features_of(o.section, card, encoder, **how) for o in observed]
    return CropStore.of_features(observed, join_cells(features))


def _solve(
    card: ModelCard, data: CropStore, val_data: CropStore | None, *, config: TrainConfig
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Fit a model that has a solution in closed form."""
    network = build_model(card).eval()
    network.finalize(in_order(data, card, config))
    scores = {} if val_data is None else _validate(network, val_data, in_order(val_data, card, config))
    return network, [{"epoch": 0, **scores}]


def _validate(network: SpotModel, val_data: CropStore, loader: Loader) -> dict[str, float]:
    inference = Inference(network, device=pick_device("cpu"), precision="float32")
    parts = [prediction.numpy() for _, prediction in inference.over(loader)]
    scores = validation_scores(np.concatenate(parts), val_data.target, val_data.section)
    return {**scores, "val_loss": scores["val_mse"]}


def _patients(sections: list[Observed]) -> set[str]:
    return {patient for section in sections for patient in section.patients}


def _prepare(out: Path, spec: ModelSpec, *, resume: bool) -> Path:
    """Make the folder; results that are there are kept."""
    checkpoint, last = out / f"{spec.name}.safetensors", out / "checkpoints" / "last.ckpt"
    if resume and not last.is_file():
        raise FileNotFoundError(f"There is nothing to resume: no {str(last)!r}.")
    if not resume and any(path.exists() for path in (checkpoint, last, out / "history.csv")):
        way_out = "name another folder" if spec.closed_form else "resume it, or name another folder"
        raise FileExistsError(f"{str(out)!r} already holds a training: {way_out}.")
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"Can't write results to {str(out)!r}: {error.strerror}") from error
    return out


def _note(path: Path, card: ModelCard, config: TrainConfig, *, sections: dict[str, Any], resume: bool) -> None:
    """Note what is trained on what, and refuse to resume with something else."""
    free = {"device", "precision", "progress"}  # what may change on the way
    if "rounds" not in sections:  # a round that has ended is not gone on with
        free |= {"epochs", "patience"}
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
