"""BLEEP against numbers of the published code, computations by hand, and its own promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from st_predict import checkpoints
from st_predict._backbones import create_backbone
from st_predict.crops import Batch
from st_predict.models.bleep import BLEEP, SPEC, Bank, BLEEPConfig, contrastive_loss, convert
from st_predict.specs import ModelCard

TINY = dict(SPEC.tiny)
N_GENES = 5


def wave(shape: tuple[int, ...], phase: int) -> torch.Tensor:
    """Numbers that look random and are the same everywhere."""
    return torch.from_numpy(np.sin(np.arange(np.prod(shape, dtype=int)) ** 2.0 + phase).reshape(shape)).float()


def make_batch(n: int = 6, *, n_genes: int = N_GENES) -> Batch:
    crops = ((wave((n, 3, 32, 32), 3) + 1) * 127.4).byte()
    return Batch(crops=(crops,), index=torch.arange(n), target=wave((n, n_genes), 4).abs() * 3)


def measured(n: int, *, n_genes: int = N_GENES, seed: int = 0) -> Batch:
    """Spots with a target alone."""
    target = torch.rand(n, n_genes, generator=torch.Generator().manual_seed(seed)) * 4
    return Batch(crops=(), index=torch.arange(n), target=target)


def make_net(*reference: Batch, **hparams: Any) -> BLEEP:
    """A tiny network with random weights in evaluation mode; its bank holds what is given."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        net = BLEEP(N_GENES, **TINY | hparams).eval()
    net.pixel_spec = SPEC.pixels
    if reference:
        net.finalize(reference)
    return net


def make_bank(keys: torch.Tensor, values: torch.Tensor, **hparams: Any) -> Bank:
    bank = Bank(values.shape[1], BLEEPConfig(dim=keys.shape[1], **hparams))
    bank.keys, bank.values = keys, values
    return bank


def random_bank(n: int, *, n_queries: int = 9, n_genes: int = 4, **hparams: Any) -> tuple[Bank, torch.Tensor]:
    """A bank whose keys differ in length, so that the most similar is often not the nearest; and queries."""
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(n, 16)) * rng.uniform(0.2, 0.6, (n, 1))
    queries, values = rng.normal(size=(n_queries, 16)) * 0.4, rng.gamma(2, 1, (n, n_genes))
    return make_bank(*(torch.from_numpy(x).float() for x in (keys, values)), **hparams), torch.from_numpy(
        queries
    ).float()


# The published size and weights.


@pytest.mark.parametrize(("n_genes", "n_params"), [(250, 24_229_440), (3467, 25_052_992)])
def test_number_of_parameters(n_genes, n_params):
    with torch.device("meta"):
        assert sum(p.numel() for p in SPEC.build(n_genes, **SPEC.hparams).parameters()) == n_params


def published_state() -> dict[str, torch.Tensor]:
    """A state dict with the names that the published training writes, all weights from a wave."""
    sizes = {"image_projection": 128, "spot_projection": N_GENES}
    shapes: dict[str, tuple[int, ...]] = {}
    for head, size in sizes.items():
        shapes |= {f"{head}.projection.weight": (8, size), f"{head}.fc.weight": (8, 8)}
        shapes |= {
            f"{head}.{name}": (8,) for name in ("projection.bias", "fc.bias", "layer_norm.weight", "layer_norm.bias")
        }
    trunk = create_backbone("resnet50", **TINY["arch_args"]).state_dict()
    shapes |= {f"image_encoder.model.{name}": tuple(tensor.shape) for name, tensor in trunk.items()}
    return {f"module.{name}": weights_like(name, shape, i) for i, (name, shape) in enumerate(sorted(shapes.items()))}


def weights_like(name: str, shape: tuple[int, ...], phase: int) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        return 1 + wave(shape, phase) / 2
    return wave(shape, phase) * (0.3 if len(shape) > 1 else 1)


