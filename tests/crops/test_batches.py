"""Crops against an image whose colours say where a pixel is, and against the resampling of Pillow."""

from __future__ import annotations

import threading
import time
import tracemalloc
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from st_predict._errors import InvalidValueError, StPredictError
from st_predict.crops import Batch, _batches, _chunks, _cutters, iter_batches, plan_crops
from st_predict.crops._batches import reading_order
from st_predict.crops._cutters import Buffers
from st_predict.datasets import toy
from st_predict.io import open_pyramid
from st_predict.specs import CropSpec, LevelSpec

WIDTH, HEIGHT = 600, 400  # of the fixture


def spec_of(*levels: tuple[int, float]) -> CropSpec:
    return CropSpec(levels=tuple(LevelSpec(size=size, downsample=d) for size, d in levels))


def read_all(reader, xy, spec, **options) -> list[np.ndarray]:
    """Crops ``(n_spots, size, size, 3)`` of each level, in the order of ``xy``."""
    plan = plan_crops(np.asarray(xy, float), spec, downsamples=reader.downsamples)
    out = [np.zeros((len(xy), level.size, level.size, 3), np.uint8) for level in spec.levels]
    seen = []
    for batch in iter_batches(reader, plan, **options):
        assert all(crop.dtype == torch.uint8 and crop.is_contiguous() for crop in batch.crops)
        seen += batch.index.tolist()
        for level, crop in zip(out, batch.crops, strict=True):
            level[batch.index.numpy()] = crop.permute(0, 2, 3, 1).numpy()
    assert sorted(seen) == list(range(len(xy)))
    return out


class FakePyramid:
    """One level of noise, in 2 x 100 chunks of 40 x 20 px; counts what is read, and may be slow or broken."""

    level_shapes = ((64, 2000),)
    downsamples = (1.0,)

    def __init__(self, *, fail_after: int | None = None, jitter: float = 0.0) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (*self.level_shapes[0], 3), dtype=np.uint8)
        self.n_reads, self.regions = 0, []
        self._fail_after, self._jitter, self._lock = fail_after, jitter, threading.Lock()

    def edges(self, level):
        return np.array([0, 40, 64]), np.arange(0, 2001, 20)

    def read(self, x, y, width, height, *, level):
        with self._lock:
            self.n_reads += 1
            self.regions.append((x, y, width, height, level))
            if self._fail_after is not None and self.n_reads > self._fail_after:
                raise OSError("the disk is broken")
        time.sleep(self._jitter * (self.n_reads % 3))
        return self.pixels[y : y + height, x : x + width]


def in_a_row(n: int) -> np.ndarray:
    return np.stack([np.linspace(10, 1990, n), np.full(n, 32.0)], axis=1)


def within(seconds: float, function) -> None:
    """Run in a thread, so that a test that hangs fails instead."""
    errors = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"still running after {seconds} s"
    if errors:
        raise errors[0]


# Where pixels come from


class InterleavedPyramid(FakePyramid):
    interleaved = True


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("spec", [spec_of((16, 1)), spec_of((16, 1), (24, 2.5))], ids=["as stored", "resampled"])
def test_crops_of_interleaved_pixels_are_the_same_and_lie_as_these(spec, device):
    xy = np.concatenate([in_a_row(40), [[2, 2], [1999, 60]]])  # some leave the image
    reader = InterleavedPyramid()
    plan = plan_crops(xy, spec, downsamples=reader.downsamples)
    for ours, plain in zip(
        iter_batches(reader, plan, batch_size=16, device=device),
        iter_batches(FakePyramid(), plan, batch_size=16),
        strict=True,
    ):
        for crop, expected in zip(ours.crops, plain.crops, strict=True):
            assert torch.equal(crop, expected)
            assert expected.is_contiguous()
            assert crop.is_contiguous(memory_format=torch.channels_last) == (device is None)


