"""Plain frozen data: the pixels that a model reads, the units that it writes, and the card of its weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from difflib import get_close_matches
from math import isfinite
from numbers import Integral
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, WrapValidator

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, StPredictError
from st_predict._public import show_only
from st_predict._reprs import ShortRepr
from st_predict._validated import Count, Few, File, Natural, Number, Positive, check, validated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike
    from pathlib import Path

__all__ = [
    "FORMAT_VERSION",
    "IMAGENET",
    "CropSpec",
    "LevelSpec",
    "ModelCard",
    "PixelSpec",
    "Reference",
    "Reliability",
    "TargetSpec",
]

__dir__ = show_only(__all__)

FORMAT_VERSION = 1
"""Version of the format of a :class:`ModelCard`; newer cards are refused."""

Transform = Literal[
    "log1p_total", "log10_total", "log1p_10k", "log_proportion", "log1p", "counts", "pearson_residuals", "log_fold"
]
FITTED = ("pearson_residuals", "log_fold")
"""Transforms that depend on the spots of training."""

_DEEPEST = 32  # levels of nested lists and mappings in a card
_LONGEST_HEADER = 100_000_000  # bytes, as in the format of safetensors

_OF_ALL_GENES = (*FITTED, "log1p_10k")
HeldOut: TypeAlias = Literal["patient", "section"]
Over = Literal["panel", "all"]
Scale = Literal["none", "minmax"]
_OPTIONAL = {"reliability"}
"""Fields that are written only if they are not empty, so that older cards keep their text."""


def _as_given(value: Any, make_float: Callable[[Any], float]) -> float:
    """Keep whole numbers whole, so that the text of a card does not change when it is read and written."""
    number = make_float(value)
    return int(value) if isinstance(value, Integral) else number


_Number = Annotated[Number, WrapValidator(_as_given)]
_Positive = Annotated[Positive, WrapValidator(_as_given)]
_Mean = Annotated[_Number, Field(ge=-1e6, le=1e6)]
_Std = Annotated[_Positive, Field(ge=1e-6, le=1e6)]  # its inverse is finite in float32
_Limits: TypeAlias = tuple[tuple[Number, ...], tuple[Number, ...]]


@validated
class LevelSpec:
    """One level of a multi-level crop.

    Parameters
    ----------
    size
        Side of the square array that the network sees, in pixels.
    downsample
        Width of a pixel relative to the finest level of the crop: 1 is the finest, 2 has pixels twice as wide.

    Examples
    --------
    >>> from st_predict.specs import LevelSpec
    >>> LevelSpec(size=224, downsample=4).fov
    896
    """

    size: Annotated[Count, Field(le=16_384)]
    downsample: Annotated[_Positive, Field(le=1e6)] = 1.0

    @property
    def fov(self) -> float:
        """Side of the field of view, in pixels of the finest level."""
        return self.size * self.downsample


@validated
class CropSpec:
    """The crops around one spot.

    Parameters
    ----------
    levels
        Levels of the crop, finest first.
    mpp
        Micrometres per pixel of the finest level. ``None``: pixels of the image, whatever their size.
    pad_value
        Grey value outside the image, 0 to 255. The default is white, as glass without tissue.

    Examples
    --------
    >>> from st_predict.specs import CropSpec, LevelSpec
    >>> crop = CropSpec(levels=(LevelSpec(size=224), LevelSpec(size=224, downsample=4)), mpp=0.5)
    >>> [level.fov * crop.mpp for level in crop.levels]  # fields of view in micrometres
    [112.0, 448.0]
    """

    levels: Annotated[tuple[LevelSpec, ...], Few]
    mpp: Annotated[_Positive, Field(le=1000)] | None = None
    pad_value: Annotated[Natural, Field(le=255)] = 255

    def __post_init__(self) -> None:
        if not self.levels:
            raise InvalidValueError("A crop needs at least one level.")
        downsamples = [level.downsample for level in self.levels]
        if downsamples != sorted(downsamples):
            raise InvalidValueError(f"The finest level comes first, got the downsamples {downsamples}.")


@validated
class PixelSpec:
    """Normalisation of 8-bit pixels: ``(x / 255 - mean) / std`` per channel.

    Parameters
    ----------
    mean
        Mean of red, green and blue, -1e6 to 1e6.
    std
        Standard deviation of red, green and blue, 1e-6 to 1e6.

    Examples
    --------
    >>> from st_predict.specs import IMAGENET
    >>> red = 255
    >>> round((red / 255 - IMAGENET.mean[0]) / IMAGENET.std[0], 2)
    2.25
    """

    mean: tuple[_Mean, _Mean, _Mean] = (0.0, 0.0, 0.0)
    std: tuple[_Std, _Std, _Std] = (1.0, 1.0, 1.0)


IMAGENET = PixelSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's colours, for networks that start from weights trained on it."""


