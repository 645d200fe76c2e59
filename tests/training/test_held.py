"""A store that a device holds gives the batches of the one in files."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from st_predict._training import CropStore, TrainConfig, learn
from st_predict._training import _fit as fit_module
from st_predict._training._loader import CropLoader, SectionLoader
from st_predict._training._rounds import JoinedStore
from st_predict._training._store import held_by
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from st_predict.crops import Batch

SPEC = get_spec("m2ost")
CARD = ModelCard(
    model="m2ost", genes=tuple("abcd"), crop=SPEC.crop_for(SPEC.tiny), hparams=dict(SPEC.tiny), target=SPEC.target
)
CPU = torch.device("cpu")


def make_store(n: int = 14, *, seed: int = 0, n_genes: int = 4) -> CropStore:
    rng = np.random.default_rng(seed)
    return CropStore(
        crops=tuple(rng.integers(0, 256, (n, 3, v.size, v.size), dtype=np.uint8) for v in CARD.crop.levels),
        target=rng.gamma(2, 1, (n, n_genes)).astype(np.float32),
        section=np.repeat([0, 1], [n // 2, n - n // 2]),
        grid=rng.integers(0, 9, (n, 2)),
        xy_um=None,
        counts=rng.poisson(3, (n, n_genes)).astype(np.float32) if n_genes else None,
    )


def assert_same(one: Batch, other: Batch) -> None:
    assert pickle.dumps(_parts(one)) == pickle.dumps(_parts(other))


def _parts(batch: Batch) -> list[object]:
    others = (batch.index, batch.grid, batch.xy_um, batch.target, batch.counts, batch.section, batch.features)
    return [None if part is None else part.contiguous().numpy() for part in (*batch.crops, *others)]


def test_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_predict._training._store._COPIED", 4)  # 14 spots are copied in four parts
    store = make_store()
    held = store.to(CPU)
    assert held.held is not None
    assert len(held.held) == len(held) == 14
    for loader in (CropLoader, SectionLoader):
        arguments = {"batch_size": 5} if loader is CropLoader else {}
        both = zip(loader(store, seed=1, **arguments), loader(held, seed=1, **arguments), strict=True)
        for one, other in both:
            assert_same(one, other)


def test_labelled_spots_are_held_too() -> None:
    measured, more = make_store(), make_store(9, seed=1, n_genes=0)
    labels = np.random.default_rng(2).random((3, 4), dtype=np.float32)
    nothing = {"rows": np.empty(0, np.int64), "labels": np.empty((0, 4), np.float32)}
    store = JoinedStore(measured=measured, unlabelled=more, **nothing).add(np.array([2, 5, 8]), labels)
    assert store.n_bytes == measured.n_bytes + more.n_bytes
    assert_same(store.to(CPU).batch(np.array([15, 3, 16, 0])), store.batch(np.array([15, 3, 16, 0])))


def test_memory_is_that_of_crops_and_features() -> None:
    store = make_store()
    assert store.n_bytes == sum(14 * 3 * level.size**2 for level in CARD.crop.levels)


def test_a_gpu_holds_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    store, copied = make_store(), []
    monkeypatch.setattr(CropStore, "to", lambda self, device: copied.append(device) or self)
    gpu = torch.device("cuda", 0)
    for free in (3 * store.n_bytes, 4 * store.n_bytes):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2 * free))
        assert held_by(gpu, store) is store
    assert copied == [gpu]  # a third of the free memory is too much, a quarter is not
    assert held_by(CPU, store) is store
    assert copied == [gpu]


def test_training_on_held_spots_gives_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(epochs=2, batch_size=5, lr=1e-2, device="cpu", precision="float32")
    store, val = make_store(), make_store(seed=1)
    figures = []
    for name, hold in (("files", held_by), ("held", lambda device, store: store.to(device))):
        monkeypatch.setattr(fit_module, "held_by", hold)
        (tmp_path / name).mkdir()
        network, history = learn(CARD, store, val, config=config, folder=tmp_path / name)
        figures.append((history, [p.detach().numpy() for p in network.parameters()]))
    (history, weights), (other_history, other_weights) = figures
    assert history == other_history
    for one, other in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_on_spots_that_it_holds(tmp_path: Path) -> None:
    gpu = torch.device("cuda")
    held = held_by(gpu, make_store())
    assert held.batch(np.arange(3)).crops[0].device.type == "cuda"
    config = TrainConfig(epochs=1, batch_size=5, device="cuda")
    _, history = learn(CARD, make_store(), make_store(seed=1), config=config, folder=tmp_path)
    assert np.isfinite(history[0]["val_pearson"])
