"""The encoder ``rgb``: colour, stain and texture of a crop as statistics that need no weights."""
# Shapes: B spots, C channels, S stains, H W image, N pixels, K statistics.

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict.specs import CropSpec, LevelSpec

__all__ = ["RGB_CROP", "RGB_NAMES", "RGB_VERSION", "RgbStatistics"]

RGB_VERSION = 1
"""Version, raised whenever a statistic changes, so that cached features of older versions are not reused."""

RGB_CROP = CropSpec(levels=tuple(LevelSpec(size=64, downsample=d) for d in (1, 2, 4)), mpp=2.0)
"""Fields of view of 128, 256 and 512 um."""

_COLOURS = ("red", "green", "blue")
_STAINS = ("haematoxylin", "eosin")
_QUANTILES = (10, 50, 90)
_BLOCKS = (2, 4, 8, 16)
_PATTERNS = 10
_NUCLEUS = 0.1  # threshold of haematoxylin, in the units of rgb2hed
_TISSUE = 0.15  # threshold of mean optical density, to the base e

# Optical densities of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston 2001).
_DENSITIES = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def _names() -> tuple[str, ...]:
    of_a_level = [
        *(
            f"{statistic}_{channel}"
            for channels in (_COLOURS, _STAINS)
            for statistic in _moments()
            for channel in channels
        ),
        "share_of_nuclei",
        "share_of_tissue",
        "correlation_of_stains",
        *(f"gradient_{stain}" for stain in _STAINS),
        *(f"sd_in_{size}px_{stain}" for size in _BLOCKS for stain in _STAINS),
        *(f"pattern_{i}" for i in range(_PATTERNS)),
    ]
    return tuple(f"{name}_x{level.downsample:g}" for level in RGB_CROP.levels for name in of_a_level)


def _moments() -> tuple[str, ...]:
    return ("mean", "sd", *(f"q{quantile}" for quantile in _QUANTILES))


class RgbStatistics(nn.Module):
    """Statistics of the levels of a crop, level by level; :data:`RGB_NAMES` names the columns."""

    of_stain_CS1: Tensor

    def __init__(self) -> None:
        super().__init__()
        inverse = np.linalg.inv(_DENSITIES)[:, : len(_STAINS), None] / -math.log(1e-6)
        self.register_buffer("of_stain_CS1", torch.tensor(inverse, dtype=torch.float32), persistent=False)

    def forward(self, *levels_BCHW: Tensor) -> Tensor:
        """Return statistics ``(n_spots, n_statistics)`` of colours from 0 to 1."""
        return torch.cat([self._describe(x_BCHW) for x_BCHW in levels_BCHW], dim=1)

    def _describe(self, x_BCHW: Tensor) -> Tensor:
        density_BCN = -x_BCHW.flatten(2).clamp_min(1 / 255).log()
        # one operation per pixel, not a matrix product: the patterns need equal values for equal colours
        red, green, blue = (density_BCN[:, i : i + 1] * self.of_stain_CS1[i] for i in range(3))
        stain_BSN = (red + green + blue).clamp_min(0)
        stain_BSHW = stain_BSN.reshape(len(x_BCHW), len(_STAINS), *x_BCHW.shape[2:])
        return torch.cat(
            [
                _distribution(x_BCHW),
                _distribution(stain_BSHW),
                (stain_BSN[:, :1] > _NUCLEUS).float().mean(2),
                (density_BCN.mean(1, keepdim=True) > _TISSUE).float().mean(2),
                _correlation(stain_BSN[:, :1], stain_BSN[:, 1:]),
                _gradient(stain_BSHW),
                *_sd_in_blocks(stain_BSHW),
                _patterns(stain_BSHW[:, 0]),
            ],
            dim=1,
        )


