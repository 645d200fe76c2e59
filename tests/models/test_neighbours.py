"""Neighbours by a tree are those of all distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from st_predict.models._neighbours import nearest_spots


@pytest.mark.parametrize("k", [1, 4, 8])
def test_distances_are_the_smallest(k: int) -> None:
    xy = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32))
    rows, there = nearest_spots(xy, k)
    distances = cdist(xy, xy)
    np.fill_diagonal(distances, np.inf)
    assert there.all()
    np.testing.assert_array_equal(rows, np.argsort(distances, axis=1)[:, :k])


def test_on_a_lattice_the_order_of_the_spots_does_not_matter() -> None:
    lattice = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    order = torch.from_numpy(np.random.default_rng(1).permutation(30))
    rows, _ = nearest_spots(lattice, 3)
    shuffled, _ = nearest_spots(lattice[order], 3)
    assert torch.equal(order[shuffled], rows[order])
    # of the four next to (1, 1), all equally far, those of least x, then y
    assert lattice[rows[7]].tolist() == [[0, 1], [1, 0], [1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_on_a_hexagonal_lattice_neither_order_nor_origin_matters(angle: float, dtype: torch.dtype) -> None:
    """Eight neighbours are the first six and two of the next six, which tie."""
    row, col = (index.ravel() for index in np.mgrid[:9, :10])
    x, y = 100 * (col + row % 2 / 2), 100 * np.sqrt(3) / 2 * row
    turned = np.column_stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y])
    rows, there = nearest_spots(torch.from_numpy(turned).to(dtype), 8)
    assert there.all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        order, shift = rng.permutation(90), rng.uniform(0, 20_000, 2)
        moved, _ = nearest_spots(torch.from_numpy((turned + shift)[order]).to(dtype), 8)
        for ours, theirs in zip(rows[order], order[moved], strict=True):
            assert set(ours.tolist()) == set(theirs.tolist())
    inner = 4 * 10 + 5
    assert np.allclose(cdist(turned[[inner]], turned[rows[inner, :6]]), 100)
    second = np.flatnonzero(np.isclose(cdist(turned[[inner]], turned)[0], 100 * np.sqrt(3)))
    least = sorted(second, key=lambda spot: tuple((turned[spot] - turned[inner]).round(6)))[:2]
    assert rows[inner, 6:].tolist() == least


def test_no_neighbour_is_of_another_section() -> None:
    xy = torch.tensor([[0.0, 0], [0.1, 0], [5, 0], [5.1, 0], [5.2, 0], [99, 99]])
    rows, there = nearest_spots(xy, 3, torch.tensor([0, 1, 0, 1, 0, 2]))
    assert rows[0].tolist() == [2, 4, 0]
    assert there[0].tolist() == [True, True, False]
    assert rows[1].tolist() == [3, 1, 1]
    assert there[1].tolist() == [True, False, False]
    assert there[5].tolist() == [False] * 3  # it is alone
    assert rows[5].tolist() == [5] * 3


def test_spots_at_the_same_place_are_neighbours_of_each_other_and_never_of_themselves() -> None:
    rows, there = nearest_spots(torch.zeros(30, 2), 8)
    assert there.all()
    assert not (rows == torch.arange(30)[:, None]).any()
    assert all(len(set(row)) == 8 for row in rows.tolist())
