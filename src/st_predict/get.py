"""Results as AnnData and data frames."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from st_predict import pp
from st_predict._containers import check_data, check_slide, share_arrays
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._public import show_only
from st_predict._record import Record
from st_predict._rows import rows_in
from st_predict._validated import Flag, Number, Text, check
from st_predict.io import find_table, named_table
from st_predict.specs import HeldOut, ModelCard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.specs import Reliability, TargetSpec

__all__ = ["frame", "prediction", "reliability", "table_of", "to_anndata"]

__dir__ = show_only(__all__)


logger = logging.getLogger(__name__)

Units: TypeAlias = Literal["log1p_10k", "model"]
MODEL: Literal["model"] = "model"

_BY_CHANCE = 0.2
"""Maximum share of reliable genes expected by chance without a warning."""

_TABLE_ATTRS = "spatialdata_attrs"


def prediction(
    data: AnnData | SpatialData,
    key: str | None = None,
    *,
    table_key: str | None = None,
    bin_um: float | None = None,
    genes: Sequence[str] | PathLike[str] | str | None = None,
    units: Units | None = None,
    min_score: float | None = None,
    reliable: bool = False,
    held_out: HeldOut | None = None,
) -> AnnData:
    """Return a prediction as a separate object, with the gene panel as variables.

    Reads predictions in ``.obsm`` of the spot table, also as DataFrames of earlier versions, and in a linked table. The
    result is a copy: changing it does not change ``data``. It keeps the links to the spots, so ``sdata["name"] =
    prediction`` adds a table that can be plotted and written.

    Parameters
    ----------
    data
        Object with the result of :func:`st_predict.tl.predict`, or its table if the prediction is in ``.obsm``.
    key
        Key of the prediction, by default ``pred_{model}``; optional if there is only one.
    table_key
        Key of the spots' table; required if several tables have a prediction of this key.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``.
    genes
        Gene names of a prediction in ``.obsm`` without a record: a list, or the ``.safetensors`` checkpoint of the
        prediction. :func:`anndata.concat` drops the record unless ``uns_merge="same"``.
    units
        Units of the result. ``"log1p_10k"``: ``ln(1 + counts per 10,000)``, scanpy's usual normalisation. ``"model"``:
        the network's units (:class:`~st_predict.specs.TargetSpec`). By default ``"log1p_10k"`` if the network's units
        can be inverted, such as Pearson residuals, else ``"model"``. Standard deviations are converted to first order.
    min_score
        Minimum partial correlation of a gene on held-out sections; other genes are left out.
    reliable
        Whether to return only reliable genes: the lower end of the partial correlation's 95 % interval is above 0. Some
        genes pass by chance; a warning is logged if these are more than a fifth.
    held_out
        Held-out sections behind the scores: other patients (``"patient"``) or other sections of training patients
        (``"section"``). By default other patients if the card has them, else other sections.

    Returns
    -------
    AnnData
        Table with:

        ``.X`` : ``(n_obs, n_genes)``, float32
            Prediction; rows of spots that could not be predicted are NaN.
        ``.layers["std"]`` : ``(n_obs, n_genes)``, float32
            Standard deviations, if the prediction has them.
        ``.layers["lower"]``, ``.layers["upper"]`` : ``(n_obs, n_genes)``, float32
            Bounds of prediction intervals, if added by :meth:`st_predict.tl.Calibration.apply`.
        ``.var["partial"]``, ``.var["partial_low"]``, ``.var["partial_high"]``, ``.var["ceiling_partial"]`` : float64
            Score of each gene on held-out sections, the ends of its interval and its noise ceiling, if the card has them;
            see :func:`reliability`.
        ``.obs``, ``.obsm["spatial"]``
            Copied from the spot table where present.
        ``.uns["st_predict"][key]``
            Card and version of the model, if known, and a note that the values are ``.X``, so that this result is not
            mistaken for a table of spots. ``"units"`` has the units if they are not the network's.
        ``.uns["spatialdata_attrs"]``
            Links to the spots, copied from the spot table.

    Raises
    ------
    KeyError
        If the prediction or table does not exist; the message lists the existing ones.
    ValueError
        If ``key`` is missing although there are several predictions, several tables have a prediction of this key, gene
        names are unknown, ``genes`` does not fit, the prediction cannot be converted to ``units``, or genes are to be
        selected but the card lacks scores or none passes.
    FileNotFoundError
        If ``genes`` is a path that does not exist.
    TypeError
        If ``data`` is neither AnnData nor SpatialData, or ``key`` holds an embedding.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> prediction = stp.get.prediction(sdata, "pred_ridge")
    >>> prediction.shape  # spots, genes
    (19, 3)
    >>> list(prediction.var_names)
    ['GENE1', 'GENE2', 'GENE3']
    """
    units, held_out = check("units", units, Units | None), check("held_out", held_out, HeldOut | None)
    min_score, reliable = check("min_score", min_score, Number | None), check("reliable", reliable, Flag)
    table_key = _asked_table(data, table_key, bin_um)
    result = stored_prediction(data, key, table_key=table_key, genes=genes)
    key = only_key(data, key, table_key=table_key)
    kept = _kept(result, key, min_score=min_score, reliable=reliable, held_out=held_out)
    written = Record.units_of(result.uns, key)
    if written in {None, MODEL}:
        written = _convert(result, key, units)
    elif units not in {None, written}:
        raise InvalidValueError(
            f"This copy of {key!r} has the units {written!r} and cannot be converted.",
            Advice("leave out {}", "units"),
            "use the original prediction",
        )
    if kept is not None:
        result = _only(result, key, kept)
    _add_scores(result, key, held_out)
    Record.mark_copy(result.uns, key, None if written == MODEL else written)
    return result


def _kept(
    result: AnnData, key: str, *, min_score: float | None, reliable: bool, held_out: HeldOut | None
) -> list[int] | None:
    """Return indices of the genes that pass; ``None`` without selection."""
    if min_score is None and not reliable:
        return None
    found = _scores(result.uns, key, held_out, others=("min_score", "reliable"))
    if kept := found.trusted(min_score=min_score, reliable=reliable):
        if found.n_by_chance > _BY_CHANCE * len(found.trusted()):
            logger.warning(
                "On %s (%s), the interval is above 0 for %d genes of %r, about %d of them by chance (as many have it below 0).",
                *(found.where, ", ".join(found.sections), len(found.trusted()), key, found.n_by_chance),
            )
        return kept
    asked = ["a lower end of the interval above 0"] if reliable else []
    asked += [] if min_score is None else [f"a partial correlation of at least {min_score:g}"]
    best = max((score for score in found.partial if score is not None), default=float("nan"))
    raise InvalidValueError(
        f"None of {len(found.partial)} genes has {' and '.join(asked)} on {found.where} ({', '.join(found.sections)}); the best "
        f"score is {best:z.2f}.",
        *([Advice("lower {}", "min_score")] if min_score is not None else []),
        "use all genes",
    )


def _only(result: AnnData, key: str, kept: list[int]) -> AnnData:
    """Return a subset of the genes, with their card."""
    result = result[:, kept].copy()
    record = Record.read(result.uns, key)
    assert record is not None and record.card is not None  # because it has scores
    replace(record, card=record.card.only(kept)).write(result.uns, key)
    return result


def _add_scores(result: AnnData, key: str, held_out: HeldOut | None) -> None:
    """Add the scores of the card to ``.var``, if it has any."""
    card = _card(result.uns, key)
    found = None if card is None else card.reliability_on(held_out)
    if card is None or found is None or len(card.genes) != result.n_vars:
        return
    for name, values in _columns(found).items():
        result.var[name] = values


def _columns(found: Reliability) -> dict[str, NDArray[np.float64]]:
    """Scores as columns, named as in :attr:`st_predict.tl.Evaluation.genes`."""
    columns = {
        "partial": found.partial,
        "partial_low": found.low,
        "partial_high": found.high,
        "ceiling_partial": found.ceiling,
    }
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def _scores(uns: Mapping[str, Any], key: str, held_out: HeldOut | None, *, others: Sequence[str] = ()) -> Reliability:
    """Return the scores from a prediction's card; errors advise to leave out ``others``."""
    card = _card(uns, key)
    found = None if card is None else card.reliability_on(held_out)
    if found is not None:
        return found
    ways = [Advice("leave out {}", name) for name in others]
    if card is None or not card.reliability:
        raise InvalidValueError(
            f"The card of {key!r} has no scores of its genes, so it is unknown which are reliable.",
            "measure them on held-out sections with st_predict.tl.evaluate, write them to the checkpoint with "
            "st_predict.checkpoints.add_reliability and predict again",
            *ways,
        )
    there = [one.held_out for one in card.reliability]
    raise InvalidValueError(
        f"The card of {key!r} has scores for {there}, not for {held_out!r}.",
        "measure them and predict again",
        Advice("leave out {}", "held_out"),
    )