@pytest.mark.parametrize("downsample", [1, 2, 4])
def test_crops_are_centred_at_every_stored_level(sdata, downsample):
    reader = open_pyramid(sdata, "he")
    xy = [(300, 200), (148, 252), (8, 8), (596, 392), (300, 0)]
    (crops,) = read_all(reader, xy, spec_of((16, downsample)))
    for crop, (x, y) in zip(crops, xy, strict=True):
        np.testing.assert_array_equal(crop, coordinate_crop(x, y, 16, downsample))


def coordinate_crop(x: float, y: float, size: int, downsample: int, outside: int = 255) -> np.ndarray:
    """What the fixture shows around a point: x // 4 and y // 4, and the grey value outside."""
    left_edges = (np.arange(size) - size / 2) * downsample
    xx, yy = np.meshgrid(x + left_edges, y + left_edges)
    crop = np.stack([xx // 4, yy // 4, np.zeros_like(xx)], axis=-1)
    crop[(xx < 0) | (xx >= WIDTH) | (yy < 0) | (yy >= HEIGHT)] = outside
    return crop.astype(np.uint8)


def test_levels_of_a_batch_show_the_same_centre(sdata):
    crops = read_all(open_pyramid(sdata, "he"), [(300, 200)], spec_of((16, 1), (16, 2), (16, 4)))
    for crop, downsample in zip(crops, (1, 2, 4), strict=True):
        np.testing.assert_array_equal(crop[0], coordinate_crop(300, 200, 16, downsample))


@pytest.mark.parametrize("pad_value", [255, 0, 17])
def test_outside_of_the_image_is_grey(sdata, pad_value):
    xy = [(0, 0), (WIDTH, HEIGHT), (0, HEIGHT), (WIDTH, 0), (-500, 200), (300, 5000), (-8, -8), (WIDTH + 8, 200)]
    (crops,) = read_all(open_pyramid(sdata, "he"), xy, spec_of((16, 1)), pad_value=pad_value)
    for crop, (x, y) in zip(crops, xy, strict=True):
        np.testing.assert_array_equal(crop, coordinate_crop(x, y, 16, 1, pad_value))
    assert (crops[4:] == pad_value).all()


def test_a_crop_larger_than_the_image(sdata):
    (crops,) = read_all(open_pyramid(sdata, "he"), [(300, 200)], spec_of((256, 4)))
    np.testing.assert_array_equal(crops[0], coordinate_crop(300, 200, 256, 4))


def test_nothing_outside_of_a_level_is_asked_for(sdata):
    inner = open_pyramid(sdata, "he")

    class Strict:
        level_shapes, downsamples, edges = inner.level_shapes, inner.downsamples, inner.edges

        def read(self, x, y, width, height, *, level):
            rows, columns = self.level_shapes[level]
            assert width > 0 and height > 0
            assert 0 <= x <= x + width <= columns
            assert 0 <= y <= y + height <= rows
            return inner.read(x, y, width, height, level=level)

    xy = np.random.default_rng(0).uniform(-100, 700, (40, 2))
    read_all(Strict(), xy, spec_of((16, 1), (16, 2), (16, 3), (16, 4)))


# Which spots, in which order


@pytest.mark.parametrize("batch_size", [1, 5, 64, None])
def test_every_spot_comes_once_whatever_the_batch_size(batch_size):
    reader, xy = FakePyramid(), np.random.default_rng(1).permutation(in_a_row(33))
    (crops,) = read_all(reader, xy, spec_of((6, 1)), batch_size=batch_size)
    for crop, (x, y) in zip(crops, xy, strict=True):
        left, top = round(x - 3), round(y - 3)
        np.testing.assert_array_equal(crop, reader.pixels[top : top + 6, left : left + 6])


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 7), (5, [5, 2]), (7, [7]), (64, [7]), (None, [7])])
def test_sizes_of_batches(batch_size, sizes):
    plan = plan_crops(in_a_row(7), spec_of((4, 1)), downsamples=[1])
    assert [len(batch) for batch in iter_batches(FakePyramid(), plan, batch_size=batch_size)] == sizes


