"""HIPT: a transformer on the patches of a tile, and one on the tiles of a section :cite:p:`Chen2022`.

Written from the paper and from the names and outputs of the published weights (https://github.com/mahmoodlab/HIPT, Apache-2.0
with the Commons Clause), which were trained by DINO. The first network reads tiles of 256 pixels as patches of 16, the second
the class tokens of all tiles of a section. Both interpolate positions of 14 by 14 to the grid of their input.

Shapes: B tiles, H W image, P Q rows and columns of a grid, N tokens, D channels, E channels of the section.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._errors import InvalidTypeError, InvalidValueError, StPredictError
from st_predict._files import whole
from st_predict._validated import File, check

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["CELL", "TILE", "Hipt", "load_hipt", "save_hipt_weights"]

TILE, CELL = 256, 16
_HEADS, _SIDE = 6, 14
_WIDEN = 0.1  # DINO adds this to the side of the grid before interpolating positions


class Hipt(nn.Module):
    """Both networks of HIPT.

    Parameters
    ----------
    dim, depth
        Channels and blocks of the network on tiles.
    section_dim, section_depth
        Channels and blocks of the network on sections.
    """

    def __init__(self, *, dim: int = 384, depth: int = 12, section_dim: int = 192, section_depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, CELL, CELL)
        self.tile = HiptTransformer(dim, depth)
        self.narrow = nn.Linear(dim, section_dim)
        self.section = HiptTransformer(section_dim, section_depth)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features of tiles with colours from -1 to 1: ``(B, 1 + cells, D + 3)``.

        The class token comes first, then the cells in reading order. The last three channels are mean colours from 0 to 1.
        """
        tokens_BND = self.tile(self.patches(x_BCHW).permute(0, 2, 3, 1))
        colour_BCN = F.avg_pool2d(x_BCHW / 2 + 0.5, CELL).flatten(2)
        colour_BCN = torch.cat([colour_BCN.mean(2, keepdim=True), colour_BCN], dim=2)
        return torch.cat([tokens_BND, colour_BCN.transpose(1, 2)], dim=2)

    def of_tile(self, x_BCHW: Tensor) -> Tensor:
        """Return the class token of each tile with colours from -1 to 1, ``(B, D)``."""
        tokens_BND: Tensor = self.tile(self.patches(x_BCHW).permute(0, 2, 3, 1))
        return tokens_BND[:, 0]

    def of_region(self, cls_BPQD: Tensor) -> Tensor:
        """Return the class token of each region, ``(B, E)``, from the class tokens of its tiles."""
        tokens_BNE: Tensor = self.section(F.gelu(self.narrow(cls_BPQD)))
        return tokens_BNE[:, 0]

    def of_section(self, cls_PQD: Tensor) -> Tensor:
        """Return features of each tile's surroundings, ``(P, Q, E)``, from the class tokens of a section's tiles."""
        x_PQE = F.gelu(self.narrow(cls_PQD))
        tokens_NE = self.section(x_PQE[None])[0, 1:]
        return tokens_NE.view(*x_PQE.shape)


class HiptTransformer(nn.Module):
    """A vision transformer on a grid of tokens."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + _SIDE**2, dim))
        self.blocks = nn.ModuleList(HiptBlock(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x_BPQD: Tensor) -> Tensor:
        """Return the class token and the grid's tokens, ``(B, 1 + P * Q, D)``."""
        place_1ND = self._places(*x_BPQD.shape[1:3])
        x_BND = torch.cat([self.cls.expand(len(x_BPQD), -1, -1), x_BPQD.flatten(1, 2)], dim=1) + place_1ND
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.norm(x_BND)

    def _places(self, n_rows: int, n_columns: int) -> Tensor:
        if n_rows == n_columns == _SIDE:
            return self.positions
        grid_1DSS = self.positions[:, 1:].transpose(1, 2).reshape(1, -1, _SIDE, _SIDE)
        factors = [(n + _WIDEN) / _SIDE for n in (n_rows, n_columns)]
        grid_1DPQ = F.interpolate(grid_1DSS, scale_factor=factors, mode="bicubic")
        return torch.cat([self.positions[:, :1], grid_1DPQ.flatten(2).transpose(1, 2)], dim=1)


