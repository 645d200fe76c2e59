"""Cut crops side by side: ours, the floor below which nothing gets, and what people use today.

    python benchmarks/crops.py --image section.jpg --out crops.json

Three levels a spot, 224 px each, from a slide of 20,480 x 20,480 px: real tissue with ``--image``, simulated without. The
floor decodes every chunk that a crop touches once, by the bare codec, and copies the crops; ours is measured against it on
slides of 1 and 4 times the area, with 1 and 4 times the spots, and on a dense grid. Every way first shows that it cuts the
same pixels. Peers that are not installed are listed as such.

The floor writes crops into the memory of one batch, which stays in the cache of the processor; ``3 batches in memory`` is the
same for crops that somebody uses while the next are cut. ``chunks through zarr`` and ``tiles through OpenSlide`` are the floor
with what these libraries add to the codec.

``single-chunk TIFF`` and ``one level`` are other pictures (``_lazy.py``); they run once, to the end, opening included.

Times are of reading only: importing and opening come before, also decoding the whole image for those who do that. Memory is
what is needed beyond the imported packages.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from _lazy import WHOLE, compared, run_whole, striped
from _measure import Goal, interleave, peak_mib, print_table, report, resident_mib, run_alone, summarise, write_json
from _peers import BATCH, FLOORS, PEERS, SIZE, Way, corners
from _slides import CHUNK, DOWNSAMPLES, make_slides, slides_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _peers import Crops, Cut
    from _slides import Slide
    from numpy.typing import NDArray

    from st_predict.io import PyramidReader

REPEATS = 3
MOST_SECONDS = 600
N_CHECKED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A slide and a lattice of spots in its middle; ``area`` and ``spots`` are multiples of the smallest."""

    area: int = 1
    spots: int = 1
    pitch: int = 200

    def centres(self, slide: Slide, n_spots: int) -> NDArray[np.float64]:
        """``(n_spots, 2)``, row by row; corners of crops are whole pixels at all levels."""
        n = round((self.spots * n_spots) ** 0.5)
        whole = DOWNSAMPLES[-1]
        line = (slide.side - (n - 1) * self.pitch) // 2 // whole * whole + self.pitch * np.arange(n)
        y, x = np.meshgrid(line, line, indexing="ij")
        return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)


MAIN, DENSE = "", "75 % overlap"
CASES = {
    MAIN: Case(),
    "1x area, 4x spots": Case(spots=4, pitch=100),
    "4x area, 1x spots": Case(area=4, pitch=400),
    "4x area, 4x spots": Case(area=4, spots=4),
    DENSE: Case(spots=4, pitch=56),
}
AT, CHECK = " @ ", "check"


def named(way: str, case: str) -> str:
    """Name of the variant that is this way in that case."""
    return f"{way}{AT}{case}" if case else way


def open_zarr(slide: Slide) -> PyramidReader:
    import spatialdata

    from st_predict.io import open_pyramid

    return open_pyramid(spatialdata.read_zarr(slide.zarr), "he")


def open_tiff(slide: Slide) -> PyramidReader:
    from st_predict.io import open_slide

    return open_slide(slide.tiff)


def open_small_tiles(slide: Slide) -> PyramidReader:
    from st_predict.io import open_slide

    return open_slide(slide.small_tiles)


def open_image(slide: Slide) -> PyramidReader:
    from st_predict.io import open_pyramid, read_image

    return open_pyramid(read_image(slide.tiff))


def open_through_openslide(slide: Slide) -> PyramidReader:
    from st_predict.io import OpenSlidePyramid

    return OpenSlidePyramid(slide.tiff)


def ours(slide: Slide, xy: NDArray[np.float64], *, open_reader: Any, n_threads: int) -> Cut:
    """Plan and read, batch by batch."""
    return partial(batches, open_reader(slide), xy, n_threads=n_threads)


def batches(reader: PyramidReader, xy: NDArray[np.float64], *, n_threads: int = 2) -> Iterator[Crops]:
    from st_predict.crops import iter_batches, plan_crops
    from st_predict.specs import CropSpec, LevelSpec

    spec = CropSpec(levels=tuple(LevelSpec(size=SIZE, downsample=downsample) for downsample in DOWNSAMPLES))
    plan = plan_crops(xy, spec, downsamples=reader.downsamples)
    for batch in iter_batches(reader, plan, batch_size=BATCH, n_threads=n_threads):
        yield batch.index, batch.crops