def _distribution(x_BCHW: Tensor) -> Tensor:
    """Mean, standard deviation and quantiles of each channel; quantiles use every fourth row and column."""
    x_BCN = x_BCHW.flatten(2)
    mean_BC = x_BCN.mean(2)
    sd_BC = (x_BCN - mean_BC[..., None]).square().mean(2).sqrt()
    some_BCN = x_BCHW[..., ::4, ::4].flatten(2).sort(dim=2).values
    ranks = [quantile * (some_BCN.shape[2] - 1) // 100 for quantile in _QUANTILES]
    return torch.cat([mean_BC, sd_BC, *(some_BCN[..., rank] for rank in ranks)], dim=1)


def _correlation(a_BCN: Tensor, b_BCN: Tensor) -> Tensor:
    """Pearson correlation over pixels; 0 if one is constant."""
    a_BCN, b_BCN = (x_BCN - x_BCN.mean(2, keepdim=True) for x_BCN in (a_BCN, b_BCN))
    scale_BC = (a_BCN.square().sum(2) * b_BCN.square().sum(2)).sqrt()
    return (a_BCN * b_BCN).sum(2) / scale_BC.clamp_min(1e-6)


def _gradient(x_BSHW: Tensor) -> Tensor:
    """Mean length of the gradient, from central differences."""
    across = x_BSHW[..., 1:-1, 2:] - x_BSHW[..., 1:-1, :-2]
    down = x_BSHW[..., 2:, 1:-1] - x_BSHW[..., :-2, 1:-1]
    return (across.square() + down.square()).sqrt().mean((2, 3)) / 2


def _sd_in_blocks(x_BSHW: Tensor) -> list[Tensor]:
    """Mean, over blocks of 2, 4, 8 and 16 pixels, of the standard deviation in a block."""
    mean = x_BSHW - x_BSHW.mean((2, 3), keepdim=True)
    square = mean.square()
    found = []
    for _ in _BLOCKS:
        mean, square = F.avg_pool2d(mean, 2), F.avg_pool2d(square, 2)
        found.append((square - mean.square()).clamp_min(0).sqrt().mean((2, 3)))
    return found


def _patterns(x_BHW: Tensor) -> Tensor:
    """Shares of the rotation-invariant uniform local binary patterns of 8 neighbours; the last is all other patterns."""
    h, w = x_BHW.shape[1] - 2, x_BHW.shape[2] - 2
    ring = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    centre = x_BHW[:, 1:-1, 1:-1]
    higher = torch.stack([x_BHW[:, i : i + h, j : j + w] >= centre for i, j in ring]).byte()
    changes = (higher ^ higher.roll(1, 0)).sum(0, dtype=torch.uint8)
    code_BHW = higher.sum(0, dtype=torch.uint8).masked_fill(changes > 2, _PATTERNS - 1)
    return torch.stack([(code_BHW == i).float().mean((1, 2)) for i in range(_PATTERNS)], dim=1)


RGB_NAMES = _names()
"""Names of the columns of the encoder ``rgb``: ``{statistic}_x{downsample}``, for fields of 128 (``x1``), 256 and 512 um.

``mean``, ``sd``, ``q10``, ``q50``, ``q90``
    Mean, standard deviation and quantiles of red, green and blue, from 0 to 1, and of haematoxylin and eosin, separated as by
    ``skimage.color.rgb2hed`` :cite:p:`Ruifrok2001`, where black counts as 1 of 255. Quantiles use every fourth row and
    column.
``share_of_nuclei``, ``share_of_tissue``
    Share of pixels with haematoxylin above 0.1; with a mean optical density above 0.15.
``correlation_of_stains``
    Correlation of haematoxylin and eosin over pixels; 0 if one is constant.
``gradient``
    Mean length of the gradient of a stain, from central differences.
``sd_in_{n}px``
    Mean standard deviation of a stain in blocks of ``n`` by ``n`` pixels.
``pattern_{i}``
    Shares of the uniform local binary patterns of haematoxylin: ``i`` of the 8 neighbours are at least as high as the
    pixel, all in a row; 9 is any other pattern.
"""
