"""Other ways to the same crops: the floor, which nothing can beat by much, and what people use today.

A way is a function of a slide and of spot centres ``(n_spots, 2)`` that opens what it needs and returns a function; that one
yields spots and their crops, and is what the clock sees. Spots come in the order in which a slide is best read.
"""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from threading import local
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from _slides import CHUNK, DOWNSAMPLES, SMALL, TiffTiles, chunk_path, zarr_levels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from _slides import Slide
    from numpy.typing import NDArray

    Crops = tuple[Any, Any]  # (n,) rows of the table, and (n, 3, SIZE, SIZE) a level
    Cut = Callable[[], Iterator[Crops]]
    Open = Callable[[Slide, NDArray[np.float64]], Cut]

SIZE = 224
BATCH = 64
N_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to cut crops.

    Parameters
    ----------
    open
        See above.
    file
        Format of the slide.
    packages
        What it imports.
    differs
        Why its pixels are not ours; empty where they must be.
    """

    open: Open
    file: Literal["zarr", "TIFF", "TIFF of 256 px"]
    packages: tuple[str, ...]
    differs: str = ""

    def missing(self) -> list[str]:
        return [package for package in self.packages if find_spec(package.partition(".")[0]) is None]


def corners(xy: NDArray[np.float64], downsample: int) -> NDArray[np.int64]:
    """``(n_spots, 2)``: left and top of the crops of a level, in its pixels."""
    return np.rint(xy / downsample - SIZE / 2).astype(np.int64)


def zarr_floor(slide: Slide, xy: NDArray[np.float64], *, n_threads: int, n_batches: int = 1) -> Cut:
    """Read each touched chunk once as a file, decode it by the codec alone, copy crops from it."""
    import numcodecs

    codec = numcodecs.Zstd()

    def decode(level: int, row: int, col: int) -> NDArray[np.uint8]:
        data = codec.decode(chunk_path(slide.zarr, level, row, col).read_bytes())
        return np.frombuffer(data, np.uint8).reshape(3, CHUNK, CHUNK)

    return _floor(decode, xy, n_threads=n_threads, shape=(n_batches * BATCH, 3, SIZE, SIZE))


def zarr_chunks(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Read each touched chunk once through zarr, copy crops from it."""
    import zarr

    zarr.config.set({"threading.max_workers": N_THREADS})
    levels = zarr_levels(slide.zarr)

    def decode(level: int, row: int, col: int) -> NDArray[np.uint8]:
        return levels[level].get_block_selection((0, row, col))

    return _floor(decode, xy, n_threads=N_THREADS, shape=(BATCH, 3, SIZE, SIZE))


def tiff_floor(slide: Slide, xy: NDArray[np.float64], *, n_threads: int, n_batches: int = 1, tile: int = CHUNK) -> Cut:
    """Read each touched tile once, decode it by the JPEG decoder alone, copy crops from it."""
    path = slide.tiff if tile == CHUNK else slide.small_tiles
    levels = [TiffTiles(path, level) for level in range(len(DOWNSAMPLES))]
    jpeg = _jpeg_decoder()

    def decode(level: int, row: int, col: int) -> NDArray[np.uint8]:
        return _chw(jpeg(levels[level].stream(row, col)))

    return _floor(decode, xy, n_threads=n_threads, shape=(n_batches * BATCH, SIZE, SIZE, 3), tile=tile)


