"""Levels that an image lacks are masked, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import st_predict as stp
from st_predict.crops import iter_batches, plan_crops
from st_predict.io import open_pyramid
from st_predict.specs import CropSpec, LevelSpec

LEVELS = tuple(LevelSpec(size=16, downsample=2.0**i) for i in range(3))
SPEC = CropSpec(levels=LEVELS, mpp=0.25)


@pytest.fixture(scope="module")
def reader():
    return open_pyramid(stp.datasets.toy())


XY = np.array([[300.0, 200.0], [410.5, 350.25], [2.0, 3.0]])


def batch_of(reader, spec, mpp, **options):
    plan = plan_crops(XY, spec, downsamples=reader.downsamples, mpp=mpp, **options)
    (batch,) = iter_batches(reader, plan, batch_size=None)
    return plan, batch


@pytest.mark.parametrize(("mpp", "n_missing"), [(0.25, 0), (0.5, 1), (1.0, 2)])
def test_the_levels_that_are_there_are_read_as_ever(reader, mpp, n_missing):
    plan, batch = batch_of(reader, SPEC, mpp, missing_levels="mask")
    assert [level.missing for level in plan] == [i < n_missing for i in range(3)]
    _, expected = batch_of(reader, replace(SPEC, levels=LEVELS[n_missing:]), mpp)
    for crop, other in zip(batch.crops[n_missing:], expected.crops, strict=True):
        assert torch.equal(crop, other)
    assert all((crop == 255).all() for crop in batch.crops[:n_missing])
    if n_missing:
        assert batch.level_mask.tolist() == [[i >= n_missing for i in range(3)]] * len(XY)
    else:
        assert batch.level_mask is None


def test_an_image_without_any_of_the_levels_is_refused(reader):
    with pytest.raises(ValueError, match=r"The image has 2 um/px, the model needs 1 um/px or finer"):
        batch_of(reader, SPEC, 2.0, missing_levels="mask")
    with pytest.raises(ValueError, match=r"0\.25 um/px or finer.*missing_levels=\"mask\""):
        batch_of(reader, SPEC, 0.5)
    with pytest.raises(ValueError, match=r"missing_levels must be .error. or .mask., got .no."):
        batch_of(reader, SPEC, 0.5, missing_levels="no")


def test_the_error_names_the_resolution_that_suffices(reader):
    coarse = replace(SPEC, levels=LEVELS[1:])  # the finest of them has 0.5 um/px
    with pytest.raises(ValueError, match=r"has 0\.8 um/px, the model needs 0\.5 um/px or finer"):
        batch_of(reader, coarse, 0.8)
    with pytest.raises(ValueError, match=r"has 2 um/px, the model needs 1 um/px or finer"):
        batch_of(reader, coarse, 2.0, missing_levels="mask")


@pytest.mark.parametrize(
    ("shape", "missing"),
    [
        (None, [False] * 3),
        ((256, 900), [False] * 3),
        ((255, 200), [False, False, True]),
        ((60, 900), [False, True, True]),
    ],
)
def test_levels_wider_than_the_image_are_missing_but_for_the_finest(shape, missing):
    """Fields of view are 64, 128 and 256 px."""
    how = {"downsamples": [1.0], "shape": shape}
    spec = CropSpec(levels=tuple(LevelSpec(size=64, downsample=2**k) for k in range(3)))
    plan = plan_crops(np.array([[30.0, 30.0]]), spec, **how, missing_levels="mask")
    assert [level.missing for level in plan] == missing
    assert not any(level.missing for level in plan_crops(np.array([[30.0, 30.0]]), spec, **how))
    with pytest.raises(ValueError, match=r"shape\.0 must be at least 1, got 0"):
        plan_crops(np.array([[30.0, 30.0]]), spec, downsamples=[1.0], shape=(0, 5))
