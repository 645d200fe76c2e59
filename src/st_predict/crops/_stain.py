"""Colours as if a slide had been stained and scanned elsewhere: stain by stain, in optical density."""
# Shapes: B spots, C colours, K stains, N pixels.

from __future__ import annotations

from dataclasses import replace
from functools import cache
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.crops._batch import Batch

if TYPE_CHECKING:
    from torch import Generator

__all__ = ["jitter_stain"]

# Optical density of red, green and blue of haematoxylin, eosin and DAB: Ruifrok and Johnston 2001.
_STAINS_KC = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_WHITE = 255


def jitter_stain(batch: Batch, strength: float, generator: Generator) -> Batch:
    """Vary the staining strength of each spot at random, equally for all its levels :cite:p:`Tellez2018`.

    The amounts of haematoxylin, eosin and a residual become ``(1 + a) * amount + b``, in optical density, with ``a`` and ``b``
    drawn from -``strength`` to ``strength``. White pixels, as outside the image, stay white.

    Parameters
    ----------
    batch
        Batch with 8-bit crops.
    strength
        Largest relative change: 0 changes nothing, 0.05 is a mild change and 0.2 a strong one.
    generator
        Random number generator, on the CPU.

    Returns
    -------
    Batch
        A new batch with other crops.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, or ``strength`` is not from 0 to 1.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> crops = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    >>> batch = stp.crops.Batch(crops=(crops,), index=torch.arange(4))
    >>> stained = stp.crops.jitter_stain(batch, 0.05, torch.Generator().manual_seed(0))
    >>> stained.crops[0].dtype
    torch.uint8
    """
    if not isinstance(batch, Batch):
        raise InvalidTypeError(f"batch must be a Batch, got {type(batch).__name__}.")
    if not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"generator must be a torch.Generator, got {type(generator).__name__}.")
    if wrong := {str(crop.dtype) for crop in batch.crops if crop.dtype != torch.uint8}:
        raise InvalidTypeError(f"crops must be 8-bit pixels (torch.uint8), got {sorted(wrong)}.")
    if not isinstance(strength, Real) or not 0 <= strength <= 1:
        raise InvalidValueError(f"strength must be from 0 to 1, got {strength!r}.")
    drawn_2BK = (2 * torch.rand(2, len(batch), 3, generator=generator) - 1) * strength
    scale_BK, shift_BK = drawn_2BK[0] + 1, drawn_2BK[1]
    mix_BCC = torch.linalg.inv(_STAINS_KC) @ torch.diag_embed(scale_BK) @ _STAINS_KC
    offset_BC = shift_BK @ _STAINS_KC
    crops = tuple(_stained(crop, mix_BCC.to(crop.device), offset_BC.to(crop.device)) for crop in batch.crops)
    return replace(batch, crops=crops)


def _stained(crop_BCHW: Tensor, mix_BCC: Tensor, offset_BC: Tensor) -> Tensor:
    density_BCN = _densities(str(crop_BCHW.device))[crop_BCHW.long()].flatten(2)
    changed_BCN = torch.baddbmm(offset_BC[:, :, None], mix_BCC.transpose(1, 2), density_BCN)
    pixels_BCHW = (256 * torch.exp(-changed_BCN) - 1).round_().clamp_(0, _WHITE).to(torch.uint8).view_as(crop_BCHW)
    white_B1HW = (crop_BCHW == _WHITE).all(1, keepdim=True)
    return torch.where(white_B1HW, crop_BCHW, pixels_BCHW)


@cache
def _densities(device: str) -> Tensor:
    """Optical density of each 8-bit value, 0 for white: ``(256,)``."""
    return -torch.log((torch.arange(256, device=device, dtype=torch.float32) + 1) / 256)
