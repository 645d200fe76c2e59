"""Where lines break, and dashes.

Sphinx writes each word of a literal as a span that does not break. Literals with a word that is wider than a phone get
the class ``long``, which ``custom.css`` lets break. ``smartquotes`` is off, so that messages and options are shown as
they are typed; the dash between a parameter and its description, which relies on it, is made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.ext.autosummary import autosummary_noop, autosummary_table
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

WIDEST = 28  # characters that fit into a nested list on a phone of 390 px


class Typography(SphinxPostTransform):
    """Mark long code, and make dashes."""

    default_priority = 900

    def run(self, **_: Any) -> None:
        """Change the literals and the field lists of a page."""
        for node in self.document.findall(nodes.literal):
            if any(len(word) > WIDEST for word in node.astext().split()):
                node["classes"].append("long")
        for node in list(self.document.findall(nodes.Text)):
            if node.astext() == " -- ":
                node.parent.replace(node, nodes.Text(" \N{EN DASH} "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform, and let the signatures in lists of the reference break."""
    app.setup_extension("sphinx.ext.autosummary")
    app.add_node(
        autosummary_table, override=True, html=(autosummary_noop, autosummary_noop)
    )
    app.add_post_transform(Typography)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
