"""Short code in text stays whole at the end of a line; code that is too long for a phone may break.

Sphinx writes each word of a literal as a span that does not break. Literals with a word that is wider than a phone get
the class ``long``, which ``custom.css`` lets break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

WIDEST = 28  # characters that fit into a nested list on a phone of 390 px


class MarkLongCode(SphinxPostTransform):
    """Give literals with a long word the class ``long``."""

    default_priority = 900

    def run(self, **_: Any) -> None:
        """Mark the literals of a page."""
        for node in self.document.findall(nodes.literal):
            if any(len(word) > WIDEST for word in node.astext().split()):
                node["classes"].append("long")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform."""
    app.add_post_transform(MarkLongCode)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
