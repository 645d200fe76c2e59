"""Held-out spots: stored predictions with measured values, and leakage checks."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict._rows import rows_called, rows_in
from st_predict._sections._context import spots_of
from st_predict._sections._measured import describe_measured, measure_each, measured_table_key, select_genes
from st_predict._sections._observed import observe
from st_predict._sections._section import at_table, each
from st_predict._sections._split import LeakageError, refuse_same_sections
from st_predict.get import only_key, spots_table_of, stored_prediction, table_of
from st_predict.models import get_spec
from st_predict.pp import from_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._sections._measured import Measured
    from st_predict._sections._observed import Observed
    from st_predict._sections._section import Sections
    from st_predict._where import Where
    from st_predict.specs import ModelCard

__all__ = [
    "HeldOutSection",
    "Relation",
    "StoredPrediction",
    "TrainingSections",
    "all_have_sd",
    "common_key",
    "join_held_out",
    "measure_held_out",
    "measure_training",
    "pairs_of",
    "read_stored",
    "refuse_duplicates",
    "refuse_other_networks",
    "refuse_scored_in_training",
    "refuse_trained",
    "trained_pairs",
    "warn_of_missing",
    "warn_of_validation",
]

logger = logging.getLogger(__name__)

_FREE = {"checkpoint", "precision", "seed"}  # settings that do not change the size of errors
Relation: TypeAlias = Literal["patient", "section", "training", "context", "unknown"]
"""Relation of a scored section to a network's training."""

_ANY_PATIENT = ""  # the patient is unknown: training used another group_key


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPrediction:
    """Prediction read from a slide.

    Parameters
    ----------
    key
        Key of the prediction.
    holder
        Name of the table that holds it.
    table_key
        Name of the spots' table; ``None`` if only ``holder`` exists.
    mean
        ``(n_spots, n_genes)``: predicted values, in the order of ``holder``.
    sd
        ``(n_spots, n_genes)``: standard deviations; ``None`` if missing, or if intervals are not scaled.
    card
        Card of the network.
    settings
        Prediction settings that do not follow from the card.
    context
        Names of the context spots.
    context_regions
        Regions of the context spots, for a table whose names are not unique.
    """

    key: str
    holder: str
    table_key: str | None
    mean: NDArray[np.float32]
    sd: NDArray[np.float32] | None
    card: ModelCard
    settings: dict[str, Any]
    context: tuple[str, ...]
    context_regions: tuple[str, ...]

    def only(self, genes: Sequence[str]) -> StoredPrediction:
        """Return the prediction of a subset of the genes."""
        if tuple(genes) == self.card.genes:
            return self
        places = {gene: i for i, gene in enumerate(self.card.genes)}
        kept = [places[gene] for gene in genes]
        sd = None if self.sd is None else self.sd[:, kept]
        return replace(self, mean=self.mean[:, kept], sd=sd, card=select_genes(self.card, kept))


def common_key(slides: Sequence[SpatialData], key: str | None, where: Where, *, named: Sections) -> str:
    """Return the key of the prediction; by default the only one, common to all slides.

    Raises
    ------
    KeyError, ValueError
        If a slide lacks a prediction or has several, or keys differ between slides.
    """
    found = each(slides, lambda sdata: only_key(sdata, key, table_key=table_key_of(sdata, where)), named=named)
    keys = list(dict.fromkeys(found))
    if len(keys) > 1:
        raise InvalidValueError(f"The slides have different predictions: {keys}.", Advice("name one with {}", "key"))
    return keys[0]


def table_key_of(sdata: SpatialData, where: Where) -> str | None:
    """Return the table named directly or by the shapes it annotates; ``None`` if neither is given."""
    named = any(given is not None for given in (where.table_key, where.bin_um, where.shapes_key))
    return measured_table_key(sdata, where) if named else None


