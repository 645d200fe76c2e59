"""M2OST on tokens: feature maps of a convolutional backbone in place of pixel patches.

An extension of st_predict, not part of the published method :cite:p:`Wang2025`; hyper-parameter ``tokens`` of
:class:`st_predict.models.m2ost.M2OSTConfig`.

The crop of each level goes through the same backbone once. Where DPE halves the patches of the central region, the centre
is taken from the map of an earlier stage, with half the stride: a token covers as many pixels as the patch that it
replaces. Number, order and positions of the tokens therefore equal patches with sides of ``stage`` pixels. After the class
token, level ``k`` has the central ``size / 2**k`` pixels at stride ``stage / 2**k``, ..., the whole crop at stride
``stage``, ``(size / stage)**2`` tokens each, in reading order. A token's receptive field is wider than its stride, so tokens
of the centre also see pixels around it. Earlier stages have fewer channels and simpler features.

Shapes: B spots, C colours or channels of a map, S pixels per side, P places per side of a map, N tokens per level, D channels
per level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from st_predict._backbones import create_backbone, fetch_weights, import_timm, weights_notice
from st_predict._errors import Advice, InvalidValueError
from st_predict._imagenet import ARCH, LICENSE, NAME, NOTICE, PIXELS, SOURCE, load_efficientnet_lite0
from st_predict.models import _timm
from st_predict.models._levels import centre
from st_predict.specs import PixelSpec

if TYPE_CHECKING:
    from st_predict.models._levels import Levels

__all__ = ["TokenEmbedding", "check_tokens", "extension_of", "pixels_of"]


def check_tokens(tokens: str | None, *, stage: int, tune: bool, size: int, halvings: int) -> None:
    """Refuse sizes that feature maps cannot have, and backbone settings without a backbone.

    Raises
    ------
    ValueError
        If ``size`` or ``stage`` do not fit, or ``stage`` or ``tune`` are set without ``tokens``.
    """
    if tokens is None:
        if tune or stage != 16:
            raise InvalidValueError(
                f"stage and tune are only for tokens of a backbone, got stage {stage} and tune {tune} with tokens None.",
                Advice("name a backbone as tokens in {}", "hparams"),
            )
        return
    if ":" in tokens:
        raise InvalidValueError(f"tokens must be {NAME!r} or 'architecture.tag' of timm's own weights, got {tokens!r}.")
    if stage % 2**halvings:
        raise InvalidValueError(
            f"stage must be a multiple of {2**halvings}, to be halved {halvings} times for level {halvings}; got {stage}.",
            Advice("set dpe to False in {}", "hparams"),
        )
    # The border around the centre must be a whole number of places of each map.
    step = 2 * stage if halvings else stage
    below = size // step * step
    if size != below:
        nearest = [good for good in (below, below + step) if good]
        raise InvalidValueError(f"size must be a multiple of {step}, got {size}; the nearest: {nearest}.")


def pixels_of(*, tokens: str | None = None, **_: Any) -> PixelSpec:
    """Pixel normalisation of the backbone; without a backbone, numbers from 0 to 1."""
    if tokens is None:
        return PixelSpec()
    arch, tag = _parts(tokens)
    return PIXELS if tokens == NAME else _timm.pixels_of(arch=arch, weights=tag or None)


def extension_of(*, tokens: str | None = None, tune: bool = False, **_: Any) -> str:
    """Note for the card; empty without a backbone."""
    if tokens is None:
        return ""
    how = "fine-tuned" if tune else "frozen"
    source = f" ({SOURCE}, {LICENSE})" if tokens == NAME else ""
    return f"Tokens are feature maps of {tokens}{source}, {how}: an extension of st_predict, not part of the published M2OST."


def _parts(tokens: str) -> tuple[str, str]:
    """Architecture and tag; the tag may be empty."""
    arch, _, tag = tokens.partition(".")
    return arch, tag


class TokenEmbedding(nn.Module):
    """Tokens from feature maps, each projected by layer norm and a linear layer, after a class token.

    Parameters
    ----------
    tokens
        Backbone: ``"efficientnet_lite0"``, or an architecture of timm with or without the tag of its weights.
    dim
        Channels of a token.
    size
        Side of a crop, in pixels.
    stage
        Stride of the coarsest maps, in pixels.
    halvings
        Number of times the stride is halved in the centre of each level. If any is above 0, levels share a projection per
        stride, like the patch MLPs of DPE; else each level has its own.
    tune
        Whether the backbone is fine-tuned.
    """

    def __init__(self, tokens: str, *, dim: int, size: int, stage: int, halvings: tuple[int, ...], tune: bool) -> None:
        super().__init__()
        self.halvings, self.shared = halvings, max(halvings) > 0
        strides = [stage >> j for j in range(max(halvings) + 1)]
        self.maps = FeatureMaps(tokens, strides=strides, size=size, tune=tune)
        sources = range(len(strides)) if self.shared else [0] * len(halvings)
        channels = [self.maps.channels[j] for j in sources]
        self.projections = nn.ModuleList(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, dim)) for c in channels)
        self.side = size // stage
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        n_tokens = [self.side**2 * (k + 1) for k in halvings]
        self.positions = nn.ParameterList(torch.randn(1, n + 1, dim) for n in n_tokens)

    def forward(self, crops: list[Tensor]) -> Levels:
        """Tokens of each level, ``(B, N, D)``, class token first."""
        return [
            torch.cat([self.cls.expand(len(x_BCSS), -1, -1), *self._regions(i, x_BCSS)], 1) + positions
            for i, (x_BCSS, positions) in enumerate(zip(crops, self.positions, strict=True))
        ]

    def _regions(self, level: int, x_BCSS: Tensor) -> list[Tensor]:
        """Tokens from the central region at the smallest stride to the whole crop at the largest."""
        maps = self.maps(x_BCSS, self.halvings[level] + 1)
        return [
            self.projections[j if self.shared else level](centre(maps[j], self.side).flatten(2).mT)
            for j in range(self.halvings[level], -1, -1)
        ]


class FeatureMaps(nn.Module):
    """A backbone of timm, without the layers behind the last feature map in use.

    The backbone stays in evaluation mode in training: BatchNorm uses stored statistics, so the spots of a batch do not
    depend on each other and a missing level has no effect. ``tune=False`` computes it without gradients.

    Parameters
    ----------
    tokens
        Backbone, as for :class:`TokenEmbedding`.
    strides
        Strides of the maps, in pixels, largest first.
    size
        Side of a crop, in pixels.
    tune
        Whether its weights are fine-tuned, including BatchNorm's.

    Raises
    ------
    ValueError
        If the architecture does not exist, has no feature maps with these strides, reads crops of another size, or would be
        frozen with random weights.
    """

    def __init__(self, tokens: str, *, strides: list[int], size: int, tune: bool) -> None:
        super().__init__()
        self.tokens, self.strides, self.tune = tokens, strides, tune
        backbone: Any = create_backbone(ARCH if tokens == NAME else _parts(tokens)[0])
        _check_size(tokens, backbone, size)
        if not tune:
            _refuse_random(tokens)
        stages = _stages(tokens, backbone, strides)
        self.places = [place for place, _ in stages]
        self.channels = [channels for _, channels in stages]
        backbone.prune_intermediate_layers(sorted(self.places), prune_norm=True, prune_head=True)
        self.backbone = backbone.requires_grad_(tune).eval()

    def train(self, mode: bool = True) -> FeatureMaps:  # noqa: FBT001, FBT002  # the signature of torch
        """Switch modes; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x_BCSS: Tensor, n_maps: int) -> list[Tensor]:
        """Maps of the first ``n_maps`` strides, ``(B, C, P, P)`` each, with ``P`` the side of the crop over the stride.

        Raises
        ------
        ValueError
            If a map has another shape.
        """
        places = self.places[:n_maps]
        with torch.set_grad_enabled(self.tune and torch.is_grad_enabled()):
            found = self.backbone.forward_intermediates(
                x_BCSS.contiguous(memory_format=torch.channels_last),
                indices=sorted(places),
                stop_early=True,
                intermediates_only=True,
            )
        maps = [found[sorted(places).index(place)] for place in places]
        size = x_BCSS.shape[-1]
        expected = [(len(x_BCSS), c, *[size // s] * 2) for c, s in zip(self.channels, self.strides, strict=True)]
        if (shapes := [tuple(map_BCPP.shape) for map_BCPP in maps]) != expected[:n_maps]:
            raise InvalidValueError(
                f"Feature maps of {self.tokens!r} have the shapes {shapes} for crops of {size} px; strides of "
                f"{self.strides[:n_maps]} px need {expected[:n_maps]}."
            )
        return maps

    def load_pretrained(self) -> None:
        """Load the weights that ``tokens`` names; see :meth:`st_predict.models.SpotModel.load_pretrained`."""
        if self.tokens == NAME:
            theirs = load_efficientnet_lite0().state_dict()
        elif "." in self.tokens:
            instead = f"use tokens {NAME!r}, whose weights are in a Python package"
            theirs = fetch_weights(self.tokens, instead=instead).state_dict()
        else:
            return
        self.backbone.load_state_dict({name: theirs[name] for name in self.backbone.state_dict()})

    @property
    def notice(self) -> str:
        """Origin and licence of the weights; empty without a tag."""
        if self.tokens != NAME:
            return weights_notice(self.tokens)
        return f"{NOTICE.removesuffix('.')}, and they were trained further." if self.tune else NOTICE


def _stages(tokens: str, backbone: Any, strides: list[int]) -> list[tuple[int, int]]:
    """Index among the maps, and number of channels, of the last stage per stride."""
    parts = "feature_info", "forward_intermediates", "prune_intermediate_layers"
    if not all(hasattr(backbone, part) for part in parts):
        raise InvalidValueError(f"{tokens!r} has no feature maps in timm; use another backbone, such as {NAME!r}.")
    stages = {stage["reduction"]: (place, stage["num_chs"]) for place, stage in enumerate(backbone.feature_info)}
    if missing := [stride for stride in strides if stride not in stages]:
        raise InvalidValueError(
            f"{tokens!r} has feature maps with strides of {sorted(stages)} px, and none of {missing}. The largest stride is stage, "
            f"{strides[0]}; it is halved for the centre of each coarse level.",
            Advice("set stage, or dpe to False, in {}", "hparams"),
        )
    return [stages[stride] for stride in strides]


def _refuse_random(tokens: str) -> None:
    """Refuse a backbone whose weights are not named."""
    arch, tag = _parts(tokens)
    if not tag and tokens != NAME:
        known = [name.partition(".")[2] for name in import_timm().list_pretrained(f"{arch}.*")]
        raise InvalidValueError(
            f"tokens {tokens!r} names no weights, and frozen random ones learn nothing; timm has {known}.",
            Advice("add one of these, as in 'resnet18.tv_in1k', or set tune to True in {}", "hparams"),
        )


def _check_size(tokens: str, backbone: Any, size: int) -> None:
    known = backbone.pretrained_cfg if hasattr(backbone, "pretrained_cfg") else {}
    if known.get("fixed_input_size") and (only := known["input_size"][-1]) != size:
        raise InvalidValueError(
            f"{tokens!r} reads crops of {only} px only, got size {size}.",
            Advice(f"set size to {only} in {{}}", "hparams"),
        )
