"""Ridge: linear regression on principal components of embeddings, as in the HEST benchmark :cite:p:`Jaume2024`.

Features are standardised, turned into their first 256 principal components and regressed on with a squared penalty, all
in closed form from sums over the training spots. The benchmark takes 100 / (n_components * n_genes) as penalty, which is
hardly any, and no intercept; here there is an intercept, and by default the penalty is chosen by generalised
cross-validation, which is what a fair baseline needs.

Shapes: B spots, D features, K components, G genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._encoders import get_encoder
from st_predict.models._layers import full_precision, resize_on_load
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict.crops import Batch
    from st_predict.specs import CropSpec, PixelSpec

__all__ = ["SPEC", "Ridge"]

_PENALTIES = torch.logspace(-6, 4, 41, dtype=torch.float64)  # relative to the mean variance of a component


class Ridge(SpotModel):
    """A linear function of embeddings.

    Parameters
    ----------
    n_genes
        Size of the panel.
    encoder
        What makes the embeddings (:func:`st_predict.tl.embed`).
    n_components
        Principal components to keep; as many as there are if fewer.
    alpha
        Penalty: a number, ``"hest"`` for that of the HEST benchmark, ``"gcv"`` for generalised cross-validation.

    Raises
    ------
    ValueError
        If a hyper-parameter is unfit.
    """

    weight_DG: Tensor
    bias_G: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        encoder: str = "rgb",
        n_components: int = 256,
        alpha: float | Literal["gcv", "hest"] = "gcv",
    ) -> None:
        super().__init__()
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {n_components}.")
        if alpha not in {"gcv", "hest"} and (isinstance(alpha, str) or alpha < 0):
            raise ValueError(f"alpha must be 'gcv', 'hest' or a number from 0, got {alpha!r}.")
        self.encoder, self.n_components, self.alpha = encoder, n_components, alpha
        self.register_buffer("weight_DG", torch.zeros(0, n_genes))
        self.register_buffer("bias_G", torch.zeros(n_genes))
        resize_on_load(self, "weight_DG")

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Raises
        ------
        ValueError
            If the batch has no features, or another number of them than the model was fitted to.
        """
        n_features, found = len(self.weight_DG), _features(batch).shape[1]
        if found != n_features:
            raise ValueError(
                f"The model was fitted to {n_features} features of {self.encoder!r}, the batch has {found}."
            )
        with full_precision(self.weight_DG):
            return _features(batch).float() @ self.weight_DG + self.bias_G

    def finalize(self, batches: Iterable[Batch]) -> None:
        """Fit to the training spots."""
        weight_DG, bias_G = solve(Sums.of(batches), n_components=self.n_components, alpha=self.alpha)
        self.weight_DG = weight_DG.to(self.bias_G)
        self.bias_G = bias_G.to(self.bias_G)


def _features(batch: Batch) -> Tensor:
    if batch.features is None:
        raise ValueError("This model reads features, and the batch has none.")
    return batch.features


@dataclass(slots=True)
class Sums:
    """Sums over training spots from which a regression follows, in float64.

    Sums of products are about ``x0_D`` and ``y0_G``, which are near the means, so that little cancels.
    """

    x0_D: Tensor
    y0_G: Tensor
    x_D: Tensor
    y_G: Tensor
    xx_DD: Tensor
    xy_DG: Tensor
    yy_G: Tensor
    n: int = 0

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Sums:
        """Go through the spots once."""
        sums = None
        for batch in batches:
            if batch.target is None:
                raise ValueError("Training needs a batch with targets.")
            x_BD, y_BG = _features(batch).double().cpu(), batch.target.double().cpu()
            sums = sums or cls._zeros(x_BD.mean(0), y_BG.mean(0))
            sums._add(x_BD - sums.x0_D, y_BG - sums.y0_G)
        if sums is None:
            raise ValueError("There is no training spot.")
        return sums._centred()

    @classmethod
    def _zeros(cls, x0_D: Tensor, y0_G: Tensor) -> Sums:
        d, g = len(x0_D), len(y0_G)
        zeros = x0_D.new_zeros
        return cls(x0_D, y0_G, zeros(d), zeros(g), zeros(d, d), zeros(d, g), zeros(g))

    def _add(self, x_BD: Tensor, y_BG: Tensor) -> None:
        self.n += len(x_BD)
        self.x_D += x_BD.sum(0)
        self.y_G += y_BG.sum(0)
        self.xx_DD.addmm_(x_BD.T, x_BD)
        self.xy_DG.addmm_(x_BD.T, y_BG)
        self.yy_G += (y_BG**2).sum(0)

    def _centred(self) -> Sums:
        """Return the same about the means."""
        x_D, y_G, n = self.x_D, self.y_G, self.n
        return Sums(
            x0_D=self.x0_D + x_D / n,
            y0_G=self.y0_G + y_G / n,
            x_D=torch.zeros_like(x_D),
            y_G=torch.zeros_like(y_G),
            xx_DD=self.xx_DD - x_D[:, None] * x_D / n,
            xy_DG=self.xy_DG - x_D[:, None] * y_G / n,
            yy_G=self.yy_G - y_G**2 / n,
            n=n,
        )


