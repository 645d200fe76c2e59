"""Stain jitter against scikit-image's separation of stains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed

from st_predict.crops import Batch, jitter_stain

DENSITY = np.log(1e6)  # scikit-image divides optical densities by this


def tissue(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Crops of positive amounts of the three stains."""
    hed = np.random.default_rng(seed).uniform(0.005, 0.05, (n, size, size, 3))
    return torch.from_numpy((hed2rgb(hed) * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)


def batch_of(*crops: torch.Tensor) -> Batch:
    return Batch(crops=crops, index=torch.arange(len(crops[0])))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_amounts_of_stain_change_as_scikit_image_measures_them() -> None:
    crops, strength = tissue(4), 0.2
    found = jitter_stain(batch_of(crops), strength, generator()).crops[0]
    scale, shift = (2 * torch.rand(2, 4, 3, generator=generator()).numpy() - 1) * strength
    hed = rgb2hed(crops.permute(0, 2, 3, 1).numpy())
    changed = hed * (1 + scale)[:, None, None] + shift[:, None, None] / DENSITY
    expected = hed2rgb(changed) * 255
    positive = (changed > 0).all(-1)  # scikit-image sets negative amounts to zero
    assert positive.mean() > 0.5
    difference = np.abs(found.permute(0, 2, 3, 1).numpy() - expected)[positive]
    assert difference.max() < 4
    assert difference.mean() < 0.6
    assert (found != crops).float().mean() > 0.9


def test_all_levels_of_a_spot_change_alike_and_spots_do_not() -> None:
    crops = tissue(1).expand(3, -1, -1, -1).clone()
    first, second = jitter_stain(batch_of(crops, crops), 0.2, generator()).crops
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    again = jitter_stain(batch_of(crops), 0.2, generator()).crops[0]
    assert torch.equal(first, again)


def test_white_stays_white_and_nothing_changes_without_strength() -> None:
    crops = tissue(2)
    crops[:, :, :4] = 255
    found = jitter_stain(batch_of(crops), 0.3, generator()).crops[0]
    assert (found[:, :, :4] == 255).all()
    assert torch.equal(jitter_stain(batch_of(crops), 0, generator()).crops[0], crops)
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(1, 3, 16, 16)
    assert torch.equal(jitter_stain(batch_of(every), 0, generator()).crops[0], every)


@pytest.mark.parametrize(("strength", "error"), [(-0.1, ValueError), (1.5, ValueError), ("much", ValueError)])
def test_unfit_strength(strength: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="strength must be from 0 to 1"):
        jitter_stain(batch_of(tissue(1)), strength, generator())


def test_pixels_that_are_not_8_bit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"8-bit pixels \(torch.uint8\), got \['torch.float32'\]"):
        jitter_stain(batch_of(torch.rand(1, 3, 8, 8)), 0.2, generator())
