"""Train a network on measured sections."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from st_predict import checkpoints
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, StPredictError
from st_predict._identifiers import gene_id_type_of
from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._reprs import ShortRepr
from st_predict._runtime import Compute
from st_predict._sections import (
    advice_for,
    as_list,
    check_missing_levels,
    check_sums,
    describe_colours,
    encoder_of,
    keep_common,
    mean_stain,
    measure_each,
    measured_table,
    observe,
    open_sdata,
    open_unlabelled,
    placed_table,
    smoothed,
    split_patients,
    store_of,
    taught,
    teacher_of,
)
from st_predict._stain import Method, Stain
from st_predict._training import Ranks, Run, Strategy, check_objective, configure, describe_training, get_preset, learn
from st_predict._validated import Count, Fields, File, Flag, Natural, Positive, Text, Texts, check
from st_predict._where import Duplicates, GeneMatching, Missing, Where
from st_predict.models import get_spec
from st_predict.pp import fit_target, select_panel, to_target
from st_predict.specs import ModelCard, TargetSpec, check_card_fields, refuse_constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike
    from pathlib import Path

    from spatialdata import SpatialData

    from st_predict._sections import Measured, Observed, Sections
    from st_predict._training import TrainConfig
    from st_predict.encoders import Encoder
    from st_predict.models import ModelSpec, Preset, SpotModel

__all__ = ["TrainResult", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TrainResult(ShortRepr):
    """Result of :func:`train`; :func:`predict` and :func:`superresolve` accept it as ``model``.

    Parameters
    ----------
    checkpoint
        Path of the ``.safetensors`` file.
    history
        One row per epoch: losses, learning rate and, with validation, scores.
    card
        Card of the network.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "mean", panel=["GENE1", "GENE2"], out=out)
    ...     result.checkpoint.name
    'mean.safetensors'
    >>> result.card.genes
    ('GENE1', 'GENE2')
    """

    checkpoint: Path
    history: pd.DataFrame
    card: ModelCard


@shows_progress
def train(  # noqa: PLR0913  # every argument is a keyword
    sdatas: Sections,
    model: str = "m2ost",
    *,
    panel: Sequence[str] | int,
    out: PathLike[str] | str,
    validation: Sections | Sequence[str] | None = None,
    group_key: str = Keys.PATIENT,
    allow_shared: Sequence[str] = (),
    image_key: Mapping[str, str] | str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    shapes_key: str | None = None,
    layer: str | None = None,
    missing: Missing = "error",
    duplicates: Duplicates = "error",
    ignore_case: bool = False,
    id_column: str | None = None,
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    mpp: float | None = None,
    preset: Literal["recommended", "paper", "original"] = "recommended",
    target: TargetSpec | Mapping[str, object] | None = None,
    min_counts: int | None = None,
    tissue_only: bool = True,
    missing_levels: Literal["error", "mask"] = "error",
    stain: Stain | Method | None = None,
    hparams: Mapping[str, object] | None = None,
    config: TrainConfig | Mapping[str, object] | None = None,
    unlabelled: Sections | None = None,
    rounds: int = 5,
    resume: bool = False,
    card: Mapping[str, object] | None = None,
    devices: int | Sequence[int] = 1,
    num_nodes: int = 1,
    strategy: Strategy = "auto",
    progress: bool | None = None,
) -> TrainResult:
    """Train a network to predict gene expression of spots from the H&E image around them.

    Parameters
    ----------
    sdatas
        Measured sections, each with an image, spots, and a table with raw counts and the patient of each spot.
    model
        Name of the model (:func:`st_predict.models.list_models`).
    panel
        Genes to predict, in order; or their number, to select them from the training sections by the preset's rule
        (:func:`st_predict.pp.select_panel`).
    out
        Folder for the results, created if it does not exist. Existing results are never overwritten.
    validation
        Sections that choose the best epoch, or names of patients in ``sdatas`` to hold out for validation. Without it,
        the last epoch is kept, whatever ``monitor`` and ``patience`` of ``config`` are: the history has no ``val_``
        columns, and ``training["kept"]`` of the card is ``"last epoch"``.
    group_key
        Column of ``.obs`` with the patient. A patient must not be both in training and in validation.
    allow_shared
        Names of patients allowed on both sides. Their validation scores measure *other sections of training patients*,
        which the card records.
    image_key
        Key of the RGB image; optional where there is only one. For tables of several sections: mapping from region to
        image.
    table_key
        Key of the table with the counts. By default the only table, or ``"table"``.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.
    shapes_key
        Key of the spots' shapes. Selects the table that annotates them and, in a table of several sections, their
        section.
    layer
        Layer with the raw counts; by default ``.X``.
    missing
        Handling of genes of ``panel`` that a table lacks: ``"error"`` refuses, ``"drop"`` removes them from the
        network's panel.
    duplicates
        Handling of genes with several columns in a table: ``"error"`` refuses, ``"sum"`` adds their counts, ``"first"``
        takes the first.
    ignore_case
        Whether to ignore case when gene symbols are matched.
    id_column
        Column of ``.var`` with identifiers of the type of ``panel``. By default ``var_names``, or the only column that
        has genes of the panel.
    aliases
        Table of previous symbols and Ensembl identifiers, in the format of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    mpp
        Training resolution of the finest level in um/px; requires a known mpp of every image. By default the model's,
        for most ``None``: pixels are not resampled.
    preset
        Training recipe. ``"recommended"`` predicts Pearson residuals (expression beyond sequencing depth) of genes that
        vary over the tissue. ``"paper"`` trains every model as in the M2OST paper, to compare models. ``"original"``
        uses target, hyper-parameters, panel rule and optimiser of the model's own publication; ``original.notes`` of
        its :class:`~st_predict.models.ModelSpec` lists the differences that remain.
    target
        Units to predict, as a :class:`~st_predict.specs.TargetSpec` or a mapping of its fields; by default the preset's.
        Statistics that it lacks are measured on the training spots.
    min_counts
        Minimum panel counts per spot; spots with fewer are left out. By default the preset's: 0 for
        ``"paper"`` and ``"original"``; for ``"recommended"`` 50 in spots of 50 um and more, and 1 in bins, cells and
        spots of unknown size.
    tissue_only
        Whether to leave out spots off the tissue (``in_tissue`` in ``.obs`` is 0). Their number is logged.
    missing_levels
        Handling of levels with finer pixels than an image has: ``"error"`` refuses the section, ``"mask"`` trains on its
        other levels, without those with a field of view wider than the image; only for models with ``masks_levels`` in :class:`st_predict.models.ModelSpec`. ``level_drop`` of ``config``
        hides levels at random, which prepares a network for slides without them.
    stain
        Stain normalisation, in training and in every prediction. ``"macenko"`` or ``"reinhard"`` uses the training
        slides' mean stain as the reference; a :class:`~st_predict.pp.Stain` is itself the reference. Each slide's stain
        is measured on its tissue (:func:`st_predict.pp.fit_stain`). ``None`` does not change colours.
    hparams
        Hyper-parameters of the network that replace the preset's.
    config
        Mapping of :class:`TrainConfig` fields that replace the preset's; a :class:`TrainConfig` object replaces them
        all.
    unlabelled
        Unlabelled slides for pseudo-labelling :cite:p:`Monjo2022`: per round, the network predicts a new part of their
        spots, and a new network is trained on these too. Counts of these slides are not used; training and validation
        sections are refused.
    rounds
        Number of pseudo-labelling rounds.
    resume
        Whether to resume from the last epoch in ``out``. Only tensors, numbers and texts are read from its
        ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt``: pickled code is refused and never run.
    card
        Further fields of the :class:`~st_predict.specs.ModelCard`: ``organism``, ``license``, ``citation``,
        ``gene_id_type``, ``training``. Tables from another ``organism`` are refused.
    devices
        Number of devices of the kind that ``config`` names, or their indices; each has a process. On several devices,
        the batch size and the number of regions per step are per device, augmentation and dropout differ between them,
        and batch statistics are of each device's batch. A program needs ``if __name__ == "__main__":``.
    num_nodes
        Number of machines. For more than one, start the program once per device, with ``torchrun`` or ``srun``; only
        the first process writes.
    strategy
        Strategy of Lightning: ``"ddp"``, the default on several devices, or ``"ddp_find_unused_parameters_true"`` for
        networks that do not use all their weights in each step.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    TrainResult
        Path of the best checkpoint, history and card. In ``out``: ``{model}.safetensors``, ``history.csv``, and
        ``checkpoints/`` to resume an interrupted run.

    Raises
    ------
    LeakageError
        If a patient is in training and in validation and is not in ``allow_shared``.
    FileExistsError
        If ``out`` holds results and ``resume`` is false, or another training is running there.
    KeyError
        If the model, an element, a layer or a column does not exist, or genes are missing.
    ValueError
        If the preset, panel, counts, patients, images or settings are invalid; the message says why.
    TypeError
        If a section is not a SpatialData object, or ``panel`` is neither a list nor a number.
    ModuleNotFoundError
        If the encoder's package is not installed; the message names it.
    ConnectionError
        If the hyper-parameters name weights that are neither in the cache nor downloadable.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> result.card.genes
    ('GENE1', 'GENE2')
    >>> sdata["table"].obsm["pred_ridge"].shape
    (19, 2)
    """
    genes = _matching(missing, duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases)
    rounds, resume, out = check("rounds", rounds, Count), check("resume", resume, Flag), check("out", out, File)
    where = Where(image_key=image_key, table_key=table_key, bin_um=bin_um, shapes_key=shapes_key, layer=layer)
    where = replace(where, group_key=group_key, genes=genes, tissue_only=tissue_only, missing_levels=missing_levels)
    hparams, allow_shared = check("hparams", hparams, Fields | None), check("allow_shared", allow_shared, Texts)
    spec, ranks = get_spec(model), Ranks.of(devices, num_nodes, strategy)
    setting, config = _configure(preset, config, spec, ranks, min_counts=min_counts, unlabelled=unlabelled)
    training, held_out, where = _split(sdatas, validation, where, allow_shared=allow_shared, stain=stain)
    panel = _panel(panel, training, where, method=setting.panel)
    draft = _write_card(spec, setting, panel, hparams=hparams, mpp=mpp, extra=card, stain=where.stain, target=target)
    draft, measured = _read(training, held_out, draft, where, named=(sdatas, validation), setting=setting)
    data = _gather(measured, unlabelled, draft, where, sides=(training, held_out), shared=allow_shared, rounds=rounds)
    return _fit(draft, data, out, config=config, resume=resume, how=_how(where, preset, setting), ranks=ranks)


def _matching(
    missing: Missing, duplicates: Duplicates, *, ignore_case: bool, id_column: str | None, aliases: Any
) -> GeneMatching:
    """Return the options to match genes."""
    genes = GeneMatching(missing=missing, duplicates=duplicates, ignore_case=ignore_case)
    return replace(genes, id_column=id_column, aliases=aliases)


def _how(where: Where, preset: str, setting: Preset) -> dict[str, Any]:
    """Return the settings for the card."""
    chosen = {name: getattr(where, name) for name in ("group_key", "tissue_only", "missing_levels")}
    return {**chosen, "preset": preset, "min_counts": setting.min_counts}


def _check_devices(spec: ModelSpec, config: TrainConfig, ranks: Ranks, unlabelled: Sections | None) -> None:
    """Refuse several devices where one has all the work."""
    if ranks.world == 1:
        return
    one = Advice("leave out {}", "devices")
    if spec.closed_form:
        raise InvalidValueError(f"{spec.name!r} is fitted in closed form, on one device.", one)
    if unlabelled is not None:
        raise InvalidValueError("Pseudo-labelling trains on one device.", one, Advice("leave out {}", "unlabelled"))
    if ":" in config.device:
        raise InvalidValueError(
            f"The device {config.device!r} is one device.",
            "name its kind only",
            Advice("give indices in {}", "devices"),
        )


def _split(
    sdatas: Sections,
    validation: Sections | Sequence[str] | None,
    where: Where,
    *,
    allow_shared: Sequence[str],
    stain: Stain | Method | None,
) -> tuple[list[SpatialData], list[SpatialData], Where]:
    """Return training slides, validation slides, and where their data is, with the reference stain."""
    training, held_out = split_patients(sdatas, validation, where=where, allow_shared=allow_shared)
    return training, held_out, _in_colours(stain, training, where)


def _in_colours(stain: Stain | Method | None, training: Sequence[SpatialData], where: Where) -> Where:
    """Add the reference stain: the training slides' mean stain if a method is named."""
    stain = check("stain", stain, Stain | Method | None)
    if not isinstance(stain, str):
        return replace(where, stain=stain)
    with _mpp_of_training():
        slides = [open_sdata(sdata, where) for sdata in training]
    images = [(slide.sdata, section.image_key) for slide in slides for section in slide.sections]
    return replace(where, stain=mean_stain(images, stain))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """The sections of a training, opened once."""

    training: list[Observed]
    validation: list[Observed]
    unlabelled: list[Observed]
    rounds: int

    @property
    def shared_patients(self) -> list[str]:
        """Patients that are in training and in validation."""
        return sorted(_patients(self.training) & _patients(self.validation))

    def describe(self) -> dict[str, Any]:
        """Return the card's entries about the sections."""
        known = {
            "sections": [o.describe() for o in self.training],
            "validation": [o.describe() for o in self.validation],
        }
        if not self.unlabelled:
            return known
        return {**known, "unlabelled": [o.describe() for o in self.unlabelled], "rounds": self.rounds}


