"""Specification of an encoder, without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Literal

from torch import Tensor, nn

from st_predict._backbones import create_backbone
from st_predict._validated import Count, Flag, Natural, Positive, validated
from st_predict.specs import CropSpec, LevelSpec, PixelSpec

__all__ = ["HUB", "EncoderSpec", "square_crop"]

HUB = "hf-hub:"


@validated
class EncoderSpec:
    """Specification of an encoder, without weights.

    Parameters
    ----------
    name
        Name that users write as ``encoder=``.
    crop, pixels
        Crop that the encoder reads, and normalisation of its pixels.
    source
        Source of the weights in timm's notation: ``"hf-hub:MahmoodLab/UNI"``, ``"resnet50.tv_in1k"``. Empty for the user's own
        encoder.
    arch, arch_args
        Architecture in timm for weights of a hub; if empty, ``source`` names it.
    norm_eps
        Epsilon of layer normalisation; ``None`` for the default of ``arch``.
    pool
        Pooling. ``"timm"``: output of the network. ``"cls_mean"``: class token followed by the mean of the patch tokens,
        without register tokens.
    n_features
        Length of the output; ``None`` if only the loaded network knows it.
    float32
        Whether to always compute in float32, whatever the requested precision.
    convert
        Function that converts the published state dict to ``arch``.
    license, gated, citation
        Licence of the weights, whether their terms must be accepted on the hub, and their citation.
    features
        Layer to read. ``"head"``: output of the network. ``"stages"``: mean and standard deviation of the feature maps of its
        last four stages.
    fields
        Sides of several fields of view, in pixels at the resolution of ``crop``, smallest first; empty for the side of ``crop``.
    input_size
        Side of the network's input, in pixels, to which each of ``fields`` is resized; ``None`` for the side of ``crop``.
    neighbours
        Number of nearest spots whose mean features are appended to a spot's own.
    standardize
        Whether each feature is standardised over the spots of a section.
    carried
        Whether checkpoints of models on these features hold the weights: they are small, and their licence allows it.
    notes
        Properties that no public source confirms, or on which sources differ. Not part of the features' record.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.encoders.get_encoder("phikon-v2")
    >>> spec.source, spec.license
    ('hf-hub:owkin/phikon-v2', 'Owkin, non-commercial')
    >>> spec.url
    'https://huggingface.co/owkin/phikon-v2'
    """

    name: str
    crop: CropSpec
    pixels: PixelSpec = field(default_factory=PixelSpec)
    source: str = ""
    arch: str = ""
    arch_args: Mapping[str, object] = field(default_factory=dict)
    norm_eps: Positive | None = None
    pool: Literal["timm", "cls_mean"] = "timm"
    n_features: Count | None = None
    float32: bool = False
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    license: str = "unknown"
    gated: bool = False
    citation: str = ""
    features: Literal["head", "stages"] = "head"
    fields: tuple[Count, ...] = ()
    input_size: Count | None = None
    neighbours: Natural = 0
    standardize: Flag = False
    carried: Flag = False
    notes: str = ""

    @property
    def notice(self) -> str:
        """Attribution for copies of the weights, with origin, licence and changes."""
        origin = ", ".join(filter(None, (self.source, self.license, self.citation)))
        return f"Contains the encoder {self.name}: {origin}. Changes: tensors were renamed and rounded to float16."

    @property
    def url(self) -> str:
        """Page of the weights on the hub; empty if they are elsewhere."""
        return f"https://huggingface.co/{self.source.removeprefix(HUB)}" if self.source.startswith(HUB) else ""

    def build(self) -> nn.Module:
        """Build the network of ``arch``, or of the name in timm, with random weights.

        Raises
        ------
        ModuleNotFoundError
            If timm is not installed.
        """
        backbone = create_backbone(self.arch or self.source.partition(".")[0], **self.arch_args)
        for layer in backbone.modules():
            if isinstance(layer, nn.LayerNorm) and self.norm_eps is not None:
                layer.eps = self.norm_eps
        return backbone


def square_crop(size: int, mpp: float | None = None) -> CropSpec:
    """Crop with one level, ``size`` pixels wide, ``mpp`` micrometres per pixel."""
    return CropSpec(levels=(LevelSpec(size=size),), mpp=mpp)