def test_a_whole_section_comes_in_the_order_of_the_table():
    plan = plan_crops(in_a_row(20)[::-1], spec_of((4, 1)), downsamples=[1])
    (batch,) = iter_batches(FakePyramid(), plan, batch_size=None)
    assert batch.index.tolist() == list(range(20))
    assert batch.index.dtype == torch.int64


def test_reading_goes_along_bands_of_chunks_from_left_to_right():
    xy = np.array(
        [[900.0, 10], [100, 60], [100, 20], [500, 41], [50, 45], [70, -3]]
    )  # a band ends at 40, crops begin 2 above
    (plan,) = plan_crops(xy, spec_of((4, 1)), downsamples=[1])
    assert reading_order(FakePyramid(), plan).tolist() == [5, 2, 3, 0, 4, 1]


@pytest.mark.parametrize("batch_size", [5, None])
def test_no_spots_give_no_batches(batch_size):
    plan = plan_crops(np.empty((0, 2)), spec_of((4, 1)), downsamples=[1])
    assert list(iter_batches(FakePyramid(), plan, batch_size=batch_size)) == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_that_makes_no_sense(batch_size):
    plan = plan_crops(in_a_row(3), spec_of((4, 1)), downsamples=[1])
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        next(iter_batches(FakePyramid(), plan, batch_size=batch_size))


# Resampling


@pytest.fixture(scope="module")
def tissue():
    sdata = toy()
    (image_key,) = sdata.images
    return open_pyramid(sdata, image_key)