def _configure(
    preset: str,
    changes: TrainConfig | Mapping[str, object] | None,
    spec: ModelSpec,
    ranks: Ranks,
    *,
    min_counts: int | None,
    unlabelled: Sections | None,
) -> tuple[Preset, TrainConfig]:
    """Return the preset and the configuration; refuse settings that the model or the machine cannot use."""
    setting = get_preset(spec, check("preset", preset, Text))
    if min_counts is not None:
        setting = replace(setting, min_counts=check("min_counts", min_counts, Natural))
    config = configure(setting, changes)
    if config.regions and spec.scope == "spot":
        raise InvalidValueError(
            f"{config.regions} regions per section are for section-level models; {spec.name!r} is a spot-level model.",
            Advice("leave out 'regions' in {}", "config"),
        )
    Compute(device=config.device, precision=config.precision)  # refuses unknown devices
    _check_devices(spec, config, ranks, unlabelled)
    return setting, config if config.teacher is None else replace(config, teacher=_plain(config.teacher))


def _panel(panel: Sequence[str] | int, training: list[SpatialData], where: Where, *, method: Any) -> tuple[str, ...]:
    """Genes to predict: the named ones, or the requested number of them."""
    if isinstance(panel, Integral) and not isinstance(panel, bool):
        n_genes = check("panel", panel, Count)
        find = placed_table if method == "spatial" else measured_table
        tables = [find(sdata, where) for sdata in training]
        chosen = select_panel(
            tables,
            n_genes=n_genes,
            method=method,
            layer=where.layer,
            id_column=where.genes.id_column,
            duplicates=where.genes.duplicates,
            tissue_only=where.tissue_only,
        )
        return tuple(chosen)
    if (
        isinstance(panel, str | bool | Mapping)
        or not isinstance(panel, Iterable)
        or (np.ndim(panel) == 0 and isinstance(panel, np.ndarray))
    ):
        raise InvalidTypeError(f"panel must be a list of genes, or the number of genes to select, got {panel!r}.")
    if not (genes := tuple(str(gene) for gene in panel)):
        raise InvalidValueError(
            "panel is empty.", Advice("name genes, or the number of genes to select, with {}", "panel")
        )
    return genes