def openslide_tiles(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Read each touched tile once through OpenSlide, with a handle a thread, copy crops from it."""
    from openslide import OpenSlide

    handles = local()

    def decode(level: int, row: int, col: int) -> NDArray[np.uint8]:
        if not hasattr(handles, "slide"):
            handles.slide = OpenSlide(slide.tiff)
        corner = (col * CHUNK * DOWNSAMPLES[level], row * CHUNK * DOWNSAMPLES[level])
        return _chw(np.asarray(handles.slide.read_region(corner, level, (CHUNK, CHUNK)))[..., :3])

    return _floor(decode, xy, n_threads=N_THREADS, shape=(BATCH, SIZE, SIZE, 3))


def _jpeg_decoder() -> Callable[[bytes], NDArray[np.uint8]]:
    try:
        from imagecodecs import jpeg8_decode
    except ImportError:
        from PIL import Image

        return lambda stream: np.asarray(Image.open(io.BytesIO(stream)))
    return jpeg8_decode


def _floor(
    decode: Callable[[int, int, int], NDArray[np.uint8]],
    xy: NDArray[np.float64],
    *,
    n_threads: int,
    shape: tuple[int, ...],
    tile: int = CHUNK,
) -> Cut:
    """Decode each touched chunk once; all that can be known before is known before the clock starts.

    Crops are written to memory of this ``shape``, over and over again, a part at a time as chunks come.
    """
    out = [_chw(crops) if shape[-1] == 3 else crops for crops in (np.zeros(shape, np.uint8) for _ in DOWNSAMPLES)]
    jobs = [
        (level, row, col, [(out[level][i % len(out[level])][:, *into], (slice(None), *of)) for i, into, of in pieces])
        for level, downsample in enumerate(DOWNSAMPLES)
        for (row, col), pieces in _pieces(corners(xy, downsample), tile).items()
    ]
    jobs.sort(key=lambda job: (job[1] * DOWNSAMPLES[job[0]], job[2] * DOWNSAMPLES[job[0]]))

    def work(left: Iterator[tuple[int, int, int, list[tuple[NDArray[np.uint8], Any]]]]) -> None:
        for level, row, col, copies in left:
            block = decode(level, row, col)
            for crop, of in copies:
                crop[...] = block[of]

    def cut() -> Iterator[Crops]:
        left = iter(jobs)
        with ThreadPoolExecutor(n_threads) as pool:
            for thread in [pool.submit(work, left) for _ in range(n_threads)]:
                thread.result()
        yield np.arange(len(xy)), tuple(crops[: len(xy)] for crops in out)

    return cut


def _pieces(origins: NDArray[np.int64], tile: int) -> dict[tuple[int, int], list[tuple[int, Any, Any]]]:
    """By row and column of a chunk: which crops it is in, where in the crop, and where in the chunk."""
    found: dict[tuple[int, int], list[tuple[int, Any, Any]]] = {}
    for i, (x, y) in enumerate(origins.tolist()):
        for row, col in product(*(range(low // tile, (low + SIZE - 1) // tile + 1) for low in (y, x))):
            spans = [_overlap(low, chunk * tile, tile) for low, chunk in ((y, row), (x, col))]
            found.setdefault((row, col), []).append((i, tuple(s[0] for s in spans), tuple(s[1] for s in spans)))
    return found


def _overlap(low: int, start: int, tile: int) -> tuple[slice, slice]:
    """Where a crop and a chunk overlap along one axis: in the crop, and in the chunk."""
    first, last = max(low, start), min(low + SIZE, start + tile)
    return slice(first - low, last - low), slice(first - start, last - start)


def pil(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Crop level 0, which is in memory as a whole, at three sizes and shrink the crops: the way of the published code."""
    from PIL import Image

    finest = zarr_levels(slide.zarr)[0]
    image = Image.new("RGB", (slide.side, slide.side))
    for top in range(0, slide.side, CHUNK):
        image.paste(Image.fromarray(np.ascontiguousarray(np.moveaxis(finest[:, top : top + CHUNK], 0, -1))), (0, top))

    def crop(x: float, y: float, downsample: int) -> NDArray[np.uint8]:
        half = SIZE * downsample / 2
        window = image.crop((int(x - half), int(y - half), int(x + half), int(y + half)))
        return np.asarray(window.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    return _a_spot(lambda i: [_chw(crop(*xy[i], downsample)) for downsample in DOWNSAMPLES], xy)


def openslide_regions(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Read a region a spot and level."""
    from openslide import OpenSlide

    file = OpenSlide(slide.tiff)

    def crop(i: int, level: int, downsample: int) -> NDArray[np.uint8]:
        corner = corners(xy[i], downsample) * downsample
        return _chw(np.asarray(file.read_region(tuple(corner.tolist()), level, (SIZE, SIZE)).convert("RGB")))

    return _a_spot(lambda i: [crop(i, level, downsample) for level, downsample in enumerate(DOWNSAMPLES)], xy)


def zarr_slices(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Slice the zarr arrays a spot and level."""
    return _slices(zarr_levels(slide.zarr), xy)


def dask_slices(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Slice the lazy arrays of SpatialData a spot and level."""
    levels = [level.data for level in _levels(_read(slide))]
    return _slices(levels, xy)


def _slices(levels: Sequence[Any], xy: NDArray[np.float64]) -> Cut:
    origins = [corners(xy, downsample).tolist() for downsample in DOWNSAMPLES]

    def crops(i: int) -> list[NDArray[np.uint8]]:
        places = [(level, *origin[i]) for level, origin in zip(levels, origins, strict=True)]
        return [np.asarray(level[:, y : y + SIZE, x : x + SIZE]) for level, x, y in places]

    return _a_spot(crops, xy)


def tensorstore_slices(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Slice through tensorstore, which keeps decoded chunks: 64 spots are asked for at a time."""
    import tensorstore

    context = tensorstore.Context(
        {"cache_pool": {"total_bytes_limit": 2**28}, "data_copy_concurrency": {"limit": N_THREADS}}
    )
    levels = [
        tensorstore.open(
            {"driver": "zarr3", "kvstore": f"file://{array.store.root}"}, context=context, recheck_cached_data=False
        ).result()
        for array in zarr_levels(slide.zarr)
    ]
    origins = [corners(xy, downsample).tolist() for downsample in DOWNSAMPLES]

    def cut() -> Iterator[Crops]:
        for start in range(0, len(xy), BATCH):
            rows = range(start, min(start + BATCH, len(xy)))
            asked = [
                [level[:, y : y + SIZE, x : x + SIZE].read() for x, y in origin[rows.start : rows.stop]]
                for level, origin in zip(levels, origins, strict=True)
            ]
            yield rows, tuple(np.stack([crop.result() for crop in crops]) for crops in asked)

    return cut


def bounding_boxes(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Query each level for the box around a spot."""
    from spatialdata import bounding_box_query

    levels = _levels(_read(slide))
    boxes = [xy - SIZE * downsample / 2 for downsample in DOWNSAMPLES]

    def crop(level: Any, low: NDArray[np.float64], downsample: int) -> NDArray[np.uint8]:
        return bounding_box_query(
            level,
            axes=("x", "y"),
            min_coordinate=low,
            max_coordinate=low + SIZE * downsample,
            target_coordinate_system="global",
        ).to_numpy()

    def crops(i: int) -> list[NDArray[np.uint8]]:
        return [crop(*place) for place in zip(levels, [low[i] for low in boxes], DOWNSAMPLES, strict=True)]

    return _a_spot(crops, xy)


def image_tiles(slide: Slide, xy: NDArray[np.float64], *, images: Sequence[str], rasterize: bool = False) -> Cut:
    """Take the tiles of a data set a level, each from one of these images; ``he`` is that of all levels.

    Without ``rasterize``, tiles of ``he`` are of its finest level, whatever their size, and are shrunk here.
    """
    from PIL import Image
    from spatialdata.dataloader import ImageTilesDataset

    sdata = _read(slide)
    for i, level in enumerate(_levels(sdata)):
        sdata[f"he{i}"] = level
    sdata["spots"] = _circles(xy)
    datasets = [
        ImageTilesDataset(
            sdata,
            regions_to_images={"spots": image},
            regions_to_coordinate_systems={"spots": "global"},
            tile_dim_in_units=SIZE * downsample,
            rasterize=rasterize,
            rasterize_kwargs={"target_width": SIZE} if rasterize else {},
        )
        for image, downsample in zip(images, DOWNSAMPLES, strict=True)
    ]

    def crop(dataset: ImageTilesDataset, i: int) -> NDArray[np.uint8]:
        tile = next(iter(dataset[i].images.values())).to_numpy()
        if tile.shape[1] == SIZE:
            return tile
        whole = Image.fromarray(np.ascontiguousarray(np.moveaxis(tile, 0, -1)))
        return _chw(np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))

    return _a_spot(lambda i: [crop(dataset, i) for dataset in datasets], xy)


def wsidata_tiles(slide: Slide, xy: NDArray[np.float64], *, file: Literal["zarr", "TIFF"]) -> Cut:
    """Take the tiles of a data set a level."""
    from wsidata import open_wsi
    from wsidata.dataset import TileImagesDataset

    warnings.filterwarnings("ignore", message="TileSpec not found")
    wsi = open_wsi(slide.tiff, store=None) if file == "TIFF" else open_wsi(_read(slide), image_key="he")
    datasets = []
    for i, downsample in enumerate(DOWNSAMPLES):
        wsi[f"tiles{i}"] = _squares(xy, SIZE * downsample)
        datasets.append(TileImagesDataset(wsi, f"tiles{i}", image_size=SIZE))
    return _a_spot(lambda i: [_chw(np.asarray(dataset[i]["image"])) for dataset in datasets], xy)


def squidpy_crops(slide: Slide, xy: NDArray[np.float64]) -> Cut:
    """Let squidpy crop around spots, from a container a level."""
    from anndata import AnnData
    from squidpy.im import ImageContainer

    table = AnnData(np.zeros((len(xy), 1), np.float32), obsm={"spatial": xy})
    table.uns["spatial"] = {"he": {"scalefactors": {"spot_diameter_fullres": float(SIZE)}}}
    containers = [
        ImageContainer(level.data, dims=("channels", "y", "x"), scale=1 / downsample)
        for level, downsample in zip(_levels(_read(slide)), DOWNSAMPLES, strict=True)
    ]

    def cut() -> Iterator[Crops]:
        crops = [
            container.generate_spot_crops(table, library_id="he", spot_scale=downsample, as_array="image")
            for container, downsample in zip(containers, DOWNSAMPLES, strict=True)
        ]
        for i, levels in enumerate(zip(*crops, strict=True)):
            # squidpy's are a pixel wider
            yield [i], tuple(_chw(np.asarray(level)[:SIZE, :SIZE])[None] for level in levels)

    return cut


def _a_spot(crops: Callable[[int], list[NDArray[np.uint8]]], xy: NDArray[np.float64]) -> Cut:
    def cut() -> Iterator[Crops]:
        for i in range(len(xy)):
            yield [i], tuple(crop[None] for crop in crops(i))

    return cut


def _chw(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """From colours last to colours before y and x."""
    return np.moveaxis(pixels, -1, -3)


def _read(slide: Slide) -> Any:
    import spatialdata

    return spatialdata.read_zarr(slide.zarr)


def _levels(sdata: Any) -> list[Any]:
    """Single-scale images, finest first."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    return [
        Image2DModel.parse(
            sdata["he"][f"scale{level}"]["image"].data,
            dims=("c", "y", "x"),
            transformations={"global": Scale([downsample, downsample], axes=("x", "y"))},
        )
        for level, downsample in enumerate(DOWNSAMPLES)
    ]


def _circles(xy: NDArray[np.float64]) -> Any:
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(xy, geometry=0, radius=SIZE / 2)


def _squares(xy: NDArray[np.float64], side: int) -> Any:
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel

    (left, top), (right, bottom) = (xy - side / 2).T, (xy + side / 2).T
    return ShapesModel.parse(geopandas.GeoDataFrame(geometry=shapely.box(left, top, right, bottom)))


_SHRUNK = "levels 1 and 2 are shrunk from level 0 by another filter"

FLOORS = {
    "floor, zarr, 2 threads": Way(open=partial(zarr_floor, n_threads=2), file="zarr", packages=("numcodecs",)),
    "floor, zarr, 1 thread": Way(open=partial(zarr_floor, n_threads=1), file="zarr", packages=("numcodecs",)),
    "floor, zarr, 3 batches in memory": Way(
        open=partial(zarr_floor, n_threads=2, n_batches=3), file="zarr", packages=("numcodecs",)
    ),
    "chunks through zarr": Way(open=zarr_chunks, file="zarr", packages=("zarr",)),
    "floor, TIFF, 2 threads": Way(open=partial(tiff_floor, n_threads=2), file="TIFF", packages=("tifffile", "PIL")),
    "floor, TIFF, 1 thread": Way(open=partial(tiff_floor, n_threads=1), file="TIFF", packages=("tifffile", "PIL")),
    "floor, TIFF, 3 batches in memory": Way(
        open=partial(tiff_floor, n_threads=2, n_batches=3), file="TIFF", packages=("tifffile", "PIL")
    ),
    "floor, TIFF of 256 px, 2 threads": Way(
        open=partial(tiff_floor, n_threads=2, tile=SMALL), file="TIFF of 256 px", packages=("tifffile", "PIL")
    ),
    "floor, TIFF of 256 px, 1 thread": Way(
        open=partial(tiff_floor, n_threads=1, tile=SMALL), file="TIFF of 256 px", packages=("tifffile", "PIL")
    ),
    "tiles through OpenSlide": Way(open=openslide_tiles, file="TIFF", packages=("openslide",)),
}
PEERS = {
    "PIL, the published way": Way(open=pil, file="zarr", packages=("PIL",), differs=_SHRUNK),
    "OpenSlide, a spot": Way(open=openslide_regions, file="TIFF", packages=("openslide",)),
    "zarr, a spot": Way(open=zarr_slices, file="zarr", packages=("zarr",)),
    "dask, a spot": Way(open=dask_slices, file="zarr", packages=("spatialdata",)),
    "tensorstore": Way(open=tensorstore_slices, file="zarr", packages=("tensorstore",)),
    "bounding_box_query": Way(open=bounding_boxes, file="zarr", packages=("spatialdata",)),
    "ImageTilesDataset, box": Way(
        open=partial(image_tiles, images=["he"] * 3), file="zarr", packages=("spatialdata.dataloader",), differs=_SHRUNK
    ),
    "ImageTilesDataset, rasterize": Way(
        open=partial(image_tiles, images=["he"] * 3, rasterize=True),
        file="zarr",
        packages=("spatialdata.dataloader",),
        differs="takes single pixels of a finer level",
    ),
    "ImageTilesDataset of single levels": Way(
        open=partial(image_tiles, images=["he0", "he1", "he2"]), file="zarr", packages=("spatialdata.dataloader",)
    ),
    "wsidata, TIFF": Way(
        open=partial(wsidata_tiles, file="TIFF"), file="TIFF", packages=("wsidata.dataset", "spatialdata")
    ),
    "wsidata, SpatialData": Way(
        open=partial(wsidata_tiles, file="zarr"), file="zarr", packages=("wsidata.dataset", "spatialdata")
    ),
    "squidpy": Way(open=squidpy_crops, file="zarr", packages=("squidpy",)),
}
