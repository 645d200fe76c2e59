"""Gene panels published with models."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal, TypeAlias, get_args

from st_predict._errors import InvalidValueError
from st_predict._validated import Text, check

__all__ = ["list_panels", "panel"]

Panel: TypeAlias = Literal["m2ost_cscc", "m2ost_hbc", "m2ost_her2"]


def list_panels() -> list[Panel]:
    """Names of the published gene panels.

    Returns
    -------
    list of str
        The names that :func:`st_predict.datasets.panel` accepts, sorted.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.datasets.list_panels()
    ['m2ost_cscc', 'm2ost_hbc', 'm2ost_her2']
    """
    return sorted(get_args(Panel))


def panel(name: Panel) -> list[str]:
    """Return a published gene panel.

    Parameters
    ----------
    name
        Name of the panel, one of :func:`st_predict.datasets.list_panels`: ``"m2ost_her2"`` (HER2-positive breast cancer, symbols),
        ``"m2ost_hbc"`` (human breast cancer, Ensembl gene identifiers) or ``"m2ost_cscc"`` (cutaneous squamous cell
        carcinoma, symbols).

    Returns
    -------
    list of str
        The genes, in the published order.

    Raises
    ------
    ValueError
        If the panel does not exist; the message lists the names.

    Notes
    -----
    The three panels of 250 genes were published with M2OST :cite:p:`Wang2025`, at https://github.com/Dootmaan/M2OST (MIT
    licence, Copyright (c) 2024 Hongyi Wang), and are unchanged. They are a random sample of the genes that are among the 1500
    most variable ones of every section, including test sections. Many of their genes have no spatial signal beyond sequencing
    depth; ``st_predict.pp.select_panel(method="spatial")`` selects genes that have.

    Ten entries of ``"m2ost_hbc"`` join the identifiers of several genes, such as
    ``"__ambiguous[ENSG00000254772+ENSG00000255508]"``: reads that could not be assigned to one gene. These entries match only
    tables that were counted in the same way.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.datasets.panel("m2ost_her2")[:3]
    ['HLA-C', 'DDX5', 'TSPO']
    """
    known = list_panels()
    if check("name", name, Text) not in known:
        raise InvalidValueError(f"No panel {name!r}; there are {known}.", "choose one of these")
    return files(__package__).joinpath("panels", f"{name}.txt").read_text(encoding="utf-8").split()