def _write_card(
    spec: ModelSpec,
    setting: Preset,
    genes: tuple[str, ...],
    *,
    hparams: Mapping[str, object] | None,
    mpp: float | None,
    extra: Mapping[str, object] | None,
    stain: Stain | None,
    target: TargetSpec | Mapping[str, object] | None,
) -> ModelCard:
    """Return the card of the network to train; facts about the sections are added later."""
    mpp = check("mpp", mpp, Positive | None)
    spec.check_names(hparams or {})
    settled = _plain(spec.complete(_plain({**spec.hparams, **setting.hparams, **(hparams or {})})))
    crop = spec.crop_for(settled)
    if mpp is not None and crop.mpp not in {None, mpp}:
        logger.warning(
            "mpp=%g replaces %g um/px, the resolution in the hyper-parameters of %r.", mpp, crop.mpp, spec.name
        )
    target = check("target", target, TargetSpec | None) or setting.target or spec.target
    if target.over == "panel":
        refuse_constant(target, len(genes))
    return ModelCard(
        model=spec.name,
        genes=genes,
        crop=crop if mpp is None else replace(crop, mpp=mpp),
        pixels=spec.pixels_for(settled),
        target=target,
        hparams=settled,
        **{"gene_id_type": gene_id_type_of(genes), **_further_fields(extra, stain)},
    )


