"""Whose genes these are, as far as identifiers tell."""

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
"""Organisms whose symbols are written as ``Erbb2``; those of the others known here are not."""

_TRANSLATE = "translate genes to their orthologues first"

_MOST = 0.75  # share of the names that has to agree; human genes such as C1orf112 do not


def refuse_other_prefix(genes: Sequence[str], ids: Sequence[Sequence[str]], *, organism: str) -> None:
    """Refuse a table whose Ensembl identifiers are of another organism than the panel.

    Parameters
    ----------
    genes
        The panel.
    ids
        Columns of identifiers of the table.
    organism
        Organism of the panel; ``"unknown"`` if nobody says.

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
                f"The panel is of {expected}, and the Ensembl identifiers of the table are of {there}, such as {_first(names)}.",
                _TRANSLATE,
            )


def refuse_other_case(genes: Sequence[str], ids: Sequence[str], *, organism: str, ignore_case: bool) -> None:
    """Refuse a table whose symbols are written as those of another organism than the panel.

    Parameters
    ----------
    genes
        The panel, most of which is not in the table as it is written.
    ids
        Identifiers of the table.
    organism
        Organism of the panel; ``"unknown"`` if nobody says.
    ignore_case
        Whether case tells nothing; it is believed unless the organism is known.

    Raises
    ------
    InvalidValueError
        If the case of the symbols is that of another organism.
    """
    known, theirs = _common_name(organism), _is_title_case(ids)
    if known is not None:
        ours: bool | None = known in TITLE_CASE if known in ENSEMBL_PREFIXES.values() else None
    else:
        ours = None if ignore_case else _is_title_case(genes)
    if ours is None or theirs is None or ours == theirs:
        return
    what = f"The panel is of {known}" if known else f"Symbols of the panel are written as {_first(genes)}"
    ways = (
        ()
        if known
        else (Advice("for the same organism, ignore the case of letters with {}", "ignore_case", value=True),)
    )
    raise InvalidValueError(
        f"{what}, and symbols of the table are written as {_first(ids)}, as in "
        f"{'mouse and rat' if theirs else 'human'}: this is another organism.",
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
    """Whether symbols are written as ``Erbb2`` (true) or ``ERBB2`` (false); ``None`` if neither is the rule."""
    letters = ["".join(filter(str.isalpha, name)) for name in names if ENSEMBL.fullmatch(name) is None]
    symbols = [name for name in letters if len(name) > 1]
    n_title, n_upper = sum(map(str.istitle, symbols)), sum(map(str.isupper, symbols))
    decided = n_title + n_upper
    if 2 * decided < len(symbols) or not decided or max(n_title, n_upper) <= _MOST * decided:
        return None
    return n_title > n_upper


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3])