def reliability(
    data: AnnData | SpatialData,
    key: str | None = None,
    *,
    table_key: str | None = None,
    bin_um: float | None = None,
    held_out: HeldOut | None = None,
) -> pd.DataFrame:
    """Return scores of each gene on held-out sections, from the card of the prediction's model.

    Parameters
    ----------
    data
        Object with the result of :func:`st_predict.tl.predict`, or its table if the prediction is in ``.obsm``.
    key
        Key of the prediction; optional if there is only one.
    table_key
        Key of the spots' table; required if several tables have a prediction of this key.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``.
    held_out
        Held-out sections behind the scores: other patients (``"patient"``) or other sections of training patients
        (``"section"``). By default other patients if the card has them, else other sections.

    Returns
    -------
    DataFrame
        One row per gene: ``partial``, the partial correlation given sequencing depth; ``partial_low`` and
        ``partial_high``, its 95 % interval; ``ceiling_partial``, its noise ceiling; ``n_spots``, number of spots;
        ``held_out``; ``sections``, names of the sections; ``trusted``, whether the interval is above 0.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the prediction does not exist, or its card lacks scores.

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
    ...     evaluation = stp.tl.evaluate(test)
    ...     path = stp.checkpoints.add_reliability(result, evaluation, overwrite=True)
    ...     stp.tl.predict(test, path)
    >>> scores = stp.get.reliability(test)
    >>> scores.columns.tolist()
    ['partial', 'partial_low', 'partial_high', 'ceiling_partial', 'n_spots', 'held_out', 'sections', 'trusted']
    >>> scores["held_out"].unique().tolist()
    ['patient']
    """
    held_out = check("held_out", held_out, HeldOut | None)
    table_key = _asked_table(data, table_key, bin_um)
    key = only_key(data, key, table_key=table_key)
    holder = data if isinstance(data, AnnData) else data.tables[table_of(data, key, table_key=table_key)]
    if key not in Record.keys(holder.uns):
        raise _unknown(key, _listed(holder))
    found, card = _scores(holder.uns, key, held_out), _card(holder.uns, key)
    assert card is not None  # because it has scores
    table = pd.DataFrame(_columns(found), index=pd.Index(card.genes, name="gene"))
    table["n_spots"], table["held_out"], table["sections"] = found.n_spots, found.held_out, ", ".join(found.sections)
    table["trusted"] = np.isin(np.arange(len(table)), found.trusted())
    return table


