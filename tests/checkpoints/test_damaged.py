"""Cards and weights that no training writes: each is an error on loading, which names the file and what is wrong."""

from __future__ import annotations

import json
from math import inf, nan
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from st_predict import checkpoints
from st_predict._imagenet import NAME
from st_predict.encoders._catalogue import Encoder, _as_read
from st_predict.models import get_spec
from st_predict.specs import ModelCard, PixelSpec

if TYPE_CHECKING:
    from pathlib import Path

SPEC = get_spec("m2ost")
CARD = ModelCard(model="m2ost", genes=("a", "b", "c"), crop=SPEC.crop_for(SPEC.tiny), hparams=dict(SPEC.tiny))
STATE = {name: tensor.contiguous() for name, tensor in checkpoints.build(CARD).state_dict().items()}


def written(path: Path, text: str, state: dict[str, torch.Tensor] = STATE) -> Path:
    save_file(state, path / "a.safetensors", metadata={ModelCard.METADATA_KEY: text})
    return path / "a.safetensors"


def text_with(**changes: Any) -> str:
    return json.dumps({**json.loads(CARD.to_json()), **changes})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_the_card_itself_is_fine(tmp_path):
    assert checkpoints.load(written(tmp_path, CARD.to_json()))[1] == CARD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hparams": {**SPEC.tiny, "drop": nan}}, "'hparams' of the card has the value nan"),
        ({"hparams": {**SPEC.tiny, "drop": inf}}, "'hparams' of the card has the value inf"),
        ({"crop": {"levels": [{"size": 64, "downsample": nan}]}}, "'crop' of the card has the value nan"),
        ({"crop": {**json.loads(CARD.to_json())["crop"], "mpp": inf}}, "'crop' of the card has the value inf"),
        ({"pixels": {"mean": [0, 0, nan], "std": [1, 1, 1]}}, "'pixels' of the card has the value nan"),
        ({"pixels": {"mean": [0, 0, 0], "std": [1, 1, 1e-300]}}, "std.* must be at least .*, got 1e-300"),
        ({"pixels": {"mean": [0, 0, 1e300], "std": [1, 1, 1]}}, "mean.* must be at most 1000000"),
        ({"pixels": {"mean": [0, 0, 0], "std": [1, 1, 0]}}, "std.* must be above 0, got 0"),
        ({"target": {"transform": "log1p_total", "total": nan}}, "'target' of the card has the value nan"),
        ({"genes": ["a", "b", "a"]}, r"genes must be a list of different names, got \['a'\] several times"),
        ({"genes": []}, "genes must be a list of different names, got none"),
        ({"genes": ["a", "b", 3]}, "genes.* must be a string, got 3"),
        ({"genes": ["a", "b", None]}, "genes.* must be a string, got None"),
        ({"genes": ["a", "b", "\ud800"]}, "genes must be names that a file can hold"),
        ({"genes": ["a", "b", "c\0"]}, "genes must be names that a file can hold"),
        ({"genes": "abc"}, "genes must be .*got 'abc'"),
        ({"genes": {"a": 1, "b": 2, "c": 3}}, "genes must be"),
        ({"model": 3}, "model must be a string, got 3"),
        ({"model": ["m2ost"]}, "model must be a string"),
        ({"hparams": [1]}, "hparams must be a mapping"),
        ({"hparams": {**SPEC.tiny, "depth": nested(900)}}, "'hparams' of the card is nested more than 32 deep"),
        ({"training": nested(900)}, "'training' of the card is nested more than 32 deep"),
        ({"training": {"a": nested(40)}}, "'training' of the card is nested more than 32 deep"),
        ({"format_version": 2}, "format 2, this st_predict reads up to 1. Upgrade"),
        ({"format_version": 2.5, "new": 1}, "format 2.5, this st_predict reads up to 1. Upgrade"),
        ({"format_version": 10**30}, "Upgrade"),
        ({"format_version": True}, "format_version must be a whole number, got True"),
        ({"format_version": -1}, "format_version must be at least 0, got -1"),
        ({"format_version": None}, "format_version must be a whole number, got None"),
        ({"organism": 3}, "organism must be a string"),
        ({"gene_id_type": "entrez"}, "gene_id_type must be"),
    ],
)
def test_a_card_that_nobody_wrote(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"a\.safetensors' cannot be used.*{message}"):
        checkpoints.load(written(tmp_path, text_with(**changes)))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        CARD.to_json()[:-1],
        CARD.to_json().replace('"genes"', '"genes": ["x"], "genes"'),
        CARD.to_json().replace('"depth": 1', '"depth": 1, "depth": 2'),
        CARD.to_json().replace('"depth": 1', '"depth": ' + "1" * 5000),
    ],
    ids=["lists", "mappings", "half", "genes twice", "depth twice", "a long number"],
)
def test_a_card_that_is_no_json(tmp_path, text):
    with pytest.raises(
        ValueError, match=r"a\.safetensors' cannot be used.*not a card of st_predict, as it is not JSON"
    ):
        checkpoints.load(written(tmp_path, text))


