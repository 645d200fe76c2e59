"""What every model promises, at its tiny size."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import st_predict as stp
from st_predict import checkpoints
from st_predict._keys import Keys
from st_predict._training._config import configure, get_preset
from st_predict.crops import Batch
from st_predict.encoders import get_encoder
from st_predict.encoders._cells import get_cell_encoder
from st_predict.models import ModelSpec, SpotModel, get_spec, list_models
from st_predict.specs import CropSpec, ModelCard
from st_predict.tl import TrainConfig

GENES = ("ERBB2", "GNAS", "FASN", "CD74", "KRT19")
BIB = Path(__file__).parents[2] / "src" / "st_predict" / "references.bib"
VARIANTS = {"m2ost on tokens": ("m2ost", {"tokens": "efficientnet_lite0"})}  # hyper-parameters that change the input
LEARNING = [name for name in list_models() if not get_spec(name).closed_form] + list(VARIANTS)
SECTIONS = [name for name in list_models() if get_spec(name).scope == "section"]
SEEING = [name for name in list_models() if name != "mean"] + list(VARIANTS)


@pytest.fixture(params=[*list_models(), *VARIANTS])
def spec(request) -> ModelSpec:
    name, hparams = VARIANTS.get(request.param, (request.param, {}))
    spec = get_spec(name)
    return replace(spec, tiny={**spec.tiny, **hparams}) if hparams else spec


learning = pytest.mark.parametrize("spec", LEARNING, indirect=True)
seeing = pytest.mark.parametrize("spec", SEEING, indirect=True)


@pytest.fixture
def card(spec) -> ModelCard:
    return ModelCard(
        model=spec.name,
        genes=GENES,
        crop=spec.crop_for(spec.tiny),
        pixels=spec.pixels_for(spec.tiny),
        target=spec.target,
        hparams=dict(spec.tiny),
    )


@pytest.fixture
def network(card, batch) -> SpotModel:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = checkpoints.build(card)
        network.finalize([batch])
    return network


@pytest.fixture
def batch(card) -> Batch:
    """Six spots with crops of exactly the size that the model asks for, of one section."""
    return make_batch(card, 6)


def make_batch(card: ModelCard, n: int) -> Batch:
    rng = np.random.default_rng(0)
    features, reads = None, get_spec(card.model).reads(card.hparams)
    if reads.tiles:
        features = torch.from_numpy(
            rng.normal(size=(n, reads.tiles**2, reads.describe_encoder().n_features)).astype(np.float32)
        )
        features[n // 2 :, : reads.tiles] = torch.nan  # the upper row of some spots leaves the image
    elif reads.kind == "features":
        n_features = get_encoder(card.hparams["encoder"]).n_features
        features = torch.from_numpy(rng.normal(size=(n, n_features)).astype(np.float32))
    elif reads.kind == "cells":
        n_features = get_cell_encoder(card.hparams["encoder"], cell=card.hparams.get("cell")).n_features
        features = torch.from_numpy(rng.normal(size=(n, 5, n_features)).astype(np.float32))
        features[n // 2 :, 3:] = torch.nan  # some spots cover fewer cells
    crops = tuple(
        torch.from_numpy(rng.integers(0, 256, (n, 3, level.size, level.size), dtype=np.uint8))
        for level in (card.crop.levels if reads.kind in {"crops", "nothing"} else ())
    )
    grid = torch.stack([torch.arange(n) // 3, torch.arange(n) % 3], dim=1)
    target = torch.from_numpy(rng.gamma(2, 1, (n, len(GENES))).astype(np.float32))
    counts = torch.from_numpy(rng.poisson(5, (n, len(GENES))).astype(np.float32))
    return Batch(
        crops=crops,
        index=torch.arange(n),
        grid=grid,
        xy_um=grid.float() * 200,
        target=target,
        features=features,
        counts=counts if "counts" in get_spec(card.model).needs else None,
    )


def rows(batch: Batch, which: list[int]) -> Batch:
    others = {name: getattr(batch, name) for name in ("index", "grid", "xy_um", "target", "features", "counts")}
    return replace(
        batch,
        crops=tuple(crop[which] for crop in batch.crops),
        **{name: values[which] for name, values in others.items() if values is not None},
    )


def test_there_are_models():
    assert "m2ost" in list_models()


def test_a_model_is_called_as_its_module(spec):
    assert spec.name in list_models()
    assert get_spec(spec.name).build is spec.build


def test_the_summary_is_one_sentence(spec):
    assert re.fullmatch(r"[A-Z][^\n]{10,100}\.", spec.summary)


def test_the_paper_is_in_the_references(spec):
    keys = re.findall(r"^@\w+\{([^,]+),", BIB.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert spec.citation in keys


def test_hyper_parameters_of_the_paper_need_the_crops_of_the_paper(spec):
    assert spec.crop_for(spec.hparams) == spec.crop


def test_the_hyper_parameters_are_stored_as_they_are(spec):
    for hparams in (spec.hparams, spec.tiny, spec.original.hparams, spec.paper.hparams, spec.recommended.hparams):
        assert json.loads(json.dumps(hparams)) == hparams


def test_all_presets_are_settings_that_exist(spec):
    for name in ("recommended", "paper", "original"):
        preset = get_preset(spec, name)
        assert isinstance(configure(preset, None), TrainConfig)
        hparams = {**spec.hparams, **preset.hparams, **({"spot_um": 55} if "field" in preset.hparams else {})}
        assert isinstance(spec.crop_for(hparams), CropSpec)
        with torch.device("meta"):
            assert isinstance(spec.build(5, **hparams), SpotModel)


@learning
def test_the_published_network_can_be_built_and_is_larger(spec):
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in spec.build(5, **h).parameters()) for h in (spec.tiny, spec.hparams)]
    assert sizes[0] < sizes[1]


@learning
def test_the_tiny_network_is_small(spec, network):
    assert 0 < sum(p.numel() for p in network.parameters()) < 1e6


def test_the_prediction_has_a_row_a_spot_and_a_column_a_gene(network, batch):
    prediction = network.eval()(batch)
    assert prediction.shape == (6, len(GENES))
    assert prediction.dtype == torch.float32
    assert bool(prediction.isfinite().all())


def test_crops_of_one_colour_are_no_trouble(network, batch):
    white = replace(batch, crops=tuple(torch.full_like(crop, 255) for crop in batch.crops))
    assert bool(network.eval()(white).isfinite().all())


@seeing
def test_the_image_matters(spec, network, batch):
    with torch.no_grad():
        assert float(network.eval()(batch).std(0).min()) > 0


@learning
def test_every_parameter_learns(spec, network, batch):
    loss = network.train().loss(batch)
    assert loss.shape == ()
    assert bool(loss.isfinite())
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.requires_grad)


def test_training_needs_targets(spec, network, batch):
    blind = replace(batch, target=None)
    with pytest.raises(ValueError, match="target"):
        network.finalize([blind]) if spec.closed_form else network.loss(blind)


@learning
def test_a_few_steps_reduce_the_loss(spec, network, batch):
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
@pytest.mark.parametrize("spec", SECTIONS, indirect=True)
def test_two_sections_are_as_each_alone(card, network):
    network.eval()
    spots, section = make_batch(card, 10), torch.tensor([0] * 6 + [1] * 4)
    order = [6, 0, 3, 7, 1, 9, 2, 8, 4, 5]
    both, mixed = replace(spots, section=section), replace(rows(spots, order), section=section[order])
    expected = torch.cat([network(rows(spots, list(part))) for part in (range(6), range(6, 10))])
    torch.testing.assert_close(network(both), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(mixed), expected[order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("spec", SECTIONS, indirect=True)
def test_a_section_of_one_spot_can_be_predicted(card, network):
    assert bool(network.eval()(make_batch(card, 1)).isfinite().all())


@torch.no_grad()
@learning
def test_what_is_drawn_depends_on_the_seed_alone(network, batch):
    network.eval()
    before = network(batch)
    if type(network).sample is SpotModel.sample and not [m for m in network.modules() if getattr(m, "p", 0) > 0]:
        with pytest.raises(ValueError, match="has no dropout"):
            network.sample(batch, seed=0)
        return
    state = torch.random.get_rng_state()
    first, again, other = (network.sample(batch, seed=seed) for seed in (1, 1, 2))
    assert first.shape == before.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(network(batch), before)


@torch.no_grad()
def test_save_and_load(card, network, batch, tmp_path):
    checkpoints.save(tmp_path / "model.safetensors", network, card)
    loaded, loaded_card = checkpoints.load(tmp_path / "model.safetensors")
    assert loaded_card == card
    assert not loaded.training
    assert loaded.pixel_spec == card.pixels
    assert torch.equal(loaded(batch), network.eval()(batch))


@torch.no_grad()
def test_training_twice_gives_what_training_once_gives(network, batch):
    before = network.eval()(batch)
    network.finalize([batch])
    assert torch.equal(network(batch), before)


def test_predict_fills_every_spot_of_a_slide(spec, card, network, sdata, tmp_path, monkeypatch):
    if spec.reads(card.hparams).kind == "features":  # fit to what the encoder makes of this image
        monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
        stp.tl.embed(sdata, encoder=card.hparams["encoder"], mpp=card.crop.mpp, key_added="X", device="cpu")
        features = torch.from_numpy(sdata.tables["table"].obsm["X"])
        network.finalize([Batch(crops=(), index=torch.arange(12), features=features, target=torch.rand(12, 5))])
    sdata.tables["table"].obs[["array_row", "array_col"]] = [(i // 4, i % 4) for i in range(12)]
    checkpoints.save(tmp_path / "model.safetensors", network, card)
    seen = []
    forward = type(network).forward
    monkeypatch.setattr(type(network), "forward", lambda self, batch: seen.append(batch) or forward(self, batch))
    stp.tl.predict(sdata, tmp_path / "model.safetensors", mpp=card.crop.mpp, device="cpu", precision="float32")
    levels = (
        [(3, level.size, level.size) for level in card.crop.levels] if spec.reads(card.hparams).kind == "crops" else []
    )
    assert seen
    assert all([tuple(crop.shape[1:]) for crop in batch.crops] == levels for batch in seen)
    prediction = stp.get.frame(sdata, Keys.prediction(card.model))
    assert prediction.shape == (12, len(GENES))
    assert tuple(prediction.columns) == GENES
    assert np.isfinite(prediction.to_numpy()).all()
    n_different = len(np.unique(prediction.to_numpy(), axis=0))
    assert n_different == 1 if spec.name == "mean" else n_different >= 10  # of some crops half is outside the image
