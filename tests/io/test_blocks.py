"""Lazy images, read block by block: the pixels of dask itself, and how often each part of the source is decoded."""

from __future__ import annotations

import gc
import logging
import pickle
import re
import shutil
import threading
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from pathlib import Path

import dask
import dask.array as da
import dask_image.imread
import numpy as np
import pytest
import tifffile
import zarr
from dask.highlevelgraph import HighLevelGraph
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from st_predict.crops import iter_batches, plan_crops
from st_predict.io import SpatialDataPyramid, _blocks, _levels, _source_file, open_pyramid
from st_predict.io._blocks import SharedBlocks
from st_predict.specs import CropSpec, LevelSpec

SHAPE = (3, 480, 640)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
SMOOTH = np.kron(PIXELS[:, ::8, ::8], np.ones((1, 8, 8), np.uint8)).transpose(1, 2, 0).copy()


class Source:
    """A lazy image that counts how often each of its blocks is decoded."""

    def __init__(self, chunks=(3, 128, 128), pixels=PIXELS) -> None:
        self.decoded: Counter[tuple[int, ...]] = Counter()
        self._lock = threading.Lock()
        self._pixels = pixels
        sizes = da.core.normalize_chunks(chunks, pixels.shape)
        self.array = da.map_blocks(self._decode, chunks=sizes, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))

    def _decode(self, *, block_info):
        location = block_info[None]["array-location"]
        with self._lock:
            self.decoded[block_info[None]["chunk-location"]] += 1
        return self._pixels[tuple(slice(*side) for side in location)].copy()

    def __dask_tokenize__(self):
        return id(self)


def image(array, **options):
    return Image2DModel.parse(array, dims=("c", "y", "x"), **options)


def levels(element) -> list[np.ndarray]:
    """Levels as dask computes them, ``(height, width, 3)``."""
    nodes = [element] if not hasattr(element, "children") else [s["image"] for s in element.children.values()]
    return [np.asarray(node.transpose("y", "x", "c").data) for node in nodes]


def read_all(reader, n_threads=4) -> list[np.ndarray]:
    """All levels, block by block and line by line, the coarse ones beside the fine ones."""
    out = [np.zeros((*shape, 3), np.uint8) for shape in reader.level_shapes]

    def read(level, y, x):
        out[level][slice(*y), slice(*x)] = reader.read(x[0], y[0], x[1] - x[0], y[1] - y[0], level=level)

    places = []
    for level, downsample in enumerate(reader.downsamples):
        ys, xs = (list(pairwise(edge.tolist())) for edge in reader.edges(level))
        places += [(y[0] * downsample, level, y, x) for y, x in product(ys, xs)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda place: read(*place[1:]), sorted(places)))
    return out


def assert_same(found, expected) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


WAYS = {
    "as it is": lambda a: a,
    "finer chunks": lambda a: a.rechunk((3, 64, 64)),
    "chunks across those of the source": lambda a: a.rechunk((3, 100, 90)),
    "sliced": lambda a: a[:, 30:400, 77:600],
    "sliced and rechunked": lambda a: a[:, 30:400, 77:600].rechunk((3, 64, 64)),
    "mirrored": lambda a: a[:, ::-1, ::-1].rechunk((3, 64, 64)),
    "transposed": lambda a: a.transpose(1, 2, 0).rechunk((64, 64, 3)).transpose(2, 0, 1),
    "channels apart": lambda a: a.rechunk((1, 64, 64)),
    "channels in another order": lambda a: a[[2, 1, 0]].rechunk((3, 64, 64)),
    "computed": lambda a: (255 - a.astype(np.float32)).round().astype(np.uint8).rechunk((3, 64, 64)),
    "of two parts": lambda a: da.concatenate([a[:, :200], a[:, 200:]], axis=1).rechunk((3, 64, 64)),
}


