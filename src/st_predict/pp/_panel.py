"""Where the genes of a panel are in a table."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError
from st_predict.pp._counts import dense

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

__all__ = ["PanelMatch", "align_panel", "read_panel"]

GeneIdType = Literal["symbol", "ensembl"]
Duplicates = Literal["error", "sum", "first"]
Missing = Literal["error", "drop"]

ENSEMBL = re.compile(r"(?P<stem>ENS[A-Z]{0,4}G\d{11})(?P<version>\.\d+)?", flags=re.ASCII)

logger = logging.getLogger(__name__)


def read_panel(path: PathLike[str] | str) -> list[str]:
    """Read a gene panel from a text file, one gene a line.

    Parameters
    ----------
    path
        UTF-8 text. Blank lines do not count.

    Returns
    -------
    The genes, in the order of the file.

    Raises
    ------
    ValueError
        If the file has no gene, a gene twice, or a line that is not one gene.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    for number, line in enumerate(lines, start=1):
        if re.search(r"[\s,;]", line):
            raise InvalidValueError(f"Line {number} of {path} is not one gene: {line[:60]!r}. Write one gene a line.")
    genes = [line for line in lines if line]
    if not genes:
        raise InvalidValueError(f"{path} holds no gene. Write one gene a line.")
    _check_unique(genes, where=str(path))
    return genes


