"""Docstrings of constants that a package takes from its private modules.

Autodoc looks for them in the package only, and shows the docstring of ``tuple`` or nothing.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from sphinx.pycode import ModuleAnalyzer

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def use_own_docstring(app: Sphinx, what: str, name: str, *rest: Any) -> None:
    """Replace the docstring of a constant by the one below its assignment."""
    *_, lines = rest
    if what == "data":
        lines[:] = _docstring(*name.rpartition(".")[::2]) or lines


@cache
def _docstring(package: str, constant: str) -> list[str]:
    for module in sorted(sys.modules):
        if module.startswith(package):
            found = ModuleAnalyzer.for_module(module).find_attr_docs()
            if lines := found.get(("", constant)):
                return lines
    return []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the handler."""
    app.connect("autodoc-process-docstring", use_own_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
