"""Run a benchmark file, and keep its table: one row per model, and per group of genes (simulated sections) or folds (her2st).

    python benchmarks/compare.py benchmarks/configs/simulated.toml --out runs/simulated --keep
    python benchmarks/compare.py --page  # puts kept tables into docs/benchmarks.md

--keep writes benchmarks/results/compare/NAME.csv and the page. Run again, only cells without a result are done; the table is the same.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Literal

import pandas as pd

import st_predict as stp

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "compare"
GROUPS = {"nuclei": "the spot itself", "region": "its surroundings", "cross": "both together", "none": "nothing"}
"""What genes of a programme depend on."""

FOLDS = {"C-to-B": "B4, another patient (C trains)", "B-to-C": "C, another patient (B4 trains)"}
SAME = "C, another section of the patient"
"""Sections that are tested by the folds of her2st."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", help="file of the benchmark")
    parser.add_argument("--out", type=Path, help="folder of the results; by default the name of the file")
    parser.add_argument("--workers", type=int, help="number of processes; by default cells run in this one")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results and docs/benchmarks.md")
    parser.add_argument("--page", action="store_true", help="only write docs/benchmarks.md from kept tables")
    args = parser.parse_args()
    if args.config is not None:
        out = args.out or Path("runs") / args.config.stem
        table = summary_of(args.config, stp.cohort.run_benchmark(args.config, out=out, n_workers=args.workers))
        print(render(table))
        if args.keep:
            RESULTS.mkdir(parents=True, exist_ok=True)
            table.to_csv(RESULTS / f"{args.config.stem}.csv", index=False, float_format="%.6f", lineterminator="\n")
    if args.keep or args.page:
        write_page()


def summary_of(config: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Summary over patients; of simulated sections, for each group of genes, and of her2st over sections, for each kind of fold."""
    tables = tomllib.loads(config.read_text(encoding="utf-8"))
    if (genes := groups_of(tables["sections"])) is not None:
        return _by(table, table["gene"].map(genes), "genes depend on", unit="patient")
    if set(FOLDS) <= set(tables.get("folds", ())):
        return _by(table, table["fold"].map(FOLDS).fillna(SAME), "tested on", unit="section")
    return stp.cohort.summarize(table)


def _by(table: pd.DataFrame, groups: pd.Series, name: str, *, unit: Literal["patient", "section"]) -> pd.DataFrame:
    """Summarise each group of rows, whose name is in the column ``name``."""
    parts = [
        stp.cohort.summarize(rows, unit=unit).assign(**{name: group})
        for group, rows in table.groupby(groups, sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def groups_of(sections: dict[str, object]) -> pd.Series | None:
    """What each simulated gene depends on, which does not depend on the numbers of patients and sections."""
    if sections["source"] != "simulate":
        return None
    given = {name: sections[name] for name in ("n_genes", "programmes", "seed") if name in sections}
    genes = stp.datasets.simulate(1, 1, shape=(400, 400), **{"n_genes": 60, **given}).genes
    return genes["programme"].map(GROUPS)


def render(table: pd.DataFrame) -> str:
    """Rows for the page: mean partial correlation with its interval over patients or sections."""
    first = [name for name in ("genes depend on", "tested on") if name in table]
    columns = [*first, "model", "partial", "95 % interval", "sd of seeds", "ceiling", "mean rank", "p to the best"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table.to_dict("records"):
        interval = "-" if pd.isna(row["low"]) else f"{row['low']:z.3f} to {row['high']:z.3f}"
        numbers = [_number(row["mean"], 3), interval, _number(row["seed_sd"], 3), _number(row["ceiling"], 3)]
        numbers += [_number(row["mean_rank"], 1), _number(row["p_to_best"], 3)]
        lines.append("| " + " | ".join([*(row[name] for name in first), f"`{row['model']}`", *numbers]) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:z.{digits}f}"


def fill(page: str, name: str, table: pd.DataFrame) -> str:
    """Put a table between the marks of its name."""
    pattern = re.compile(rf"(<!-- compare {name} -->\n).*?(<!-- end of compare {name} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{render(table)}{found[2]}", page)


def write_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in sorted(RESULTS.glob("*.csv")):
        page = fill(page, path.stem, pd.read_csv(path))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
