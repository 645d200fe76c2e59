"""Every tensor of a batch, whichever are there."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from st_predict.crops import Batch

OPTIONAL = ("grid", "xy_um", "target", "level_mask", "features", "section", "counts")


def make_batch(n: int = 6, *, without: tuple[str, ...] = ()) -> Batch:
    """A batch whose tensors all hold the index of their spot in each row."""
    rows = torch.arange(n)
    shapes = {name: (n, 1) if name != "section" else (n,) for name in OPTIONAL if name not in without}
    crops = tuple(rows.to(torch.uint8)[:, None, None, None].expand(n, 3, size, size) for size in (4, 2))
    return Batch(crops=crops, index=rows, **{name: rows.reshape(shape) for name, shape in shapes.items()})


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [*batch.crops, batch.index, *(v for name in OPTIONAL if (v := getattr(batch, name)) is not None)]


def rows_of(batch: Batch) -> list[list[int]]:
    """Which spot each row of each tensor is of."""
    return [tensor.reshape(len(batch), -1)[:, 0].tolist() for tensor in tensors(batch)]


def test_these_tests_know_all_fields():
    assert {field.name for field in fields(Batch)} == {"crops", "index", *OPTIONAL}


def test_map_reaches_every_tensor_once():
    seen = []
    mapped = make_batch().map(lambda tensor: seen.append(tensor) or tensor + 1)
    assert len(seen) == len(tensors(mapped)) == 10
    assert rows_of(mapped) == [[1, 2, 3, 4, 5, 6]] * 10


@pytest.mark.parametrize("without", [OPTIONAL, ("grid",), ("section", "counts")])
def test_map_leaves_out_what_is_not_there(without):
    mapped = make_batch(without=without).map(torch.clone)
    assert all((getattr(mapped, name) is None) == (name in without) for name in OPTIONAL)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (slice(1, 3), [1, 2]),
        (torch.tensor([5, 0, 0]), [5, 0, 0]),
        (torch.tensor([True, False, True, False, False, True]), [0, 2, 5]),
    ],
)
def test_take_selects_rows_of_every_tensor(which, expected):
    assert rows_of(make_batch().take(which)) == [expected] * 10


def test_cat_joins_every_tensor():
    assert rows_of(Batch.cat([make_batch(2), make_batch(3), make_batch(1)])) == [[0, 1, 0, 1, 2, 0]] * 10


def test_cat_leaves_out_what_one_batch_does_not_have():
    joined = Batch.cat([make_batch(2, without=("grid",)), make_batch(3, without=("counts",))])
    assert joined.grid is None and joined.counts is None
    assert rows_of(joined) == [[0, 1, 0, 1, 2]] * 8


def test_cat_refuses_batches_of_different_levels():
    one = make_batch(2)
    with pytest.raises(ValueError, match=r"same number of levels, got \[2, 1\]"):
        Batch.cat([one, Batch(crops=one.crops[:1], index=one.index)])


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_required_part_is_returned_or_named(name):
    batch = make_batch()
    assert batch.require(name) is getattr(batch, name)
    with pytest.raises(ValueError, match=f"^The network reads '{name}' of each spot; the batch has none.$"):
        make_batch(without=OPTIONAL).require(name)


def test_cat_needs_a_batch():
    with pytest.raises(ValueError, match=r"same number of levels, got \[\]"):
        Batch.cat([])