@validated
class Reference(ShortRepr):
    """Reference statistics of the training spots, for relative targets.

    Parameters
    ----------
    proportions
        Share of each gene of the panel in the counts of all genes.
    median_total
        Median over spots of the sum of counts over all genes.

    Examples
    --------
    >>> from st_predict.specs import Reference
    >>> reference = Reference(proportions=(0.002, 0.01), median_total=5000)
    >>> [share * reference.median_total for share in reference.proportions]  # expected counts of a median spot
    [10.0, 50.0]
    """

    proportions: tuple[Number, ...]
    median_total: Positive

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in self.proportions):
            raise InvalidValueError("proportions must be shares from 0 to 1, one per gene.")


@validated
class TargetSpec:
    """Units of the values that a model predicts.

    Parameters
    ----------
    transform
        Transform of the counts ``c`` of a spot whose sum over genes is ``n``:

        - ``"pearson_residuals"``: ``(c - m) / sqrt(m + m**2 / theta)`` with ``m = n * q``, analytic Pearson residuals
          :cite:p:`Lause2021`. ``q`` is the share of the gene in the training spots (``reference``), so no counts of the
          predicted section are needed.
        - ``"log_fold"``: ``ln((c + 1) / (n * q + 1))``.
        - ``"log1p_10k"``: ``ln(1 + 10,000 * c / n)``, as scanpy's ``normalize_total`` and ``log1p``.
        - ``"log1p_total"``: ``ln(1 + total * c / n)`` (M2OST); ``"log10_total"``: the same to base 10 (HisToGene, Hist2ST).
        - ``"log_proportion"``: ``ln((1 + c) / (n_genes + n))`` (ST-Net).
        - ``"log1p"``: ``ln(1 + c)`` (HEST). ``"counts"``: ``c``.
    total
        Sum of a spot after scaling, for ``"log1p_total"`` and ``"log10_total"``.
    over
        Genes in the sum of a spot: ``"panel"``, or ``"all"`` genes of the table. Residuals, folds and ``"log1p_10k"`` are
        always relative to all genes.
    scale
        Scaling after the transform. ``"minmax"``: each gene's ``limits`` become 0 and 1 (DeepSpaCE). ``"none"``: no scaling.
    limits
        Least and largest value of each gene of the panel among the training spots; ``None`` before training.
    theta
        Overdispersion of the negative binomial, for ``"pearson_residuals"``.
    clip
        Largest absolute residual. ``None`` before training, which sets it to the square root of the number of training spots.
    reference
        Statistics of the training spots, for ``"pearson_residuals"`` and ``"log_fold"``; ``None`` before training.

    Examples
    --------
    >>> from st_predict.specs import TargetSpec
    >>> TargetSpec(transform="log1p_total", total=1e4, over="all").units
    'ln(1 + 10,000 * count / sum over all genes)'
    >>> TargetSpec(transform="pearson_residuals").is_complete  # training sets reference and clip
    False
    """

    transform: Transform = "log1p_total"
    total: _Positive = 1e6
    over: Over = "panel"
    scale: Scale = "none"
    limits: _Limits | None = None
    theta: _Positive = 100.0
    clip: _Positive | None = None
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if self.transform in _OF_ALL_GENES:
            object.__setattr__(self, "over", "all")
        if self.transform == "log1p_10k":
            object.__setattr__(self, "total", 1e4)
        if self.transform not in FITTED and (self.reference is not None or self.clip is not None):
            raise InvalidValueError(f"Only {list(FITTED)} have reference and clip, got {self.transform!r}.")
        if self.limits is None:
            return
        low, high = self.limits
        if self.scale == "none" or len(low) != len(high) or not all(a <= b for a, b in zip(low, high, strict=True)):
            raise InvalidValueError(
                "limits are the least and the largest value of each gene; only the scale 'minmax' has them."
            )

    @property
    def units(self) -> str:
        """Formula of the transform, for display."""
        genes = "panel genes" if self.over == "panel" else "all genes"
        formula = {
            "pearson_residuals": "Pearson residual of the count, given the sum over all genes",
            "log_fold": "ln((count + 1) / (expected count + 1)), given the sum over all genes",
            "log1p_10k": "ln(1 + 10,000 * count / sum over all genes)",
            "log1p_total": f"ln(1 + {self.total:,.10g} * count / sum over {genes})",
            "log10_total": f"log10(1 + {self.total:,.10g} * count / sum over {genes})",
            "log_proportion": f"ln((1 + count) / (n_genes + sum)), over {genes}",
            "log1p": "ln(1 + count)",
            "counts": "counts",
        }[self.transform]
        return formula if self.scale == "none" else f"{formula}, from 0 at the least to 1 at the largest of training"

    @property
    def is_complete(self) -> bool:
        """Whether all values that training sets are set."""
        fitted = self.transform not in FITTED or self.reference is not None
        return fitted and (self.scale == "none" or self.limits is not None)

    @property
    def is_relative(self) -> bool:
        """Whether the value of a gene depends on the counts of other genes of the spot."""
        return self.transform not in {"log1p", "counts"}

    @property
    def gives_rates(self) -> bool:
        """Whether values can be converted to shares of all counts without the spot's depth."""
        relative = self.transform in {"log1p_total", "log10_total", "log1p_10k"} and self.over == "all"
        return self.is_complete and (relative or self.transform in FITTED)

    def only(self, kept: Sequence[int]) -> TargetSpec:
        """Return the units of a subset of genes, by indices into the panel."""
        limits, reference = self.limits, self.reference
        if limits is not None:
            limits = (tuple(limits[0][i] for i in kept), tuple(limits[1][i] for i in kept))
        if reference is not None:
            reference = replace(reference, proportions=tuple(reference.proportions[i] for i in kept))
        return replace(self, limits=limits, reference=reference)


