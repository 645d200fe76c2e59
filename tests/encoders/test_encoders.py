"""Encoders: published sizes, weights that are found, refused or damaged, and what comes out."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from st_predict._runtime import Inference
from st_predict.crops import Batch
from st_predict.encoders._catalogue import EncoderSpec, get_encoder, list_encoders, load_encoder
from st_predict.encoders._pathology import from_transformers
from st_predict.specs import CropSpec, LevelSpec, PixelSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CROP = CropSpec(levels=(LevelSpec(size=32),), mpp=0.5)
PIXELS = PixelSpec(mean=(0.7, 0.5, 0.6), std=(0.2, 0.3, 0.4))
TINY_ARCH = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
TINY = EncoderSpec(
    name="tiny",
    source="hf-hub:me/tiny",
    arch="vit_small_patch14_reg4_dinov2",
    arch_args={**TINY_ARCH, "patch_size": 16},
    crop=CROP,
    pixels=PIXELS,
    gated=True,
)

# as published: million parameters of the network, features
PUBLISHED = {
    "uni": (303.4, 1024),
    "uni2-h": (681.4, 1536),
    "virchow": (631.2, 2560),
    "virchow2": (631.2, 2560),
    "h-optimus-0": (1134.8, 1536),
    "h-optimus-1": (1134.8, 1536),
    "h0-mini": (85.7, 1536),
    "gigapath": (1135.0, 1536),
    "phikon": (85.8, 768),
    "phikon-v2": (303.4, 1024),
    "midnight": (1134.8, 3072),
    "hibou-b": (85.7, 768),
    "hibou-l": (303.7, 1024),
    "kaiko-vits16": (21.7, 384),
    "kaiko-vits8": (21.7, 384),
    "kaiko-vitb16": (85.8, 768),
    "kaiko-vitb8": (85.8, 768),
    "kaiko-vitl14": (304.4, 1024),
}
OPEN = {name for name in PUBLISHED if name.startswith(("phikon", "kaiko"))} | {"midnight", "hibou-b"}


def make_batch(n: int = 5, size: int = 32, levels: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = (n, 3, size, size)
    crops = tuple(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(levels))
    return Batch(crops=crops, index=torch.arange(n))


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return network.eval()


@pytest.fixture
def hub(tmp_path: Path, hub_at: Callable[..., None]) -> Callable[..., None]:
    """An offline cache of the hub; what is put there is found."""
    hub_at(None, cache=tmp_path)

    def put(repository: str, state: dict[str, torch.Tensor]) -> None:
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        for name in ("refs", "snapshots/1"):
            (folder / name).mkdir(parents=True)
        (folder / "refs" / "main").write_text("1")
        save_file(state, folder / "snapshots" / "1" / "model.safetensors")

    return put


def test_known_encoders():
    assert list_encoders() == ["rgb", "efficientnet_lite0", *PUBLISHED]


@pytest.mark.parametrize("name", PUBLISHED)
def test_architecture(name):
    spec = get_encoder(name)
    with torch.device("meta"):
        backbone = spec.build()
        tokens = backbone.forward_features(torch.empty(2, 3, 224, 224))
    millions, n_features = PUBLISHED[name]
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert tokens.shape[2] * (2 if spec.pool == "cls_mean" else 1) == n_features == spec.n_features
    assert spec.crop == CropSpec(levels=(LevelSpec(size=224),), mpp=0.5)
    assert spec.gated == (name not in OPEN)
    assert spec.url.startswith("https://huggingface.co/")
    assert "unknown" not in spec.license
    assert "https://" in spec.citation
    assert {layer.eps for layer in backbone.modules() if isinstance(layer, nn.LayerNorm)} == {
        1e-12 if name == "phikon" else 1e-6
    }


@pytest.mark.parametrize("name", ["MahmoodLab/UNI", "hf-hub:MahmoodLab/uni", "hf_hub:MahmoodLab/UNI", "UNI"])
def test_names_on_the_hub_mean_the_same(name):
    assert get_encoder(name) is get_encoder("uni")


def test_weights_come_from_the_cache_of_the_hub(hub):
    network = randomise(timm.create_model(TINY.arch, num_classes=0, **TINY.arch_args))
    hub("me/tiny", {name: tensor.half() for name, tensor in network.state_dict().items()})
    batch = make_batch()
    ours = Inference(load_encoder(TINY), device=torch.device("cpu"), precision="float32")(batch)
    network.load_state_dict({name: tensor.half().float() for name, tensor in network.state_dict().items()})
    x = (batch.crops[0] / 255 - torch.tensor(PIXELS.mean).view(3, 1, 1)) / torch.tensor(PIXELS.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(ours, network(x), atol=1e-5, rtol=1e-5)
        tokens = network.forward_features(x)  # class, four registers, four patches
    assert tokens.shape == (5, 9, 24)
    both = load_encoder(replace(TINY, pool="cls_mean"))(batch).detach()
    torch.testing.assert_close(both, torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1), atol=1e-5, rtol=1e-5)


def test_weights_of_another_network(hub):
    hub("me/tiny", {"cls_token": torch.zeros(1, 1, 24)})
    with pytest.raises(ValueError, match=r"(?s)me/tiny do not fit the encoder 'tiny'.*pos_embed"):
        load_encoder(TINY)


@pytest.mark.usefixtures("hub")
def test_weights_that_are_not_there():
    with pytest.raises(ConnectionError, match=rf"Cannot get the weights 'hf-hub:me/tiny' .*{WAYS}"):
        load_encoder(TINY)
    with pytest.raises(ConnectionError, match=r"Cannot get the weights 'test_vit\.r160_in1k'"):
        load_encoder("test_vit")
    with pytest.raises(ConnectionError, match="Cannot get the weights 'hf-hub:someone/net'"):
        load_encoder("hf-hub:someone/net")


WAYS = (
    r"accept the terms at https://huggingface.co/me/tiny, then log in with `hf auth login` or put a token into HF_TOKEN\. "
    r"Without a network: copy the folder HF_HOME .* set HF_HUB_OFFLINE=1\. The encoder 'rgb' needs no weights\."
)


@pytest.fixture
def gate(tmp_path: Path, hub_at: Callable[..., None]) -> Iterator[Callable[[int, str | None], None]]:
    """A hub that answers every request with one status."""
    answer: dict[str, object] = {}

    class Gate(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(answer["status"])
            if answer["code"] is not None:
                self.send_header("X-Error-Code", answer["code"])
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        hub_at(url, cache=tmp_path)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield lambda status, code: answer.update(status=status, code=code)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (403, None), (401, None), (404, "RepoNotFound")]
)
def test_weights_that_the_hub_refuses(status, code, gate):
    gate(status, code)
    with pytest.raises(PermissionError, match=rf"The hub gives no access to the weights 'hf-hub:me/tiny' .*{WAYS}"):
        load_encoder(TINY)


def test_a_hub_that_fails(gate):
    gate(418, None)
    with pytest.raises(ConnectionError, match=rf"Cannot get the weights 'hf-hub:me/tiny' .*{WAYS}"):
        load_encoder(TINY)


def test_a_misspelt_name_on_the_hub(gate):
    gate(404, "RepoNotFound")
    with pytest.raises(
        PermissionError, match=r"'hf-hub:someone/net'.*check the name, and accept the terms at .*/net if it has any"
    ):
        load_encoder("hf-hub:someone/net")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("conch", "attention pooling.*github.com/mahmoodlab/CONCH"),
        ("MahmoodLab/CONCH", "attention pooling.*crop of 448 px"),
        ("hf-hub:MahmoodLab/conchv1_5", "attention pooling.*TRIDENT"),
        ("hipt", r"no hub serves.*load_hipt_encoder\(path\)"),
    ],
)
def test_encoders_that_are_not_loaded_by_name(name, way_out):
    with pytest.raises(KeyError, match=rf"'{name}' cannot be loaded by name.*{way_out}"):
        get_encoder(name)


def test_any_name_of_timm(hub):
    spec = get_encoder("test_vit")
    assert spec == get_encoder("test_vit.r160_in1k")
    assert (spec.crop, spec.pixels.mean) == (CropSpec(levels=(LevelSpec(size=160),)), (0.5, 0.5, 0.5))
    network = randomise(timm.create_model("test_vit"))
    hub("timm/test_vit.r160_in1k", network.state_dict())
    encoder = load_encoder("test_vit").eval()
    batch = make_batch(2, 160)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(batch.crops[0] / 127.5 - 1), pre_logits=True)
        torch.testing.assert_close(encoder(batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet51", "resnet50.never_trained", "no such"])
def test_unknown_names(name):
    with pytest.raises(KeyError, match=f"No encoder '{name}'; there are .*'rgb', 'efficientnet_lite0', 'uni'.*"):
        get_encoder(name)


WIDTH, HIDDEN = 24, 64  # of a token; of the MLP with SwiGLU


def make_theirs(names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Weights of a transformer with one block, under the names of Hugging Face."""
    square = (WIDTH, WIDTH)
    up, down = ((2 * HIDDEN, WIDTH), (WIDTH, HIDDEN)) if "swiglu" in names else ((4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))
    shapes = dict.fromkeys((*QKV, "attention.output.dense"), square)
    shapes |= {names["up"]: up, names["down"]: down, names["norm1"]: (WIDTH,), names["norm2"]: (WIDTH,)}
    shapes = {f"encoder.layer.0.{name}": shape for name, shape in shapes.items()}
    shapes |= {"embeddings.patch_embeddings.projection": (WIDTH, 3, 16, 16), "layernorm": (WIDTH,)}
    everything = {f"{name}.weight": shape for name, shape in shapes.items()}
    everything |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    everything |= {"embeddings.cls_token": (1, 1, WIDTH), "embeddings.position_embeddings": (1, 5, WIDTH)}
    everything |= dict.fromkeys(names["others"].split(), (WIDTH,))
    if "registers" in names:
        everything["embeddings.register_tokens"] = (1, 4, WIDTH)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in everything.items()}