@pytest.mark.parametrize(("size", "downsample"), [(96, 1.5), (64, 3), (100, 1.1), (50, 6.4)])
def test_resampling_is_that_of_pillow(tissue, size, downsample):
    xy = [(440, 360), (401.3, 377.9)]
    spec = spec_of((size, downsample))
    (plan,) = plan_crops(np.array(xy), spec, downsamples=tissue.downsamples)
    assert plan.read_size > size
    (crops,) = read_all(tissue, xy, spec)
    for crop, (x, y) in zip(crops, plan.origins.tolist(), strict=True):
        raw = tissue.read(x, y, plan.read_size, plan.read_size, level=plan.level)
        assert raw.std() > 5  # there is something to see
        expected = np.asarray(Image.fromarray(raw).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(crop.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("downsample", [1.5, 2.5, 3, 5])
def test_resampled_crops_are_centred(sdata, downsample):
    xy = np.array([(300, 200), (251.3, 148.2)])
    (crops,) = read_all(open_pyramid(sdata, "he"), xy, spec_of((40, downsample)))
    stored = max(d for d in (1, 2, 4) if d <= downsample)
    steps = (np.arange(40) + 0.5 - 20) * downsample
    for crop, centre in zip(crops, xy, strict=True):
        for channel, axis in ((0, 0), (1, 1)):
            seen = crop[..., channel].mean(axis=axis) * 4.0 + 2  # the middle of the pixels of this colour
            off = seen - (centre[channel] + steps)
            assert np.abs(off).max() < 0.5 * stored + 4.5  # colours change every 4 pixels
            assert abs(off[3:-3].mean()) < 0.5 * stored + 0.5


def test_padding_is_resampled_with_the_crop(sdata):
    (crops,) = read_all(open_pyramid(sdata, "he"), [(0, 200)], spec_of((32, 3)))
    assert (crops[0][:, :15] == 255).all()
    assert (crops[0][:, 17:, 0] < 20).all()


# Threads and memory


@pytest.mark.parametrize("n_threads", [2, 4, 16])
def test_several_threads_give_the_same(n_threads):
    reader = FakePyramid(jitter=1e-3)
    plan = plan_crops(np.random.default_rng(2).permutation(in_a_row(60)), spec_of((6, 1), (6, 2)), downsamples=[1])
    one = list(iter_batches(reader, plan, batch_size=7, n_threads=1))
    several = list(iter_batches(reader, plan, batch_size=7, n_threads=n_threads))
    assert len(one) == len(several) == 9
    for a, b in zip(one, several, strict=True):
        assert torch.equal(a.index, b.index)
        assert all(torch.equal(x, y) for x, y in zip(a.crops, b.crops, strict=True))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_batches_are_read_ahead_but_not_too_far(n_threads):
    reader = FakePyramid()  # in this row, a batch of 4 spots touches chunks of its own: two rows of 4 columns
    xy = np.stack([np.arange(40) * 40 + 10.0, np.full(40, 40.0)], axis=1)
    plan = plan_crops(xy, spec_of((4, 1)), downsamples=[1])
    for n_used, _ in enumerate(iter_batches(reader, plan, batch_size=4, n_threads=n_threads), start=1):
        expected = min(n_used + 2, 10) * 8
        until = time.monotonic() + 5
        while reader.n_reads < expected and time.monotonic() < until:
            time.sleep(1e-3)
        time.sleep(5e-3)  # time to read too far
        assert reader.n_reads == expected


@pytest.mark.parametrize("fail_after", [0, 1, 13])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_error_of_the_reader_reaches_the_caller(fail_after, n_threads):
    plan = plan_crops(in_a_row(40), spec_of((4, 1)), downsamples=[1])

    def run() -> None:
        with pytest.raises(OSError, match="the disk is broken"):
            list(iter_batches(FakePyramid(fail_after=fail_after), plan, batch_size=4, n_threads=n_threads))

    within(10, run)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_whoever_stops_early_is_let_go(n_threads):
    reader = FakePyramid(jitter=1e-3)
    plan = plan_crops(in_a_row(400), spec_of((4, 1)), downsamples=[1])
    n_before = threading.active_count()

    def run() -> None:
        for _ in iter_batches(reader, plan, batch_size=4, n_threads=n_threads):
            break

    within(10, run)
    assert reader.n_reads <= 12
    assert threading.active_count() <= n_before


def test_an_error_of_the_user_of_a_batch_lets_go_too():
    reader = FakePyramid()
    plan = plan_crops(in_a_row(400), spec_of((4, 1)), downsamples=[1])

    def use() -> None:
        for _ in iter_batches(reader, plan, batch_size=4):
            raise KeyError("mine")

    def run() -> None:
        with pytest.raises(KeyError, match="mine"):
            use()

    within(10, run)


def test_nothing_is_read_before_the_first_batch_is_asked_for():
    reader = FakePyramid()
    iter_batches(reader, plan_crops(in_a_row(4), spec_of((4, 1)), downsamples=[1]))
    assert reader.n_reads == 0


# What a batch does


def test_a_batch_moves_as_a_whole():
    full = Batch(
        crops=(torch.zeros(2, 3, 4, 4, dtype=torch.uint8),) * 2,
        index=torch.arange(2),
        grid=torch.zeros(2, 2, dtype=torch.int64),
        xy_um=torch.zeros(2, 2),
        target=torch.zeros(2, 5),
        level_mask=torch.ones(2, 2, dtype=torch.bool),
    )
    moved = full.to("meta")
    tensors = [*moved.crops, moved.index, moved.grid, moved.xy_um, moved.target, moved.level_mask]
    assert [t.device.type for t in tensors] == ["meta"] * 7
    assert len(moved) == 2
    bare = Batch(crops=full.crops, index=full.index).to("meta")
    assert (bare.grid, bare.xy_um, bare.target, bare.level_mask) == (None,) * 4


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("reader", None),
        ("plan", None),
        ("plan", []),
        ("plan", [1]),
        ("batch_size", "4"),
        ("batch_size", 2.5),
        ("n_threads", 0),
        ("n_threads", "many"),
        ("pad_value", 256),
        ("pad_value", None),
        ("device", 3),
        ("device", []),
    ],
)
def test_arguments_of_another_type_are_named(argument, value):
    good = {"reader": FakePyramid(), "plan": plan_crops(in_a_row(3), spec_of((4, 1)), downsamples=[1])}
    with pytest.raises(StPredictError, match=f"^{argument} must be"):
        next(iter_batches(**{**good, argument: value}))


