"""Reading options of an encoder: layers, fields of view, neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Count, Flag, Natural, check
from st_predict.encoders._spec import HUB
from st_predict.encoders._stages import length_of_stages
from st_predict.specs import LevelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from st_predict.encoders._spec import EncoderSpec

__all__ = ["Features", "count_features", "read_as"]

Features = Literal["head", "stages"]
"""Output that is read: ``"head"`` is the network's own, ``"stages"`` the statistics of its last four stages."""


def read_as(
    spec: EncoderSpec,
    *,
    features: Features | None = None,
    fields: Sequence[int] | None = None,
    neighbours: int | None = None,
    standardize: bool | None = None,
) -> EncoderSpec:
    """Return the specification of an encoder with other reading options; ``None`` keeps an option.

    Parameters
    ----------
    spec
        Specification of the encoder.
    features
        Layer to read. ``"head"``: output of the network. ``"stages"``: mean and standard deviation of the feature maps of its
        last four stages.
    fields
        Sides of several fields of view around a spot, in pixels at the encoder's resolution, such as ``(112, 224, 448, 896)``. Each
        is resized to the network's input, and their features are joined.
    neighbours
        Number of nearest spots whose mean features are appended to a spot's own; 0 appends none.
    standardize
        Whether each feature is standardised over the spots of a section.

    Returns
    -------
    EncoderSpec
        A new specification.

    Raises
    ------
    ValueError
        If the encoder has no stages, has its own fields of view, or a value is invalid.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.encoders.read_as(stp.encoders.get_encoder("UNI"), fields=(224, 448), neighbours=6)
    >>> [level.fov for level in spec.crop.levels]
    [224.0, 448.0]
    """
    asked = {
        "features": check("features", features, Features | None),
        "neighbours": check("neighbours", neighbours, Natural | None),
        "standardize": check("standardize", standardize, Flag | None),
    }
    sides = tuple(sorted(check("fields", tuple(fields or ()), tuple[Count, ...])))
    changed = replace(spec, **{name: value for name, value in asked.items() if value is not None})
    if features == "stages" and not _is_of_timm(spec):
        raise InvalidValueError(
            f"The encoder {spec.name!r} has no stages; only networks of timm have.", Advice("leave out {}", "features")
        )
    return _with_fields(changed, sides) if sides else changed


def _is_of_timm(spec: EncoderSpec) -> bool:
    return bool(spec.arch) or (bool(spec.source) and not spec.source.startswith("st_predict/"))


def _with_fields(spec: EncoderSpec, sides: tuple[int, ...]) -> EncoderSpec:
    if not _is_of_timm(spec) or len(spec.crop.levels) != 1:
        raise InvalidValueError(
            f"The encoder {spec.name!r} has its own fields of view.", Advice("leave out {}", "fields")
        )
    if len(set(sides)) < len(sides):
        raise InvalidValueError(f"fields must be different, got {sides}.")
    size = spec.crop.levels[0].size
    levels = tuple(LevelSpec(size=min(side, size), downsample=max(side / size, 1)) for side in sides)
    return replace(spec, fields=sides, input_size=size, crop=replace(spec.crop, levels=levels))


def count_features(spec: EncoderSpec) -> int | None:
    """Return the number of features per spot.

    Parameters
    ----------
    spec
        Specification of the encoder.

    Returns
    -------
    int or None
        Number of features; ``None`` if only the loaded network knows it.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.encoders.get_encoder("UNI")
    >>> stp.encoders.count_features(spec)
    1024
    >>> stp.encoders.count_features(stp.encoders.read_as(spec, fields=(224, 448), neighbours=6))
    4096
    """
    n_features = spec.n_features
    if spec.features == "stages":
        of_hub = spec.source.startswith(HUB) and not spec.arch
        n_features = None if of_hub else length_of_stages(spec.build, spec.input_size or spec.crop.levels[0].size)
    if n_features is None:
        return None
    return n_features * max(1, len(spec.fields)) * (2 if spec.neighbours else 1)