PACKAGES = ("st_predict.crops", "st_predict.io")
THROUGH_OPENSLIDE = "ours, OpenSlide, 2 threads"
"""Formats that only OpenSlide reads; without a goal, as its C library takes the time."""

OURS = {
    "ours, zarr, 2 threads": Way(
        open=partial(ours, open_reader=open_zarr, n_threads=2), file="zarr", packages=PACKAGES
    ),
    "ours, zarr, 1 thread": Way(open=partial(ours, open_reader=open_zarr, n_threads=1), file="zarr", packages=PACKAGES),
    "ours, TIFF, 2 threads": Way(
        open=partial(ours, open_reader=open_tiff, n_threads=2), file="TIFF", packages=PACKAGES
    ),
    "ours, TIFF, 1 thread": Way(open=partial(ours, open_reader=open_tiff, n_threads=1), file="TIFF", packages=PACKAGES),
    "ours, TIFF of 256 px, 2 threads": Way(
        open=partial(ours, open_reader=open_small_tiles, n_threads=2), file="TIFF of 256 px", packages=PACKAGES
    ),
    "ours, TIFF of 256 px, 1 thread": Way(
        open=partial(ours, open_reader=open_small_tiles, n_threads=1), file="TIFF of 256 px", packages=PACKAGES
    ),
    "ours, read_image, 2 threads": Way(
        open=partial(ours, open_reader=open_image, n_threads=2), file="TIFF", packages=PACKAGES
    ),
    THROUGH_OPENSLIDE: Way(
        open=partial(ours, open_reader=open_through_openslide, n_threads=2), file="TIFF", packages=PACKAGES
    ),
}
WAYS = {**FLOORS, **OURS, **PEERS}
FLOOR_OF = {
    "ours, zarr, 2 threads": "floor, zarr, 2 threads",
    "ours, zarr, 1 thread": "floor, zarr, 1 thread",
    "ours, TIFF, 2 threads": "floor, TIFF, 2 threads",
    "ours, TIFF, 1 thread": "floor, TIFF, 1 thread",
    "ours, TIFF of 256 px, 2 threads": "floor, TIFF of 256 px, 2 threads",
    "ours, TIFF of 256 px, 1 thread": "floor, TIFF of 256 px, 1 thread",
    "ours, read_image, 2 threads": "floor, TIFF, 2 threads",
    "floor, TIFF, 3 batches in memory": "floor, TIFF, 2 threads",
    THROUGH_OPENSLIDE: "floor, TIFF, 2 threads",
    "floor, zarr, 3 batches in memory": "floor, zarr, 2 threads",
    "chunks through zarr": "floor, zarr, 2 threads",
    "tiles through OpenSlide": "floor, TIFF, 2 threads",
}
OURS_FOR = {
    "zarr": "ours, zarr, 2 threads",
    "TIFF": "ours, TIFF, 2 threads",
    "TIFF of 256 px": "ours, TIFF of 256 px, 2 threads",
}
OPEN = {"zarr": open_zarr, "TIFF": open_tiff, "TIFF of 256 px": open_small_tiles}
MEASURED = [(case, file) for case in CASES for file in OURS_FOR if file == "zarr" or case in {MAIN, DENSE}]
SCALED = [
    named(way, case) for case, file in MEASURED if case != MAIN for way in (FLOOR_OF[OURS_FOR[file]], OURS_FOR[file])
]
SCALED += [
    named(way, DENSE)
    for way in (
        *("floor, TIFF, 1 thread", "ours, TIFF, 1 thread", "floor, TIFF, 3 batches in memory"),
        *("floor, TIFF of 256 px, 1 thread", "ours, TIFF of 256 px, 1 thread"),
    )
]

