"""Plain frozen data: the pixels that a model reads, the units that it writes, and the card of its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["FORMAT_VERSION", "IMAGENET", "CropSpec", "LevelSpec", "ModelCard", "PixelSpec", "TargetSpec"]

FORMAT_VERSION = 1
"""Version of the format of a :class:`ModelCard`; newer cards are refused."""

Transform = Literal["log1p_total", "log_proportion", "log1p", "counts"]
Over = Literal["panel", "all"]
Scale = Literal["none", "minmax"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSpec:
    """One level of a multi-level crop.

    Parameters
    ----------
    size
        Side of the square array that the network sees, in pixels.
    downsample
        Width of a pixel relative to the finest level of the crop: 1 is the finest, 2 has pixels twice as wide.
    """

    size: int
    downsample: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.size < inf and 0 < self.downsample < inf):
            raise InvalidValueError(
                f"size and downsample must be positive and finite, got {self.size} and {self.downsample}."
            )

    @property
    def fov(self) -> float:
        """Side of the field of view, in pixels of the finest level."""
        return self.size * self.downsample


@dataclass(frozen=True, kw_only=True, slots=True)
class CropSpec:
    """The crops around one spot.

    Parameters
    ----------
    levels
        Finest first.
    mpp
        Micrometres per pixel of the finest level. ``None`` takes the pixels of the image as they are, whatever
        their size.
    pad_value
        Grey value of what lies outside the image. White, as is outside the tissue.
    """

    levels: tuple[LevelSpec, ...]
    mpp: float | None = None
    pad_value: int = 255

    def __post_init__(self) -> None:
        if not self.levels:
            raise InvalidValueError("A crop needs at least one level.")
        downsamples = [level.downsample for level in self.levels]
        if downsamples != sorted(downsamples):
            raise InvalidValueError(f"The finest level comes first, got the downsamples {downsamples}.")
        if self.mpp is not None and not 0 < self.mpp < inf:
            raise InvalidValueError(f"mpp must be positive and finite, got {self.mpp}.")
        if not 0 <= self.pad_value <= 255:
            raise InvalidValueError(f"pad_value must be a grey value from 0 to 255, got {self.pad_value}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSpec:
    """How 8-bit pixels become numbers: ``(x / 255 - mean) / std``, a channel at a time."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3:
            raise InvalidValueError(
                f"mean and std have a number for each of 3 colours, got {self.mean} and {self.std}."
            )
        if not all(0 < value < inf for value in self.std):
            raise InvalidValueError(f"std must be positive and finite, got {self.std}.")


