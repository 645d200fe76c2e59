"""Train every model on the same real sections in the same way, and score them beside the baselines.

    python benchmarks/her2st_models.py --panel m2ost_her2.txt --out runs/models
    python benchmarks/report.py runs/models/her2st_models.json

The sections are those of benchmarks/her2st.py: C2 to C5 of one patient train, C6 of the same patient chooses the epoch, B4 of
another patient is looked at only at the end. All start from random weights. A model that is in the file of figures
already is not trained again, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import st_predict as stp

if TYPE_CHECKING:
    from spatialdata import SpatialData

TRAIN, SAME_PATIENT, OTHER_PATIENT = ["C2", "C3", "C4", "C5"], "C6", "B4"
MPP = 0.688  # of these scans, from the pitch of their spots
SCORES = ["gene_pearson", "gene_spearman", "spot_pearson", "spot_rmse"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panel", required=True, help="file with a gene a line, or a number of genes to select")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and figures")
    parser.add_argument("--models", nargs="*", default=stp.models.list_models())
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=96)
    args = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    sections = stp.datasets.her2st([*TRAIN, SAME_PATIENT, OTHER_PATIENT])
    file = args.out / "her2st_models.json"
    figures = json.loads(file.read_text()) if file.exists() else {"rows": []}
    figures["machine"] = {"cores": torch.get_num_threads()}
    for name in args.models:
        if name in {row["variant"] for row in figures["rows"]}:
            continue
        figures["rows"] += rows_of(name, sections, args)
        file.write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures["rows"][-1]), flush=True)


def rows_of(name: str, sections: dict[str, SpatialData], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and score a model; the constants and ridge on colours come with the model called mean."""
    start = time.perf_counter()
    result = stp.tl.train(
        [sections[s] for s in TRAIN],
        name,
        panel=int(args.panel) if args.panel.isdigit() else stp.pp.read_panel(args.panel),
        out=args.out / name,
        validation=[sections[SAME_PATIENT]],
        allow_shared=[SAME_PATIENT[0]],
        mpp=MPP if stp.models.get_spec(name).inputs == "crops" else None,
        config={"epochs": args.epochs, "batch_size": args.batch_size, "progress": False},
    )
    minutes = (time.perf_counter() - start) / 60
    held_out = [sections[s] for s in (SAME_PATIENT, OTHER_PATIENT)]
    for sdata in held_out:
        stp.tl.predict(sdata, result.checkpoint)
    key = f"pred_{name}"
    evaluation = stp.tl.evaluate(held_out, key=key, train=[sections[s] for s in TRAIN] if name == "mean" else None)
    best = result.card.training["best"].get("epoch", 0)
    rows = []
    for predictor, scores in evaluation.summary.groupby("predictor", sort=False):
        if predictor != key and name != "mean":
            continue
        own = predictor == key
        row: dict[str, Any] = {"variant": name if own else predictor}
        if own and not stp.models.get_spec(name).closed_form:
            row |= {"epochs": args.epochs, "batch": args.batch_size, "best epoch": int(best) + 1}
        row["minutes"] = minutes if own else 0.0
        for section, values in scores.set_index("section").iterrows():
            row |= {f"{section} {score}": values[score] for score in SCORES}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