def stored_prediction(
    data: AnnData | SpatialData,
    key: str | None,
    *,
    table_key: str | None = None,
    genes: Sequence[str] | PathLike[str] | str | None = None,
) -> AnnData:
    """Return a stored prediction in the network's units, with the card of its genes; see :func:`prediction`."""
    key = only_key(data, key, table_key=table_key)
    result = _as_stored(data, key, table_key=table_key, genes=genes)
    _align_card(result, key)
    return result


def _as_stored(
    data: AnnData | SpatialData,
    key: str,
    *,
    table_key: str | None,
    genes: Sequence[str] | PathLike[str] | str | None,
) -> AnnData:
    if isinstance(data, AnnData):
        return _from_obsm(data, key, genes)
    holder = table_of(data, key, table_key=table_key)
    if key in data.tables[holder].obsm:
        return _from_obsm(data.tables[holder], key, genes)
    spots = spots_table_of(data, holder, table_key=table_key)
    return _from_table(data.tables[holder], key, genes, spots=None if spots is None else data.tables[spots])


def _align_card(result: AnnData, key: str) -> None:
    """Align the card with a prediction whose genes were selected or reordered; unknown gene names are kept."""
    card, names = _card(result.uns, key), list(result.var_names)
    if card is None or names == list(card.genes):
        return
    places = {gene: place for place, gene in enumerate(card.genes)}
    if set(names) <= set(places):
        record = Record.read(result.uns, key)
        assert record is not None  # because it has a card
        replace(record, card=card.only([places[gene] for gene in names])).write(result.uns, key)


