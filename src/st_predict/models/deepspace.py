"""DeepSpaCE: VGG16 or DenseNet-121 on a crop of a few spot diameters :cite:p:`Monjo2022`.

The networks are those of torchvision :cite:p:`Simonyan2015,Huang2017`, with a linear layer to the genes; VGG16 has its two
dropouts of one half. By default the crop is one of native pixels, as in the comparison of M2OST :cite:p:`Wang2025`;
``field`` and ``spot_um`` give that of the publication. There, half of its side is the radius of the spot times 2.5, rounded
up to a whole pixel (376 px for spots of 150 px), where this is 2.5 diameters exactly.

The publication can also learn from crops without counts, in rounds: that is ``unlabelled`` of :func:`st_predict.tl.train`,
for any model. It scales the labels of each round to the range from 0 to 1; here they stay as predicted, which is in the units
of the target already.

On crops of 256 px and more, VGG16 is as timm has it: its linear layers see each place, and the mean over places follows,
where torchvision pools to 7 by 7 before them.
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
    """The network.

    Parameters
    ----------
    n_genes
        Size of the panel.
    arch
        ``"vgg16"``, ``"densenet121"``, or another architecture of timm.
    weights
        Tag of the weights in timm that training starts from, ``"tv_in1k"`` say; ``None`` starts from random ones.
    size
        Side of the crop that the network sees, in pixels.
    arch_args
        More arguments of the architecture.
    loss
        ``"mse"``, or ``"smooth_l1"`` as published: half of the square of errors below 1, the absolute value less one half
        above. Mean over spots and genes.
    frozen
        Train the last layer alone (``transfer``, as published). All others keep their weights, batch norms their statistics
        of ImageNet as well, in training too; dropout stays on.
    field, spot_um
        Of the crop, see :func:`crop_of`.

    Raises
    ------
    ValueError
        If the architecture or loss does not exist, or there are no weights to be kept.
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
                "A frozen backbone keeps its weights, and there are none to keep, as weights is None.",
                Advice("name them in {}, weights 'tv_in1k' say", "hparams"),
                Advice("name them with {}", "weights", "tv_in1k"),
                "train all of the network",
            )
        dropout = {"drop_rate": 0.5} if arch.startswith("vgg") else {}
        super().__init__(n_genes, arch=arch, weights=weights, size=size, arch_args={**dropout, **(arch_args or {})})
        self.objective, self.frozen = _LOSSES[loss], frozen
        self.backbone.requires_grad_(not frozen)

    def loss(self, batch: Batch) -> Tensor:
        """Return the training objective, a scalar."""
        return self.objective(self(batch), batch.require("target"))

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # as torch has it
        """Switch to training, or to evaluation."""
        super().train(mode)
        if self.frozen:
            for layer in self.backbone.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return self


def crop_of(*, size: int = 224, field: float | None = None, spot_um: float | None = None, **_: Any) -> CropSpec:
    """One crop, of native pixels or of so many spot diameters.

    Parameters
    ----------
    size
        Side of the crop that the network sees, in pixels.
    field
        Side of the field of view, in diameters of a spot; 2.5 in the publication. ``None`` takes pixels as they are.
    spot_um
        Diameter of a spot, in um.

    Raises
    ------
    ValueError
        If one of ``field`` and ``spot_um`` is given without the other.
    """
    if field is None and spot_um is None:
        return CropSpec(levels=(LevelSpec(size=size),))
    if field is None or spot_um is None:
        raise InvalidValueError(
            "A crop of so many spot diameters needs both field, 2.5 say, and spot_um, the diameter of a spot in um: 55 for "
            f"Visium, 100 for the older Spatial Transcriptomics; got field {field} and spot_um {spot_um}.",
            Advice("give both in {}", "hparams"),
        )
    return CropSpec(levels=(LevelSpec(size=size),), mpp=field * spot_um / size)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state dict of VGG16 or DenseNet-121, of torchvision or timm, into one of :class:`DeepSpaCE`.

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
    # the linear layers on places of VGG16 are convolutions in timm
    return {n: t.reshape(-1, *ours[n].shape[1:]) if n.endswith("weight") else t for n, t in renamed.items()}


def _our_name(name: str) -> str:
    for theirs, ours in _RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"backbone.{name}"


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Architecture that the names of converted weights tell."""
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
        notes="Needs `hparams={'spot_um': ...}`. Counts are scaled to 10,000 instead of by SCTransform (the base of the "
        "logarithm does not matter before min-max), and limits are those of the training spots alone. Spots of less than "
        "1,000 UMI or genes, and crops that are mostly bright, are not left out. Crops are turned and mirrored, but neither "
        "resized nor changed in colour, sharpness or noise. Training stops 5 epochs after the least loss, which is kept, "
        "instead of after 5 epochs that are each worse than the one before, keeping the highest correlation.",
    ),
    convert=convert,
    hparams_of=hparams_of,
)
