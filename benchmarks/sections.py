"""How memory and time grow with a section, of the networks that see all of it at once.

    python benchmarks/sections.py --out sections.json

Each variant is a network of published size with random weights and 250 genes in a fresh process, on spots of a lattice that is a
little disturbed, with random crops or features; prediction in float32 by the package's own runner. The peak is that
of the whole process. The ratio is that of the time a spot against the smallest section of the same network: 1 is linear.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import Goal, peak_mib, print_table, report, resident_mib, run_alone, write_json

if TYPE_CHECKING:
    from st_predict.crops import Batch
    from st_predict.models import ModelSpec

SIZES = {
    "stflow": [5_000, 50_000],
    "stpath": [5_000, 20_000],
    "histogene": [1_000, 5_000],
    "hist2st": [1_000, 5_000],
    "triplex": [1_000, 5_000],
}
QUICK = {"stflow": [30, 60], "hist2st": [9, 16], "triplex": [9, 16]}
N_GENES = 250
GOALS = {("stflow", 50_000): Goal(figure="peak MiB", at_most=4096)}
# a lattice of 5,000 spots has more rows than 64; UNI has 1024 features
HPARAMS = {"histogene": {"n_pos": 128}, "hist2st": {"n_pos": 128}, "stflow": {"encoder": "uni"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SIZES))
    parser.add_argument("--quick", action="store_true", help="tiny networks and a few spots, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file for what was measured")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        model, n_spots = args.variant.split(", ")
        run_variant(model, int(n_spots), quick=args.quick)
        return
    sizes = QUICK if args.quick else {model: SIZES[model] for model in args.models}
    rows = [row for model, each in sizes.items() for row in measure(model, each, quick=args.quick)]
    print_table(rows, ["ms a spot", "ratio", "data MiB", "peak MiB"], title="Sections, float32")
    if args.out:
        write_json(args.out, sections=rows)


def measure(model: str, sizes: list[int], *, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for n_spots in sizes:
        row = run_alone(__file__, f"{model}, {n_spots}", *(["--quick"] if quick else []))
        goal = GOALS.get((model, n_spots))
        row |= {"variant": f"{model}, {n_spots} spots", "goal": str(goal or "")}
        row["met"] = "" if goal is None else "yes" if goal.met(row[goal.figure]) else "NO"
        rows.append(row)
        row["ratio"] = row["ms a spot"] / rows[0]["ms a spot"]
    return rows


def run_variant(model: str, n_spots: int, *, quick: bool) -> None:
    import torch

    from st_predict._runtime import Inference
    from st_predict.models import get_spec

    spec = get_spec(model)
    hparams = dict(spec.tiny) if quick else {**spec.hparams, **HPARAMS.get(model, {})}
    inference = Inference(
        spec.build_with(N_GENES, hparams), device=torch.device("cpu"), precision="float32", scope=spec.scope
    )
    if not quick:
        inference(make_batch(spec, hparams, 30))  # what is done once is not counted
    before = resident_mib()
    batch = make_batch(spec, hparams, n_spots)
    data = resident_mib() - before
    start = time.perf_counter()
    inference(batch)
    seconds = time.perf_counter() - start
    report(**{"ms a spot": 1000 * seconds / n_spots, "data MiB": data, "peak MiB": peak_mib()})


def make_batch(spec: ModelSpec, hparams: dict[str, Any], n: int) -> Batch:
    import torch

    from st_predict.crops import Batch
    from st_predict.encoders import count_features

    generator = torch.Generator().manual_seed(0)
    side = int(n**0.5) + 1
    grid = torch.stack([torch.arange(n) // side, torch.arange(n) % side], dim=1)
    features, crops, reads = None, (), spec.reads(hparams)
    if reads.describe_encoder is not None:
        n_tiles = (reads.tiles**2,) if reads.tiles else ()
        features = torch.randn(n, *n_tiles, count_features(reads.describe_encoder()), generator=generator)
    if reads.kind == "crops":
        shapes = [(n, 3, level.size, level.size) for level in spec.crop_for(hparams).levels]
        crops = tuple(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes)
    xy_um = 100 * grid + 10 * torch.rand(n, 2, generator=generator)
    return Batch(crops=crops, features=features, index=torch.arange(n), grid=grid, xy_um=xy_um)


if __name__ == "__main__":
    main()