def read_stored(sdata: SpatialData, key: str, where: Where, *, scaled: bool | None) -> StoredPrediction:
    """Read a prediction; ``scaled`` requires standard deviations (true), ignores them (false) or reads them if present (``None``).

    Raises
    ------
    KeyError
        If the prediction, its card or, with ``scaled=True``, its standard deviations do not exist.
    ValueError
        If the gene names of the prediction are unknown.
    """
    table_key = table_key_of(sdata, where)
    result = stored_prediction(sdata, key, table_key=table_key)
    record = Record.read(result.uns, key)
    if record is None or record.card is None:
        raise NotFoundError(
            f"The prediction {key!r} has no card, so its units and network are unknown.",
            'concatenate tables with uns_merge="same"',
            "predict again",
        )
    sd = None if scaled is False else result.layers.get(Keys.STD)
    if scaled and sd is None:
        raise NotFoundError(
            f"{key!r} has no standard deviations to scale intervals by.",
            "predict with several checkpoints or samples: st_predict.tl.predict(..., n_samples=...)",
            Advice("use intervals of constant width with {}", "scaled", value=False),
        )
    members = [{k: v for k, v in member.items() if k not in _FREE} for member in record.params.get("members", [])]
    holder = table_of(sdata, key, table_key=table_key)
    return StoredPrediction(
        key=key,
        holder=holder,
        table_key=spots_table_of(sdata, holder, table_key=table_key),
        mean=result.X,
        sd=sd,
        card=record.card,
        settings={"members": members, "context": bool(record.context)},
        context=record.context,
        context_regions=record.context_regions,
    )


def refuse_other_networks(found: StoredPrediction, card: ModelCard, settings: Mapping[str, Any]) -> None:
    """Refuse a prediction by another network or with other settings, whose errors may differ."""
    theirs, ours = {**asdict(found.card), **found.settings}, {**asdict(card), **settings}
    if differing := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
        raise InvalidValueError(
            f"The predictions {found.key!r} come from different networks or settings: they differ in {differing}.",
            "calibrate each separately",
        )


def all_have_sd(found: Sequence[StoredPrediction]) -> bool:
    """Return whether all predictions have standard deviations.

    Raises
    ------
    ValueError
        If only some have them.
    """
    there = [one.sd is not None for one in found]
    if any(there) and not all(there):
        raise InvalidValueError(
            f"{sum(there)} of {len(there)} objects have standard deviations of {found[0].key!r}.",
            "predict all with the same settings",
            Advice("use intervals of constant width with {}", "scaled", value=False),
        )
    return all(there)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOutSection:
    """Spots of a section that have both a prediction and counts.

    Parameters
    ----------
    observed
        Measured values of the section.
    rows
        ``(n_spots,)``: rows of the spots in the table with the counts.
    spots
        Names of the spots.
    mean
        ``(n_spots, n_genes)``: predicted values.
    sd
        ``(n_spots, n_genes)``: standard deviations, if read.
    """

    observed: Observed
    rows: NDArray[np.int64]
    spots: pd.Index
    mean: NDArray[np.float32]
    sd: NDArray[np.float32] | None

    @property
    def name(self) -> str:
        """Name of the section."""
        return self.observed.name

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients of its spots."""
        return self.observed.patients

    @property
    def target(self) -> NDArray[np.float32]:
        """``(n_spots, n_genes)``: measured values, in the units of the prediction."""
        return self.observed.target

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Patient and name of the section; see :func:`pairs_of`."""
        return pairs_of([self.describe()])

    def take(self, which: NDArray[np.bool_]) -> HeldOutSection:
        """Return a subset of the spots."""
        sd = None if self.sd is None else self.sd[which]
        return HeldOutSection(
            observed=self.observed.take(which),
            rows=self.rows[which],
            spots=self.spots[which],
            mean=self.mean[which],
            sd=sd,
        )

    def describe(self) -> dict[str, Any]:
        """Return names for the record of a calibration, JSON-serialisable."""
        return {"section": self.name, "patients": list(self.patients), "spots": self.spots.tolist()}


def measure_held_out(
    slides: Sequence[SpatialData], stored: Sequence[StoredPrediction], where: Where, *, named: Sections
) -> list[Measured]:
    """Open the predicted slides to read counts from the predicted spots' tables."""
    opened = []
    for sdata, found in zip(slides, stored, strict=True):
        own = at_table(sdata, where)
        own = replace(own, table_key=found.table_key or own.table_key)
        opened += measure_each([sdata], found.card, own, crops=False, named=named)
    return opened


def measure_training(
    slides: Sequence[SpatialData], card: ModelCard, where: Where, *, table_key: str | None, named: Sections | None
) -> list[Measured]:
    """Open training slides; counts come from the table with the name of the predicted spots' table, if it exists."""
    opened = []
    for sdata in slides:
        own = _same_table(sdata, where, table_key)
        opened += measure_each([sdata], card, own, crops=False, named=named)
    return opened


