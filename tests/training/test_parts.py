"""A batch in parts has the gradients of the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import st_predict as stp
from st_predict import checkpoints
from st_predict._training import _parts
from st_predict._training._config import TrainConfig
from st_predict._training._fit import Adapter
from st_predict._training._parts import splits, take_parts
from st_predict.crops import Batch
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

N, GENES = 37, ("a", "b", "c")


@pytest.fixture(autouse=True)
def parts_of_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "PIXELS", 16 * pixels_of("m2ost"))


def pixels_of(model: str) -> int:
    """Pixels per spot of a tiny network."""
    spec = get_spec(model)
    return sum(level.size**2 for level in spec.crop_for(spec.tiny).levels)


def network_of(model: str, **hparams: object) -> torch.nn.Module:
    spec = get_spec(model)
    tiny = {**spec.tiny, **hparams}
    card = ModelCard(model=model, genes=GENES, crop=spec.crop_for(tiny), pixels=spec.pixels_for(tiny), hparams=tiny)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return checkpoints.build(card).train()


def batch_for(model: str) -> Batch:
    spec = get_spec(model)
    generator = torch.Generator().manual_seed(1)
    crops = tuple(
        torch.randint(0, 256, (N, 3, level.size, level.size), dtype=torch.uint8, generator=generator)
        for level in spec.crop_for(spec.tiny).levels
    )
    return Batch(crops=crops, index=torch.arange(N), target=torch.randn(N, len(GENES), generator=generator))


def gradients(network: torch.nn.Module, batch: Batch, *, split: bool) -> tuple[float, list[torch.Tensor]]:
    adapter = Adapter(network, TrainConfig(augment=False), splits=split)
    network.zero_grad()
    loss, rest = adapter._descend(batch, 0.5)
    rest.backward()
    return float(loss), [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_gradients_are_those_of_the_whole_batch() -> None:
    network = network_of("m2ost")
    batch = batch_for("m2ost")
    assert [len(part) for part in take_parts(batch, network)] == [16, 16, 5]
    loss, whole = gradients(network, batch, split=False)
    parts_loss, parts = gradients(network, batch, split=True)
    assert parts_loss == pytest.approx(loss, rel=1e-6)
    assert len(parts) == len(whole) > 10
    for mine, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_batch_statistics_need_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("resnet50")
    monkeypatch.setattr(_parts, "PIXELS", 16 * pixels_of("resnet50"))
    batch = batch_for("resnet50")
    assert len(take_parts(batch, network)) == 1
    assert len(take_parts(batch, network.eval())) == 3  # fixed statistics
    assert len(take_parts(Batch(crops=(), index=torch.arange(N), features=torch.zeros(N, 2)), network)) == 1


def test_only_a_mean_over_spots_is_split() -> None:
    network = network_of("m2ost")
    assert splits(network, TrainConfig(), section_level=False)
    assert splits(network, TrainConfig(loss="standardized"), section_level=False)
    assert not splits(network, TrainConfig(loss="correlation"), section_level=False)
    assert not splits(network, TrainConfig(), section_level=True)
    assert not splits(network_of("bleep"), TrainConfig(), section_level=False)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["model", "standardized"])
def test_a_training_is_the_same_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    sdata = stp.datasets.simulate(1, 1, n_genes=8, shape=(1040, 1040), mpp=1.2).sections["P1S1"]
    split, seen = _parts.take_parts, []

    def spy(batch: Batch, network: torch.nn.Module) -> list[Batch]:
        parts = split(batch, network)
        seen.append(len(parts))
        return parts

    histories = []
    for part in (8, 1000):
        monkeypatch.setattr(_parts, "PIXELS", part * pixels_of("m2ost"))
        monkeypatch.setattr("st_predict._training._fit.take_parts", spy)
        result = stp.tl.train(
            sdata,
            "m2ost",
            panel=list(sdata["table"].var_names),
            min_counts=0,
            hparams=get_spec("m2ost").tiny,
            config={"epochs": 3, "batch_size": 20, "loss": loss, "clip": 0.5, "device": "cpu", "precision": "float32"},
            out=tmp_path / str(part),
        )
        histories.append(result.history["train_loss"].to_numpy())
    assert max(seen) == 3
    assert min(seen) == 1
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)


def test_the_network_of_the_paper_takes_sixteen_spots_and_a_small_one_its_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    empty = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    for size, n_parts in ((224, 6), (96, 2), (32, 1)):
        crops = tuple(empty.expand(96, 3, size, size) for _ in range(3))
        assert len(take_parts(Batch(crops=crops, index=torch.arange(96)), torch.nn.Identity())) == n_parts
