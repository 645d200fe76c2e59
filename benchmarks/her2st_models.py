"""Train every model on the same real sections in the same way, and score them beside the baselines.

    python benchmarks/her2st_models.py --panel m2ost_her2.txt --out runs/models
    python benchmarks/her2st_models.py --page runs/models/figures.json  # puts the table into docs/benchmarks.md

The sections are those of benchmarks/her2st.py: C2 to C5 of one patient train, C6 of the same patient chooses the epoch, B4 of
another patient is looked at only at the end. All start from random weights. A model that is in the file of figures
already is not trained again, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

import st_predict as stp

if TYPE_CHECKING:
    from spatialdata import SpatialData

TRAIN, SAME_PATIENT, OTHER_PATIENT = ["C2", "C3", "C4", "C5"], "C6", "B4"
MPP = 0.688  # of these scans, from the pitch of their spots
CELL_MPP = 1.0  # iStar's 0.5 is finer than they are; its cells are 16 um wide then
SCORES = {"gene_pearson": "gene PCC", "gene_spearman": "gene Spearman", "spot_pearson": "spot PCC", "spot_rmse": "RMSE"}
ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "her2st" / "models.json"
BASELINES = {
    "section_mean": "mean of the section itself",
    "global_mean": "mean of the training sections",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panel", help="file with a gene a line, or a number of genes to select")
    parser.add_argument("--out", type=Path, help="folder for checkpoints and figures")
    parser.add_argument("--page", type=Path, help="put these figures into the documentation, and train nothing")
    parser.add_argument("--models", nargs="*", default=stp.models.list_models())
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=96)
    args = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    if args.page is not None:
        publish(json.loads(args.page.read_text()))
        return
    if args.panel is None or args.out is None:
        parser.error("--panel and --out are needed to train")
    sections = stp.datasets.her2st([*TRAIN, SAME_PATIENT, OTHER_PATIENT])
    file = args.out / "figures.json"
    figures = json.loads(file.read_text()) if file.exists() else {"rows": []}
    figures |= {"epochs": args.epochs, "batch": args.batch_size, "torch": torch.__version__}
    for name in args.models:
        if name in {row["variant"] for row in figures["rows"]}:
            continue
        figures["rows"] += rows_of(name, sections, args)
        file.write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures["rows"][-1]), flush=True)


def rows_of(name: str, sections: dict[str, SpatialData], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and score a model; the constants come with the model called mean."""
    start = time.perf_counter()
    spec, training = stp.models.get_spec(name), [sections[s] for s in TRAIN]
    epochs = args.epochs
    if spec.scope == "section":  # a step of the optimiser is a section: as many steps as the others have
        epochs *= round(sum(s["table"].n_obs for s in training) / args.batch_size / len(training))
    result = stp.tl.train(
        training,
        name,
        panel=int(args.panel) if args.panel.isdigit() else stp.pp.read_panel(args.panel),
        out=args.out / name,
        validation=[sections[SAME_PATIENT]],
        allow_shared=[SAME_PATIENT[0]],
        preset="paper",
        mpp={"crops": MPP, "cells": CELL_MPP}.get(spec.reads(spec.hparams).kind),
        hparams={"size": spec.hparams["size"]} if spec.paper.hparams else None,  # crops of 224 px take hours here
        config={"epochs": epochs, "batch_size": args.batch_size},
    )
    minutes = (time.perf_counter() - start) / 60
    held_out = [sections[s] for s in (SAME_PATIENT, OTHER_PATIENT)]
    for sdata in held_out:
        stp.tl.predict(sdata, result.checkpoint)
    key = f"pred_{name}"
    evaluation = stp.tl.evaluate(held_out, key=key, train=training if name == "mean" else None, min_counts=0)
    best = result.card.training["best"].get("epoch", 0)
    rows = []
    both = evaluation.summary.merge(
        evaluation.paper, on=["section", "predictor", "n_spots", "gene_pearson"], how="right"
    )
    for predictor, scores in both.groupby("predictor", sort=False):
        if predictor != key and (name != "mean" or predictor == "ridge"):  # which is a model of its own
            continue
        own = predictor == key
        row: dict[str, Any] = {"variant": name if own else predictor}
        if own and not spec.closed_form:
            row["best epoch"] = int(best) + 1
        row["minutes"] = minutes if own else 0.0
        for section, values in scores.set_index("section").iterrows():
            row |= {f"{section} {score}": values[score] for score in SCORES}
        rows.append(row)
    return rows


def publish(figures: dict[str, Any]) -> None:
    """Keep the figures and write the table."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")


def fill(page: str, figures: dict[str, Any]) -> str:
    """Replace what stands between the marks."""
    sections = (SAME_PATIENT, OTHER_PATIENT)
    head = ["model", "parameters, M", *(f"{section} {name}" for section in sections for name in SCORES.values())]
    sizes = stp.models.table()["params"]
    lines = [head, ["---"] * len(head)]
    rows = {row["variant"]: row for row in figures["rows"]}
    shown = {*rows, *stp.models.list_models()} - {*BASELINES, "patient_mean", "mean"}
    for name in sorted(shown) + list(BASELINES):
        size = sizes.get(name)
        scores = [f"{section} {score}" for section in sections for score in SCORES]
        cells = [f"{rows[name][score]:.3f}" if name in rows else "not run" for score in scores]
        lines.append(
            [BASELINES.get(name, f"`{name}`"), "" if size is None or size is pd.NA else f"{size / 1e6:.1f}", *cells]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines).replace(" nan ", " undefined ")
    pattern = re.compile(r"(<!-- models -->\n).*?(<!-- end of models -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", page)


if __name__ == "__main__":
    main()
