"""How many genes of a model may be trusted, on another section of its patient and on another patient.

    python benchmarks/her2st_trust.py --out runs/trust --keep  # puts the figures into benchmarks/results
    python benchmarks/her2st_trust.py --page  # puts them into docs/how-to/trust.md

Ridge regression on the features `rgb`, rank 8, trained on sections C2 to C4 of one patient (HER2-positive breast cancer, Andersson et
al. 2021) with the 250 genes that have a spatial pattern there. C5 of the same patient and B4 of another are scored; nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

import st_predict as stp

TRAIN, SCORED = ["C2", "C3", "C4"], ["C5", "B4"]
PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "trust.md"
RESULTS = Path(__file__).parent / "results" / "her2st" / "trust.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/trust"), help="new folder for the checkpoint")
    parser.add_argument("--keep", action="store_true", help="put the figures into benchmarks/results")
    parser.add_argument("--page", action="store_true", help="only put the kept figures into the page")
    args = parser.parse_args()
    if args.page:
        text, shown = PAGE.read_text(encoding="utf-8"), table(json.loads(RESULTS.read_text(encoding="utf-8")))
        pattern = re.compile(r"(<!-- trust -->\n).*?(<!-- end of trust -->)", re.DOTALL)
        PAGE.write_text(pattern.sub(rf"\g<1>{shown}\n\g<2>", text), encoding="utf-8")
        return
    logging.basicConfig(level="WARNING", format="%(message)s")
    figures = measure(args.out)
    if args.keep:
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))


def measure(out: Path) -> list[dict[str, Any]]:
    """Train, predict, evaluate, and write the scores to the card; return what the card then has."""
    sections = stp.datasets.her2st([*TRAIN, *SCORED])
    train = [sections[name] for name in TRAIN]
    result = stp.tl.train(train, "ridge", panel=250, out=out, hparams={"encoder": "rgb"})
    held_out = [sections[name] for name in SCORED]
    for section in held_out:
        stp.tl.predict(section, result)
    evaluation = stp.tl.evaluate(held_out, train=train, missing="drop")
    path = stp.checkpoints.add_reliability(result, evaluation, out=out / "with-scores.safetensors")
    card = stp.specs.ModelCard.of_file(path)
    return [figures_of(card, one) for one in card.reliability]


def figures_of(card: stp.specs.ModelCard, scores: stp.specs.Reliability) -> dict[str, Any]:
    defined = [score for score in scores.partial if score is not None]
    ceilings = [score for score in scores.ceiling if score is not None]
    return {
        "held_out": scores.where,
        "sections": list(scores.sections),
        "n_spots": scores.n_spots,
        "n_genes": len(defined),
        "mean": round(sum(defined) / len(defined), 4),
        "ceiling": round(sum(ceilings) / len(ceilings), 4),
        "above": len(scores.trusted()),
        "below": sum(high is not None and high < 0 for high in scores.high),
        "above and at least 0.2": len(scores.trusted(min_score=0.2)),
        "genes": [
            [one.gene, one.partial, one.low, one.high, one.ceiling] for one in stp.checkpoints.rank_genes(card, scores)
        ],
    }


def table(figures: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ["held out", "spots", "genes", "mean partial correlation", "mean ceiling", "interval above 0", "below 0"]
    lines = [[*head, "above 0 and score at least 0.2"], ["---"] * 8]
    for one in figures:
        counts = [str(one[name]) for name in ("above", "below", "above and at least 0.2")]
        where = f"{one['held_out']} ({', '.join(one['sections'])})"
        means = [f"{one['mean']:z.3f}", f"{one['ceiling']:.2f}"]
        lines.append([where, str(one["n_spots"]), str(one["n_genes"]), *means, *counts])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
