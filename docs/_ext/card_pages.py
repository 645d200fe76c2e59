"""One page per released weights, written from their cards into ``docs/weights`` when the documentation is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import generated_pages
import numpy as np
from sphinx.util.docutils import SphinxDirective

from st_predict import checkpoints
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

    from st_predict.checkpoints import Weights
    from st_predict.specs import Reliability

FOLDER = "weights"

BEST = 20  # genes that are shown before the whole list is opened
HEADER = ("gene", "partial correlation", "95 % interval", "noise ceiling", "trusted")


def write_pages(app: Sphinx) -> None:
    """Write the pages of all released weights."""
    pages = {
        f"{weights.name}-{weights.version}": page_of(weights)
        for weights in checkpoints.list_weights()
    }
    generated_pages.write_pages(Path(app.srcdir) / FOLDER, pages)


def page_of(weights: Weights) -> str:
    """Markdown of the page of released weights."""
    head = [f"# `{weights.name}@{weights.version}`", f"{weights.summary}."]
    size = f"{weights.n_bytes / 1e6:.1f} MB, SHA-256 `{weights.sha256}`"
    if not weights.embedded:  # building fetches nothing
        command = f"`st-predict card {weights.name}@{weights.version}`"
        return "\n\n".join(
            [
                *head,
                f"File `{weights.file}`, {size}; fetched when it is first used. {command} prints its card.\n",
            ]
        )
    path = checkpoints.find_weights(f"{weights.name}@{weights.version}")
    card = ModelCard.of_file(path)
    parts = [
        *head,
        f"File `{weights.file}`, {size}, in the package.",
        _facts(card, checkpoints.notice_of(path)),
        "## Which genes to trust",
    ]
    parts += [_scores(card, one) for one in card.reliability] or [
        "No scores of its genes are in the card."
    ]
    if gaps := checkpoints.card_gaps(card):
        parts += ["## Not known", "\n".join(f"- {gap}" for gap in gaps)]
    return "\n\n".join(parts) + "\n"


class WeightTable(SphinxDirective):
    """Directive ``weight-table``: a row per released weights, with the scores of their card."""

    def run(self) -> list[Node]:
        """Return the table."""
        header = (
            "| weights | what they predict | another section | another patient | MB |"
        )
        rows = [_row(weights) for weights in checkpoints.list_weights()]
        return self.parse_text_to_nodes(
            "\n".join([header, "|---|---|---|---|---|", *rows])
        )


def _row(weights: Weights) -> str:
    name = f"{weights.name}@{weights.version}"
    means = dict.fromkeys(("section", "patient"), "-")
    if weights.embedded:
        card = ModelCard.of_file(checkpoints.find_weights(name))
        means |= {
            one.held_out: f"{np.nanmean(np.array(one.partial, float)):.2f}"
            for one in card.reliability
        }
    link = f"[`{name}`]({weights.name}-{weights.version}.md)"
    return f"| {link} | {weights.summary} | {means['section']} | {means['patient']} | {weights.n_bytes / 1e6:.1f} |"


def _facts(card: ModelCard, notice: str) -> str:
    facts = checkpoints.card_facts(card) | (
        {"weights of others": notice} if notice else {}
    )
    rows = [f"| {name} | {text.replace('|', ' ')} |" for name, text in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _scores(card: ModelCard, scores: Reliability) -> str:
    trusted = {card.genes[place] for place in scores.trusted()}
    rows = [
        f"| {' | '.join(one.to_row().values())} | {'yes' if one.gene in trusted else ''} |"
        for one in checkpoints.rank_genes(card, scores)
    ]
    parts = [checkpoints.score_sentence(scores), _table(rows[:BEST])]
    if len(rows) > BEST:
        parts.append(f":::{{dropdown}} All {len(rows)} genes\n{_table(rows)}\n:::")
    return "\n\n".join(parts)


def _table(rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(HEADER)} |", "|---|---|---|---|---|", *rows])


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before sources are read."""
    app.add_directive("weight-table", WeightTable)
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
