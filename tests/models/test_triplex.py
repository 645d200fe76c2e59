"""TRIPLEX against its published sizes, recorded numbers, and an independent convolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn

from st_predict.crops import Batch
from st_predict.encoders import RGB_NAMES
from st_predict.models.triplex import SPEC, VARIANTS, Apeg, Triplex, fusion_loss

TINY = dict(SPEC.tiny)
G = 5


def make_net(**hparams: Any) -> Triplex:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        net = Triplex(G, **TINY | hparams).eval()
    net.pixel_spec = SPEC.pixels
    return net


def make_batch(n: int = 6) -> Batch:
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(n, 25, len(RGB_NAMES))).astype(np.float32)
    tiles[: n // 2, :5] = np.nan
    return Batch(
        crops=(torch.from_numpy(rng.integers(0, 256, (n, 3, 64, 64), dtype=np.uint8)),),
        index=torch.arange(n),
        grid=torch.stack([torch.arange(n) // 3, torch.arange(n) % 3 + 7], dim=1),
        features=torch.from_numpy(tiles),
        target=torch.from_numpy(rng.normal(size=(n, G)).astype(np.float32)),
    )


@pytest.mark.parametrize(
    ("variant", "parts", "total"),
    [
        ("her2st", (3_151_872, 9_458_688, 4_731_568), 29_031_640),
        ("her2st-deep", (3_151_872, 15_760_384, 12_604_816), 43_206_584),
        ("scc", (6_302_720, 3_159_040, 6_308_416), 27_459_688),
        ("stnet", (9_453_568, 6_309_888, 12_605_216), 40_058_184),
    ],
)
def test_number_of_parameters(variant, parts, total):
    with torch.device("meta"):
        net = Triplex(250, variant=variant, encoder="histology-resnet18")
    assert tuple(map(count, (net.fusion, net.section, net.neighbours))) == parts
    assert (count(net.backbone), count(net.heads)) == (11_176_512, 4 * 128_250)
    assert count(net) == total


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Numbers recorded from another implementation: each tensor of weights is 0.3 sin(1), 0.3 sin(2), ..., each input cos(0), cos(1), ...

FUSED = [[2.200549, 0.256121, -1.900922], [2.172500, -0.018555, -1.792941]]


@pytest.fixture
def recorded():
    net = Triplex(3, **TINY | {"dim": 8, "n_features": 8}).eval().double()
    with torch.no_grad():
        for module in net.modules():
            for name, p in module.named_parameters(recurse=False):
                one = isinstance(module, nn.LayerNorm) and name == "weight"
                p.copy_(one + 0.3 * torch.arange(1, p.numel() + 1, dtype=torch.float64).sin().view_as(p))
    return net


@torch.no_grad()
def compute(net: Triplex, *, target=None, tiles=None, there=None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Predictions of spots 0 and 3 of five, and their tokens of tiles."""
    grid = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 0], [2, 2]])
    there = mask() if there is None else there
    section = net.section(waves(5, 8), grid)[[0, 3]]
    neighbours = net.neighbours(waves(2, 25, 8) if tiles is None else tiles, there)
    target = waves(2, 4, 8) if target is None else target
    return net.predict_branches(target, neighbours, there, section), neighbours


def mask() -> torch.Tensor:
    there = torch.ones(2, 25, dtype=torch.bool)
    there[1, :5] = False
    return there


def waves(*shape: int) -> torch.Tensor:
    return torch.arange(np.prod(shape), dtype=torch.float64).cos().view(shape)


