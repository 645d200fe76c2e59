"""Regression on a backbone of timm, and conversion of published weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping  # noqa: TC003  # types of hyper-parameters are read at run time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from st_predict._backbones import create_backbone, fetch_weights, n_features, weights_config, weights_notice
from st_predict._errors import InvalidValueError
from st_predict._validated import Count  # noqa: TC001  # as above
from st_predict.models._base import SpotModel
from st_predict.models._layers import Head
from st_predict.specs import IMAGENET, CropSpec, LevelSpec, PixelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from st_predict.crops import Batch

__all__ = ["TimmRegressor", "count_blocks", "crop_of", "from_timm", "pixels_of", "rename"]


class TimmRegressor(SpotModel):
    """A backbone of timm on one crop per spot, with a linear layer to the genes.

    Parameters
    ----------
    n_genes
        Size of the panel.
    arch
        Name of the architecture in timm.
    weights
        Tag of the pretrained weights in timm, such as ``"tv_in1k"``; ``None`` for random initial weights.
    size
        Side of the crop, in pixels. Transformers take multiples of their coarsest patches: 16 (ViT-B/16), 32 (Swin-T).
    arch_args
        Further arguments of the architecture.

    Raises
    ------
    ModuleNotFoundError
        If timm is not installed.
    ValueError
        If timm has no such architecture, or it does not take these arguments or crops of this size.
    """

    sized = False  #: whether a network is made for crops of one size, a multiple of its coarsest patches

    def __init__(
        self,
        n_genes: int,
        *,
        arch: str,
        weights: str | None = None,
        size: Count = 224,
        arch_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.weights = arch, weights
        self.arch_args = {**({"img_size": size} if self.sized else {}), **(arch_args or {})}
        self.backbone = create_backbone(arch, **self.arch_args)
        self._check_size(size)
        self.head = Head(n_features(self.backbone), n_genes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``."""
        return self.head(self.features(batch))

    def features(self, batch: Batch) -> Tensor:
        """Return the backbone's features of the crops, ``(n_spots, n_features)``."""
        return self.backbone(self.pixels(batch.crops[0].contiguous(memory_format=torch.channels_last)))

    def load_pretrained(self) -> None:
        """Load ``weights`` into the backbone."""
        if self.weights is not None:
            pretrained = fetch_weights(f"{self.arch}.{self.weights}", **self.arch_args)
            self.backbone.load_state_dict(pretrained.state_dict())

    @property
    def notice(self) -> str:
        """Origin and licence of ``weights``; see :attr:`~st_predict.models.SpotModel.notice`."""
        return weights_notice(self.weights and f"{self.arch}.{self.weights}")

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        self.head.start_at(mean_G)

    def _check_size(self, size: int) -> None:
        stages: Any = self.backbone.feature_info
        coarsest = stages[-1]["reduction"]  # stride of the last stage, in pixels
        if size < coarsest:
            raise InvalidValueError(f"size must be at least {coarsest} for {self.arch}, got {size}.")
        if self.sized and size % coarsest:
            below = size // coarsest * coarsest
            raise InvalidValueError(
                f"size must be a multiple of {coarsest} for {self.arch}, got {size}; the nearest: "
                f"{[below, below + coarsest]}."
            )


def crop_of(*, size: int = 224, **_: Any) -> CropSpec:
    """One crop at the finest level."""
    return CropSpec(levels=(LevelSpec(size=size),))


def pixels_of(*, arch: str = "", weights: str | None = None, **_: Any) -> PixelSpec:
    """Pixel normalisation of the pretrained weights; ImageNet's for random weights."""
    if weights is None:
        return IMAGENET
    config = weights_config(f"{arch}.{weights}")
    return PixelSpec(mean=tuple(config.mean), std=tuple(config.std))


# State dicts in published files.


def rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename tensors from torchvision to timm; names of timm stay.

    Parameters
    ----------
    state
        Tensors by name, also with the prefix ``module.`` of networks trained on several GPUs.
    names
        Regular expressions for parts of a name, and their replacements, applied in order. Tensors whose name becomes empty
        are left out.
    """
    renamed = {}
    for name, tensor in state.items():
        new = name.removeprefix("module.")
        for pattern, replacement in names.items():
            new = re.sub(pattern, replacement, new)
        if new:
            renamed[new] = tensor
    return renamed


def count_blocks(names: Iterable[str], pattern: str, *, stages: int) -> list[int] | None:
    """Count the blocks of each stage; ``None`` if the number of stages differs.

    The pattern matches the beginning of a name. Its last group is the block, earlier groups are the stage.
    """
    blocks = {match.groups() for name in names if (match := re.match(pattern, name))}
    counts = Counter(groups[:-1] for groups in blocks)
    return [counts[stage] for stage in sorted(counts)] if len(counts) == stages else None


def from_timm(state: Mapping[str, Tensor], *, head: str, arch: str, **arguments: Any) -> dict[str, Tensor]:
    """Convert a state dict of timm to :class:`TimmRegressor`.

    Parameters
    ----------
    state
        Tensors by name.
    head
        Name of the last layer in timm.
    arch, arguments
        Architecture and its arguments; ``None`` for timm's default.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    given = ((name, tuple(value) if isinstance(value, list) else value) for name, value in arguments.items())
    names = {name: f"backbone.{name}" for name in _names_of(arch, *given)}
    names |= {f"{head}.{part}": f"head.{part}" for part in ("weight", "bias")}
    counters = {
        name: torch.tensor(0) for name in names if name.endswith(".num_batches_tracked")
    }  # missing in old files
    theirs = {**counters, **state}
    missing, unknown = sorted(names.keys() - theirs.keys()), sorted(theirs.keys() - names.keys())
    if missing or unknown:
        raise InvalidValueError(
            f"Not a state dict of timm's {arch}: missing {_some(missing)}, unknown {_some(unknown)}."
        )
    return {ours: theirs[name] for name, ours in names.items()}


@lru_cache(maxsize=32)  # an unknown file is compared with all models
def _names_of(arch: str, *arguments: tuple[str, Any]) -> tuple[str, ...]:
    with torch.device("meta"):
        return tuple(create_backbone(arch, **dict(arguments)).state_dict())


def _some(names: list[str]) -> str:
    return f"{names[:5]}" if len(names) <= 5 else f"{names[:5]} and {len(names) - 5} more"
