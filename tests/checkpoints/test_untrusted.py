"""Checkpoints of unknown origin: nothing that a card says is run, opened or fetched."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import sysconfig
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import st_predict as stp
from st_predict import checkpoints
from st_predict._errors import StPredictError
from st_predict.encoders import list_encoders
from st_predict.models import get_spec, list_models
from st_predict.models._hparams import kinds_of, kinds_of_card
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterator

GENES = ("a", "b", "c")


def card_of(model: str, **hparams: Any) -> ModelCard:
    spec = get_spec(model)
    own = dict(spec.tiny)
    return ModelCard(
        model=model,
        genes=GENES,
        crop=spec.crop_for(own),
        pixels=spec.pixels_for(own),
        target=spec.target,
        hparams={**own, **hparams},
    )


def state_of(model: str) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        return {name: tensor.contiguous() for name, tensor in checkpoints.build(card_of(model)).state_dict().items()}


def write(path: Path, text: str, state: dict[str, torch.Tensor]) -> Path:
    save_file(state, path, metadata={ModelCard.METADATA_KEY: text})
    return path


def forged(folder: Path, model: str, **hparams: Any) -> Path:
    """A checkpoint of ``model`` whose card sets more hyper-parameters than the network has been built with."""
    text = json.loads(card_of(model).to_json())
    text["hparams"] |= hparams
    return write(folder / "forged.safetensors", json.dumps(text), state_of(model))


# What Python reports to its auditors: files that are opened, connections, code.

_WATCHED: list[set[str]] = []
_ACTS = {"socket.connect", "socket.getaddrinfo", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec"}
_OURS = (sys.prefix, sys.base_prefix, str(Path(stp.__file__).parent), sysconfig.get_path("stdlib"), "/proc", "/sys")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(_OURS):
            _WATCHED[-1].add(f"open {path}")
    elif event in _ACTS or (event == "exec" and not str(arguments[0].co_filename).startswith((*_OURS, "<"))):
        _WATCHED[-1].add(event)


sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[set[str]]:
    """Collect what is opened, called and run meanwhile, but for the files of Python and of packages."""
    seen: set[str] = set()
    _WATCHED.append(seen)
    try:
        yield seen
    finally:
        _WATCHED.pop()


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A pickle that leaves a trace."""
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Marker(tmp_path / "ran")))
    return tmp_path / "bomb.pth"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub on loopback that has nothing; what it is asked for is listed."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


def test_the_watch_sees_files_connections_and_pickles(bomb, loopback):
    with watched() as seen:
        bomb.read_bytes()
        with pytest.raises(AttributeError):
            pickle.load(io.BytesIO(b"cst_predict\nnope\n."))
        import urllib.request

        with pytest.raises(OSError):
            urllib.request.urlopen(f"{loopback.url}/nope")
    assert f"open {bomb}" in seen
    assert {"pickle.find_class", "socket.connect"} <= seen


@pytest.mark.parametrize("model", ["vit", "bleep", "stnet"])
@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_no_file_that_the_arguments_of_an_architecture_name_is_opened(tmp_path, bomb, model, argument):
    value = {"file": str(bomb)} if "cfg" in argument else str(bomb)
    arch_args = {**get_spec(model).tiny["arch_args"], argument: value}
    path = forged(tmp_path, model, arch_args=arch_args)
    with (
        watched() as seen,
        pytest.raises(
            ValueError,
            match=rf"forged\.safetensors' does not hold a '{model}' network.*arch_args must be sizes of .* without '{argument}'.*trust=True",
        ),
    ):
        checkpoints.load(path)
    assert seen <= {f"open {path}"}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "arch",
    ["hf-hub:owner/repo", "hf_hub:owner/repo", "timm/resnet18", "local-dir:{}", "vit_tiny_patch16_224.augreg_in21k"],
)
def test_an_architecture_is_one_of_timm_itself(tmp_path, hub, arch):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    path = forged(tmp_path, "vit", arch=arch.format(tmp_path))
    with watched() as seen, pytest.raises(ValueError, match="arch must be the name of an architecture of timm"):
        checkpoints.load(path)
    assert seen <= {f"open {path}"}
    assert hub == []


@pytest.mark.parametrize("model", ["ridge", "mlp", "stflow", "stpath", "istar"])
def test_an_encoder_is_one_that_is_listed(tmp_path, hub, model, sdata):
    cells = {"n_features": 70} if model in {"mlp", "stflow", "stpath"} else {}
    path = forged(tmp_path, model, encoder="hf-hub:owner/repo", **cells)
    card = ModelCard.of_file(path)
    refused = r"encoder must be one of \['rgb.*got 'hf-hub:owner/repo'.*trust=True"
    for read in (
        checkpoints.load,
        lambda path: checkpoints.load_encoder(path, card),
        lambda path: stp.tl.predict(sdata, path, mpp=0.5),
        lambda path: stp.tl.superresolve(sdata, path, mpp=0.5),
    ):
        with pytest.raises(ValueError, match=refused):
            read(path)
    assert hub == []
    with pytest.raises(OSError):  # the hub has none
        checkpoints.load_encoder(path, card, trust=True)
    assert any("owner/repo" in path for path in hub)


