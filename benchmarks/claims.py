"""Claims of the M2OST paper beside the figures found here, with intervals and whether each claim holds.

    python benchmarks/claims.py --page  # puts the table into docs/benchmarks.md

Reads what other benchmarks kept; each row names the command that made its figures. The paper's figures are from its Tables 1 to 3.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import st_predict as stp

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results"
LEVELS = "`benchmarks/levels.py`"
PROTOCOLS = "`benchmarks/protocols.py`"
SPEED = "`benchmarks/istar_speed.py`"
TABLE = "`st_predict.models.table()`"
COMPARED = ("bleep", "convnext", "crossvit", "deepspace", "hist2st", "histogene", "resnet50", "stnet", "swin", "vit")
"""Methods of Table 3 but iStar, most of which is its encoder."""
PAPER_SCORE = 0.4417  # spot PCC of M2OST on HER2+, Table 3
PARTS = {
    "patches of one size (no DPE)": "Patches of several sizes (DPE) help",
    "attention on joined channels (no ITMM, no DPE)": "DPE and attention per level (ITMM) help",
    "no attention between levels (no CTMM)": "Attention between levels (CTMM) helps",
    "MLP for gates (no CCMM, no DPE)": "DPE and gates on channels (CCMM) help",
}
"""Networks of Table 1 and what each is to show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A row: the paper's statement, the figure found here, and whether both agree."""

    claim: str
    paper: str
    found: str
    interval: str
    holds: str
    command: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    print(table())
    if args.page:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def claims() -> list[Claim]:
    """All rows, from the kept results."""
    levels = {(row["network"], row["genes"]): row for row in _json("simulated", "levels")["rows"]}
    return [*_sizes(), *_scores(), *_levels(levels), *_parts(levels), *_speed()]


def _json(folder: str, name: str) -> Any:
    return json.loads((RESULTS / folder / f"{name}.json").read_text(encoding="utf-8"))


def _sizes() -> list[Claim]:
    """Parameters and operations, counted."""
    models = stp.models.table()[["params", "gmacs"]]
    own, others = models.loc["m2ost"], models.loc[list(COMPARED)]
    smaller, cheaper = (sorted(others.index[others[what] < own[what]]) for what in ("params", "gmacs"))
    return [
        Claim(
            claim="6.81 million parameters, 2.24 G operations per spot",
            paper="6.81 M, 2.24 G",
            found=f"{own['params'] / 1e6:.2f} M, {own['gmacs']:.2f} G multiply-adds",
            interval="counted",
            holds="no: its counter leaves out positions and attention",
            command=TABLE,
        ),
        Claim(
            claim="Fewer parameters than every method compared",
            paper="6.81 M, next ST-Net 7.21 M",
            found=f"{own['params'] / 1e6:.2f} M; fewer: {_names(smaller)}",
            interval="counted",
            holds="no" if smaller else "yes",
            command=TABLE,
        ),
        Claim(
            claim="Fewer operations than every method compared",
            paper="2.24 G, next ST-Net 2.87 G",
            found=f"{own['gmacs']:.2f} G; fewer: {_names(cheaper)}",
            interval="counted",
            holds="no" if cheaper else "yes",
            command=TABLE,
        ),
    ]


def _names(models: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in models) or "none"


def _scores() -> list[Claim]:
    """The paper's score of M2OST, beside constants under the paper's own protocol."""
    table = pd.read_csv(RESULTS / "her2st" / "protocols.csv").set_index(["protocol", "model"])
    rows = []
    for model, name in (
        ("patient_mean", "the mean of the patient's training sections"),
        ("global_mean", "one constant"),
    ):
        own = table.loc[("m2ost-paper", model)]
        low, high = own["spot_pearson_low"], own["spot_pearson_high"]
        rows.append(
            Claim(
                claim=f"A spot PCC on HER2+ that shows learning from the image: above {name}",
                paper=f"{100 * PAPER_SCORE:.2f} %",
                found=f"{100 * own['spot_pearson']:.1f} % without an image",
                interval=f"{100 * low:.1f} to {100 * high:.1f}",
                holds="no" if high > PAPER_SCORE else "yes",
                command=PROTOCOLS,
            )
        )
    return rows


def _levels(rows: dict[tuple[str, str], dict[str, Any]]) -> list[Claim]:
    """Three levels against one, per kind of gene."""
    what = {
        "far": "genes that depend on tissue 224 to 448 um away",
        "near": "genes that depend on tissue 112 to 224 um away",
        "cross": "genes that depend on spot and surroundings together",
        "spot": "genes that depend on the spot itself",
    }
    return [
        _difference(rows["level 0", kind], f"Levels 1 and 2 help: {of}", paper="Table 2, all genes")
        for kind, of in what.items()
    ]


def _parts(rows: dict[tuple[str, str], dict[str, Any]]) -> list[Claim]:
    """The whole network against one without a part, on genes of both scales."""
    return [
        _difference(
            rows[name, "cross"],
            f"{claim}: genes that depend on spot and surroundings together",
            paper="Table 1, all genes",
        )
        for name, claim in PARTS.items()
    ]


def _difference(row: dict[str, Any], claim: str, *, paper: str) -> Claim:
    """A gain of the whole network is the negative difference of the other one."""
    gain, low, high = -row["difference"], -row["high"], -row["low"]
    holds = "yes" if low > 0 else "no, the opposite" if high < 0 else "not shown"
    return Claim(
        claim=claim,
        paper=paper,
        found=f"{gain:+.3f}, simulated",
        interval=f"{low:+.3f} to {high:+.3f}",
        holds=holds,
        command=LEVELS,
    )


def _speed() -> list[Claim]:
    """Time of iStar relative to M2OST, features included."""
    rows = [row for row in _json("simulated", "istar_speed")["rows"] if row["variant"] == "istar"]
    return [
        Claim(
            claim=f"100 times faster than iStar, spots {row['pitch']} apart",
            paper="100",
            found=f"{row['ratio']:.0f} times, on a CPU",
            interval=f"rounds differ by {100 * row['spread']:.0f} %",
            holds="yes" if row["ratio"] >= 100 else "no",
            command=SPEED,
        )
        for row in rows
    ]


def table() -> str:
    """Markdown: one row per claim."""
    lines = [["claim", "paper", "here", "95 % interval", "holds", "made by"], ["---"] * 6]
    lines += [[c.claim, c.paper, c.found, c.interval, c.holds, c.command] for c in claims()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(page: str) -> str:
    """Replace what stands between the marks."""
    pattern = re.compile(r"(<!-- claims -->\n).*?(<!-- end of claims -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", page)


if __name__ == "__main__":
    main()
