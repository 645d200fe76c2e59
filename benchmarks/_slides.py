"""Slides to cut crops from: real or simulated tissue, tiled with flips, in both of the formats that people have.

Every slide is a SpatialData store (zarr, the codec that spatialdata takes by itself) and a pyramidal TIFF of JPEG tiles, in
chunks of 512 px and three levels each, every level by means of 2 x 2 pixels of the one before. Only a strip of rows is in memory.
"""

from __future__ import annotations

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

DOWNSAMPLES = (1, 2, 4)
CHUNK = 512
"""Side of the chunks of the one and of the tiles of the other format."""

SMALL = 256
"""Side of the tiles of a second TIFF."""

STRIP = CHUNK * DOWNSAMPLES[-1]
"""Rows that are in memory; their chunks are whole at every level."""

MPP = 0.5
SOURCE_SIDE = 10240
QUALITY = 80
JPEG, YCBCR = 7, 6


@dataclass(frozen=True, slots=True)
class Slide:
    """One slide in two formats.

    Parameters
    ----------
    folder
        Holds all slides.
    name
        What the tissue is, and how wide.
    side
        Width and height of level 0, in pixels.
    """

    folder: Path
    name: str
    side: int

    @property
    def zarr(self) -> Path:
        return self.folder / f"{self.name}-{self.side}.zarr"

    @property
    def tiff(self) -> Path:
        return self.folder / f"{self.name}-{self.side}.tif"

    @property
    def small_tiles(self) -> Path:
        """The same in tiles of ``SMALL`` px, as scanners write them."""
        return self.folder / f"{self.name}-{self.side}-{SMALL}.tif"


def zarr_levels(store: Path) -> list[zarr.Array]:
    """``(3, height, width)`` a level, finest first."""
    return [zarr.open_array(_level_folder(store, level), mode="r+") for level in range(len(DOWNSAMPLES))]


def chunk_path(store: Path, level: int, row: int, col: int) -> Path:
    return _level_folder(store, level) / "c" / "0" / str(row) / str(col)


def _level_folder(store: Path, level: int) -> Path:
    return store / "images" / "he" / f"s{level}"


def slides_in(folder: Path, image: Path | None, *, side: int) -> dict[int, Slide]:
    """The slide of ``side`` pixels and the one of 4 times its area, by the factor in area."""
    name = "simulated" if image is None else image.stem
    return {area: Slide(folder, name, side * width) for area, width in ((1, 1), (4, 2))}


