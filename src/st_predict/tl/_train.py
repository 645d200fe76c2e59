"""Train a network on measured sections."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from st_predict import checkpoints
from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._keys import Keys
from st_predict._runtime import pick_device, pick_precision
from st_predict._sections import as_list, encoder_of, observe, open_unlabelled, split_patients, store_of
from st_predict._training import Run, best_row, configure, get_preset, learn, monitored
from st_predict._version import __version__
from st_predict.models import get_spec
from st_predict.pp import fit_limits, select_panel
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from spatialdata import SpatialData

    from st_predict._sections import Observed, Sections
    from st_predict._training import TrainConfig
    from st_predict.models import ModelSpec, Preset, SpotModel

__all__ = ["TrainResult", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """Path of the checkpoint, figures of each epoch, and card. :func:`predict` and :func:`superresolve` take it as ``model``."""

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
        Without it, there is nothing to monitor: the last epoch is kept, whatever ``monitor`` and ``patience`` of
        ``config`` are; the history has no ``val_`` columns, and ``training["kept"]`` of the card says ``"last epoch"``.
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
        More fields of the :class:`~st_predict.specs.ModelCard`: ``organism``, ``license``, ``citation``...

    Returns
    -------
    The checkpoint that was kept, the history and the card. In ``out``: ``{model}.safetensors``, ``history.csv``, and
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
    _check_config(config, spec)
    training, held_out = split_patients(as_list(sdatas), validation, group_key=group_key, allow_shared=allow_shared)
    where = _Where(group_key=group_key, image_key=image_key)
    model_card = _write_card(spec, setting, panel, training, hparams=hparams, mpp=mpp, extra=card or {})
    model_card = _with_limits(model_card, training, where)
    data = _Data(
        training=[o for sdata in training for o in where.observe(sdata, model_card)],
        validation=[o for sdata in held_out for o in where.observe(sdata, model_card)],
        unlabelled=_open_unlabelled(
            unlabelled, model_card, where, training=training, held_out=held_out, allow_shared=allow_shared
        ),
    )
    with torch.device("meta"):  # without memory: unfit hyper-parameters show before any work
        checkpoints.build(model_card)
    run = Run.create(out, spec, resume=resume)
    sections = data.describe(rounds)
    run.note(model_card, config, sections=sections)
    model_card, network, history = _learn(model_card, data, run, config=config, rounds=rounds)
    how = {"group_key": group_key, "preset": preset, **_describe(config, history, validated=bool(held_out))}
    model_card = replace(
        model_card, training={**sections, "shared_patients": data.shared_patients, **how, **model_card.training}
    )
    return TrainResult(
        checkpoint=run.save(network, model_card, history), history=pd.DataFrame(history), card=model_card
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """How to find the patients and the images of the sections."""

    group_key: str
    image_key: Mapping[str, str] | str | None

    def observe(self, sdata: SpatialData, card: ModelCard) -> list[Observed]:
        """Open the measured sections of a slide."""
        counts = "counts" in get_spec(card.model).needs
        return observe(sdata, card, group_key=self.group_key, image_key=self.image_key, counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """The sections of a training, opened once."""

    training: list[Observed]
    validation: list[Observed]
    unlabelled: list[Observed]

    @property
    def shared_patients(self) -> list[str]:
        """Patients that are in training and in validation."""
        return sorted(_patients(self.training) & _patients(self.validation))

    def describe(self, rounds: int) -> dict[str, Any]:
        """Return what a card says of the sections."""
        known = {
            "sections": [o.describe() for o in self.training],
            "validation": [o.describe() for o in self.validation],
        }
        if not self.unlabelled:
            return known
        return {**known, "unlabelled": [o.describe() for o in self.unlabelled], "rounds": rounds}


def _check_config(config: TrainConfig, spec: ModelSpec) -> None:
    """Refuse settings that do not fit the model or the machine."""
    if config.regions and spec.scope == "spot":
        raise InvalidValueError(
            f"regions={config.regions} is for networks that see sections; {spec.name!r} sees single spots."
        )
    pick_precision(config.precision, pick_device(config.device))


def _write_card(
    spec: ModelSpec,
    setting: Preset,
    panel: Sequence[str] | int,
    training: list[SpatialData],
    *,
    hparams: Mapping[str, Any] | None,
    mpp: float | None,
    extra: Mapping[str, Any],
) -> ModelCard:
    """Write the card of the network to train, as far as it is known before the sections are opened."""
    settled = spec.complete(_plain({**spec.hparams, **setting.hparams, **(hparams or {})}))
    crop = spec.crop_for(settled)
    if mpp is not None and crop.mpp not in {None, mpp}:
        logger.warning(
            "mpp=%g replaces the %g um/px that the hyper-parameters of %r ask for.", mpp, crop.mpp, spec.name
        )
    return ModelCard(
        model=spec.name,
        genes=_panel(panel, training, method=setting.panel),
        crop=crop if mpp is None else replace(crop, mpp=mpp),
        pixels=spec.pixels_for(settled),
        target=setting.target or spec.target,
        hparams=settled,
        **extra,
    )


def _plain(hparams: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as the card keeps them; arrays become lists."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(hparams, default=lambda value: value.tolist()))
    except (AttributeError, TypeError) as error:
        raise InvalidTypeError(
            f"hparams are numbers, texts, lists and mappings, which a card can keep; got {hparams}."
        ) from error
    return plain


def _panel(panel: Sequence[str] | int, training: list[SpatialData], *, method: Any) -> tuple[str, ...]:
    if isinstance(panel, str):
        raise InvalidTypeError(f"panel must be a list of genes or how many to select, got {panel!r}.")
    return tuple(select_panel(training, n_genes=panel, method=method) if isinstance(panel, int) else panel)


def _with_limits(card: ModelCard, training: list[SpatialData], where: _Where) -> ModelCard:
    """Add to a card the limits of each gene among the training spots, if its target is scaled to them."""
    if card.target.scale == "none":
        return card
    plain = replace(card, target=replace(card.target, scale="none", limits=None))
    values = [o.target for sdata in training for o in where.observe(sdata, plain)]
    return replace(card, target=replace(card.target, limits=fit_limits(np.concatenate(values))))


def _open_unlabelled(
    unlabelled: Sections | None,
    card: ModelCard,
    where: _Where,
    *,
    training: list[SpatialData],
    held_out: list[SpatialData],
    allow_shared: Sequence[str],
) -> list[Observed]:
    if unlabelled is None:
        return []
    spec = get_spec(card.model)
    if spec.closed_form or spec.scope == "section":
        raise InvalidValueError(
            f"unlabelled= is for networks that see single spots and learn by gradients, not for {card.model!r}."
        )
    return open_unlabelled(
        as_list(unlabelled),
        card,
        training=training,
        held_out=held_out,
        group_key=where.group_key,
        allow_shared=allow_shared,
        image_key=where.image_key,
    )


def _learn(
    card: ModelCard, data: _Data, run: Run, *, config: TrainConfig, rounds: int
) -> tuple[ModelCard, SpotModel, list[dict[str, float]]]:
    """Cut what the network reads, and train it; return the card with what was measured for it."""
    device, encoder = pick_device(config.device), encoder_of(card)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".crops-") as crops:
        stores = {
            name: store_of(
                sections, card, encoder, folder=Path(crops) / name, device=device, precision=config.precision
            )
            for name, sections in (
                ("training", data.training),
                ("validation", data.validation),
                ("unlabelled", data.unlabelled),
            )
            if sections
        }
        store = stores["training"]
        if config.measure_pixels and store.crops:
            card = replace(card, pixels=store.measure_pixels())
        network, history = learn(
            card,
            store,
            stores.get("validation"),
            config=config,
            folder=run.folder,
            resume=run.resume,
            unlabelled=stores.get("unlabelled"),
            rounds=rounds,
        )
    return card, network, history


def _describe(config: TrainConfig, history: list[dict[str, float]], *, validated: bool) -> dict[str, Any]:
    """Return what a card says of the training, and of the epoch whose weights it goes with."""
    return {
        "config": asdict(config),
        "kept": f"best epoch by {monitored(config)[0]}" if validated else "last epoch",
        "best": best_row(history, config, validated=validated),
        "st_predict": __version__,
    }


def _patients(sections: list[Observed]) -> set[str]:
    return {patient for section in sections for patient in section.patients}
