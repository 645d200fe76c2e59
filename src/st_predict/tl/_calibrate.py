"""Intervals that cover a given share of what would be measured, calibrated on spots that were."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from st_predict._keys import Keys
from st_predict._sections import LeakageError, as_list, measured_table, observe, spots_of
from st_predict._version import __version__
from st_predict.get import prediction, table_of
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._sections import Observed, Sections
    from st_predict.specs import TargetSpec

__all__ = ["Calibration", "calibrate"]

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_FLOOR = 0.1  # least standard deviation that is believed, relative to the root mean square of those of the gene
_FREE = {"checkpoint", "precision", "seed"}  # in what networks may differ that err alike
_ANYBODY = ""  # whose section it was is not known, as the training had another group_key


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Widths of the intervals around a prediction; :func:`calibrate` makes one.

    Parameters
    ----------
    key
        Key of the prediction.
    coverage
        Share of the values that the intervals are to cover.
    scaled
        Whether widths are in standard deviations of the spot, from ``.obsm[key + "_std"]``.
    genes
        A row a gene: the interval is the prediction plus and minus ``quantile * max(sd, floor)``. ``sd`` is zero and
        ``floor`` one if not ``scaled``.
    sections
        Of each section that was calibrated on: its name ``section``, its ``patients``, and the names of the ``spots``
        used.
    trained
        Patient and name of the sections that the network was trained on, as far as they are known.
    group_key
        Column of ``.obs`` that names the patient.
    card
        Of the network.
    settings
        How the network predicted: what does not follow from the card.
    """

    key: str
    coverage: float
    scaled: bool
    genes: pd.DataFrame = field(repr=False)
    sections: tuple[Mapping[str, Any], ...] = field(repr=False)
    trained: frozenset[tuple[str, str]] = field(repr=False)
    group_key: str
    card: ModelCard = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def n_spots(self) -> int:
        """Number of spots that were calibrated on."""
        return sum(len(section["spots"]) for section in self.sections)

    def apply(self, sdata: SpatialData, *, table_key: str | None = None) -> None:
        """Add the bounds of the intervals beside the prediction; nothing needs to have been measured.

        Parameters
        ----------
        sdata
            Holds a prediction of the same network, under the same key.
        table_key
            Table of the spots. Needed if several tables have a prediction of this key.

        Returns
        -------
        Nothing; adds to the table that holds the prediction:

        ``.obsm["{key}_lower"]``, ``.obsm["{key}_upper"]`` : :class:`~pandas.DataFrame`, ``(n_obs, n_genes)``, float32
            Bounds in the units of the prediction, limited to values that these units can have. NaN where the prediction
            is.
        ``.uns["st_predict"][key]["calibration"]``
            JSON: ``coverage``, ``scaled``, and the ``sections`` calibrated on with their numbers of spots.

        A prediction in a table of its own gets layers ``"lower"`` and ``"upper"`` instead.

        Raises
        ------
        KeyError
            If there is no such prediction, or no standard deviations that ``scaled`` intervals need.
        ValueError
            If another network predicted, or in another way; or something else is stored where the bounds are to go.
        """
        found = self._read(sdata, table_key=table_key)
        table = sdata.tables[found.holder]
        inside = self.key in table.obsm
        names = (Keys.lower(self.key), Keys.upper(self.key)) if inside else (Keys.LOWER, Keys.UPPER)
        slots = table.obsm if inside else table.layers
        record = table.uns[Keys.UNS][self.key]
        if foreign := [name for name in names if name in slots and "calibration" not in record]:
            raise ValueError(
                f"{'.obsm' if inside else '.layers'} has {foreign}, which st_predict did not write for this "
                "prediction: rename or delete that first."
            )
        for name, values in zip(names, self._bounds(found.mean, found.sd), strict=True):
            slots[name] = pd.DataFrame(values, index=table.obs_names, columns=self.genes.index) if inside else values
        fresh = {"calibration": json.dumps(self._describe())}
        if inside:
            fresh["derived"] = json.dumps(sorted({*json.loads(record.get("derived", "[]")), *names}))
        table.uns[Keys.UNS] = {**table.uns[Keys.UNS], self.key: {**record, **fresh}}

    def report(self, sdatas: Sections, *, image_key: Mapping[str, str] | str | None = None) -> pd.DataFrame:
        """How much of what was measured the intervals cover, a gene and a section at a time.

        Spots that were calibrated on are left out. The intervals need not have been applied.

        Parameters
        ----------
        sdatas
            Measured sections that hold the prediction.
        image_key
            RGB image of the sections, as in :func:`st_predict.tl.evaluate`.

        Returns
        -------
        A row a section and gene: ``section``, ``patient``, ``shared`` (what the section shares with the calibration:
        ``"section"`` if other spots of it were calibrated on, else ``"patient"`` or ``"none"``), ``gene``, ``n_spots``,
        ``coverage`` (share of the values inside their interval) and ``width`` (mean width, in the units of the
        prediction).

        Raises
        ------
        LeakageError
            If the network was trained on a section, or all of its spots were calibrated on.
        KeyError, ValueError
            As :meth:`apply` and :func:`st_predict.tl.evaluate`.
        """
        where: dict[str, Any] = {"group_key": self.group_key, "image_key": image_key}
        sections = [s for sdata in as_list(sdatas) for s in _measure(sdata, self._read(sdata), **where)]
        _refuse_trained(sections, self.trained)
        _refuse_twice(sections)
        return pd.concat([self._report_section(section) for section in sections], ignore_index=True)

    def save(self, path: PathLike[str] | str) -> None:
        """Write the calibration to a JSON file, which appears whole or not at all.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        """
        content = {
            "format_version": _FORMAT_VERSION,
            "version": __version__,
            "key": self.key,
            "coverage": self.coverage,
            "scaled": self.scaled,
            "genes": {"gene": self.genes.index.tolist(), **self.genes.to_dict("list")},
            "sections": [dict(section) for section in self.sections],
            "trained": sorted(self.trained),
            "group_key": self.group_key,
            "card": self.card.to_json(),
            "settings": dict(self.settings),
        }
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name!r} to.")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            fresh = Path(folder) / path.name
            fresh.write_text(json.dumps(content), encoding="utf-8")
            fresh.replace(path)

    @classmethod
    def load(cls, path: PathLike[str] | str) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no calibration, or was written by a newer version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format_version"] > _FORMAT_VERSION:
                raise ValueError(f"its format {content['format_version']} is newer than this st_predict: upgrade it.")
            return cls(
                genes=pd.DataFrame(content["genes"]).set_index("gene"),
                sections=tuple(content["sections"]),
                trained=frozenset((patient, section) for patient, section in content["trained"]),
                card=ModelCard.from_json(content["card"]),
                **{name: content[name] for name in ("key", "coverage", "scaled", "group_key", "settings")},
            )
        except (KeyError, TypeError, ValueError) as error:  # of JSON that has another structure, or of no JSON
            raise ValueError(f"{str(path)!r} is no calibration that can be read: {error}") from error

    def _read(self, sdata: SpatialData, *, table_key: str | None = None) -> _Prediction:
        found = _read_prediction(sdata, self.key, scaled=self.scaled, table_key=table_key)
        _refuse_other(found, self.card, self.settings)
        return found

    def _describe(self) -> dict[str, Any]:
        sections = [{**section, "spots": len(section["spots"])} for section in self.sections]
        return {
            "coverage": self.coverage,
            "scaled": self.scaled,
            "sections": sections,
            "version": __version__,
        }

    def _bounds(
        self, mean: NDArray[np.float32], sd: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the lower and the upper bounds, both ``(n_spots, n_genes)``."""
        half = self.genes["quantile"].to_numpy() * _spread(sd, self.genes["floor"].to_numpy())
        # rounded outwards: where counts are few, many values lie on a bound
        lower = np.nextafter((mean - half).astype(np.float32), np.float32(-np.inf))
        upper = np.nextafter((mean + half).astype(np.float32), np.float32(np.inf))
        least, largest = _range(self.card.target)
        return np.clip(lower, least, largest), np.clip(upper, least, largest)

    def _report_section(self, section: _Measured) -> pd.DataFrame:
        used = [spot for known in self.sections if _pairs([known]) & section.pairs for spot in known["spots"]]
        patients = {patient for known in self.sections for patient in known["patients"]}
        rest = section.take(~section.spots.isin(used))
        if not len(rest.spots):
            raise LeakageError(
                f"No spot of section {section.name!r} is left to report on, as all were calibrated on or read by the "
                "network: report on other sections, or calibrate on some of the spots alone, with spots=."
            )
        lower, upper = self._bounds(rest.mean, rest.sd)
        return pd.DataFrame(
            {
                "section": rest.name,
                "patient": "+".join(rest.patients),
                "shared": "section" if used else "patient" if patients.issuperset(rest.patients) else "none",
                "gene": self.genes.index,
                "n_spots": len(rest.spots),
                "coverage": ((lower <= rest.target) & (rest.target <= upper)).mean(axis=0),
                "width": (upper - lower).mean(axis=0, dtype=np.float64),
            }
        )


def calibrate(
    held_out: Sections,
    *,
    key: str = "pred_m2ost",
    coverage: float = 0.9,
    spots: str | None = None,
    scaled: bool | None = None,
    train: Sections | None = None,
    group_key: str = Keys.PATIENT,
    image_key: Mapping[str, str] | str | None = None,
) -> Calibration:
    """Find how wide intervals around a prediction must be to cover a share of what would be measured, for each gene.

    Split-conformal :cite:p:`Lei2018`: of the ``n`` absolute errors of a gene on spots that were held out, the one of
    rank ``ceil((n + 1) * coverage)`` is the half-width of its intervals.

    Parameters
    ----------
    held_out
        Measured sections that hold the prediction and that the network was not trained on.
    key
        Key of the prediction.
    coverage
        Share of the values that intervals are to cover, between 0 and 1.
    spots
        Boolean column of ``.obs`` that says which spots to calibrate on; the others of the section are left for
        :meth:`Calibration.report`. By default all of them.
    scaled
        Whether errors and widths are relative to the standard deviations in ``.obsm[key + "_std"]``, so that intervals
        are wider where the network is less sure. By default if there are any.
    train
        Sections that the network was trained on, if its card does not name them.
    group_key
        Column of ``.obs`` that names the patient.
    image_key
        RGB image of the sections, as in :func:`st_predict.tl.evaluate`.

    Returns
    -------
    The calibration: ``apply`` adds the intervals to a prediction, ``report`` says what they cover of other measured
    spots, ``save`` and ``load`` keep it.

    Raises
    ------
    KeyError
        If a section has no such prediction or column, or no standard deviations and ``scaled`` is true.
    LeakageError
        If the network was trained on a section.
    ValueError
        If there are too few spots for the coverage, sections were predicted by different networks or in different ways,
        or counts or columns are unfit.

    Notes
    -----
    On average over calibrations the share is kept, and hardly exceeded, for spots that are drawn like those calibrated
    on. Spots of a section resemble each other, and so do sections of a patient: what was calibrated on a section holds
    for other spots of that section, and for its patient as far as the sections are alike. It says nothing of other
    patients, whose level of a gene may differ; :meth:`Calibration.report` tells what the intervals cover there.

    Spots without a prediction or without counts are left out, as are those whose counts the network has read
    (``context`` of :func:`predict`).

    A standard deviation counts as at least a tenth of the root mean square of those of the gene over the spots
    calibrated on; where these are all zero, as 1. What was measured has no part in that.

    Bounds are limited to the values that the units can have, such as 0 and ``ln(1 + total)``. That loses no coverage.

    Examples
    --------
    >>> calibration = st_predict.tl.calibrate(held_out, key="pred_ridge")  # doctest: +SKIP
    >>> calibration.apply(slide)  # doctest: +SKIP
    >>> calibration.report(others).groupby(["section", "shared"])["coverage"].mean()  # doctest: +SKIP
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}.")
    slides = as_list(held_out)
    found = [_read_prediction(sdata, key, scaled=scaled) for sdata in slides]
    card, settings = found[0].card, found[0].settings
    for other in found:
        _refuse_other(other, card, settings)
    scaled = _is_scaled(found)
    where: dict[str, Any] = {"group_key": group_key, "image_key": image_key}
    sections = [s for sdata, one in zip(slides, found, strict=True) for s in _measure(sdata, one, spots=spots, **where)]
    trained = _trained(card, [] if train is None else as_list(train), **where)
    _refuse_trained(sections, trained)
    _refuse_twice(sections)
    _warn_of_validation(sections, card)
    return Calibration(
        key=key,
        coverage=float(coverage),
        scaled=scaled,
        genes=_fit(sections, card.genes, coverage=coverage),
        sections=tuple(s.describe() for s in sections if len(s.spots)),
        trained=frozenset(trained),
        group_key=group_key,
        card=card,
        settings=settings,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prediction:
    """What is stored of a prediction; arrays are ``(n_spots, n_genes)``. ``sd`` may not be there, or not be wanted."""

    key: str
    holder: str
    spots: pd.Index
    mean: NDArray[np.float32]
    sd: NDArray[np.float32] | None
    card: ModelCard
    settings: dict[str, Any]
    context: tuple[str, ...]


def _read_prediction(sdata: SpatialData, key: str, *, scaled: bool | None, table_key: str | None = None) -> _Prediction:
    result = prediction(sdata, key, table_key=table_key)
    record = result.uns.get(Keys.UNS, {}).get(key, {})
    if "card" not in record:
        raise KeyError(f"The prediction {key!r} has no card, so its units and its network are unknown.")
    sd = None if scaled is False else result.layers.get(Keys.STD)
    if scaled and sd is None:
        raise KeyError(
            f"There are no standard deviations of {key!r} to scale intervals by: predict with n_samples=, or take "
            "scaled=False."
        )
    params = json.loads(record.get("params", "{}"))
    members = [{k: v for k, v in member.items() if k not in _FREE} for member in params.get("members", [])]
    context = (params.get("context") or {}).get("spots", ())
    return _Prediction(
        key=key,
        holder=table_of(sdata, key, table_key=table_key),
        spots=result.obs_names,
        mean=result.X,
        sd=sd,
        card=ModelCard.from_json(record["card"]),
        settings={"members": members, "context": bool(context)},
        context=tuple(context),
    )


def _refuse_other(found: _Prediction, card: ModelCard, settings: Mapping[str, Any]) -> None:
    """Refuse a prediction that need not err as those calibrated on."""
    theirs, ours = {**asdict(found.card), **found.settings}, {**asdict(card), **settings}
    if differing := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
        raise ValueError(
            f"The predictions {found.key!r} are not all of one network, made in one way: they differ in {differing}. "
            "Each needs a calibration of its own."
        )


def _is_scaled(found: Sequence[_Prediction]) -> bool:
    there = [one.sd is not None for one in found]
    if any(there) and not all(there):
        raise ValueError(
            f"{sum(there)} of {len(there)} objects have standard deviations of {found[0].key!r}: predict all in one "
            "way, or take scaled=False."
        )
    return all(there)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Measured:
    """Spots of a section that have both a prediction and counts; arrays are ``(n_spots, n_genes)``."""

    name: str
    patients: tuple[str, ...]
    spots: pd.Index
    mean: NDArray[np.float32]
    sd: NDArray[np.float32] | None
    target: NDArray[np.float32]

    def take(self, which: NDArray[np.bool_]) -> _Measured:
        sd = None if self.sd is None else self.sd[which]
        return replace(self, spots=self.spots[which], mean=self.mean[which], sd=sd, target=self.target[which])

    @property
    def pairs(self) -> set[tuple[str, str]]:
        return _pairs([self.describe()])

    def describe(self) -> dict[str, Any]:
        return {"section": self.name, "patients": list(self.patients), "spots": self.spots.tolist()}


def _pairs(described: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Patient and name of sections; several sections that share a region are joined by a plus."""
    return {(patient, name) for one in described for patient in one["patients"] for name in one["section"].split("+")}


def _measure(
    sdata: SpatialData,
    found: _Prediction,
    *,
    group_key: str,
    image_key: Mapping[str, str] | str | None,
    spots: str | None = None,
) -> list[_Measured]:
    """Bring together what was predicted and what was measured, in ``spots`` alone if that names a column."""
    table = measured_table(sdata)
    use = np.ones(table.n_obs, dtype=bool) if spots is None else spots_of(table, spots)
    use = use & ~table.obs_names.isin(found.context)
    names, used = table.obs_names, table.obs_names[use]
    observed = observe(sdata, found.card, group_key=group_key, image_key=image_key, crops=False)
    sections = [_with_prediction(o, names[o.section.rows[o.rows]], found) for o in observed]
    return [section.take(section.spots.isin(used)) for section in sections]


def _with_prediction(section: Observed, names: pd.Index, found: _Prediction) -> _Measured:
    rows = found.spots.get_indexer(names)
    if (rows < 0).any():
        raise ValueError(f"The prediction {found.key!r} is not of the spots whose counts were measured.")
    whole = _Measured(
        name=section.name,
        patients=section.patients,
        spots=names,
        mean=found.mean[rows],
        sd=None if found.sd is None else found.sd[rows],
        target=section.target,
    )
    known = whole.mean if whole.sd is None else whole.mean + whole.sd
    there = np.asarray(np.isfinite(known).all(axis=1))
    if not there.any():
        raise ValueError(f"No spot of section {section.name!r} has both counts and a prediction {found.key!r}.")
    return whole.take(there)


def _trained(card: ModelCard, train: Sequence[SpatialData], **where: Any) -> set[tuple[str, str]]:
    """Patient and name of the sections that a network learned from."""
    if not train and not all("sections" in training for training in _trainings(card)):
        logger.warning(
            "The card does not say what the network was trained on; name that with train=, else calibration on the "
            "same sections would not be noticed."
        )
    known = _pairs(o.describe() for sdata in train for o in observe(sdata, card, crops=False, **where))
    for training in _trainings(card):
        pairs = _pairs(section for role in ("sections", "unlabelled") for section in training.get(role, []))
        same = training.get("group_key", where["group_key"]) == where["group_key"]
        known |= pairs if same else {(_ANYBODY, name) for _, name in pairs}
    return known


def _trainings(card: ModelCard) -> list[dict[str, Any]]:
    """How a network was trained, or each member of an ensemble."""
    return card.training.get("ensemble", [{"model": card.model, **card.training}])


def _refuse_trained(sections: Sequence[_Measured], trained: Iterable[tuple[str, str]]) -> None:
    pairs = {pair for section in sections if len(section.spots) for pair in section.pairs}
    trained = set(trained)
    if known := sorted(pair for pair in pairs if pair in trained or (_ANYBODY, pair[1]) in trained):
        raise LeakageError(
            f"The network was trained on {known} (patient, section), where its errors are smaller than elsewhere: take "
            f"other sections. If these are others, give them names of their own in .obs[{Keys.SECTION!r}]."
        )


def _refuse_twice(sections: Sequence[_Measured]) -> None:
    pairs = [pair for section in sections for pair in section.pairs]
    if twice := sorted({pair for pair in pairs if pairs.count(pair) > 1}):
        raise ValueError(
            f"Several sections are called {twice} (patient, section): give each once, and a name of its own in "
            f".obs[{Keys.SECTION!r}]."
        )


def _warn_of_validation(sections: Sequence[_Measured], card: ModelCard) -> None:
    learned = [training for training in _trainings(card) if not get_spec(training.get("model", card.model)).closed_form]
    chose = _pairs(section for training in learned for section in training.get("validation", []))
    if used := sorted({pair for section in sections for pair in section.pairs & chose}):
        logger.warning(
            "%s (patient, section) chose the epoch of the network, so that its errors there may be a little smaller "
            "than elsewhere.",
            used,
        )


def _fit(sections: Sequence[_Measured], genes: Sequence[str], *, coverage: float) -> pd.DataFrame:
    """Return the quantile of the scores of each gene, and the least standard deviation to divide by."""
    rank = _rank(sum(len(section.spots) for section in sections), coverage)
    floor = _floor([section.sd for section in sections if section.sd is not None], len(genes))
    errors = [np.abs(s.target.astype(np.float64) - s.mean) / _spread(s.sd, floor) for s in sections]
    scores = np.partition(np.concatenate(errors), rank - 1, axis=0)[rank - 1]
    return pd.DataFrame({"quantile": scores, "floor": floor}, index=pd.Index(genes, name="gene"))


def _rank(n_spots: int, coverage: float) -> int:
    """Rank, from 1, of the score that as many of the scores to come are to stay below."""
    share = Fraction(str(float(coverage)))  # 0.55 * 100 is more than 55 in binary
    rank = math.ceil((n_spots + 1) * share)
    if rank > n_spots:
        needed = math.ceil(share / (1 - share))
        raise ValueError(
            f"Intervals that cover {coverage:g} need at least {needed} spots to calibrate on, there are {n_spots}."
        )
    return rank


def _floor(sds: Sequence[NDArray[np.float32]], n_genes: int) -> NDArray[np.float64]:
    """Least standard deviation to believe, ``(n_genes,)``; one where there is none."""
    if not sds:
        return np.ones(n_genes)
    floor = _FLOOR * np.sqrt(np.square(np.concatenate(sds), dtype=np.float64).mean(axis=0))
    return np.where(floor > 0, floor, 1.0)


def _spread(sd: NDArray[np.float32] | None, floor: NDArray[np.float64]) -> NDArray[np.float64]:
    """What errors are divided by, broadcastable to ``(n_spots, n_genes)``."""
    return floor if sd is None else np.maximum(sd, floor)


def _range(target: TargetSpec) -> NDArray[np.float32]:
    """Return the least and the largest value that a target can have, ``(2, 1)`` or ``(2, n_genes)``."""
    bounds = {
        "log1p_total": (0.0, math.log1p(target.total)),
        "log_proportion": (-math.inf, 0.0),
        "log1p": (0.0, math.inf),
        "counts": (0.0, math.inf),
    }
    values = np.array(bounds[target.transform])[:, None]
    if target.limits is not None:
        low, high = np.asarray(target.limits)
        values = np.divide(values - low, high - low, out=np.zeros((2, len(low))), where=high > low)
    return values.astype(np.float32)