def make_slides(slides: dict[int, Slide], image: Path | None) -> None:
    """Write what is not there yet.

    The large slide repeats the small one: its chunks are hard links and its tiles are copied, so it costs little time and
    disk to make, and as much as any to decode.
    """
    small, large = slides[1], slides[4]
    makers: list[tuple[Path, Callable[[Path], None]]] = [
        (small.zarr, lambda path: _write_zarr(path, _source(image, small.side), small.side)),
        (small.tiff, lambda path: _write_tiff(path, small.side, _encoded(small))),
        (small.small_tiles, lambda path: _write_tiff(path, small.side, _encoded(small, SMALL), tile=SMALL)),
        (large.zarr, lambda path: _repeat_zarr(path, small)),
        (large.tiff, lambda path: _write_tiff(path, large.side, _repeated(small))),
    ]
    small.folder.mkdir(parents=True, exist_ok=True)
    for path, make in makers:
        if not path.exists():
            unfinished = path.with_name(f"unfinished-{path.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(path)


def _source(image: Path | None, side: int) -> Pixels:
    """``(height, width, 3)``: tissue that is no wider than ``SOURCE_SIDE``, and simulated no wider than half the slide."""
    if image is None:
        from st_predict.datasets import simulate

        shape = (min(2048, side // 2),) * 2
        section = simulate(1, 1, n_genes=10, shape=shape, mpp=MPP).sections["P1S1"]
        return np.moveaxis(next(iter(section.images.values()))["scale0"]["image"].to_numpy(), 0, -1)
    import openslide

    if openslide.OpenSlide.detect_format(image) is None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None
        return np.asarray(Image.open(image).convert("RGB"))[:SOURCE_SIDE, :SOURCE_SIDE]
    slide = openslide.OpenSlide(image)
    size = [min(SOURCE_SIDE, whole) for whole in slide.dimensions]
    corner = tuple((whole - part) // 2 for whole, part in zip(slide.dimensions, size, strict=True))
    return np.asarray(slide.read_region(corner, 0, tuple(size)).convert("RGB"))


def _write_zarr(path: Path, source: Pixels, side: int) -> None:
    """Write the tissue, tiled with flips."""
    from st_predict._multiscale import halve

    _write_empty(path, side)
    rows, cols = (_there_and_back(length, side) for length in source.shape[:2])
    levels = zarr_levels(path)
    for top in range(0, side, STRIP):
        strip = source[rows[top : top + STRIP]][:, cols]
        for level, downsample in zip(levels, DOWNSAMPLES, strict=True):
            level[:, top // downsample : (top + STRIP) // downsample] = np.moveaxis(strip, -1, 0)
            strip = halve(strip)


def _there_and_back(length: int, n: int) -> NDArray[np.int64]:
    """0, 1, ..., ``length`` - 1, ``length`` - 1, ..., 0, 0, 1, ...: ``n`` of them."""
    forth = np.arange(n) % (2 * length)
    return np.minimum(forth, 2 * length - 1 - forth)


def _write_empty(path: Path, side: int) -> None:
    """Let spatialdata write all but the pixels."""
    import dask.array as da
    from spatialdata import SpatialData

    from st_predict._multiscale import image_of_levels

    shapes = [(3, side // downsample, side // downsample) for downsample in DOWNSAMPLES]
    levels = [da.zeros(shape, chunks=(3, CHUNK, CHUNK), dtype=np.uint8) for shape in shapes]
    SpatialData(images={"he": image_of_levels(levels, mpp=MPP)}).write(path)


def _repeat_zarr(path: Path, small: Slide) -> None:
    """Write a slide of twice the side whose chunks are those of ``small``, twice in both directions."""
    _write_empty(path, 2 * small.side)
    for level, downsample in enumerate(DOWNSAMPLES):
        n = small.side // downsample // CHUNK
        for row, col in product(range(2 * n), repeat=2):
            copy = chunk_path(path, level, row, col)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(chunk_path(small.zarr, level, row % n, col % n), copy)


def _write_tiff(path: Path, side: int, tiles: Callable[[int], Iterator[bytes]], *, tile: int = CHUNK) -> None:
    """Write a TIFF from the JPEG streams of the tiles of each level."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, downsample in enumerate(DOWNSAMPLES):
            file.write(
                tiles(level),
                shape=(side // downsample, side // downsample, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(level > 0),
                resolution=(1e4 / MPP, 1e4 / MPP),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    # tifffile asks for a JPEG encoder even if there is nothing left to encode, so it learns afterwards what the tiles are
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(JPEG)
            page.tags["PhotometricInterpretation"].overwrite(YCBCR)


def _encoded(slide: Slide, tile: int = CHUNK) -> Callable[[int], Iterator[bytes]]:
    def tiles(level: int) -> Iterator[bytes]:
        array = zarr_levels(slide.zarr)[level]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for top in range(0, array.shape[1], tile):
                strip = np.moveaxis(array[:, top : top + tile], 0, -1)
                yield from pool.map(_jpeg, (strip[:, x : x + tile] for x in range(0, array.shape[2], tile)))

    return tiles


def _jpeg(tile: Pixels) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _repeated(small: Slide) -> Callable[[int], Iterator[bytes]]:
    def tiles(level: int) -> Iterator[bytes]:
        stored = TiffTiles(small.tiff, level)
        n = small.side // DOWNSAMPLES[level] // CHUNK
        return (stored.stream(row % n, col % n) for row, col in product(range(2 * n), repeat=2))

    return tiles


class TiffTiles:
    """The JPEG streams of one level of a TIFF that was written here."""

    def __init__(self, path: Path, level: int) -> None:
        import tifffile

        self._file = os.open(path, os.O_RDONLY)
        with tifffile.TiffFile(path) as file:
            page = file.pages[level]
            self._n_cols = page.shape[1] // page.tilewidth
            self._places = list(zip(page.databytecounts, page.dataoffsets, strict=True))

    def stream(self, row: int, col: int) -> bytes:
        return os.pread(self._file, *self._places[row * self._n_cols + col])
