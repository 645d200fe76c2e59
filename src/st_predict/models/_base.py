"""The contract between a network and the rest of the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from st_predict.specs import PixelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from st_predict.crops import Batch
    from st_predict.specs import CropSpec

__all__ = ["ModelSpec", "SpotModel"]


class SpotModel(nn.Module):
    """A network that predicts the expression of a gene panel for each spot of a batch."""

    pixel_spec = PixelSpec()

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """Return the training objective, a scalar; by default the mean squared error."""
        if batch.target is None:
            raise ValueError("Training needs a batch with targets.")
        return F.mse_loss(self(batch), batch.target)

    def start_at(self, mean_G: Tensor) -> None:
        """Take the mean of the training targets, ``(n_genes,)``, as what to predict before anything is learned.

        Training then does not begin with hundreds of steps that only find the mean. By default nothing is done.
        """

    def finalize(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Compute what prediction needs of the training data, once, after training.

        Returns
        -------
        Hyper-parameters to add to the card (the size of a retrieval bank, say).
        """
        return {}

    def pixels(self, crop_BCHW: Tensor) -> Tensor:
        """Turn uint8 ``(n, 3, height, width)`` into the floats that the network was trained with."""
        x_BCHW = crop_BCHW.float().div(255)
        if self.pixel_spec == PixelSpec():
            return x_BCHW
        mean, std = (x_BCHW.new_tensor(v).view(1, 3, 1, 1) for v in (self.pixel_spec.mean, self.pixel_spec.std))
        return (x_BCHW - mean) / std


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Everything the package knows of a model before it is built.

    Parameters
    ----------
    name
        Name of the module, and what a user writes as ``model=``.
    summary
        One line for the table of models.
    citation
        Key in ``docs/references.bib``.
    build
        ``build(n_genes, **hparams)`` makes the network.
    crop
        Crops of the published model.
    crop_of
        ``crop_of(**hparams)``: crops that other hyper-parameters need; ``None`` if they are always ``crop``.
    pixels, target
        What goes in and what comes out, in numbers.
    scope
        What one batch holds: single spots in any order, or all spots of a section.
    hparams
        Those of the published model.
    tiny
        Those of a network that tests in a moment.
    convert
        Turns a state dict of the published code into ours.
    """

    name: str
    summary: str
    citation: str
    build: Callable[..., SpotModel]
    crop: CropSpec
    crop_of: Callable[..., CropSpec] | None = None
    pixels: PixelSpec = field(default_factory=PixelSpec)
    target: TargetSpec = field(default_factory=TargetSpec)
    scope: Literal["spot", "section"] = "spot"
    hparams: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    def crop_for(self, hparams: Mapping[str, Any]) -> CropSpec:
        """Return the crops that a network with these hyper-parameters reads."""
        return self.crop if self.crop_of is None else self.crop_of(**hparams)
