"""Train the weights that the package ships, and write the scores of each gene into their cards.

    python scripts/train_weights.py --out runs/weights
    python scripts/train_weights.py --out runs/weights --only ridge-effnet
    python scripts/train_weights.py --out runs/weights --keep  # also puts the scores into benchmarks/results and the page

Sections C2 to C5 of one patient (HER2-positive breast cancer, Andersson et al. 2021) choose the panel and train. Recipe and number of
epochs were chosen by leaving out C5 (benchmarks/her2st_recipe.py); the last epoch is kept. C6 of the same patient and B4 of another
one are only scored. A checkpoint that is there is scored and not trained again. `scripts/release_weights.py` says how to release.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

import st_predict as stp
from st_predict import checkpoints

if TYPE_CHECKING:
    from spatialdata import SpatialData

TRAIN, SCORED = ["C2", "C3", "C4", "C5"], ["C6", "B4"]
MPP = 0.688  # of these scans, from the pitch of their spots
N_GENES = 250
CARD = {
    "organism": "Homo sapiens",
    "license": "CC-BY-4.0",
    "training": {
        "data": "HER2-positive breast cancer, legacy ST, https://github.com/almaan/her2st, CC-BY-4.0",
        "limits": "One patient, four sections, one scanner. No tool for diagnosis. Expect little on other tissue, stains and scanners.",
    },
}
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "her2st" / "weights.json", ROOT / "docs" / "benchmarks.md"
BESIDE = {
    "ridge": "ridge on colours and textures (`rgb`)",
    "position": "position only, no image",
    "neighbours": "measured neighbours",
    "ceiling": "noise ceiling",
}
COLUMNS = ["predictor", "gene_partial", "gene_partial_low", "gene_partial_high", "gene_residual"]
DATA = "Data: Andersson et al., Nature Communications 2021."
WEIGHTS: dict[str, dict[str, Any]] = {
    "m2ost": {
        "model": "m2ost",
        "hparams": {
            "tokens": "efficientnet_lite0",
            "size": 96,
            "dim": 96,
            "depth": 2,
            "heads": 3,
            "head_dim": 32,
            "mlp_dim": 96,
            "drop": 0.1,
        },
        "config": {
            "epochs": 24,
            "batch_size": 16,
            "lr": 5e-4,
            "optimizer": "adamw",
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup": 2,
            "clip": 1.0,
            "loss": "standardized",
            "progress": False,
        },
        "citation": f"{DATA} Method: Wang et al., M2OST, AAAI 2025, on feature maps of EfficientNet-Lite0, an extension of st_predict.",
    },
    "ridge-effnet": {
        "model": "ridge",
        "hparams": {"encoder": "efficientnet_lite0", "fields": [96, 192, 384], "rank": 8},
        "citation": f"{DATA} Method: reduced-rank ridge regression on features of EfficientNet-Lite0.",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and scores")
    parser.add_argument(
        "--keep", action="store_true", help="put the scores into benchmarks/results and docs/benchmarks.md"
    )
    parser.add_argument("--only", choices=list(WEIGHTS), help="one of the weights")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    sections = stp.datasets.her2st([*TRAIN, *SCORED])
    panel = stp.pp.select_panel([sections[name] for name in TRAIN], n_genes=N_GENES, method="spatial")
    for name in [args.only] if args.only else WEIGHTS:
        folder = args.out / name
        trained = train(name, panel, sections, folder)
        print(f"{name}: {score(trained, sections, folder)}")
    if args.keep:
        keep(args.out)


def train(name: str, panel: list[str], sections: dict[str, SpatialData], folder: Path) -> Path:
    """Train, unless the checkpoint is there."""
    spec = WEIGHTS[name]
    checkpoint = folder / f"{spec['model']}.safetensors"
    if not checkpoint.exists():
        stp.tl.train(
            [sections[section] for section in TRAIN],
            spec["model"],
            panel=panel,
            out=folder,
            mpp=MPP,
            hparams=spec["hparams"],
            config=spec.get("config"),
            card={**CARD, "citation": spec["citation"]},
        )
    return checkpoint


def score(trained: Path, sections: dict[str, SpatialData], folder: Path) -> Path:
    """Store the weights as float16, score these, and write the scores into their card."""
    network, card = checkpoints.load(trained)
    released = folder / "released.safetensors"
    checkpoints.save(released, network, card, dtype=torch.float16, encoder=checkpoints.load_encoder(trained, card))
    for name in SCORED:
        stp.tl.predict(sections[name], released)
        found = stp.tl.evaluate(sections[name], train=[sections[n] for n in TRAIN], missing="drop")
        checkpoints.add_reliability(released, found, overwrite=True)
        found.summary.to_csv(folder / f"{name}-summary.csv", index=False)
        found.genes.to_csv(folder / f"{name}-genes.csv", index=False)
        print(found)
    return released


def keep(out: Path) -> None:
    """Put the scores of all weights into the results, and their table into the page."""
    rows = []
    for name, spec in WEIGHTS.items():
        for section in SCORED:
            summary = pd.read_csv(out / name / f"{section}-summary.csv")
            found = summary[summary["predictor"].isin([f"pred_{spec['model']}", *BESIDE])]
            rows += [{"weights": name, "section": section, **row} for row in found[COLUMNS].to_dict("records")]
    text = json.dumps(rows, indent=1).replace("NaN", "null")
    RESULTS.write_text(text + "\n", encoding="utf-8")
    pattern = re.compile(r"(<!-- weights -->\n).*?(<!-- end of weights -->)", re.DOTALL)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(pattern.sub(rf"\g<1>{table(json.loads(text))}\n\g<2>", page), encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the weights, then what stands beside them once."""
    lines = [["predictor", "section", "partial", "interval", "residual"], ["---"] * 5]
    for section in SCORED:
        shown: set[str] = set()
        for row in (row for row in rows if row["section"] == section):
            own = row["predictor"].startswith("pred_")
            name = f"**`{row['weights']}`**" if own else BESIDE[row["predictor"]]
            if name not in shown:
                low, high = row["gene_partial_low"], row["gene_partial_high"]
                interval = "-" if low is None else f"{low:.2f} to {high:.2f}"
                partial = "-" if row["gene_partial"] is None else f"{row['gene_partial']:.3f}"
                lines.append([name, section, partial, interval, f"{row['gene_residual']:.3f}"])
                shown.add(name)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
