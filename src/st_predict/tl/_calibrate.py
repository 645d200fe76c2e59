"""Split-conformal prediction intervals, calibrated on held-out measured spots."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from st_predict._containers import check_slide
from st_predict._errors import InvalidValueError
from st_predict._files import whole
from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._reprs import ShortRepr
from st_predict._results import write_bounds
from st_predict._sections import (
    LeakageError,
    all_have_sd,
    as_list,
    common_key,
    each,
    join_held_out,
    keep_common,
    measure_held_out,
    pairs_of,
    read_stored,
    refuse_duplicates,
    refuse_other_networks,
    refuse_trained,
    select_genes,
    trained_pairs,
    warn_of_missing,
    warn_of_validation,
)
from st_predict._validated import File, Flag, Natural, Positive, Text, check
from st_predict._version import __version__
from st_predict._where import Duplicates, GeneMatching, Missing, Where
from st_predict.specs import ModelCard
from st_predict.tl._intervals import Intervals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from spatialdata import SpatialData

    from st_predict._sections import HeldOutSection, Sections, StoredPrediction

__all__ = ["Calibration", "calibrate"]

_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Calibration(ShortRepr):
    """Prediction intervals of a network, made by :func:`calibrate`.

    Parameters
    ----------
    key
        Key of the prediction.
    coverage
        Share of the measured values that the intervals should cover.
    scaled
        Whether widths are multiples of the spot's standard deviation in ``.obsm[key + "_std"]``.
    genes
        One row per gene: the interval is the prediction plus and minus ``quantile * max(sd, floor)``. Without
        ``scaled``, ``sd`` is 0 and ``floor`` is 1.
    sections
        Calibration sections: name ``section``, ``patients``, and names of the ``spots`` used.
    trained
        Patient and name of the sections that the network was trained on, as far as they are known.
    group_key
        Column of ``.obs`` that names the patient.
    card
        Card of the network.
    settings
        Prediction settings that do not follow from the card.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> simulated = stp.datasets.simulate(2, 1, n_genes=8, shape=(720, 880), mpp=1.2)
    >>> train, test = simulated.sections.values()
    >>> panel = list(train["table"].var_names)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(train, "ridge", panel=panel, out=out)
    ...     stp.tl.predict(test, result)
    ...     calibration = stp.tl.calibrate(test, coverage=0.8)
    ...     calibration.save(out + "/ridge.json")
    ...     calibration = stp.tl.Calibration.load(out + "/ridge.json")
    >>> calibration.n_spots
    17
    """

    key: str
    coverage: float
    scaled: bool
    genes: pd.DataFrame
    sections: tuple[Mapping[str, Any], ...]
    trained: frozenset[tuple[str, str]]
    group_key: str
    card: ModelCard
    settings: Mapping[str, object]

    @property
    def n_spots(self) -> int:
        """Number of calibration spots."""
        return sum(len(section["spots"]) for section in self.sections)

    def apply(self, sdata: SpatialData, *, table_key: str | None = None, bin_um: float | None = None) -> None:
        """Add interval bounds to a prediction; no measured values are needed.

        Parameters
        ----------
        sdata
            Slide with a prediction by the same network, under the same key.
        table_key
            Table of the spots. Needed if several tables have a prediction of this key.
        bin_um
            Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there
            are several sizes.

        Returns
        -------
        None
            Adds to the table that holds the prediction:

            ``.obsm["{key}_lower"]``, ``.obsm["{key}_upper"]`` : :class:`~numpy.ndarray`, ``(n_obs, n_genes)``, float32
                Bounds in the units of the prediction, limited to the range of these units. NaN where the prediction is NaN.
            ``.uns["st_predict"][key]["calibration"]``
                JSON with ``coverage``, ``scaled``, and the calibration ``sections`` with their numbers of spots.

            Columns are the ``genes`` of ``.uns["st_predict"][key]``, as in the prediction;
            :func:`st_predict.get.prediction` gives the bounds as layers, with the gene names. A prediction in a linked
            table gets layers ``"lower"`` and ``"upper"`` instead.

        Raises
        ------
        KeyError
            If the prediction does not exist, or standard deviations are missing for ``scaled`` intervals.
        ValueError
            If the prediction is from another network or has other settings, or the names of the bounds are taken.
        """
        check_slide(sdata)
        found = self._read(sdata, Where(table_key=table_key, bin_um=bin_um))
        lower, upper = self._intervals(self.card.genes).bounds(found.mean, found.sd)
        write_bounds(sdata.tables[found.holder], self.key, lower, upper, calibration=self._describe())

    def report(  # noqa: PLR0913  # every argument is a keyword
        self,
        sdatas: Sections,
        *,
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
        min_counts: int | None = None,
        tissue_only: bool = True,
    ) -> pd.DataFrame:
        """Measure the coverage of the intervals per section and gene.

        Calibration spots are left out. The intervals need not have been applied.

        Parameters
        ----------
        sdatas
            Measured sections that hold the prediction.
        image_key
            Key of the RGB image; optional where there is only one. For tables of several sections: mapping from region
            to image.
        table_key
            Key of the table with the counts; by default the predicted spots' table.
        bin_um
            Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there
            are several sizes.
        shapes_key
            Key of the spots' shapes. Selects the table that annotates them and, in a table of several sections, their
            section.
        layer
            Layer with the raw counts; by default ``.X``.
        missing
            Handling of panel genes that a table lacks: ``"error"`` refuses, ``"drop"`` removes them from the report.
        duplicates
            Handling of genes with several columns in a table: ``"error"`` refuses, ``"sum"`` adds their counts,
            ``"first"`` takes the first.
        ignore_case
            Whether to ignore case when gene symbols are matched.
        id_column
            Column of ``.var`` with identifiers of the panel's type. By default ``var_names``, or the only column that
            has genes of the panel.
        aliases
            Table of previous symbols and Ensembl identifiers, in the format of HGNC's complete set; see
            :func:`st_predict.pp.align_panel`.
        min_counts
            Minimum panel counts per spot; spots with fewer are left out. By default 50 in spots of 50 um
            and more, and 1 in bins, cells and spots of unknown size.
        tissue_only
            Whether to leave out spots off the tissue (``in_tissue`` in ``.obs`` is 0). Their number is logged.

        Returns
        -------
        DataFrame
            One row per section and gene: ``section``, ``patient``, ``shared`` (overlap with the calibration:
            ``"section"`` if other spots of the section were calibrated on, else ``"patient"`` or ``"none"``), ``gene``,
            ``n_spots``, ``coverage`` (share of the values inside their interval) and ``width`` (mean width, in the
            units of the prediction); both are NaN for a gene without intervals.

        Raises
        ------
        LeakageError
            If the network was trained on a section, or all of its spots were calibrated on.
        KeyError, ValueError
            If predictions or measured values are invalid; see :meth:`apply` and :func:`st_predict.tl.evaluate`.
        """
        genes = GeneMatching(
            missing=missing, duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases
        )
        where = Where(
            image_key=image_key,
            table_key=table_key,
            bin_um=bin_um,
            shapes_key=shapes_key,
            layer=layer,
            group_key=self.group_key,
            tissue_only=tissue_only,
            genes=genes,
        )
        slides = as_list(sdatas)
        found = each(slides, lambda sdata: self._read(sdata, where), named=sdatas)
        sections, card = _join(slides, found, where, named=sdatas, min_counts=min_counts)
        refuse_trained(sections, self.trained)
        refuse_duplicates(sections)
        return pd.concat([self._report_section(section, card.genes) for section in sections], ignore_index=True)

    def save(self, path: PathLike[str] | str) -> None:
        """Write the calibration to a JSON file, atomically.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        """
        content = {
            "format_version": _FORMAT_VERSION,
            "version": __version__,
            "key": self.key,
            "coverage": self.coverage,
            "scaled": self.scaled,
            # JSON has no NaN
            "genes": {
                "gene": self.genes.index.tolist(),
                **self.genes.astype(object).where(self.genes.notna(), None).to_dict("list"),
            },
            "sections": [dict(section) for section in self.sections],
            "trained": sorted(self.trained),
            "group_key": self.group_key,
            "card": self.card.to_json(),
            "settings": dict(self.settings),
        }
        file = check("path", path, File)
        if not file.parent.is_dir():
            raise FileNotFoundError(f"Cannot write {file.name!r}: the folder {str(file.parent)!r} does not exist.")
        with whole(file) as fresh:
            fresh.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: PathLike[str] | str) -> Calibration:
        """Read a file written by :meth:`save`.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If it is not a calibration, or was written by a newer version.
        """
        try:
            content = json.loads(check("path", path, File).read_text(encoding="utf-8"))
            if content["format_version"] > _FORMAT_VERSION:
                raise InvalidValueError(
                    f"its format {content['format_version']} is newer than this st_predict: upgrade it."
                )
            return cls(
                genes=pd.DataFrame(content["genes"]).set_index("gene").astype(np.float64),
                sections=tuple(content["sections"]),
                trained=frozenset((patient, section) for patient, section in content["trained"]),
                card=ModelCard.from_json(content["card"]),
                key=content["key"],
                coverage=content["coverage"],
                scaled=content["scaled"],
                group_key=content["group_key"],
                settings=content["settings"],
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:  # not JSON, or JSON of another structure
            raise InvalidValueError(
                f"{str(path)!r} is not a readable calibration: {error}.", "write it again with st_predict.tl.calibrate"
            ) from error

    def _intervals(self, genes: Sequence[str]) -> Intervals:
        return Intervals(
            genes=self.genes.loc[list(genes)],
            units=select_genes(self.card, [self.card.genes.index(gene) for gene in genes]).target,
        )

    def _read(self, sdata: SpatialData, where: Where) -> StoredPrediction:
        found = read_stored(sdata, self.key, where, scaled=self.scaled)
        refuse_other_networks(found, self.card, self.settings)
        return found

    def _describe(self) -> dict[str, Any]:
        """Return the record for ``.uns``, JSON-serialisable."""
        return {
            "coverage": self.coverage,
            "scaled": self.scaled,
            "sections": [{**section, "spots": len(section["spots"])} for section in self.sections],
            "version": __version__,
        }

    def _report_section(self, section: HeldOutSection, genes: Sequence[str]) -> pd.DataFrame:
        used = [spot for known in self.sections if pairs_of([known]) & section.pairs for spot in known["spots"]]
        patients = {patient for known in self.sections for patient in known["patients"]}
        rest = section.take(~section.spots.isin(used))
        if not len(rest.spots):
            raise LeakageError(
                f"Section {section.name!r} has no spots left to report on: all are calibration or context spots.",
                "report on other sections",
                "calibrate on some of the spots only: st_predict.tl.calibrate(..., spots=...)",
            )
        measured = self._intervals(genes).coverage(rest.target, rest.mean, rest.sd)
        return pd.DataFrame(
            {
                "section": rest.name,
                "patient": "+".join(rest.patients),
                "shared": "section" if used else "patient" if patients.issuperset(rest.patients) else "none",
                "gene": list(genes),
                "n_spots": len(rest.spots),
                "coverage": measured["coverage"].to_numpy(),
                "width": measured["width"].to_numpy(),
            }
        )


@shows_progress
def calibrate(  # noqa: PLR0913  # every argument is a keyword
    held_out: Sections,
    *,
    key: str | None = None,
    coverage: float = 0.9,
    spots: str | None = None,
    scaled: bool | None = None,
    train: Sections | None = None,
    group_key: str = Keys.PATIENT,
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
    min_counts: int | None = None,
    tissue_only: bool = True,
    progress: bool | None = None,
) -> Calibration:
    """Calibrate split-conformal prediction intervals per gene :cite:p:`Lei2018`.

    The half-width of a gene's intervals is the absolute error of rank ``ceil((n + 1) * coverage)`` among ``n`` held-out
    spots.

    Parameters
    ----------
    held_out
        Measured sections that hold the prediction and that the network was not trained on.
    key
        Key of the prediction; by default the only one.
    coverage
        Share of the measured values that the intervals should cover, between 0 and 1.
    spots
        Boolean column of ``.obs`` that selects the calibration spots; the section's other spots are left for
        :meth:`Calibration.report`. By default all spots.
    scaled
        Whether errors and widths are relative to the standard deviations in ``.obsm[key + "_std"]``, so that intervals
        are wider where the network is less certain. By default true if there are standard deviations.
    train
        Sections that the network was trained on, if its card does not name them.
    group_key
        Column of ``.obs`` that names the patient.
    image_key
        Key of the RGB image; optional where there is only one. For tables of several sections: mapping from region to
        image.
    table_key
        Key of the table with the counts; by default the predicted spots' table.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.
    shapes_key
        Key of the spots' shapes. Selects the table that annotates them and, in a table of several sections, their
        section.
    layer
        Layer with the raw counts; by default ``.X``.
    missing
        Handling of panel genes that a table lacks: ``"error"`` refuses; ``"drop"`` leaves their intervals NaN, as in
        :func:`st_predict.tl.evaluate`.
    duplicates
        Handling of genes with several columns in a table: ``"error"`` refuses, ``"sum"`` adds their counts, ``"first"``
        takes the first.
    ignore_case
        Whether to ignore case when gene symbols are matched.
    id_column
        Column of ``.var`` with identifiers of the panel's type. By default ``var_names``, or the only column that has
        genes of the panel.
    aliases
        Table of previous symbols and Ensembl identifiers, in the format of HGNC's complete set; see
        :func:`st_predict.pp.align_panel`.
    min_counts
        Minimum panel counts per spot; spots with fewer are left out. By default 50 in spots of 50 um and
        more, and 1 in bins and cells.
    tissue_only
        Whether to leave out spots off the tissue (``in_tissue`` in ``.obs`` is 0). Their number is logged.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Calibration
        The calibration: ``apply`` adds intervals to a prediction, ``report`` measures their coverage on other spots,
        ``save`` and ``load`` store it.

    Raises
    ------
    KeyError
        If a section lacks the prediction or column, or its standard deviations although ``scaled`` is true.
    LeakageError
        If the network was trained on a section.
    ValueError
        If there are too few spots for the coverage, predictions differ in network or settings, or counts or columns are
        invalid.

    Notes
    -----
    For spots exchangeable with the calibration spots, the mean coverage over calibrations is at least ``coverage``, and
    only slightly more. Spots of a section are correlated, and so are sections of a patient. A calibration on a section
    holds for other spots of that section, and for its patient as far as the sections are alike. It does not hold for
    other patients, whose expression levels may differ; :meth:`Calibration.report` measures the coverage there.

    Spots without a prediction or without counts, and context spots (``context`` of :func:`predict`), are left out.

    A standard deviation counts as at least ``floor``: a tenth of the root mean square of the gene's standard deviations
    over the calibration spots, or 1 where these are all zero. Measured values do not influence it.

    Bounds are limited to the range of the units, such as 0 to ``ln(1 + total)``, which does not lower the coverage.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> simulated = stp.datasets.simulate(2, 1, n_genes=8, shape=(720, 880), mpp=1.2)
    >>> train, test = simulated.sections.values()
    >>> panel = list(train["table"].var_names)
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(train, "ridge", panel=panel, out=out)
    ...     stp.tl.predict(test, result)
    >>> calibration = stp.tl.calibrate(test, coverage=0.8)
    >>> calibration.apply(test)  # in practice, another section
    >>> list(stp.get.prediction(test).layers)
    ['lower', 'upper']
    """
    genes = GeneMatching(
        missing=missing, duplicates=duplicates, ignore_case=ignore_case, id_column=id_column, aliases=aliases
    )
    where = Where(image_key=image_key, table_key=table_key, bin_um=bin_um, shapes_key=shapes_key, layer=layer)
    where = replace(where, group_key=group_key, genes=genes, tissue_only=tissue_only)
    coverage = check("coverage", coverage, Annotated[Positive, Field(lt=1)])
    spots, scaled = check("spots", spots, Text | None), check("scaled", scaled, Flag | None)
    slides = as_list(held_out, "held_out")
    key = common_key(slides, key, where, named=held_out)
    found = each(slides, lambda sdata: read_stored(sdata, key, where, scaled=scaled), named=held_out)
    card, settings = _common_network(found)
    sections, kept = _join(slides, found, where, named=held_out, spots=spots, min_counts=min_counts)
    trained = trained_pairs(card, [] if train is None else as_list(train, "train"), where, table_key=found[0].table_key)
    refuse_trained(sections, trained)
    refuse_duplicates(sections)
    warn_of_validation(sections, card)
    return Calibration(
        key=key,
        coverage=float(coverage),
        scaled=all_have_sd(found),
        genes=_fit(sections, kept, coverage=coverage).genes.reindex(pd.Index(card.genes, name="gene")),
        sections=tuple(section.describe() for section in sections if len(section.spots)),
        trained=frozenset(trained),
        group_key=group_key,
        card=card,
        settings=settings,
    )


def _common_network(found: Sequence[StoredPrediction]) -> tuple[ModelCard, dict[str, Any]]:
    """Return card and settings of the network behind all predictions; refuse several networks."""
    card, settings = found[0].card, found[0].settings
    for other in found:
        refuse_other_networks(other, card, settings)
    return card, settings


def _join(
    slides: Sequence[SpatialData],
    found: Sequence[StoredPrediction],
    where: Where,
    *,
    named: Sections,
    min_counts: int | None,
    spots: str | None = None,
) -> tuple[list[HeldOutSection], ModelCard]:
    """Join predictions and measured values; limit the card to genes that every table has."""
    min_counts = check("min_counts", min_counts, Natural | None)
    held_out = measure_held_out(slides, found, where, named=named)
    card = keep_common(found[0].card, held_out)
    warn_of_missing(found, card)
    joined = [
        join_held_out(slide, stored, card, spots=spots, min_counts=min_counts)
        for slide, stored in zip(held_out, found, strict=True)
    ]
    return [section for sections in joined for section in sections], card


def _fit(sections: Sequence[HeldOutSection], card: ModelCard, *, coverage: float) -> Intervals:
    """Pool the spots of all sections and calibrate on them."""
    sd = [section.sd for section in sections if section.sd is not None]
    return Intervals.fit(
        np.concatenate([section.target for section in sections]),
        np.concatenate([section.mean for section in sections]),
        np.concatenate(sd) if sd else None,
        coverage=coverage,
        genes=card.genes,
        units=card.target,
    )
