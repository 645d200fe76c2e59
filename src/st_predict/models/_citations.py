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

    Raises
    ------
    KeyError
        If the model does not exist.

    Examples
    --------
    >>> print(st_predict.models.cite("stnet").splitlines()[0])
    @article{He2020,
    """
    key = get_spec(check("model", model, Text)).citation
    return entries().get(key, key)  # a model of a plug-in may bring a citation of its own


def link_to(key: str) -> str:
    """Return the DOI of a reference, or its address if it has none; empty if it has neither."""
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