@pytest.mark.parametrize("chunks", [(3, 480, 640), (3, 128, 128), (1, 480, 640)], ids=["one", "many", "a channel"])
@pytest.mark.parametrize("scale_factors", [None, [2, 2]], ids=["flat", "pyramid"])
@pytest.mark.parametrize("way", WAYS)
def test_each_block_of_the_source_is_decoded_once(way, chunks, scale_factors):
    source = Source(chunks)
    element = image(WAYS[way](source.array), scale_factors=scale_factors)
    found = read_all(open_pyramid(SpatialData(images={"he": element})))
    counts, source.decoded = source.decoded, Counter()
    assert_same(found, levels(element))
    assert set(counts) == set(source.decoded)
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_crops_decode_a_single_block_once(scale_factors):
    source = Source((3, 480, 640))
    reader = SpatialDataPyramid(image(source.array.rechunk((3, 64, 64)), scale_factors=scale_factors))
    spec = CropSpec(levels=(LevelSpec(size=32), LevelSpec(size=32, downsample=2)))
    xy = np.stack(np.meshgrid(np.arange(40, 600, 30), np.arange(40, 440, 30)), -1).reshape(-1, 2).astype(float)
    plan = plan_crops(xy, spec, downsamples=reader.downsamples)
    for batch in iter_batches(reader, plan, n_threads=4):
        for (x, y), crop in zip(plan[0].origins[batch.index.numpy()], batch.crops[0].numpy(), strict=True):
            np.testing.assert_array_equal(crop, PIXELS[:, y : y + 32, x : x + 32])
    assert source.decoded == {(0, 0, 0): 1}


