"""Precision, as Lightning calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from st_predict.models import _device

if TYPE_CHECKING:
    import torch

__all__ = ["pick_precision"]


def pick_precision(precision: str, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """Lightning's name of the precision to train in; see :func:`st_predict.models._device.pick_precision`."""
    return "bf16-mixed" if _device.pick_precision(precision, device) == "bfloat16" else "32-true"