def test_recorded_predictions_and_loss(recorded):
    found, neighbours = compute(recorded)
    parts = (recorded.fusion, recorded.section, recorded.neighbours, recorded.heads)
    assert sum(map(count, parts)) == 2454
    torch.testing.assert_close(found["fused"], torch.tensor(FUSED).double(), atol=1e-6, rtol=0)
    for name, row, expected in (
        ("target", 0, [0.381879, 0.261228, -0.083737]),
        ("section", 1, [2.215330, -0.169874, -1.791738]),
    ):
        torch.testing.assert_close(found[name][row], torch.tensor(expected).double(), atol=1e-6, rtol=0)
    with torch.no_grad():  # published: mean of all tiles, missing ones included
        published = found | {"neighbour": recorded.heads["neighbour"](neighbours.mean(1))}
    expected = torch.tensor([1.230305, 0.250959, -0.929175]).double()
    torch.testing.assert_close(published["neighbour"][1], expected, atol=1e-6, rtol=0)
    assert float(fusion_loss(published, torch.zeros(2, 3), 0.3)) == pytest.approx(6.217659, abs=1e-6)
    torch.testing.assert_close(found["neighbour"][0], published["neighbour"][0])  # all tiles are there
    assert not torch.allclose(found["neighbour"][1], published["neighbour"][1])


def test_fused_prediction_ignores_missing_tiles_and_the_order_of_places(recorded):
    tiles = waves(2, 25, 8)
    tiles[1, :5] = 7
    found, _ = compute(recorded, tiles=tiles, target=waves(2, 4, 8).flip(1))
    torch.testing.assert_close(found["fused"], torch.tensor(FUSED).double(), atol=1e-6, rtol=0)
    found, _ = compute(recorded, there=torch.ones(2, 25, dtype=torch.bool))
    assert not torch.allclose(found["fused"][1], torch.tensor(FUSED[1]).double(), atol=1e-4)


def test_mirrored_tiles_have_mirrored_tokens(recorded):
    tiles, there = waves(2, 25, 8), mask()
    flip, transpose = torch.arange(25).view(5, 5).flip(0).flatten(), torch.arange(25).view(5, 5).T.flatten()
    with torch.no_grad():
        expected = recorded.neighbours(tiles, there)
        torch.testing.assert_close(recorded.neighbours(tiles[:, flip], there[:, flip]), expected[:, flip])
        transposed = recorded.neighbours(tiles[:, transpose], there[:, transpose])
    assert not torch.allclose(transposed, expected[:, transpose], atol=1e-3)


def test_the_loss_by_hand():
    predicted = {
        name: torch.full((2, 3), value)
        for name, value in {"fused": 1.0, "target": 2.0, "neighbour": 3.0, "section": 0.0}.items()
    }
    assert float(fusion_loss(predicted, torch.zeros(2, 3), 0.3)) == pytest.approx(11.9, abs=1e-6)
    fused = predicted["fused"] = predicted["fused"].clone().requires_grad_()
    fusion_loss(predicted, torch.zeros(2, 3), 0.3).backward()
    # derivative of f^2 + 0.3 ((2 - f)^2 + (3 - f)^2 + f^2) at 1, over 6 values: the fused branch is not detached
    torch.testing.assert_close(fused.grad, torch.full((2, 3), (2 + 0.3 * (-2 - 4 + 2)) / 6))


@torch.no_grad()
def test_position_encoding_by_hand():
    apeg = Apeg(1)
    apeg.conv.weight.fill_(1)
    apeg.conv.bias.fill_(0.5)
    grid = torch.tensor([[0, 0], [0, 1], [2, 2]])
    assert apeg(torch.tensor([[1.0], [2.0], [4.0]]), grid).flatten().tolist() == [4.5, 5.5, 8.5]


