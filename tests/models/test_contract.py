"""What every model promises, at its tiny size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import st_predict as stp
from st_predict._keys import Keys
from st_predict.crops import Batch
from st_predict.models import (
    ModelCard,
    ModelSpec,
    SpotModel,
    build_model,
    get_spec,
    list_models,
    load_checkpoint,
    save_checkpoint,
)

GENES = ("ERBB2", "GNAS", "FASN", "CD74", "KRT19")
BIB = Path(__file__).parents[2] / "docs" / "references.bib"


@pytest.fixture(params=list_models())
def spec(request) -> ModelSpec:
    return get_spec(request.param)


@pytest.fixture
def card(spec) -> ModelCard:
    return ModelCard(
        model=spec.name,
        genes=GENES,
        crop=spec.crop_for(spec.tiny),
        pixels=spec.pixels,
        target=spec.target,
        hparams=dict(spec.tiny),
    )


@pytest.fixture
def network(card) -> SpotModel:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return build_model(card)


@pytest.fixture
def batch(card) -> Batch:
    """Six spots with crops of exactly the size that the model asks for, of one section."""
    return make_batch(card, 6)


def make_batch(card: ModelCard, n: int) -> Batch:
    rng = np.random.default_rng(0)
    crops = tuple(
        torch.from_numpy(rng.integers(0, 256, (n, 3, level.size, level.size), dtype=np.uint8))
        for level in card.crop.levels
    )
    grid = torch.stack([torch.arange(n) // 3, torch.arange(n) % 3], dim=1)
    target = torch.from_numpy(rng.gamma(2, 1, (n, len(GENES))).astype(np.float32))
    return Batch(crops=crops, index=torch.arange(n), grid=grid, xy_um=grid.float() * 200, target=target)


def rows(batch: Batch, which: list[int]) -> Batch:
    return replace(
        batch,
        crops=tuple(crop[which] for crop in batch.crops),
        **{name: getattr(batch, name)[which] for name in ("index", "grid", "xy_um", "target")},
    )


def test_there_are_models():
    assert "m2ost" in list_models()


def test_a_model_is_called_as_its_module(spec):
    assert spec.name in list_models()
    assert get_spec(spec.name) is spec


def test_the_summary_is_one_sentence(spec):
    assert re.fullmatch(r"[A-Z][^\n]{10,100}\.", spec.summary)


def test_the_paper_is_in_the_references(spec):
    keys = re.findall(r"^@\w+\{([^,]+),", BIB.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert spec.citation in keys


def test_hyper_parameters_of_the_paper_need_the_crops_of_the_paper(spec):
    assert spec.crop_for(spec.hparams) == spec.crop


def test_the_published_network_can_be_built_and_is_larger(spec):
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in spec.build(5, **h).parameters()) for h in (spec.tiny, spec.hparams)]
    assert sizes[0] < sizes[1]


def test_the_tiny_network_is_small(network):
    assert 0 < sum(p.numel() for p in network.parameters()) < 1e6


def test_the_prediction_has_a_row_a_spot_and_a_column_a_gene(network, batch):
    prediction = network.eval()(batch)
    assert prediction.shape == (6, len(GENES))
    assert prediction.dtype == torch.float32
    assert bool(prediction.isfinite().all())


def test_crops_of_one_colour_are_no_trouble(network, batch):
    white = replace(batch, crops=tuple(torch.full_like(crop, 255) for crop in batch.crops))
    assert bool(network.eval()(white).isfinite().all())


def test_the_image_matters(network, batch):
    with torch.no_grad():
        assert float(network.eval()(batch).std(0).min()) > 0


def test_every_parameter_learns(network, batch):
    loss = network.train().loss(batch)
    assert loss.shape == ()
    assert bool(loss.isfinite())
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.requires_grad)


def test_training_needs_targets(network, batch):
    with pytest.raises(ValueError, match="target"):
        network.loss(replace(batch, target=None))


def test_a_few_steps_reduce_the_loss(network, batch):
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = network.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


@torch.no_grad()
def test_two_predictions_are_equal(network, batch):
    network.eval()
    assert torch.equal(network(batch), network(batch))


@torch.no_grad()
def test_a_prediction_changes_neither_crops_nor_weights(network, batch):
    network.eval()
    crops, state = [c.clone() for c in batch.crops], {k: v.clone() for k, v in network.state_dict().items()}
    network(batch)
    assert all(torch.equal(a, b) for a, b in zip(crops, batch.crops, strict=True))
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


@torch.no_grad()
def test_a_spot_does_not_depend_on_its_order_or_its_batch(spec, network, batch):
    expected = network.eval()(batch)
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(network(rows(batch, order)), expected[order], rtol=1e-4, atol=1e-5)
    if spec.scope == "spot":
        for alone in ([4], [2, 0]):
            torch.testing.assert_close(network(rows(batch, alone)), expected[alone], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_save_and_load(card, network, batch, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", network, card)
    loaded, loaded_card = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded_card == card
    assert not loaded.training
    assert loaded.pixel_spec == card.pixels
    assert torch.equal(loaded(batch), network.eval()(batch))


def test_predict_fills_every_spot_of_a_slide(card, network, sdata, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", network, card)
    stp.tl.predict(sdata, tmp_path / "model.safetensors", mpp=card.crop.mpp, device="cpu")
    prediction = sdata.tables["table"].obsm[Keys.prediction(card.model)]
    assert prediction.shape == (12, len(GENES))
    assert tuple(prediction.columns) == GENES
    assert np.isfinite(prediction.to_numpy()).all()
    assert len(np.unique(prediction.to_numpy(), axis=0)) == 12
