"""TRIPLEX against its target encoder alone, on simulated sections with programmes near and far.

    python benchmarks/triplex_simulated.py --out triplex.json [--quick]

Each seed simulates four patients of one section; three train, the fourth is scored. Two genes in five depend on the tissue inside the spot
(``nuclei``), two in five on its surroundings (``region``). Both networks have the same small ResNet18 on crops of 128 um, see each spot once
per epoch, and keep the last epoch; TRIPLEX reads the features ``rgb`` of 5 x 5 tiles beside. The score is the mean over genes of the
correlation with the expected log expression of the simulation; the interval is Student's, over seeds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _measure import write_json
from scipy import stats

import st_predict as stp

SEEDS = (0, 1, 2)
ARCH = {"arch": "resnet18", "size": 64, "arch_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64]}}
SIZES = {"dim": 64, "depths": [1, 2, 1], "heads": [4, 4, 4], "ratios": [2, 2, 1], "drops": [0.1, 0.1, 0.1]}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "target encoder alone": ("resnet50", ARCH),
    "triplex": ("triplex", {**ARCH, **SIZES, "encoder": "rgb"}),
}
CONFIG = {"lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.05, "schedule": "cosine", "clip": 1.0}
MPP = 2.0  # of crops; the image has half of it
PROGRAMMES = ("nuclei", "region")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch on small sections, to see that it runs")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, help="JSON file for what was measured")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    scores = [measure(seed, args) for seed in SEEDS]
    rows = [{"variant": name, **{p: mean_of(scores, name, p) for p in PROGRAMMES}} for name in NETWORKS]
    difference = {
        p: interval([one["triplex", p] - one["target encoder alone", p] for one in scores]) for p in PROGRAMMES
    }
    print("Correlation with the expected log expression, mean of seeds")
    for row in rows:
        print(f"{row['variant']:20s}  " + "  ".join(f"{p} {row[p]:.3f}" for p in PROGRAMMES))
    for programme, (mean, low, high) in difference.items():
        print(f"{programme}: triplex is better by {mean:.3f} (95 % interval {low:.3f} to {high:.3f})")
    if args.out:
        each = [{f"{name}, {programme}": score for (name, programme), score in one.items()} for one in scores]
        write_json(args.out, rows=rows, difference=difference, seeds=each, epochs=args.epochs)


def measure(seed: int, args: argparse.Namespace) -> dict[tuple[str, str], float]:
    """Score both networks on the fourth patient."""
    side = 800 if args.quick else 1600
    simulation = stp.datasets.simulate(4, 1, n_genes=20, shape=(side, side), seed=seed)
    *training, scored = simulation.sections.values()
    *_, truth = simulation.truth.values()
    found = {}
    for name, (model, hparams) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            result = stp.tl.train(
                training,
                model,
                panel=list(simulation.genes.index),
                out=folder,
                preset="recommended",
                mpp=MPP,
                hparams=hparams,
                config={**CONFIG, "epochs": 1 if args.quick else args.epochs, "seed": seed},
            )
            stp.tl.predict(scored, result, key_added="pred")
        predicted = stp.get.frame(scored, "pred")
        expected = truth.log_rate.loc[predicted.index, predicted.columns]
        each = stp.metrics.pearson(predicted.to_numpy(), expected.to_numpy(), axis=0)
        for programme in PROGRAMMES:
            own = simulation.genes.loc[predicted.columns, "programme"] == programme
            found[name, programme] = float(np.mean(each[own]))
    return found


def mean_of(scores: list[dict[tuple[str, str], float]], name: str, programme: str) -> float:
    return float(np.mean([one[name, programme] for one in scores]))


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t over seeds."""
    mean, error = np.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error)
    return float(mean), float(low), float(high)


if __name__ == "__main__":
    main()
