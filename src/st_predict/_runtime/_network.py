"""Interface of networks for inference: pixels, forward pass, samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from st_predict._errors import InvalidValueError
from st_predict.specs import PixelSpec

if TYPE_CHECKING:
    from st_predict.crops import Batch

__all__ = ["Network"]


_UNSCALED = PixelSpec()


class Network(nn.Module):
    """Base class of networks with one row of output per spot."""

    _scale_C11: Tensor
    _shift_C11: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("_scale_C11", "_shift_C11"):
            self.register_buffer(name, torch.empty(3, 1, 1), persistent=False)
        self.pixel_spec = PixelSpec()

    @property
    def pixel_spec(self) -> PixelSpec:
        """Normalisation of 8-bit pixels by :meth:`pixels`; set from the card."""
        return self._pixel_spec

    @pixel_spec.setter
    def pixel_spec(self, spec: PixelSpec) -> None:
        self._pixel_spec = spec
        for buffer, values in (
            (self._scale_C11, [1 / (255 * std) for std in spec.std]),
            (self._shift_C11, [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)]),
        ):
            buffer.copy_(torch.tensor(values).view(3, 1, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Return one row per spot: predictions ``(n_spots, n_genes)``, or features."""
        raise NotImplementedError

    def sample(self, batch: Batch, *, seed: int) -> Tensor:
        """Draw a random prediction, ``(n_spots, n_genes)``; by default by Monte Carlo dropout :cite:p:`Gal2016`.

        Dropout masks depend on the seed, the first spot of the batch, and the place of a spot in the batch.

        Raises
        ------
        ValueError
            If the network has no dropout.
        """
        dropping = self.dropout_layers()
        cuda = [batch.index.device] if batch.index.device.type == "cuda" else []
        before = [m.training for m in dropping]
        with torch.random.fork_rng(cuda):
            first = int(batch.index[0]) if len(batch) else 0  # different masks for the parts of a section
            torch.manual_seed((seed + 1_000_003 * first) % 2**63)  # noqa: TID251  # dropout knows no other generator
            try:
                for module in dropping:
                    module.train()
                return self(batch)
            finally:
                for module, was in zip(dropping, before, strict=True):
                    module.train(was)

    def dropout_layers(self) -> list[nn.Module]:
        """Return the dropout layers.

        Raises
        ------
        ValueError
            If the network has no dropout.
        """
        dropping: list[nn.Module] = [m for m in self.modules() if isinstance(m, _DropoutNd) and m.p > 0]
        if not dropping:
            raise InvalidValueError(
                f"{type(self).__name__} has no dropout, so all its samples are the same.",
                "train it with a dropout rate above 0, if it has that hyper-parameter",
                "predict with an ensemble of checkpoints",
            )
        return dropping

    def pixels(self, crop_BCHW: Tensor) -> Tensor:
        """Normalise uint8 pixels ``(n, 3, height, width)`` as in training."""
        x_BCHW = _by_colour(crop_BCHW)
        if self.pixel_spec == _UNSCALED:
            return x_BCHW.div(255)
        return torch.addcmul(self._shift_C11, x_BCHW, self._scale_C11)


def _by_colour(crop_BCHW: Tensor) -> Tensor:
    """Convert to float32, channels first in memory: sums and convolutions depend on the memory layout."""
    if crop_BCHW.is_contiguous(memory_format=torch.channels_last):
        return crop_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
    return crop_BCHW.float()
