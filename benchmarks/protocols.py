"""Predictors that see no image, on all 36 sections of her2st, under each protocol of the literature.

    python benchmarks/protocols.py --out runs/protocols --keep
    python benchmarks/protocols.py --page  # puts the kept table into docs/benchmarks.md

Whatever a method scores, it has to beat them. The counts and places of all sections are in ST_PREDICT_CACHE, or are downloaded. The pictures are
not needed: no predictor here reads pixels, and a blank picture of the same extent takes the place of each.
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation
from spatialdata.transformations import Sequence as Steps

import st_predict as stp
from st_predict._files import download, whole
from st_predict.datasets import _her2st

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict.cohort._protocols import ProtocolName

PREDICTORS = {
    "patient_mean": "mean of the patient's training sections",
    "global_mean": "mean of the training sections",
    "position": "position in the section",
    "section_mean": "mean of the section itself",
    "neighbours": "measured neighbours",
    "log_total": "log total count",
}
PANELS = {"lopo": 50}  # of 250 spatial genes; hardly more have a mean count of 1 in every training section
N_DRAWS = 2000
COARSE = 16  # pixels of a picture per pixel of the blank one
SCORES = {"spot_pearson": "spot PCC", "spot_rmse": "RMSE", "pearson": "gene PCC", "partial": "partial"}
ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "her2st" / "protocols.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/protocols"), help="folder of the results")
    parser.add_argument("--sections", nargs="+", help="sections; by default all 36")
    parser.add_argument("--protocols", nargs="+", choices=stp.cohort.list_protocols(), default=None)
    parser.add_argument("--workers", type=int, help="number of processes; by default one")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results and docs/benchmarks.md")
    parser.add_argument("--page", action="store_true", help="only write docs/benchmarks.md from the kept table")
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    if not args.page:
        found = measure(args)
        print(render(found))
        if args.keep:
            keep(found)
    if args.page or args.keep:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), pd.read_csv(RESULTS)), encoding="utf-8")


def keep(found: pd.DataFrame) -> None:
    """Write the table; protocols that were not run now stay as they are."""
    known = pd.read_csv(RESULTS) if RESULTS.exists() else found.iloc[:0]
    others = known[~known["protocol"].isin(found["protocol"])]
    whole = pd.concat([others, found]) if len(others) else found
    whole.sort_values("protocol", kind="stable").to_csv(RESULTS, index=False, float_format="%.5f", lineterminator="\n")


def measure(args: argparse.Namespace) -> pd.DataFrame:
    """Score all predictors under each protocol: one row per protocol and predictor."""
    stores = write_stores(args.sections or all_sections(), args.out / "sections")
    tables = [run(stores, protocol, args) for protocol in args.protocols or stp.cohort.list_protocols()]
    return pd.concat(tables, ignore_index=True)


def all_sections() -> list[str]:
    fold = stp.datasets.splits("her2st_leave_one_patient_out")[0]
    return sorted([*fold.train, *fold.test])


def write_stores(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Write the sections, with blank pictures, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    blank = folder / "blank.png"
    Image.new("RGB", (8, 8), "white").save(blank)
    root = _her2st._root(None)
    for name in names:
        if (folder / f"{name}.zarr").exists():
            continue
        files = {what: fetch(path, root) for what, path in _her2st._paths(name).items() if what in {"counts", "spots"}}
        sdata = stp.io.read_legacy_st(files["counts"], files["spots"], blank, section=name, patient=name[0], n_levels=1)
        with whole(folder / f"{name}.zarr") as fresh:
            with_blank(sdata).write(fresh)
    return {name: folder / f"{name}.zarr" for name in names}


def fetch(path: str, root: Path) -> Path:
    """Return a file of the data set, downloaded if it is not there, with its hash checked."""
    known = _her2st._registry()
    return download(f"{_her2st.URL}/{known['commit']}/{path}", root / path, **known["files"][path])


def with_blank(sdata: SpatialData) -> SpatialData:
    """Return the section with a coarse white picture that covers all spots."""
    x0, y0, x1, y1 = sdata.shapes["spots"].total_bounds
    assert min(x0, y0) >= 0
    shape = (3, int(y1 * 1.1) // COARSE + 1, int(x1 * 1.1) // COARSE + 1)
    known = get_transformation(sdata.images["he"], get_all=True)
    wide = Scale([COARSE, COARSE], axes=("x", "y"))
    places = {name: Steps([wide, own]) for name, own in known.items()}
    picture = Image2DModel.parse(np.full(shape, 255, np.uint8), dims=("c", "y", "x"), transformations=places)
    return SpatialData(images={"he": picture}, shapes=dict(sdata.shapes), tables=dict(sdata.tables), attrs=sdata.attrs)


def run(stores: dict[str, Path], protocol: ProtocolName, args: argparse.Namespace) -> pd.DataFrame:
    """Score the predictors under a protocol: mean over genes, then over sections, whose draws give the interval."""
    table = stp.cohort.cross_validate(
        stores,
        predictors_of(protocol),
        out=args.out / protocol,
        protocol=protocol,
        panel=PANELS.get(protocol),
        missing="drop",
        min_counts=0,
        n_workers=args.workers,
        device="cpu",
    )
    means = table.groupby(["model", "section"], sort=False)[list(SCORES)].mean()
    rows = []
    for model, own in means.groupby("model", sort=False):
        low, high = interval(own["spot_pearson"].to_numpy())
        about = {"protocol": protocol, "leaks": table["leaks"].iloc[0], "model": model, "sections": len(own)}
        rows.append({**about, **own.mean(), "spot_pearson_low": low, "spot_pearson_high": high})
    return pd.DataFrame(rows)


def interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Percentiles of the mean over sections drawn with replacement."""
    drawn = np.random.default_rng(0).choice(scores, (N_DRAWS, len(scores))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def predictors_of(protocol: ProtocolName) -> list[str]:
    """Names of the predictors; no patient is left to average where all sections of a test patient are left out."""
    shares = "patient" in stp.cohort.get_protocol(protocol).leaks
    return [name for name in PREDICTORS if shares or name != "patient_mean"]


def render(table: pd.DataFrame) -> str:
    """Markdown: one row per protocol and predictor."""
    lines = [["protocol", "leaks", "predictor", *SCORES.values(), "sections"]]
    lines.append(["---"] * len(lines[0]))
    for row in table.fillna({"leaks": ""}).to_dict("records"):
        scores = ["undefined" if pd.isna(row[score]) else f"{row[score]:.3f}" for score in SCORES]
        scores[0] += f" ({row['spot_pearson_low']:.3f} to {row['spot_pearson_high']:.3f})"
        if row["model"] == "log_total":
            scores[:2] = ["-", "-"]  # not in units of expression
        what = [f"`{row['protocol']}`", row["leaks"] or "nothing", PREDICTORS[row["model"]]]
        lines.append([*what, *scores, str(row["sections"])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(page: str, table: pd.DataFrame) -> str:
    """Replace what stands between the marks."""
    pattern = re.compile(r"(<!-- protocols -->\n).*?(<!-- end of protocols -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{render(table)}\n{match[2]}", page)


if __name__ == "__main__":
    main()
