"""Intermediate features of a backbone of timm: statistics of the feature maps of its stages."""
# Shapes: B spots, C channels, H W map, D features.

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FieldsOfView", "Stages", "length_of_stages"]

_N_STAGES = 4


class Stages(nn.Module):
    """Mean and standard deviation over the image of the feature maps of the last four stages of a backbone.

    A stage ends where the maps become coarser. Transformers, whose maps keep their size, are read at the end of each quarter of
    their blocks.

    Parameters
    ----------
    backbone
        Network of timm.

    Raises
    ------
    ValueError
        If timm does not give the feature maps of this architecture.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.indices = _ends_of_stages(backbone)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the means, then the standard deviations, of each stage, finest first: ``(n_spots, n_features)``."""
        backbone: Any = self.backbone
        maps = backbone.forward_intermediates(
            x_BCHW, indices=self.indices, intermediates_only=True, output_fmt="NCHW", norm=False
        )
        return torch.cat([_statistics(map_BCHW.float()) for map_BCHW in maps], dim=1)


def _statistics(map_BCHW: Tensor) -> Tensor:
    std_BC, mean_BC = torch.std_mean(map_BCHW, dim=(2, 3), correction=0)
    return torch.cat([mean_BC, std_BC], dim=1)


def _ends_of_stages(backbone: nn.Module) -> list[int]:
    info: Any = getattr(backbone, "feature_info", None) or ()
    reductions = [stage["reduction"] for stage in info]
    if not reductions or not hasattr(backbone, "forward_intermediates"):
        raise InvalidValueError(
            f"timm gives no feature maps of {type(backbone).__name__}.",
            "read the output of the network, features 'head'",
        )
    if len(set(reductions)) == 1:
        n, parts = len(reductions), min(_N_STAGES, len(reductions))
        return [n * (part + 1) // parts - 1 for part in range(parts)]
    ends = [i for i, (this, following) in enumerate(pairwise(reductions)) if this != following]
    return [*ends, len(reductions) - 1][-_N_STAGES:]


def length_of_stages(build: Callable[[], nn.Module], size: int) -> int:
    """Return the number of features of :class:`Stages`, found without memory.

    Parameters
    ----------
    build
        Function that builds the backbone.
    size
        Side of the crop, in pixels.

    Raises
    ------
    ValueError
        If timm does not give the feature maps of this architecture.
    """
    with torch.device("meta"):
        backbone = build().eval()
        try:
            return int(Stages(backbone)(torch.zeros(1, 3, size, size)).shape[1])
        except (NotImplementedError, RuntimeError, TypeError, AttributeError, AssertionError) as error:
            raise InvalidValueError(
                f"timm gives no feature maps of {type(backbone).__name__} ({type(error).__name__}: {error}).",
                "read the output of the network, features 'head'",
            ) from error


class FieldsOfView(nn.Module):
    """Features of several fields of view around a spot, joined, smallest field first.

    Parameters
    ----------
    backbone
        Network for one field of view.
    size
        Side of its input, in pixels; smaller fields are enlarged to it.
    """

    def __init__(self, backbone: nn.Module, size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.size = size

    def forward(self, *fields: Tensor) -> Tensor:
        """Return the joined features, ``(n_spots, n_fields * n_features)``."""
        return torch.cat([self.backbone(self._enlarged(field_BCHW)) for field_BCHW in fields], dim=1)

    def _enlarged(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.shape[-1] == self.size:
            return x_BCHW
        return F.interpolate(x_BCHW, size=(self.size, self.size), mode="bilinear", align_corners=False)
