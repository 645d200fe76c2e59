"""M2OST beside iStar on the same spots, features included: the claim of the M2OST paper that it is 100 times faster.

    python benchmarks/istar_speed.py [--quick] [--out istar_speed.json] [--keep]

A simulated section of 1 mm is predicted on the lattice of Visium (100 um) and of Spatial Transcriptomics (200 um), by M2OST of the paper's
size, and by iStar with HIPT: 16 shifted passes of ViT-256 over the tissue, ViT-4K over the section, five MLPs per cell. Both in float32, all
weights random, which does not change the time. ``one pass`` has one shift
instead of 16. iStar's features do not depend on the number of
spots, so its advantage grows with their density. The first use of libraries is not timed.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
from safetensors.torch import save_file

import st_predict as stp
from st_predict import checkpoints
from st_predict.encoders._hipt import Hipt
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from spatialdata import SpatialData

PITCHES = {"visium": "100 um", "legacy_st": "200 um"}
SHIFTS = {"istar": 4, "istar, one pass": 1}
VARIANTS = ["m2ost", *SHIFTS]
N_GENES, SIDE = 250, 2048  # pixels of 0.5 um
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "simulated" / "istar_speed.json", ROOT / "docs" / "benchmarks.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small section, four passes instead of 16, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--keep", action="store_true", help="put the figures into the project")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(message)s")
    side = 512 if args.quick else SIDE
    if args.variant:
        most = 2 if args.quick else max(SHIFTS.values())
        _measure.report(**measure(args.variant, side, min(SHIFTS.get(args.variant, 1), most)))
        return
    quick = ["--quick"] if args.quick else []
    samples = _measure.interleave(__file__, VARIANTS, *quick, rounds=1 if args.quick else args.rounds)
    rows = [row for pitch in PITCHES.values() for row in rows_of(samples, pitch)]
    _measure.print_table(
        rows, ["pitch", "spots", "seconds", "spread", "ratio"], title="Prediction of a section, on a CPU"
    )
    if args.out:
        _measure.write_json(args.out, rows=rows)
    if args.keep:
        _measure.write_json(RESULTS, rows=rows)
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


def rows_of(samples: dict[str, list[dict[str, float]]], pitch: str) -> list[dict[str, Any]]:
    """Medians of each variant on one lattice; the ratio is relative to M2OST, round by round."""
    own = {
        variant: [{"seconds": one[f"seconds at {pitch}"], "spots": one[f"spots at {pitch}"]} for one in found]
        for variant, found in samples.items()
    }
    return [{**row, "pitch": pitch} for row in _measure.summarise(own, figure="seconds", reference="m2ost")]


def measure(variant: str, side: int, n_shifts: int) -> dict[str, float]:
    """Predict the section on each lattice; seconds and number of spots."""
    figures: dict[str, float] = {}
    section = stp.datasets.simulate(1, 1, n_genes=8, shape=(side, side), mpp=0.5).sections["P1S1"]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, given = save(variant, Path(folder), n_shifts)
        small = stp.datasets.simulate(1, 1, n_genes=8, shape=(512, 512), mpp=0.5).sections["P1S1"]
        predict(on_lattice(small, "legacy_st"), checkpoint, given)  # first use of libraries
        for pattern, pitch in PITCHES.items():
            sdata = on_lattice(section, pattern)
            start = time.perf_counter()
            predict(sdata, checkpoint, given)
            figures[f"seconds at {pitch}"] = time.perf_counter() - start
            figures[f"spots at {pitch}"] = len(stp.get.prediction(sdata, "pred"))
    return figures


def predict(sdata: SpatialData, checkpoint: Path, given: dict[str, Any] | None) -> None:
    stp.tl.predict(sdata, checkpoint, hparams=given, device="cpu", precision="float32", key_added="pred")


def on_lattice(section: SpatialData, pattern: str) -> SpatialData:
    """Return the image of a section with spots all over it."""
    sdata = section.subset(["he"])
    stp.pp.make_grid(sdata, pattern=pattern, tissue_only=False)
    return sdata


def save(variant: str, folder: Path, n_shifts: int) -> tuple[Path, dict[str, Any] | None]:
    """Write a network of random weights; return its file and what predicting needs beside."""
    genes, given = tuple(f"GENE{i}" for i in range(N_GENES)), None
    model = "m2ost" if variant == "m2ost" else "istar"
    spec, hparams = stp.models.get_spec(model), {}
    if model == "istar":
        weights = folder / "hipt.safetensors"
        save_file(Hipt().state_dict(), weights)
        hparams = {"encoder": "hipt", "n_shifts": n_shifts, "radius_um": 27.5}
        given = {"weights": str(weights)}
    hparams = {**spec.hparams, **hparams}
    card = ModelCard(
        model=model, genes=genes, crop=spec.crop_for(hparams), pixels=spec.pixels_for(hparams), hparams=hparams
    )
    path = folder / f"{model}.safetensors"
    checkpoints.save(path, checkpoints.build(card), card)
    return path, given


def fill(page: str, rows: list[dict[str, Any]]) -> str:
    """Replace what stands between the marks."""
    lines = [["lattice", "network", "spots", "seconds", "times M2OST"], ["---"] * 5]
    for row in rows:
        figures = [f"{row['spots']:.0f}", f"{row['seconds']:.1f}", f"{row['ratio']:.1f}"]
        lines.append([row["pitch"], row["variant"], *figures])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    pattern = re.compile(r"(<!-- istar speed -->\n).*?(<!-- end of istar speed -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", page)


if __name__ == "__main__":
    main()
