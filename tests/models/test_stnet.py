"""What is special in ST-Net, worked out by hand; its network is compared with torchvision's in test_timm_parity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from st_predict._runtime import Inference
from st_predict._training._config import configure
from st_predict.crops import Batch
from st_predict.models.stnet import SPEC, STNet
from st_predict.pp import to_target
from st_predict.tl import TrainConfig


def make_net(**hparams: Any) -> STNet:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return STNet(3, **SPEC.tiny, **hparams).eval()


def make_batch(n: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    crop = torch.from_numpy(rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))
    target = torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))
    return Batch(crops=(crop,), index=torch.arange(n), target=target)


def test_starts_at_the_mean_of_training_whatever_the_image():
    net, mean_G = make_net(), torch.tensor([0.5, -7.0, 3.25])
    net.start_at(mean_G)
    assert torch.equal(net(make_batch()), mean_G.expand(4, 3))
    assert net.head.weight.requires_grad
    net.train().loss(make_batch()).backward()
    assert float(net.head.weight.grad.abs().min()) > 0  # and goes on to learn from it


@torch.no_grad()
def test_loss_is_averaged_or_summed_over_spots():
    batch = make_batch()
    squares_BG = (make_net()(batch).numpy() - batch.target.numpy()) ** 2
    of_each_spot = [sum(row) / 3 for row in squares_BG.tolist()]
    assert float(make_net().loss(batch)) == pytest.approx(sum(of_each_spot) / 4, rel=1e-5)
    assert float(make_net(loss="sum").loss(batch)) == pytest.approx(sum(of_each_spot), rel=1e-5)
    with pytest.raises(ValueError, match=r"loss must be one of \('mse', 'sum'\), got 'mean'"):
        make_net(loss="mean")
    with pytest.raises(ValueError, match="target"):
        make_net(loss="sum").loss(replace(batch, target=None))


@torch.no_grad()
def test_prediction_is_the_mean_over_turned_and_mirrored_crops():
    net, batch = make_net(), make_batch(2)
    crop = batch.crops[0].numpy()
    copies = [np.rot90(c, k, axes=(2, 3)) for c in (crop, crop[..., ::-1]) for k in range(4)]
    each = [net(replace(batch, crops=(torch.from_numpy(c.copy()),))).numpy() for c in copies]
    runner = Inference(net, device=torch.device("cpu"), precision="float32", symmetries=SPEC.symmetries)
    np.testing.assert_allclose(runner(batch).numpy(), np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
    assert float(np.ptp(each, axis=0).max()) > 1e-3  # they differ


def test_its_own_setting():
    config = configure(SPEC.original, None)
    assert config == TrainConfig(optimizer="sgd", lr=1e-6, momentum=0.9, batch_size=32, epochs=50, measure_pixels=True)
    hparams = {**SPEC.hparams, **SPEC.original.hparams}
    assert (hparams["arch"], hparams["weights"], hparams["loss"]) == ("densenet121", "tv_in1k", "sum")
    assert SPEC.pixels_for(hparams).mean == (0.485, 0.456, 0.406)
    assert SPEC.original.panel == "mean"


def test_its_own_target_is_the_log_of_the_share_of_all_genes():
    counts = np.array([[3.0, 0.0, 5.0, 12.0]])
    values = to_target(counts, SPEC.original.target, panel_index=[2, 0])
    np.testing.assert_allclose(values, [[np.log(6 / 24), np.log(4 / 24)]], rtol=1e-6)