QUICK = ["floor, zarr, 2 threads", "ours, zarr, 2 threads", "PIL, the published way"]
QUICK += ["floor, TIFF of 256 px, 2 threads", "ours, TIFF of 256 px, 2 threads"]
OURS_GOALS = {"zarr": (Goal(at_most=1.3), Goal(figure="growth_mib", at_most=400))}
OURS_GOALS["TIFF"] = (Goal(at_most=1.5), Goal(figure="growth_mib", at_most=400))
OURS_GOALS["TIFF of 256 px"] = OURS_GOALS["TIFF"]
PEER_GOALS = {"PIL, the published way": 40, "wsidata": 50, "ImageTilesDataset,": 400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="any image of tissue, also one that OpenSlide opens")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "st_predict" / "benchmarks")
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    parser.add_argument("--rounds", type=int, default=2, help="of ours and of the floors; others run once")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds after which a way stops, in each round")
    parser.add_argument("--quick", action="store_true", help="a small slide and few ways: shows that it runs")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    side, n_spots = (2048, 9) if args.quick else (20480, 3025)
    slides = slides_in(args.folder, args.image, side=side)
    if args.variant:
        warnings.simplefilter("ignore")
        run_here(args, slides, n_spots=n_spots)
    else:
        compare(args, slides)


def run_here(args: argparse.Namespace, slides: dict[int, Slide], *, n_spots: int) -> None:
    if args.variant == CHECK:
        make_slides(slides, args.image)
        striped(slides[1])
        report(pixels=compare_pixels(slides, n_spots), chunks=count_chunks(slides, n_spots))
        return
    way, _, case = args.variant.partition(AT)
    slide = slides[CASES[case].area]
    if way in WHOLE:
        report(**run_whole(WHOLE[way], slide, CASES[case].centres(slide, n_spots)))
        return
    report(**measure(WAYS[way], slide, CASES[case].centres(slide, n_spots), budget=args.budget))


def measure(way: Way, slide: Slide, xy: NDArray[np.float64], *, budget: float) -> dict[str, float]:
    """Time a spot in milliseconds, the median of a few times; the memory that it took, and how far it got."""
    for package in way.packages:
        import_module(package)
    # the peak of the imports is none of ours
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_mib()
    cut = way.open(slide, xy)
    runs = []
    begin = perf_counter()
    while len(runs) < REPEATS and perf_counter() < begin + budget:
        runs.append(_run(cut, until=begin + budget))
    ms = statistics.median(1e3 * seconds / spots for seconds, spots in runs)
    return {"ms": ms, "growth_mib": peak_mib() - before, "spots": runs[0][1]}


def _run(cut: Cut, *, until: float) -> tuple[float, int]:
    """Seconds and spots."""
    spots, begin = 0, perf_counter()
    for rows, _ in cut():
        spots += len(rows)
        if perf_counter() > until:
            break
    return perf_counter() - begin, spots


def compare_pixels(slides: dict[int, Slide], n_spots: int) -> dict[str, list[float]]:
    """Mean difference from our crops in grey values, a level; stops if there is any where there must be none."""
    slide, xy = slides[1], CASES[MAIN].centres(slides[1], n_spots)
    xy = xy[np.linspace(0, len(xy) - 1, N_CHECKED).astype(int)]
    expected = {file: _collect(WAYS[name].open(slide, xy), len(xy)) for file, name in OURS_FOR.items()}
    differences = {}
    for name, way in WAYS.items():
        if way.missing():
            continue
        pairs = zip(_collect(way.open(slide, xy), len(xy)), expected[way.file], strict=True)
        differences[name] = [float(np.abs(mine - theirs).mean()) for mine, theirs in pairs]
        if any(differences[name]) and not way.differs:
            raise SystemExit(f"{name}: the crops differ from ours, by {differences[name]} grey values a level.")
    return differences


def _collect(cut: Cut, n_spots: int) -> list[NDArray[np.int16]]:
    """``(n_spots, 3, SIZE, SIZE)`` a level."""
    found = [np.full((n_spots, 3, SIZE, SIZE), -1, np.int16) for _ in DOWNSAMPLES]
    for rows, crops in cut():
        for level, crop in zip(found, crops, strict=True):
            level[np.asarray(rows)] = np.asarray(crop)
    return found


