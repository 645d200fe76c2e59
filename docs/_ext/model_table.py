"""Directive ``model-table``: all models in a table, made from ``models.table()``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from model_pages import models
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx


class ModelTable(SphinxDirective):
    """Write a row per model, so that the page cannot disagree with the code."""

    def run(self) -> list[Node]:
        """Return the table."""
        header = "| name | family | parameters | GMAC | levels | field of view | paper | licence of published code |"
        rows = [_row(str(name), row) for name, row in models().iterrows()]
        return self.parse_text_to_nodes(
            "\n".join([header, "|---|---|---|---|---|---|---|---|", *rows])
        )


def _row(name: str, row: pd.Series) -> str:
    params = "-" if pd.isna(row["params"]) else f"{row['params']:,}"
    gmacs = "-" if pd.isna(row["gmacs"]) else f"{row['gmacs']:.2f}"
    return (
        f"| {{ref}}`{name} <model-{name}>` | {row['family']} | {params} | {gmacs} | {row['levels']} | {_fov(row)} "
        f"| {{cite:t}}`{row['citation']}` | {_licence(row['license'])} |"
    )


def _licence(text: str) -> str:
    """Link the licence to the code, whose address would make the table too wide."""
    name, _, address = text.removesuffix(")").partition(" (")
    return f"[{name}](https://{address})" if "/" in address else text


def _fov(row: pd.Series) -> str:
    return (
        f"{row['fov_px']:g} px"
        if pd.isna(row["fov_um"])
        else f"{row['fov_px']:g} px, {row['fov_um']:g} um"
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("model-table", ModelTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