def _same_table(sdata: SpatialData, where: Where, table_key: str | None) -> Where:
    """Use the table name of other slides, unless a table is named or this one does not exist."""
    own = at_table(sdata, where)
    same = table_key if own.shapes_key is None and table_key in sdata.tables else None
    return replace(own, table_key=own.table_key or same)


def refuse_scored_in_training(scored: Sequence[Measured], training: Sequence[Measured], group_key: str) -> None:
    """Raise :class:`LeakageError` if a scored section was trained on."""
    known = [[(slide.slide.sdata, slide.obs) for slide in side] for side in (scored, training)]
    refuse_same_sections(known[0], known[1], group_key=group_key, what="in train and to be scored")


def join_held_out(
    measured: Measured,
    found: StoredPrediction,
    card: ModelCard,
    *,
    spots: str | None = None,
    min_counts: int | None = 0,
) -> list[HeldOutSection]:
    """Join a prediction and measured values per section, without context spots.

    Parameters
    ----------
    measured
        Slide with the prediction.
    found
        The prediction.
    card
        Card of the network, with the genes to compare.
    spots
        Boolean column of ``.obs`` that selects the spots; all by default.
    min_counts
        Minimum panel counts per spot; ``None`` for the default of the spot size.

    Raises
    ------
    KeyError, ValueError
        If counts or columns are invalid, or a section lacks spots with both counts and a prediction.
    """
    table = measured.table
    use = np.ones(table.n_obs, dtype=bool) if spots is None else spots_of(table, spots)
    use = use & ~rows_called(table, found.context, found.context_regions)
    predicted = rows_in(table, measured.slide.sdata.tables[found.holder])
    compared = found.only(card.genes)
    sections = [
        _join(section, table.obs_names, compared, predicted=predicted)
        for section in observe(measured, card, counts=True, min_counts=min_counts)
    ]
    return [section.take(use[section.rows]) for section in sections]


def warn_of_missing(found: Sequence[StoredPrediction], card: ModelCard) -> None:
    """Warn if genes are missing in a table and the units depend on the sum over the panel."""
    everything = found[0].card
    if len(card.genes) == len(everything.genes) or everything.target.over == "all":
        return
    if everything.target.transform in {"log1p", "counts"}:
        return
    kept = set(card.genes)
    missing = np.array([gene not in kept for gene in everything.genes])
    mean = np.concatenate([one.mean for one in found])
    mean = mean[np.isfinite(mean).all(axis=1)]
    counts = np.maximum(from_target(mean, everything.target, np.full(len(mean), 1e4)), 0)
    share = float(counts[:, missing].sum() / counts.sum()) if counts.sum() else 0.0
    logger.warning(
        "Measured values are relative to the sum over the %d panel genes that every table has, predictions to the sum over all "
        "%d. The missing genes make up %.2g %% of the predicted counts.",
        *(len(card.genes), len(everything.genes), 100 * share),
    )


def _join(
    section: Observed, names: pd.Index, found: StoredPrediction, *, predicted: NDArray[np.int64]
) -> HeldOutSection:
    """Join the measured values of a section and its finite predictions.

    Parameters
    ----------
    section
        Measured values.
    names
        Names of all rows of the table with the counts.
    found
        Prediction.
    predicted
        ``(n_obs,)``: row of the prediction for each row of the table with the counts, -1 without a prediction.
    """
    measured = section.section.rows[section.rows]
    rows = predicted[measured]
    if (rows < 0).any():
        raise InvalidValueError(
            f"The prediction {found.key!r} is for other spots than the table with the counts.",
            Advice("name the table of its spots with {}", "table_key"),
        )
    sd = None if found.sd is None else found.sd[rows]
    whole = HeldOutSection(observed=section, rows=measured, spots=names[measured], mean=found.mean[rows], sd=sd)
    known = whole.mean if whole.sd is None else whole.mean + whole.sd
    there = np.asarray(np.isfinite(known).all(axis=1))
    if not there.any():
        raise InvalidValueError(f"No spot of section {section.name!r} has both counts and a prediction {found.key!r}.")
    return whole.take(there)


