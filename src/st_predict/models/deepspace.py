"""DeepSpaCE: VGG16 or DenseNet-121 on a crop of a few spot diameters :cite:p:`Monjo2022`.

The networks are torchvision's :cite:p:`Simonyan2015,Huang2017`, with a linear layer to the genes; VGG16 has its two
dropouts of one half. By default the crop has native pixels, as in the M2OST paper's comparison :cite:p:`Wang2025`; ``field``
and ``spot_um`` give the published crop. Its half side is there the spot radius times 2.5, rounded up to a whole pixel (376 px
for spots of 150 px); here the side is exactly 2.5 diameters.

The publication can also learn from crops without counts, by pseudo-labelling in rounds: ``unlabelled`` of
:func:`st_predict.tl.train` does this for any model. The publication scales the labels of each round to the range from 0 to 1;
here they stay as predicted, in the units of the target.

On crops of 256 px and more, VGG16 is timm's: its linear layers are applied at each place and then averaged, whereas
torchvision pools to 7 by 7 before them.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  # types of hyper-parameters are read at run time
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from st_predict._errors import Advice, InvalidValueError
from st_predict._validated import Count, Positive  # noqa: TC001  # types of hyper-parameters are read at run time
from st_predict.models._base import ModelSpec, Preset
from st_predict.models._card import OF_TIMM
from st_predict.models._checks import check_choice
from st_predict.models._timm import TimmRegressor, pixels_of
from st_predict.specs import IMAGENET, CropSpec, LevelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from torch import Tensor

    from st_predict.crops import Batch

__all__ = ["SPEC", "DeepSpaCE", "convert", "crop_of"]

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


class DeepSpaCE(TimmRegressor):
    """Network of DeepSpaCE.

    Parameters
    ----------
    n_genes
        Size of the panel.
    arch
        Backbone: ``"vgg16"``, ``"densenet121"``, or another architecture of timm.
    weights
        Tag of the pretrained weights in timm, such as ``"tv_in1k"``; ``None`` for random initial weights.
    size
        Side of the crop that the network sees, in pixels.
    arch_args
        Further arguments of the architecture.
    loss
        Training objective, mean over spots and genes. ``"mse"``; or ``"smooth_l1"`` as published: half the squared error
        below 1, the absolute error minus one half above.
    frozen
        Whether to train only the last layer (``transfer``, as published). All other layers keep their weights, and batch
        norms their ImageNet statistics, also in training; dropout stays on.
    field, spot_um
        Field of view and spot diameter; see :func:`crop_of`.

    Raises
    ------
    ValueError
        If the architecture or loss does not exist, or ``frozen`` is set without ``weights``.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        arch: str = "vgg16",
        weights: str | None = None,
        size: Count = 224,
        arch_args: Mapping[str, Any] | None = None,
        loss: Literal["mse", "smooth_l1"] = "mse",
        frozen: bool = False,
        field: Positive | None = None,
        spot_um: Positive | None = None,
    ) -> None:
        check_choice("loss", loss, _LOSSES)
        if frozen and weights is None:
            raise InvalidValueError(
                "A frozen backbone needs pretrained weights, got weights None.",
                Advice("name them in {}, such as weights 'tv_in1k'", "hparams"),
                Advice("name them with {}", "weights", "tv_in1k"),
                "train the whole network",
            )
        dropout = {"drop_rate": 0.5} if arch.startswith("vgg") else {}
        super().__init__(n_genes, arch=arch, weights=weights, size=size, arch_args={**dropout, **(arch_args or {})})
        self.objective, self.frozen = _LOSSES[loss], frozen
        self.backbone.requires_grad_(not frozen)

    def loss(self, batch: Batch) -> Tensor:
        """Return the training objective, a scalar."""
        return self.objective(self(batch), batch.require("target"))

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # as torch has it
        """Switch between training and evaluation mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for layer in self.backbone.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self


def crop_of(*, size: int = 224, field: float | None = None, spot_um: float | None = None, **_: Any) -> CropSpec:
    """One crop, with native pixels or a field of view in spot diameters.

    Parameters
    ----------
    size
        Side of the crop that the network sees, in pixels.
    field
        Side of the field of view, in spot diameters; 2.5 in the publication. ``None`` for native pixels.
    spot_um
        Spot diameter, in micrometres.

    Raises
    ------
    ValueError
        If only one of ``field`` and ``spot_um`` is given.
    """
    if field is None and spot_um is None:
        return CropSpec(levels=(LevelSpec(size=size),))
    if field is None or spot_um is None:
        raise InvalidValueError(
            "A crop in spot diameters needs both field, such as 2.5, and spot_um, the spot diameter in um: 55 for Visium, 100 "
            f"for the older Spatial Transcriptomics; got field {field} and spot_um {spot_um}.",
            Advice("give both in {}", "hparams"),
        )
    return CropSpec(levels=(LevelSpec(size=size),), mpp=field * spot_um / size)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of VGG16 or DenseNet-121, of torchvision or timm, to :class:`DeepSpaCE`.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    renamed = {_our_name(name): tensor for name, tensor in state.items()}
    arch = "densenet121" if any("denseblock" in name for name in state) else "vgg16"
    with torch.device("meta"):
        ours = DeepSpaCE(1, arch=arch).state_dict()
    missing, unknown = sorted(ours.keys() - renamed.keys()), sorted(renamed.keys() - ours.keys())
    if missing or unknown:
        raise InvalidValueError(
            f"Not a state dict of VGG16 or DenseNet-121: compared with {arch}, by our names, {len(missing)} are missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]}."
        )
    # timm has VGG16's linear layers as convolutions
    return {n: t.reshape(-1, *ours[n].shape[1:]) if n.endswith("weight") else t for n, t in renamed.items()}


def _our_name(name: str) -> str:
    for theirs, ours in _RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"backbone.{name}"


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the architecture from the names of converted weights."""
    return {"arch": "densenet121" if any("denseblock" in name for name in state) else "vgg16"}


