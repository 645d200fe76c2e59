"""ST-Net: DenseNet-121 :cite:p:`Huang2017` on one crop, with a linear layer to the genes :cite:p:`He2020`.

The linear layer starts with weights of zero and the mean of the training spots, so that only what the image adds to
the mean is learned; a prediction is the mean over the eight symmetries of the crop.

Written from the paper and from what the published code computes. Layers are those of timm. Here, as for all networks
of the comparison of M2OST :cite:p:`Wang2025`, weights start random and the loss is the mean over spots. ST-Net itself
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

_TORCHVISION = {r"(denselayer\d+\.(?:norm|conv))\.(\d)\.": r"\1\2."}  # of its files; else its names are those of timm


class STNet(TimmRegressor):
    """The network of ST-Net.

    Parameters
    ----------
    n_genes
        Size of the panel.
    loss
        ``"mse"`` is the mean over spots of their mean squared error over genes, ``"sum"`` the sum over the spots of a
        batch, which needs a learning rate smaller by the size of the batch.
    arch, hparams
        See :class:`st_predict.models._timm.TimmRegressor`.

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
        """Predict the mean of each gene for every image."""
        super().start_at(mean_G)
        nn.init.zeros_(self.head.weight)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state dict of torchvision's or timm's DenseNet, as in ST-Net's checkpoints, into one of :class:`STNet`.

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
            "chose genes on all sections, test included, and the epoch by cross-validation before it trained anew on "
            "all patients."
        ),
    ),
    tiny={"size": 32, "arch_args": {"growth_rate": 4, "block_config": [1, 2, 1, 1]}},
    convert=convert,
)
