"""The contract between a network and the rest of the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from st_predict.specs import PixelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from st_predict.crops import Batch
    from st_predict.specs import CropSpec

__all__ = ["ModelSpec", "Preset", "SpotModel"]


class SpotModel(nn.Module):
    """A network that predicts the expression of a gene panel for each spot of a batch."""

    _scale_C11: Tensor
    _shift_C11: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("_scale_C11", "_shift_C11"):
            self.register_buffer(name, torch.empty(3, 1, 1), persistent=False)
        self.pixel_spec = PixelSpec()

    @property
    def pixel_spec(self) -> PixelSpec:
        """How :meth:`pixels` turns 8-bit pixels into numbers; set from the card."""
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
        """Return the prediction, ``(n_spots, n_genes)``."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """Return the training objective, a scalar; by default the mean squared error."""
        if batch.target is None:
            raise ValueError("Training needs a batch with targets.")
        return F.mse_loss(self(batch), batch.target)

    def load_pretrained(self) -> None:
        """Load the weights of a backbone that the hyper-parameters ask for, once, before training. By default none.

        Building a network never loads any: those of a checkpoint come from the checkpoint.
        """

    def start_at(self, mean_G: Tensor) -> None:
        """Take the mean of the training targets, ``(n_genes,)``, as what to predict before anything is learned.

        Training then does not begin with hundreds of steps that only find the mean. By default nothing is done.
        """

    def finalize(self, batches: Iterable[Batch]) -> None:
        """Compute what prediction needs of the training data: after training, and before each validation.

        Parameters
        ----------
        batches
            All training spots, with targets, not augmented. May be gone through several times.
        """

    def sample(self, batch: Batch, *, seed: int) -> Tensor:
        """Draw a prediction at random, ``(n_spots, n_genes)``: by default with dropout left on :cite:p:`Gal2016`.

        What is dropped depends on the seed, the first spot of the batch and the place of a spot in it.

        Raises
        ------
        ValueError
            If the network has no dropout.
        """
        dropping = self.dropout_layers()
        cuda = [batch.index.device] if batch.index.device.type == "cuda" else []
        before = [m.training for m in dropping]
        with torch.random.fork_rng(cuda):
            first = int(batch.index[0]) if len(batch) else 0  # parts of a section are drawn apart
            torch.manual_seed((seed + 1_000_003 * first) % 2**63)  # noqa: TID251  # dropout knows no other generator
            try:
                for module in dropping:
                    module.train()
                return self(batch)
            finally:
                for module, was in zip(dropping, before, strict=True):
                    module.train(was)

    def dropout_layers(self) -> list[nn.Module]:
        """Return the layers that drop values at random.

        Raises
        ------
        ValueError
            If there are none.
        """
        dropping: list[nn.Module] = [m for m in self.modules() if isinstance(m, _DropoutNd) and m.p > 0]
        if not dropping:
            raise ValueError(
                f"{type(self).__name__} has no dropout, so all its predictions are the same. Train it with a dropout rate above "
                "0, if it has one among its hyper-parameters, or predict with several checkpoints."
            )
        return dropping

    def pixels(self, crop_BCHW: Tensor) -> Tensor:
        """Turn uint8 ``(n, 3, height, width)`` into the floats that the network was trained with."""
        if self.pixel_spec == PixelSpec():
            return crop_BCHW.float().div(255)
        return torch.addcmul(self._shift_C11, crop_BCHW.float(), self._scale_C11)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A way to train a model: what differs from the defaults, which are the setting of the M2OST paper for all models.

    Parameters
    ----------
    training
        Fields of :class:`st_predict.tl.TrainConfig`.
    hparams
        Hyper-parameters of the network.
    target
        Units of the target, if they are others than those of the model's ``SPEC``.
    panel
        Rule of :func:`st_predict.pp.select_panel` by which genes are chosen.
    notes
        What of the publication is not reproduced, in a sentence.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    hparams: Mapping[str, Any] = field(default_factory=dict)
    target: TargetSpec | None = None
    panel: Literal["m2ost", "mean", "hvg"] = "m2ost"
    notes: str = ""


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
    license
        Of the published code, in a word, and where that is: ``"MIT (github.com/...)"``. Ours is written from the paper.
    family
        ``"spot"`` and ``"section"`` are networks that see a spot, or all of a section at once; ``"dense"`` predicts the cells
        of a map, of which a spot is the mean; ``"generative"`` draws samples; ``"retrieval"`` answers with measured spots; a
        ``"baseline"`` is what the others have to beat.
    build
        ``build(n_genes, **hparams)`` makes the network, with random weights.
    crop
        Crops of the published model.
    crop_of
        ``crop_of(**hparams)``: crops that other hyper-parameters need; ``None`` if they are always ``crop``.
    pixels, target
        What goes in and what comes out, in numbers.
    pixels_of
        ``pixels_of(**hparams)``: the same for ``pixels``.
    inputs
        What the network reads of a batch: ``"crops"``, or ``"features"``, which the encoder makes of crops that the
        hyper-parameter ``encoder`` names (:func:`st_predict.tl.embed`), or ``"cells"``, the cells of a dense map that a spot
        covers.
    scope
        What one batch holds: single spots in any order, or all spots of a section.
    needs
        What else the network reads of a batch, without which it can't do: ``"grid"`` and ``"xy_um"``, where the spots are, and
        ``"counts"``, in training.
    reads_context
        Whether it can read the counts of some spots when it predicts the others.
    symmetries
        Of how many of the 8 symmetries of the crops the prediction is the mean.
    closed_form
        Whether :meth:`SpotModel.finalize` alone trains it, without gradients.
    at_prediction
        Hyper-parameters that may change after training, as weights do not depend on them.
    hparams
        Those of the published model.
    original
        How the publication of the model trained it.
    tiny
        Those of a network that tests in a moment.
    convert
        Turns a state dict of the published code into ours.
    """

    name: str
    summary: str
    citation: str
    license: str
    build: Callable[..., SpotModel]
    crop: CropSpec
    family: Literal["spot", "section", "dense", "generative", "retrieval", "baseline"] = "spot"
    crop_of: Callable[..., CropSpec] | None = None
    pixels: PixelSpec = field(default_factory=PixelSpec)
    pixels_of: Callable[..., PixelSpec] | None = None
    target: TargetSpec = field(default_factory=TargetSpec)
    inputs: Literal["crops", "features", "cells"] = "crops"
    scope: Literal["spot", "section"] = "spot"
    needs: tuple[Literal["grid", "xy_um", "counts"], ...] = ()
    reads_context: bool = False
    symmetries: Literal[1, 8] = 1
    closed_form: bool = False
    at_prediction: tuple[str, ...] = ()
    hparams: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    original: Preset = field(default_factory=Preset)
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    def crop_for(self, hparams: Mapping[str, Any]) -> CropSpec:
        """Return the crops that a network with these hyper-parameters reads."""
        return self.crop if self.crop_of is None else self._with(self.crop_of, hparams)

    def pixels_for(self, hparams: Mapping[str, Any]) -> PixelSpec:
        """Return the pixel values that a network with these hyper-parameters reads."""
        return self.pixels if self.pixels_of is None else self._with(self.pixels_of, hparams)

    def build_with(self, n_genes: int, hparams: Mapping[str, Any]) -> SpotModel:
        """Make the network, with random weights; refuse hyper-parameters that it does not have."""
        return self._with(partial(self.build, n_genes), hparams)

    def _with(self, make: Callable[..., Any], hparams: Mapping[str, Any]) -> Any:
        try:
            return make(**hparams)
        except TypeError as error:
            raise ValueError(
                f"{self.name!r} cannot be made with the hyper-parameters {dict(hparams)}: {error}. Those of its publication "
                f"are {dict(self.hparams)}."
            ) from error