_RENAMED = {
    "classifier.0.": "backbone.pre_logits.fc1.",
    "classifier.3.": "backbone.pre_logits.fc2.",
    "classifier.6.": "head.",
    "classifier.": "head.",
    "head.fc.": "head.",
}

SPEC = ModelSpec(
    name="deepspace",
    summary="VGG16 or DenseNet-121 on a crop of a few spot diameters.",
    citation="Monjo2022",
    license="GPL-3.0 (github.com/tmonjo/DeepSpaCE)",
    build=DeepSpaCE,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=IMAGENET,
    pixels_of=pixels_of,
    of_card=OF_TIMM,
    hparams={"arch": "vgg16", "weights": None, "size": 224, "loss": "mse", "frozen": False, "field": None},
    tiny={"arch": "densenet121", "size": 64, "arch_args": {"growth_rate": 8, "block_config": [1, 1, 1, 1]}},
    original=Preset(
        training={
            "epochs": 10,
            "batch_size": 128,
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "patience": 5,
            "monitor": "loss",
            "start_at_mean": False,
        },
        hparams={"weights": "tv_in1k", "loss": "smooth_l1", "field": 2.5},
        target=TargetSpec(total=1e4, over="all", scale="minmax"),
        notes="Needs `hparams={'spot_um': ...}`. All layers are trained; the command in the published README also has "
        "`--transfer`, which trains only the last one: `hparams={'spot_um': ..., 'frozen': True}`. Counts are scaled to 10,000 instead of by SCTransform (the base of the "
        "logarithm does not matter before min-max), and limits come only from the training spots. Spots with fewer than 1,000 "
        "UMI or genes and mostly bright crops are not left out. Crops are turned and mirrored, but not resized or changed in "
        "colour, sharpness or noise. Training stops 5 epochs after the least loss and keeps that epoch; the publication "
        "stops after 5 epochs that are each worse than the one before, and keeps the highest correlation.",
    ),
    convert=convert,
    hparams_of=hparams_of,
)
