"""Organism of gene identifiers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from st_predict._errors import Advice, InvalidValueError
from st_predict._identifiers import ENSEMBL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["refuse_other_case", "refuse_other_prefix"]

ENSEMBL_PREFIXES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSSSCG": "pig",
    "ENSBTAG": "cattle",
    "ENSGALG": "chicken",
    "ENSMMUG": "macaque",
    "ENSCAFG": "dog",
    "ENSOCUG": "rabbit",
}

SCIENTIFIC = {
    "homo sapiens": "human",
    "mus musculus": "mouse",
    "rattus norvegicus": "rat",
    "danio rerio": "zebrafish",
    "sus scrofa": "pig",
    "bos taurus": "cattle",
    "gallus gallus": "chicken",
    "macaca mulatta": "macaque",
    "canis lupus familiaris": "dog",
    "oryctolagus cuniculus": "rabbit",
}

TITLE_CASE = {"mouse", "rat"}
"""Organisms whose symbols are written like ``Erbb2``; others use upper case."""

_TRANSLATE = "translate genes to their orthologues first"

_MOST = 0.75  # minimum share of names in agreement; human genes such as C1orf112 are exceptions


def refuse_other_prefix(genes: Sequence[str], ids: Sequence[Sequence[str]], *, organism: str) -> None:
    """Refuse a table whose Ensembl identifiers belong to another organism than the panel.

    Parameters
    ----------
    genes
        The panel.
    ids
        Columns of identifiers of the table.
    organism
        Organism of the panel; ``"unknown"`` if not given.

    Raises
    ------
    InvalidValueError
        If most identifiers of a column have the prefix of another organism.
    """
    expected = _common_name(organism) or _by_prefix(genes)
    for names in ids:
        there = _by_prefix(names)
        if expected is not None and there is not None and expected != there:
            raise InvalidValueError(
                f"The panel's organism is {expected}, but the table has Ensembl identifiers of {there}, such as {_first(names)}.",
                _TRANSLATE,
            )


def refuse_other_case(genes: Sequence[str], ids: Sequence[str], *, organism: str, ignore_case: bool) -> None:
    """Refuse a table whose symbols have the case of another organism than the panel.

    Parameters
    ----------
    genes
        Panel; most of its genes are not in the table with the same case.
    ids
        Identifiers of the table.
    organism
        Organism of the panel; ``"unknown"`` if not given.
    ignore_case
        Whether matching ignores case; this check then only applies if the organism is known.

    Raises
    ------
    InvalidValueError
        If the symbols have the case of another organism.
    """
    known, theirs = _common_name(organism), _is_title_case(ids)
    if known is not None:
        ours: bool | None = known in TITLE_CASE if known in ENSEMBL_PREFIXES.values() else None
    else:
        ours = None if ignore_case else _is_title_case(genes)
    if ours is None or theirs is None or ours == theirs:
        return
    what = f"The panel's organism is {known}" if known else f"Panel symbols are written like {_first(genes)}"
    ways = () if known else (Advice("if the organism is the same, ignore case with {}", "ignore_case", value=True),)
    raise InvalidValueError(
        f"{what}, but the table has symbols like {_first(ids)}, as in "
        f"{'mouse and rat' if theirs else 'human'}: another organism.",
        _TRANSLATE,
        *ways,
    )


def _common_name(organism: str) -> str | None:
    name = organism.strip().lower().replace("_", " ")
    return None if name in {"", "unknown"} else SCIENTIFIC.get(name, name)


def _by_prefix(names: Iterable[str]) -> str | None:
    """Organism of Ensembl identifiers; ``None`` if most of the names are something else."""
    matches = [ENSEMBL.fullmatch(name) for name in names]
    prefixes = Counter(match["prefix"] for match in matches if match is not None)
    if not prefixes:
        return None
    prefix, n = prefixes.most_common(1)[0]
    return ENSEMBL_PREFIXES.get(prefix, prefix) if n > _MOST * len(matches) else None


def _is_title_case(names: Iterable[str]) -> bool | None:
    """Whether symbols are written like ``Erbb2`` (true) or ``ERBB2`` (false); ``None`` if mixed."""
    letters = ["".join(filter(str.isalpha, name)) for name in names if ENSEMBL.fullmatch(name) is None]
    symbols = [name for name in letters if len(name) > 1]
    n_title, n_upper = sum(map(str.istitle, symbols)), sum(map(str.isupper, symbols))
    decided = n_title + n_upper
    if 2 * decided < len(symbols) or not decided or max(n_title, n_upper) <= _MOST * decided:
        return None
    return n_title > n_upper


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3])
