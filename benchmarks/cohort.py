"""Cohorts: two workers against one, and against one call of the command line per slide; memory over many slides.

    python benchmarks/cohort.py --out cohort.json

30 slides of 2,048 x 2,048 px at 0.5 um per pixel, on a grid of 100 um, with the default weights and one thread per process. The time of a cohort
is the whole call, with the start of its workers; `between` is from the first slide that ends to the last one, so that it leaves the start out. The
last row predicts 200 small slides with one worker: growth is its peak memory over the last five slides minus that around the 20th (medians).
The load is the machine's, per core, when a variant begins: with more than one, other programs share the cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import print_table, report, run_alone, write_json

N, SIDE, MPP = 30, 2048, 0.5
MANY, FROM = 200, 20
MOST_MIB = 50.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small slides in this process, to see that it runs")
    parser.add_argument("--slides", type=int, default=N, help="number of slides")
    parser.add_argument("--folder", type=Path, help="where the slides are made, and kept")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        VARIANTS[args.variant](args.folder, quick=args.quick)
        return
    quick = ["--quick"] if args.quick else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        make(folder / "slides", n=3 if args.quick else args.slides, side=512 if args.quick else SIDE)
        make(folder / "many", n=4 if args.quick else MANY, side=512)
        names = [name for name in VARIANTS if not args.quick or name != "one call per slide"]
        rows = [
            {"variant": name, "goal": "", "met": ""} | run_alone(__file__, name, "--folder", str(folder), *quick)
            for name in names
        ]
    for row in rows:
        row["ratio"] = row["slides/s"] / rows[0]["slides/s"]
    judge(rows)
    columns = ["slides", "seconds", "CPU s", "between, s", "slides/s", "ratio", "growth MiB", "load"]
    print_table(rows, columns, title="Many slides")
    if args.out:
        write_json(args.out, cohort=rows)


def judge(rows: list[dict[str, Any]]) -> None:
    """Add the goals: two workers at least 1.7 times one, a cohort faster than single calls, and little growth."""
    by_name = {row["variant"]: row for row in rows}
    two = by_name["two workers"]
    two |= {"goal": ">= 1.7 x", "met": "yes" if two["ratio"] >= 1.7 else "no"}
    if single := by_name.get("one call per slide"):
        single |= {"goal": "< one worker", "met": "yes" if single["ratio"] < 1 else "no"}
    many = by_name["one worker, many slides"]
    many |= {"goal": f"growth < {MOST_MIB:g} MiB", "met": "yes" if many["growth MiB"] < MOST_MIB else "no"}


def make(folder: Path, *, n: int, side: int) -> None:
    """Write tiled slides with tissue in their middle, unless they are there."""
    import tifffile

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        path = folder / f"S{number:03}.tif"
        if path.exists():
            continue
        pixels = np.full((side, side, 3), 245, np.uint8)
        edge = side // 8
        tissue = np.random.default_rng(number).integers(60, 180, (side - 2 * edge, side - 2 * edge, 3), dtype=np.uint8)
        pixels[edge:-edge, edge:-edge] = tissue
        resolution = {"resolution": (10_000 / MPP,) * 2, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), metadata=None, **resolution)


def predict(slides: Path, *, n_workers: int, quick: bool) -> dict[str, Any]:
    """Predict a folder of slides on local workers; return the figures. A quick look needs no processes."""
    from distributed import Client

    import st_predict as stp

    warnings.simplefilter("ignore")
    load, start = os.getloadavg()[0] / (os.cpu_count() or 1), time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"  # of each worker
    with ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryDirectory())
        where: dict[str, Any] = {"n_workers": n_workers}
        if quick:
            where = {"client": stack.enter_context(Client(processes=False, n_workers=1, dashboard_address=":0"))}
        found = stp.cohort.predict_many(f"{slides}/*.tif", out=out, pitch_um=100, device="cpu", **where)
        seconds = time.perf_counter() - start
        ends = sorted(path.stat().st_mtime for path in Path(out).glob("*.h5ad"))
        peaks = pd.read_csv(Path(out) / "report.csv")["peak_mib"].to_numpy()  # in the order in which slides ended
    assert (found["status"] == "done").all()
    first, last = np.median(peaks[FROM - 2 : FROM + 3] if len(peaks) > FROM else peaks[:1]), np.median(peaks[-5:])
    between = ends[-1] - ends[0]
    return figures(len(ends), seconds, load=load) | {"between, s": between, "growth MiB": float(last - first)}


def figures(n: int, seconds: float, *, load: float) -> dict[str, Any]:
    return {"slides": n, "seconds": seconds, "CPU s": cpu_seconds(), "slides/s": n / seconds, "load": load}


def cpu_seconds() -> float:
    """CPU time of this process and its ended children, which other programs on the machine change little."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def workers(n: int, name: str = "slides") -> Any:
    return lambda folder, quick: report(**predict(folder / name, n_workers=n, quick=quick))


def call_each(folder: Path, *, quick: bool) -> None:  # as the other variants
    """Call the command line once per slide."""
    load, start = os.getloadavg()[0] / (os.cpu_count() or 1), time.perf_counter()
    paths = sorted((folder / "slides").glob("*.tif"))
    with tempfile.TemporaryDirectory() as out:
        for path in paths:
            code = "from st_predict.cli import app; app()"
            options = ["--out", f"{out}/{path.stem}.h5ad", "--device", "cpu"]
            command = [sys.executable, "-W", "ignore", "-c", code, "predict", str(path), *options]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - start
    report(**figures(len(paths), seconds, load=load), **{"between, s": seconds, "growth MiB": 0.0})


VARIANTS = {
    "one worker": workers(1),
    "two workers": workers(2),
    "one call per slide": call_each,
    "one worker, many slides": workers(1, "many"),
}

if __name__ == "__main__":
    main()
