"""Description of an encoder before its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal

from torch import Tensor, nn

from st_predict._backbones import create_backbone
from st_predict._validated import Count, Flag, Natural, Positive, validated
from st_predict.specs import CropSpec, LevelSpec, PixelSpec

__all__ = ["HUB", "EncoderSpec", "square_crop"]

HUB = "hf-hub:"


@validated
class EncoderSpec:
    """Everything the package knows of an encoder before its weights are there.

    Parameters
    ----------
    name
        What a user writes as ``encoder=``.
    crop, pixels
        What goes in.
    source
        Where the weights come from, as timm names it: ``"hf-hub:MahmoodLab/UNI"``, ``"resnet50.tv_in1k"``. Empty for an
        encoder of the user's own.
    arch, arch_args
        Architecture in timm that the weights of a hub are loaded into; where it is empty, ``source`` says it.
    norm_eps
        What layer normalisation adds to the variance; ``None`` leaves what ``arch`` has.
    pool
        ``"timm"`` takes the output of the network; ``"cls_mean"`` the class token followed by the mean of the patch tokens,
        without register tokens.
    n_features
        Length of the output; ``None`` if only the loaded network tells.
    float32
        Whether it computes in float32, whatever precision is asked for.
    convert
        Turns the published state dict into one of ``arch``.
    license, gated, citation
        Licence, gate and citation of the weights; ``gated`` ones need terms that are accepted on the hub.
    features
        ``"head"`` is the output of the network; ``"stages"`` the mean and the standard deviation of the feature maps of its last four
        stages.
    fields
        Sides of several fields of view, in pixels at the resolution of ``crop``, smallest first; empty for that of ``crop``.
    input_size
        Side of the image that the network sees, to which each of ``fields`` is resized; ``None`` for that of ``crop``.
    neighbours
        Number of the nearest spots whose mean features are joined to those of a spot.
    standardize
        Whether each feature has mean 0 and standard deviation 1 over the spots of a section.
    carried
        Whether a checkpoint of a model on these features holds the weights: they are small, and their licence allows it.
    notes
        Properties that no public source confirms, or on which sources differ. Not part of the features' record.
    """

    name: str
    crop: CropSpec
    pixels: PixelSpec = field(default_factory=PixelSpec)
    source: str = ""
    arch: str = ""
    arch_args: Mapping[str, Any] = field(default_factory=dict)
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
        """Attribution for copies of the weights: origin, licence and changes."""
        origin = ", ".join(filter(None, (self.source, self.license, self.citation)))
        return f"Contains the encoder {self.name}: {origin}. Changes: tensors were renamed and rounded to float16."

    @property
    def url(self) -> str:
        """Page of the weights on the hub; empty if they are on none."""
        return f"https://huggingface.co/{self.source.removeprefix(HUB)}" if self.source.startswith(HUB) else ""

    def build(self) -> nn.Module:
        """Make the network of ``arch``, or of the name in timm, with random weights.

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
    """Return a crop of one level, ``size`` pixels wide, ``mpp`` um per pixel."""
    return CropSpec(levels=(LevelSpec(size=size),), mpp=mpp)