IMAGENET = PixelSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Mean and standard deviation of the colours of ImageNet, for networks that start from its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSpec:
    """Units of the values that a model predicts.

    Parameters
    ----------
    transform
        ``"log1p_total"`` is ``ln(1 + total * c / sum(c))`` (M2OST, HisToGene with another ``total``);
        ``"log_proportion"`` is ``ln((1 + c) / (n_genes + sum(c)))`` (ST-Net); ``"log1p"`` is ``ln(1 + c)`` (HEST);
        ``"counts"`` leaves counts alone.
    total
        Sum of a spot after scaling, for ``"log1p_total"``.
    over
        Genes over which the sum of a spot runs: the ``"panel"`` or ``"all"`` genes of the table.
    scale
        ``"minmax"`` then scales each gene so that its ``limits`` become 0 and 1 (DeepSpaCE).
    limits
        Least and largest value of each gene of the panel among the training spots; ``None`` before training.
    """

    transform: Transform = "log1p_total"
    total: float = 1e6
    over: Over = "panel"
    scale: Scale = "none"
    limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if self.transform not in get_args(Transform):
            raise InvalidValueError(f"transform must be one of {get_args(Transform)}, got {self.transform!r}.")
        if self.over not in get_args(Over):
            raise InvalidValueError(f"over must be one of {get_args(Over)}, got {self.over!r}.")
        if not 0 < self.total < inf:
            raise InvalidValueError(f"total must be positive and finite, got {self.total}.")
        self._check_scale()

    def _check_scale(self) -> None:
        if self.scale not in get_args(Scale):
            raise InvalidValueError(f"scale must be one of {get_args(Scale)}, got {self.scale!r}.")
        if self.limits is None:
            return
        low, high = (tuple(map(float, values)) for values in self.limits)
        if (
            self.scale == "none"
            or len(low) != len(high)
            or not all(-inf < a <= b < inf for a, b in zip(low, high, strict=True))
        ):
            raise InvalidValueError("limits are a finite least and largest value of each gene, for scale='minmax'.")
        object.__setattr__(self, "limits", (low, high))

    @property
    def units(self) -> str:
        """The transform as a formula, to be read by people."""
        genes = "panel genes" if self.over == "panel" else "all genes"
        formula = {
            "log1p_total": f"ln(1 + {self.total:,.10g} * count / sum over {genes})",
            "log_proportion": f"ln((1 + count) / (n_genes + sum)), over {genes}",
            "log1p": "ln(1 + count)",
            "counts": "counts",
        }[self.transform]
        return formula if self.scale == "none" else f"{formula}, from 0 at the least to 1 at the largest of training"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a set of weights was trained on, what it needs and what it gives.

    Parameters
    ----------
    model, hparams
        How to build the network.
    genes
        Gene panel, in the order of the outputs.
    crop, pixels, target
        Pixels in, units out.
    gene_id_type
        ``"symbol"`` or ``"ensembl"``.
    organism
        Whose genes.
    training
        Data, sections, split, seed, epochs, version of st_predict, scores.
    license, citation
        Of the weights.
    """

    model: str
    genes: tuple[str, ...]
    crop: CropSpec
    pixels: PixelSpec = field(default_factory=PixelSpec)
    target: TargetSpec = field(default_factory=TargetSpec)
    hparams: dict[str, Any] = field(default_factory=dict)
    gene_id_type: str = "symbol"
    organism: str = "unknown"
    training: dict[str, Any] = field(default_factory=dict)
    license: str = "unknown"
    citation: str = ""
    format_version: int = FORMAT_VERSION

    METADATA_KEY: ClassVar[str] = "st_predict.card"
    """Entry of the metadata of a ``.safetensors`` file that holds the card."""

    def to_json(self) -> str:
        """Serialise, with sorted keys so that equal cards are equal strings."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read back what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the card was written by a newer version, or is no card.
        """
        try:
            values = json.loads(text)
            _check_fields(values, {f.name for f in fields(cls)})
            crop = values.pop("crop")
            levels = tuple(LevelSpec(**level) for level in crop.pop("levels"))
            pixels = {name: tuple(value) for name, value in values.pop("pixels").items()}
            return cls(
                genes=tuple(values.pop("genes")),
                crop=CropSpec(levels=levels, **crop),
                pixels=PixelSpec(**pixels),
                target=TargetSpec(**values.pop("target")),
                **values,
            )
        except (AttributeError, KeyError, TypeError) as error:  # of JSON that has another structure
            raise InvalidValueError(f"This is no card of st_predict ({type(error).__name__}: {error}).") from error

    @classmethod
    def of_file(cls, path: PathLike[str] | str) -> ModelCard:
        """Read the card of a checkpoint, without its weights.

        Parameters
        ----------
        path
            A ``.safetensors`` file written by :func:`st_predict.checkpoints.save`.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a safetensors file, or has no card that can be read.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
        metadata = _metadata(path)
        if cls.METADATA_KEY not in metadata:
            raise InvalidValueError(
                f"{str(path)!r} has no st_predict card: it was not written by st_predict. Weights of published code can "
                "be converted with the `convert` of models.get_spec(name)."
            )
        try:
            return cls.from_json(metadata[cls.METADATA_KEY])
        except ValueError as error:
            raise InvalidValueError(f"{str(path)!r} cannot be used. {error}") from error


def _metadata(path: PathLike[str] | str) -> dict[str, str]:
    """Read the metadata of a safetensors file from its header: 8 bytes with its length, then JSON."""
    size = Path(path).stat().st_size
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise InvalidValueError("its header is longer than the file")
            return dict(json.loads(file.read(length)).get("__metadata__") or {})
    except (AttributeError, TypeError, ValueError) as error:  # not JSON, or JSON of another structure
        raise InvalidValueError(
            f"{str(path)!r} is no complete safetensors file ({error}): it is damaged or of another kind; get it again."
        ) from error


def _check_fields(values: dict[str, Any], names: set[str]) -> None:
    if values.get("format_version", 0) > FORMAT_VERSION:
        raise InvalidValueError(
            f"The card has format {values['format_version']}, this st_predict reads up to {FORMAT_VERSION}: "
            "upgrade st_predict."
        )
    if unknown := sorted(values.keys() - names):
        raise InvalidValueError(f"The card has unknown fields {unknown}: it was not written by st_predict.")
    if missing := sorted(names - values.keys()):
        raise InvalidValueError(f"The card lacks the fields {missing}: it was not written by st_predict.")