def test_a_device_that_does_not_exist():
    plan = plan_crops(in_a_row(3), spec_of((4, 1)), downsamples=[1])
    with pytest.raises(InvalidValueError, match="The device 'nonsense' cannot be used"):
        next(iter_batches(FakePyramid(), plan, device="nonsense"))


def test_numbers_of_numpy_are_taken():
    plan = plan_crops(in_a_row(3), spec_of((4, 1)), downsamples=[1])
    (batch,) = iter_batches(FakePyramid(), plan, batch_size=np.int64(4), pad_value=np.uint8(0), n_threads=np.int64(1))
    assert len(batch) == 3


def test_crops_that_do_not_fit_into_memory():
    with pytest.raises(MemoryError, match=r"100000 crops of 100000 x 100000 px need 3e\+06 GB"):
        Buffers().take((10**5, 3, 10**5, 10**5))


class Noise:
    """One level of noise in chunks of 200 px; counts how often each is read."""

    level_shapes, downsamples = ((3000, 2600),), (1.0,)

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (3000, 2600, 3), dtype=np.uint8)
        self.reads: list[tuple[int, int]] = []

    def edges(self, _level):
        return np.arange(0, 3001, 200), np.arange(0, 2601, 200)

    def read(self, x, y, width, height, *, level):
        self.reads.append((y, x))
        return self.pixels[y : y + height, x : x + width]


XY_OF_NOISE = np.random.default_rng(1).uniform(-200, 3200, (40, 2))


@pytest.mark.parametrize(
    ("size", "downsample", "device"), [(7, 90, None), (224, 2.75, None), (224, 11.3, None), (224, 2.75, "cpu")]
)
def test_large_squares_are_resized_as_torch_does_as_a_whole(size, downsample, device):
    reader = Noise()
    (crops,) = read_all(reader, XY_OF_NOISE, spec_of((size, downsample)), n_threads=3, device=device)
    (plan,) = plan_crops(XY_OF_NOISE, spec_of((size, downsample)), downsamples=(1.0,))
    padded = np.full((9000, 9000, 3), 255, np.uint8)
    padded[3000:6000, 3000:5600] = reader.pixels
    for (x, y), crop in zip((plan.origins + 3000).tolist(), crops, strict=True):
        square = torch.from_numpy(padded[y : y + plan.read_size, x : x + plan.read_size]).permute(2, 0, 1)[None]
        whole = torch.nn.functional.interpolate(square, size=(size, size), mode="bilinear", antialias=True)[0]
        np.testing.assert_array_equal(crop, whole.permute(1, 2, 0))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_levels_of_crops_from_one_level_of_the_image_share_its_chunks(device):
    reader = Noise()
    read_all(reader, XY_OF_NOISE, spec_of((32, 1), (32, 2), (32, 8)), device=device)
    assert len(reader.reads) == len(set(reader.reads))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_memory_does_not_depend_on_the_size_of_the_squares(device):
    """32 squares of 1280 px take 157 MB, and each thread cuts as many at a time."""
    reader, spec = Noise(), spec_of((16, 80))
    read_all(reader, XY_OF_NOISE[:2], spec)  # imports
    tracemalloc.start()
    try:
        read_all(reader, XY_OF_NOISE, spec, n_threads=4, device=device)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16e6


def test_three_batches_are_in_memory(monkeypatch):
    """One that is used, one that was cut while it was used, and one that is being cut."""
    made: list[tuple[int, ...]] = []
    allocate = _cutters._allocate
    monkeypatch.setattr(_cutters, "_allocate", lambda shape: made.append(shape) or allocate(shape))
    plan = plan_crops(in_a_row(40), spec_of((6, 1), (6, 1)), downsamples=[1])
    for batch in iter_batches(FakePyramid(), plan, batch_size=4):  # noqa: B007  # held while the next one is cut
        pass
    assert made == [(4, 3, 6, 6)] * 6


