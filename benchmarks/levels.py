"""A small M2OST without some of its levels or one of its parts, against the whole, on simulated patients.

    python benchmarks/levels.py --out levels.json
    python benchmarks/levels.py --out runs/levels.json --work runs/levels --keep  # also into benchmarks/results and the page
    python benchmarks/levels.py --quick --out levels.json

The networks are from Tables 1 and 2 of the paper. Each seed simulates patients of one section, with genes that depend on the tissue inside
the spot (``spot``), on that outside the finest crop (``near``, ``far``) and on both together (``cross``). Depth follows cellularity. Some
patients train, the others are scored; nothing is chosen, the last epoch is kept. The score is the correlation with the expected log expression
over the spots of a section, mean over genes and sections. Intervals are percentiles of a bootstrap that draws blocks of spots within each
scored section of each seed, the same for all networks. With ``--work``, networks that were trained are not trained again.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import write_json

import st_predict as stp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from st_predict.datasets import Simulation

SEEDS = (0, 1, 2)
N_TRAIN, N_SCORED = 8, 3
N_GENES, SIDE, MEAN_COUNT = 60, 2400, 20.0
PROGRAMMES = ("nuclei", "region", "cross")
KINDS = ("spot", "near", "far", "cross")
WHOLE = "whole"
LEVELS: dict[str, dict[str, Any]] = {
    "level 0": {"levels": (0,)},
    "level 1": {"levels": (1,)},
    "level 2": {"levels": (2,)},
    "levels 0, 1": {"levels": (0, 1)},
    "levels 0, 2": {"levels": (0, 2)},
    "levels 1, 2": {"levels": (1, 2)},
}
PARTS: dict[str, dict[str, Any]] = {
    "patches of one size (no DPE)": {"dpe": False},
    "attention on joined channels (no ITMM, no DPE)": {"dpe": False, "itmm": "joint"},
    "no attention between levels (no CTMM)": {"ctmm": False},
    "MLP for gates (no CCMM, no DPE)": {"dpe": False, "ccmm": "ffn"},
    "token means for class tokens": {"pool": "mean"},
}
NETWORKS: dict[str, dict[str, Any]] = {WHOLE: {}, **LEVELS, **PARTS}
SIZES = {"size": 32, "patch": 8, "dim": 64, "depth": 2, "heads": 2, "head_dim": 32, "mlp_dim": 64}
CONFIG = {"lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.05, "schedule": "cosine", "clip": 1.0, "batch_size": 64}
EPOCHS = 40
MPP = 7.0  # of crops: 32 px are 224 um, as the finest crop that the simulation means
BLOCK_UM, N_DRAWS = 600.0, 1000
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "simulated" / "levels.json", ROOT / "docs" / "benchmarks.md"

Scores = dict[str, "NDArray[np.float64]"]  # per kind of gene: of the data, then of each draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch on small sections, to see that it runs")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, help="JSON file for what was measured")
    parser.add_argument("--work", type=Path, help="folder for the scores of finished networks, which are not run again")
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
    """Train and score the networks for each seed."""
    seeds = args.seeds[:1] if args.quick else args.seeds
    each: dict[str, list[Scores]] = {network: [] for network in args.networks}
    for seed in seeds:
        simulate = cache(partial(simulation_of, seed, quick=args.quick))
        for network, found in each.items():
            found.append(scores_of(network, seed, simulate, args))
            shown = {kind: round(float(draws[0]), 4) for kind, draws in found[-1].items()}
            print(json.dumps({"seed": seed, "network": network, **shown}), flush=True)
    mean = {
        name: {kind: np.mean([one[kind] for one in found], axis=0) for kind in KINDS} for name, found in each.items()
    }
    rows = [row_of(mean, network, kind) for network in mean for kind in KINDS]
    return {"rows": rows, "seeds": len(seeds), "epochs": args.epochs}


def simulation_of(seed: int, *, quick: bool) -> Simulation:
    n_train, n_scored, side = (2, 1, 960) if quick else (N_TRAIN, N_SCORED, SIDE)
    return stp.datasets.simulate(
        n_train + n_scored,
        1,
        n_genes=N_GENES,
        shape=(side, side),
        mean_count=MEAN_COUNT,
        programmes=PROGRAMMES,
        depth="cellularity",
        seed=seed,
    )


def scores_of(network: str, seed: int, simulate: Callable[[], Simulation], args: argparse.Namespace) -> Scores:
    """Draws of the mean scores of a network, from the working folder if they are there."""
    kept = args.work and args.work / f"{seed}-{re.sub(r'[^a-z0-9]+', '-', network.lower()).strip('-')}.npy"
    if kept and kept.exists():
        return dict(zip(KINDS, np.load(kept), strict=True))
    simulation, n_train = simulate(), 2 if args.quick else N_TRAIN
    expected = {name: simulation.truth[name].log_rate for name in list(simulation.sections)[n_train:]}
    predicted = run(simulation, network, list(expected), seed=seed, epochs=1 if args.quick else args.epochs)
    found = bootstrap(expected, predicted, kinds_of(simulation), seed)
    if kept:
        args.work.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.array([found[kind] for kind in KINDS]))
    return found


def row_of(mean: dict[str, Scores], network: str, kind: str) -> dict[str, Any]:
    """Score, difference from the whole network, and its interval; the first draw is the data itself."""
    score = mean[network][kind]
    row = {"network": network, "genes": kind, "score": round(float(score[0]), 4)}
    if network == WHOLE or WHOLE not in mean:
        return row
    difference = score - mean[WHOLE][kind]
    low, high = np.quantile(difference[1:], [0.025, 0.975])
    figures = {"difference": difference[0], "low": low, "high": high}
    return {**row, **{name: round(float(value), 4) for name, value in figures.items()}}


def run(
    simulation: Simulation, network: str, scored: Sequence[str], *, seed: int, epochs: int
) -> dict[str, pd.DataFrame]:
    """Train a network on the other patients and predict ``scored``."""
    with tempfile.TemporaryDirectory() as folder:
        result = stp.tl.train(
            [section for name, section in simulation.sections.items() if name not in scored],
            "m2ost",
            panel=list(simulation.genes.index),
            out=folder,
            mpp=MPP,
            hparams={**SIZES, **NETWORKS[network]},
            config={**CONFIG, "epochs": epochs, "seed": seed},
        )
        for name in scored:
            stp.tl.predict(simulation.sections[name], result, key_added="pred")
    return {name: stp.get.frame(simulation.sections[name], "pred") for name in scored}


def kinds_of(simulation: Simulation) -> pd.Series:
    """What each gene depends on."""
    covariate = simulation.genes["covariate"]
    return covariate.str.split("_").str[0].mask(covariate.str.contains(":"), "cross").replace("", "none")


def bootstrap(
    expected: dict[str, pd.DataFrame], predicted: dict[str, pd.DataFrame], kinds: pd.Series, seed: int
) -> Scores:
    """Mean score per kind of gene: first of all spots, then of each draw of blocks, which depend only on the seed."""
    found: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in KINDS}
    rng = np.random.default_rng(seed)
    for name, truth in expected.items():
        weights = draw_weights(rng, block_of(truth.index))
        frame = predicted[name].loc[truth.index, truth.columns]
        scores = weighted_pearson(frame.to_numpy(), truth.to_numpy(), weights)
        for kind in KINDS:
            found[kind].append(np.nanmean(scores[:, (kinds == kind).to_numpy()], axis=1))
    return {kind: np.mean(values, axis=0) for kind, values in found.items()}


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
    """Markdown: a row per network, a column per kind of gene."""
    lines = [["network", *KINDS], ["---"] * (1 + len(KINDS))]
    networks = dict.fromkeys(row["network"] for row in figures["rows"])
    cells = {(row["network"], row["genes"]): cell_of(row) for row in figures["rows"]}
    lines += [[network, *(cells[network, kind] for kind in KINDS)] for network in networks]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell_of(row: dict[str, Any]) -> str:
    if "difference" not in row:
        return f"{row['score']:.3f}"
    return f"{row['score']:.3f}, {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def fill(page: str, figures: dict[str, Any]) -> str:
    """Replace what stands between the marks."""
    pattern = re.compile(r"(<!-- levels -->\n).*?(<!-- end of levels -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table(figures)}\n{match[2]}", page)


if __name__ == "__main__":
    main()