def _convert(result: AnnData, key: str, units: Units | None) -> Units:
    """Convert values, standard deviations and bounds; return their units."""
    if units == MODEL:
        return MODEL
    spec = _units(result, key)
    if spec is None or not spec.gives_rates:
        if units is None:
            return MODEL
        raise InvalidValueError(
            f"The prediction {key!r} cannot be converted to {units!r}: "
            + ("its card is unknown." if spec is None else f"its units are {spec.units}."),
            Advice("keep the network's units with {}", "units", MODEL),
        )
    if Keys.STD in result.layers:
        step = np.float32(1e-3)
        slope = (pp.to_log1p_10k(result.X + step, spec) - pp.to_log1p_10k(result.X - step, spec)) / (2 * step)
        result.layers[Keys.STD] = (result.layers[Keys.STD] * slope).astype(np.float32)
    for layer in {Keys.LOWER, Keys.UPPER} & set(result.layers):
        result.layers[layer] = pp.to_log1p_10k(result.layers[layer], spec)
    result.X = pp.to_log1p_10k(result.X, spec)
    logger.info("%r is given in ln(1 + counts per 10,000); units='model' gives %s.", key, spec.units)
    return "log1p_10k"


def _units(result: AnnData, key: str) -> TargetSpec | None:
    """Return the network's units; ``None`` if its card is missing or unreadable."""
    try:
        record = Record.read(result.uns, key)
    except InvalidValueError as error:
        logger.warning("%s The prediction is not converted.", error)
        return None
    return None if record is None or record.card is None else record.card.target


def _card(uns: Mapping[str, Any], key: str) -> ModelCard | None:
    """Return the network's card; ``None`` if it is missing or unreadable."""
    try:
        record = Record.read(uns, key)
    except InvalidValueError:
        return None
    return None if record is None else record.card


