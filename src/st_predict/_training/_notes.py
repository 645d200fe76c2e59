"""Training notes of a card: configuration, kept epoch, colours of the crops, pretrained weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._training._scores import best_row, monitored
from st_predict._training._store import draw_rows, measure_colours
from st_predict._version import __version__
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig
    from st_predict.encoders import Encoder
    from st_predict.specs import ModelCard

__all__ = ["colours_of", "describe_pixels", "describe_training"]

_OF_ALL = 256
"""Largest number of crops to measure."""

_DIGITS = 4

# Optical densities of haematoxylin, eosin and DAB (as residual) in red, green and blue: Ruifrok and Johnston 2001.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_DENSITIES = -np.log((np.arange(256) + 1) / 256)


def describe_training(
    card: ModelCard,
    config: TrainConfig,
    history: list[dict[str, float]],
    *,
    validated: bool,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Return notes for ``ModelCard.training``.

    Parameters
    ----------
    card
        Network and its hyper-parameters.
    config
        Configuration of training.
    history
        Scores of each epoch.
    validated
        Whether validation spots chose the epoch.
    encoder
        Encoder of the features that the network reads.
    """
    return {
        "config": asdict(config),
        "kept": f"best epoch by {monitored(config)[0]}" if validated else "last epoch",
        "best": best_row(history, config, validated=validated),
        "st_predict": __version__,
        **_sources(card, encoder),
    }


def _sources(card: ModelCard, encoder: Encoder | None) -> dict[str, Any]:
    """Return the card's notes on third-party weights."""
    note = get_spec(card.model).extension(card.hparams)
    found: dict[str, Any] = {"extension": note} if note else {}
    if encoder is not None and encoder.spec.source:
        known = {name: getattr(encoder.spec, name) for name in ("name", "source", "license", "citation")}
        found["encoder"] = {**known, "weights": encoder.fingerprint}
    return found


def colours_of(
    crops: Sequence[NDArray[np.uint8]], *, mpp: float | None, level_mask: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Return colour statistics of up to 256 random crops.

    Parameters
    ----------
    crops
        One array ``(n_spots, 3, size, size)`` per level.
    mpp
        Micrometres per pixel of the finest level.
    level_mask
        Whether the image of a spot has a level, ``(n_spots, n_levels)``; ``None`` if all have all levels.

    Returns
    -------
    dict of str to object
        ``mean`` and ``sd`` of red, green and blue from 0 to 1, over all levels; ``stain``, mean optical density of
        haematoxylin and eosin; ``n_crops``; ``mpp``.
    """
    rows = draw_rows(crops, level_mask, n_most=_OF_ALL)
    measured = describe_pixels(tuple(level[drawn] for level, drawn in zip(crops, rows, strict=True)))
    rounded = {name: [round(value, _DIGITS) for value in values.tolist()] for name, values in measured.items()}
    return {**rounded, "n_crops": max(map(len, rows)), "mpp": mpp}


def describe_pixels(crops: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float64]]:
    """Return ``mean`` and ``sd`` of red, green and blue, ``(3,)``, and ``stain``, ``(2,)``; see :func:`colours_of`.

    Parameters
    ----------
    crops
        One array ``(n, 3, size, size)`` per level.
    """
    colours = measure_colours(crops, [np.arange(len(level)) for level in crops])
    return {"mean": np.array(colours.mean), "sd": np.array(colours.std), "stain": _measure_stain(crops)}


def _measure_stain(crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Mean optical density of haematoxylin and eosin, ``(2,)``, over all pixels of all levels."""
    sums, n = np.zeros(3), 0
    for level in crops:
        for crop in level:
            sums, n = sums + _DENSITIES[crop].sum((1, 2)), n + crop[0].size
    return np.asarray(np.linalg.solve(_STAINS.T, sums / n)[:2])
