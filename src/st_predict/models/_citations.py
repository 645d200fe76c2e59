"""Publications of the models, from the references of the package."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from st_predict._validated import Text, check
from st_predict.models._registry import get_spec

__all__ = ["cite", "link_to"]


def cite(model: str) -> str:
    """Return the BibTeX entry of the publication of a model.

    Parameters
    ----------
    model
        Name of the model.

    Returns
    -------
    str
        BibTeX entry; only the key if a plug-in model cites an unknown reference.

    Raises
    ------
    KeyError
        If the model does not exist.

    Examples
    --------
    >>> import st_predict as stp
    >>> print(stp.models.cite("stnet").splitlines()[0])
    @article{He2020,
    """
    key = get_spec(check("model", model, Text)).citation
    return entries().get(key, key)  # a plug-in model may bring its own citation


def link_to(key: str) -> str:
    """Return the DOI of a reference, or its web address if it has none.

    Parameters
    ----------
    key
        Key of the reference in ``src/st_predict/references.bib``, as in ``citation`` of :class:`ModelSpec`.

    Returns
    -------
    str
        DOI, web address or an empty text.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.models.link_to(stp.models.get_spec("stnet").citation)
    '10.1038/s41551-020-0578-x'
    """
    entry = entries().get(key, "")
    found = {name: re.search(rf"^  {name} *= \{{(.*)\}},$", entry, re.MULTILINE) for name in ("doi", "eprint", "url")}
    links = {name: match[1] for name, match in found.items() if match}
    if "eprint" in links and "doi" not in links:
        return f"10.48550/arXiv.{links['eprint']}"
    return links.get("doi") or links.get("url", "")


@cache
def entries() -> dict[str, str]:
    """References by key, each as BibTeX."""
    text = files("st_predict").joinpath("references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in re.finditer(r"^@\w+\{(\w+),\n.*?^\}$", text, re.MULTILINE | re.DOTALL)}
