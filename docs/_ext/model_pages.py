"""One page per model, written into ``docs/models`` from its ``SPEC`` and the released weights when the documentation is built."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generated_pages
import pandas as pd

from st_predict import checkpoints
from st_predict.models import Preset, cite, get_spec, table
from st_predict.models._base import RECOMMENDED
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sphinx.application import Sphinx

    from st_predict.checkpoints import Weights
    from st_predict.models import ModelSpec

FOLDER = "models"


def write_pages(app: Sphinx) -> None:
    """Write the page of each model."""
    texts = {
        str(name): page_of(get_spec(str(name)), row)
        for name, row in models().iterrows()
    }
    generated_pages.write_pages(Path(app.srcdir) / FOLDER, texts)


@cache
def models() -> pd.DataFrame:
    """Return the table of the models, which takes seconds to count."""
    return table()


def page_of(spec: ModelSpec, row: pd.Series) -> str:
    """Markdown of the page of a model, with its row of ``models.table()``."""
    parts = [
        f"(model-{spec.name})=\n# {spec.name}",
        f"{spec.summary} Described in {{cite:t}}`{spec.citation}`.",
        _call(spec),
        "## Specification",
        _facts(spec, row),
        _levels(spec),
        "## Presets",
        _presets(spec),
        "## Released weights",
        _released(spec),
        "## Citation",
        f"```bibtex\n{cite(spec.name)}\n```",
        "## Network",
        f"```{{eval-rst}}\n.. automodule:: {spec.build.__module__}\n   :members:\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _call(spec: ModelSpec) -> str:
    """Example of a training and a prediction, on objects that the reader has."""
    return f"""```python
import st_predict as stp

result = stp.tl.train(sections, "{spec.name}", panel=250, out="run")
stp.tl.predict(sdata, result)
```"""


def _facts(spec: ModelSpec, row: pd.Series) -> str:
    symmetries = (
        f", mean over {spec.symmetries} symmetries of a crop"
        if spec.symmetries > 1
        else ""
    )
    mpp = "the image's own" if spec.crop.mpp is None else f"{spec.crop.mpp:g} um"
    facts = {
        "family": spec.family,
        "input": f"{spec.reads(spec.hparams).inputs}, {_SCOPES[spec.scope]}{symmetries}",
        "output": f"`{spec.target.units}`",
        "parameters": "closed form" if spec.closed_form else _params(row),
        "GMAC per spot": "-" if spec.closed_form else _gmacs(row),
        "pixel width of the finest level": mpp,
        "pixels outside the image": f"grey value {spec.crop.pad_value}",
        "pixel values": f"`(x / 255 - mean) / std`, mean {_numbers(spec.pixels.mean)}, std {_numbers(spec.pixels.std)}",
        "hyper-parameters": _values(spec.hparams) or "none",
        "published weights": "{func}`~st_predict.checkpoints.import_published`"
        if spec.convert
        else "cannot be imported",
        "licence of published code": spec.license,
    }
    rows = [f"| {name} | {text} |" for name, text in facts.items()]
    return "\n".join(["| property | value |", "|---|---|", *rows])


_SCOPES = {"spot": "single spots", "section": "all spots of a section at a time"}


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _levels(spec: ModelSpec) -> str:
    rows = [
        f"| {i} | {level.size} | {level.downsample:.4g} | {level.fov:g} |"
        for i, level in enumerate(spec.crop.levels)
    ]
    header = "| level | size, px | downsample | field of view, px of the finest level |"
    return "\n".join([header, "|---|---|---|---|", *rows])


def _presets(spec: ModelSpec) -> str:
    recommended = _differences(spec.recommended, RECOMMENDED) or "no setting of its own"
    original = _differences(spec.original, Preset()) or 'the same as `"paper"`'
    paper = _differences(spec.paper, Preset()) or "the setting common to all models"
    return f"""- `preset="recommended"`: {recommended}.
- `preset="paper"`: {paper}. {spec.paper.notes}
- `preset="original"`: {original}. {spec.original.notes}"""


def _released(spec: ModelSpec) -> str:
    """Weights of this model, with the scores of their cards; cards of weights outside the package are not read."""
    found = [
        (weights, ModelCard.of_file(checkpoints.find_weights(_name(weights))))
        for weights in checkpoints.list_weights()
        if weights.embedded
    ]
    rows = [
        _weights(weights, card) for weights, card in found if card.model == spec.name
    ]
    return "\n".join(rows) or "None yet."


def _weights(weights: Weights, card: ModelCard) -> str:
    name = _name(weights)
    page = f"../weights/{weights.name}-{weights.version}.md"
    lines = [
        f"- [`{name}`]({page}): {weights.summary}. Licence: {card.license or 'not stated'}."
    ]
    for scores in card.reliability:
        best = ", ".join(
            score.gene for score in checkpoints.rank_genes(card, scores)[:5]
        )
        lines.append(f"  - {checkpoints.score_sentence(scores)} Best genes: {best}.")
    return "\n".join(lines)


def _name(weights: Weights) -> str:
    return f"{weights.name}@{weights.version}"


def _params(row: pd.Series) -> str:
    return "-" if pd.isna(row["params"]) else f"{row['params']:,}"


def _gmacs(row: pd.Series) -> str:
    return "-" if pd.isna(row["gmacs"]) else f"{row['gmacs']:.2f}"


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
    """Write the pages before sources are read."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