@pytest.fixture
def tiff(tmp_path) -> Path:
    tifffile.imwrite(tmp_path / "tissue.tif", PIXELS.transpose(1, 2, 0), photometric="rgb")
    return tmp_path / "tissue.tif"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Files that dask_image decodes, each as a whole."""
    files, read_frame = [], dask_image.imread._read_frame

    def counting(fn, *args, **kwargs):
        files.append(Path(fn).name)
        return read_frame(fn, *args, **kwargs)

    monkeypatch.setattr(dask_image.imread, "_read_frame", counting)
    return files


@pytest.mark.parametrize("options", [{}, {"chunks": (3, 64, 64)}, {"scale_factors": [2, 2, 2, 2]}])
def test_a_tiff_of_one_chunk_is_decoded_once(tiff, decoded, options):
    array = dask_image.imread.imread(tiff).squeeze(0).transpose(2, 0, 1)
    element = image(array, **options)
    found = read_all(open_pyramid(SpatialData(images={"he": element})))
    assert decoded == ["tissue.tif"]
    np.testing.assert_array_equal(found[0], PIXELS.transpose(1, 2, 0))
    assert_same(found, levels(element))


@pytest.mark.filterwarnings("ignore:Converting `region_key")
def test_a_section_of_spatialdata_io_is_decoded_once(tmp_path, tiff, decoded):
    from spatialdata_io import visium

    space_ranger(tmp_path)
    sdata = visium(tmp_path, dataset_id="s", counts_file="s_counts.h5", fullres_image_file=tiff)
    reader = open_pyramid(sdata, "s_full_image")
    assert len(reader.level_shapes) == 5
    found = read_all(reader)
    assert decoded.count("tissue.tif") == 1
    assert_same(found, levels(sdata["s_full_image"]))


def space_ranger(folder: Path) -> None:
    """Files of Space Ranger as spatialdata_io reads them: two spots, one gene."""
    import h5py

    (folder / "spatial").mkdir()
    positions = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    (folder / "spatial" / "tissue_positions.csv").write_text(positions + "A-1,1,0,0,100,100\nB-1,1,0,2,100,200\n")
    scales = '{"spot_diameter_fullres": 50, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}'
    (folder / "spatial" / "scalefactors_json.json").write_text(scales)
    with h5py.File(folder / "s_counts.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"], matrix["data"] = np.array([b"A-1", b"B-1"]), np.array([1, 2])
        matrix["indices"], matrix["indptr"], matrix["shape"] = np.array([0, 0]), np.array([0, 1, 2]), np.array([1, 2])
        for name, value in {"id": b"G", "name": b"G", "feature_type": b"Gene Expression", "genome": b"g"}.items():
            matrix[f"features/{name}"] = np.array([value])
        file.attrs["library_ids"] = np.array([b"s"])


@pytest.mark.slow
def test_results_beyond_the_memory_go_to_disk(monkeypatch, tmp_path, caplog):
    """The whole image is larger than the limit, and each block of it fits."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_blocks, "MEMORY", 250_000)
    monkeypatch.setattr("st_predict.io._spool.LOGGED", 1)
    source = Source((3, 480, 640))
    element = image(source.array.rechunk((3, 64, 64)), scale_factors=[2, 2])
    reader = open_pyramid(SpatialData(images={"he": element}))
    with caplog.at_level(logging.INFO, logger="st_predict"):
        found = read_all(reader)
    assert source.decoded == {(0, 0, 0): 1}
    assert re.search(r"Image 'he': 0.0 GB of pixels are kept in .*st_predict-", caplog.text)
    assert_same(found, levels(element))
    (folder,) = tmp_path.glob("st_predict-*")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.1 * PIXELS.nbytes
    del reader
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_many_blocks_that_do_not_fit_together_are_decoded_once(monkeypatch, tmp_path, order):
    """Each line of small blocks touches all large ones of the source in turn."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_blocks, "MEMORY", 3 * 160 * 160 + 1)
    chunks = {0: 3, 1: 160, 2: 160}
    source = Source(tuple(chunks[axis] for axis in order), PIXELS.transpose(order))
    element = image(source.array.transpose(np.argsort(order).tolist()).rechunk((3, 32, 32)))
    assert_same(read_all(SpatialDataPyramid(element), n_threads=1), [PIXELS.transpose(1, 2, 0)])
    assert set(source.decoded.values()) == {1}


def test_memory_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_blocks, "MEMORY", 200_000)
    reader = SpatialDataPyramid(image(Source((3, 64, 64)).array, scale_factors=[2, 2]))
    read_all(reader)
    shared = reader._levels[0]._blocks
    assert 0 < sum(n for _, n in shared._in_memory.values()) == shared._n_bytes <= 200_000
    assert list(tmp_path.iterdir()) == []  # cheaper to compute the few again


def test_nothing_is_kept_of_what_one_block_needs():
    reader = SpatialDataPyramid(image(Source().array[:, 5:]))
    read_all(reader)
    assert reader._levels[0]._blocks._in_memory == {}


def test_a_large_block_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(_levels, "LARGE", 3 * 200 * 200)
    monkeypatch.setattr(_levels, "PIECE", 100)
    source = Source((3, 300, 640))
    reader = SpatialDataPyramid(image(source.array))
    y, x = reader.edges(0)
    np.testing.assert_array_equal(y, [0, 100, 200, 300, 400, 480])
    np.testing.assert_array_equal(x, [0, 100, 200, 300, 400, 500, 600, 640])
    assert_same(read_all(reader), [PIXELS.transpose(1, 2, 0)])
    np.testing.assert_array_equal(
        reader.read(30, 250, 500, 100, level=0), PIXELS[:, 250:350, 30:530].transpose(1, 2, 0)
    )
    assert source.decoded == {(0, 0, 0): 1, (0, 1, 0): 1}


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_blocks, "MEMORY", 100_000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 1000, 5))
    reader = open_pyramid(SpatialData(images={"he": image(Source((3, 480, 640)).array.rechunk((3, 64, 64)))}))
    with pytest.raises(OSError, match=r"pixels of image 'he' temporarily need 0.0 GB.* Set TMPDIR to another folder"):
        reader.read(0, 0, 64, 64, level=0)


def test_a_block_that_failed_is_tried_again():
    fails = [OSError("gone"), None]

    def decode(block):
        if (error := fails.pop(0)) is not None:
            raise error
        return block

    lazy = da.from_array(PIXELS, chunks=-1).map_blocks(decode, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    reader = SpatialDataPyramid(image(lazy.rechunk((3, 64, 64))))
    with pytest.raises(OSError, match=r"x 0, y 0, 64 x 64 px: cannot be read.*gone"):
        reader.read(0, 0, 64, 64, level=0)
    assert_same(read_all(reader), [PIXELS.transpose(1, 2, 0)])


def test_a_reader_goes_to_another_process():
    element = image(da.from_array(PIXELS, chunks=(3, 128, 128)).rechunk((3, 64, 64)) + 0, scale_factors=[2])
    reader = SpatialDataPyramid(element)
    assert_same(read_all(pickle.loads(pickle.dumps(reader))), read_all(reader))


@pytest.mark.parametrize("rechunk", [False, True])
@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_a_remote_store_is_asked_once_for_each_chunk(loopback, tmp_path, rechunk, scale_factors):
    array = zarr.create_array(tmp_path / "he.zarr", shape=SHAPE, chunks=(3, 128, 128), dtype="uint8")
    array[:] = PIXELS
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    loopback.files |= {f"/{file.relative_to(tmp_path).as_posix()}": file.read_bytes() for file in files}
    lazy = da.from_zarr(f"{loopback.url}/he.zarr")
    element = image(lazy.rechunk((3, 64, 64)) if rechunk else lazy, scale_factors=scale_factors)
    expected = levels(element)
    loopback.asked.clear()
    assert_same(read_all(SpatialDataPyramid(element)), expected)
    chunks = Counter(path for path in loopback.asked if "/c/" in path)
    assert len(chunks) == 4 * 5
    assert set(chunks.values()) == {1}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_task_of_any_graph_runs_twice(data):
    """Graphs of 20 tasks, each of which needs some of those before it."""
    n, ran = 20, Counter()

    def run(i, *needs):
        ran[i] += 1
        return np.full((3, 4, 4), (i + sum(int(need[0, 0, 0]) for need in needs)) % 251, np.uint8)

    graph, blocks = {}, data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8, unique=True))
    for i in range(n):
        needs = data.draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        graph["task", i] = (run, i, *(("task", need) for need in needs))
    graph |= {("he", 0, 0, place): ("task", i) for place, i in enumerate(blocks)}
    lazy = da.Array(HighLevelGraph.from_collections("he", graph), "he", ((3,), (4,), (4,) * len(blocks)), np.uint8)
    expected, _ = lazy.compute(scheduler="synchronous"), ran.clear()
    shared = SharedBlocks([lazy], name="he")
    for place in data.draw(st.permutations(range(len(blocks)))):
        np.testing.assert_array_equal(shared.get(("he", 0, 0, place)), expected[..., 4 * place : 4 * place + 4])
    assert set(ran.values()) == {1}


def test_threads_wait_for_what_another_one_computes():
    source = Source((3, 480, 640))
    reader = SpatialDataPyramid(image(source.array.rechunk((3, 32, 32))))
    start = threading.Barrier(8)

    def read(i):
        start.wait()
        return reader.read(32 * i, 0, 32, 32, level=0)

    with ThreadPoolExecutor(8) as pool:
        for i, block in enumerate(pool.map(read, range(8))):
            np.testing.assert_array_equal(block, PIXELS[:, :32, 32 * i : 32 * i + 32].transpose(1, 2, 0))
    assert source.decoded == {(0, 0, 0): 1}


def test_dask_optimised_arrays_read_the_same():
    source = Source((3, 480, 640))
    (lazy,) = dask.optimize(source.array.rechunk((3, 64, 64)))
    assert_same(read_all(SpatialDataPyramid(image(lazy))), [PIXELS.transpose(1, 2, 0)])
    assert source.decoded == {(0, 0, 0): 1}


FILES = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "compressed strips": {"rowsperstrip": 32, "compression": "zlib"},
    "predicted strips": {"rowsperstrip": 32, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (64, 80), "compression": "zlib"},
    "JPEG tiles": {"tile": (64, 80), "compression": "jpeg"},
    "JPEG strips": {"rowsperstrip": 32, "compression": "jpeg"},
    "big, other byte order": {"rowsperstrip": 50, "compression": "zlib", "bigtiff": True, "byteorder": ">"},
    "OME": {"rowsperstrip": 32, "compression": "zlib", "ome": True},
    "without a shape": {"rowsperstrip": 32, "compression": "zlib", "metadata": None},
}


@pytest.mark.parametrize(
    ("name", "scale_factors"), [*((name, None) for name in FILES), ("strips", [2, 2]), ("JPEG tiles", [2, 2])]
)
def test_a_large_tiff_is_decoded_in_parts(tmp_path, monkeypatch, caplog, name, scale_factors):
    """The library that made the image is asked only for some rows, to compare them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_blocks, "MEMORY", 300_000)
    monkeypatch.setattr(_source_file, "PART", 50 * 640 * 3)
    tifffile.imwrite(tmp_path / "tissue.tif", SMOOTH, photometric="rgb", **FILES[name])
    rows, read_frame = [], dask_image.imread._read_frame
    monkeypatch.setattr(
        dask_image.imread,
        "_read_frame",
        lambda *args, **kwargs: rows.append((found := read_frame(*args, **kwargs)).shape[1]) or found,
    )
    array = dask_image.imread.imread(tmp_path / "tissue.tif").squeeze(0).transpose(2, 0, 1)
    element = image(array, **({"chunks": (3, 64, 64)} if scale_factors is None else {"scale_factors": scale_factors}))
    reader = open_pyramid(SpatialData(images={"he": element}))
    with caplog.at_level(logging.WARNING):
        found = read_all(reader)
    assert caplog.text == ""
    assert len(rows) == 1
    assert rows[0] < SHAPE[1]
    assert_same(found, levels(element))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.npy")) < 1.6 * PIXELS.nbytes
    del reader
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["tissue.tif"]


