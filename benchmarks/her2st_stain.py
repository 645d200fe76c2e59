"""Stain normalisation on real sections: pictures, and scores with and without it.

    python benchmarks/her2st_stain.py --out runs/stain
    python benchmarks/her2st_stain.py --out runs/stain --keep  # also into benchmarks/results, docs/_static and the page

C2 to C5 of one patient (HER2-positive breast cancer, Andersson et al. 2021) train ridge regression of rank 8 on EfficientNet-Lite0 in three
fields of view; C6 of the same patient and B4 of another one are scored. Nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import st_predict as stp

if TYPE_CHECKING:
    from spatialdata import SpatialData

TRAIN, SCORED = ["C2", "C3", "C4", "C5"], ["C6", "B4"]
MPP, N_GENES = 0.688, 250
HPARAMS = {"encoder": "efficientnet_lite0", "fields": [96, 192, 384], "rank": 8}
METHODS = (None, "macenko", "reinhard")
SCORES = ("gene_partial", "gene_partial_low", "gene_partial_high", "gene_residual")
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "her2st" / "stain.json", ROOT / "docs" / "how-to" / "stain.md"
PICTURE = ROOT / "docs" / "_static" / "her2st_stain.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, scores and the picture")
    parser.add_argument("--keep", action="store_true", help="put scores and picture into the project")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    sections = stp.datasets.her2st([*TRAIN, *SCORED])
    args.out.mkdir(parents=True, exist_ok=True)
    draw(sections, args.out / PICTURE.name)
    panel = stp.pp.select_panel([sections[name] for name in TRAIN], n_genes=N_GENES, method="spatial")
    rows = [row for method in METHODS for row in rows_of(method, panel, sections, args.out)]
    (args.out / RESULTS.name).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if args.keep:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        PICTURE.write_bytes((args.out / PICTURE.name).read_bytes())
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


def rows_of(method: str | None, panel: list[str], sections: dict[str, SpatialData], out: Path) -> list[dict[str, Any]]:
    """Train, unless the checkpoint is there, and score."""
    folder = out / str(method)
    checkpoint = folder / "ridge.safetensors"
    if not checkpoint.exists():
        training = [sections[name] for name in TRAIN]
        stp.tl.train(training, "ridge", panel=panel, out=folder, mpp=MPP, hparams=HPARAMS, stain=method)
    rows = []
    for name in SCORED:
        stp.tl.predict(sections[name], checkpoint, key_added="stain")
        found = stp.tl.evaluate(sections[name], key="stain", missing="drop")
        summary = found.summary.query("predictor == 'stain'").iloc[0]
        row = {"stain": method, "section": name, **{score: round(float(summary[score]), 4) for score in SCORES}}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def draw(sections: dict[str, SpatialData], path: Path) -> None:
    """Draw a part of C2, of B4, and of B4 in the colours of C2 by each method."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    from st_predict._stain import StainMap
    from st_predict.io import open_pyramid

    parts = {name: part_of(open_pyramid(sections[name])) for name in ("C2", "B4")}
    shown = {"C2": parts["C2"], "B4": parts["B4"]}
    for method in ("macenko", "reinhard"):
        target, source = (stp.pp.fit_stain(sections[name], method) for name in ("C2", "B4"))
        shown[f"B4 as C2, {method}"] = StainMap.between(source, target)(parts["B4"])
    figure, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown), 3.3), layout="constrained")
    for axis, (title, pixels) in zip(axes, shown.items(), strict=True):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 88})
    plt.close(figure)


def part_of(reader: Any, side: int = 1600) -> Any:
    """The middle of an image."""
    height, width = reader.level_shapes[0]
    return reader.read((width - side) // 2, (height - side) // 2, side, side, level=0)


def fill(page: str, rows: list[dict[str, Any]]) -> str:
    """Replace what stands between the marks."""
    pattern = re.compile(r"(<!-- stain -->\n).*?(<!-- end of stain -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table(rows)}\n{match[2]}", page)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row per method, both sections."""
    lines = [["stain", *(f"{name}: {column}" for name in SCORED for column in ("partial", "interval", "residual"))]]
    lines.append(["---"] * len(lines[0]))
    for method in METHODS:
        line = ["as it is" if method is None else method]
        for name in SCORED:
            (row,) = (r for r in rows if r["stain"] == method and r["section"] == name)
            line += [f"{row['gene_partial']:.3f}"]
            line += [f"{row['gene_partial_low']:.2f} to {row['gene_partial_high']:.2f}", f"{row['gene_residual']:.3f}"]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
