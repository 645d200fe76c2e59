"""Device, precision and batch size of computations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_predict._runtime._device import pick_device, pick_precision
from st_predict._validated import Count, Device, validated

if TYPE_CHECKING:
    import torch

__all__ = ["Compute"]


@validated
class Compute:
    """Device, precision and batch size of a computation.

    Parameters
    ----------
    device
        Name of the device; ``"auto"`` for the first GPU, else the CPU.
    precision
        Precision; ``"auto"`` for bfloat16 if the device supports it natively.
    batch_size
        Number of spots at a time; ``None`` for a number that suits the device.
    """

    device: Device = "auto"
    precision: str = "auto"
    batch_size: Count | None = None

    def __post_init__(self) -> None:
        pick_precision(self.precision, pick_device(self.device))

    @property
    def place(self) -> torch.device:
        """Device."""
        return pick_device(self.device)