def run_theirs(w: dict[str, torch.Tensor], x: torch.Tensor, names: dict[str, str], eps: float) -> torch.Tensor:
    """Apply it, written out: all tokens."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"encoder.layer.0.{name}.weight"], w[f"encoder.layer.0.{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    patches = F.conv2d(
        x, *(w[f"embeddings.patch_embeddings.projection.{name}"] for name in ("weight", "bias")), stride=16
    )
    x = torch.cat([w["embeddings.cls_token"].expand(len(x), 1, WIDTH), patches.flatten(2).mT], 1)
    x = x + w["embeddings.position_embeddings"]
    if "registers" in names:  # after the positions
        x = torch.cat([x[:, :1], w["embeddings.register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    normed = norm(f"encoder.layer.0.{names['norm1']}", x)
    query, key, value = (linear(name, normed).unflatten(2, (2, 12)).transpose(1, 2) for name in QKV)
    mixed = ((query @ key.mT / 12**0.5).softmax(-1) @ value).transpose(1, 2).flatten(2)
    x = x + linear("attention.output.dense", mixed) * w.get("encoder.layer.0.layer_scale1.lambda1", 1)
    hidden = linear(names["up"], norm(f"encoder.layer.0.{names['norm2']}", x))
    hidden = F.silu(hidden[..., :HIDDEN]) * hidden[..., HIDDEN:] if "swiglu" in names else F.gelu(hidden)
    x = x + linear(names["down"], hidden) * w.get("encoder.layer.0.layer_scale2.lambda1", 1)
    return norm("layernorm", x)


QKV = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
VIT = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
    "others": "pooler.dense.weight pooler.dense.bias",
}
DINO = {
    "norm1": "norm1",
    "norm2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "others": "embeddings.mask_token encoder.layer.0.layer_scale1.lambda1 encoder.layer.0.layer_scale2.lambda1",
}
GIANT = DINO | {"up": "mlp.weights_in", "down": "mlp.weights_out", "swiglu": "yes"}
HIBOU = GIANT | {"registers": "yes"}
SWIGLU_ARGS = {"patch_size": 16, "mlp_ratio": 2 * HIDDEN / WIDTH}


@pytest.mark.parametrize(
    ("name", "theirs", "eps", "args"),
    [
        ("phikon", VIT, 1e-12, {}),
        ("phikon-v2", DINO, 1e-6, {}),
        ("midnight", GIANT, 1e-6, SWIGLU_ARGS),
        ("hibou-b", HIBOU, 1e-6, SWIGLU_ARGS),
        ("hibou-l", HIBOU, 1e-6, SWIGLU_ARGS),
    ],
)
def test_weights_named_as_in_transformers(name, theirs, eps, args, hub):
    weights = make_theirs(theirs)
    hub("me/theirs", weights)
    published = get_encoder(name)
    args = {**published.arch_args, **TINY_ARCH, "depth": 1, **args}
    convert = partial(from_transformers, side=2) if name == "midnight" else published.convert
    spec = replace(published, source="hf-hub:me/theirs", arch_args=args, crop=CROP, pixels=PIXELS, convert=convert)
    encoder, batch = load_encoder(spec).eval(), make_batch()
    with torch.no_grad():
        tokens = run_theirs(weights, encoder.pixels(batch.crops[0]), theirs, eps)
        expected = tokens[:, 0]
        if name == "midnight":
            expected = torch.cat([expected, tokens[:, 1:].mean(1)], 1)
        torch.testing.assert_close(encoder(batch), expected, atol=1e-4, rtol=1e-4)
        assert expected.std() > 0.1


def test_positions_of_another_grid_are_resampled():
    """Against a plane, which bicubic resampling keeps to 0.003: positions are at the centres of patches."""
    y, x = ((np.arange(37) + 0.5) / 37)[:, None], ((np.arange(37) + 0.5) / 37)[None]
    plane = torch.from_numpy(np.stack([2 * x + 0 * y, 3 * y + 0 * x]).reshape(2, -1).T[None]).float()
    places = torch.cat([torch.full((1, 1, 2), 9.0), plane], 1)
    found = from_transformers({"embeddings.position_embeddings": places}, side=16)["pos_embed"]
    assert found.shape == (1, 257, 2)
    assert found[0, 0].tolist() == [9, 9]
    centres = (np.arange(16) + 0.5) / 16
    grid = found[0, 1:].reshape(16, 16, 2)[2:-2, 2:-2]  # beyond the border there is no plane
    np.testing.assert_allclose(grid[..., 0], np.broadcast_to(2 * centres[None, 2:-2], (12, 12)), atol=5e-3)
    np.testing.assert_allclose(grid[..., 1], np.broadcast_to(3 * centres[2:-2, None], (12, 12)), atol=5e-3)
    same = from_transformers({"embeddings.position_embeddings": places}, side=37)["pos_embed"]
    torch.testing.assert_close(same, places, rtol=0, atol=0)
    assert set(get_encoder("midnight").convert.keywords.items()) == {("side", 16)}


def test_encoders_of_the_user():
    crop = CropSpec(levels=(LevelSpec(size=32), LevelSpec(size=16, downsample=4)), mpp=1.0)

    def means(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        return torch.cat([fine.mean((2, 3)), coarse.mean((2, 3))], 1)

    encoder = load_encoder(means, crop=crop, pixels=PIXELS)
    batch = make_batch(levels=2)
    expected = [
        (level.float().mean((2, 3)) / 255 - torch.tensor(PIXELS.mean)) / torch.tensor(PIXELS.std)
        for level in batch.crops
    ]
    torch.testing.assert_close(encoder(batch), torch.cat(expected, 1))
    assert (encoder.spec.name, encoder.spec.crop, encoder.fingerprint) == ("means", crop, None)
    assert load_encoder(encoder) is encoder
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)).double()
    with pytest.raises(RuntimeError, match="dtype"):
        load_encoder(module, crop=CROP)(make_batch())
    assert load_encoder(module.float(), crop=CROP)(make_batch()).shape == (5, 7)
    assert (
        load_encoder(lambda x: x.mean((2, 3)).numpy().astype(np.float64), crop=CROP)(make_batch()).dtype
        == torch.float32
    )


@pytest.mark.parametrize(
    ("encoder", "options", "error", "message"),
    [
        (nn.Identity(), {}, ValueError, "Give it with crop=, for example"),
        ("rgb", {"crop": CROP}, ValueError, r"encoder 'rgb' has its own crop .* Leave out crop=\."),
        (TINY, {"pixels": PIXELS}, ValueError, r"encoder 'tiny' has its own crop .* Leave out pixels=\."),
        (3, {}, TypeError, "got int"),
    ],
)
def test_unfit_arguments(encoder, options, error, message):
    with pytest.raises(error, match=message):
        load_encoder(encoder, **options)


def test_output_that_is_no_row_a_crop():
    with pytest.raises(ValueError, match=r"'Identity' must give .* got the shape \(5, 3, 32, 32\) for 5 crops"):
        load_encoder(nn.Identity(), crop=CROP)(make_batch())
    with pytest.raises(ValueError, match=r"got the shape \(1, 3\) for 5 crops"):
        load_encoder(lambda x: x.mean((0, 2, 3))[None], crop=CROP)(make_batch())


def test_fingerprint_is_that_of_the_weights(hub):
    networks = [timm.create_model(TINY.arch, num_classes=0, **TINY.arch_args) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        randomise(network, seed)
    for name, network in zip("abc", networks, strict=True):
        hub(f"me/{name}", network.state_dict())
    a, b, c = (load_encoder(replace(TINY, source=f"hf-hub:me/{name}")) for name in "abc")
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert len(a.fingerprint) == 64
    with torch.no_grad():
        networks[1].norm.bias[0] += 1e-3
    hub("me/d", networks[1].state_dict())
    assert load_encoder(replace(TINY, source="hf-hub:me/d")).fingerprint != a.fingerprint


@pytest.mark.parametrize("name", [None, 3, ["rgb"], b"rgb"])
def test_an_encoder_is_given_by_its_name(name):
    with pytest.raises(TypeError, match="An encoder is given by its name"):
        get_encoder(name)


@pytest.mark.parametrize("name", ["hf-hub:a b", "hf-hub:", "hf-hub:a/b/c"])
def test_a_name_that_the_hub_cannot_have(name):
    with pytest.raises(ValueError, match=f"The encoder '{name}' cannot be loaded .HFValidationError"):
        get_encoder(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 224}, "crop must be .*got 224"),
        ({"n_features": "many"}, "n_features must be .*got 'many'"),
        ({"pool": "max"}, "pool must be 'timm' or 'cls_mean', got 'max'"),
        ({"norm_eps": -1.0}, "norm_eps must be above 0, got -1.0"),
        ({"convert": "x"}, "convert must be callable, got 'x'"),
    ],
)
def test_a_description_of_an_encoder_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_pixels_of_another_kind_are_refused():
    for pixels in (0, np.ones(3), "imagenet"):
        with pytest.raises(ValueError, match=r"pixels must be .*got"):
            load_encoder(nn.Identity(), crop=CROP, pixels=pixels)