@torch.no_grad()
def test_position_encoding_is_a_convolution_over_the_lattice():
    rng = np.random.default_rng(0)
    apeg, x = Apeg(4).double(), torch.from_numpy(rng.normal(size=(12, 4)))
    cells = rng.choice(30, 12, replace=False)
    grid = torch.from_numpy(np.stack([cells // 6, cells % 6], 1))
    dense = np.zeros((4, 6, 5))  # columns, then rows
    dense[:, grid[:, 1], grid[:, 0]] = x.T.numpy()
    kernel = apeg.conv.weight[:, 0].numpy()
    expected = np.stack([correlate(dense[d], kernel[d], mode="constant") for d in range(4)])
    expected = x.numpy() + expected[:, grid[:, 1], grid[:, 0]].T + apeg.conv.bias.numpy()
    np.testing.assert_allclose(apeg(x, grid).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(apeg(x, grid + torch.tensor([10**6, -40])).numpy(), expected, atol=1e-12)
    shared = apeg(torch.cat([x, x[:1] + 1]), torch.cat([grid, grid[:1]]))  # two spots in a cell, both kept
    assert len(shared) == 13
    np.testing.assert_allclose(shared[12] - shared[0], 1, atol=1e-12)


@torch.no_grad()
def test_permuted_spots_have_permuted_predictions():
    net, batch, order = make_net(), make_batch(), torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(net(batch.take(order)), net(batch)[order])


@torch.no_grad()
def test_two_sections_are_as_each_alone_and_other_spots_of_a_section_matter():
    net, batch = make_net(), make_batch(10)
    section = torch.tensor([1, 0] * 5)
    both = net(replace(batch, section=section))
    for which in (0, 1):
        torch.testing.assert_close(both[section == which], net(batch.take(section == which)))
    assert not torch.allclose(both, net(batch), atol=1e-4)
    assert torch.equal(net(batch), net(batch))


@torch.no_grad()
def test_more_spots_than_a_block(monkeypatch):
    net, batch = make_net(), make_batch(9)
    expected = net(batch)
    monkeypatch.setattr("st_predict.models.triplex._BLOCK", 2)
    torch.testing.assert_close(net(batch), expected)


def test_training_draws_spots_and_validation_reads_all():
    net, batch = make_net(spots_per_step=4, drops=[0, 0, 0]), make_batch(40)
    net.train()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()  # so that losses of samples differ only by the spots
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        losses = {float(net.loss(batch)) for _ in range(16)}
        assert len(losses) == 16
        predicted = net.eval().branches(batch)
        assert float(net.loss(batch)) == pytest.approx(float(fusion_loss(predicted, batch.target, 0.3)))
    assert min(losses) < float(fusion_loss(predicted, batch.target, 0.3)) < max(losses)


@torch.no_grad()
def test_every_branch_starts_at_the_mean():
    net, mean = make_net(), torch.arange(G).float()
    for head in net.heads.values():
        head.weight.zero_()
    net.start_at(mean)
    for predicted in net.branches(make_batch()).values():
        torch.testing.assert_close(predicted, mean.expand(6, -1))


@pytest.mark.parametrize(
    ("hparams", "match"),
    [
        ({"encoder": "Histology-ResNet18", "size": 112}, "sees a tile of 224 px as a whole; got size 112"),
        ({"encoder": "histology-resnet18", "size": 224, "features": "stages"}, "features 'stages'"),
        ({"file": "x.ckpt", "arch_args": {"layers": [1, 1, 1, 1]}}, "file is for the encoder 'histology-resnet18'"),
        ({"depths": [1, 2]}, "depths must be 3 values"),
        ({"heads": [3, 2, 2]}, "dim must be a multiple"),
        ({"variant": "visium"}, "variant must be one of"),
        ({"encoder": "resnet18.tv_in1k"}, "n_features"),
    ],
)
def test_impossible_sizes(hparams, match):
    with torch.device("meta"), pytest.raises(ValueError, match=match):
        SPEC.build_with(G, TINY | hparams)


def test_features_of_another_encoder_are_refused():
    batch = make_batch()
    with pytest.raises(ValueError, match=r"25, .* of 'rgb' on tiles; the batch has \(6, 24"):
        make_net()(replace(batch, features=batch.features[:, :24]))
    with pytest.raises(ValueError, match="'features'"):
        make_net()(replace(batch, features=None))


def test_the_published_encoder_needs_its_file(tmp_path):
    with pytest.raises(ValueError, match="needs its published file"):
        SPEC.reads({"encoder": "histology-resnet18"}).load_encoder()
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        SPEC.complete({"file": str(tmp_path / "none.ckpt")})


def test_target_encoder_without_a_map_is_refused():
    net = make_net(arch="vit_tiny_patch16_224", arch_args={"img_size": 64, "depth": 1, "embed_dim": 32, "num_heads": 2})
    with pytest.raises(ValueError, match="no feature maps"):
        net(make_batch())


def test_variants_differ_from_each_other():
    assert len({repr(config) for config in VARIANTS.values()}) == 4
