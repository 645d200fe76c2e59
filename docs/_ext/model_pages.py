"""Directive ``model-pages``: one section for each registered model, made from its ``SPEC``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.util.docutils import SphinxDirective

from st_predict.models import get_spec, list_models

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

    from st_predict.models import ModelSpec


class ModelPages(SphinxDirective):
    """Write what every ``SPEC`` says, so that the page cannot disagree with the code."""

    def run(self) -> list[Node]:
        """Return the sections."""
        specs = [get_spec(name) for name in list_models()]
        return self.parse_text_to_nodes("\n\n".join(map(_page, specs)), allow_section_headings=True)


def _page(spec: ModelSpec) -> str:
    """Markdown of one model."""
    mpp = "those of the image, whatever their size" if spec.crop.mpp is None else f"{spec.crop.mpp:g} um wide"
    levels = "\n".join(f"| {i} | {v.size} | {v.downsample:g} | {v.fov:g} |" for i, v in enumerate(spec.crop.levels))
    hparams = ", ".join(f"`{name}={value!r}`" for name, value in spec.hparams.items()) or "none"
    return f"""## `{spec.name}`

{spec.summary} Described in {{cite:t}}`{spec.citation}`.

| level | size, px | downsample | field of view, px of the finest level |
|---|---|---|---|
{levels}

- Pixels of the finest level: {mpp}; outside the image: grey value {spec.crop.pad_value}.
- Pixel values: `(x / 255 - mean) / std` with mean {spec.pixels.mean} and std {spec.pixels.std}.
- Output: `{spec.target.units}`.
- Sees at a time: {"single spots" if spec.scope == "spot" else "all spots of a section"}.
- Hyper-parameters of the published model: {hparams}.

```{{eval-rst}}
.. automodule:: {spec.build.__module__}
   :members:
```
"""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("model-pages", ModelPages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