def read_inverted(names, **_):
    """What a library may do with a file beside decoding it."""
    return 255 - tifffile.imread(names[0])[None]


@pytest.mark.parametrize(
    ("options", "read", "message"),
    [
        ({"rowsperstrip": 32, "compression": "zlib"}, read_inverted, "as its parts cannot be checked"),
        (
            {"compression": "zlib", "rowsperstrip": 480},
            lambda names: tifffile.imread(names[0])[None],
            "as it cannot be decoded in parts",
        ),
    ],
    ids=["other pixels", "a single strip"],
)
def test_a_tiff_that_cannot_be_trusted_is_decoded_as_a_whole(tmp_path, monkeypatch, caplog, options, read, message):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_blocks, "MEMORY", 300_000)
    tifffile.imwrite(tmp_path / "tissue.tif", SMOOTH, photometric="rgb", **options)
    names = da.from_array([str(tmp_path / "tissue.tif")], chunks=1)
    array = names.map_blocks(read, chunks=((1,), *((side,) for side in SMOOTH.shape)), new_axis=[1, 2, 3], dtype=np.uint8,
                             meta=np.empty((0, 0, 0, 0), np.uint8))  # fmt: skip
    element = image(array.squeeze(0).transpose(2, 0, 1), chunks=(3, 64, 64))
    with caplog.at_level(logging.INFO, logger="st_predict"):
        found = read_all(open_pyramid(SpatialData(images={"he": element})))
    assert_same(found, levels(element))
    assert caplog.text.count(message) == 1
