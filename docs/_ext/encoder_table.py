"""Directive ``encoder-table``: the encoders of ``list_encoders()`` in a table, and their notes, made from their specs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.util.docutils import SphinxDirective

from st_predict.encoders import count_features, get_encoder, list_encoders

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

    from st_predict.encoders import EncoderSpec


_OUTPUTS = {"cls_mean": "class token, mean of patches"}


class EncoderTable(SphinxDirective):
    """Write what every ``EncoderSpec`` says, so that the page cannot disagree with the code."""

    def run(self) -> list[Node]:
        """Return the table, and a list of notes that opens on demand."""
        specs = [get_encoder(name) for name in list_encoders()]
        header = (
            "| name | input, px | um/px | features | output | licence | gated |",
            "|---|---|---|---|---|---|---|",
        )
        notes = [f"- `{spec.name}`: {spec.notes}" for spec in specs if spec.notes]
        lines = [
            *header,
            *map(_row, specs),
            "\n:::{dropdown} Not confirmed, or special",
            *notes,
            ":::",
        ]
        return self.parse_text_to_nodes("\n".join(lines))


def _row(spec: EncoderSpec) -> str:
    name = f"[`{spec.name}`]({spec.url})" if spec.url else f"`{spec.name}`"
    sizes = ", ".join(f"{level.size}" for level in spec.crop.levels)
    mpp = "that of the image" if spec.crop.mpp is None else f"{spec.crop.mpp:g}"
    output = (
        "statistics of stages"
        if spec.features == "stages"
        else _OUTPUTS.get(spec.pool, "class token" if spec.url else "-")
    )
    gated = "yes" if spec.gated else "no"
    return f"| {name} | {sizes} | {mpp} | {count_features(spec)} | {output} | {spec.license} | {gated} |"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("encoder-table", EncoderTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
