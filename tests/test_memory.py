"""Fewer spots at a time where memory does not suffice."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from st_predict._memory import in_parts, is_out_of_memory
from st_predict.crops import _cutters, iter_batches, plan_crops
from st_predict.io import SpatialDataPyramid, open_pyramid
from st_predict.specs import CropSpec, LevelSpec

ERRORS = [
    MemoryError("Unable to allocate 9.4 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"),
    torch.OutOfMemoryError("CUDA out of memory"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_parts_are_halved_until_they_fit(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def cut(part: slice) -> list[int]:
        if part.stop - part.start > 3:
            raise error
        return list(range(part.start, part.stop))

    with caplog.at_level(logging.WARNING):
        parts = in_parts(32, cut, size=7000)
    assert [row for part in parts for row in part] == list(range(32))
    assert max(map(len, parts)) == 2
    assert "Out of memory for 32 crops of 7000 x 7000 px; continuing with 16" in caplog.text


def test_one_that_does_not_fit_says_why() -> None:
    def cut(_part: slice) -> None:
        raise MemoryError

    with pytest.raises(MemoryError, match=r"one crop of 10000 x 10000 px, 0\.3 GB.* wrong mpp"):
        in_parts(5, cut, size=10_000)


def test_other_errors_are_not_caught() -> None:
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_parts(2, lambda _part: (_ for _ in ()).throw(RuntimeError("shape mismatch")), size=1)


@pytest.mark.parametrize("fits", [32, 3, 1])
def test_crops_are_the_same(sdata, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    reader = SpatialDataPyramid(sdata["he"]["scale0"]["image"])  # one level, so that crops are resampled
    spec = CropSpec(levels=(LevelSpec(size=16, downsample=1.5), LevelSpec(size=16, downsample=4.5)))
    xy = np.random.default_rng(0).uniform(-20, 620, (50, 2))
    plan = plan_crops(xy, spec, downsamples=reader.downsamples)
    (expected,) = iter_batches(reader, plan, batch_size=None, device="cpu")
    resize, seen = _cutters.resize, []

    def small(x: torch.Tensor, size: int) -> torch.Tensor:
        if len(x) > fits:
            raise MemoryError("Unable to allocate")
        seen.append(len(x))
        return resize(x, size)

    monkeypatch.setattr(_cutters, "resize", small)
    (found,) = iter_batches(reader, plan, batch_size=None, device="cpu")
    assert max(seen) <= fits
    for ours, theirs in zip(found.crops, expected.crops, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_large_crops_are_read_a_few_at_a_time(sdata, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_pyramid(sdata)
    plan = plan_crops(
        np.full((40, 2), 100.0), CropSpec(levels=(LevelSpec(size=16, downsample=1.5),)), downsamples=reader.downsamples
    )
    (expected,) = iter_batches(reader, plan, batch_size=None)
    resize, seen = _cutters.resize, []
    monkeypatch.setattr(_cutters, "_TOGETHER", 5 * 24**2)
    monkeypatch.setattr(_cutters, "resize", lambda x, size: seen.append(len(x)) or resize(x, size))
    (found,) = iter_batches(reader, plan, batch_size=None)
    assert max(seen) == 5
    torch.testing.assert_close(found.crops[0], expected.crops[0], rtol=0, atol=0)
