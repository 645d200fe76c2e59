"""Directive ``model-pages``: all models in a table, then one section for each, made from ``models.table()`` and ``SPEC``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from sphinx.util.docutils import SphinxDirective

from st_predict.models import Preset, get_spec, table
from st_predict.models._base import RECOMMENDED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from docutils.nodes import Node
    from sphinx.application import Sphinx

    from st_predict.models import ModelSpec


class ModelPages(SphinxDirective):
    """Write what every ``SPEC`` says, so that the page cannot disagree with the code."""

    def run(self) -> list[Node]:
        """Return the table and the sections."""
        models = table()
        pages = [
            _overview(models),
            *(_page(get_spec(name), row) for name, row in models.iterrows()),
        ]
        return self.parse_text_to_nodes("\n\n".join(pages), allow_section_headings=True)


def _overview(models: pd.DataFrame) -> str:
    """Markdown of the table."""
    rows = [
        f"| {{ref}}`{name} <model-{name}>` | {row['family']} | {_params(row)} | {_gmacs(row)} | {row['levels']} | {_fov(row)} "
        f"| {{cite:t}}`{row['citation']}` | {row['license']} |"
        for name, row in models.iterrows()
    ]
    header = "| name | family | parameters | GMAC | levels | field of view | paper | licence of published code |"
    return "\n".join(
        ["## All models", "", header, "|---|---|---|---|---|---|---|---|", *rows]
    )


def _page(spec: ModelSpec, row: pd.Series) -> str:
    """Markdown of one model."""
    mpp = (
        "those of the image, whatever their size"
        if spec.crop.mpp is None
        else f"{spec.crop.mpp:g} um wide"
    )
    levels = "\n".join(
        f"| {i} | {v.size} | {v.downsample:.4g} | {v.fov:g} |"
        for i, v in enumerate(spec.crop.levels)
    )
    spots = "single spots" if spec.scope == "spot" else "all spots of a section"
    symmetries = (
        ""
        if spec.symmetries == 1
        else f"; predicts the mean over the {spec.symmetries} symmetries of a crop"
    )
    size = (
        "in closed form"
        if spec.closed_form
        else f"{_params(row)} parameters and {_gmacs(row)} GMAC a spot with 250 genes"
    )
    return f"""(model-{spec.name})=
## `{spec.name}`

{spec.summary} Described in {{cite:t}}`{spec.citation}`.

| level | size, px | downsample | field of view, px of the finest level |
|---|---|---|---|
{levels}

- Family: {spec.family}; {size}.
- Pixels of the finest level: {mpp}; outside the image: grey value {spec.crop.pad_value}.
- Pixel values: `(x / 255 - mean) / std` with mean {spec.pixels.mean} and std {spec.pixels.std}.
- Output: `{spec.target.units}`.
- Reads {spec.reads(spec.hparams).inputs}, of {spots} at a time{symmetries}.
- Hyper-parameters: {_values(spec.hparams) or "none"}.
- `preset="recommended"`: {_differences(spec.recommended, RECOMMENDED) or "no setting of its own"}.
- `preset="original"`: {_differences(spec.original, Preset()) or 'the same as `"paper"`'}. {spec.original.notes}
- Licence of the published code: {spec.license}.

```{{eval-rst}}
.. automodule:: {spec.build.__module__}
   :members:
```
"""


def _params(row: pd.Series) -> str:
    return "-" if pd.isna(row["params"]) else f"{row['params']:,}"


def _gmacs(row: pd.Series) -> str:
    return "-" if pd.isna(row["gmacs"]) else f"{row['gmacs']:.2f}"


def _fov(row: pd.Series) -> str:
    return (
        f"{row['fov_px']:g} px"
        if pd.isna(row["fov_um"])
        else f"{row['fov_px']:g} px, {row['fov_um']:g} um"
    )


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in values.items())


def _differences(preset: Preset, common: Preset) -> str:
    """Settings of a model's preset that differ from those common to all models."""
    target = preset.target if preset.target != common.target else None
    parts = {
        "training": _values(preset.training),
        "hyper-parameters": _values(preset.hparams),
        "output": f"`{target.units}`" if target else "",
        "panel": "" if preset.panel == common.panel else f'`"{preset.panel}"`',
    }
    return "; ".join(f"{name}: {text}" for name, text in parts.items() if text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("model-pages", ModelPages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
