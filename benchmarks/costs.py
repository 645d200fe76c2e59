"""What a slide costs: seconds and memory of `tl.predict` with the weights in the package.

    python benchmarks/costs.py --out costs.json

A simulated slide of 4,096 x 4,096 px at 0.688 um per pixel, with an image pyramid, is predicted on grids of two densities by each of the
weights, in a fresh process each and with an empty cache of features. Seconds cover the call, from an opened slide to the table, and include
loading the network. The peak is the whole process's. The ratio compares spots per second with the first row.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from _measure import peak_mib, print_table, report, run_alone, write_json

WEIGHTS = ("m2ost", "ridge-effnet", "m2ost@1")
PITCHES_UM = (100, 55)
SIDE, MPP = 4096, 0.688


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small slide, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the slide is made, and kept")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        weights, pitch = args.variant.split(", ")
        run(args.folder, weights, float(pitch))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        make(folder, side=720 if args.quick else SIDE)
        rows = [
            {"variant": f"{weights}, every {pitch} um", "goal": "", "met": ""}
            | run_alone(__file__, f"{weights}, {pitch}", "--folder", str(folder))
            for weights in (WEIGHTS[:1] if args.quick else WEIGHTS)
            for pitch in PITCHES_UM
        ]
    for row in rows:
        row["ratio"] = row["spots/s"] / rows[0]["spots/s"]
    print_table(rows, ["spots", "seconds", "spots/s", "ratio", "peak MiB"], title="tl.predict on a slide")
    if args.out:
        write_json(args.out, costs=rows)


def make(folder: Path, *, side: int) -> None:
    """Write the slide, unless it is there."""
    import st_predict as stp

    warnings.simplefilter("ignore")
    if not _slide(folder).exists():
        folder.mkdir(parents=True, exist_ok=True)
        (section,) = stp.datasets.simulate(1, 1, n_genes=4, shape=(side, side), mpp=MPP).sections.values()
        del section.tables["table"], section.shapes["spots"]
        section.write(_slide(folder))


def _slide(folder: Path) -> Path:
    return folder / "slide.zarr"


def run(folder: Path, weights: str, pitch_um: float) -> None:
    """Open the slide, lay a grid and predict it, with a cache that holds nothing yet."""
    os.environ["ST_PREDICT_CACHE"] = tempfile.mkdtemp(dir=folder)
    import spatialdata

    import st_predict as stp

    warnings.simplefilter("ignore")
    sdata = spatialdata.read_zarr(_slide(folder))
    stp.pp.make_grid(sdata, pitch_um=pitch_um)
    start = time.perf_counter()
    stp.tl.predict(sdata, weights, key_added="pred")
    seconds = time.perf_counter() - start
    table = sdata.tables["pred"]
    assert np.isfinite(table.X).any()
    report(**{"spots": table.n_obs, "seconds": seconds, "spots/s": table.n_obs / seconds, "peak MiB": peak_mib()})


if __name__ == "__main__":
    main()
