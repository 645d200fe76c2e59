"""Cell encoders: frozen networks that compute features of the square cells of an image, tile by tile."""
# Shapes: B tiles, C channels, H W image, P Q rows and columns of cells, N tokens, D features.

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._backbones import import_timm
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._files import sha256_of_file
from st_predict._validated import Count, File, Natural, Text, check, validated
from st_predict.encoders._catalogue import Encoder, EncoderSpec, get_encoder, load_encoder
from st_predict.encoders._hipt import CELL, TILE, Hipt, load_hipt
from st_predict.encoders._rgb import RgbStatistics
from st_predict.specs import CropSpec, LevelSpec, PixelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from pathlib import Path

    from st_predict.crops import Batch

__all__ = ["CELL_NAMES", "CellEncoder", "CellSpec", "get_cell_encoder", "load_cell_encoder", "weights_digest"]

_HIPT_FEATURES = 192 + 384 + 3
_HALO = 2  # patches at the edge of a vision transformer's input, which are dropped


@validated
class CellSpec:
    """Specification of a dense encoder, without weights.

    Parameters
    ----------
    encoder
        Specification of the network. Its crop is a tile with halo; ``n_features`` is the number of features per cell.
    cell
        Side of a cell, in pixels.
    halo
        Width of the context around a tile, in pixels.
    shifts
        Offsets of the tiles from the corner of the image, in pixels, to average the features of a cell over. If not empty,
        the encoder reads whole sections.
    windows
        Sides of the windows, in cells, over which section features and cell features are averaged; only with ``shifts``.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.encoders.get_cell_encoder("rgb-cells")
    >>> spec.cell * spec.crop.mpp  # side of a cell in micrometres
    8.0
    >>> spec.n_features == len(stp.encoders.CELL_NAMES)
    True
    """

    encoder: EncoderSpec
    cell: Count
    halo: Natural = 0
    shifts: tuple[Natural, ...] = ()
    windows: tuple[Count, Count] = (1, 1)

    @property
    def crop(self) -> CropSpec:
        """Tile with halo."""
        return self.encoder.crop

    @property
    def n_cells(self) -> int:
        """Number of cells per side of a tile."""
        return (self.crop.levels[0].size - 2 * self.halo) // self.cell

    @property
    def n_features(self) -> int:
        """Number of features per cell."""
        assert self.encoder.n_features is not None
        return self.encoder.n_features


class CellEncoder(Encoder):
    """A loaded dense encoder, which computes cell features for batches of tiles.

    Parameters
    ----------
    network
        Network that is called with the pixels of tiles, ``(n_tiles, 3, size, size)`` float32, and returns ``(n_tiles, n_cells,
        n_cells, n_features)``. A network that reads whole sections returns the output of ``Hipt.forward``.
    spec
        Specification of the encoder.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> encoder = stp.encoders.load_cell_encoder("rgb-cells", cell=4)
    >>> size = encoder.cells.crop.levels[0].size
    >>> tile = torch.full((1, 3, size, size), 255, dtype=torch.uint8)
    >>> features = encoder(stp.crops.Batch(crops=(tile,), index=torch.arange(1)))
    >>> features.shape
    torch.Size([1, 64, 64, 70])
    """

    def __init__(self, network: nn.Module, spec: CellSpec) -> None:
        super().__init__(network, spec.encoder)
        self.cells = spec

    def forward(self, batch: Batch) -> Tensor:
        """Return the cell features of tiles."""
        features: Tensor = self.backbone(self.pixels(batch.crops[0]))
        return features.float()

    def describe(self) -> dict[str, Any]:
        """Return a JSON-compatible record of everything that features depend on, except tiles and precision."""
        spec = self.cells
        own = {"cell": spec.cell, "halo": spec.halo, "shifts": list(spec.shifts), "windows": list(spec.windows)}
        return {**super().describe(), **own}


