"""A small M2OST with three levels against the same with one level, on simulated patients.

    python benchmarks/levels.py --out levels.json
    python benchmarks/levels.py --out runs/levels.json --keep  # also into benchmarks/results and the page
    python benchmarks/levels.py --quick --out levels.json

Each seed simulates patients of one section, with genes that depend on the tissue inside the spot (``spot``), on that outside the finest crop
(``near``, ``far``) and on both together (``cross``). Depth follows cellularity. Some patients train, the others are scored; nothing is chosen,
the last epoch is kept. The score is the correlation with the expected log expression over the spots of a section, mean over genes and sections.
Intervals are percentiles of a bootstrap that draws blocks of spots within each scored section of each seed, the same for both networks.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import write_json

import st_predict as stp

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SEEDS = (0, 1, 2)
N_TRAIN, N_SCORED = 8, 3
N_GENES, SIDE, MEAN_COUNT = 60, 2400, 20.0
PROGRAMMES = ("nuclei", "region", "cross")
KINDS = ("spot", "near", "far", "cross")
NETWORKS: dict[str, dict[str, Any]] = {"one level": {"levels": (0,)}, "three levels": {"levels": (0, 1, 2)}}
SIZES = {"size": 32, "patch": 8, "dim": 64, "depth": 2, "heads": 2, "head_dim": 32, "mlp_dim": 64}
CONFIG = {"lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.05, "schedule": "cosine", "clip": 1.0, "batch_size": 64}
EPOCHS = 40
MPP = 7.0  # of crops: 32 px are 224 um, as the finest crop that the simulation means
BLOCK_UM, N_DRAWS = 600.0, 1000
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "simulated" / "levels.json", ROOT / "docs" / "benchmarks.md"

Scores = dict[tuple[str, str], "NDArray[np.float64]"]  # per network and kind of gene: of the data, then of each draw
Scored = dict[str, "tuple[pd.DataFrame, dict[str, pd.DataFrame]]"]  # per section: expected, predicted per network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch on small sections, to see that it runs")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, help="JSON file for what was measured")
    parser.add_argument("--work", type=Path, help="folder for finished seeds, which are not run again")
    parser.add_argument("--keep", action="store_true", help="put the scores into the project")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    figures = measure(args)
    print(table(figures))
    if args.out:
        write_json(args.out, **figures)
    if args.keep:
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, **figures)
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score both networks for each seed."""
    each, seeds = [], []
    for seed in args.seeds[:1] if args.quick else args.seeds:
        each.append(scores_of(seed, args))
        seeds.append({f"{name}, {kind}": round(float(found[0]), 4) for (name, kind), found in each[-1].items()})
        print(json.dumps({"seed": seed, **seeds[-1]}), flush=True)
    mean = {key: np.mean([one[key] for one in each], axis=0) for key in each[0]}
    rows = [{"variant": kind, **row_of(mean, kind)} for kind in KINDS]
    return {"rows": rows, "seeds": seeds, "epochs": args.epochs}


def scores_of(seed: int, args: argparse.Namespace) -> Scores:
    """Draws of the mean scores of a seed, from the working folder if they are there."""
    keys = [(network, kind) for network in NETWORKS for kind in KINDS]
    kept = args.work and args.work / f"{seed}.npy"
    if kept and kept.exists():
        return dict(zip(keys, np.load(kept), strict=True))
    scored, kinds = run(seed, quick=args.quick, epochs=1 if args.quick else args.epochs)
    found = bootstrap(scored, kinds, seed)
    if kept:
        args.work.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.array([found[key] for key in keys]))
    return found


