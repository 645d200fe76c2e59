"""Where a network computes, in which precision, and so many spots at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_predict._runtime._device import pick_device, pick_precision
from st_predict._validated import Count, Device, validated

if TYPE_CHECKING:
    import torch

__all__ = ["Compute"]


@validated
class Compute:
    """How networks are computed.

    Parameters
    ----------
    device
        Name of the device; ``"auto"`` takes the first GPU if there is one.
    precision
        ``"auto"`` takes bfloat16 where the device computes in it natively.
    batch_size
        Number of spots at a time; ``None`` for what suits the device.
    """

    device: Device = "auto"
    precision: str = "auto"
    batch_size: Count | None = None

    def __post_init__(self) -> None:
        pick_precision(self.precision, pick_device(self.device))

    @property
    def place(self) -> torch.device:
        """The device."""
        return pick_device(self.device)