def get_cell_encoder(encoder: str, *, cell: int | None = None, n_shifts: int = 4) -> CellSpec:
    """Return the specification of a dense encoder, without weights.

    Parameters
    ----------
    encoder
        Name of the encoder: ``"rgb-cells"``, which needs no weights; ``"hipt"``; or a vision transformer of
        :func:`st_predict.encoders.list_encoders` or timm, whose patch tokens become cell features.
    cell
        Side of a cell, in pixels, by default 16. Free for ``"rgb-cells"``; for others it must be the side of a patch.
    n_shifts
        Number of tile shifts to average along each axis; only for ``"hipt"``.

    Returns
    -------
    CellSpec
        Specification.

    Raises
    ------
    KeyError
        If no encoder has this name.
    ModuleNotFoundError
        If timm is needed and not installed.
    ValueError
        If the encoder has no cells, or none of that size.
    TypeError
        If ``encoder`` is not a text.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.encoders.get_cell_encoder("rgb-cells", cell=8)
    >>> spec.cell, spec.n_cells, spec.halo
    (8, 64, 128)
    """
    if not isinstance(encoder, str):
        raise InvalidTypeError(f"A cell encoder is given by its name, got {type(encoder).__name__}.")
    cell, n_shifts = check("cell", CELL if cell is None else cell, Count), check("n_shifts", n_shifts, Count)
    if encoder == RGB_CELLS:
        return _rgb_spec(cell)
    if encoder == "hipt":
        return _hipt_spec(cell, n_shifts)
    return _vit_spec(encoder, cell)


