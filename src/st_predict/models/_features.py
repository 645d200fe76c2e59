"""Base of models that read the features of an encoder."""

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
    """Features that a model reads; each field is a hyper-parameter.

    Parameters
    ----------
    encoder
        Name of the encoder (:func:`st_predict.tl.embed`).
    features
        Layer of the encoder. ``"head"``: its output. ``"stages"``: mean and standard deviation of the feature maps of its last
        four stages. ``None``: the encoder's default.
    fields
        Sides of several fields of view around a spot, in pixels at the encoder's resolution; their features are joined. Empty
        for the encoder's own field of view.
    neighbours
        Number of nearest spots whose mean features are appended to a spot's own. Their distance depends on the lattice:
        predict spots at the spacing of the training spots.
    standardize
        Whether each feature is standardised over the spots of a section.
    """

    encoder: str = "rgb"
    features: Features | None = None
    fields: Annotated[tuple[Count, ...], Few] = ()
    neighbours: Natural = 0
    standardize: Flag = False

    def describe(self) -> EncoderSpec:
        """Return the encoder's specification, without weights."""
        return read_as(
            get_encoder(self.encoder),
            features=self.features,
            fields=self.fields,
            neighbours=self.neighbours,
            standardize=self.standardize,
        )

    def load(self) -> Encoder:
        """Return the encoder with weights."""
        return load_encoder(self.describe())

    def count(self, n_features: int | None = None) -> int:
        """Return the number of features per spot.

        Parameters
        ----------
        n_features
            Number of features, if known.

        Raises
        ------
        ValueError
            If the number is unknown, also to the encoder.
        """
        found = n_features or count_features(self.describe())
        if found is None:
            raise InvalidValueError(
                f"The number of features of {self.encoder!r} is unknown.", Advice("give n_features in {}", "hparams")
            )
        return found


class FeatureModel(SpotModel):
    """Base class of models that read features of an encoder.

    Parameters
    ----------
    encoder, features, fields, neighbours, standardize
        Fields of :class:`Reading`.
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
    """Features named by hyper-parameters; for ``reads_of`` of a ``SPEC``."""
    names = {f.name for f in fields(Reading)}
    reading = Reading(**{name: value for name, value in hparams.items() if name in names})
    return Reads(kind="features", describe_encoder=reading.describe, load_encoder=reading.load)


def read_features(batch: Batch, n_features: int, encoder: str) -> Tensor:
    """Return the features of a batch, ``(n_spots, n_features)`` float32.

    Raises
    ------
    ValueError
        If the batch has no features, or another number of them.
    """
    features_ND = batch.require("features")
    if features_ND.shape[1:] != (n_features,):
        raise InvalidValueError(
            f"The network reads {n_features} features of {encoder!r}, the batch has {tuple(features_ND.shape[1:])}."
        )
    return features_ND.float()
