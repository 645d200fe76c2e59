"""Checkpoints of unknown origin: nothing that a card says is run, opened or fetched."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import sys
import sysconfig
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import st_predict as stp
from st_predict import checkpoints
from st_predict._errors import StPredictError
from st_predict.checkpoints._sizes import check_fits, limited
from st_predict.encoders import list_encoders
from st_predict.models import get_spec, list_models
from st_predict.models._hparams import kinds_of, kinds_of_card
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def forged(folder: Path, model: str, *, fits: bool = False, **hparams: Any) -> Path:
    """A checkpoint whose card sets more hyper-parameters than the network was built with; ``fits`` sets their crops, too."""
    text = json.loads(card_of(model).to_json())
    text["hparams"] |= hparams
    if fits:
        text["crop"] = asdict(get_spec(model).crop_for(text["hparams"]))
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
def hub(hub_at: Callable[..., None], tmp_path: Path) -> Iterator[list[str]]:
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
        hub_at(url, cache=tmp_path / "hub")
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
    path = forged(tmp_path, "ridge", fits=True, encoder="test_vit.r160_in1k")
    with pytest.raises(ValueError, match=r"encoder must be one of .*got 'test_vit\.r160_in1k'"):
        checkpoints.load(path)
    _, card = checkpoints.load(path, trust=True)
    assert card.hparams["encoder"] == "test_vit.r160_in1k"
    with pytest.raises(ValueError, match="trust must be True or False"):
        checkpoints.load(path, trust="yes")


def test_listed_encoders_need_no_trust(tmp_path):
    for encoder in list_encoders():
        path = forged(tmp_path, "ridge", fits=True, encoder=encoder)
        assert checkpoints.load(path)[1].hparams["encoder"] == encoder


def test_a_path_on_a_card_is_not_opened(tmp_path, bomb):
    path = forged(tmp_path, "istar", fits=True, encoder="hipt", cell=16, weights=str(bomb), weights_sha256="0" * 64)
    save_file(state_of_istar_hipt(), path, metadata={ModelCard.METADATA_KEY: ModelCard.of_file(path).to_json()})
    with watched() as seen:
        _, card = checkpoints.load(path)
        assert card.hparams["weights"] is None
        assert card.hparams["weights_sha256"] == "0" * 64
        for known in (card, ModelCard.of_file(path)):
            with pytest.raises(ValueError, match="HIPT's weights are not part of the package"):
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
    with pytest.raises(ValueError, match="carries weights of the encoder 'rgb', which checkpoints may not carry"):
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


# Sizes.

HUGE = [
    ("m2ost", {"depth": 10**9}),
    ("m2ost", {"dim": 200_000}),
    ("m2ost", {"levels": list(range(1_000_000))}),
    ("m2ost", {"levels": [0, 10**12]}),
    ("m2ost", {"heads": 10**9}),
    ("m2ort", {"depth": 10**9}),
    ("crossvit", {"depths": [10**9, 1]}),
    ("histogene", {"n_pos": 10**12}),
    ("hist2st", {"graph": 10**9}),
    ("hist2st", {"k": 10**9}),
    ("mlp", {"depth": 10**9}),
    ("mlp", {"hidden": 200_000}),
    ("ridge", {"fields": list(range(1, 1_000_000))}),
    ("stflow", {"steps": 10**9}),
    ("stflow", {"neighbours": 10**9}),
    ("stpath", {"mlp_ratio": 1e300}),
    ("istar", {"n_fits": 10**9}),
    ("istar", {"radius_um": 1e9}),
    ("istar", {"cell": 10**9}),
    ("vit", {"size": 10**9}),
    ("vit", {"arch_args": {"patch_size": 8, "embed_dim": 24, "depth": 10**9, "num_heads": 2}}),
    ("swin", {"arch_args": {"window_size": 4096}}),
    ("resnet50", {"arch_args": {"layers": [10**9, 1, 1, 1]}}),
    ("bleep", {"dim": 10**9}),
]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 4 GiB more than there are."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("model", "hparams"), HUGE, ids=[f"{m}-{n}-{i}" for i, (m, h) in enumerate(HUGE) for n in h])
def test_a_card_of_a_huge_network_is_an_error(tmp_path, model, hparams):
    for trust in (False, True):
        with pytest.raises(ValueError, match=r"forged\.safetensors' does not hold"):
            checkpoints.load(forged(tmp_path, model, **hparams), trust=trust)


LEGITIMATE = (
    ("mlp", {"hidden": 200_000}),
    ("swin", {"arch_args": {"window_size": 4096}}),
)  # small, or made small by timm


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("model", "hparams"), [huge for huge in HUGE if huge not in LEGITIMATE])
def test_training_refuses_a_huge_network(model, hparams):
    card = replace(card_of(model), hparams={**get_spec(model).tiny, **hparams})
    with torch.device("meta"), pytest.raises((ValueError, MemoryError)):
        checkpoints.build(card)


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": [{"size": 10**9, "downsample": 1.0}]},
        {"levels": [{"size": 64, "downsample": 1e300}] * 3},
        {"mpp": 1e300},
    ],
)
def test_crops_of_a_card_are_those_of_the_network(tmp_path, changes):
    text = json.loads(card_of("m2ost").to_json())
    text["crop"] |= changes
    with pytest.raises(ValueError, match="must be at most"):
        checkpoints.load(write(tmp_path / "a.safetensors", json.dumps(text), state_of("m2ost")))
    text["crop"] = {
        **json.loads(card_of("m2ost").to_json())["crop"],
        "levels": [{"size": 16_384, "downsample": 1.0}] * 3,
    }
    with pytest.raises(ValueError, match=r"The network reads crops .*the card says"):
        checkpoints.load(write(tmp_path / "a.safetensors", json.dumps(text), state_of("m2ost")))


def test_a_network_is_counted_in_its_own_thread_only():
    built: list[torch.nn.Module] = []
    with limited(3):
        thread = Thread(target=lambda: built.append(torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(9)))))
        thread.start()
        thread.join()
        torch.nn.Linear(2, 2)
        with pytest.raises(ValueError, match="The network is too large"):
            torch.nn.Linear(2, 2)
    assert len(built[0]) == 9
    torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(9)))  # no limit is left


@pytest.mark.parametrize(("model", "name"), [("ridge", "weight_DG"), ("bleep", "bank.keys"), ("bleep", "bank.values")])
def test_rows_of_what_grows_in_training(tmp_path, model, name):
    state = state_of(model)
    for shape in ((5, state[name].shape[1]), (5, 99), (5,), (1, 2, 3)):
        path = write(tmp_path / "a.safetensors", card_of(model).to_json(), {**state, name: torch.ones(shape)})
        if shape == (5, state[name].shape[1]):
            assert checkpoints.load(path)[0].state_dict()[name].shape == shape
            continue
        with pytest.raises(ValueError, match=rf"does not hold a '{model}' network: (?s:.*)size mismatch for {name}"):
            checkpoints.load(path)


@pytest.mark.parametrize("model", ["stnet", "resnet50"])
def test_counters_of_batch_norms_may_be_lacking(tmp_path, model):
    state = {name: x for name, x in state_of(model).items() if not name.endswith("num_batches_tracked")}
    network, _ = checkpoints.load(write(tmp_path / "a.safetensors", card_of(model).to_json(), state))
    assert network.state_dict().keys() > state.keys()


def test_large_tables_that_are_not_in_the_file():
    network = torch.nn.Linear(2, 2)
    tensors = {name: torch.empty_like(x, device="meta") for name, x in network.state_dict().items()}
    check_fits(network.to("meta"), tensors)
    network.register_buffer("table", torch.empty(1 << 27, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="would compute tables of 134,217,728 values"):
        check_fits(network, tensors)


def test_trust_takes_the_crops_of_a_card(tmp_path):
    card = card_of("vit")
    larger = replace(card, crop=replace(card.crop, levels=(replace(card.crop.levels[0], size=64),)))
    path = write(tmp_path / "a.safetensors", larger.to_json(), state_of("vit"))
    with pytest.raises(ValueError, match=r"The network reads crops .*size=32.*the card says .*size=64"):
        checkpoints.load(path)
    assert checkpoints.load(path, trust=True)[1] == larger


def test_a_warning_tells_in_training_that_prediction_needs_trust(measured, quick, tmp_path, caplog):
    arch_args = {**get_spec("vit").tiny["arch_args"], "act_layer": "relu"}
    options = {"panel": list("abcd"), "config": quick(epochs=1)}
    with caplog.at_level("WARNING"):
        result = stp.tl.train(
            measured, "vit", out=tmp_path / "a", hparams={"size": 32, "arch_args": arch_args}, **options
        )
    assert "Prediction with this network will need trust=True" in caplog.text
    with pytest.raises(ValueError, match=r"without 'act_layer'.*trust=True"):
        stp.tl.predict(measured, result, device="cpu")
    stp.tl.predict(measured, result, trust=True, device="cpu")
    assert measured["table"].obsm["pred_vit"].shape == (12, 4)


def test_whole_numbers_are_no_weights(tmp_path):
    state = {**state_of("mean"), "mean_G": torch.ones(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"whole numbers instead of floats, or vice versa: \['mean_G'\]"):
        checkpoints.load(write(tmp_path / "a.safetensors", card_of("mean").to_json(), state))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.sampled_from(["", "rgb", "/etc/passwd", "hf-hub:a/b", "local-dir:/etc", "resnet18", "os.system", "cv", *GENES])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
    ["checkpoint_path", "pretrained_cfg", "cache_dir", "depth", "img_size", "file", "act_layer", "model_cfg", "levels", "size"]
), inner, max_size=4), max_leaves=8)  # fmt: skip


@st.composite
def cards(draw: st.DrawFn) -> dict[str, Any]:
    """A valid card of some model in which some things are others."""
    model = draw(st.sampled_from(list_models()))
    card = json.loads(card_of(model).to_json())
    names = sorted(kinds_of(get_spec(model).build, get_spec(model).config))
    if names:
        card["hparams"] |= draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    card |= draw(st.dictionaries(st.sampled_from(sorted(card)), VALUES, max_size=1))
    return card


STATES = {name: state_of(name) for name in list_models()}


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(card=cards(), of=st.sampled_from(list_models()))
def test_whatever_a_card_says_nothing_is_opened_called_or_run(tmp_path, card, of):
    state = STATES[card["model"] if isinstance(card["model"], str) and card["model"] in STATES else of]
    path = write(tmp_path / "fuzzed.safetensors", json.dumps(card), state)
    with watched() as seen:
        try:
            _, read = checkpoints.load(path)
        except StPredictError:
            read = None
    assert seen <= {f"open {path}"}
    if read is not None:
        assert read.genes
        ModelCard.from_json(read.to_json())