def load_cell_encoder(
    encoder: str,
    *,
    cell: int | None = None,
    n_shifts: int = 4,
    weights: PathLike[str] | str | None = None,
    weights_sha256: str | None = None,
) -> CellEncoder:
    """Load a dense encoder with its weights.

    Parameters
    ----------
    encoder, cell, n_shifts
        Arguments of :func:`get_cell_encoder`.
    weights
        File written by :func:`save_hipt_weights`; only for ``"hipt"``.
    weights_sha256
        Expected SHA-256 of that file; by default any.

    Returns
    -------
    CellEncoder
        Encoder with weights, on the CPU.

    Raises
    ------
    FileNotFoundError
        If the file ``weights`` does not exist.
    ValueError
        If ``weights`` is missing, belongs to another network, or has another digest.

    Examples
    --------
    >>> import st_predict as stp
    >>> encoder = stp.encoders.load_cell_encoder("rgb-cells")
    >>> encoder.cells.n_features
    70
    """
    spec = get_cell_encoder(encoder, cell=cell, n_shifts=n_shifts)
    if encoder == RGB_CELLS:
        return CellEncoder(RgbCells(cell=spec.cell, halo=spec.halo), spec)
    if encoder != "hipt":
        backbone: Any = load_encoder(encoder).backbone
        return CellEncoder(PatchTokens(getattr(backbone, "transformer", backbone), halo=spec.halo // spec.cell), spec)
    if weights is None:
        raise InvalidValueError(
            "HIPT's weights are not part of the package; st_predict.encoders.save_hipt_weights writes vit256_small_dino.pth "
            "and vit4k_xs_dino.pth to one file.",
            *_name_file("name that file"),
            f"use the encoder {RGB_CELLS!r}, which needs no weights",
        )
    weights = check("weights", weights, File)
    if check("weights_sha256", weights_sha256, Text | None) is not None and weights_digest(weights) != weights_sha256:
        raise InvalidValueError(
            f"{str(weights)!r} are not the weights that the network was trained with (SHA-256 {weights_sha256}).",
            *_name_file("name the right file"),
        )
    return CellEncoder(_checked(load_hipt(weights), weights), spec)


def _name_file(what: str) -> tuple[Advice, Advice]:
    return Advice(f"{what} as weights in {{}}", "hparams"), Advice(f"{what} with {{}}", "weights")


def weights_digest(path: PathLike[str] | str) -> str:
    """Compute the SHA-256 of a weights file.

    Parameters
    ----------
    path
        File written by :func:`save_hipt_weights`.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "hipt.safetensors"
    ...     _ = path.write_bytes(b"weights")
    ...     stp.encoders.weights_digest(path)[:8]
    '9a129038'
    """
    file: Path = check("weights", path, File)
    if not file.is_file():
        raise FileNotFoundError(f"Found no weights {str(path)!r}; st_predict.encoders.save_hipt_weights writes them.")
    return sha256_of_file(file)


# HIPT, on whole sections.


def _hipt_spec(cell: int, n_shifts: int) -> CellSpec:
    if cell != CELL:
        raise InvalidValueError(f"'hipt' has cells of {CELL} px, not of {cell} px.", *_set_cell(CELL))
    if TILE // CELL % n_shifts:
        raise InvalidValueError(f"n_shifts must be a divisor of {TILE // CELL}, got {n_shifts}.")
    encoder = EncoderSpec(
        name="hipt",
        source="github.com/mahmoodlab/HIPT",
        crop=CropSpec(levels=(LevelSpec(size=TILE),), mpp=0.5),
        pixels=PixelSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        n_features=_HIPT_FEATURES,
        license="Apache-2.0 with the Commons Clause",
        citation="Chen et al. 2022, https://doi.org/10.1109/CVPR52688.2022.01567",
    )
    return CellSpec(encoder=encoder, cell=CELL, shifts=tuple(range(0, TILE, TILE // n_shifts)), windows=(16, 4))


def _checked(network: Hipt, path: PathLike[str] | str) -> Hipt:
    found = network.narrow.out_features + network.narrow.in_features + 3
    if found != _HIPT_FEATURES:
        raise InvalidValueError(f"{str(path)!r} gives {found} features per cell, HIPT's weights give {_HIPT_FEATURES}.")
    return network


def _set_cell(size: int) -> tuple[Advice, Advice]:
    return Advice(f"set cell to {size} in {{}}", "hparams"), Advice("set {}", "cell", size)


# Patch tokens of vision transformers.


class PatchTokens(nn.Module):
    """Patch tokens of a vision transformer of timm, without the patches at the edge of its input."""

    def __init__(self, transformer: nn.Module, *, halo: int) -> None:
        super().__init__()
        self.transformer, self.halo = transformer, halo

    def forward(self, x_BCHW: Tensor) -> Tensor:
        tokens_BND = self.transformer.forward_features(x_BCHW)  # type: ignore[operator]
        tokens_BND = tokens_BND[:, self.transformer.num_prefix_tokens :]
        side = x_BCHW.shape[-1] // self.transformer.patch_embed.patch_size[0]  # type: ignore[union-attr,index]
        inner = slice(self.halo, side - self.halo)
        return tokens_BND.reshape(len(x_BCHW), side, side, -1)[:, inner, inner]


def _vit_spec(name: str, cell: int) -> CellSpec:
    spec = get_encoder(name)
    patch, width = _patch_and_width(spec)
    if patch != cell:
        raise InvalidValueError(
            f"The encoder {name!r} has cells of {patch} px, one per patch, not of {cell} px.",
            *_set_cell(patch),
            "use another encoder",
        )
    return CellSpec(encoder=replace(spec, n_features=width), cell=cell, halo=_HALO * cell)


def _patch_and_width(spec: EncoderSpec) -> tuple[int, int]:
    with torch.device("meta"):
        network: Any = spec.build() if spec.arch else import_timm().create_model(spec.source, pretrained=False)
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is None or not hasattr(network, "num_prefix_tokens"):
        raise InvalidValueError(f"The encoder {spec.name!r} is not a vision transformer, so it has no cells.")
    return int(patch[0]), int(network.num_features)


# Colour, stain and texture.

RGB_CELLS, _VERSION = "rgb-cells", 1
_SIDE, _MARGIN = 64, 16  # cells per side of a tile, and around it
_WINDOWS = (1, 3, 7, 15, 31)
_CHANNELS = ("red", "green", "blue", "haematoxylin", "eosin")
_NUCLEUS, _TISSUE = 0.1, 0.15  # thresholds of haematoxylin; of mean optical density, to the base e
# Centre and spread of each statistic in the cells of a breast section (her2st, C2), so that inputs of networks have mean about 0
# and standard deviation about 1. Colours go from white, 0, to black, -1.
_TYPICAL = {
    "mean_red": (-0.44, 0.13),
    "mean_green": (-0.48, 0.11),
    "mean_blue": (-0.32, 0.08),
    "mean_haematoxylin": (0.073, 0.03),
    "mean_eosin": (0.003, 0.003),
    "sd_red": (0.18, 0.05),
    "sd_green": (0.15, 0.045),
    "sd_blue": (0.12, 0.035),
    "sd_haematoxylin": (0.05, 0.018),
    "sd_eosin": (0.003, 0.0017),
    "gradient_haematoxylin": (0.018, 0.008),
    "gradient_eosin": (0.0008, 0.0005),
    "share_of_nuclei": (0.24, 0.17),
    "share_of_tissue": (0.91, 0.15),
}
CELL_NAMES = tuple(f"{statistic}_{window}" for window in _WINDOWS for statistic in _TYPICAL)
"""Names of the features of the encoder ``rgb-cells``: ``{statistic}_{cells}``, with the side of the window in cells."""


class RgbCells(nn.Module):
    """Colour, stain and texture of each cell, and of growing windows around it."""

    typical_2C11: Tensor

    def __init__(self, *, cell: int, halo: int) -> None:
        super().__init__()
        self.cell, self.margin = cell, halo // cell
        self.stains = RgbStatistics()  # provides the stain separation
        typical = torch.tensor(list(_TYPICAL.values())).T[..., None, None]
        self.register_buffer("typical_2C11", typical, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features ``(n_tiles, n_cells, n_cells, n_features)`` of colours from 0 to 1, named by :data:`CELL_NAMES`."""
        # one channel at a time: all channels of all pixels would take half a GB
        means_BCPQ = torch.cat([F.avg_pool2d(channels, self.cell) for channels in self._channels(x_BCHW)], dim=1)
        windows = [self._in_window(means_BCPQ, window) for window in _WINDOWS]
        return torch.cat(windows, dim=1).permute(0, 2, 3, 1)

    def _channels(self, x_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield per pixel: colours and stains, their squares, gradients of stains, nuclei, tissue."""
        density_BCHW = x_BCHW.clamp_min(1 / 255).log_().neg_()
        stain_BSHW = F.conv2d(density_BCHW, self.stains.of_stain_CS1.transpose(0, 1)[..., None]).clamp_min_(0)
        yield x_BCHW - 1  # white is 0, so that squares lose little precision
        yield stain_BSHW
        yield (x_BCHW - 1).square_()
        yield stain_BSHW.square()
        yield _gradient(stain_BSHW)
        yield (stain_BSHW[:, :1] > _NUCLEUS).float()
        yield (density_BCHW.mean(1, keepdim=True) > _TISSUE).float()

    def _in_window(self, means_BCPQ: Tensor, window: int) -> Tensor:
        outer = self.margin - window // 2
        inner = slice(outer, -outer)
        x_BCPQ = F.avg_pool2d(means_BCPQ[:, :, inner, inner], window, stride=1)
        n = len(_CHANNELS)
        mean, square, others = x_BCPQ[:, :n], x_BCPQ[:, n : 2 * n], x_BCPQ[:, 2 * n :]
        sd = (square - mean.square()).clamp_min(0).sqrt()
        centre, spread = self.typical_2C11
        return (torch.cat([mean, sd, others], dim=1) - centre) / spread


def _gradient(x_BSHW: Tensor) -> Tensor:
    """Length of the gradient from central differences; edge pixels copy their neighbours."""
    x_BSHW = F.pad(x_BSHW, (1, 1, 1, 1), mode="replicate")
    across = x_BSHW[..., 1:-1, 2:] - x_BSHW[..., 1:-1, :-2]
    down = x_BSHW[..., 2:, 1:-1] - x_BSHW[..., :-2, 1:-1]
    return across.square_().add_(down.square_()).sqrt_().div_(2)


def _rgb_spec(cell: int) -> CellSpec:
    encoder = EncoderSpec(
        name=RGB_CELLS,
        source=f"st_predict/{RGB_CELLS}-{_VERSION}",
        crop=CropSpec(levels=(LevelSpec(size=(_SIDE + 2 * _MARGIN) * cell),), mpp=0.5),
        n_features=len(CELL_NAMES),
        float32=True,
        license="BSD-3-Clause",
    )
    return CellSpec(encoder=encoder, cell=cell, halo=_MARGIN * cell)