@pytest.mark.parametrize(
    "rename", [lambda name: name, lambda name: name.replace("spot_", "well_").removeprefix("module.")]
)
def test_published_weights_give_the_published_numbers(rename):
    """Recorded from the published code on these weights and crops."""
    net, batch = make_net(measured(3)), make_batch()
    net.load_state_dict(convert({rename(name): tensor for name, tensor in published_state().items()}))
    with torch.no_grad():
        images, spots = net.embed_crops(batch.crops[0]), net.embed_expression(batch.target)
        loss = net.loss(batch)
    expected = [-2.107068, -1.227399, -1.560889, -1.519146, -1.656768, -1.277278]
    np.testing.assert_allclose(images[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(
        spots[:, 0], [-1.364757, -1.136643, -1.096907, -0.911409, -1.31184, -1.264649], atol=1e-5
    )
    assert loss.item() == pytest.approx(1.9194626, abs=1e-4)
    with pytest.raises(RuntimeError, match="bank is empty"):
        net(batch)


def test_weights_of_something_else_are_refused():
    state = published_state()
    del state["module.image_projection.fc.bias"]
    state["module.text_projection.fc.bias"] = torch.zeros(8)
    with pytest.raises(
        ValueError, match=r"missing \['image_projection.fc.bias'\], unknown \['text_projection.fc.bias'\]"
    ):
        convert(state)
    heads = {name: tensor for name, tensor in published_state().items() if "image_encoder" not in name}
    with pytest.raises(ValueError, match=r"missing \['image_encoder.model.\*'\], unknown \[\]"):
        convert(heads)


def test_weights_to_start_from_are_loaded_when_asked_for(monkeypatch):
    arguments = TINY["arch_args"]
    other, asked = create_backbone("resnet50", **arguments), []
    monkeypatch.setattr("st_predict.models.bleep.fetch_weights", lambda *a, **k: asked.append((a, k)) or other)
    make_net().load_pretrained()
    assert asked == []
    net = make_net(weights="a1_in1k")
    before = net.backbone.conv1.weight.clone()
    net.load_pretrained()
    assert asked == [(("resnet50.a1_in1k",), arguments)]
    assert torch.equal(net.backbone.conv1.weight, other.conv1.weight)
    assert not torch.equal(net.backbone.conv1.weight, before)


# The loss.


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


@pytest.mark.parametrize(("temperature", "published"), [(1.0, 0.79985636), (0.5, 0.37804607)])
def test_loss(temperature, published):
    """By hand, spot by spot, and recorded from the published code."""
    images, spots = (wave((6, 8), phase).double() for phase in (0, 1))
    i, s = images.numpy(), spots.numpy()
    targets = softmax((i @ i.T + s @ s.T) / 2 / temperature, 1)
    over_images = np.log(softmax(s @ i.T / temperature, 1))
    over_spots = np.log(softmax(i @ s.T / temperature, 1))
    each = [-(targets[n] @ over_images[n] + targets[:, n] @ over_spots[n]) / 2 for n in range(6)]
    loss = contrastive_loss(images, spots, temperature).item()
    assert loss == pytest.approx(np.mean(each), abs=1e-12)
    assert loss == pytest.approx(published, abs=1e-6)


def test_gradients_flow_through_the_soft_targets():
    """Against finite differences, which know nothing of what was detached."""
    pair = [wave((4, 3), phase).double().requires_grad_() for phase in (0, 1)]
    assert torch.autograd.gradcheck(lambda images, spots: contrastive_loss(images, spots, 0.7), pair)


def test_loss_is_computed_in_float32(monkeypatch):
    net, batch = make_net(), make_batch()
    fix_features(net, monkeypatch)
    exact = net.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.loss(batch), exact)


# Retrieval.


def by_hand(bank: Bank, queries: torch.Tensor, k: int, mode: str) -> np.ndarray:
    keys, values = bank.keys.double().numpy(), bank.values.double().numpy()
    predictions = []
    for query in queries.double().numpy():
        cosine = keys @ query / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
        best = np.argsort(-cosine)[:k]
        squared = ((keys[best] - query) ** 2).sum(1)
        weights = np.exp(-(squared - squared[0] + 1)) if mode == "weighted" else None
        predictions.append(np.average(values[best], axis=0, weights=weights))
    return np.array(predictions)


@pytest.mark.parametrize("block", [16_384, 7])
@pytest.mark.parametrize(
    ("mode", "k", "hand_k"),
    [("simple", 50, 1), ("average", 50, 50), ("average", 3, 3), ("weighted", 50, 50), ("weighted", 9, 9)],
)
def test_modes(monkeypatch, mode, k, hand_k, block):
    """At once, and in blocks that hold fewer spots than are asked for."""
    monkeypatch.setattr("st_predict.models.bleep._BLOCK", block)
    bank, queries = random_bank(80, mode=mode, k=k)
    np.testing.assert_allclose(bank(queries), by_hand(bank, queries, hand_k, mode), rtol=1e-5)


def test_weights_of_spots_far_beyond_any_power():
    """The published formula takes the squared distance of the most similar spot, here 3600, from that of the nearer one."""
    bank = make_bank(torch.tensor([[62.0, 0], [2, 0.5]]), torch.tensor([[1.0], [2]]), mode="weighted", k=2)
    assert bank(torch.tensor([[2.0, 0]])).tolist() == [[2.0]]


def test_nearest_first():
    bank, queries = random_bank(30, k=4)
    cosine = torch.cosine_similarity(queries[:, None], bank.keys[None], dim=2)
    assert torch.equal(bank.nearest(queries), cosine.argsort(1, descending=True)[:, :4])


@pytest.mark.parametrize("mode", ["average", "weighted"])
def test_a_bank_with_fewer_spots_than_are_asked_for_is_used_whole(mode):
    bank, queries = random_bank(8, mode=mode, k=50)
    np.testing.assert_allclose(bank(queries), by_hand(bank, queries, 8, mode), rtol=1e-5)
    if mode == "average":
        torch.testing.assert_close(bank(queries), bank.values.mean(0).expand(9, -1))


def test_the_banks_own_spot_is_retrieved(monkeypatch):
    """Where a crop is embedded as a spot of the bank was, whatever the length of the embedding."""
    net, spots = make_net(measured(40), mode="simple"), [31, 0, 7, 7]
    for length in (1, 3):
        monkeypatch.setattr(net, "embed_crops", lambda _, s=length: net.bank.keys[spots] * s)
        assert torch.equal(net(make_batch(4)), net.bank.values[spots])


@torch.no_grad()
@pytest.mark.parametrize("mode", ["simple", "average", "weighted"])
def test_a_spot_does_not_depend_on_its_batch(mode):
    net, batch = make_net(measured(60), mode=mode, k=4), make_batch()
    together = net(batch)
    for i in range(6):
        alone = net(replace(batch, crops=(batch.crops[0][i : i + 1],), index=batch.index[i : i + 1]))
        torch.testing.assert_close(alone, together[i : i + 1])


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.n = max(self.n, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)), 0)
        return out


