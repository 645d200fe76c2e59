"""Selection of gene panels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypeVar

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_array, csr_matrix
from spatialdata import SpatialData

from st_predict._containers import check_data
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._on_tissue import on_tissue
from st_predict._progress import shows_progress
from st_predict._validated import Count, Flag, Natural, NotNegative, Share, Text, check
from st_predict._where import Duplicates
from st_predict.io import find_table
from st_predict.pp._counts import read_counts
from st_predict.pp._spatial_panel import PlacedCounts, find_places, rank_spatial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["select_panel"]

Method = Literal["m2ost", "mean", "hvg", "spatial"]

T = TypeVar("T")

_ONLY_FOR = {"seed": "m2ost", "n_variable": "m2ost", "min_mean": "spatial", "fdr": "spatial"}
"""Arguments of a single method."""


@shows_progress
def select_panel(  # noqa: PLR0913  # methods have different parameters, all keywords
    adatas: Sequence[AnnData | SpatialData],
    *,
    n_genes: int = 250,
    method: Method = "m2ost",
    seed: int | None = None,
    n_variable: int | None = None,
    min_mean: float | None = None,
    fdr: float | None = None,
    layer: str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    id_column: str | None = None,
    duplicates: Duplicates = "error",
    tissue_only: bool = True,
    progress: bool | None = None,
) -> list[str]:
    """Select a gene panel from raw counts.

    Parameters
    ----------
    adatas
        One table per section, or objects that hold one; not changed. For ``"spatial"``, each region that a table
        annotates is a section.
    n_genes
        Size of the panel.
    method
        Selection method. ``"m2ost"`` draws the panel at random from the genes that are among the ``n_variable`` genes
        of highest variance in every section :cite:p:`Wang2025`. ``"mean"`` takes the genes of highest mean over all
        spots of all sections; genes that a section lacks count as zeros :cite:p:`He2020`. ``"hvg"`` takes scanpy's
        highly variable genes (flavor ``"seurat"``, on ``log1p`` of counts scaled to 10 000 per spot, with the section
        as batch) among the genes that all sections have. ``"spatial"`` takes the genes with the highest spatial
        autocorrelation beyond sequencing depth; see the notes.
    seed
        Random seed of ``"m2ost"``; by default 1553.
    n_variable
        Number of variable genes per section, for ``"m2ost"``; by default 1500.
    min_mean
        Minimum mean count per spot in every section, for ``"spatial"``; by default 1.
    fdr
        False discovery rate per section, for ``"spatial"``; by default 0.05. 1 keeps all candidates.
    layer
        Layer with the raw counts; by default ``.X``.
    table_key
        Key of the table of each :class:`~spatialdata.SpatialData` object; optional if it has only one.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``. By default 8 um where there are
        several sizes.
    id_column
        Column of ``.var`` with the identifiers of the genes; by default ``var_names``.
    duplicates
        Handling of genes with several columns: ``"error"`` refuses, ``"sum"`` adds their counts, ``"first"`` takes the
        first.
    tissue_only
        Whether to leave out spots off the tissue (``in_tissue`` in ``.obs`` is 0).
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    list of str
        Genes of the panel: in alphabetical order for ``"m2ost"``, by falling mean for ``"mean"``, variability for
        ``"hvg"`` and autocorrelation for ``"spatial"``.

    Raises
    ------
    KeyError
        If the table, layer or column does not exist.
    ValueError
        If ``adatas`` is empty, a table has no raw counts or duplicated genes, fewer than ``n_genes`` genes are left,
        or an argument is not one of its choices or belongs to another method. For ``"spatial"``, also if positions are
        missing or not finite, or a section has fewer than 7 spots with counts.

    Notes
    -----
    The published code of M2OST samples from a set, whose order changes between runs. Here genes are sorted and sampled
    with :func:`numpy.random.default_rng`: a seed always gives the same panel, but not the published one. Ties in
    variance are broken by name, so the order of genes in a table does not matter.

    ``"spatial"`` tests each section, without its empty spots. Candidates are genes with a mean count of at least
    ``min_mean`` in every section. Counts become analytic Pearson residuals :cite:p:`Lause2021` (theta 100, total over
    all genes of the table, proportions of the section, clipped at the square root of the number of spots), which remove
    sequencing depth. Moran's I :cite:p:`Moran1950` of the residuals is computed on the graph of the 6 nearest
    neighbours, with weights that sum to 1 per spot. One-sided p-values come from a normal approximation with the
    variance under random signs of the residuals. Unlike the variance under permutation, it allows residuals of
    overdispersed genes to grow with depth. The false discovery rate is controlled over the candidates
    :cite:p:`Benjamini1995`. A gene passes if it is significant in at least half of the sections. Genes that pass are
    ranked by the mean over sections of their rank of Moran's I among the candidates. The panel is never filled up with
    other genes. The log has the numbers of candidates and of genes that pass.

    Positions for ``"spatial"`` are ``.obsm["spatial"]`` of :class:`~anndata.AnnData`. For a
    :class:`~spatialdata.SpatialData` object they are the annotated spots, in image pixels
    (:func:`st_predict.io.read_spots`) if there is one image, else the centroids of the annotated element. Only relative
    distances matter.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> stp.pp.select_panel([sdata], n_genes=3, method="mean")
    ['GENE8', 'GENE3', 'GENE6']
    """
    method, duplicates = check("method", method, Method), check("duplicates", duplicates, Duplicates)
    _refuse_without_effect(method, seed=seed, n_variable=n_variable, min_mean=min_mean, fdr=fdr)
    n_genes, n_variable = check("n_genes", n_genes, Count), check("n_variable", _or(n_variable, 1500), Count)
    seed, id_column = check("seed", _or(seed, 1553), Natural), check("id_column", id_column, Text | None)
    table_key = check("table_key", table_key, Text | None)
    min_mean, fdr = check("min_mean", _or(min_mean, 1.0), NotNegative), check("fdr", _or(fdr, 0.05), Share)
    given, only = _as_list(adatas), check("tissue_only", tissue_only, Flag)
    keys = [_table_key(data, table_key, bin_um) for data in given]
    tables = [data if key is None else data.tables[key] for data, key in zip(given, keys, strict=True)]
    on = [on_tissue(table.obs, only=only, label=f"Table {number}") for number, table in enumerate(tables)]
    sections = [
        _read_section(number, table, layer=layer, id_column=id_column, duplicates=duplicates)
        for number, table in enumerate(tables)
    ]
    if method == "spatial":
        placed = _place(given, tables, sections, on=on, keys=keys)
        return _most_spatial(placed, n_genes=n_genes, min_mean=min_mean, fdr=fdr)
    sections = [(names, counts[np.flatnonzero(kept)]) for (names, counts), kept in zip(sections, on, strict=True)]
    if method == "m2ost":
        return _m2ost(sections, n_genes=n_genes, n_variable=n_variable, seed=seed)
    if method == "mean":
        return _highest_mean(sections, n_genes=n_genes)
    return _highly_variable(sections, n_genes=n_genes)


def _as_list(adatas: Sequence[AnnData | SpatialData]) -> list[AnnData | SpatialData]:
    if isinstance(adatas, anndata.AnnData | SpatialData):
        raise InvalidTypeError(
            f"adatas must be a list, one table per section, got one {type(adatas).__name__}.", "write [adata]"
        )
    if isinstance(adatas, str | PathLike) or not isinstance(adatas, Iterable):
        raise InvalidTypeError(f"adatas must be a list of AnnData or SpatialData, got {adatas!r}.")
    found = list(adatas)
    if not found:
        raise InvalidValueError("adatas is empty; give at least one table.")
    return found


def _table_key(data: AnnData | SpatialData, table_key: str | None, bin_um: float | None) -> str | None:
    """Key of the table with the counts; ``None`` for AnnData."""
    if isinstance(data, anndata.AnnData):
        return None
    check_data(data, argument="Each member of adatas")
    found = find_table(data, table_key, bin_um=bin_um)
    if found is None:
        raise InvalidValueError("A SpatialData object has no table: selecting genes needs counts.")
    return found


def _read_section(
    number: int, table: AnnData, *, layer: str | None, id_column: str | None, duplicates: Duplicates
) -> tuple[pd.Index, csr_array]:
    """Names and counts of the genes of a section."""
    if id_column is not None and id_column not in table.var:
        raise NotFoundError(
            f"No column {id_column!r} in .var; it has {list(table.var)}.",
            Advice("leave out {} to take var_names", "id_column"),
        )
    names = pd.Index(table.var_names if id_column is None else table.var[id_column]).astype(str)
    counts = csr_array(read_counts(table, layer=layer))
    if not counts.sum():
        raise InvalidValueError(f"Table {number} has no counts ({table.n_obs} spots, {table.n_vars} genes).")
    if names.is_unique:
        return names, counts
    repeated = names[names.duplicated()].unique()
    if duplicates == "error":
        raise InvalidValueError(
            f"Table {number} has {len(repeated)} of its genes more than once: {list(repeated[:5])}.",
            Advice("sum their counts with {}", "duplicates", "sum"),
            Advice("take the first column with {}", "duplicates", "first"),
        )
    if duplicates == "first":
        first = np.flatnonzero(~names.duplicated())
        return names[first], csr_array(counts[:, first])
    codes, unique = pd.factorize(names)
    summing = csr_array((np.ones(len(codes), dtype=counts.dtype), (np.arange(len(codes)), codes)))
    return pd.Index(unique), csr_array(counts @ summing)


def _m2ost(sections: list[tuple[pd.Index, csr_array]], *, n_genes: int, n_variable: int, seed: int) -> list[str]:
    common = sorted(set.intersection(*(_most_variable(*section, n_variable) for section in sections)))
    what = f"genes are among the {n_variable} most variable of each of {len(sections)} sections"
    _check_enough(len(common), n_genes, what, Advice("take more with {}", "n_variable"))
    drawn = np.random.default_rng(seed).choice(len(common), size=n_genes, replace=False)
    return [common[i] for i in sorted(drawn)]


def _most_variable(names: pd.Index, counts: csr_array, n_variable: int) -> set[str]:
    from sklearn.utils.sparsefuncs import mean_variance_axis

    _, variance = mean_variance_axis(csr_matrix(counts, dtype=np.float64), axis=0)
    order = np.lexsort((names.to_numpy(dtype=str), -variance))
    return set(names[order[:n_variable]])


def _highest_mean(sections: list[tuple[pd.Index, csr_array]], *, n_genes: int) -> list[str]:
    sums: Counter[str] = Counter()
    for names, counts in sections:
        sums.update(dict(zip(names, counts.sum(axis=0, dtype=np.float64).tolist(), strict=True)))
    _check_enough(len(sums), n_genes, "genes are in the tables")
    # Sums have the order of means: the number of spots is the same for all genes.
    return sorted(sums, key=lambda name: (-sums[name], name))[:n_genes]


def _highly_variable(sections: list[tuple[pd.Index, csr_array]], *, n_genes: int) -> list[str]:
    import scanpy as sc  # slow to import

    tables = {str(number): _log_counts(*section) for number, section in enumerate(sections)}
    joined = anndata.concat(tables, label=Keys.SECTION, join="inner", index_unique="-")
    joined = joined[:, np.asarray(joined.X.sum(axis=0)).ravel() > 0].copy()
    _check_enough(joined.n_vars, n_genes, f"genes have counts and are in each of {len(sections)} tables")
    table = sc.pp.highly_variable_genes(
        joined, flavor="seurat", n_top_genes=n_genes, batch_key=Keys.SECTION, inplace=False
    )
    ranked = table.sort_values(["highly_variable_nbatches", "dispersions_norm"], ascending=False, kind="stable")
    return ranked.index[ranked["highly_variable"]].tolist()


def _log_counts(names: pd.Index, counts: csr_array) -> AnnData:
    import scanpy as sc

    # Empty spots cannot be scaled.
    matrix = csr_matrix(counts[np.flatnonzero(counts.sum(axis=1) > 0)], dtype=np.float64)
    adata = anndata.AnnData(matrix, var=pd.DataFrame(index=names))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def _place(
    given: list[AnnData | SpatialData],
    tables: list[AnnData],
    sections: list[tuple[pd.Index, csr_array]],
    *,
    on: list[NDArray[np.bool_]],
    keys: list[str | None],
) -> list[PlacedCounts]:
    """Counts and positions of every region of every table."""
    placed = []
    together = zip(given, tables, keys, sections, on, strict=True)
    for number, (data, table, key, (names, counts), kept) in enumerate(together):
        places = find_places(data, table, table_key=key, label=f"Table {number}")
        placed += [
            PlacedCounts(label=label, names=names, counts=csr_array(counts[rows[kept[rows]]]), xy=xy[kept[rows]])
            for label, (rows, xy) in places.items()
        ]
    return placed


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _refuse_without_effect(method: str, **given: float | None) -> None:
    """Refuse arguments of another method."""
    others = [name for name, value in given.items() if value is not None and _ONLY_FOR[name] != method]
    if others:
        wanted = _ONLY_FOR[others[0]]
        raise InvalidValueError(
            f"{others[0]}={given[others[0]]!r} is for the method {wanted!r} and has no effect on {method!r}.",
            Advice("leave out {}", others[0]),
            Advice("choose the method with {}", "method", wanted),
        )


def _most_spatial(sections: list[PlacedCounts], *, n_genes: int, min_mean: float, fdr: float) -> list[str]:
    ranked, n_candidates = rank_spatial(sections, min_mean=min_mean, fdr=fdr)
    what = (
        f"of {n_candidates} candidates (mean count of at least {min_mean:g}) are spatially autocorrelated in at least "
        f"half of {len(sections)} sections (false discovery rate {fdr:g})"
    )
    ways = Advice("allow more false discoveries with a higher {}", "fdr"), Advice("lower {}", "min_mean")
    _check_enough(len(ranked), n_genes, what, *ways)
    return ranked[:n_genes]


def _check_enough(n: int, n_genes: int, what: str, *ways: Advice) -> None:
    if n < n_genes:
        raise InvalidValueError(
            f"Asked for {n_genes} genes, but only {n} {what}.",
            *ways,
            Advice("lower {}", "n_genes"),
            Advice("lower {}, or list the genes", "panel"),
        )
