"""The eight symmetries of a square, the same for all levels of a spot."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING

import torch

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.crops._batch import Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["N_SYMMETRIES", "apply_symmetry", "augment", "drop_levels"]

N_SYMMETRIES = 8
"""Quarter turns of a square, plain and mirrored."""


def augment(batch: Batch, generator: Generator) -> Batch:
    """Apply a random symmetry of the square to each spot: quarter turns, plain or mirrored.

    All levels of a spot get the same symmetry, so that they keep showing the same tissue. Pixels are not resampled.

    Parameters
    ----------
    batch
        Batch with crops.
    generator
        Random number generator, on the CPU.

    Returns
    -------
    Batch
        A new batch with other crops.

    Raises
    ------
    TypeError
        If an argument is of another type.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> crops = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    >>> batch = stp.crops.Batch(crops=(crops,), index=torch.arange(4))
    >>> turned = stp.crops.augment(batch, torch.Generator().manual_seed(0))
    >>> turned.crops[0].shape == crops.shape
    True
    """
    _check(batch, generator)
    symmetry = torch.randint(N_SYMMETRIES, (len(batch),), generator=generator)
    crops = tuple(crop.clone(memory_format=torch.contiguous_format) for crop in batch.crops)
    for which in range(N_SYMMETRIES):
        rows = torch.nonzero(symmetry == which).squeeze(1).to(crops[0].device)
        for crop in crops:
            crop[rows] = apply_symmetry(crop[rows], which)
    return replace(batch, crops=crops)


def apply_symmetry(crop: Tensor, symmetry: int) -> Tensor:
    """Apply one of the 8 symmetries of the square.

    Parameters
    ----------
    crop
        Pixels ``(..., size, size)``.
    symmetry
        Number of the symmetry: 0 is the identity, 1 to 3 are counter-clockwise quarter turns, 4 to 7 the same, then mirrored.

    Returns
    -------
    Tensor
        Pixels of the same shape.

    Raises
    ------
    TypeError, ValueError
        If ``crop`` is not a tensor, or there is no such symmetry.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> stp.crops.apply_symmetry(torch.tensor([[1, 2], [3, 4]]), 1).tolist()
    [[2, 4], [1, 3]]
    """
    if not isinstance(crop, torch.Tensor) or crop.ndim < 2:
        raise InvalidTypeError(f"crop must be a tensor (..., size, size), got {type(crop).__name__}.")
    if not isinstance(symmetry, Integral) or symmetry not in range(N_SYMMETRIES):
        raise InvalidValueError(f"symmetry must be a whole number from 0 to {N_SYMMETRIES - 1}, got {symmetry!r}.")
    turned = torch.rot90(crop, symmetry % 4, dims=(-2, -1))
    return turned.flip(-1) if symmetry >= 4 else turned


def drop_levels(batch: Batch, rate: float, generator: Generator) -> Batch:
    """Hide random levels of each spot; at least one level per spot stays.

    The mask of the batch marks hidden levels. A level that was missing before stays missing.

    Parameters
    ----------
    batch
        Batch with crops.
    rate
        Probability of hiding a level, from 0 to 1.
    generator
        Random number generator, on the CPU.

    Returns
    -------
    Batch
        A new batch with another mask.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, or ``rate`` is not from 0 to 1.

    Examples
    --------
    >>> import torch
    >>> import st_predict as stp
    >>> crops = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    >>> batch = stp.crops.Batch(crops=(crops, crops), index=torch.arange(4))
    >>> hidden = stp.crops.drop_levels(batch, 1.0, torch.Generator().manual_seed(0))
    >>> hidden.level_mask.sum(dim=1).tolist()  # one level per spot stays
    [1, 1, 1, 1]
    """
    _check(batch, generator)
    if not isinstance(rate, Real) or not 0 <= rate <= 1:
        raise InvalidValueError(f"rate must be from 0 to 1, got {rate!r}.")
    shape = (len(batch), len(batch.crops))
    present = batch.present.cpu()
    order = torch.rand(shape, generator=generator)
    kept = present & (order >= rate)
    rows, last = torch.arange(len(batch)), torch.where(present, order, -1.0).argmax(dim=1)
    kept[rows, last] = present[rows, last]
    return replace(batch, level_mask=kept.to(batch.crops[0].device))


def _check(batch: Batch, generator: Generator) -> None:
    if not isinstance(batch, Batch):
        raise InvalidTypeError(f"batch must be a Batch, got {type(batch).__name__}.")
    if not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"generator must be a torch.Generator, got {type(generator).__name__}.")
