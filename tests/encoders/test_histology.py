"""ResNet18 of histology from a file with the published names, and as the start of TRIPLEX."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from st_predict._backbones import create_backbone
from st_predict._files import sha256_of_file
from st_predict.crops import Batch
from st_predict.encoders import HISTOLOGY_RESNET18, load_histology_resnet18
from st_predict.models import get_spec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        return create_backbone("resnet18").eval()


@pytest.fixture(scope="module")
def published(backbone: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Lightning with random weights, without counters of batches, and with a last layer."""
    state = {f"model.resnet.{name}": x for name, x in backbone.state_dict().items() if not name.endswith("tracked")}
    state |= {"model.resnet.fc.weight": torch.zeros(8, 512), "model.resnet.fc.bias": torch.zeros(8)}
    path = tmp_path_factory.mktemp("weights") / "tenpercent_resnet18.ckpt"
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


@torch.no_grad()
def test_features_are_those_of_the_published_weights(backbone, published, tmp_path):
    encoder = load_histology_resnet18(published).eval()
    crop = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = encoder(Batch(crops=(crop,), index=torch.arange(2)))
    torch.testing.assert_close(found, backbone((crop / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    assert found.shape[1] == HISTOLOGY_RESNET18.n_features
    save_file({name: x.contiguous() for name, x in backbone.state_dict().items()}, tmp_path / "same.safetensors")
    assert load_histology_resnet18(tmp_path / "same.safetensors").fingerprint is not None


def test_the_target_encoder_of_triplex_starts_from_it(backbone, published):
    spec = get_spec("triplex")
    hparams = spec.complete({**spec.tiny, "arch_args": None, "file": str(published)})
    assert hparams["file_sha256"] == sha256_of_file(published)
    network = spec.build_with(3, hparams)
    network.load_pretrained()
    expected = backbone.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in network.backbone.state_dict().items() if "num" not in name)
    assert "ozanciga" in network.notice
    assert spec.admit(hparams)["file"] is None  # a card cannot name a file


def test_other_files_are_refused(published, tmp_path):
    with pytest.raises(ValueError, match="not 00"):
        load_histology_resnet18(published, sha256="00")
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold a ResNet18"):
        load_histology_resnet18(tmp_path / "other.pt")
    torch.save({"state_dict": {}, "callback": Fraction(1, 2)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        load_histology_resnet18(tmp_path / "code.pt")
    (tmp_path / "damaged.pt").write_bytes(published.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_histology_resnet18(tmp_path / "damaged.pt")
