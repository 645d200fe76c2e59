"""Train M2OST on feature maps of a frozen backbone and on pixels, and score both beside ridge regression.

    python benchmarks/her2st_tokens.py --out runs/tokens
    python benchmarks/her2st_tokens.py --out runs/tokens --keep  # also puts the figures into benchmarks/results

Sections C2 to C4 of one patient (HER2-positive breast cancer, Andersson et al. 2021) train and choose the panel; C5 of the
same patient is scored. Nothing is chosen by C5: networks have the same size, number of epochs and schedule, set in advance,
and the last epoch is kept. A network whose checkpoint is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import st_predict as stp

if TYPE_CHECKING:
    from spatialdata import SpatialData

TRAIN, SCORED = ["C2", "C3", "C4"], "C5"
MPP = 0.688  # of these scans, from the pitch of their spots
N_GENES, N_TOP = 250, 50
SIZE = {"size": 96, "dim": 96, "depth": 2, "heads": 3, "head_dim": 32, "mlp_dim": 96, "drop": 0.1}
SETTING = {
    "batch_size": 16,
    "lr": 5e-4,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup": 2,
    "clip": 1.0,
    "loss": "model",
}
EPOCHS = 24
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "m2ost on tokens": ("m2ost", {**SIZE, "tokens": "efficientnet_lite0"}),
    "m2ost on pixels": ("m2ost", SIZE),
    "ridge on rgb": ("ridge", {"encoder": "rgb"}),
    "ridge on efficientnet_lite0": ("ridge", {"encoder": "efficientnet_lite0"}),
    "ridge on efficientnet_lite0 in three fields": (
        "ridge",
        {"encoder": "efficientnet_lite0", "fields": [96, 192, 384]},
    ),
}
BESIDE = ("position", "neighbours", "log_total")
RESULTS = Path(__file__).parent / "results" / "her2st" / "tokens.json"
COLUMNS = (
    *("residual", "residual top", "partial", "partial low", "partial high", "partial top"),
    *("minus ridge", "minus ridge low", "minus ridge high"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and figures")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--keep", action="store_true", help="put the figures into benchmarks/results")
    args = parser.parse_args()
    if args.keep and (args.networks != list(NETWORKS) or args.seeds != [0, 1] or args.epochs != EPOCHS):
        parser.error("--keep is for all networks, seeds 0 and 1 and the usual epochs")
    logging.basicConfig(level="INFO", format="%(message)s")
    sections = stp.datasets.her2st([*TRAIN, SCORED])
    panel = stp.pp.select_panel([sections[name] for name in TRAIN], n_genes=N_GENES, method="spatial")
    rows = []
    for seed in args.seeds:
        for name in args.networks:
            if seed == args.seeds[0] or NETWORKS[name][0] == "m2ost":  # ridge has no seed
                rows += rows_of(name, panel, sections, out=args.out, epochs=args.epochs, seed=seed)
                print(f"{name}, seed {seed}: done", flush=True)
    print(table(rows))
    figures = {"epochs": args.epochs, "setting": SETTING, "size": SIZE, "torch": torch.__version__, "panel": panel}
    if args.keep:
        RESULTS.write_text(json.dumps({**figures, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def rows_of(
    name: str, panel: list[str], sections: dict[str, SpatialData], *, out: Path, epochs: int, seed: int
) -> list[dict[str, Any]]:
    """Train and score a network; predictors without a network come with the first one."""
    model, hparams = NETWORKS[name]
    key = f"{name.replace(' ', '_')}_{seed}" + (f"_{epochs}" if epochs != EPOCHS else "")
    training = [sections[section] for section in TRAIN]
    checkpoint = out / key / f"{model}.safetensors"
    if not checkpoint.exists():
        closed = stp.models.get_spec(model).closed_form
        stp.tl.train(
            training,
            model,
            panel=panel,
            out=out / key,
            mpp=None if closed else MPP,
            preset="recommended",
            hparams=hparams,
            config=None if closed else {**SETTING, "epochs": epochs, "seed": seed},
        )
    stp.tl.predict(sections[SCORED], checkpoint, key_added=key)
    found = stp.tl.evaluate([sections[SCORED]], key=key, train=training)
    first = name == next(iter(NETWORKS)) and seed == 0
    beside = [p for p in BESIDE if first and p in set(found.genes["predictor"])]
    return [
        row_of(f"{name}, seed {seed}", key, panel, found=found),
        *(row_of(p, p, panel, found=found) for p in beside),
    ]


def row_of(variant: str, predictor: str, panel: list[str], *, found: stp.tl.Evaluation) -> dict[str, Any]:
    """Means over all genes and over the first of the panel, which have the clearest pattern in the training sections."""
    own = found.genes.query("predictor == @predictor").set_index("gene")
    top = own.loc[panel[:N_TOP]]
    overall = found.summary.query("predictor == @predictor").iloc[0]
    scores = {
        "residual": own["residual"].mean(),
        "residual top": top["residual"].mean(),
        "partial": own["partial"].mean(),
        "partial low": overall["gene_partial_low"],
        "partial high": overall["gene_partial_high"],
        "partial top": top["partial"].mean(),
    }
    if predictor not in BESIDE:  # its partial correlation minus that of the baseline, ridge on rgb
        against = found.comparisons.query("predictor == 'ridge'").iloc[0]
        scores |= {"minus ridge": against["difference"]}
        scores |= {f"minus ridge {end}": against[end] for end in ("low", "high")}
    return {
        "variant": variant,
        "n_spots": int(overall["n_spots"]),
        **{k: float(v) for k, v in scores.items() if not math.isnan(v)},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [["predictor", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    lines += [[row["variant"], *(f"{row.get(column, math.nan):.3f}" for column in COLUMNS)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace(" nan ", " - ")


if __name__ == "__main__":
    main()
