"""Dense encoders: colour statistics against numpy and scikit-image, vision transformers by place, HIPT against torch."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage.color import rgb2hed
from torch import nn

from st_predict.crops import Batch
from st_predict.datasets import simulate
from st_predict.encoders import _cells, get_encoder
from st_predict.encoders._catalogue import Encoder
from st_predict.encoders._cells import (
    CELL_NAMES,
    PatchTokens,
    RgbCells,
    get_cell_encoder,
    load_cell_encoder,
    weights_digest,
)
from st_predict.encoders._hipt import Hipt, convert, load_hipt, save_hipt_weights
from st_predict.encoders._hipt_spot import load_hipt_encoder
from st_predict.tl import embed

CELL = 4


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """40 x 40 cells of 4 px of colours like those of tissue."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.3, 1, (20, 20, 3)).repeat(8, 0).repeat(8, 1)
    return np.clip(coarse + rng.normal(0, 0.05, (160, 160, 3)), 0.01, 1).astype(np.float32)


def of_window(image: np.ndarray, row: int, column: int, window: int) -> dict[str, float]:
    """Statistics of the square of cells around a cell, pixel by pixel."""
    pixels = image.astype(np.float64)
    reach = window // 2 * CELL
    rows, columns = (slice(i * CELL - reach, (i + 1) * CELL + reach) for i in (row, column))
    stain = rgb2hed(pixels)[..., :2]
    channels = [*np.moveaxis(pixels - 1, 2, 0), *np.moveaxis(stain, 2, 0)]
    named = dict(zip(("red", "green", "blue", "haematoxylin", "eosin"), channels, strict=True))
    slopes = {name: np.hypot(*np.gradient(named[name])) for name in ("haematoxylin", "eosin")}
    of_nuclei, of_tissue = stain[..., 0] > 0.1, -np.log(pixels).mean(2) > 0.15
    return {
        **{f"mean_{name}": x[rows, columns].mean() for name, x in named.items()},
        **{f"sd_{name}": x[rows, columns].std() for name, x in named.items()},
        **{f"gradient_{name}": x[rows, columns].mean() for name, x in slopes.items()},
        "share_of_nuclei": of_nuclei[rows, columns].mean(),
        "share_of_tissue": of_tissue[rows, columns].mean(),
    }