def frame(
    data: AnnData | SpatialData,
    key: str | None = None,
    *,
    table_key: str | None = None,
    bin_um: float | None = None,
    genes: Sequence[str] | PathLike[str] | str | None = None,
    units: Units | None = None,
    min_score: float | None = None,
    reliable: bool = False,
    held_out: HeldOut | None = None,
) -> pd.DataFrame:
    """Return a prediction as a DataFrame.

    Parameters
    ----------
    data
        Object with the result of :func:`st_predict.tl.predict`, or its table if the prediction is in ``.obsm``.
    key
        Key of the prediction, by default ``pred_{model}``; optional if there is only one.
    table_key
        Key of the spots' table; required if several tables have a prediction of this key.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``.
    genes
        Gene names, or the checkpoint of the prediction, if its record is missing; see :func:`prediction`.
    units
        Units of the result. ``"log1p_10k"``: ``ln(1 + counts per 10,000)``, scanpy's usual normalisation. ``"model"``:
        the network's units (:class:`~st_predict.specs.TargetSpec`). By default ``"log1p_10k"`` if the network's units
        can be inverted, such as Pearson residuals, else ``"model"``. Standard deviations are converted to first order.
    min_score
        Minimum partial correlation of a gene on held-out sections; other genes are left out.
    reliable
        Whether to return only reliable genes: the lower end of the partial correlation's 95 % interval is above 0. Some
        genes pass by chance; a warning is logged if these are more than a fifth.
    held_out
        Held-out sections behind the scores: other patients (``"patient"``) or other sections of training patients
        (``"section"``). By default other patients if the card has them, else other sections.

    Returns
    -------
    DataFrame
        ``(n_obs, n_genes)``, float32: one row per spot, indexed by name, and one column per gene. Rows of spots that
        could not be predicted are NaN. The result is a copy. :func:`reliability` has scores of the genes.

    Raises
    ------
    FileNotFoundError, KeyError, TypeError, ValueError
        If the prediction does not exist, its gene names are unknown, or none of its genes passes; see
        :func:`prediction`.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> frame = stp.get.frame(sdata, "pred_ridge")
    >>> frame.columns.tolist()
    ['GENE1', 'GENE2', 'GENE3']
    >>> frame["GENE1"].idxmax()  # spot with the highest prediction
    'P1S1_2x4'
    """
    return prediction(
        data,
        key,
        table_key=table_key,
        bin_um=bin_um,
        genes=genes,
        units=units,
        min_score=min_score,
        reliable=reliable,
        held_out=held_out,
    ).to_df()


def _from_obsm(table: AnnData, key: str, genes: Sequence[str] | PathLike[str] | str | None) -> AnnData:
    if key not in table.obsm:
        raise _unknown(key, _listed(table))
    if Record.kind_of(table.uns, key) == "embedding":
        raise InvalidTypeError(
            f".obsm[{key!r}] is an embedding, not a prediction. The predictions are {_listed(table)}."
        )
    slot = table.obsm[key]
    # earlier versions wrote a DataFrame
    stored = slot.columns.astype(str) if isinstance(slot, pd.DataFrame) else Record.genes_of(table.uns, key)
    values = _as_array(slot, f".obsm[{key!r}]")
    names = _names(key, values.shape[1], stored=stored, given=genes)
    result = _build(values, names, key=key, stored=table, spots=table)
    derived = Record.derived_of(table.uns, key)
    for layer, name in ((Keys.STD, Keys.std(key)), (Keys.LOWER, Keys.lower(key)), (Keys.UPPER, Keys.upper(key))):
        if name in derived and name in table.obsm:  # otherwise it was deleted
            result.layers[layer] = _as_array(table.obsm[name], f".obsm[{name!r}]")
    return result