def test_numbers_beyond_floats_are_not_finite(tmp_path):
    with pytest.raises(ValueError, match="'hparams' of the card has the value inf"):
        checkpoints.load(written(tmp_path, CARD.to_json().replace('"depth": 1', '"depth": 1e999')))


def test_a_header_that_nests_deeply(tmp_path):
    header = b"[" * 100_000
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"a\.safetensors' is not a complete safetensors file"):
        checkpoints.load(tmp_path / "a.safetensors")


def test_scores_that_are_not_defined_may_be_noted(tmp_path):
    path = written(tmp_path, text_with(training={"best": {"val_pearson": nan}}))
    assert str(checkpoints.load(path)[1].training) == "{'best': {'val_pearson': nan}}"


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", ["head.bias", "blocks.0.itmm.layers.0.qkv.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_weights_that_are_not_finite(tmp_path, value, name, dtype):
    state = {**STATE, name: STATE[name].clone().to(dtype)}
    state[name].view(-1)[1] = value
    with pytest.raises(
        ValueError, match=rf"a\.safetensors' does not hold a 'm2ost' network\. 1 tensors .*not finite: \['{name}'\]"
    ):
        checkpoints.load(written(tmp_path, CARD.to_json(), state))


@pytest.mark.parametrize(
    ("value", "dtype", "way_out"), [(nan, None, "Train the network again"), (1e6, torch.float16, "Leave out dtype=")]
)
def test_weights_that_cannot_be_stored(tmp_path, value, dtype, way_out):
    network = checkpoints.build(CARD)
    torch.nn.init.constant_(network.head.bias, value)
    with pytest.raises(ValueError, match=rf"not finite: \['head.bias'\]\. {way_out}"):
        checkpoints.save(tmp_path / "a.safetensors", network, CARD, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_float32(tmp_path):
    state = {**STATE, "head.bias": torch.full((3,), 1e300, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"not finite: \['head.bias'\]"):
        checkpoints.load(written(tmp_path, CARD.to_json(), state))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mean", "mean_G"),
        ("mlp", "scale_D"),
        ("bleep", "bank.values"),
        ("stnet", "backbone.features.norm5.running_var"),
    ],
)
def test_statistics_that_are_not_finite(tmp_path, model, name):
    spec = get_spec(model)
    card = ModelCard(model=model, genes=("a", "b", "c"), crop=spec.crop_for(spec.tiny), hparams=dict(spec.tiny))
    state = {n: tensor.contiguous() for n, tensor in checkpoints.build(card).state_dict().items()}
    state[name] = torch.full((2, *state[name].shape[1:]) if name == "bank.values" else state[name].shape, nan)
    with pytest.raises(ValueError, match=rf"not finite: \['{name}'\]"):
        checkpoints.load(written(tmp_path, card.to_json(), state))


def test_a_carried_encoder_that_is_not_finite(tmp_path):
    spec = get_spec("ridge")
    hparams = {**spec.tiny, "encoder": NAME}
    card = ModelCard(model="ridge", genes=("a", "b", "c"), crop=spec.crop_for(hparams), hparams=hparams)
    described = spec.reads(hparams).describe_encoder()
    encoder = Encoder(_as_read(described.build(), described), described)
    state = {f"st_predict.encoder.{n}": x.clone().contiguous() for n, x in encoder.state_dict().items()}
    first = next(name for name, x in state.items() if x.is_floating_point())
    state[first].view(-1)[0] = nan
    own = {name: tensor.contiguous() for name, tensor in checkpoints.build(card).state_dict().items()}
    path = written(tmp_path, card.to_json(), {**own, **state})
    with pytest.raises(ValueError, match=r"a\.safetensors' is damaged.*not finite"):
        checkpoints.load_encoder(path, card)


@pytest.mark.parametrize("bad", [(nan, 0, 0), (0, inf, 0), (0, 0, 1e9)])
def test_pixel_statistics(bad):
    with pytest.raises(ValueError, match=r"mean(\.\d)? must be"):
        PixelSpec(mean=bad)
    with pytest.raises(ValueError, match=r"std(\.\d)? must be"):
        PixelSpec(std=bad)
