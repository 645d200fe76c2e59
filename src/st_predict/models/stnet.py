"""ST-Net: DenseNet-121 :cite:p:`Huang2017` on one crop, with a linear layer to the genes :cite:p:`He2020`.

The linear layer starts with zero weights and the mean of the training spots as bias, so the network learns deviations from
the mean. A prediction is the mean over the eight symmetries of the crop (test-time augmentation).

Written from the paper and from the behaviour of the published code. Layers come from timm. By default weights start random
and the loss is the mean over spots, as for all networks in the M2OST paper's comparison :cite:p:`Wang2025`. ST-Net itself
starts from ImageNet and sums over the spots of a batch (preset ``"original"``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from st_predict.models._base import ModelSpec, Preset
from st_predict.models._card import OF_TIMM
from st_predict.models._checks import check_choice
from st_predict.models._timm import TimmRegressor, count_blocks, crop_of, from_timm, pixels_of, rename
from st_predict.specs import IMAGENET, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from st_predict.crops import Batch

__all__ = ["SPEC", "STNet", "convert"]

Loss = Literal["mse", "sum"]

_TORCHVISION = {r"(denselayer\d+\.(?:norm|conv))\.(\d)\.": r"\1\2."}  # the remaining names equal timm's


class STNet(TimmRegressor):
    """Network of ST-Net.

    Parameters
    ----------
    n_genes
        Size of the panel.
    loss
        Training objective. ``"mse"``: mean squared error over genes, averaged over spots. ``"sum"``: the same, summed over the
        spots of a batch; the learning rate must be divided by the batch size.
    arch, hparams
        Parameters of :class:`st_predict.models._timm.TimmRegressor`.

    Raises
    ------
    ValueError
        If the loss does not exist.
    """

    def __init__(self, n_genes: int, *, loss: Loss = "mse", arch: str = "densenet121", **hparams: Any) -> None:
        super().__init__(n_genes, arch=arch, **hparams)
        check_choice("loss", loss, get_args(Loss))
        self.reduction = loss

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error over genes, averaged or summed over spots."""
        mean = super().loss(batch)
        return mean * len(batch) if self.reduction == "sum" else mean

    def start_at(self, mean_G: Tensor) -> None:
        """Set weights to zero and the bias to the mean of each gene."""
        super().start_at(mean_G)
        nn.init.zeros_(self.head.weight)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of torchvision's or timm's DenseNet, as in ST-Net's checkpoints, to :class:`STNet`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    theirs = rename(state, _TORCHVISION)
    blocks = count_blocks(theirs, r"features\.denseblock(\d)\.denselayer(\d+)\.", stages=4)
    return from_timm(theirs, head="classifier", arch="densenet121", block_config=blocks)


SPEC = ModelSpec(
    name="stnet",
    summary="DenseNet-121 on one crop, averaged over its eight symmetries.",
    citation="He2020",
    license="none (github.com/bryanhe/ST-Net)",
    build=STNet,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=IMAGENET,
    pixels_of=pixels_of,
    of_card=OF_TIMM,
    symmetries=8,
    hparams={"arch": "densenet121", "weights": None, "size": 224, "loss": "mse"},
    original=Preset(
        training={
            "optimizer": "sgd",
            "lr": 1e-6,
            "momentum": 0.9,
            "batch_size": 32,
            "epochs": 50,
            "measure_pixels": True,
        },
        hparams={"weights": "tv_in1k", "loss": "sum"},
        target=TargetSpec(transform="log_proportion", over="all"),
        panel="mean",
        notes=(
            "ST-Net used only spots with an annotation and a crop inside the image, measured pixels on 12 batches, "
            "chose genes on all sections including the test sections, and chose the epoch by cross-validation before "
            "training anew on all patients."
        ),
    ),
    tiny={"size": 32, "arch_args": {"growth_rate": 4, "block_config": [1, 2, 1, 1]}},
    convert=convert,
)