def _check_unique(genes: Iterable[str], *, where: str) -> None:
    repeated = [gene for gene, n in Counter(genes).items() if n > 1]
    if repeated:
        raise InvalidValueError(f"{where} has {len(repeated)} genes more than once: {_some(repeated)}.")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelMatch:
    """Where the genes of a panel are in a table.

    Parameters
    ----------
    matched
        Genes of the panel that the table has, in the order and spelling of the panel.
    missing
        Genes of the panel that the table has not.
    duplicated
        Matched genes that more than one column of the table carries.
    how
        For each matched gene, ``"exact"``, ``"version"`` (Ensembl ids equal but for the version) or ``"case"``.
    source
        Where the ids of the table were read: ``"var_names"`` or the name of a column of ``.var``.
    columns
        For each matched gene, the columns of the table whose counts make up its count.
    var_names
        Those of the table, by which it is known again.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    duplicated: tuple[str, ...]
    how: tuple[Literal["exact", "version", "case"], ...]
    source: str
    columns: tuple[tuple[int, ...], ...]
    var_names: pd.Index = field(repr=False, compare=False)

    def __str__(self) -> str:
        ways = Counter(self.how)
        inexact = "".join(f", {ways[way]} by {way}" for way in ("version", "case") if ways[way])
        where = "var_names" if self.source == "var_names" else f"var[{self.source!r}]"
        n_panel = len(self.matched) + len(self.missing)
        return (
            f"{len(self.matched)} of {n_panel} panel genes found in {where} "
            f"({ways['exact']} exactly{inexact}); {len(self.missing)} missing, {len(self.duplicated)} duplicated."
        )

    def take(self, counts: NDArray[Any] | csr_array) -> NDArray[np.float64]:
        """Counts of the matched genes, summed where a gene has several columns.

        Parameters
        ----------
        counts
            ``(n_spots, n_vars)`` of the table that was matched.

        Returns
        -------
        ``(n_spots, n_matched)``.
        """
        if counts.shape[1] != len(self.var_names):
            raise InvalidValueError(f"Expected counts of {len(self.var_names)} genes, got {counts.shape[1]}.")
        taken = dense(counts[:, [columns[0] for columns in self.columns]])
        for gene, (_, *others) in enumerate(self.columns):
            for column in others:
                taken[:, gene] += dense(counts[:, [column]])[:, 0]
        return taken


def align_panel(
    adata: AnnData,
    panel: Sequence[str],
    *,
    id_column: str | None = None,
    gene_id_type: GeneIdType | None = None,
    duplicates: Duplicates = "error",
    missing: Missing = "error",
    ignore_case: bool = False,
) -> PanelMatch:
    """Find the genes of a panel in a table.

    Ids are compared as they are, then, for Ensembl ids, without their version (``ENSG00000141510.12``).

    Parameters
    ----------
    adata
        Table; only ``.var`` is read.
    panel
        Symbols or Ensembl ids.
    id_column
        Column of ``.var`` with ids like those of the panel. By default ``var_names`` if they are of the same type as the
        panel, and otherwise the one column of ``.var`` that has genes of the panel.
    gene_id_type
        What the panel holds; by default, Ensembl ids if most of it looks so.
    duplicates
        What to do with a gene of the panel that several columns carry: refuse, ``"sum"`` their counts, or take the
        ``"first"``.
    missing
        What to do if genes of the panel are not in the table: refuse, or ``"drop"`` them from the panel.
    ignore_case
        Whether ``"MIR205HG"`` and ``"mir205hg"`` are the same symbol. Off by default, as case is what tells a symbol of
        mouse from one of man.

    Returns
    -------
    What was found and where; a summary is logged.

    Raises
    ------
    KeyError
        If ``id_column`` does not exist, or genes are missing.
    ValueError
        If the panel is empty or names a gene twice, its genes are duplicated in the table, the table has ids of another
        type only, several columns could be meant, or an argument is not one of its choices.
    """
    genes = _panel(panel)
    _check_choice("duplicates", duplicates, get_args(Duplicates))
    _check_choice("missing", missing, get_args(Missing))
    id_type = _id_type(genes) if gene_id_type is None else gene_id_type
    _check_choice("gene_id_type", id_type, get_args(GeneIdType))
    source = _find_source(adata, genes, id_type=id_type, id_column=id_column)
    found = _look_up(genes, _ids(adata, source), ignore_case=ignore_case)
    match = _to_match(genes, found, source=source, duplicates=duplicates, var_names=adata.var_names)
    _refuse(match, _ids(adata, source), duplicates=duplicates, missing=missing)
    logger.info("%s", match)
    return match


def _panel(panel: Sequence[str]) -> list[str]:
    if isinstance(panel, str):
        raise InvalidTypeError(f"panel must be a list of genes, got the string {panel!r}; read_panel reads a file.")
    genes = [str(gene) for gene in panel]
    if not genes:
        raise InvalidValueError("The panel is empty.")
    _check_unique(genes, where="The panel")
    return genes


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidValueError(f"{name} must be one of {choices}, got {value!r}.")


def _id_type(ids: Iterable[str]) -> GeneIdType:
    looks = [ENSEMBL.fullmatch(name) is not None for name in ids]
    return "ensembl" if 2 * sum(looks) > len(looks) else "symbol"


def _find_source(adata: AnnData, genes: list[str], *, id_type: GeneIdType, id_column: str | None) -> str:
    if id_column is not None:
        if id_column not in adata.var:
            raise NotFoundError(f"No column {id_column!r} in var; it has {list(adata.var)}.")
        return id_column
    if _id_type(adata.var_names) == id_type:
        return "var_names"
    wanted = {_key(gene) for gene in genes}
    columns = [c for c in _text_columns(adata.var) if wanted & {_key(name) for name in _ids(adata, c)}]
    if len(columns) == 1:
        return columns[0]
    if columns:
        raise InvalidValueError(
            f"Several columns of var have genes of the panel: {columns}; choose one with id_column=."
        )
    raise InvalidValueError(
        f"The panel holds ids of the type {id_type!r} ({_some(genes)}), var_names hold another "
        f"({_some(list(adata.var_names))}), and no column of var has genes of the panel; var has {list(adata.var)}. "
        f"Add a column of {id_type} ids to var, or map the panel to the ids of the table."
    )


def _text_columns(var: pd.DataFrame) -> list[str]:
    return [name for name in var if not pd.api.types.is_numeric_dtype(var[name].dtype)]


def _ids(adata: AnnData, source: str) -> list[str]:
    ids = adata.var_names if source == "var_names" else adata.var[source]
    return [str(name) for name in ids]


def _key(name: str) -> str:
    """Id without its version; only Ensembl ids have one, names of clones such as ``RP11-34P13.7`` do not."""
    parts = ENSEMBL.fullmatch(name)
    return name if parts is None else parts["stem"]


def _look_up(
    genes: list[str], ids: list[str], *, ignore_case: bool
) -> dict[str, tuple[Literal["exact", "version", "case"], list[int]]]:
    """Way and columns of each gene that is found."""
    exact, folded = _columns_of(ids), _columns_of(_key(name) for name in ids)
    upper = _columns_of(name.upper() for name in ids) if ignore_case else {}
    found: dict[str, tuple[Literal["exact", "version", "case"], list[int]]] = {}
    for gene in genes:
        if gene in exact:
            found[gene] = ("exact", exact[gene])
        elif (key := _key(gene)) in folded:
            found[gene] = ("version", folded[key])
        elif gene.upper() in upper:
            found[gene] = ("case", upper[gene.upper()])
    return found


def _columns_of(ids: Iterable[str]) -> dict[str, list[int]]:
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(ids):
        columns.setdefault(name, []).append(column)
    return columns


def _to_match(
    genes: list[str],
    found: dict[str, tuple[Literal["exact", "version", "case"], list[int]]],
    *,
    source: str,
    duplicates: Duplicates,
    var_names: pd.Index,
) -> PanelMatch:
    last = 1 if duplicates == "first" else None
    return PanelMatch(
        matched=tuple(found),
        missing=tuple(gene for gene in genes if gene not in found),
        duplicated=tuple(gene for gene, (_, columns) in found.items() if len(columns) > 1),
        how=tuple(way for way, _ in found.values()),
        source=source,
        columns=tuple(tuple(columns[:last]) for _, columns in found.values()),
        var_names=var_names,
    )


def _refuse(match: PanelMatch, ids: list[str], *, duplicates: Duplicates, missing: Missing) -> None:
    if match.missing and (missing == "error" or not match.matched):
        raise NotFoundError(
            f"{len(match.missing)} panel genes are missing: {_some(match.missing)}. {_way_out(match, ids)}"
        )
    if match.duplicated and duplicates == "error":
        raise InvalidValueError(
            f"{len(match.duplicated)} panel genes are in {match.source} more than once: {_some(match.duplicated)}. "
            'Choose duplicates="sum" or duplicates="first".'
        )


def _way_out(match: PanelMatch, ids: list[str]) -> str:
    n_other_case = len({gene.upper() for gene in match.missing} & {name.upper() for name in ids})
    if n_other_case:
        return f"{n_other_case} of them are there in another case; take them with ignore_case=True."
    if not match.matched:
        return f"The table has none of the panel; its genes are {_some(ids)} (in {match.source})."
    return 'Leave them out with missing="drop", or name the column of var with other ids, id_column=.'
