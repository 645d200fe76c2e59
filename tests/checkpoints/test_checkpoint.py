"""One file a model: what is written comes back, and what is no such file is refused."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from st_predict import checkpoints
from st_predict.checkpoints import _file
from st_predict.crops import Batch
from st_predict.models.m2ost import SPEC
from st_predict.specs import CropSpec, LevelSpec, ModelCard, PixelSpec, Reliability, TargetSpec

GENES = ("A", "B", "C")
CARD = ModelCard(model="m2ost", genes=GENES, crop=SPEC.crop_for(SPEC.tiny), hparams=dict(SPEC.tiny))
# Every field differs from its default.
FULL = ModelCard(
    model="m2ost",
    genes=("ENSG2", "ENSG10", "ENSG1"),
    crop=CropSpec(levels=(LevelSpec(size=32), LevelSpec(size=16, downsample=2.5)), mpp=0.5, pad_value=240),
    pixels=PixelSpec(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    target=TargetSpec(
        transform="log_proportion",
        total=1e4,
        over="all",
        scale="minmax",
        limits=((0.0, 1.5, -2.0), (1.0, 1.5, 3.0)),
    ),
    hparams={"dim": 24, "levels": [0, 1], "pool": "mean", "drop": 0.1, "dpe": False},
    gene_id_type="ensembl",
    organism="Homo sapiens",
    training={"dataset": "her2st", "sections": ["A1", "B1"], "seed": 0, "scores": {"pearson": 0.25}, "note": "Ä"},
    license="CC-BY-4.0",
    citation="doi:10.0/0",
    reliability=(
        Reliability(
            held_out="patient",
            sections=("X1", "X2"),
            patients=("X",),
            n_spots=300,
            chose_epoch=True,
            partial=(0.25, None, -0.5),
            low=(0.125, None, -0.75),
            high=(0.5, None, 0.0),
            ceiling=(0.9, 0.1, None),
        ),
    ),
    format_version=0,
)


@pytest.fixture(scope="module")
def network():
    return checkpoints.build(CARD).eval()


@pytest.fixture
def path(tmp_path, network):
    checkpoints.save(tmp_path / "model.safetensors", network, CARD)
    return tmp_path / "model.safetensors"


def batch() -> Batch:
    rng = np.random.default_rng(0)
    crops = tuple(torch.from_numpy(rng.integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)) for _ in range(3))
    return Batch(crops=crops, index=torch.arange(4))


def changed(card: ModelCard, **changes) -> str:
    return json.dumps({**json.loads(card.to_json()), **changes})


# Cards


def test_a_card_comes_back_with_every_field():
    back = ModelCard.from_json(FULL.to_json())
    for field in fields(ModelCard):
        assert getattr(back, field.name) == getattr(FULL, field.name), field.name
        assert getattr(FULL, field.name) != getattr(CARD, field.name) or field.name == "model"
    assert back == FULL
    assert ModelCard.from_json(CARD.to_json()) == CARD


def test_equal_cards_are_equal_strings():
    shuffled = replace(FULL, hparams=dict(reversed(FULL.hparams.items())))
    assert shuffled.to_json() == FULL.to_json()


def test_a_newer_card_asks_for_an_upgrade():
    with pytest.raises(ValueError, match=r"format 2, this st_predict reads up to 1\. Upgrade"):
        ModelCard.from_json(changed(CARD, format_version=2, something_new=[1]))


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"unknown fields \['colour', 'shape'\]"):
        ModelCard.from_json(changed(CARD, shape=1, colour="red"))
    values = json.loads(CARD.to_json())
    del values["genes"], values["target"]
    with pytest.raises(ValueError, match=r"lacks the fields \['genes', 'target'\]"):
        ModelCard.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "3",
        "null",
        "{}",
        changed(CARD, crop={"levels": [{"size": 64, "zoom": 20}]}),
        changed(CARD, crop={}),
        changed(CARD, crop={"levels": [{"size": -64}]}),
        changed(CARD, pixels=[0.5]),
        changed(CARD, target={"transform": "log2"}),
        changed(CARD, genes=3),
        changed(CARD, format_version="1"),
    ],
)
def test_what_is_no_card(text):
    with pytest.raises(ValueError):
        ModelCard.from_json(text)


# Files


def test_a_file_holds_weights_and_card(path, network):
    loaded, card = checkpoints.load(path)
    assert card == CARD
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(batch()), network(batch()))


def test_pixels_are_scaled_as_the_card_says(tmp_path):
    card = replace(CARD, pixels=PixelSpec(mean=(0.7, 0.5, 0.6), std=(0.2, 0.25, 0.3)))
    checkpoints.save(tmp_path / "a.safetensors", checkpoints.build(card), card)
    loaded, _ = checkpoints.load(tmp_path / "a.safetensors")
    crop = batch().crops[0]
    expected = (crop.numpy() / 255 - np.reshape([0.7, 0.5, 0.6], (3, 1, 1))) / np.reshape([0.2, 0.25, 0.3], (3, 1, 1))
    np.testing.assert_allclose(loaded.pixels(crop).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(checkpoints.build(CARD).pixels(crop), crop / 255)


def test_a_file_can_be_read_without_st_predict(path):
    with safe_open(path, framework="np") as file:
        card = json.loads(file.metadata()["st_predict.card"])
        assert file.get_tensor("head.bias").shape == (3,)
    assert card["genes"] == list(GENES)


def test_half_precision_halves_the_file(path, network, tmp_path):
    checkpoints.save(tmp_path / "half.safetensors", network, CARD, dtype=torch.float16)
    half, full = ((tmp_path / name).stat().st_size for name in ("half.safetensors", path.name))
    assert 0.45 < half / full < 0.6  # names and card are not halved
    loaded, _ = checkpoints.load(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch()), network(batch()), rtol=0, atol=1e-2)
        assert not torch.equal(loaded(batch()), network(batch()))


def test_whole_numbers_are_not_halved(tmp_path):
    network = checkpoints.build(CARD)
    network.register_buffer("n_seen", torch.tensor(100_003))
    checkpoints.save(tmp_path / "a.safetensors", network, CARD, dtype=torch.float16)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert int(file.get_tensor("n_seen")) == 100_003


def test_the_released_card_keeps_its_text():
    path = checkpoints.find_weights("m2ost")
    with safe_open(path, framework="pt") as file:
        before = json.loads(file.metadata()["st_predict.card"])
    after = json.loads(ModelCard.from_json(json.dumps(before)).to_json())
    after["target"] = {name: after["target"][name] for name in before["target"]}  # newer fields have their defaults
    assert json.dumps(after, sort_keys=True) == json.dumps(before, sort_keys=True)


@pytest.mark.parametrize("part", [0.0, 1e-4, 0.01, 0.3, 0.7, 0.999, "last byte"])
def test_a_truncated_file(path, part):
    content = path.read_bytes()
    path.write_bytes(content[:-1] if part == "last byte" else content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"model\.safetensors.*not a complete safetensors file.*Get it again"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"some text", b"<!DOCTYPE html>" * 100, pickle.dumps({"weight": [1.0, 2.0]}), bytes(5000)]
)
def test_a_file_of_another_kind(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        checkpoints.load(tmp_path / "a.safetensors")


def test_the_card_is_read_without_the_weights(path):
    assert ModelCard.of_file(path) == CARD
    content = path.read_bytes()
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])  # the header only
    assert ModelCard.of_file(path) == CARD
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nope\.safetensors"):
        ModelCard.of_file(path.with_name("nope.safetensors"))


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff\xff", b'{"__metadata__": "text"}'])
def test_headers_that_are_not_those_of_safetensors(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"a\.safetensors' is not a complete safetensors file"):
        ModelCard.of_file(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_without_a_card(tmp_path, metadata):
    save_file({"weight": torch.ones(3)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors' has no st_predict card"):
        checkpoints.load(tmp_path / "a.safetensors")


def test_a_card_that_cannot_be_read_names_the_file(tmp_path):
    metadata = {"st_predict.card": changed(CARD, format_version=99)}
    save_file({"weight": torch.ones(3)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors.*format 99.*Upgrade"):
        checkpoints.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": ["A", "B"]}, "size mismatch for head"),
        ({"hparams": {**SPEC.tiny, "depth": 2}}, "Missing key"),
        ({"hparams": {**SPEC.tiny, "width": 7}}, "width"),
    ],
)
def test_weights_of_another_network(path, changes, message):
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    save_file(state, path, metadata={"st_predict.card": changed(CARD, **changes)})
    with pytest.raises(ValueError, match=rf"(?s)model\.safetensors' does not hold a 'm2ost' network[:.] .*{message}"):
        checkpoints.load(path)


def test_a_model_that_is_not_there(path):
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    save_file(state, path, metadata={"st_predict.card": changed(CARD, model="nope")})
    with pytest.raises(KeyError, match=r"No model 'nope'; there are \["):
        checkpoints.load(path)


def test_a_missing_file(tmp_path):
    for missing in (tmp_path / "nope.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint.*{missing.name}"):
            checkpoints.load(missing)


# Writing


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_others_may_read_a_file_as_the_umask_says(tmp_path, network, umask):
    before = os.umask(umask)
    try:
        checkpoints.save(tmp_path / "a.safetensors", network, CARD)
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_nothing_but_the_file_is_left(path):
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(path, network, monkeypatch):
    before = path.read_bytes()

    def fail(_state, file, **_):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_file, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, network, replace(CARD, license="MIT"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_card_that_cannot_be_written_leaves_the_old_file(path, network):
    before = path.read_bytes()
    with pytest.raises(TypeError, match="A card holds numbers, texts, lists and mappings, got <object"):
        checkpoints.save(path, network, replace(CARD, training={"scores": object()}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_replaces_the_old_one(path, network):
    checkpoints.save(path, network, replace(CARD, license="MIT"))
    assert checkpoints.load(path)[1].license == "MIT"


def test_folders_that_are_none(path, network):
    for bad in (path / "inside.safetensors", path.parent / "nope" / "a.safetensors"):
        with pytest.raises((NotADirectoryError, FileNotFoundError)):
            checkpoints.save(bad, network, CARD)
    assert list(path.parent.iterdir()) == [path]


def test_hyper_parameters_may_change_where_the_spec_says_so(path, network, monkeypatch):
    with pytest.raises(ValueError, match=r"\['pool'\] of 'm2ost' are fixed by training; \[\] may change"):
        checkpoints.load(path, hparams={"pool": "mean"})
    monkeypatch.setattr(_file, "get_spec", lambda name: replace(SPEC, at_prediction=("pool",)))
    other, card = checkpoints.load(path, hparams={"pool": "mean"})
    assert card == replace(CARD, hparams={**CARD.hparams, "pool": "mean"})
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    with torch.no_grad():
        assert not torch.allclose(other(batch()), network(batch()))
    with pytest.raises(ValueError, match=r"'m2ost' is invalid\. pool must be 'cls' or 'mean', got 'max'"):
        checkpoints.load(path, hparams={"pool": "max"})


@pytest.mark.parametrize("bad", [None, 3, [], b"a"])
def test_arguments_of_another_kind(path, network, bad):
    for read in (checkpoints.load, ModelCard.of_file):
        with pytest.raises(ValueError, match="path must be a path, got"):
            read(bad)
    with pytest.raises(ValueError, match="path must be a path, got"):
        checkpoints.save(bad, network, CARD)
    with pytest.raises(TypeError, match="model must be a Module, got"):
        checkpoints.save(path, bad, CARD)
    with pytest.raises(TypeError, match="card must be a ModelCard, got"):
        checkpoints.save(path, network, bad)
    with pytest.raises(TypeError, match="card must be a ModelCard, got"):
        checkpoints.build(bad)


@pytest.mark.parametrize("dtype", ["float16", torch.int8, 16])
def test_weights_are_stored_as_floats(path, network, dtype):
    with pytest.raises(TypeError, match="dtype must be a floating-point type of torch or None, got"):
        checkpoints.save(path, network, CARD, dtype=dtype)


def test_hyper_parameters_that_do_not_exist_are_named(path):
    with pytest.raises(ValueError, match=r"'m2ost' has no hyper-parameters \['pol'\]; .*Did you mean 'pool'"):
        checkpoints.load(path, hparams={"pol": "mean"})
    with pytest.raises(TypeError, match="Hyper-parameters must be a mapping"):
        checkpoints.load(path, hparams="pool")
