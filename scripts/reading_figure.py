"""Draw the figure of docs/concepts/scores.md from the stored scores of the shipped weights.

python scripts/reading_figure.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
SCORES = ROOT / "benchmarks" / "results" / "her2st" / "weights.json"
PICTURE = ROOT / "docs" / "_static" / "her2st_reading.png"
SECTIONS = {"C6": "C6, the training patient", "B4": "B4, another patient"}
BARS = {
    ("m2ost", "position"): ("position only, no image", "0.75"),
    ("m2ost", "ridge"): ("ridge on colours and textures", "0.75"),
    ("m2ost", "pred_m2ost"): ("m2ost", "C0"),
    ("ridge-effnet", "pred_ridge"): ("ridge-effnet", "C0"),
    ("m2ost", "neighbours"): ("measured neighbours", "0.75"),
}


def main() -> None:
    """Write the picture."""
    rows = {
        (row["weights"], row["section"], row["predictor"]): row
        for row in json.loads(SCORES.read_text(encoding="utf-8"))
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
    for ax, (section, title) in zip(axes, SECTIONS.items(), strict=True):
        for place, ((weights, predictor), (_, colour)) in enumerate(BARS.items()):
            row = rows[weights, section, predictor]
            score = row["gene_partial"]
            error = [[score - row["gene_partial_low"]], [row["gene_partial_high"] - score]]
            ax.barh(place, score, xerr=error, color=colour, ecolor="0.3", capsize=3)
        ceiling = rows["m2ost", section, "ceiling"]["gene_partial"]
        ax.axvline(ceiling, color="C3", linestyle="--")
        ax.text(ceiling - 0.01, len(BARS) - 1, f"noise ceiling {ceiling:.3f}", color="C3", ha="right", va="center")
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set(title=title, xlabel="partial correlation, mean over genes", xlim=(-0.05, 0.72))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(BARS)), [label for label, _ in BARS.values()])
    figure.savefig(PICTURE, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