class Wide:
    """One level in chunks of 64 px whose colours are those of the place; counts chunks that are held."""

    downsamples = (1.0,)

    def __init__(self, height: int, width: int) -> None:
        self.level_shapes = ((height, width),)
        self.reads: Counter[tuple[int, int]] = Counter()
        self.live, self.most, self._lock = 0, 0, threading.Lock()

    def edges(self, _level):
        return tuple(np.append(np.arange(0, side, 64), side) for side in self.level_shapes[0])

    def read(self, x, y, width, height, *, level):
        rows, cols = np.arange(y, y + height)[:, None], np.arange(x, x + width)
        pixels = np.stack(np.broadcast_arrays(rows % 251, cols % 241, (rows + cols) // 64 % 199), -1).astype(np.uint8)
        with self._lock:
            self.reads[y, x] += 1
            self.live += pixels.nbytes
            self.most = max(self.most, self.live)
        weakref.finalize(pixels, self._free, pixels.nbytes)
        return pixels

    def _free(self, n_bytes: int) -> None:
        with self._lock:
            self.live -= n_bytes


@pytest.mark.slow
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(("height", "width"), [(700, 20_000), (20_000, 700), (3000, 6000)])
def test_memory_does_not_depend_on_the_width_of_an_image(monkeypatch, height, width, device):
    """Chunks would need 12 MB in the widest, 4 MB in the largest."""
    monkeypatch.setattr(_chunks, "LIVE", 2_000_000)
    monkeypatch.setattr(_batches, "LIVE", 2_000_000)
    reader = Wide(height, width)
    line = np.stack(np.meshgrid(np.arange(100, width, 90), np.arange(100, height, 90)), -1).reshape(-1, 2)
    spec = spec_of((48, 1), (24, 8))
    plan = plan_crops(line.astype(float), spec, downsamples=(1.0,))
    seen = 0
    for batch in iter_batches(reader, plan, batch_size=8, n_threads=2, device=device):
        seen += len(batch)
        for (x, y), crop in zip(plan[0].origins[batch.index.numpy()], batch.crops[0].numpy(), strict=True):
            if 0 <= x <= width - 48 and 0 <= y <= height - 48:
                assert crop[0, :, 0].tolist() == [row % 251 for row in range(y, y + 48)]
                assert crop[1, 0].tolist() == [col % 241 for col in range(x, x + 48)]
    assert seen == len(line)
    assert reader.most < 3_000_000
    assert sum(reader.reads.values()) < 1.3 * len(reader.reads)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sets(st.integers(0, 12), max_size=4), max_size=20), st.integers(1, 13))
def test_chunks_are_held_within_the_limit(jobs, limit):
    """Against a simulation of memory: what a job needs is there, and beyond it no more than the limit."""
    needs = [sorted(job) for job in jobs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks, "LIVE", limit)
        uses, leaving = _chunks.schedule(needs, dict.fromkeys(range(13), 1))
    held, decoded = set(), Counter()
    for job, used in enumerate(uses):
        assert [one.chunk for one in used] == needs[job]
        decoded.update(one.chunk for one in set(used) - held)
        held |= set(used)
        held -= set(leaving[job])
        soon = set(uses[job + 1]) if job + 1 < len(uses) else set()
        assert len(held - soon) == 0 or len(held) <= limit
    assert held == set()
    if limit == 13:
        assert set(decoded.values()) <= {1}


def test_one_batch_of_all_spots_does_not_hold_all_chunks():
    reader = Wide(3000, 6000)
    line = np.stack(np.meshgrid(np.arange(100, 6000, 60), np.arange(100, 3000, 60)), -1).reshape(-1, 2)
    plan = plan_crops(line.astype(float), spec_of((48, 1)), downsamples=(1.0,))
    list(iter_batches(reader, plan, batch_size=None, n_threads=1))
    assert sum(reader.reads.values()) == len(reader.reads)
    assert reader.most < 0.25 * 3 * 3000 * 6000
