"""Symmetries and missing levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.crops import Batch, augment, drop_levels
from st_predict.crops._augment import N_SYMMETRIES, apply_symmetry


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(n: int, *sizes: int) -> Batch:
    rng = np.random.default_rng(0)
    crops = tuple(torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8)) for size in sizes)
    return Batch(crops=crops, index=torch.arange(n))


def expected_symmetries(x: np.ndarray) -> list[np.ndarray]:
    """All symmetries of ``(..., size, size)``, by numpy."""
    turned = [np.rot90(x, k, axes=(-2, -1)) for k in range(4)]
    return turned + [np.flip(t, axis=-1) for t in turned]


def which_symmetry(before: torch.Tensor, after: torch.Tensor) -> int:
    """Number of the one symmetry of numpy that turns ``before`` into ``after``."""
    matches = [i for i, x in enumerate(expected_symmetries(before.numpy())) if np.array_equal(x, after.numpy())]
    assert len(matches) == 1
    return matches[0]


def drawn(batch: Batch, seed: int, level: int = 0) -> list[int]:
    after = augment(batch, generator(seed))
    return [which_symmetry(a, b) for a, b in zip(batch.crops[level], after.crops[level], strict=True)]


def test_there_are_eight_symmetries_those_of_numpy():
    x = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    ours = [apply_symmetry(x, i).numpy() for i in range(N_SYMMETRIES)]
    assert len({a.tobytes() for a in ours}) == N_SYMMETRIES == 8
    for got, expected in zip(ours, expected_symmetries(x.numpy()), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_all_levels_of_a_spot_get_the_same_symmetry():
    batch = random_batch(40, 6, 4, 9)
    assert drawn(batch, 3, 0) == drawn(batch, 3, 1) == drawn(batch, 3, 2)


def test_levels_stay_aligned():
    fine = random_batch(30, 16).crops[0]
    batch = Batch(crops=(fine, pooled(fine)), index=torch.arange(30))
    after = augment(batch, generator())
    assert not torch.equal(after.crops[1], batch.crops[1])
    torch.testing.assert_close(after.crops[1], pooled(after.crops[0]), rtol=0, atol=0)


def pooled(crops: torch.Tensor) -> torch.Tensor:
    """A coarse level that shows what the fine one shows, in pixels twice as wide."""
    return F.avg_pool2d(crops.float(), 2).round().to(torch.uint8)


def test_symmetries_are_drawn_evenly_and_alone_for_each_spot():
    symmetries = drawn(random_batch(4000, 4), 1)
    counts = np.bincount(symmetries, minlength=N_SYMMETRIES)
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 24.3  # 0.999 quantile, 7 degrees of freedom
    pairs = np.bincount(np.array(symmetries[:-1]) * 8 + symmetries[1:], minlength=64)
    assert pairs.min() > 0


def test_draws_depend_on_the_generator_alone():
    batch = random_batch(50, 5)
    assert drawn(batch, 7) == drawn(batch, 7)
    assert drawn(batch, 7) != drawn(batch, 8)
    g = generator()
    assert not torch.equal(augment(batch, g).crops[0], augment(batch, g).crops[0])


def test_the_rest_of_the_batch_stays():
    batch = replace(
        random_batch(6, 8, 4), target=torch.rand(6, 3), grid=torch.arange(12).reshape(6, 2), xy_um=torch.rand(6, 2)
    )
    before = [crop.clone() for crop in batch.crops]
    after = augment(batch, generator())
    for crop, kept in zip(batch.crops, before, strict=True):
        assert torch.equal(crop, kept)
    assert all(a.dtype == torch.uint8 and a.shape == b.shape for a, b in zip(after.crops, before, strict=True))
    for name in ("index", "target", "grid", "xy_um"):
        assert torch.equal(getattr(after, name), getattr(batch, name))


def test_batches_that_share_memory_are_not_changed_twice():
    one = random_batch(1, 4).crops[0]
    batch = Batch(crops=(one.expand(20, -1, -1, -1),), index=torch.arange(20))
    assert len(set(drawn(batch, 0))) > 1


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
def test_at_least_one_level_stays(rate):
    mask = drop_levels(random_batch(2000, 2, 2, 2), rate, generator()).level_mask
    assert mask.dtype == torch.bool
    assert mask.shape == (2000, 3)
    assert bool(mask.any(1).all())


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_levels_are_dropped_at_the_rate(rate):
    n = 20_000
    mask = drop_levels(random_batch(n, 1, 1, 1), rate, generator()).level_mask.double()
    # Three levels dropped independently; one of them, each equally likely, comes back where all three were.
    expected = 1 - rate + rate**3 / 3
    assert mask.mean(0).tolist() == pytest.approx([expected] * 3, abs=4 * 0.5 / n**0.5)
    all_three = float((mask.sum(1) == 3).double().mean())
    assert all_three == pytest.approx((1 - rate) ** 3, abs=4 * 0.5 / n**0.5)


def test_rate_zero_drops_nothing_and_rate_one_leaves_one():
    batch = random_batch(100, 2, 2)
    assert bool(drop_levels(batch, 0.0, generator()).level_mask.all())
    assert drop_levels(batch, 1.0, generator()).level_mask.sum(1).tolist() == [1] * 100


def test_missing_levels_stay_missing():
    present = torch.tensor([[True, False, True], [False, True, False], [False, False, False]]).repeat(300, 1)
    batch = replace(random_batch(900, 2, 2, 2), level_mask=present.clone())
    after = drop_levels(batch, 0.5, generator()).level_mask
    assert not bool((after & ~present).any())
    assert torch.equal(after.any(1), present.any(1))
    assert torch.equal(after[1::3], present[1::3])
    assert 0 < int(after[::3, 0].sum()) < 300
    assert torch.equal(batch.level_mask, present)


def test_dropping_changes_the_mask_alone():
    batch = random_batch(5, 2, 2)
    after = drop_levels(batch, 0.5, generator())
    assert batch.level_mask is None
    assert after.crops is batch.crops
    assert torch.equal(after.level_mask, drop_levels(batch, 0.5, generator()).level_mask)


@pytest.mark.parametrize("rate", [None, "0.5", -0.1, 1.1, float("nan")])
def test_a_rate_is_a_share(rate):
    with pytest.raises(InvalidValueError, match="rate must be from 0 to 1, got"):
        drop_levels(random_batch(2, 4, 4), rate, generator())


@pytest.mark.parametrize("symmetry", [None, "1", -1, 8, 1.5])
def test_there_are_eight_symmetries(symmetry):
    with pytest.raises(InvalidValueError, match="symmetry must be a whole number from 0 to 7, got"):
        apply_symmetry(torch.zeros(3, 4, 4), symmetry)


def test_arguments_of_another_type_are_named():
    for call in (augment, lambda batch, seed: drop_levels(batch, 0.5, seed)):
        with pytest.raises(InvalidTypeError, match="batch must be a Batch, got NoneType"):
            call(None, generator())
        with pytest.raises(InvalidTypeError, match=r"generator must be a torch\.Generator, got int"):
            call(random_batch(2, 4), 3)
    with pytest.raises(InvalidTypeError, match="crop must be a tensor"):
        apply_symmetry(np.zeros((3, 4, 4)), 1)