class HiptBlock(nn.Module):
    """Attention, then an MLP per token, both with a residual connection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x_BND))
        q_BHNE, k_BHNE, v_BHNE = qkv.view(*x_BND.shape[:2], 3, _HEADS, -1).permute(2, 0, 3, 1, 4)
        read_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE)
        x_BND = x_BND + self.out(read_BHNE.transpose(1, 2).flatten(2))
        return x_BND + self.mlp(self.norm2(x_BND))


def save_hipt_weights(vit256: Mapping[str, object], vit4k: Mapping[str, object], path: PathLike[str] | str) -> None:
    """Write the two published networks of HIPT to one ``.safetensors`` file, for ``hparams={"weights": path}`` of iStar.

    Parameters
    ----------
    vit256, vit4k
        Contents of ``vit256_small_dino.pth`` and ``vit4k_xs_dino.pth``: state dicts, or checkpoints that hold them.
        :func:`st_predict.checkpoints.import_published` reads them from the files.
    path
        File to write. An existing file is replaced once the new one is complete.

    Raises
    ------
    ValueError
        If the state dicts are not HIPT's two networks.
    TypeError
        If an argument is not a state dict.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> vit256 = torch.load("vit256_small_dino.pth")  # doctest: +SKIP
    >>> vit4k = torch.load("vit4k_xs_dino.pth")  # doctest: +SKIP
    >>> stp.encoders.save_hipt_weights(vit256, vit4k, "hipt.safetensors")  # doctest: +SKIP
    """
    path = check("path", path, File)
    state = convert(vit256, vit4k)
    _network_of(state)
    with whole(path) as fresh:
        save_file(state, fresh, metadata={"source": "github.com/mahmoodlab/HIPT"})


def load_hipt(path: PathLike[str] | str) -> Hipt:
    """Load a file written by :func:`save_hipt_weights`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it holds other weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Found no weights {str(path)!r}; st_predict.encoders.save_hipt_weights writes them.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise InvalidValueError(
            f"{str(path)!r} is not a complete safetensors file ({error}): it is damaged or of another kind.",
            "get it again",
        ) from error
    try:
        return _network_of(state)
    except StPredictError as error:
        raise error.about(f"{str(path)!r} cannot be used.") from error


def _network_of(state: dict[str, Tensor]) -> Hipt:
    """Build the networks that fit these weights."""
    depth, section_depth = (
        len({name.split(".")[2] for name in state if name.startswith(f"{part}.blocks.")})
        for part in ("tile", "section")
    )
    try:
        section_dim, dim = state["narrow.weight"].shape
        with torch.device("meta"):
            network = Hipt(dim=dim, depth=depth, section_dim=section_dim, section_depth=section_depth)
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except (KeyError, RuntimeError, ValueError) as error:  # names or shapes differ
        raise InvalidValueError(f"These are not the weights of HIPT: {error}") from error
    return network.eval().requires_grad_(requires_grad=False)


# Published names, and ours.
_PARTS = {
    "cls_token": "cls",
    "pos_embed": "positions",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_OF_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


def convert(vit256: Mapping[str, object], vit4k: Mapping[str, object]) -> dict[str, Tensor]:
    """Convert the two published files, or state dicts, to a state dict of :class:`Hipt`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    of_tile = _renamed(vit256, "tile", {"patch_embed.proj": "patches"}, what="ViT-256")
    return of_tile | _renamed(vit4k, "section", {"phi.0": "narrow"}, what="ViT-4K")


def _renamed(file: Mapping[str, object], prefix: str, first: Mapping[str, str], *, what: str) -> dict[str, Tensor]:
    state = file.get("teacher", file) if isinstance(file, Mapping) else None
    if not isinstance(state, Mapping):
        raise InvalidTypeError(
            f"The state dict of {what} of HIPT must be a mapping from name to tensor, got {type(file).__name__}."
        )
    theirs = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in state.items()}
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("head.")}
    depth = len({name.split(".")[1] for name in theirs if name.startswith("blocks.")})
    names = {published: f"{prefix}.{ours}" for published, ours in _PARTS.items()}
    layers = dict(first)
    for i in range(depth):
        layers |= {f"blocks.{i}.{published}": f"{prefix}.blocks.{i}.{ours}" for published, ours in _OF_BLOCK.items()}
    names |= {f"{a}.{part}": f"{b}.{part}" for a, b in layers.items() for part in ("weight", "bias")}
    missing, unknown = sorted(names.keys() - theirs.keys()), sorted(theirs.keys() - names.keys())
    if missing or unknown:
        raise InvalidValueError(f"Not the state dict of {what} of HIPT: missing {missing[:5]}, unknown {unknown[:5]}.")
    return {ours: theirs[published].contiguous() for published, ours in names.items()}
