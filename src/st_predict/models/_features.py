"""What models that read the features of an encoder share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from st_predict._errors import Advice, InvalidValueError
from st_predict.encoders import get_encoder, load_encoder
from st_predict.models._base import Reads

if TYPE_CHECKING:
    from torch import Tensor

    from st_predict.crops import Batch

__all__ = ["count_features", "features_of", "read_features"]


def features_of(*, encoder: str = "rgb", **_: Any) -> Reads:
    """Features of the encoder that the hyper-parameters name; ``reads_of`` of a ``SPEC``."""
    return Reads(
        kind="features", describe_encoder=partial(get_encoder, encoder), load_encoder=partial(load_encoder, encoder)
    )


def read_features(batch: Batch, n_features: int, encoder: str) -> Tensor:
    """Return the features of a batch, ``(n_spots, n_features)`` float32.

    Raises
    ------
    ValueError
        If the batch has none, or not so many.
    """
    features_ND = batch.require("features")
    if features_ND.shape[1:] != (n_features,):
        raise InvalidValueError(
            f"The network reads {n_features} features of {encoder!r}, the batch has {tuple(features_ND.shape[1:])}."
        )
    return features_ND.float()


def count_features(encoder: str, n_features: int | None) -> int:
    """Number of features of an encoder: ``n_features`` if given, else what is known of it.

    Raises
    ------
    ValueError
        If neither says.
    """
    found = n_features or get_encoder(encoder).n_features
    if found is None:
        raise InvalidValueError(
            f"It is not known how many features {encoder!r} has.", Advice("give n_features in {}", "hparams")
        )
    return found
