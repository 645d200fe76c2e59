"""Ridge regression on features of an encoder, by encoder, fields of view, neighbours and rank, on real sections.

    python benchmarks/her2st_features.py --out runs/features
    python benchmarks/her2st_features.py --out runs/features --keep  # also puts the figures into benchmarks/results
    python benchmarks/her2st_features.py --page  # puts the table into docs/how-to/features.md

Sections C2 to C5 of one patient (HER2-positive breast cancer, Andersson et al. 2021) train and choose a panel of 250 genes with a
spatial pattern; C6 of the same patient and B4 of another are scored. The list of configurations is fixed: none is chosen by these
scores. Intervals are over blocks of spots. Full rank for the 50 genes with the clearest pattern, and rank 8 for all.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import st_predict as stp
from st_predict import metrics

if TYPE_CHECKING:
    from spatialdata import SpatialData

TRAIN, SCORED = ["C2", "C3", "C4", "C5"], ["C6", "B4"]
N_GENES, N_TOP, MIN_COUNTS = 250, 50, 50
SPOTS_PER_BLOCK = 12
FOUR = {"fields": [112, 224, 448, 896], "neighbours": 8}
READINGS: dict[str, dict[str, Any]] = {
    "`rgb`": {"encoder": "rgb"},
    "`rgb`, neighbours": {"encoder": "rgb", "neighbours": 8},
    "`efficientnet_lite0`, last layer": {"encoder": "efficientnet_lite0", "features": "head"},
    "`efficientnet_lite0`": {"encoder": "efficientnet_lite0"},
    "`efficientnet_lite0`, four fields, neighbours": {"encoder": "efficientnet_lite0", **FOUR},
}
PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "features.md"
RESULTS = Path(__file__).parent / "results" / "her2st" / "features.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/features"), help="folder for checkpoints and figures")
    parser.add_argument("--page", action="store_true", help="only put the table into the page")
    parser.add_argument("--keep", action="store_true", help="put the figures into benchmarks/results")
    args = parser.parse_args()
    if args.page:
        write_page()
        return
    logging.basicConfig(level="WARNING", format="%(message)s")
    sections = stp.datasets.her2st([*TRAIN, *SCORED])
    panel = stp.pp.select_panel([sections[name] for name in TRAIN], n_genes=N_GENES, method="spatial")
    rows = []
    for name, reading in READINGS.items():
        for rank in (None, 8):
            rows += score(name, reading, rank, panel, sections=sections, out=args.out)
            print(table(rows[-len(SCORED) :]), flush=True)
    figures = {"panel": panel, "rows": rows}
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if args.keep:
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def write_page() -> None:
    """Put the table of the kept figures into the page."""
    shown = table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"])
    pattern = re.compile(r"(<!-- features -->\n).*?(<!-- end of features -->)", re.DOTALL)
    PAGE.write_text(pattern.sub(rf"\g<1>{shown}\n\g<2>", PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def score(
    name: str,
    reading: dict[str, Any],
    rank: int | None,
    panel: list[str],
    *,
    sections: dict[str, SpatialData],
    out: Path,
) -> list[dict[str, Any]]:
    """Train, unless the checkpoint is there, and score both sections."""
    folder = out / f"{name.replace('`', '').replace(', ', '-').replace(' ', '-')}-{rank or 'full'}"
    checkpoint = folder / "ridge.safetensors"
    if not checkpoint.exists():
        hparams = {**reading, "rank": rank}
        stp.tl.train([sections[n] for n in TRAIN], "ridge", panel=panel, out=folder, hparams=hparams)
    rows = []
    for section in SCORED:
        sdata = sections[section]
        stp.tl.predict(sdata, checkpoint)
        found = stp.tl.evaluate(sdata, missing="drop")
        own = found.genes.query("predictor == 'pred_ridge'").set_index("gene")
        genes = {"250": list(own.index), "top 50": [gene for gene in panel[:N_TOP] if gene in own.index]}
        summary = found.summary.query("predictor == 'pred_ridge'").iloc[0]
        row: dict[str, Any] = {"features": name, "rank": rank, "section": section, "n_spots": int(summary["n_spots"])}
        for which, members in genes.items():
            low, high = residual_interval(sdata, members, own)
            row[f"residual {which}"] = [float(own.loc[members, "residual"].mean()), low, high]
            row[f"partial {which}"] = float(own.loc[members, "partial"].mean())
        row["partial 250"] = [row["partial 250"], *map(float, summary[["gene_partial_low", "gene_partial_high"]])]
        rows.append(row)
    return rows


def residual_interval(sdata: SpatialData, genes: list[str], scored: Any) -> tuple[float, float]:
    """Return the interval over blocks of spots of the mean residual correlation; check that it is the one of `evaluate`."""
    table = sdata["table"]
    names = list(scored.index)
    counts = np.asarray(table[:, names].to_df(), dtype=np.float64)
    totals = np.asarray(table.X.sum(axis=1), dtype=np.float64).ravel()
    predicted = stp.get.frame(sdata, units="model")[names].to_numpy()
    kept = (counts.sum(axis=1) >= MIN_COUNTS) & np.isfinite(predicted).all(axis=1)
    counts, totals, predicted = counts[kept], totals[kept], predicted[kept]
    shares = counts.sum(axis=0) / totals.sum()
    residuals = stp.pp.pearson_residuals(counts, totals, shares, theta=100, clip=np.sqrt(len(counts)))
    columns = [names.index(gene) for gene in genes]
    found = metrics.pearson(predicted[:, columns], residuals[:, columns], axis=0)
    np.testing.assert_allclose(found, scored.loc[genes, "residual"], atol=1e-6)
    xy = np.asarray(table.obsm["spatial"])[kept]
    blocks = metrics.spatial_blocks(xy, len(xy) // SPOTS_PER_BLOCK)
    samples = metrics.bootstrap_pearson(predicted[:, columns], residuals[:, columns], blocks, seed=0)
    return metrics.percentile_interval(np.nanmean(samples, axis=1))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    scores = ("residual top 50", "residual 250", "partial top 50", "partial 250")
    lines = [["features", "rank", "section", *scores], ["---"] * 7]
    lines += [[r["features"], str(r["rank"] or "full"), r["section"], *(shown(r[s]) for s in scores)] for r in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(score: float | list[float]) -> str:
    if isinstance(score, float):
        return f"{score:.3f}"
    mean, low, high = score
    return f"{mean:.3f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