class CountingReader:
    """A reader that counts how often each chunk is read."""

    def __init__(self, reader: PyramidReader) -> None:
        self._reader = reader
        self.reads: Counter[tuple[int, int, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        self.reads.update(touched([(x, y)], level, width=width, height=height))
        return self._reader.read(x, y, width, height, level=level)


def touched(
    places: Iterable[tuple[int, int]], level: int, *, width: int = SIZE, height: int = SIZE
) -> set[tuple[int, int, int]]:
    """Level, row and column of the chunks under rectangles with these left and top edges."""
    return {
        (level, row, col)
        for x, y in places
        for row in range(y // CHUNK, (y + height - 1) // CHUNK + 1)
        for col in range(x // CHUNK, (x + width - 1) // CHUNK + 1)
    }


def count_chunks(slides: dict[int, Slide], n_spots: int) -> dict[str, dict[str, int]]:
    """How many chunks crops touch, how many we decode, and how often that which we decode most."""
    counts = {}
    for case, file in MEASURED:
        slide = slides[CASES[case].area]
        xy = CASES[case].centres(slide, n_spots)
        reader = CountingReader(OPEN[file](slide))
        for _ in batches(reader, xy):
            pass
        blocks = [touched(corners(xy, downsample).tolist(), level) for level, downsample in enumerate(DOWNSAMPLES)]
        counts[named(OURS_FOR[file], case)] = {
            "touched": sum(map(len, blocks)),
            "decoded": reader.reads.total(),
            "most": max(reader.reads.values()),
        }
    return counts


def compare(args: argparse.Namespace, slides: dict[int, Slide]) -> None:
    options = ["--folder", str(args.folder), "--budget", str(args.budget), *(["--quick"] if args.quick else [])]
    options += ["--image", str(args.image)] if args.image else []
    begin = perf_counter()
    checked = run_alone(__file__, CHECK, *options)
    ways = QUICK if args.quick else list(WAYS)
    missing = {way: packages for way in ways if (packages := WAYS[way].missing())}
    variants = [way for way in ways if way not in missing] + ([] if args.quick else SCALED)
    samples = interleave(
        __file__, [way for way in variants if way not in PEERS], *options, rounds=1 if args.quick else args.rounds
    )
    samples |= interleave(__file__, [way for way in variants if way in PEERS], *options, rounds=1)
    pictures = compared(interleave(__file__, list(WHOLE), *options, rounds=1))
    rows = [_row(variant, samples) for variant in variants]
    absent = [{"variant": way, "missing": ", ".join(packages)} for way, packages in missing.items()]
    title = f"Crops of three levels a spot, {slides[1].name} ({slides[1].side} px)"
    _print(rows, absent, checked, title=title)
    columns = ["spots", "ms", "cpu_ms", "ratio", "cpu_ratio", "against", "growth_mib", "more_mib"]
    print_table(pictures, columns, title="Other pictures, opening and decoding included; ms is that of a spot")
    seconds = perf_counter() - begin
    print(f"\nThe whole took {seconds:.0f} s (goal: at most {MOST_SECONDS}).")
    if args.out:
        tables = {"rows": rows, "pictures": pictures, "not_installed": absent, "samples": samples, **checked}
        write_json(args.out, title=title, seconds=round(seconds), **tables)


def _row(variant: str, samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Figures of a variant, and its ratio: of ours to the floor of that case, of others to ours."""
    way, _, case = variant.partition(AT)
    against = named(FLOOR_OF.get(way, way), case) if way not in PEERS else OURS_FOR[WAYS[way].file]
    goals = [Goal(at_least=bound) for peer, bound in PEER_GOALS.items() if peer in way]
    if way in OURS and way != THROUGH_OPENSLIDE:
        goals = OURS_GOALS[WAYS[way].file]
    (row, *_) = summarise(
        {variant: samples[variant], against: samples[against][: len(samples[variant])]},
        figure="ms",
        reference=against,
        goals={variant: goals},
    )
    return row | {"against": against}


def _print(rows: list[dict[str, Any]], absent: list[dict[str, str]], checked: dict[str, Any], *, title: str) -> None:
    print_table(
        rows, ["spots", "ms", "spread", "ratio", "against", "growth_mib"], title=f"{title}; ms is that of a spot"
    )
    for row in absent:
        print(f"{row['variant']}: not installed ({row['missing']})")
    once = Goal(figure="most", at_most=1)
    chunks = [
        {"variant": variant, **counts, "goal": str(once), "met": "yes" if once.met(counts["most"]) else "NO"}
        for variant, counts in checked["chunks"].items()
    ]
    print_table(
        chunks, ["touched", "decoded", "most"], title="Chunks: touched by crops, decoded, and the one decoded most"
    )
    print(f"\nPixels of {len(checked['pixels'])} ways compared with ours; all are the same, but for")
    for way, differences in checked["pixels"].items():
        if any(differences):
            means = ", ".join(f"{difference:.2f}" for difference in differences)
            print(f"{way}: mean difference of {means} grey values a level; {WAYS[way].differs}")


if __name__ == "__main__":
    main()
