"""Crops put together from chunks, against slices of the whole image; and how often chunks are decoded."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch

from st_predict.crops import iter_batches, plan_crops
from st_predict.crops._atlas import Atlas
from st_predict.specs import CropSpec, LevelSpec

SIDES = {0: (330, 410), 1: (165, 205), 2: (82, 102)}
EDGES = {
    0: ([0, 64, 128, 192, 256, 320, 330], [0, 100, 110, 250, 410]),  # regular but for the last, and not regular at all
    1: ([0, 165], [0, 205]),
    2: ([0, 30, 60, 82], [0, 50, 100, 102]),
}
XY = np.random.default_rng(3).uniform(-60, 450, (150, 2))
SPEC = CropSpec(levels=tuple(LevelSpec(size=48, downsample=d) for d in (1, 2, 4)), pad_value=7)


class Slide:
    """Three levels of noise in chunks of many sizes, which counts how often each is decoded and how many are alive."""

    level_shapes, downsamples = tuple(SIDES.values()), (1.0, 2.0, 4.0)

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.pixels = [rng.integers(0, 256, (*side, 3), dtype=np.uint8) for side in SIDES.values()]
        self.decoded: Counter[tuple[int, ...]] = Counter()
        self._lock = threading.Lock()

    def edges(self, level):
        y, x = EDGES[level]
        return np.array(y), np.array(x)

    def read(self, x, y, width, height, *, level):
        rows, columns = EDGES[level]
        assert rows[rows.index(y) + 1] == y + height and columns[columns.index(x) + 1] == x + width, (
            "not one whole chunk"
        )
        with self._lock:
            self.decoded[level, y, x] += 1
        return self.pixels[level][y : y + height, x : x + width].copy()

    def touched(self, plan):
        """Chunks that some crop touches, found pixel by pixel."""
        found = set()
        for level, p in enumerate(plan):
            rows, columns = (np.array(e) for e in EDGES[level])
            for left, top in p.origins.tolist():
                ys = [y for y in range(top, top + p.read_size) if 0 <= y < SIDES[level][0]]
                xs = [x for x in range(left, left + p.read_size) if 0 <= x < SIDES[level][1]]
                tops = {int(rows[rows <= y].max()) for y in ys}
                found |= {(level, y, int(x)) for y in tops for x in {columns[columns <= x].max() for x in xs}}
        return found


def sliced(slide: Slide, plan, level: int) -> np.ndarray:
    """Crops cut from a level that is padded all around."""
    p, border = plan[level], 400
    padded = np.full((*(side + 2 * border for side in SIDES[level]), 3), SPEC.pad_value, np.uint8)
    padded[border:-border, border:-border] = slide.pixels[level]
    corners = np.clip(p.origins, -border, None) + border
    crops = [padded[y : y + p.read_size, x : x + p.read_size] for x, y in corners.tolist()]
    return np.stack(crops).transpose(0, 3, 1, 2)


def gather(batches, plan) -> list[np.ndarray]:
    out = [np.zeros((len(XY), 3, p.size, p.size), np.uint8) for p in plan]
    for batch in batches:
        for level, crop in zip(out, batch.crops, strict=True):
            level[batch.index.numpy()] = crop.numpy()
    return out


@pytest.mark.parametrize("batch_size", [1, 7, 64, None])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_crops_are_slices_and_each_chunk_is_decoded_once(batch_size, device):
    slide = Slide()
    plan = plan_crops(XY, SPEC, downsamples=slide.downsamples)
    crops = gather(iter_batches(slide, plan, batch_size=batch_size, pad_value=7, device=device), plan)
    for level, crop in enumerate(crops):
        np.testing.assert_array_equal(crop, sliced(slide, plan, level))
    assert set(slide.decoded) == slide.touched(plan)
    assert set(slide.decoded.values()) == {1}


def test_a_chunk_that_no_crop_touches_is_not_decoded():
    slide = Slide()
    plan = plan_crops(np.array([[30.0, 300.0]]), SPEC, downsamples=slide.downsamples)
    list(iter_batches(slide, plan))
    assert (
        set(slide.decoded) == slide.touched(plan) < {(i, y, x) for i, (ys, xs) in EDGES.items() for y in ys for x in xs}
    )


def test_a_device_gives_the_resampled_crops_of_the_host():
    slide, spec = Slide(), CropSpec(levels=(LevelSpec(size=40, downsample=1.7), LevelSpec(size=40, downsample=3.1)))
    plan = plan_crops(XY, spec, downsamples=slide.downsamples)
    assert all(p.read_size > p.size for p in plan)
    host, device = (gather(iter_batches(slide, plan, device=d), plan) for d in (None, "cpu"))
    for a, b in zip(host, device, strict=True):
        np.testing.assert_array_equal(a, b)


def test_chunks_are_let_go_after_their_last_crop():
    """On a long slide, only the chunks around the batches in flight are alive."""
    alive, most = [0], [0]

    class Counted(np.ndarray):
        def __array_finalize__(self, _):
            pass

        def __del__(self):
            if self.base is None:
                alive[0] -= 1

    class Long:
        level_shapes, downsamples = ((64, 12_800),), (1.0,)

        def edges(self, _):
            return np.array([0, 64]), np.arange(0, 12_801, 64)

        def read(self, x, y, width, height, *, level):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return np.zeros((height, width, 3), np.uint8).view(Counted).copy()

    xy = np.stack([np.linspace(40, 12_760, 800), np.full(800, 32.0)], axis=1)
    plan = plan_crops(xy, CropSpec(levels=(LevelSpec(size=32),)), downsamples=(1.0,))
    n = sum(len(batch) for batch in iter_batches(Long(), plan, batch_size=16))
    assert n == 800
    assert 1 <= most[0] <= 20  # of 200; four batches of 16 spots touch five chunks each


def test_memory_of_crops_is_used_again_only_when_nobody_holds_them():
    slide = Slide()
    plan = plan_crops(XY, SPEC, downsamples=slide.downsamples)
    held = list(iter_batches(slide, plan, batch_size=10))
    assert len({batch.crops[0].data_ptr() for batch in held}) == len(held) == 15
    for crop, expected in zip(gather(held, plan), gather(iter_batches(slide, plan, batch_size=10), plan), strict=True):
        np.testing.assert_array_equal(crop, expected)
    passing = [batch.crops[0][2:4].data_ptr() for batch in iter_batches(slide, plan, batch_size=10)]
    assert len(set(passing)) <= 5
    parts, places = [], []
    for batch in iter_batches(slide, plan, batch_size=10):
        parts.append(batch.crops[0][3])  # a part of a batch holds its memory too
        places.append(int(batch.index[3]))
    np.testing.assert_array_equal(torch.stack(parts).numpy(), gather(held, plan)[0][places])


def test_pages_of_an_atlas_are_used_again():
    edges = np.arange(0, 641, 64), np.arange(0, 641, 64)
    atlas = Atlas(edges, pad_value=9, device=torch.device("cpu"))
    chunk = np.random.default_rng(0).integers(0, 256, (100, 3, 64, 64), dtype=np.uint8)
    for i in range(100):
        atlas.add(i, torch.from_numpy(chunk[i]))
        row, col = divmod(i, 10)
        crop = atlas.cut(np.array([[col * 64 + 10, row * 64 + 20]]), 30)[0]
        np.testing.assert_array_equal(crop, chunk[i, :, 20:50, 10:40])
        assert i in atlas
        if i >= 5:
            atlas.drop(i - 5)
            assert i - 5 not in atlas
    assert len(atlas._pages) <= 16
    assert (atlas.cut(np.array([[-100, 3], [700, 3], [3, -40], [3, 640]]), 30) == 9).all()