def pairs_of(described: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Patient and name of sections; names of sections that share a region are joined by a plus sign."""
    return {(patient, name) for one in described for patient in one["patients"] for name in one["section"].split("+")}


def trained_pairs(
    card: ModelCard, train: Sequence[SpatialData], where: Where, *, table_key: str | None
) -> set[tuple[str, str]]:
    """Patient and name of the sections that a network was trained on, from its card and from ``train``."""
    if not train and not all("sections" in training for training in _trainings(card)):
        logger.warning(
            "The card does not list training sections, so calibration on the same sections would not be noticed. "
            "Pass the training sections as train."
        )
    known: set[tuple[str, str]] = set()
    for sdata in train:
        known |= pairs_of(describe_measured(sdata, _same_table(sdata, where, table_key)))
    for training in _trainings(card):
        pairs = pairs_of(section for role in ("sections", "unlabelled") for section in training.get(role, []))
        same = training.get("group_key", where.group_key) == where.group_key
        known |= pairs if same else {(_ANY_PATIENT, name) for _, name in pairs}
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSections:
    """Sections that a network was trained on.

    Parameters
    ----------
    trained
        Patient and name of each training section; ``None`` if unknown.
    validated
        Patient and name of the sections that chose the epoch.
    """

    trained: frozenset[tuple[str, str]] | None
    validated: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, card: ModelCard, known: Sequence[Measured], group_key: str) -> TrainingSections:
        """Read the sections of a card, and add known training slides.

        Sections are unknown if the card's patients come from another column than ``group_key``.
        """
        trained = {
            (patient, name)
            for slide in known
            for one in describe_measured(slide.slide.sdata, slide.where)
            for patient, name in pairs_of([one])
        }
        trainings = [training for training in _trainings(card) if training.get("group_key", group_key) == group_key]
        told = len(trainings) == len(_trainings(card)) and all("sections" in training for training in trainings)
        for training in trainings:
            trained |= pairs_of(one for role in ("sections", "unlabelled") for one in training.get(role, []))
        return cls(trained=frozenset(trained) if told or known else None, validated=frozenset(_validated(card)))

    def relation(self, section: HeldOutSection) -> Relation:
        """Return a section's relation to the training."""
        if self.trained is None:
            return "unknown"
        if section.pairs & self.trained:
            return "training"
        return "section" if set(section.patients) & {patient for patient, _ in self.trained} else "patient"

    def chose(self, section: HeldOutSection) -> bool:
        """Return whether a section was used to choose the epoch."""
        return bool(section.pairs & self.validated)


def refuse_trained(sections: Sequence[HeldOutSection], trained: Iterable[tuple[str, str]]) -> None:
    """Raise :class:`LeakageError` if the network was trained on a section."""
    pairs = {pair for section in sections if len(section.spots) for pair in section.pairs}
    trained = set(trained)
    if known := sorted(pair for pair in pairs if pair in trained or (_ANY_PATIENT, pair[1]) in trained):
        raise LeakageError(
            f"The network was trained on {known} (patient, section), where its errors are smaller than elsewhere.",
            "take other sections",
            f"if these are other sections, give them their own names in .obs[{Keys.SECTION!r}]",
        )


def refuse_duplicates(sections: Sequence[HeldOutSection]) -> None:
    """Raise :class:`ValueError` if two sections have the same patient and name."""
    pairs = [pair for section in sections for pair in section.pairs]
    if twice := sorted({pair for pair in pairs if pairs.count(pair) > 1}):
        raise InvalidValueError(
            f"Several sections are called {twice} (patient, section).",
            f"pass each once, with its own name in .obs[{Keys.SECTION!r}]",
        )


def warn_of_validation(sections: Sequence[HeldOutSection], card: ModelCard) -> None:
    """Warn of sections whose validation score selected the epoch of the network."""
    chose = _validated(card)
    if used := sorted({pair for section in sections for pair in section.pairs & chose}):
        logger.warning(
            "The epoch of the network was chosen on %s (patient, section), where its errors may be slightly smaller "
            "than elsewhere.",
            used,
        )


def _validated(card: ModelCard) -> set[tuple[str, str]]:
    """Patient and name of the sections that chose the epoch of a network."""
    learned = [training for training in _trainings(card) if not get_spec(training.get("model", card.model)).closed_form]
    return pairs_of(section for training in learned for section in training.get("validation", []))


def _trainings(card: ModelCard) -> list[dict[str, Any]]:
    """Training records: one, or one per member of an ensemble."""
    return card.training.get("ensemble", [{"model": card.model, **card.training}])