def test_statistics_of_cells(image):
    cells = RgbCells(cell=CELL, halo=16 * CELL)(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    assert cells.shape == (8, 8, len(CELL_NAMES))
    for row, column in ((0, 0), (3, 6), (7, 7)):
        got = cells[row, column].view(5, 14)
        for window, values in zip((1, 3, 7, 15, 31), got.tolist(), strict=True):
            expected = of_window(image, row + 16, column + 16, window)
            for (name, (centre, spread)), value in zip(_cells._TYPICAL.items(), values, strict=True):
                assert value * spread + centre == pytest.approx(expected[name], abs=2e-4 * max(1, 100 * spread) / 3), (
                    name
                )
    assert CELL_NAMES[14] == "mean_red_3"
    assert list(_cells._TYPICAL) == list(of_window(image, 20, 20, 1))


def test_white_has_no_texture():
    white = RgbCells(cell=2, halo=32)(torch.ones(1, 3, 68, 68))
    raw = white * torch.tensor([spread for _, spread in _cells._TYPICAL.values()]).repeat(5)
    raw = raw + torch.tensor([centre for centre, _ in _cells._TYPICAL.values()]).repeat(5)
    torch.testing.assert_close(raw, torch.zeros_like(raw), atol=1e-6, rtol=0)


def test_cells_may_have_another_size():
    spec = get_cell_encoder("rgb-cells", cell=8)
    assert (spec.cell, spec.n_cells, spec.crop.levels[0].size, spec.crop.mpp) == (8, 64, 96 * 8, 0.5)
    for cell in (0, 2.5, "16", True):
        with pytest.raises(ValueError, match=f"cell must be .*got {cell!r}"):
            get_cell_encoder("rgb-cells", cell=cell)


class Counting(nn.Module):
    """A vision transformer whose patch tokens are their own number."""

    num_prefix_tokens = 3
    patch_embed = type("PatchEmbed", (), {"patch_size": (16, 16)})

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(-3.0, 14**2).expand(len(x), -1)[..., None]


def test_tokens_of_patches_are_where_the_patches_are():
    cells = PatchTokens(Counting(), halo=2)(torch.zeros(2, 3, 224, 224))
    rows, columns = torch.meshgrid(torch.arange(2, 12), torch.arange(2, 12), indexing="ij")
    assert torch.equal(cells[1, ..., 0], (14 * rows + columns).float())


def test_a_vision_transformer_of_timm(monkeypatch):
    spec = get_cell_encoder("phikon")
    assert (spec.n_features, spec.cell, spec.halo, spec.n_cells) == (768, 16, 32, 10)
    vit = timm.create_model(
        "vit_base_patch16_224", num_classes=0, embed_dim=24, depth=1, num_heads=2, img_size=224
    ).eval()
    monkeypatch.setattr(_cells, "load_encoder", lambda _: Encoder(vit, get_encoder("phikon")))
    pixels = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder = load_cell_encoder("phikon").eval()
    with torch.no_grad():
        cells = encoder(Batch(crops=(pixels,), index=torch.arange(1)))
        tokens = vit.forward_features(encoder.pixels(pixels))
    torch.testing.assert_close(cells[0, 0, 1], tokens[0, 1 + 2 * 14 + 3])
    assert encoder.describe()["halo"] == 32


def test_encoders_that_do_not_describe_such_cells():
    with pytest.raises(
        ValueError,
        match=r"'virchow2' has cells of 14 px, one per patch, not of 16 px\. Set cell=14, or use another encoder\.",
    ):
        get_cell_encoder("virchow2")
    assert get_cell_encoder("virchow2", cell=14).n_features == 1280
    with pytest.raises(ValueError, match=r"'resnet18.*' is not a vision transformer"):
        get_cell_encoder("resnet18")
    with pytest.raises(ValueError, match=r"'hipt' has cells of 16 px, not of 8 px\. Set cell=16\."):
        get_cell_encoder("hipt", cell=8)
    with pytest.raises(ValueError, match="n_shifts must be a divisor of 16, got 3"):
        get_cell_encoder("hipt", n_shifts=3)
    with pytest.raises(KeyError, match="No encoder 'nothing'"):
        get_cell_encoder("nothing")


# HIPT


def published(
    generator: torch.Generator, *, dim: int, depth: int, first: dict[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """A state dict with the names of the published networks."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 197, dim), "norm.weight": (dim,), "norm.bias": (dim,)} | first
    for i in range(depth):
        for name, (n_out, n_in) in {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": (n_out, n_in), f"blocks.{i}.{name}.bias": (n_out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (dim,), f"blocks.{i}.{name}.bias": (dim,)}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Both networks, tiny and random."""
    generator = torch.Generator().manual_seed(0)
    patches = {"patch_embed.proj.weight": (24, 3, 16, 16), "patch_embed.proj.bias": (24,)}
    phi = {"phi.0.weight": (12, 24), "phi.0.bias": (12,)}
    return published(generator, dim=24, depth=2, first=patches), published(generator, dim=12, depth=1, first=phi)


def by_torch(state: dict[str, torch.Tensor], x_ND: torch.Tensor, place_ND: torch.Tensor, depth: int) -> torch.Tensor:
    """The transformer, from layers of torch."""
    dim = x_ND.shape[-1]
    x_ND = torch.cat([state["cls_token"][0], x_ND]) + place_ND
    for i in range(depth):
        layer = nn.TransformerEncoderLayer(dim, 6, 4 * dim, 0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
        names = {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
            "norm1.": "norm1.",
            "norm2.": "norm2.",
        }
        layer.load_state_dict(
            {f"{a}{part}": state[f"blocks.{i}.{b}{part}"] for a, b in names.items() for part in ("weight", "bias")}
        )
        x_ND = layer(x_ND[None])[0]
    return nn.functional.layer_norm(x_ND, (dim,), state["norm.weight"], state["norm.bias"], 1e-6)


def stretched(table: np.ndarray, n: int) -> np.ndarray:
    """Positions of 14 places for ``n``, along the first axis: cubic convolution, at places that DINO takes."""

    def weight(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.25 * t**3 - 2.25 * t**2 + 1
        return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    places = [(i + 0.5) * 14 / (n + 0.1) - 0.5 for i in range(n)]
    around = [
        [(min(max(j, 0), 13), weight(p - j)) for j in range(int(np.floor(p)) - 1, int(np.floor(p)) + 3)] for p in places
    ]
    return np.array([sum(w * table[j] for j, w in taps) for taps in around])


def places_of(state: dict[str, torch.Tensor], n_rows: int, n_columns: int) -> torch.Tensor:
    table = state["pos_embed"][0, 1:].numpy().reshape(14, 14, -1).astype(np.float64)
    grid = stretched(stretched(table, n_rows).swapaxes(0, 1), n_columns).swapaxes(0, 1)
    return torch.cat([state["pos_embed"][0, :1], torch.from_numpy(grid.reshape(n_rows * n_columns, -1)).float()])


@torch.no_grad()
def test_hipt_on_a_tile(states):
    network = Hipt(dim=24, depth=2, section_dim=12, section_depth=1)
    network.load_state_dict(convert(*states))
    tile = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    tokens = network(2 * tile - 1)
    patches = (2 * tile - 1).unfold(2, 16, 16).unfold(3, 16, 16)[0].permute(1, 2, 0, 3, 4).reshape(256, -1)
    embedded = patches @ states[0]["patch_embed.proj.weight"].flatten(1).T + states[0]["patch_embed.proj.bias"]
    expected = by_torch(states[0], embedded, places_of(states[0], 16, 16), 2)
    torch.testing.assert_close(tokens[0, :, :24], expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(tokens[0, 1 + 18, 24:], tile[0, :, 16:32, 32:48].mean((1, 2)))
    torch.testing.assert_close(tokens[0, 0, 24:], tile[0].mean((1, 2)))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 5), (14, 14), (1, 1)])
def test_hipt_on_a_section(states, shape):
    network = Hipt(dim=24, depth=2, section_dim=12, section_depth=1)
    network.load_state_dict(convert(*states))
    cls = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(1))
    narrow = nn.functional.gelu(cls.flatten(0, 1) @ states[1]["phi.0.weight"].T + states[1]["phi.0.bias"])
    places = states[1]["pos_embed"][0] if shape == (14, 14) else places_of(states[1], *shape)
    expected = by_torch(states[1], narrow, places, 1)[1:].view(*shape, 12)
    torch.testing.assert_close(network.of_section(cls), expected, atol=2e-5, rtol=1e-4)


def class_token(states: tuple[dict[str, torch.Tensor], ...], tile_CHW: torch.Tensor) -> torch.Tensor:
    """Class token of ViT-256, from layers of torch."""
    state = states[0]
    patches = tile_CHW.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).reshape(256, -1)
    embedded = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    return by_torch(state, embedded, places_of(state, 16, 16), 2)[0]


@torch.no_grad()
def test_hipt_at_a_spot(states, tmp_path):
    save_hipt_weights(*states, tmp_path / "hipt.safetensors")
    encoder = load_hipt_encoder(tmp_path / "hipt.safetensors", region=512).eval()
    assert [level.size for level in encoder.spec.crop.levels] == [256, 512]
    assert (encoder.spec.crop.mpp, encoder.spec.n_features) == (0.5, 24 + 24 + 12)
    generator = torch.Generator().manual_seed(2)
    crops = tuple(torch.randint(0, 256, (2, 3, n, n), dtype=torch.uint8, generator=generator) for n in (256, 512))
    got = encoder(Batch(crops=crops, index=torch.arange(2)))
    for i in range(2):
        own, around = (crop[i] / 127.5 - 1 for crop in crops)
        tiles = [around[:, y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
        cls = torch.stack([class_token(states, tile) for tile in tiles])
        narrow = nn.functional.gelu(cls @ states[1]["phi.0.weight"].T + states[1]["phi.0.bias"])
        region = by_torch(states[1], narrow, places_of(states[1], 2, 2), 1)[0]
        expected = torch.cat([class_token(states, own), cls.mean(0), region])
        torch.testing.assert_close(got[i], expected, atol=5e-5, rtol=1e-3)


def test_hipt_embeds_a_section(states, tmp_path, monkeypatch):
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
    for seed in range(2):
        changed = {name: tensor + 0.1 * seed for name, tensor in states[0].items()}
        save_hipt_weights(changed, states[1], tmp_path / f"{seed}.safetensors")
    first, again, other = (load_hipt_encoder(tmp_path / f"{seed}.safetensors", region=512) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    sdata = simulate(1, 1, shape=(704, 704), mpp=0.5).sections["P1S1"]
    table = sdata["table"]
    for key, encoder in {"a": first, "b": again, "c": other}.items():
        embed(sdata, encoder, key_added=key, precision="float32", device="cpu")
    assert table.obsm["a"].shape == (table.n_obs, 60)
    assert np.isfinite(table.obsm["a"]).all()
    np.testing.assert_array_equal(table.obsm["a"], table.obsm["b"])
    assert np.abs(table.obsm["a"] - table.obsm["c"]).max() > 0.01
    assert len(list((tmp_path / "embeddings").glob("**/*.*"))) == 2  # one per weights


def test_regions_of_hipt_are_whole_tiles(states, tmp_path):
    save_hipt_weights(*states, tmp_path / "hipt.safetensors")
    with pytest.raises(ValueError, match=r"multiple of 256 px, got 1000 px\. Set region=1024\."):
        load_hipt_encoder(tmp_path / "hipt.safetensors", region=1000)


def test_sizes_of_the_publication():
    with torch.device("meta"):
        network = Hipt()
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert sizes["patches"] + sizes["tile"] == 21_665_664
    assert sizes["narrow"] + sizes["section"] == 2_781_504


def test_weights_go_through_a_file(states, tmp_path):
    tile, section = states
    file = {
        "teacher": {f"module.backbone.{name}": tensor for name, tensor in tile.items()}
        | {"head.mlp.0.bias": torch.zeros(1)},
        "epoch": 7,
    }
    path = tmp_path / "hipt.safetensors"
    path.write_bytes(b"older")
    save_hipt_weights(file, {"teacher": section}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["hipt.safetensors"]
    network = load_hipt(path)
    expected = convert(tile, section)
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert not network.training
    with pytest.raises(ValueError, match="gives 39 features per cell, HIPT's weights give 579"):
        load_cell_encoder("hipt", weights=path)


def test_other_files_are_refused(states, tmp_path):
    tile, section = states
    lacking = {name: tensor for name, tensor in tile.items() if name != "norm.bias"}
    with pytest.raises(ValueError, match=r"ViT-256 of HIPT: missing \['norm.bias'\], unknown \['extra'\]"):
        convert({**lacking, "extra": torch.zeros(1)}, section)
    with pytest.raises(ValueError, match=r"ViT-4K of HIPT: missing \['phi.0.bias', 'phi.0.weight'\]"):
        convert(tile, tile)
    with pytest.raises(ValueError, match="not the weights of HIPT"):
        save_hipt_weights({**tile, "cls_token": torch.zeros(1, 1, 7)}, section, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_hipt(tmp_path / "bad.safetensors")


def test_weights_have_to_be_those_of_training(states, tmp_path):
    path = tmp_path / "hipt.safetensors"
    save_hipt_weights(*states, path)
    with pytest.raises(ValueError, match="are not the weights that the network was trained with"):
        load_cell_encoder("hipt", weights=path, weights_sha256=weights_digest(path)[:-1] + "x")
    with pytest.raises(
        ValueError,
        match=r"not part of the package; .* Name that file with weights=, or use the encoder 'rgb-cells'",
    ):
        load_cell_encoder("hipt")
    for of in (load_hipt, weights_digest):
        with pytest.raises(FileNotFoundError, match="save_hipt_weights writes them"):
            of(tmp_path / "none")


@pytest.mark.parametrize("name", [None, 3, ["rgb-cells"]])
def test_an_encoder_of_cells_is_given_by_its_name(name):
    with pytest.raises(TypeError, match="A cell encoder is given by its name, got"):
        get_cell_encoder(name)


@pytest.mark.parametrize("n_shifts", [0, -1, 1.5, "4", None, True])
def test_number_of_shifts(n_shifts):
    with pytest.raises(ValueError, match=f"n_shifts must be .*got {n_shifts!r}"):
        get_cell_encoder("hipt", n_shifts=n_shifts)


def test_weights_that_are_not_those_of_hipt_name_the_file(tmp_path):
    path = tmp_path / "hipt.safetensors"
    save_file({"narrow.weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"hipt\.safetensors' cannot be used\. These are not the weights of HIPT"):
        load_hipt(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"hipt\.safetensors' is not a complete safetensors file .* Get it again\.$"):
        load_cell_encoder("hipt", weights=path)
    with pytest.raises(ValueError, match="weights must be a path, got 3"):
        load_cell_encoder("hipt", weights=3)


@pytest.mark.parametrize("file", [None, 3, {"teacher": 3}, []])
def test_published_files_of_another_kind(file, tmp_path):
    with pytest.raises(TypeError, match="The state dict of ViT-256 of HIPT must be a mapping from name to tensor, got"):
        save_hipt_weights(file, {}, tmp_path / "a.safetensors")