def refuse_constant(spec: TargetSpec, n_summed: int) -> None:
    """Refuse units relative to the sum over a single gene: all spots would have the same value.

    Parameters
    ----------
    spec
        Units of a target.
    n_summed
        Number of genes in the sum.

    Raises
    ------
    ValueError
        If the target is constant.
    """
    if n_summed != 1 or not spec.is_relative:
        return
    if spec.over == "all":
        raise InvalidValueError(
            f"The target {spec.units} is the same in every spot, as the table has one gene.",
            "use a table with all genes of the assay",
        )
    raise InvalidValueError(
        f"The target {spec.units} is the same in every spot, as the panel has one gene.",
        Advice("name more genes with {}", "panel"),
        Advice("predict expression relative to all genes of the table with {}", "preset", "recommended"),
        Advice("set over='all', or the transform 'log1p', in {}", "spec"),
        "use a model with more genes",
    )


_Scores: TypeAlias = tuple[Annotated[Number, Field(ge=-1, le=1)] | None, ...]


@validated
class Reliability(ShortRepr):
    """Scores of each gene on held-out sections, with intervals.

    Parameters
    ----------
    held_out
        Kind of held-out section. ``"patient"``: from patients without a section in training. ``"section"``: other sections
        of training patients, where scores are higher than for a new patient.
    sections, patients
        Names of the scored sections, and of their patients.
    n_spots
        Number of scored spots in all sections.
    chose_epoch
        Whether the validation score of one of these sections chose the epoch of the network. If so, scores are optimistic.
    partial
        Partial correlation with Pearson residuals given sequencing depth, ``(n_genes,)``; mean over sections. ``None`` is
        undefined.
    low, high
        Ends of the 95 % bootstrap interval of ``partial``, ``(n_genes,)``. Blocks of spots are resampled, and sections if
        there are several.
    ceiling
        Noise ceiling of ``partial``, ``(n_genes,)``: the score of a perfect prediction of expression rates.

    Examples
    --------
    >>> from st_predict.specs import Reliability
    >>> scores = Reliability(
    ...     held_out="patient",
    ...     sections=("D2",),
    ...     patients=("D",),
    ...     n_spots=300,
    ...     partial=(0.4, 0.1, 0.3),
    ...     low=(0.3, -0.1, 0.1),
    ...     high=(0.5, 0.3, 0.5),
    ...     ceiling=(0.9, 0.5, 0.7),
    ... )
    >>> scores.trusted()
    [0, 2]
    >>> scores.trusted(min_score=0.35)
    [0]
    """

    held_out: HeldOut
    sections: tuple[str, ...]
    patients: tuple[str, ...]
    n_spots: Count
    chose_epoch: bool = False
    partial: _Scores
    low: _Scores
    high: _Scores
    ceiling: _Scores

    def __post_init__(self) -> None:
        lengths = [len(values) for values in (self.partial, self.low, self.high, self.ceiling)]
        if len(set(lengths)) > 1:
            raise InvalidValueError(f"partial, low, high and ceiling must have one value per gene, got {lengths}.")

    @property
    def where(self) -> str:
        """Kind of held-out section, for display."""
        return {"patient": "another patient", "section": "another section of a training patient"}[self.held_out]

    def trusted(self, *, min_score: float | None = None, reliable: bool = True) -> list[int]:
        """Return the indices of genes that pass the thresholds.

        Parameters
        ----------
        min_score
            Least partial correlation; by default no threshold.
        reliable
            Whether the lower end of the interval must be above 0.
        """
        least = -1.0 if min_score is None else min_score
        return [
            place
            for place, (score, low) in enumerate(zip(self.partial, self.low, strict=True))
            if score is not None and score >= least and (not reliable or (low is not None and low > 0))
        ]

    @property
    def n_by_chance(self) -> int:
        """Estimated number of false positives among the trusted genes.

        It is the number of genes whose interval is below 0: noise puts as many genes below 0 as above, and signal none.
        """
        below = sum(high is not None and high < 0 for high in self.high)
        return min(below, len(self.trusted()))

    def only(self, kept: Sequence[int]) -> Reliability:
        """Return the scores of a subset of genes, by indices into the panel."""
        partial, low, high, ceiling = (
            tuple(values[i] for i in kept) for values in (self.partial, self.low, self.high, self.ceiling)
        )
        return replace(self, partial=partial, low=low, high=high, ceiling=ceiling)


