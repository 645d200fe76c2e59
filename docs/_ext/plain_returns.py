"""Keep the text of Returns and Yields sections as it is written.

Napoleon takes the first line of these sections for a type. Ours hold sentences, and definition lists of slots that are
written, which are proper reStructuredText already; types stand in signatures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class PlainReturns(NumpyDocstring):
    """Holds the two methods that replace those of the base class."""

    def _parse_returns_section(self, section: str) -> list[str]:
        return self._block(":returns:")

    def _parse_yields_section(self, section: str) -> list[str]:
        return self._block(":Yields:")

    def _block(self, field: str) -> list[str]:
        lines = self._dedent(self._consume_to_next_section())
        if lines[:1] == [
            ":"
        ]:  # put there by sphinx-autodoc-typehints, for napoleon as it was
            lines = lines[1:]
        return [field, "", *self._indent(lines, 4), ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Replace the methods; napoleon offers no setting for this."""
    for name in ("_parse_returns_section", "_parse_yields_section", "_block"):
        setattr(NumpyDocstring, name, getattr(PlainReturns, name))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