def solve(sums: Sums, *, n_components: int, alpha: float | str) -> tuple[Tensor, Tensor]:
    """Regress on the principal components of standardised features.

    Returns
    -------
    Weights of the features as they are, ``(n_features, n_genes)``, and the intercept, ``(n_genes,)``.
    """
    sd_D = (sums.xx_DD.diagonal() / sums.n).clamp_min(0).sqrt()
    varies_D = sd_D > 1e-9 * sums.x0_D.abs().clamp_min(1e-6)
    scale_D = torch.where(varies_D, 1 / sd_D, 0.0)
    variance_K, axes_DK = torch.linalg.eigh(scale_D[:, None] * sums.xx_DD * scale_D)
    kept = variance_K.argsort(descending=True)[:n_components]
    kept = kept[variance_K[kept] > 1e-9 * variance_K.max()]
    variance_K, axes_DK = variance_K[kept], axes_DK[:, kept]
    xy_KG = axes_DK.T @ (scale_D[:, None] * sums.xy_DG)
    penalty = _penalty(alpha, variance_K, xy_KG, sums)
    weight_DG = scale_D[:, None] * (axes_DK @ (xy_KG / (variance_K + penalty)[:, None]))
    return weight_DG, sums.y0_G - sums.x0_D @ weight_DG


def _penalty(alpha: float | str, variance_K: Tensor, xy_KG: Tensor, sums: Sums) -> float:
    if alpha == "hest":
        return 100 / max(1, xy_KG.numel())
    if alpha != "gcv":
        return float(alpha)
    if not len(variance_K):
        return 0.0
    penalties = _PENALTIES * float(variance_K.mean())
    return float(min(penalties, key=lambda penalty: _gcv(float(penalty), variance_K, xy_KG, sums)))


def _gcv(penalty: float, variance_K: Tensor, xy_KG: Tensor, sums: Sums) -> float:
    """Generalised cross-validation: the squared error that is left, over the square of the freedom that is left."""
    shrunk_K = 1 / (variance_K + penalty)
    explained = ((2 * shrunk_K - variance_K * shrunk_K**2) * xy_KG.square().sum(1)).sum()
    freedom = sums.n - 1 - float((variance_K * shrunk_K).sum())
    return float(sums.yy_G.sum() - explained) / freedom**2 if freedom > 0 else inf


def crop_of(*, encoder: str = "rgb", **_: Any) -> CropSpec:
    """Crops that the encoder sees."""
    return get_encoder(encoder).crop


def pixels_of(*, encoder: str = "rgb", **_: Any) -> PixelSpec:
    """Pixel values that the encoder sees."""
    return get_encoder(encoder).pixels


SPEC = ModelSpec(
    name="ridge",
    summary="Ridge regression on principal components of embeddings of the crops.",
    citation="Jaume2024",
    license="CC-BY-NC-SA-4.0 (github.com/mahmoodlab/HEST)",
    family="baseline",
    build=Ridge,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=pixels_of(),
    pixels_of=pixels_of,
    inputs="features",
    closed_form=True,
    hparams={"encoder": "rgb", "n_components": 256, "alpha": "gcv"},
    tiny={"encoder": "rgb", "n_components": 4},
    original=Preset(
        hparams={"alpha": "hest"},
        target=TargetSpec(transform="log1p"),
        panel="hvg",
        notes="The benchmark fits no intercept, and takes UNI and other encoders at 0.5 um/px.",
    ),
)