@validated
class ModelCard(ShortRepr):
    """Model card: training data, inputs and outputs of a set of weights.

    Parameters
    ----------
    model
        Name of the network.
    genes
        Gene panel, in the order of the outputs.
    crop
        Crops that the network reads.
    pixels
        Normalisation of the pixels.
    target
        Units of the outputs.
    hparams
        Hyper-parameters of the network.
    gene_id_type
        Kind of gene names: ``"symbol"`` or ``"ensembl"``.
    organism
        Organism of the genes, such as ``"human"``.
    training
        Notes of training: data, sections, split, seed, epochs, version of st_predict, scores.
    license
        Licence of the weights.
    citation
        Publication of the weights.
    reliability
        Scores of each gene on held-out sections, at most once per kind of section; see
        :func:`st_predict.checkpoints.add_reliability`. Empty if not measured.
    format_version
        Version of the format of the card.

    Examples
    --------
    >>> from st_predict.specs import CropSpec, LevelSpec, ModelCard
    >>> crop = CropSpec(levels=(LevelSpec(size=224),))
    >>> card = ModelCard(model="stnet", genes=("ERBB2", "GNAS"), crop=crop)
    >>> card.only([1]).genes
    ('GNAS',)
    >>> ModelCard.from_json(card.to_json()) == card
    True
    """

    model: str
    genes: tuple[str, ...]
    crop: CropSpec
    pixels: PixelSpec = field(default_factory=PixelSpec)
    target: TargetSpec = field(default_factory=TargetSpec)
    hparams: dict[str, Any] = field(default_factory=dict)
    gene_id_type: Literal["symbol", "ensembl"] = "symbol"
    organism: str = "unknown"
    training: dict[str, Any] = field(default_factory=dict)
    license: str = "unknown"
    citation: str = ""
    reliability: tuple[Reliability, ...] = ()
    format_version: Natural = FORMAT_VERSION

    def __post_init__(self) -> None:
        _check_genes(self.genes)
        limits, reference = self.target.limits, self.target.reference
        for what, values in (("limits", limits and limits[0]), ("proportions", reference and reference.proportions)):
            if values and len(values) != len(self.genes):
                raise InvalidValueError(
                    f"{what} of the target must be one per gene, got {len(values)} for {len(self.genes)} genes."
                )
        kinds = [one.held_out for one in self.reliability]
        if len(set(kinds)) < len(kinds):
            raise InvalidValueError(f"reliability must have each kind of held-out section at most once, got {kinds}.")
        for one in self.reliability:
            if len(one.partial) != len(self.genes):
                raise InvalidValueError(
                    f"reliability must have one score per gene, got {len(one.partial)} for {len(self.genes)} genes."
                )

    METADATA_KEY: ClassVar[str] = "st_predict.card"
    """Entry of the metadata of a ``.safetensors`` file that holds the card."""

    def reliability_on(self, held_out: HeldOut | None = None) -> Reliability | None:
        """Return the scores on one kind of held-out section; ``None`` if they were not measured.

        Parameters
        ----------
        held_out
            Kind of held-out section, ``"patient"`` or ``"section"``. By default ``"patient"`` if measured, else ``"section"``.
        """
        measured = {one.held_out: one for one in self.reliability}
        if held_out is not None:
            return measured.get(held_out)
        return measured.get("patient") or measured.get("section")

    def only(self, kept: Sequence[int]) -> ModelCard:
        """Return the card of a subset of genes, by indices into the panel."""
        return replace(
            self,
            genes=tuple(self.genes[i] for i in kept),
            target=self.target.only(kept),
            reliability=tuple(one.only(kept) for one in self.reliability),
        )

    def to_json(self) -> str:
        """Serialise to JSON, with sorted keys so that equal cards are equal strings."""
        values = asdict(self)
        if self.target.transform not in FITTED:  # keeps the text of older cards
            values["target"] = {k: v for k, v in values["target"].items() if k not in {"theta", "clip", "reference"}}
        values = {name: value for name, value in values.items() if value or name not in _OPTIONAL}
        return json.dumps(values, sort_keys=True, default=_plain)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card from the text of :meth:`to_json`.

        Raises
        ------
        ValueError
            If a newer version wrote the card, or the text is not a card.
        """
        try:
            values = json.loads(text, object_pairs_hook=_unique)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(f"This is not a card of st_predict, as it is not JSON ({error}).") from error
        _check_fields(values, {f.name for f in fields(cls)})
        _check_plain(values)
        try:
            return cls(**values)
        except StPredictError as error:
            raise error.about("This is not a card of st_predict.") from error

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
            If the file does not exist.
        ValueError
            If the file is not a safetensors file, or has no card that can be read.
        """
        file: Path = check("path", path, File)
        if not file.is_file():
            raise FileNotFoundError(f"Found no checkpoint {str(path)!r}.")
        metadata = _metadata(file)
        if cls.METADATA_KEY not in metadata:
            raise InvalidValueError(
                f"{str(path)!r} has no st_predict card: it was not written by st_predict.",
                "convert weights of published code with st_predict.checkpoints.import_published",
            )
        try:
            return cls.from_json(metadata[cls.METADATA_KEY])
        except StPredictError as error:
            raise InvalidValueError(
                f"{str(path)!r} cannot be used. {error.found}", *error.advice, "get the file again", "train again"
            ) from error