def _as_array(values: Any, what: str) -> NDArray[np.float32]:
    """Return a copy, ``(n_obs, n_genes)``."""
    try:
        # np.asarray first: np.array of a DataFrame of pandas 2.2 shares its memory
        array = np.array(np.asarray(values.toarray() if sparse.issparse(values) else values), np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{what} must be numbers ({error}).") from error
    if array.ndim != 2:
        raise InvalidValueError(f"{what} must be (n_obs, n_genes), got the shape {array.shape}.")
    return array


def _names(
    key: str, n_genes: int, *, stored: Sequence[str] | None, given: Sequence[str] | PathLike[str] | str | None
) -> list[str]:
    """Return gene names of a prediction with ``n_genes`` columns: stored ones, else the caller's."""
    if stored is None and given is None:
        raise InvalidValueError(
            f"The gene names of {key!r} are unknown: .uns[{Keys.UNS!r}] lacks them.",
            'concatenate with anndata.concat(..., uns_merge="same") to keep them',
            _give_names(n_genes),
        )
    known = None if stored is None else [str(gene) for gene in stored]
    names = known if given is None else _read_names(given)
    if names is None or len(names) != n_genes:
        source = "The record has" if given is None else "The given list has"
        raise InvalidValueError(
            f"{source} {len(names or [])} names, but the prediction {key!r} has {n_genes} columns.",
            _give_names(n_genes),
            "predict again",
        )
    if known is not None and len(known) == n_genes and names != known:
        raise InvalidValueError(
            f"The given names differ from the gene names stored with {key!r}.",
            Advice("leave out {}", "genes"),
        )
    return names


def _give_names(n_genes: int) -> Advice:
    return Advice(f"give a list of {n_genes} names, or the checkpoint of the prediction, with {{}}", "genes")


def _read_names(genes: Sequence[str] | PathLike[str] | str) -> list[str]:
    if not isinstance(genes, (str, PathLike)):
        if not isinstance(genes, Iterable) or not all(isinstance(gene, str) for gene in genes):
            raise InvalidTypeError(f"genes must be a list of names or the path of a checkpoint, got {genes!r}.")
        return [str(gene) for gene in genes]
    try:
        return list(ModelCard.of_file(genes).genes)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The file {str(genes)!r} does not exist; genes must be a list of names or the path of a .safetensors checkpoint."
        ) from error


def _from_table(
    table: AnnData,
    key: str,
    genes: Sequence[str] | PathLike[str] | str | None,
    *,
    spots: AnnData | None,
) -> AnnData:
    # annotations of the spots are in another table, if the prediction has its own table
    described = table if spots is None else spots[rows_in(table, spots)]
    names = _names(key, table.n_vars, stored=table.var_names, given=genes)
    result = _build(_as_array(table.X, f".X of table {key!r}"), names, key=key, stored=table, spots=described)
    for layer in {Keys.STD, Keys.LOWER, Keys.UPPER} & set(table.layers):
        result.layers[layer] = _as_array(table.layers[layer], f".layers[{layer!r}] of table {key!r}")
    return result


def _build(values: NDArray[np.float32], genes: list[str], *, key: str, stored: AnnData, spots: AnnData) -> AnnData:
    result = AnnData(values, obs=spots.obs.copy(), var=pd.DataFrame(index=genes))
    if Keys.SPATIAL in spots.obsm:
        result.obsm[Keys.SPATIAL] = np.array(spots.obsm[Keys.SPATIAL])
    if _TABLE_ATTRS in spots.uns:
        result.uns[_TABLE_ATTRS] = _links(spots)
    Record.copy(stored.uns, result.uns, key)
    return result


def to_anndata(sdata: SpatialData, *, table_key: str | None = None, bin_um: float | None = None) -> AnnData:
    """Return the spots' table with all results, without links to the image.

    Inverse of :func:`st_predict.io.from_anndata`.

    Parameters
    ----------
    sdata
        Object with the results.
    table_key
        Key of the spots' table; optional if there is only one.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.

    Returns
    -------
    AnnData
        Table with all additions to ``.obsm``, ``.layers`` and ``.uns``. Arrays are shared, not copied.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the table does not exist or is ambiguous, or ``sdata`` has another type.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> adata = stp.get.to_anndata(sdata)
    >>> list(adata.obsm)
    ['spatial', 'pred_ridge']
    """
    name = find_table(sdata, table_key, bin_um=bin_um)
    if name is None:
        raise NotFoundError(f"sdata has no table of spots; its tables are {sorted(sdata.tables)}.")
    table = sdata.tables[name]
    taken = share_arrays(table)
    taken.obs = taken.obs.drop(columns=[Keys.REGION, Keys.SPOT], errors="ignore")
    taken.uns.pop(_TABLE_ATTRS, None)
    return taken


