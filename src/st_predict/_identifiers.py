"""Gene identifiers: symbols, Ensembl identifiers, and aliases from a user's table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["ENSEMBL", "GeneAliases", "GeneIdType", "gene_id_type_of", "unversioned"]

GeneIdType: TypeAlias = Literal["symbol", "ensembl"]

ENSEMBL = re.compile(r"(?P<stem>(?P<prefix>ENS[A-Z]{0,4}G)\d{11})(?P<version>\.\d+)?", flags=re.ASCII)
"""Ensembl identifier of a gene, with or without version."""

_OLD = ("prev_symbol", "alias_symbol")
"""Columns of HGNC's complete set with other names of genes, which never include current symbols."""

_IDS = "ensembl_gene_id"


def unversioned(name: str) -> str:
    """Return an identifier without its version, for Ensembl only: clones such as ``RP11-34P13.7`` do not have one."""
    parts = ENSEMBL.fullmatch(name)
    return name if parts is None else parts["stem"]


def gene_id_type_of(ids: Collection[str]) -> GeneIdType:
    """Return the type of most of the identifiers."""
    n_ensembl = sum(ENSEMBL.fullmatch(name) is not None for name in ids)
    return "ensembl" if 2 * n_ensembl > len(ids) else "symbol"


@dataclass(frozen=True, slots=True, eq=False)
class GeneAliases:
    """Names that belong to the same gene.

    Parameters
    ----------
    genes
        Number of the gene for each symbol, previous symbol, alias and Ensembl identifier. Names that belong to several
        genes are left out.
    """

    genes: Mapping[str, int]

    @classmethod
    def of(cls, table: Any) -> GeneAliases | None:
        """Read a table in the format of HGNC's complete set: a data frame, or the path of a tab-separated file.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        InvalidTypeError
            If ``table`` has another type.
        InvalidValueError
            If it lacks the column ``symbol``, or has neither previous symbols nor Ensembl identifiers.
        """
        if table is None or isinstance(table, cls):
            return table
        source = "The table" if isinstance(table, pd.DataFrame) else repr(str(table))
        if isinstance(table, str | PathLike):
            table = _read(table)
        if not isinstance(table, pd.DataFrame):
            raise InvalidTypeError(
                f"aliases must be the path of a tab-separated file or a data frame, got {type(table).__name__}."
            )
        return cls(genes=_genes(table, source))

    def gene(self, name: str) -> int | None:
        """Return the number of a gene; ``None`` if the name is unknown or ambiguous."""
        return self.genes.get(unversioned(name))


def _read(path: PathLike[str] | str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"The table of aliases {str(path)!r} does not exist.") from error
    except (ValueError, UnicodeDecodeError, EOFError) as error:
        raise InvalidValueError(f"{str(path)!r} is not a tab-separated table: {error}") from error


def _genes(table: pd.DataFrame, source: str) -> dict[str, int]:
    if "symbol" not in table or not {*_OLD, _IDS} & set(table):
        raise InvalidValueError(
            f"{source} does not have the format of HGNC's complete set: it needs the column 'symbol' and at least one of "
            f"{[*_OLD, _IDS]}; it has {list(table)[:10]}.",
            Advice("give another table with {}, or leave it out", "aliases"),
        )
    found = _unique([table["symbol"]])
    old = _unique([table[name] for name in _OLD if name in table])
    found |= {name: gene for name, gene in old.items() if name not in set(table["symbol"])}
    if _IDS in table:
        found |= {unversioned(name): gene for name, gene in _unique([table[_IDS]]).items()}
    return found


def _unique(columns: Iterable[Iterable[Any]]) -> dict[str, int]:
    """Return the names in some columns that belong to a single gene; several names of a gene are separated by ``|``."""
    genes: dict[str, set[int]] = {}
    for column in columns:
        for gene, cell in enumerate(column):
            for name in str(cell).strip('"').split("|") if isinstance(cell, str) else ():
                if name.strip():
                    genes.setdefault(name.strip(), set()).add(gene)
    return {name: next(iter(found)) for name, found in genes.items() if len(found) == 1}
