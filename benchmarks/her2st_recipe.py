"""What helps M2OST on tokens: one setting changed at a time, trained on C2 to C4 and scored on C5.

    python benchmarks/her2st_recipe.py --out runs/recipe
    python benchmarks/her2st_recipe.py --out runs/recipe --keep  # also puts the figures into benchmarks/results

Sections of one patient (HER2-positive breast cancer, Andersson et al. 2021). C2 to C4 train and choose a panel of 250 genes with a
spatial pattern; the last epoch is kept. A variant whose checkpoint is there is only scored. C6 and B4 are not looked at.

"distilled" learns the mean of the measured target and of what ridge regression of rank 8, on features of the same backbone, predicts of
each section after it was fitted to the others.
"""

from __future__ import annotations

import argparse
import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from her2st_tokens import MPP, N_GENES, N_TOP, SCORED, SETTING, SIZE, TRAIN

import st_predict as stp
from st_predict._training import learn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

HPARAMS = {**SIZE, "tokens": "efficientnet_lite0"}
CONFIG = {**SETTING, "epochs": 24}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "another seed": ({}, {"seed": 1}),
    "stain jitter 0.1": ({}, {"stain_jitter": 0.1}),
    "average 0.98": ({}, {"average": 0.98}),
    "loss standardized": ({}, {"loss": "standardized"}),
    "loss correlation": ({}, {"loss": "correlation"}),
    "drop 0.3": ({"drop": 0.3}, {}),
    "fine-tuned": ({"tune": True}, {"lr": 2e-4}),
    "crops of 160 px": ({"size": 160}, {}),
    "pixels": ({"tokens": None}, {}),
    "distilled": ({}, {}),
    "distilled, standardized": ({}, {"loss": "standardized"}),
}
TEACHER = {"encoder": "efficientnet_lite0", "fields": [96, 192, 384], "rank": 8}
SHARE, MIN_COUNTS = 0.5, 50  # of the teacher in the target; of spots to learn from
RESULTS = Path(__file__).parent / "results" / "her2st" / "recipe.json"
SCORES = ("residual 250", "residual top", "partial 250", "partial top")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"), help="folder for checkpoints and figures")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--keep", action="store_true", help="put the figures of these variants into benchmarks/results")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    sections = stp.datasets.her2st([*TRAIN, SCORED])
    panel = stp.pp.select_panel([sections[name] for name in TRAIN], n_genes=N_GENES, method="spatial")
    if args.keep and RESULTS.exists():
        kept = {row["variant"] for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
        if lost := sorted(kept - set(args.variants)):
            parser.error(f"--keep would lose the figures of {lost}: name them with --variants too")
    rows = [row_of(name, panel, sections, args.out) for name in args.variants]
    if args.keep:
        figures = {"hparams": HPARAMS, "config": CONFIG, "panel": panel, "rows": rows}
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def row_of(name: str, panel: list[str], sections: dict[str, SpatialData], out: Path) -> dict[str, Any]:
    """Train, unless the checkpoint is there, and score."""
    folder = out / name.replace(" ", "-")
    checkpoint = folder / "m2ost.safetensors"
    if not checkpoint.exists():
        hparams, config = VARIANTS[name]
        distilled = name.startswith("distilled")
        with taught(out_of_fold(panel, sections, out / "teachers")) if distilled else nullcontext():
            stp.tl.train(
                [sections[section] for section in TRAIN],
                "m2ost",
                panel=panel,
                out=folder,
                mpp=MPP,
                hparams={**HPARAMS, **hparams},
                config={**CONFIG, **config},
            )
    stp.tl.predict(sections[SCORED], checkpoint)
    found = stp.tl.evaluate(sections[SCORED])
    own = found.genes.query("predictor == 'pred_m2ost'").set_index("gene")
    summary = found.summary.query("predictor == 'pred_m2ost'").iloc[0]
    row = {
        "variant": name,
        "residual 250": float(own["residual"].mean()),
        "residual top": float(own.loc[panel[:N_TOP], "residual"].mean()),
        "partial 250": float(own["partial"].mean()),
        "partial interval": [float(summary["gene_partial_low"]), float(summary["gene_partial_high"])],
        "partial top": float(own.loc[panel[:N_TOP], "partial"].mean()),
    }
    print(json.dumps(row), flush=True)
    return row


def out_of_fold(panel: list[str], sections: dict[str, SpatialData], out: Path) -> list[NDArray[np.float32]]:
    """Predict each training section by ridge regression on the others; values of the spots with enough counts."""
    found = []
    for name in TRAIN:
        others = [sections[other] for other in TRAIN if other != name]
        checkpoint = out / name / "ridge.safetensors"
        if not checkpoint.exists():
            stp.tl.train(others, "ridge", panel=panel, out=out / name, hparams=TEACHER)
        stp.tl.predict(sections[name], checkpoint, key_added="teacher")
        table = sections[name]["table"]
        enough = np.asarray(table[:, panel].X.sum(axis=1)).ravel() >= MIN_COUNTS
        found.append(table.obsm["teacher"][enough])
    return found


def taught(teacher: Sequence[NDArray[np.float32]]) -> Any:
    """Let ``tl.train`` learn a mixture of the measured target and of what a teacher says of each section."""

    def learn_mixture(card: Any, data: Any, *others: Any, **settings: Any) -> Any:
        assert [len(part) for part in teacher] == np.bincount(data.section).tolist()
        target = (1 - SHARE) * data.target + SHARE * np.concatenate(teacher)
        return learn(card, replace(data, target=target.astype(np.float32)), *others, **settings)

    return patch("st_predict.tl._train.learn", learn_mixture)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [["variant", *SCORES], ["---"] * 5, *([r["variant"], *(f"{r[s]:.3f}" for s in SCORES)] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
