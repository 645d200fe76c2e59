"""HIPT as an encoder of spots: class tokens of the tile at a spot, of the tiles around it, and of their region :cite:p:`Chen2022`.

Shapes: B spots, C channels, H W image, P Q rows and columns of tiles, D channels of a tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Count, File, check
from st_predict.encoders._catalogue import Encoder
from st_predict.encoders._hipt import TILE, Hipt, load_hipt
from st_predict.encoders._spec import EncoderSpec
from st_predict.specs import CropSpec, LevelSpec, PixelSpec

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["load_hipt_encoder"]

_TOGETHER = 64  # tiles that ViT-256 sees at a time, which bounds memory


def load_hipt_encoder(weights: PathLike[str] | str, *, region: int = 1024) -> Encoder:
    """Load HIPT as an encoder of spots, for ``tl.embed(encoder=...)``.

    The features of a spot are, in this order:

    - 384: class token of ViT-256 on the tile of 256 px centred on the spot;
    - 384: mean of the class tokens of ViT-256 over the tiles of a square region around the spot;
    - 192: class token of ViT-4K on these tiles.

    Pixels are 0.5 um wide. The last two blocks are the publication's descriptor of a region :cite:p:`Chen2022`, whose regions
    have 4096 px and lie on a grid. Here a region is centred on each spot, so its tiles are read per spot: cost and memory
    grow with the area, with 17 passes of ViT-256 per spot at 1024 px and 257 at 4096 px. ViT-4K interpolates its positions to
    the grid of tiles, so features of regions of different size are not comparable.

    Parameters
    ----------
    weights
        File written by :func:`save_hipt_weights`.
    region
        Side of the region in pixels, a multiple of 256. The publication has 4096; 1024 (512 um) costs a fifteenth.

    Returns
    -------
    Encoder
        Encoder with 960 features per spot.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file holds other weights, or ``region`` is not a multiple of 256.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.encoders.load_hipt_encoder("none.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: Found no weights 'none.safetensors'; st_predict.encoders.save_hipt_weights writes them.
    >>> stp.tl.embed(sdata, stp.encoders.load_hipt_encoder("hipt.safetensors"))  # doctest: +SKIP
    """
    weights, region = check("weights", weights, File), check("region", region, Count)
    if region % TILE:
        raise InvalidValueError(
            f"region must be a multiple of {TILE} px, got {region} px.",
            Advice("set {}", "region", max(1, round(region / TILE)) * TILE),
        )
    network = load_hipt(weights)
    spec = EncoderSpec(
        name="hipt",
        source="github.com/mahmoodlab/HIPT",
        crop=CropSpec(levels=(LevelSpec(size=TILE), LevelSpec(size=region)), mpp=0.5),
        pixels=PixelSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        n_features=2 * network.narrow.in_features + network.narrow.out_features,
        license="Apache-2.0 with the Commons Clause",
        citation="Chen et al. 2022, https://doi.org/10.1109/CVPR52688.2022.01567",
    )
    return Encoder(HiptSpot(network), spec)


class HiptSpot(nn.Module):
    """Class tokens of a tile, of the tiles of a region, and of the region."""

    def __init__(self, network: Hipt) -> None:
        super().__init__()
        self.network = network

    def forward(self, tile_BCHW: Tensor, region_BCHW: Tensor) -> Tensor:
        """Return features ``(B, 2 * D + E)`` of colours from -1 to 1."""
        tiles = region_BCHW.unfold(2, TILE, TILE).unfold(3, TILE, TILE).permute(0, 2, 3, 1, 4, 5)
        cls_BPQD = self._of_tiles(tiles.flatten(0, 2)).view(*tiles.shape[:3], -1)
        own_BD = self._of_tiles(tile_BCHW)
        return torch.cat([own_BD, cls_BPQD.mean((1, 2)), self.network.of_region(cls_BPQD)], dim=1)

    def _of_tiles(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([self.network.of_tile(part) for part in torch.split(x_BCHW, _TOGETHER)])
