"""Train M2OST on real sections, score it beside the baselines, and write what docs/benchmarks.md shows.

    python benchmarks/her2st.py --panel m2ost_her2.txt --out runs/her2st

The sections (about 30 MB) are those of the HER2-positive breast cancer data of Andersson et al. 2021. C2 to C5 of one patient
train, C6 of the same patient chooses the epoch, B4 of another patient is looked at only at the end. `--release` puts the
weights, as float16 and with these scores in their card, into the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

import st_predict as stp
from st_predict import checkpoints

if TYPE_CHECKING:
    from spatialdata import SpatialData

ROOT = Path(__file__).parents[1]
TRAIN, SAME_PATIENT, OTHER_PATIENT = ["C2", "C3", "C4", "C5"], "C6", "B4"
MPP = 0.688  # of these scans, from the pitch of their spots
FILE = "m2ost-her2st-1.safetensors"
SHOWN = ["ERBB2", "COL1A1"]
CARD = {
    "organism": "Homo sapiens",
    "license": "CC-BY-4.0",
    "citation": "Data: Andersson et al., Nature Communications 2021. Method: Wang et al., M2OST, AAAI 2025.",
    "training": {
        "data": "HER2-positive breast cancer, legacy ST, https://github.com/almaan/her2st, CC-BY-4.0",
        "limits": "One patient, four sections, one scanner; another section of that patient chose the epoch. Shows the "
        "software at work and is no tool for diagnosis. Expect little on other tissue, stains and scanners.",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panel", required=True, help="file with a gene a line, or a number of genes to select")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, scores and figures")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--release", action="store_true", help="put weights into the package, the page into docs")
    args = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    sections = stp.datasets.her2st([*TRAIN, SAME_PATIENT, OTHER_PATIENT])
    if not (args.out / "m2ost.safetensors").exists():
        train(sections, args)
    report(sections, args.out)
    if args.release:
        release(args.out)


def train(sections: dict[str, SpatialData], args: argparse.Namespace) -> None:
    stp.tl.train(
        [sections[name] for name in TRAIN],
        panel=int(args.panel) if args.panel.isdigit() else stp.pp.read_panel(args.panel),
        out=args.out,
        validation=[sections[SAME_PATIENT]],
        allow_shared=[SAME_PATIENT[0]],
        mpp=MPP,
        preset="paper",
        config=stp.tl.TrainConfig(
            epochs=args.epochs,
            batch_size=24,
            lr=1e-4,
            optimizer="adamw",
            weight_decay=0.01,
            schedule="cosine",
            warmup=2,
            clip=1.0,
        ),
        resume=args.resume,
        card=CARD,
    )


def report(sections: dict[str, SpatialData], out: Path) -> None:
    """Score and draw the weights as they are released."""
    network, card = checkpoints.load(out / "m2ost.safetensors")
    checkpoints.save(out / FILE, network, card, dtype=torch.float16)
    held_out = [sections[name] for name in (SAME_PATIENT, OTHER_PATIENT)]
    for name, sdata in zip((SAME_PATIENT, OTHER_PATIENT), held_out, strict=True):
        stp.tl.predict(sdata, out / FILE)
        stp.pl.spatial(sdata, SHOWN, save=out / f"{name}.png", show=False)
        stp.pl.pca_map(sdata, save=out / f"{name}_pca.png", dpi=150, show=False)
    evaluation = stp.tl.evaluate(held_out, train=[sections[name] for name in TRAIN])
    evaluation.summary.to_csv(out / "summary.csv", index=False)
    evaluation.paper.to_csv(out / "paper.csv", index=False)
    evaluation.genes.to_csv(out / "genes.csv", index=False)
    (out / "definitions.json").write_text(json.dumps(dict(evaluation.definitions), indent=2))
    stp.pl.scores(evaluation, save=out / "scores.png", show=False)
    stp.pl.depth(evaluation, save=out / "depth.png", show=False)
    print(evaluation)
    print(evaluation.paper.round(3).to_string(index=False))


def release(out: Path) -> None:
    """Add the scores to the card, and the file and its hash to the package."""
    network, card = checkpoints.load(out / "m2ost.safetensors")
    scores = pd.read_csv(out / "summary.csv").query("predictor == 'pred_m2ost'").drop(columns="predictor")
    card = replace(card, training={**card.training, "scores": scores.round(4).to_dict("records")})
    folder = ROOT / "src" / "st_predict" / "checkpoints" / "weights"
    checkpoints.save(folder / FILE, network, card, dtype=torch.float16)
    content = (folder / FILE).read_bytes()
    index = json.loads((folder / "index.json").read_text())
    others = [entry for entry in index["weights"] if entry["file"] != FILE]
    entry = {
        "name": "m2ost",
        "version": "1",
        "file": FILE,
        "sha256": hashlib.sha256(content).hexdigest(),
        "n_bytes": len(content),
        "embedded": True,
        "summary": "HER2-positive breast cancer, one patient (her2st C2-C5), 250 genes, 0.688 um/px",
    }
    (folder / "index.json").write_text(json.dumps({**index, "weights": [entry, *others]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