def row_of(mean: Scores, kind: str) -> dict[str, float]:
    """Scores of both networks, their difference, and its interval; the first draw is the data itself."""
    one, three = (mean[name, kind] for name in NETWORKS)
    low, high = np.quantile((three - one)[1:], [0.025, 0.975])
    figures = {"one": one[0], "three": three[0], "difference": three[0] - one[0], "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in figures.items()}


def run(seed: int, *, quick: bool, epochs: int) -> tuple[Scored, pd.Series]:
    """Train both networks on the first patients and predict the others; also return the kind of each gene."""
    n_train, n_scored, side = (2, 1, 960) if quick else (N_TRAIN, N_SCORED, SIDE)
    simulation = stp.datasets.simulate(
        n_train + n_scored,
        1,
        n_genes=N_GENES,
        shape=(side, side),
        mean_count=MEAN_COUNT,
        programmes=PROGRAMMES,
        depth="cellularity",
        seed=seed,
    )
    training = list(simulation.sections.values())[:n_train]
    names = list(simulation.sections)[n_train:]
    scored: Scored = {name: (simulation.truth[name].log_rate, {}) for name in names}
    for network, hparams in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            result = stp.tl.train(
                training,
                "m2ost",
                panel=list(simulation.genes.index),
                out=folder,
                mpp=MPP,
                hparams={**SIZES, **hparams},
                config={**CONFIG, "epochs": epochs, "seed": seed},
            )
            for name in names:
                section = simulation.sections[name]
                stp.tl.predict(section, result, key_added="pred")
                scored[name][1][network] = stp.get.frame(section, "pred")
    covariate = simulation.genes["covariate"]
    kinds = covariate.str.split("_").str[0].mask(covariate.str.contains(":"), "cross").replace("", "none")
    return scored, kinds


def bootstrap(scored: Scored, kinds: pd.Series, seed: int) -> Scores:
    """Mean score per network and kind of gene: first of all spots, then of each draw of blocks."""
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = {(n, k): [] for n in NETWORKS for k in KINDS}
    rng = np.random.default_rng(seed)
    for expected, predicted in scored.values():
        weights = draw_weights(rng, block_of(expected.index))
        for network, frame in predicted.items():
            scores = weighted_pearson(
                frame.loc[expected.index, expected.columns].to_numpy(), expected.to_numpy(), weights
            )
            for kind in KINDS:
                found[network, kind].append(np.nanmean(scores[:, (kinds == kind).to_numpy()], axis=1))
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def block_of(names: pd.Index) -> NDArray[np.intp]:
    """Number of the block of each spot, whose name ends with its column and row on a lattice of 200 um."""
    place = names.str.extract(r"_(\d+)x(\d+)$").to_numpy(np.int64) * 200.0 // BLOCK_UM
    return np.unique(place, axis=0, return_inverse=True)[1].ravel()


def draw_weights(rng: np.random.Generator, block: NDArray[np.intp]) -> NDArray[np.float64]:
    """How often each spot is drawn, ``(1 + n_draws, n_spots)``; once each in the first row."""
    n = block.max() + 1
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS)
    return np.vstack([np.ones(len(block)), drawn[:, block]])


def weighted_pearson(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correlation per draw and gene, ``(n_draws, n_genes)``; NaN for genes that are constant."""
    share = weights / weights.sum(axis=1, keepdims=True)
    mean_a, mean_b = share @ a, share @ b
    covariance = share @ (a * b) - mean_a * mean_b
    variances = (share @ a**2 - mean_a**2, share @ b**2 - mean_b**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.minimum(*variances) > 1e-10, covariance / np.sqrt(variances[0] * variances[1]), np.nan)


def table(figures: dict[str, Any]) -> str:
    """Markdown: a row per kind of gene."""
    lines = [["genes", "one level", "three levels", "difference", "95 % interval"], ["---"] * 5]
    for row in figures["rows"]:
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(
            [row["variant"], f"{row['one']:.3f}", f"{row['three']:.3f}", f"{row['difference']:+.3f}", interval]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(page: str, figures: dict[str, Any]) -> str:
    """Replace what stands between the marks."""
    pattern = re.compile(r"(<!-- levels -->\n).*?(<!-- end of levels -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table(figures)}\n{match[2]}", page)


if __name__ == "__main__":
    main()