_NOTED = (
    *("sections", "validation", "unlabelled", "rounds", "shared_patients", "ensemble", "model"),
    *(
        "group_key",
        "preset",
        "min_counts",
        "tissue_only",
        "stain",
        "config",
        "kept",
        "best",
        "st_predict",
        "extension",
        "encoder",
        "colours",
        "devices",
    ),
)
"""Entries of ``ModelCard.training`` that training sets and leakage checks read."""


def _further_fields(extra: Mapping[str, object] | None, stain: Stain | None) -> dict[str, Any]:
    fields = check_card_fields({} if extra is None else extra)
    if taken := sorted(set(fields.get("training", ())) & set(_NOTED)):
        raise InvalidValueError(
            f"card['training'] cannot set {taken}: training sets these entries.",
            Advice("use other names in {}", "card"),
        )
    if stain is not None:
        fields["training"] = {**fields.get("training", {}), "stain": stain.to_dict()}
    return fields


def _plain(hparams: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters for the card; arrays become lists."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(hparams, default=lambda value: value.tolist()))
    except (AttributeError, TypeError) as error:
        raise InvalidTypeError(
            f"hparams must be numbers, texts, lists and mappings, to be stored in the card; got {hparams}."
        ) from error
    return plain


def _read(
    training: Sequence[SpatialData],
    held_out: Sequence[SpatialData],
    card: ModelCard,
    where: Where,
    *,
    named: tuple[Any, Any],
    setting: Preset,
) -> tuple[ModelCard, tuple[list[Observed], list[Observed]]]:
    """Read training and validation targets; return them with the card, limited to genes that all tables have."""
    check_missing_levels(where.missing_levels, [card.model])
    known = _measure(training, card, where, named=named[0]), _measure(held_out, card, where, named=named[1])
    slides = [*known[0], *known[1]]
    card = keep_common(card, slides)
    check_sums(card, known[0])
    card, observed = _observe(slides, len(training), card, min_counts=setting.min_counts)
    return card, (list(chain(*observed[: len(training)])), list(chain(*observed[len(training) :])))


def _measure(slides: Sequence[SpatialData], card: ModelCard, where: Where, *, named: Any) -> list[Measured]:
    with _mpp_of_training(), advice_for([card.model]):
        return measure_each(slides, card, where, named=named)


@contextmanager
def _mpp_of_training() -> Iterator[None]:
    """Remove advice about an image's mpp from errors, because ``mpp`` of :func:`train` is the training resolution."""
    try:
        yield
    except StPredictError as error:
        raise error.without({"mpp"}) from error.__cause__


def _observe(
    measured: Sequence[Measured], n_training: int, card: ModelCard, *, min_counts: int | None
) -> tuple[ModelCard, list[list[Observed]]]:
    """Read targets; statistics of the training spots are added to the card where the target needs them."""
    counts = "counts" in get_spec(card.model).needs
    target = card.target
    if target.is_complete:
        return card, [observe(slide, card, counts=counts, min_counts=min_counts) for slide in measured]
    raw = replace(card, target=TargetSpec(transform="counts", over=target.over))
    slides = [observe(slide, raw, counts=counts, min_counts=min_counts) for slide in measured]
    known = [section for slide in slides[:n_training] for section in slide]
    sums = {
        id(s): s.totals if target.over == "all" else s.target.sum(axis=1, dtype=np.float64)
        for slide in slides
        for s in slide
    }
    target = fit_target(np.concatenate([s.target for s in known]), np.concatenate([sums[id(s)] for s in known]), target)
    return replace(card, target=target), [
        [replace(s, target=to_target(s.target, target, totals=sums[id(s)])) for s in slide] for slide in slides
    ]


def _gather(
    measured: tuple[Any, Any],
    unlabelled: Sections | None,
    card: ModelCard,
    where: Where,
    *,
    sides: tuple[list[SpatialData], list[SpatialData]],
    shared: Sequence[str],
    rounds: int,
) -> _Data:
    """Join measured sections and unlabelled slides, which are opened here."""
    more = _open_unlabelled(unlabelled, card, where, sides=sides, allow_shared=shared)
    return _Data(training=measured[0], validation=measured[1], unlabelled=more, rounds=rounds)


def _open_unlabelled(
    unlabelled: Sections | None,
    card: ModelCard,
    where: Where,
    *,
    sides: tuple[list[SpatialData], list[SpatialData]],
    allow_shared: Sequence[str],
) -> list[Observed]:
    """Open unlabelled slides; refuse sections that are in training or validation (``sides``)."""
    if unlabelled is None:
        return []
    spec = get_spec(card.model)
    if spec.closed_form or spec.scope == "section":
        raise InvalidValueError(
            f"Unlabelled slides are for spot-level models that are trained by gradient descent, not for {card.model!r}.",
            Advice("leave out {}", "unlabelled"),
        )
    with _mpp_of_training():
        return open_unlabelled(
            as_list(unlabelled, "unlabelled"),
            card,
            training=sides[0],
            held_out=sides[1],
            where=where,
            allow_shared=allow_shared,
        )


def _check_buildable(card: ModelCard, config: TrainConfig) -> None:
    """Refuse invalid hyper-parameters and settings before anything is allocated; warn of a card that only loads with ``trust``."""
    with torch.device("meta"):
        network = checkpoints.build(card)
    spec = get_spec(card.model)
    check_objective(network, config, spec, reads=spec.reads(card.hparams).kind)
    if config.teacher is not None:
        teacher_of(card, config.teacher)
    try:
        spec.admit(card.hparams)
    except StPredictError as error:
        logger.warning(
            "Prediction with this network will need trust=True: its card sets restricted values. %s", error.found
        )


@contextmanager
def _keeping_filters() -> Iterator[None]:
    """Restore warning filters, because libraries imported for training add some."""
    with warnings.catch_warnings():
        yield


@_keeping_filters()
def _fit(
    card: ModelCard,
    data: _Data,
    out: PathLike[str] | str,
    *,
    config: TrainConfig,
    resume: bool,
    how: Mapping[str, object],
    ranks: Ranks,
) -> TrainResult:
    """Train, and write the checkpoint with its card and history."""
    _check_buildable(card, config)
    run = Run.create(out, get_spec(card.model), resume=resume, writes=ranks.writes)
    with run.locked():
        sections = {**data.describe(), **ranks.describe()}
        run.note(card, config, sections=sections)
        encoder = encoder_of(card)
        card, network, history = _learn(card, data, run, encoder, config=config, ranks=ranks)
        known = {**sections, "shared_patients": data.shared_patients, **how}
        notes = describe_training(card, config, history, validated=bool(data.validation), encoder=encoder)
        card = replace(card, training={**known, **notes, **card.training})
        checkpoint = run.save(network, card, history, encoder=encoder)
        ranks.wait()
    return TrainResult(checkpoint=checkpoint, history=pd.DataFrame(history), card=card)


def _learn(
    card: ModelCard, data: _Data, run: Run, encoder: Encoder | None, *, config: TrainConfig, ranks: Ranks
) -> tuple[ModelCard, SpotModel, list[dict[str, float]]]:
    """Prepare the network's inputs and train it; return the card with measured statistics."""
    compute = Compute(device=config.device, precision=config.precision)
    training = [smoothed(section) for section in data.training] if config.smooth else data.training
    with run.temporary_folder() as crops, _mpp_of_training():
        stores = {
            name: store_of(sections, card, encoder, folder=crops / name, compute=compute)
            for name, sections in (
                ("training", training),
                ("validation", data.validation),
                ("unlabelled", data.unlabelled),
            )
            if sections
        }
        store = taught(stores["training"], training, card, config, folder=crops / "teacher", compute=compute)
        if config.measure_pixels and store.crops:
            card = replace(card, pixels=store.measure_pixels())
        if colours := describe_colours(data.training, card, store):
            card = replace(card, training={**card.training, "colours": colours})
        network, history = learn(
            card,
            store,
            stores.get("validation"),
            config=config,
            folder=run.folder,
            resume=run.resume,
            unlabelled=stores.get("unlabelled"),
            rounds=data.rounds,
            ranks=ranks,
        )
    return card, network, history


def _patients(sections: list[Observed]) -> set[str]:
    return {patient for section in sections for patient in section.patients}