def _links(table: AnnData) -> dict[str, Any]:
    """Return the attributes that link a table's rows to shapes, limited to regions with rows."""
    attrs = deepcopy(dict(table.uns[_TABLE_ATTRS]))
    if not isinstance(attrs["region"], str) and attrs["region_key"] in table.obs:
        there = set(table.obs[attrs["region_key"]])
        attrs["region"] = [region for region in attrs["region"] if region in there]
    return attrs


def only_key(data: AnnData | SpatialData, key: str | None, *, table_key: str | None = None) -> str:
    """Return the key of the requested or only prediction.

    Parameters
    ----------
    data
        Object with the prediction.
    key
        Key of the prediction; ``None`` for the only one. Embeddings do not count. Cells, and then predictions without a
        record, only count if there are none other.
    table_key
        Table of the spots; by default all are searched.

    Returns
    -------
    str
        ``key`` if it is given; it need not exist.

    Raises
    ------
    KeyError
        If a prediction or the table does not exist.
    TypeError
        If ``data`` is neither AnnData nor SpatialData.
    ValueError
        If there are several predictions.
    """
    check_data(data)
    _check_table(data, table_key)
    if key is not None:
        return cast("str", check("key", key, Text))
    there = _listed(data) if isinstance(data, AnnData) else _listed_of(data, table_key)
    if not there:
        tables = [data] if isinstance(data, AnnData) else _searched(data, table_key)
        there = sorted({name for table in tables for name in _without_record(table)})
    if not there:
        raise NotFoundError(
            "No prediction found.",
            "make one with st_predict.tl.predict",
            Advice("name a prediction without a record with {}", "key"),
        )
    if len(there) > 1:
        raise InvalidValueError(f"Several predictions found: {there}.", Advice("choose one with {}", "key"))
    return there[0]


def _asked_table(data: AnnData | SpatialData, table_key: str | None, bin_um: float | None) -> str | None:
    """Return the table given by name or bin size; ``None`` if neither is given."""
    check_data(data)
    if not isinstance(data, AnnData):
        return named_table(data, table_key, bin_um)
    if bin_um is not None:
        raise InvalidValueError("AnnData has no tables to choose from.", Advice("leave out {}", "bin_um"))
    return table_key


def _check_table(data: AnnData | SpatialData, table_key: str | None) -> None:
    if table_key is None:
        return
    if isinstance(data, AnnData):
        raise InvalidValueError("AnnData has no tables to choose from.", Advice("leave out {}", "table_key"))
    if check("table_key", table_key, Text) not in data.tables:
        raise NotFoundError(f"No table {table_key!r}; there are {sorted(data.tables)}.")


def _listed_of(sdata: SpatialData, table_key: str | None) -> list[str]:
    """Return keys of the predictions for the spots of a table, or of all tables; cells only count without others."""
    inside = {key for table in _searched(sdata, table_key) for key in _listed(table)}
    linked = {
        key for key in _linked(sdata) if table_key is None or table_key == key or _same_spots(sdata, key, table_key)
    }
    of_spots = {key for key in inside | linked if Keys.cell_grid(key) not in sdata.shapes}
    return sorted(of_spots or inside | linked)


def _searched(sdata: SpatialData, table_key: str | None) -> list[AnnData]:
    return list(sdata.tables.values()) if table_key is None else [sdata.tables[table_key]]


def _without_record(table: AnnData) -> list[str]:
    """Return keys of ``.obsm`` with the name of a prediction, but without a record."""
    names = {k for k in table.obsm if k.startswith(Keys.prediction("")) and k not in Record.keys(table.uns)}
    return sorted(names - {derived(k) for k in names for derived in (Keys.std, Keys.lower, Keys.upper)})


