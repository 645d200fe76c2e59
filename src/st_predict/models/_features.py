"""What models that read the features of an encoder share."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Count, Few, Flag, Natural, validated
from st_predict.encoders import (
    Encoder,
    EncoderSpec,
    Features,
    count_features,
    get_encoder,
    load_encoder,
    read_as,
)
from st_predict.models._base import Reads, SpotModel

if TYPE_CHECKING:
    from torch import Tensor

    from st_predict.crops import Batch

__all__ = ["FeatureModel", "Reading", "features_of", "read_features"]


@validated
class Reading:
    """Which features a model reads; each field is a hyper-parameter.

    Parameters
    ----------
    encoder
        What makes the features (:func:`st_predict.tl.embed`).
    features
        ``"head"`` for the output of the encoder; ``"stages"`` for the mean and the standard deviation of the feature maps of its last
        four stages; ``None`` for what the encoder has by default.
    fields
        Sides of several fields of view around a spot, in pixels at the resolution of the encoder, whose features are joined; empty for
        the one field of the encoder.
    neighbours
        Number of nearest spots whose mean features are joined to those of a spot. How far they are depends on the lattice: predict
        spots at the distance of those of training.
    standardize
        Whether each feature gets mean 0 and standard deviation 1 over the spots of a section.
    """

    encoder: str = "rgb"
    features: Features | None = None
    fields: Annotated[tuple[Count, ...], Few] = ()
    neighbours: Natural = 0
    standardize: Flag = False

    def describe(self) -> EncoderSpec:
        """Return what is known of the encoder, without its weights."""
        return read_as(
            get_encoder(self.encoder),
            features=self.features,
            fields=self.fields,
            neighbours=self.neighbours,
            standardize=self.standardize,
        )

    def load(self) -> Encoder:
        """Return the encoder with its weights."""
        return load_encoder(self.describe())

    def count(self, n_features: int | None = None) -> int:
        """Return how many features describe a spot.

        Parameters
        ----------
        n_features
            How many, if it is known.

        Raises
        ------
        ValueError
            If it is not known, and the encoder does not say.
        """
        found = n_features or count_features(self.describe())
        if found is None:
            raise InvalidValueError(
                f"It is not known how many features {self.encoder!r} has.", Advice("give n_features in {}", "hparams")
            )
        return found


class FeatureModel(SpotModel):
    """A model that reads features of an encoder.

    Parameters
    ----------
    encoder, features, fields, neighbours, standardize
        As in :class:`Reading`.
    """

    def __init__(
        self,
        *,
        encoder: str = "rgb",
        features: Features | None = None,
        fields: Annotated[tuple[Count, ...], Few] = (),
        neighbours: Natural = 0,
        standardize: Flag = False,
    ) -> None:
        super().__init__()
        self.reading = Reading(
            encoder=encoder, features=features, fields=fields, neighbours=neighbours, standardize=standardize
        )


def features_of(**hparams: Any) -> Reads:
    """Features that the hyper-parameters name; ``reads_of`` of a ``SPEC``."""
    names = {f.name for f in fields(Reading)}
    reading = Reading(**{name: value for name, value in hparams.items() if name in names})
    return Reads(kind="features", describe_encoder=reading.describe, load_encoder=reading.load)


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
