"""Matching of panel genes to the columns of a table."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import pandas as pd

from st_predict._containers import check_table
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._identifiers import GeneAliases, GeneIdType, gene_id_type_of, unversioned
from st_predict._validated import File, Text, check
from st_predict._where import Duplicates, GeneMatching, Missing
from st_predict.pp._counts import dense
from st_predict.pp._organism import refuse_other_case, refuse_other_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

__all__ = ["PanelMatch", "align_panel", "read_panel"]

Way: TypeAlias = Literal["exact", "version", "case", "alias"]

logger = logging.getLogger(__name__)


def read_panel(path: PathLike[str] | str) -> list[str]:
    r"""Read a gene panel from a text file with one gene per line.

    Parameters
    ----------
    path
        UTF-8 text file; blank lines are skipped.

    Returns
    -------
    list of str
        Genes in the order of the file.

    Raises
    ------
    ValueError
        If the file is empty, repeats a gene, or has a line that is not a single gene.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "panel.txt")
    ...     _ = path.write_text("ERBB2\nESR1\n")
    ...     stp.pp.read_panel(path)
    ['ERBB2', 'ESR1']
    """
    file = check("path", path, File)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except IsADirectoryError as error:
        raise InvalidValueError(f"path must be a file, got the folder {str(path)!r}.") from error
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{str(file)!r} is not UTF-8 text ({error}).", "save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if re.search(r"[\s,;]", line):
            raise InvalidValueError(
                f"Line {number} of {path} is not one gene: {line[:60]!r}.", "write one gene per line"
            )
    genes = [line for line in lines if line]
    if not genes:
        raise InvalidValueError(f"{path} has no genes.", "write one gene per line")
    _check_unique(genes, where=str(path))
    return genes


def _check_unique(genes: Iterable[str], *, where: str) -> None:
    repeated = [gene for gene, n in Counter(genes).items() if n > 1]
    if repeated:
        raise InvalidValueError(
            f"{where} has {len(repeated)} of its genes more than once: {_some(repeated)}.", "name each once"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelMatch:
    """Columns of a table that hold the genes of a panel; returned by :func:`align_panel`.

    Parameters
    ----------
    matched
        Panel genes found in the table, in the panel's order and spelling.
    missing
        Panel genes not found in the table.
    duplicated
        Matched genes with more than one column in the table.
    how
        Kind of match per matched gene: ``"exact"``, ``"version"`` (Ensembl identifiers that differ in version),
        ``"case"`` or ``"alias"`` (another name in the table of aliases).
    source
        Source of the table's identifiers: ``"var_names"`` or a column of ``.var``.
    columns
        Columns of the table to sum, per matched gene.
    var_names
        ``var_names`` of the table, to recognise it.

    Examples
    --------
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> from anndata import AnnData
    >>> table = AnnData(var=pd.DataFrame(index=["ERBB2", "ESR1", "VIM"]))
    >>> match = stp.pp.align_panel(table, ["VIM", "GATA3"], missing="drop")
    >>> match.matched, match.missing, match.columns
    (('VIM',), ('GATA3',), ((2,),))
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    duplicated: tuple[str, ...]
    how: tuple[Way, ...]
    source: str
    columns: tuple[tuple[int, ...], ...]
    var_names: pd.Index = field(repr=False, compare=False)

    def __str__(self) -> str:
        ways = Counter(self.how)
        inexact = "".join(f", {ways[way]} by {way}" for way in get_args(Way)[1:] if ways[way])
        where = "var_names" if self.source == "var_names" else f"var[{self.source!r}]"
        n_panel = len(self.matched) + len(self.missing)
        return (
            f"{len(self.matched)} of {n_panel} panel genes found in {where} "
            f"({ways['exact']} exactly{inexact}); {len(self.missing)} missing, {len(self.duplicated)} duplicated."
        )

    def only(self, genes: Sequence[str]) -> PanelMatch:
        """Return the match of a subset of the matched genes, in the given order.

        Parameters
        ----------
        genes
            Genes among ``matched``.
        """
        if tuple(genes) == self.matched:
            return self
        places = {gene: i for i, gene in enumerate(self.matched)}
        if unknown := [gene for gene in genes if gene not in places]:
            raise NotFoundError(f"{len(unknown)} genes were not matched: {_some(unknown)}.")
        kept = [places[gene] for gene in genes]
        return replace(
            self,
            matched=tuple(genes),
            duplicated=tuple(gene for gene in self.duplicated if gene in set(genes)),
            how=tuple(self.how[i] for i in kept),
            columns=tuple(self.columns[i] for i in kept),
        )

    def take(self, counts: NDArray[np.generic] | csr_array) -> NDArray[np.float64]:
        """Return counts of the matched genes, summed over the columns of a gene.

        Parameters
        ----------
        counts
            ``(n_spots, n_vars)``: counts of the matched table.

        Returns
        -------
        ndarray
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
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    organism: str = "unknown",
) -> PanelMatch:
    """Match the genes of a panel to the columns of a table.

    Identifiers are compared exactly first, then without the version (Ensembl, ``ENSG00000141510.12``). If requested,
    case is ignored next, and ``aliases`` are used last.

    Parameters
    ----------
    adata
        Table; only ``.var`` is read.
    panel
        Gene symbols or Ensembl identifiers.
    id_column
        Column of ``.var`` with identifiers of the panel's type. By default ``var_names`` if they have this type, else
        the only column of ``.var`` that has genes of the panel.
    gene_id_type
        Type of the panel's identifiers; by default Ensembl if most of them look like Ensembl identifiers.
    duplicates
        Handling of panel genes with several columns: ``"error"`` refuses, ``"sum"`` adds their counts, ``"first"``
        takes the first.
    missing
        Handling of panel genes that the table lacks: ``"error"`` refuses, ``"drop"`` removes them from the panel.
    ignore_case
        Whether ``"MIR205HG"`` and ``"mir205hg"`` are the same symbol. By default not, because case distinguishes mouse
        from human symbols.
    aliases
        Table of previous and current symbols, in the format of HGNC's complete set: path of the tab-separated file, or
        a data frame with ``symbol`` and at least one of ``prev_symbol``, ``alias_symbol`` and ``ensembl_gene_id``.
        Several names are separated by ``|``. Names shared by several genes are ignored.
    organism
        Common or scientific name of the panel's organism. A table from another organism is recognised by Ensembl
        prefixes and the case of symbols.

    Returns
    -------
    PanelMatch
        Match of the panel; a summary is logged.

    Raises
    ------
    KeyError
        If ``id_column`` does not exist, or genes are missing.
    ValueError
        If the panel is empty or repeats a gene, its genes are duplicated in the table, the table is from another
        organism or only has identifiers of another type, the column is ambiguous, or an argument is not one of its
        choices.
    FileNotFoundError
        If the file ``aliases`` does not exist.

    Examples
    --------
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> from anndata import AnnData
    >>> table = AnnData(var=pd.DataFrame(index=["ENSG00000141736.14", "ENSG00000091831.25"]))
    >>> match = stp.pp.align_panel(table, ["ENSG00000141736"])
    >>> print(match)
    1 of 1 panel genes found in var_names (0 exactly, 1 by version); 0 missing, 0 duplicated.
    """
    check_table(adata)
    organism = check("organism", organism, Text)
    matching = GeneMatching(
        missing=missing,
        duplicates=duplicates,
        ignore_case=ignore_case,
        id_column=id_column,
        aliases=aliases,
    )
    genes = _panel(panel)
    id_type = check("gene_id_type", gene_id_type, GeneIdType | None) or gene_id_type_of(genes)
    source = _find_source(adata, genes, id_type=id_type, matching=matching)
    ids = _ids(adata, source)
    found = _look_up(genes, ids, matching)
    n_exact = sum(way == "exact" for way, _ in found.values())
    refuse_other_prefix(genes, [ids, _ids(adata, "var_names")], organism=organism)
    if 2 * n_exact < len(genes):
        refuse_other_case(genes, ids, organism=organism, ignore_case=matching.ignore_case)
    match = _to_match(genes, found, source=source, duplicates=matching.duplicates, var_names=adata.var_names)
    _refuse(match, ids, matching)
    logger.info("%s", match)
    return match


def _panel(panel: Sequence[str]) -> list[str]:
    if isinstance(panel, str | PathLike | Mapping) or not isinstance(panel, Iterable):
        raise InvalidTypeError(
            f"panel must be a list of genes, got {panel!r}.", "read a file with st_predict.pp.read_panel"
        )
    genes = [str(gene) for gene in panel]
    if not genes:
        raise InvalidValueError("The panel is empty.")
    _check_unique(genes, where="The panel")
    return genes


def _find_source(adata: AnnData, genes: list[str], *, id_type: GeneIdType, matching: GeneMatching) -> str:
    if matching.id_column is not None:
        if matching.id_column not in adata.var:
            raise NotFoundError(
                f"No column {matching.id_column!r} in .var; it has {list(adata.var)}.",
                Advice("leave out {} to take var_names", "id_column"),
            )
        return matching.id_column
    wanted = {unversioned(gene) for gene in genes}
    same_type = gene_id_type_of(list(adata.var_names)) == id_type
    if same_type and wanted & {unversioned(name) for name in _ids(adata, "var_names")}:
        return "var_names"
    columns = [c for c in _text_columns(adata.var) if wanted & {unversioned(name) for name in _ids(adata, c)}]
    if len(columns) == 1:
        return columns[0]
    if columns:
        raise InvalidValueError(
            f"Several columns of .var have panel genes: {columns}.", Advice("choose one with {}", "id_column")
        )
    if same_type or matching.aliases is not None:
        return "var_names"
    raise InvalidValueError(
        f"The panel has identifiers of the type {id_type!r} ({_some(genes)}), var_names have another "
        f"({_some(list(adata.var_names))}), and no column of .var has panel genes; .var has {list(adata.var)}.",
        f"add a column of {id_type} identifiers to .var",
        "use a panel with the table's identifiers",
        Advice("give a table that translates them (columns 'symbol' and 'ensembl_gene_id') with {}", "aliases"),
    )


def _text_columns(var: pd.DataFrame) -> list[str]:
    return [name for name in var if not pd.api.types.is_numeric_dtype(var[name].dtype)]


def _ids(adata: AnnData, source: str) -> list[str]:
    ids = adata.var_names if source == "var_names" else adata.var[source]
    return [str(name) for name in ids]


def _look_up(genes: list[str], ids: list[str], matching: GeneMatching) -> dict[str, tuple[Way, list[int]]]:
    """Kind of match and columns of each gene found."""
    exact, stems = _columns_of(ids), _columns_of(map(unversioned, ids))
    upper = _columns_of(name.upper() for name in ids) if matching.ignore_case else {}
    found: dict[str, tuple[Way, list[int]]] = {}
    for gene in genes:
        if gene in exact:
            found[gene] = ("exact", exact[gene])
        elif (stem := unversioned(gene)) in stems:
            found[gene] = ("version", stems[stem])
        elif gene.upper() in upper:
            found[gene] = ("case", upper[gene.upper()])
    _refuse_same_gene(found)
    aliases = {} if matching.aliases is None else _by_alias(genes, ids, matching.aliases, found)
    return {gene: (found | aliases)[gene] for gene in genes if gene in found or gene in aliases}


def _refuse_same_gene(found: Mapping[str, tuple[Way, list[int]]]) -> None:
    """Refuse panel genes that match the same gene of the table, because its counts would be used twice."""
    genes: dict[int, str] = {}
    for gene, (_, columns) in found.items():
        if (other := genes.setdefault(columns[0], gene)) != gene:
            raise InvalidValueError(
                f"The panel genes {other!r} and {gene!r} are the same gene of the table.",
                "leave one of them out of the panel",
            )


def _by_alias(
    genes: list[str], ids: list[str], aliases: GeneAliases, found: Mapping[str, tuple[Way, list[int]]]
) -> dict[str, tuple[Way, list[int]]]:
    """Columns of genes with another name in the table, except columns of other panel genes."""
    taken = {column for _, columns in found.values() for column in columns}
    columns: dict[int, list[int]] = {}
    for column, name in enumerate(ids):
        if column not in taken and (number := aliases.gene(name)) is not None:
            columns.setdefault(number, []).append(column)
    numbers = {gene: aliases.gene(gene) for gene in genes if gene not in found}
    n_named = Counter(numbers.values())
    return {
        gene: ("alias", columns[number])
        for gene, number in numbers.items()
        if number in columns and n_named[number] == 1
    }


def _columns_of(ids: Iterable[str]) -> dict[str, list[int]]:
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(ids):
        columns.setdefault(name, []).append(column)
    return columns


def _to_match(
    genes: list[str],
    found: Mapping[str, tuple[Way, list[int]]],
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


def _refuse(match: PanelMatch, ids: list[str], matching: GeneMatching) -> None:
    if match.missing and (matching.missing == "error" or not match.matched):
        n_panel = len(match.missing) + len(match.matched)
        lacks = f"lacks {len(match.missing)}" if match.matched else "has none"
        raise NotFoundError(
            f"The table {lacks} of the {n_panel} panel genes: {_some(match.missing)}.",
            *_ways_out(match, ids, matching),
        )
    if match.duplicated and matching.duplicates == "error":
        raise InvalidValueError(
            f"{match.source} has {len(match.duplicated)} of the panel genes more than once: {_some(match.duplicated)}.",
            Advice("sum their counts with {}", "duplicates", "sum"),
            Advice("take the first column with {}", "duplicates", "first"),
        )


def _ways_out(match: PanelMatch, ids: list[str], matching: GeneMatching) -> list[str | Advice]:
    ways: list[str | Advice] = []
    if n_other_case := len({gene.upper() for gene in match.missing} & {name.upper() for name in ids}):
        ways.append(Advice(f"match the {n_other_case} genes that differ in case with {{}}", "ignore_case", value=True))
    if match.matched:
        ways.append(Advice("leave them out with {}", "missing", "drop"))
    else:
        ways.append(f"check the table, whose genes are {_some(ids)} (in {match.source})")
    if matching.id_column is None:
        ways.append(Advice("name another column of .var with identifiers with {}", "id_column"))
    if matching.aliases is None:
        ways.append(Advice("give a table of previous symbols with {}", "aliases"))
    return ways