def table_of(sdata: SpatialData, key: str, *, table_key: str | None = None) -> str:
    """Return the key of the table that holds a prediction, in ``.obsm`` or as ``.X``.

    Parameters
    ----------
    sdata
        Object with the tables.
    key
        Key of the prediction.
    table_key
        Table of the spots; by default all are searched.

    Returns
    -------
    str
        Key of ``sdata.tables``.

    Raises
    ------
    KeyError
        If the prediction or table does not exist.
    TypeError
        If ``sdata`` is not a SpatialData object.
    ValueError
        If several tables have a prediction of this key.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2", "GENE3"], out=out)
    ...     stp.tl.predict(sdata, result)
    >>> stp.get.table_of(sdata, "pred_ridge")
    'table'
    """
    check_slide(sdata)
    _check_table(sdata, table_key)
    check("key", key, Text)
    searched = list(sdata.tables) if table_key is None else [table_key]
    holders = [name for name in searched if key in sdata.tables[name].obsm]
    if _is_linked(sdata, key) and (table_key is None or table_key == key or _same_spots(sdata, key, table_key)):
        holders.append(key)
    if not holders:
        raise _unknown(key, _listed_everywhere(sdata))
    if len(holders) > 1 and table_key not in holders:
        raise InvalidValueError(
            f"Several tables have a prediction {key!r}: {sorted(holders)}.",
            Advice("choose one with {}", "table_key"),
            Advice("give the bin size of Visium HD with {}", "bin_um"),
        )
    return holders[0]  # table_key, if it is among them


def spots_table_of(sdata: SpatialData, holder: str, *, table_key: str | None = None) -> str | None:
    """Return the table with counts and annotations of a prediction's spots.

    Parameters
    ----------
    sdata
        Object with the tables.
    holder
        Table that holds the prediction, from :func:`table_of`.
    table_key
        Key of the spots' table, if known.

    Returns
    -------
    str or None
        ``holder``, or for a prediction with its own table the other table of the same spots; ``None`` if there is none.

    Raises
    ------
    ValueError
        If it is ambiguous.
    """
    if not _is_linked(sdata, holder):
        return holder
    if table_key not in {None, holder}:
        return table_key
    others = [name for name in sdata.tables if not _is_linked(sdata, name) and _same_spots(sdata, holder, name)]
    if len(others) > 1:
        raise InvalidValueError(
            f"Several tables annotate the spots of {holder!r}: {sorted(others)}.",
            Advice("choose one with {}", "table_key"),
        )
    return others[0] if others else None


def _is_linked(sdata: SpatialData, key: str) -> bool:
    return key in sdata.tables and key in Record.keys(sdata.tables[key].uns) and key not in sdata.tables[key].obsm


def _same_spots(sdata: SpatialData, key: str, table_key: str) -> bool:
    linked, table = sdata.tables[key], sdata.tables[table_key]
    regions = [set(np.atleast_1d(t.uns.get(_TABLE_ATTRS, {}).get("region", []))) for t in (linked, table)]
    return regions[0] <= regions[1] and bool(linked.obs_names.isin(table.obs_names).all())


def _linked(sdata: SpatialData) -> list[str]:
    """Keys of the predictions with their own tables."""
    return [k for k in sdata.tables if _is_linked(sdata, k) and Record.kind_of(sdata.tables[k].uns, k) != "embedding"]


def _listed(table: AnnData) -> list[str]:
    """Keys of the predictions in ``.obsm`` of a table."""
    return sorted(k for k in Record.keys(table.uns) if k in table.obsm and Record.kind_of(table.uns, k) == "prediction")


def _listed_everywhere(sdata: SpatialData) -> list[str]:
    return sorted({*_linked(sdata), *(key for table in sdata.tables.values() for key in _listed(table))})


def _unknown(key: str, there: list[str]) -> KeyError:
    if not there:
        return NotFoundError(f"No prediction {key!r}; sdata has none yet.", "make one with st_predict.tl.predict")
    return NotFoundError(f"No prediction {key!r}; there are {there}.")
