"""STPath against an independent computation, and its own promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from st_predict import checkpoints
from st_predict.crops import Batch
from st_predict.models import stpath
from st_predict.models.stpath import SPEC, STPath, convert, draw_masks, for_panel, known, scaled
from st_predict.specs import ModelCard

NAN = float("nan")
HPARAMS = {"n_features": 6, "dim": 8, "depth": 2, "heads": 2, "total": None}
VOCABULARY = {"KRT5": "ENSG3", "CD74": "ENSG1", "ERBB2": "ENSG4", "HER2": "ENSG4", "C1orf43": "ENSG2"}
IN_ORDER = ["CD74", "C1orf43", "KRT5", "ERBB2"]  # of the Ensembl ids


def wave(*shape: int, phase: int = 0) -> torch.Tensor:
    """Numbers that look random and are the same everywhere."""
    return torch.from_numpy(np.sin(np.arange(np.prod(shape)) ** 2.0 + phase).reshape(shape)).float()


def published_state(depth: int = 2, *, n_genes: int = 4) -> dict[str, torch.Tensor]:
    """Weights by the names of the published code, of a network with 6 features and 8 channels."""
    linear = {"attn.layernorm_qkv.1": (24, 8), "attn.W_output.0": (8, 8), "mlp.fc1": (16, 8), "mlp.fc2": (8, 16)}
    shapes: dict[str, tuple[int, ...]] = {
        "input_encoder.image_embed.weight": (8, 6),
        "input_encoder.image_embed.bias": (8,),
    }
    shapes |= {"input_encoder.gene_embed.weight": (8, n_genes + 2), "input_encoder.tech_embed.weight": (5, 8)}
    shapes |= {"input_encoder.organ_embed.weight": (25, 8)}
    for i in range(depth):
        for name, (n_out, n_in) in linear.items():
            shapes |= {f"model.blks.{i}.{name}.weight": (n_out, n_in), f"model.blks.{i}.{name}.bias": (n_out,)}
        for name, n in (("attn.layernorm_qkv.0", 8), ("mlp.norm", 16)):
            shapes |= {f"model.blks.{i}.{name}.{kind}": (n,) for kind in ("weight", "bias")}
        shapes[f"model.blks.{i}.attn.edge_bias.0.weight"] = (2, 3)
    shapes |= {f"gene_exp_head.0.{kind}": (8,) for kind in ("weight", "bias")}
    shapes |= {"gene_exp_head.1.weight": (n_genes + 2, 8), "gene_exp_head.1.bias": (n_genes + 2,)}
    state = {name: wave(*shape, phase=phase) / 2 for phase, (name, shape) in enumerate(shapes.items())}
    return {name: tensor / 20 if "edge_bias" in name else tensor for name, tensor in state.items()}


def make_net(**hparams: Any) -> STPath:
    net = STPath(4, **HPARAMS | hparams).eval()
    net.load_state_dict(convert(published_state()))
    return net


def make_batch(n: int = 7, **more: Any) -> Batch:
    rng = np.random.default_rng(1)
    features, xy = rng.normal(size=(n, 6)).astype(np.float32), rng.uniform(0, 900, (n, 2)).astype(np.float32)
    return Batch(
        crops=(), index=torch.arange(n), features=torch.from_numpy(features), xy_um=torch.from_numpy(xy), **more
    )


def counts(n: int = 7, *, measured: tuple[int, ...] = ()) -> torch.Tensor:
    """Counts of the spots that are measured."""
    table = torch.from_numpy(np.random.default_rng(2).poisson(4, (n, 4)).astype(np.float32))
    table[[i for i in range(n) if i not in measured]] = NAN
    return table


# Plain numpy, from the published names: what the network has to compute.


def by_hand(batch: Batch, *, organ: int = 0, technology: int = 0) -> np.ndarray:
    w = {name: tensor.double().numpy() for name, tensor in published_state().items()}
    xy = batch.xy_um.double().numpy()
    xy = (xy - xy.min(0)) / (xy.max(0) - xy.min(0)) * 100
    vector = np.zeros((len(batch), 6))
    vector[:, 1] = 1
    if batch.counts is not None:
        there = ~np.isnan(batch.counts.numpy()).all(1)
        vector[there] = np.hstack([np.zeros((there.sum(), 2)), np.log1p(batch.counts.numpy()[there])])
    x = affine(w, "input_encoder.image_embed", batch.features.double().numpy())
    x = x + vector @ w["input_encoder.gene_embed.weight"].T
    x = x + w["input_encoder.organ_embed.weight"][organ] + w["input_encoder.tech_embed.weight"][technology]
    for i in range(2):
        block = {name.removeprefix(f"model.blks.{i}."): value for name, value in w.items()}
        x = x + attention(block, x, averaged_over_frames(block["attn.edge_bias.0.weight"], xy))
        hidden = affine(block, "mlp.fc1", x)
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = x + affine(block, "mlp.fc2", normed(block, "mlp.norm", hidden))
    return affine(w, "gene_exp_head.1", normed(w, "gene_exp_head.0", x))[:, 2:]


def affine(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normed(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return standard * w[f"{name}.weight"] + w[f"{name}.bias"]


def averaged_over_frames(weight: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """A linear layer of offset along principal axes and distance, for all pairs, averaged over the directions of the axes."""
    offset = xy[None] - xy[:, None]
    distance = np.sqrt((offset**2).sum(-1, keepdims=True))
    total = np.zeros((*offset.shape[:2], len(weight)))
    for i, around in enumerate(offset):
        _, axes = np.linalg.eigh(around.T @ around)
        for signs in product((-1, 1), repeat=2):
            total[i] += np.concatenate([around @ axes * signs, distance[i]], -1) @ weight.T / 4
    return total


def attention(block: dict[str, np.ndarray], x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    q, k, v = np.split(affine(block, "attn.layernorm_qkv.1", normed(block, "attn.layernorm_qkv.0", x)), 3, axis=1)
    read = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        read.append(softmax(q[:, part] @ k[:, part].T / 2 + bias[:, :, head], axis=1) @ v[:, part])
    return affine(block, "attn.W_output.0", np.hstack(read))


@torch.no_grad()
@pytest.mark.parametrize("measured", [None, (), (1, 4), tuple(range(7))])
def test_the_prediction_is_that_of_the_formula(measured):
    batch = make_batch(counts=None if measured is None else counts(measured=measured))
    np.testing.assert_allclose(make_net()(batch).numpy(), by_hand(batch), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("organ", "number"), [("Spinal cord", 3), ("Kidney", 9), ("colon", 23), ("Others", 24), (None, 0)]
)
@pytest.mark.parametrize(("technology", "row"), [("visium", 2), ("Visium HD", 4), (None, 0)])
def test_organ_and_technology_have_the_numbers_of_the_release(organ, number, technology, row):
    batch = make_batch()
    expected = by_hand(batch, organ=number, technology=row)
    np.testing.assert_allclose(
        make_net(organ=organ, technology=technology)(batch).numpy(), expected, rtol=1e-4, atol=1e-4
    )


# Sizes.


def count(n_genes: int, **hparams: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in STPath(n_genes, **hparams).parameters())


def test_number_of_parameters():
    unused = (
        512 + 2 * 513 + 4 * 4 * 2
    )  # a column and two outputs that are no genes, and what offsets are multiplied with
    assert count(38_984, encoder="gigapath") + unused == 49_179_258
    assert count(250, encoder="gigapath") == count(38_984, encoder="gigapath") - (38_984 - 250) * (512 + 513)


def test_the_length_of_an_embedding_is_known_or_given():
    assert STPath(2, encoder="resnet50.a1_in1k", n_features=2048, dim=8).image.in_features == 2048
    with pytest.raises(ValueError, match=r"number of features of 'resnet50\.a1_in1k' is unknown"):
        STPath(2, encoder="resnet50.a1_in1k", dim=8)


# What does and does not matter.


@torch.no_grad()
def test_each_axis_may_be_shifted_stretched_mirrored_or_exchanged():
    batch = make_batch()
    expected = make_net()(batch)
    for changed in (
        batch.xy_um * torch.tensor([3.0, 0.5]) + 70,
        batch.xy_um * torch.tensor([-1.0, 1.0]),
        batch.xy_um.flip(1),
    ):
        torch.testing.assert_close(make_net()(replace(batch, xy_um=changed)), expected, rtol=1e-4, atol=1e-4)
    sheared = batch.xy_um + batch.xy_um.flip(1) * torch.tensor([0.5, 0.0])
    assert float((make_net()(replace(batch, xy_um=sheared)) - expected).abs().max()) > 1e-3


def test_coordinates_go_from_0_to_100():
    xy = torch.tensor([[5.0, 7.0], [15.0, 7.0], [10.0, 7.0]])
    assert scaled(xy).tolist() == [[0, 0], [100, 0], [50, 0]]
    assert scaled(xy[:1]).tolist() == [[0, 0]]


@torch.no_grad()
def test_one_spot_alone_is_predicted():
    assert bool(make_net()(make_batch(1)).isfinite().all())


@torch.no_grad()
def test_two_sections_are_those_alone():
    first, second = make_batch(7), make_batch(5, counts=counts(5, measured=(2,)))
    order = torch.tensor([7, 0, 1, 8, 9, 2, 3, 10, 4, 5, 11, 6])
    both = {name: torch.cat([getattr(first, name), getattr(second, name)])[order] for name in ("features", "xy_um")}
    section = torch.tensor([3] * 7 + [1] * 5)[order]
    table = torch.cat([counts(7), second.counts])[order]
    batch = Batch(crops=(), index=torch.arange(12), section=section, counts=table, **both)
    expected = torch.cat([make_net()(first), make_net()(second)])[order]
    torch.testing.assert_close(make_net()(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairs", [1, 20])
def test_blocks_are_the_whole(monkeypatch, pairs):
    batch = make_batch(target=wave(7, 4))
    results = []
    for size in (stpath._PAIRS, pairs):
        monkeypatch.setattr(stpath, "_PAIRS", size)
        net = make_net()
        loss = net.loss(batch)
        loss.backward()
        with torch.no_grad():
            results.append([net(batch), loss, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(results[0]) > 20
    for whole, in_blocks in zip(*results, strict=True):
        torch.testing.assert_close(in_blocks, whole, rtol=1e-4, atol=1e-5)


def test_dropout_is_the_same_when_blocks_are_computed_again(monkeypatch):
    """With checkpoints, and without, after the same seed."""
    batch, gradients = make_batch(target=wave(7, 4)), []
    for compute in (stpath.checkpoint, lambda attend, *args, use_reentrant: attend(*args)):
        monkeypatch.setattr(stpath, "checkpoint", compute)
        net = make_net(drop=0.4).train()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            net.loss(batch).backward()
        gradients.append([p.grad for p in net.parameters()])
    for again, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept)


@torch.no_grad()
def test_bfloat16_is_near():
    batch = make_batch(counts=counts(measured=(1, 4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = make_net()(batch)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, make_net()(batch), rtol=0.1, atol=0.1)


# Context.


@torch.no_grad()
def test_measured_spots_change_what_is_predicted_for_others():
    net, measured = make_net(), counts(measured=(1, 4))
    alone = net(make_batch())
    assert float((net(make_batch(counts=measured)) - alone).abs().amax(1).min()) > 1e-3
    assert torch.equal(net(make_batch(counts=counts())), alone)
    more = torch.where(measured.isnan(), NAN, measured + 3)
    assert float((net(make_batch(counts=more)) - net(make_batch(counts=measured))).abs().max()) > 1e-3


def test_counts_become_targets():
    table = torch.tensor([[1.0, 3.0, 0.0], [NAN, NAN, NAN], [0.0, 0.0, 0.0], [5.0, NAN, 5.0]])
    plain = np.log1p([[1, 3, 0], [0, 0, 0], [0, 0, 0], [5, 0, 5]])
    scaled_up = np.log1p(np.array([[0.25, 0.75, 0], [0, 0, 0], [0, 0, 0], [0.5, 0, 0.5]]) * 1e4)
    np.testing.assert_allclose(known(table, None).numpy(), plain, rtol=1e-5)
    np.testing.assert_allclose(known(table, 1e4).numpy(), scaled_up, rtol=1e-5)


# Training.


@pytest.mark.parametrize(("n_spots", "n_genes"), [(1, 1), (2, 3), (12, 5), (200, 30)])
def test_what_is_hidden(n_spots, n_genes):
    seen = torch.zeros(n_spots, n_genes)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        drawn = [draw_masks(n_spots, seen) for _ in range(400)]
    shares = []
    for whole, partly, lost in drawn:
        masked = torch.cat([whole, partly]).tolist()
        assert len(masked) == len(set(masked)) > 0
        assert len(whole) == int(0.9 * len(masked))
        assert len(set(lost.tolist())) == n_genes // 2
        shares.append(len(masked) / n_spots)
    if n_spots == 200:  # the mean of Beta(10, 1) is 10 / 11, its standard deviation 0.083
        assert np.mean(shares) == pytest.approx(10 / 11, abs=0.015)
        assert np.std(shares) == pytest.approx(0.083, abs=0.015)


def test_the_loss_is_of_hidden_spots_and_nothing_of_them_is_seen(monkeypatch):
    net, target = make_net(drop=0.0).train(), counts(measured=tuple(range(7)))
    hidden = torch.tensor([0, 2, 3, 5]), torch.tensor([6]), torch.tensor([1, 3])
    monkeypatch.setattr(stpath, "draw_masks", lambda *_: hidden)
    seen = target.clone()
    seen[[0, 2, 3, 5]] = NAN
    seen[6, [1, 3]] = 0
    expected = (net(make_batch(counts=seen)) - target.log1p())[[0, 2, 3, 5, 6]].square().mean()
    torch.testing.assert_close(net.loss(make_batch(target=target.log1p())), expected)


def test_each_section_of_a_batch_has_spots_that_are_hidden_and_others_that_are_seen(monkeypatch):
    asked = []
    monkeypatch.setattr(stpath, "draw_masks", lambda n, like: asked.append(n) or draw_masks(n, like))
    make_net().train().loss(make_batch(target=wave(7, 4), section=torch.tensor([0, 1, 0, 1, 0, 0, 0])))
    assert asked == [5, 2]


def test_validation_hides_all():
    batch, net = make_batch(target=wave(7, 4)), make_net()
    expected = (net(batch) - batch.target).square().mean()
    torch.testing.assert_close(net.loss(replace(batch, counts=counts(measured=(1,)))), expected)


@torch.no_grad()
def test_training_starts_at_the_mean():
    net = make_net()
    net.head.weight.zero_()
    net.start_at(torch.arange(4.0))
    assert net(make_batch()).tolist() == [[0, 1, 2, 3]] * 7


# Published weights.


@torch.no_grad()
@pytest.mark.parametrize("panel", [IN_ORDER, ["HER2", "C1orf43"], ["ENSG4", "CD74", "ENSG3"]])
def test_the_network_of_a_panel_is_that_of_the_vocabulary(panel):
    columns = [IN_ORDER.index({"HER2": "ERBB2", "ENSG4": "ERBB2", "ENSG3": "KRT5"}.get(gene, gene)) for gene in panel]
    net = STPath(len(panel), **HPARAMS).eval()
    net.load_state_dict(for_panel(published_state(), VOCABULARY, panel))
    torch.testing.assert_close(net(make_batch()), make_net()(make_batch())[:, columns])
    whole = counts(measured=(1, 4))
    whole[:, [i for i in range(4) if i not in columns]] *= 0  # a panel has no counts of other genes
    context = make_batch(counts=whole[:, columns])
    torch.testing.assert_close(net(context), make_net()(make_batch(counts=whole))[:, columns])


@torch.no_grad()
def test_published_weights_become_a_checkpoint(tmp_path):
    hparams = {**SPEC.hparams, **SPEC.original.hparams, **HPARAMS}
    net = SPEC.build(2, **hparams).eval()
    net.load_state_dict(for_panel(published_state(), VOCABULARY, ["ERBB2", "CD74"]))
    card = ModelCard(
        model="stpath",
        genes=("ERBB2", "CD74"),
        crop=SPEC.crop_for(hparams),
        pixels=SPEC.pixels_for(hparams),
        target=SPEC.original.target,
        hparams=hparams,
    )
    checkpoints.save(tmp_path / "stpath.safetensors", net, card)
    breast, card = checkpoints.load(tmp_path / "stpath.safetensors", hparams={"organ": "Breast"})
    assert card.crop.mpp == 0.5
    np.testing.assert_allclose(
        breast(make_batch()).numpy(), by_hand(make_batch(), organ=5)[:, [3, 0]], rtol=1e-4, atol=1e-4
    )


def test_genes_that_are_not_in_the_vocabulary_are_named():
    with pytest.raises(KeyError, match=r"2 of 3 genes .*'erbb2': \['ERBB2'\], 'XYZ': \[\]"):
        for_panel(published_state(), VOCABULARY, ["erbb2", "CD74", "XYZ"])


def test_two_names_of_one_gene_are_refused():
    with pytest.raises(ValueError, match=r"\['ERBB2', 'HER2'\] are several names"):
        for_panel(published_state(), VOCABULARY, ["ERBB2", "KRT5", "HER2"])


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="has 5 genes, the network 4"):
        for_panel(published_state(), {**VOCABULARY, "NEW1": "ENSG9"}, ["KRT5"])


def test_another_state_dict_is_refused():
    state = published_state()
    state["other"] = state.pop("gene_exp_head.1.bias")
    with pytest.raises(ValueError, match=r"STPath: missing \['gene_exp_head.1.bias'\], unknown \['other'\]"):
        SPEC.convert(state)


# Errors.


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"organ": "Tail"}, "organ must be one of .*'Spinal cord'.*'Tail'"),
        ({"technology": "MERFISH"}, "technology must be one of .*'Xenium'.*'MERFISH'"),
        ({"depth": 0}, "depth"),
        ({"heads": 1.5}, "heads"),
        ({"dim": 9}, "multiple of 2"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"total": 0}, "total"),
        ({"drop": 1.0}, "drop"),
    ],
)
def test_unfit_hyper_parameters_are_refused(hparams, message):
    with pytest.raises(ValueError, match=message):
        STPath(4, **HPARAMS | hparams)


def test_a_batch_without_features_places_or_targets_is_refused():
    batch = make_batch()
    for name in ("features", "xy_um"):
        with pytest.raises(ValueError, match=name):
            make_net()(replace(batch, **{name: None}))
    with pytest.raises(ValueError, match=r"6 features .* \(5,\)"):
        make_net()(replace(batch, features=batch.features[:, :5]))
    with pytest.raises(ValueError, match="target"):
        make_net().loss(batch)