def _check_genes(genes: tuple[str, ...]) -> None:
    if not genes:
        raise InvalidValueError("genes must be a list of different names, got none.")
    if len(set(genes)) < len(genes):
        twice = [gene for gene, n in Counter(genes).items() if n > 1]
        raise InvalidValueError(f"genes must be a list of different names, got {twice[:5]} several times.")
    if wrong := [gene for gene in genes if "\0" in gene or any("\ud800" <= letter <= "\udfff" for letter in gene)]:
        raise InvalidValueError(f"genes must be names that a file can hold, got {wrong[:5]}.")


def _metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file from its header: 8 bytes with its length, then JSON."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, _LONGEST_HEADER):
                raise InvalidValueError("its header is longer than the file")
            return dict(json.loads(file.read(length)).get("__metadata__") or {})
    except (AttributeError, TypeError, ValueError, RecursionError) as error:  # not JSON, or JSON of another structure
        raise InvalidValueError(
            f"{str(path)!r} is not a complete safetensors file ({error}): it is damaged or of another kind.",
            "get it again",
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidValueError(f"fields are given twice: {sorted({name for name in names if names.count(name) > 1})}")
    return values


def _check_plain(values: Mapping[str, object]) -> None:
    """Refuse deeply nested values, and NaN or infinity except in the notes of training."""
    todo = [(name, value, 1) for name, value in values.items()]
    while todo:
        name, value, depth = todo.pop()
        if depth > _DEEPEST:
            raise InvalidValueError(f"The field {name!r} of the card is nested more than {_DEEPEST} deep.")
        if isinstance(value, float) and not isfinite(value) and name != "training":
            raise InvalidValueError(f"The field {name!r} of the card has the value {value}, which is not finite.")
        if isinstance(value, dict | list):
            todo += [(name, one, depth + 1) for one in (value.values() if isinstance(value, dict) else value)]


def _check_fields(values: Any, names: set[str]) -> None:
    if not isinstance(values, dict):
        raise InvalidValueError(
            f"This is not a card of st_predict, as it is not a mapping but {type(values).__name__}."
        )
    version = values.get("format_version", 0)
    if isinstance(version, int | float) and version > FORMAT_VERSION:
        raise InvalidValueError(
            f"The card has format {version}, this st_predict reads up to {FORMAT_VERSION}.", "upgrade st_predict"
        )
    if unknown := sorted(values.keys() - names):
        raise InvalidValueError(f"The card has unknown fields {unknown}: it was not written by st_predict.")
    if missing := sorted(names - values.keys() - _OPTIONAL):
        raise InvalidValueError(f"The card lacks the fields {missing}: it was not written by st_predict.")


def _plain(value: Any) -> Any:
    """Convert numbers and arrays of numpy to Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise InvalidTypeError(f"A card holds numbers, texts, lists and mappings, got {value!r}.")


_FURTHER: dict[str, Any] = {
    "organism": str,
    "license": str,
    "citation": str,
    "gene_id_type": Literal["symbol", "ensembl"],
    "training": dict[str, Any],
}


def check_card_fields(values: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of a :class:`ModelCard` that users may set.

    Parameters
    ----------
    values
        Any of the fields ``organism``, ``license``, ``citation``, ``gene_id_type`` and ``training``.

    Raises
    ------
    TypeError
        If ``values`` is not a mapping.
    ValueError
        If a field does not exist, is set by training, or has a value of another type.
    """
    if not isinstance(values, Mapping):
        raise InvalidTypeError(f"card must be a mapping from field to value, got {type(values).__name__}.")
    names = {f.name for f in fields(ModelCard)}
    if unknown := sorted(str(name) for name in values if name not in names):
        near = get_close_matches(unknown[0], _FURTHER, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidValueError(f"card has no fields {unknown}; it can set {list(_FURTHER)}.{hint}")
    if decided := sorted(values.keys() - _FURTHER.keys()):
        raise InvalidValueError(f"card cannot set {decided}, which training decides; it can set {list(_FURTHER)}.")
    return {name: check(f"card[{name!r}]", value, _FURTHER[name]) for name, value in values.items()}
