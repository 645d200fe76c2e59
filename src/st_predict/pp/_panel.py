"""Where the genes of a panel are in a table."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

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
    file = check("path", path, File)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except IsADirectoryError as error:
        raise InvalidValueError(f"path must be a file, and {str(path)!r} is a folder.") from error
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{str(file)!r} is not a text in UTF-8 ({error}).", "save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if re.search(r"[\s,;]", line):
            raise InvalidValueError(
                f"Line {number} of {path} is not one gene: {line[:60]!r}.", "write one gene per line"
            )
    genes = [line for line in lines if line]
    if not genes:
        raise InvalidValueError(f"{path} holds no gene.", "write one gene per line")
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
        For each matched gene, ``"exact"``, ``"version"`` (Ensembl identifiers equal but for the version), ``"case"`` or
        ``"alias"`` (another name of the gene in the table of aliases).
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
        """Return the match of some of the matched genes, in the order given.

        Parameters
        ----------
        genes
            Genes among ``matched``.
        """
        if tuple(genes) == self.matched:
            return self
        places = {gene: i for i, gene in enumerate(self.matched)}
        if unknown := [gene for gene in genes if gene not in places]:
            raise NotFoundError(f"{len(unknown)} genes are not among those that were matched: {_some(unknown)}.")
        kept = [places[gene] for gene in genes]
        return replace(
            self,
            matched=tuple(genes),
            duplicated=tuple(gene for gene in self.duplicated if gene in set(genes)),
            how=tuple(self.how[i] for i in kept),
            columns=tuple(self.columns[i] for i in kept),
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
    aliases: pd.DataFrame | PathLike[str] | str | None = None,
    organism: str = "unknown",
) -> PanelMatch:
    """Find the genes of a panel in a table.

    Identifiers are compared as they are; then, for Ensembl identifiers, without their version
    (``ENSG00000141510.12``); then without regard to case, and by ``aliases``, if these are given.

    Parameters
    ----------
    adata
        Table; only ``.var`` is read.
    panel
        Symbols or Ensembl identifiers.
    id_column
        Column of ``.var`` with identifiers like those of the panel. By default ``var_names`` if they are of the same type
        as the panel, and otherwise the one column of ``.var`` that has genes of the panel.
    gene_id_type
        Type of the identifiers of the panel; by default Ensembl if most of them look so.
    duplicates
        What to do with a gene of the panel that several columns carry: refuse, ``"sum"`` their counts, or take the
        ``"first"``.
    missing
        What to do with genes of the panel that are not in the table: refuse, or ``"drop"`` them from the panel.
    ignore_case
        Whether ``"MIR205HG"`` and ``"mir205hg"`` are the same symbol. Off by default, as case tells a symbol of mouse from
        one of human.
    aliases
        Table of old and current symbols, in the form of HGNC's complete set: path of the tab-separated file, or a data
        frame with ``symbol`` and at least one of ``prev_symbol``, ``alias_symbol`` and ``ensembl_gene_id``. Several names are
        separated by ``|``. Names that belong to several genes do not count.
    organism
        Organism of the panel, by its common or scientific name. Ensembl prefixes and the case of symbols show whether the
        table is of another one.

    Returns
    -------
    What was found and where; a summary is logged.

    Raises
    ------
    KeyError
        If ``id_column`` does not exist, or genes are missing.
    ValueError
        If the panel is empty or names a gene twice, its genes are duplicated in the table, the table is of another organism
        or has identifiers of another type only, several columns could be meant, or an argument is not one of its choices.
    FileNotFoundError
        If there is no file ``aliases``.
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
            f"Several columns of .var have genes of the panel: {columns}.", Advice("choose one with {}", "id_column")
        )
    if same_type or matching.aliases is not None:
        return "var_names"
    raise InvalidValueError(
        f"The panel holds identifiers of the type {id_type!r} ({_some(genes)}), var_names hold another "
        f"({_some(list(adata.var_names))}), and no column of .var has genes of the panel; .var has {list(adata.var)}.",
        f"add a column of {id_type} identifiers to .var",
        "give a panel with the identifiers of the table",
        Advice("give a table that translates them (columns 'symbol' and 'ensembl_gene_id') with {}", "aliases"),
    )


def _text_columns(var: pd.DataFrame) -> list[str]:
    return [name for name in var if not pd.api.types.is_numeric_dtype(var[name].dtype)]


def _ids(adata: AnnData, source: str) -> list[str]:
    ids = adata.var_names if source == "var_names" else adata.var[source]
    return [str(name) for name in ids]


def _look_up(genes: list[str], ids: list[str], matching: GeneMatching) -> dict[str, tuple[Way, list[int]]]:
    """Way and columns of each gene that is found."""
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
    """Refuse genes of the panel that are one gene of the table, whose counts would count twice."""
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
    """Columns of the genes that have another name in the table; columns of other genes of the panel are not taken."""
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
        ways.append(
            Advice(f"take the {n_other_case} that are there in another case with {{}}", "ignore_case", value=True)
        )
    if match.matched:
        ways.append(Advice("leave them out with {}", "missing", "drop"))
    else:
        ways.append(f"look for the right table: the genes of this one are {_some(ids)} (in {match.source})")
    if matching.id_column is None:
        ways.append(Advice("name the column of .var with other identifiers with {}", "id_column"))
    if matching.aliases is None:
        ways.append(Advice("give a table of old symbols with {}", "aliases"))
    return ways
