"""The short ways to pixels, against zarr and dask themselves."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel
from zarr.abc.store import RangeByteRequest
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.storage import WrapperStore

from st_predict.crops import iter_batches, plan_crops
from st_predict.io import SpatialDataPyramid, _levels, open_pyramid
from st_predict.io._levels import DaskLevel, MemoryLevel, ZarrLevel, levels_of
from st_predict.specs import CropSpec, LevelSpec

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (3, 150, 230)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def stored(path: Path, **options) -> zarr.Array:
    array = zarr.create_array(path, shape=SHAPE, dtype="uint8", **{"chunks": (3, 64, 64), **options})
    array[:] = PIXELS
    return array


def level_of(array: da.Array) -> DaskLevel | MemoryLevel | ZarrLevel:
    return levels_of([array], "he")[0]


def blocks(level) -> np.ndarray:
    """The whole level, read block by block."""
    out = np.zeros(SHAPE, np.uint8)
    y_edges, x_edges = (edge.tolist() for edge in level.edges)
    for top, bottom in pairwise(y_edges):
        for left, right in pairwise(x_edges):
            out[:, top:bottom, left:right] = level.read(slice(top, bottom), slice(left, right))
    return out


def no_zarr(monkeypatch) -> None:
    """Whoever asks zarr for pixels from now on fails."""

    def fail(*_):
        raise AssertionError("read through zarr")

    monkeypatch.setattr(zarr.Array, "__getitem__", fail)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("codec", ["zstd", "blosc", "gzip", "none"])
def test_files_are_decoded_as_zarr_decodes_them(tmp_path, monkeypatch, codec, zarr_format):
    import numcodecs

    codecs = {
        2: {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc(), "gzip": numcodecs.GZip(), "none": None},
        3: {"zstd": ZstdCodec(checksum=True), "blosc": BloscCodec(), "gzip": GzipCodec(), "none": None},
    }
    array = stored(tmp_path / "a.zarr", compressors=codecs[zarr_format][codec], zarr_format=zarr_format)
    no_zarr(monkeypatch)
    np.testing.assert_array_equal(blocks(ZarrLevel(array)), PIXELS)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (3, 32, 32), "shards": (3, 64, 64)},
        {"chunks": (1, 64, 64)},
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"order": "F", "zarr_format": 2},
    ],
)
def test_what_is_not_one_simple_file_a_block_is_left_to_zarr(tmp_path, options):
    level = ZarrLevel(stored(tmp_path / "a.zarr", **options))
    assert level._files is None
    np.testing.assert_array_equal(blocks(level), PIXELS)


def test_a_store_in_memory_is_left_to_zarr():
    array = zarr.create_array(zarr.storage.MemoryStore(), shape=SHAPE, chunks=(3, 64, 64), dtype="uint8")
    array[:] = PIXELS
    np.testing.assert_array_equal(blocks(ZarrLevel(array)), PIXELS)


def test_any_region_can_be_read(tmp_path):
    for level in (ZarrLevel(stored(tmp_path / "a.zarr")), level_of(da.from_array(PIXELS, chunks=(3, 64, 64)))):
        region = level.read(slice(10, 140), slice(60, 70))
        np.testing.assert_array_equal(region, PIXELS[:, 10:140, 60:70])


def test_a_block_that_was_never_written_has_the_fill_value(tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, chunks=(3, 64, 64), dtype="uint8", fill_value=255)
    array[:, :64, :64] = 7
    whole = blocks(ZarrLevel(array))
    assert (whole[:, :64, :64] == 7).all()
    assert (whole[:, 64:] == 255).all()


@pytest.mark.parametrize("rest", [b"", b"nonsense"])
def test_a_damaged_file_is_named(tmp_path, rest):
    array = stored(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "c" / "0" / "1" / "2"
    file.write_bytes(rest)
    with pytest.raises(OSError, match=r"c/0/1/2.* is damaged"):
        ZarrLevel(array).read(slice(64, 128), slice(128, 192))


def test_an_image_on_disk_is_read_from_its_zarr_array(tmp_path, monkeypatch):
    image = Image2DModel.parse(PIXELS, dims=("c", "y", "x"), scale_factors=[2])
    SpatialData(images={"he": image}).write(tmp_path / "s.zarr")
    reader = open_pyramid(read_zarr(tmp_path / "s.zarr"))
    no_zarr(monkeypatch)
    np.testing.assert_array_equal(reader.read(0, 0, 230, 150, level=0), PIXELS.transpose(1, 2, 0))


@pytest.mark.parametrize("change", [lambda a: 255 - a, lambda a: a[:, ::-1], lambda a: a.rechunk((3, 40, 40))])
def test_what_dask_still_has_to_do_is_done(tmp_path, change):
    stored(tmp_path / "a.zarr")
    lazy = change(da.from_zarr(tmp_path / "a.zarr"))
    for array in (lazy, dask.optimize(lazy)[0]):
        level = level_of(array)
        assert type(level) is DaskLevel
        np.testing.assert_array_equal(blocks(level), change(da.from_array(PIXELS)).compute())


def test_blocks_in_memory_are_not_copied():
    level = level_of(da.from_array(PIXELS, chunks=(3, 64, 100)))
    assert type(level) is MemoryLevel
    np.testing.assert_array_equal(blocks(level), PIXELS)
    assert np.shares_memory(*(level.read(slice(64, 128), slice(100, 200)) for _ in range(2)))


def test_an_array_in_memory_that_is_split_by_channel():
    level = level_of(da.from_array(PIXELS, chunks=(1, 64, 100)))
    np.testing.assert_array_equal(blocks(level), PIXELS)


class CountingStore(WrapperStore):
    """Remembers which bytes of which file are asked for."""

    def __init__(self, store) -> None:
        super().__init__(store)
        self.asked: list[tuple[str, Any]] = []

    async def get(self, key, prototype, byte_range=None):
        self.asked.append((key, byte_range))
        return await super().get(key, prototype, byte_range)


@pytest.mark.parametrize("lazy", [False, True])
def test_chunks_of_shards_are_decoded_once_and_few_at_a_time(monkeypatch, lazy):
    monkeypatch.setattr(_levels, "PIECE", 40)
    store = CountingStore(zarr.storage.MemoryStore())
    array = zarr.create_array(store, shape=SHAPE, chunks=(3, 25, 25), shards=(3, 125, 100), dtype="uint8")
    array[:] = PIXELS
    store.asked.clear()
    level = level_of(da.from_zarr(array)) if lazy else ZarrLevel(array)
    np.testing.assert_array_equal(level.edges[0], [0, 50, 100, 150])
    assert np.diff(level.edges[1]).max() == 50
    np.testing.assert_array_equal(blocks(level), PIXELS)
    chunks = Counter((key, span.start) for key, span in store.asked if isinstance(span, RangeByteRequest))
    assert len(chunks) == 6 * 10
    assert set(chunks.values()) == {1}
    assert all(span is not None for key, span in store.asked if key.startswith("c/"))  # None is a shard as a whole


@pytest.mark.parametrize("pixel_by_pixel", [False, True])
def test_an_array_in_memory_says_how_its_pixels_lie(pixel_by_pixel):
    """Crops lie as the pixels do, so that copying them takes one step."""
    array = da.from_array(PIXELS, chunks=(3, 64, 100))
    if pixel_by_pixel:
        array = da.from_array(PIXELS.transpose(1, 2, 0), chunks=(64, 100, 3)).transpose(2, 0, 1)
    reader = SpatialDataPyramid(Image2DModel.parse(array.persist(scheduler="synchronous"), dims=("c", "y", "x")))
    assert type(reader._levels[0]) is MemoryLevel
    assert reader.interleaved == pixel_by_pixel
    plan = plan_crops(np.array([[80.0, 90.0], [100, 60]]), CropSpec(levels=(LevelSpec(size=40),)), downsamples=[1])
    (batch,) = iter_batches(reader, plan, batch_size=None)
    (crops,) = batch.crops
    assert crops.is_contiguous(memory_format=torch.channels_last) == pixel_by_pixel
    for crop, (x, y) in zip(crops.numpy(), plan[0].origins.tolist(), strict=True):
        np.testing.assert_array_equal(crop, PIXELS[:, y : y + 40, x : x + 40])