@pytest.mark.parametrize("mode", ["average", "weighted"])
def test_neither_all_similarities_nor_the_retrieved_rows_are_held(monkeypatch, mode):
    monkeypatch.setattr("st_predict.models.bleep._BLOCK", 64)
    n_queries, n_genes, k = 6, 500, 5
    bank, queries = random_bank(4000, n_queries=n_queries, n_genes=n_genes, mode=mode, k=k)
    with Largest() as largest:
        bank(queries)
    assert n_queries * n_genes <= largest.n < min(n_queries * 4000, n_queries * k * n_genes)


class Fixed(nn.Module):
    """Stands for an image encoder whose features have no precision to lose."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return wave((len(x_BCHW), 128), 9)


def fix_features(net: BLEEP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "backbone", Fixed())


@pytest.mark.parametrize("mode", ["simple", "average", "weighted"])
def test_bfloat16_changes_the_image_encoder_alone(monkeypatch, mode):
    net, batch = make_net(measured(60), mode=mode, k=5), make_batch()
    keys = net.bank.keys
    fix_features(net, monkeypatch)
    exact = net(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(batch), exact)
        net.finalize([measured(60)])
    assert torch.equal(net.bank.keys, keys)


# The bank.


def test_without_a_bank_there_is_no_prediction():
    with pytest.raises(RuntimeError, match=r"bank is empty.*finalize\(batches\)"):
        make_net()(make_batch())


def test_filling_the_bank():
    """As often as wanted, from batches of any size, without dropout, and in the mode of training it was in."""
    net, spots = make_net(drop=0.5), measured(9)
    net.train()
    net.image_head.eval()
    modes = [module.training for module in net.modules()]
    for sizes in ([9], [4, 4, 1], [2, 7]):
        targets = spots.target.split(sizes)
        net.finalize(Batch(crops=(), index=torch.arange(len(t)), target=t) for t in targets)
        assert torch.equal(net.bank.values, spots.target)
        assert [module.training for module in net.modules()] == modes
        torch.testing.assert_close(net.bank.keys, net.eval().embed_expression(spots.target).detach())
        for module, mode in zip(net.modules(), modes, strict=True):
            module.training = mode
    net.finalize([measured(4, seed=1)])
    assert net.bank.keys.shape == (4, 8)


def test_a_bank_needs_targets():
    with pytest.raises(ValueError, match="reads 'target'"):
        make_net().finalize([replace(measured(4), target=None)])


def test_training_goes_on_after_a_bank_was_filled_for_validation():
    net = make_net()
    with torch.inference_mode():
        net.finalize([measured(20)])
    net(make_batch()).square().sum().backward()
    assert net.image_head.first.weight.grad.abs().max() > 0
    net.load_state_dict(net.state_dict())


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 0), (torch.float16, 2e-3)])
def test_a_checkpoint_brings_its_bank(tmp_path, dtype, tolerance):
    net, batch = make_net(measured(17)), make_batch()
    card = ModelCard(model="bleep", genes=tuple("abcde"), crop=SPEC.crop_for(TINY), pixels=SPEC.pixels, hparams=TINY)
    checkpoints.save(tmp_path / "bleep.safetensors", net, card, dtype=dtype)
    loaded, _ = checkpoints.load(tmp_path / "bleep.safetensors")
    assert loaded.bank.values.dtype == torch.float32
    torch.testing.assert_close(loaded.bank.values, net.bank.values, rtol=tolerance, atol=0)
    torch.testing.assert_close(loaded(batch), net(batch), rtol=10 * tolerance, atol=0)
    larger = make_net(measured(30))
    larger.load_state_dict(net.state_dict())
    assert torch.equal(larger(batch), net(batch))


# Panels of which the network reads a part.


def test_a_head_that_reads_a_part_predicts_the_whole_panel():
    batch = make_batch()
    net = make_net(measured(30), encoded=[3, 0])
    assert net.expression_head.first.in_features == 2
    narrow = BLEEP(2, **TINY).eval()
    narrow.expression_head.load_state_dict(net.expression_head.state_dict())
    torch.testing.assert_close(net.bank.keys, narrow.embed_expression(measured(30).target[:, [3, 0]]).detach())
    assert net(batch).shape == (6, N_GENES)
    assert torch.equal(net.bank.values, measured(30).target)


def test_genes_that_are_not_read_have_no_part_in_the_loss():
    net, batch = make_net(encoded=[3, 0]), make_batch()
    changes = []
    for gene in range(N_GENES):
        target = batch.target.clone()
        target[2, gene] += 1
        changes.append(not torch.equal(net.loss(replace(batch, target=target)), net.loss(batch)))
    assert changes == [True, False, False, True, False]


# Settings that do not fit.


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"mode": "median"}, "mode must be 'simple', 'average' or 'weighted', got 'median'"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"drop": 1.0}, "drop must be below 1, got 1.0"),
        ({"encoded": []}, "encoded must hold at least one index.*from 0 to 4; it has 0"),
        ({"encoded": [0, 5, 7]}, r"it has 3, of which \[5, 7\] are wrong"),
        ({"encoded": [0, -1]}, r"encoded\.1 must be at least 0, got -1"),
        ({"encoded": [1, 2, 1]}, r"each once.*of which \[1\] are wrong"),
    ],
)
def test_hyper_parameters_that_do_not_fit(hparams, message):
    with pytest.raises(ValueError, match=message):
        make_net(**hparams)


def test_a_panel_has_genes():
    with pytest.raises(ValueError, match="n_genes must be at least 1, got 0"):
        BLEEP(0, **TINY)