def test_any_encoder_with_trust(tmp_path):
    text = json.loads(card_of("ridge").to_json())
    text["hparams"]["encoder"] = "test_vit.r160_in1k"
    path = write(tmp_path / "a.safetensors", json.dumps(text), state_of("ridge"))
    with pytest.raises(ValueError, match=r"encoder must be one of .*got 'test_vit\.r160_in1k'"):
        checkpoints.load(path)
    _, card = checkpoints.load(path, trust=True)
    assert card.hparams["encoder"] == "test_vit.r160_in1k"
    with pytest.raises(ValueError, match="trust must be True or False"):
        checkpoints.load(path, trust="yes")


def test_listed_encoders_need_no_trust(tmp_path):
    for encoder in list_encoders():
        path = forged(tmp_path, "ridge", encoder=encoder)
        assert checkpoints.load(path)[1].hparams["encoder"] == encoder


def test_a_path_on_a_card_is_not_opened(tmp_path, bomb):
    path = forged(tmp_path, "istar", encoder="hipt", cell=16, weights=str(bomb), weights_sha256="0" * 64)
    save_file(state_of_istar_hipt(), path, metadata={ModelCard.METADATA_KEY: ModelCard.of_file(path).to_json()})
    with watched() as seen:
        _, card = checkpoints.load(path)
        assert card.hparams["weights"] is None
        assert card.hparams["weights_sha256"] == "0" * 64
        for known in (card, ModelCard.of_file(path)):
            with pytest.raises(ValueError, match="weights of HIPT do not come with the package"):
                checkpoints.load_encoder(path, known)
    assert seen <= {f"open {path}"}
    for asked in ({"trust": True}, {"hparams": {"weights": str(bomb)}}):
        with watched() as seen, pytest.raises(ValueError, match="not the weights that the network was trained with"):
            checkpoints.load_encoder(path, card if "hparams" in asked else ModelCard.of_file(path), **asked)
        assert f"open {bomb}" in seen


def state_of_istar_hipt() -> dict[str, torch.Tensor]:
    network = get_spec("istar").build_with(3, {**get_spec("istar").tiny, "encoder": "hipt", "cell": 16})
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def test_an_encoder_that_no_checkpoint_carries(tmp_path):
    state = {**state_of("ridge"), "st_predict.encoder.x": torch.zeros(1)}
    path = write(tmp_path / "a.safetensors", card_of("ridge").to_json(), state)
    with pytest.raises(ValueError, match="carries weights of the encoder 'rgb', which no checkpoint carries"):
        checkpoints.load_encoder(path, ModelCard.of_file(path))


# Every hyper-parameter of every model.

NAMED = [
    (name, hparam) for name in list_models() for hparam in sorted(kinds_of(get_spec(name).build, get_spec(name).config))
]


@pytest.mark.parametrize(("model", "hparam"), NAMED, ids=str)
def test_no_hyper_parameter_takes_a_text_that_is_not_known(model, hparam):
    spec = get_spec(model)
    for text in ("/etc/passwd", "https://example.org/x", "hf-hub:owner/repo", "os.system", "../x", ""):
        for value in (text, [text], {"a": text}, {text: 1}):
            if hparam in spec.of_user:
                assert spec.admit({hparam: value}) == {hparam: None}
                continue
            with pytest.raises(StPredictError, match=rf"\b{hparam}\b"):
                spec.admit({hparam: value})


def test_what_a_card_may_set_is_what_the_model_has():
    for name in list_models():
        spec = get_spec(name)
        assert {*spec.of_card, *spec.of_user} <= kinds_of(spec.build, spec.config).keys()
        for hparams in (spec.hparams, spec.tiny, spec.original.hparams, spec.recommended.hparams):
            assert spec.admit(hparams) == dict(hparams)


def test_types_that_a_model_of_another_package_does_not_give():
    kinds = kinds_of_card(None, {}, ["width", "path"])
    assert set(kinds) == {"width", "path"}
    spec = replace(get_spec("mean"), build=lambda n_genes, **hparams: None)
    assert spec.admit({"width": 3, "flags": [True, 2.5], "none": None}) == {
        "width": 3,
        "flags": [True, 2.5],
        "none": None,
    }
    with pytest.raises(ValueError, match=r"path must be a number or a list of numbers, got '/etc/passwd'"):
        spec.admit({"path": "/etc/passwd"})
