"""Pictures that are no pyramid in tiles: a TIFF that is decoded as a whole, and a large image of a single level.

Each way runs once, to the end, so that what is done once is seen: opening and decoding are within the time. Crops of ways that
are compared must be the same, by their checksums.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Goal, peak_mib, resident_mib
from _slides import DOWNSAMPLES, zarr_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    from _slides import Slide
    from numpy.typing import NDArray

    from st_predict.io import PyramidReader

SIZE = 224
FINE = 2.75  # pixels of level 0 for one of the finest crops, as of 0.25 um/px for a model of 0.69


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A way that runs to its end, and the way that it is measured against."""

    open: Callable[[Slide], PyramidReader]
    against: str
    n_threads: int = 2
    scale: float = 1.0
    most_spots: int | None = None
    goals: tuple[Goal, ...] = ()
    same: bool = True


def striped(slide: Slide) -> Path:
    """A TIFF of level 0 in strips, as scanners and Space Ranger have them; written if it is not there."""
    import tifffile

    path = slide.folder / f"{slide.name}-{slide.side}-striped.tif"
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{path.name}")
        pixels = np.moveaxis(zarr_levels(slide.zarr)[0][:], 0, -1)
        tifffile.imwrite(unfinished, pixels, rowsperstrip=64, photometric="rgb", compression="zlib")
        unfinished.rename(path)
    return path


def lazy_tiff(slide: Slide) -> PyramidReader:
    """The image as ``spatialdata_io.visium(fullres_image_file=)`` makes it."""
    return _pyramid_of(_imread(slide).transpose(2, 0, 1))


def tiff_in_memory(slide: Slide) -> PyramidReader:
    """The same, with the file decoded once by the same reader."""
    return _pyramid_of(_imread(slide).compute(scheduler="synchronous").transpose(2, 0, 1))


def _imread(slide: Slide) -> Any:
    from dask_image.imread import imread

    return imread(striped(slide)).squeeze(0)


def _pyramid_of(pixels: Any) -> PyramidReader:
    from spatialdata.models import Image2DModel

    from st_predict.io import SpatialDataPyramid

    return SpatialDataPyramid(Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=[2, 2, 2, 2]))


def stored_levels(slide: Slide, n_levels: int) -> PyramidReader:
    import dask.array as da

    from st_predict._multiscale import image_of_levels
    from st_predict.io import SpatialDataPyramid

    levels = [da.from_zarr(level) for level in zarr_levels(slide.zarr)[:n_levels]]
    return SpatialDataPyramid(image_of_levels(levels, mpp=None))


IN_MEMORY, PYRAMID = "single-chunk TIFF, in memory and one decode", "0.25 um/px, a pyramid, 2 threads"
_flat = partial(
    Whole, open=partial(stored_levels, n_levels=1), against=PYRAMID, scale=FINE, most_spots=250, same=False,
    goals=(Goal(figure="more_mib", at_most=400),),
)  # fmt: skip
WHOLE = {
    IN_MEMORY: Whole(open=tiff_in_memory, against=IN_MEMORY),
    "single-chunk TIFF, lazy": Whole(
        open=lazy_tiff, against=IN_MEMORY, goals=(Goal(at_most=1.3), Goal(figure="growth_mib", at_most=600))
    ),
    PYRAMID: Whole(open=partial(stored_levels, n_levels=3), against=PYRAMID, scale=FINE, most_spots=250),
    "0.25 um/px, one level, 1 thread": _flat(n_threads=1),
    "0.25 um/px, one level, 2 threads": _flat(n_threads=2),
    "0.25 um/px, one level, 4 threads": _flat(n_threads=4),
}


def run_whole(way: Whole, slide: Slide, xy: NDArray[np.float64]) -> dict[str, float]:
    """Milliseconds of wall-clock and of processor time a spot, the memory that it took, and the checksum of the crops."""
    import st_predict.crops
    import st_predict.io
    from st_predict.specs import CropSpec, LevelSpec

    xy = xy[: way.most_spots]
    spec = CropSpec(levels=tuple(LevelSpec(size=SIZE, downsample=way.scale * d) for d in DOWNSAMPLES))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, begin, cpu = resident_mib(), perf_counter(), process_time()
    reader = way.open(slide)
    plan = st_predict.crops.plan_crops(xy, spec, downsamples=reader.downsamples)
    checksum = 0
    for batch in st_predict.crops.iter_batches(reader, plan, n_threads=way.n_threads):
        rows = batch.index.tolist()  # a line of each crop; batches come in another order for other chunks
        lines = [crop[:, :, SIZE // 2].numpy() for crop in batch.crops]
        checksum += sum(zlib.crc32(line[i].tobytes(), row) for line in lines for i, row in enumerate(rows))
    seconds, cpu_seconds = perf_counter() - begin, process_time() - cpu
    return {
        "ms": 1e3 * seconds / len(xy),
        "cpu_ms": 1e3 * cpu_seconds / len(xy),
        "growth_mib": peak_mib() - before,
        "spots": len(xy),
        "checksum": checksum,
    }


def compared(samples: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Rows of the table; stops if crops differ that must not."""
    rows = []
    for name, way in WHOLE.items():
        (mine, *_), (other, *_) = samples[name], samples[way.against]
        if way.same and mine["checksum"] != other["checksum"]:
            raise SystemExit(f"{name}: the crops differ from those of {way.against}.")
        row: dict[str, Any] = {k: v for k, v in mine.items() if k != "checksum"}
        row |= {"variant": name, "against": way.against, "ratio": mine["ms"] / other["ms"]}
        row |= {"cpu_ratio": mine["cpu_ms"] / other["cpu_ms"], "more_mib": mine["growth_mib"] - other["growth_mib"]}
        row["goal"] = ", ".join(map(str, way.goals))
        row["met"] = ", ".join("yes" if goal.met(row[goal.figure]) else "NO" for goal in way.goals)
        rows.append(row)
    return rows
