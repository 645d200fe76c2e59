"""Sections are whole, regions are of nearest spots, and each epoch draws its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from st_predict._errors import StPredictError
from st_predict._training._loader import SectionLoader
from st_predict._training._store import CropStore

SIZES = (30, 7, 12)


@pytest.fixture
def store() -> CropStore:
    n = sum(SIZES)
    rng = np.random.default_rng(0)
    return CropStore(
        crops=(),
        target=np.arange(n, dtype=np.float32)[:, None],
        section=np.repeat(np.arange(3), SIZES),
        grid=None,
        xy_um=rng.uniform(0, 1000, (n, 2)).astype(np.float32),
        features=np.zeros((n, 2), np.float32),
    )


def test_without_a_seed_sections_come_whole_and_in_order(store: CropStore) -> None:
    batches = list(SectionLoader(store))
    assert [len(batch) for batch in batches] == list(SIZES)
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(sum(SIZES)))
    assert all(torch.equal(batch.target[:, 0].long(), batch.index) for batch in batches)
    assert all(torch.equal(batch.section, torch.zeros(len(batch))) for batch in batches)


def test_several_sections_a_batch_are_told_apart(store: CropStore) -> None:
    loader = SectionLoader(store, per_batch=2)
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    assert torch.bincount(batches[0].section).tolist() == [30, 7]
    assert torch.bincount(batches[1].section).tolist() == [12]


def test_the_order_is_of_seed_and_epoch(store: CropStore) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = SectionLoader(store, regions=4, seed=seed)
        loader.epoch = epoch
        return [int(row) for batch in loader for row in batch.index]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*each)) for each in [(0, 0), (0, 1), (1, 0)]}) == 3


def test_a_region_is_a_spot_and_those_nearest_to_it(store: CropStore) -> None:
    loader = SectionLoader(store, regions=50, seed=3)
    batches = list(loader)
    assert len(batches) == len(loader) == 150
    for batch in batches:
        rows, section = batch.index.numpy(), store.section[batch.index[0]]
        members = np.flatnonzero(store.section == section)
        distances = cdist(store.xy_um[rows[:1]], store.xy_um[members])[0]
        assert set(rows) == set(members[np.argsort(distances)[: len(rows)]])
        assert 2 <= len(rows) <= SIZES[section]
    assert len({len(batch) for batch in batches if store.section[batch.index[0]] == 0}) > 10


def test_two_regions_of_one_section_are_told_apart(store: CropStore) -> None:
    for batch in SectionLoader(store, regions=10, per_batch=2, seed=0):
        assert set(batch.section.tolist()) == {0, 1}
        assert (torch.diff(batch.section) >= 0).all()


def test_regions_of_spots_of_unknown_place(store: CropStore) -> None:
    blind = CropStore(crops=(), target=store.target, section=store.section, grid=None, xy_um=None)
    with pytest.raises(StPredictError, match="neither the mpp nor the lattice of all sections is known") as raised:
        next(iter(SectionLoader(blind, regions=2, seed=0)))
    assert raised.value.arguments == {"mpp", "config"}
