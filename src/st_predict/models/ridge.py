"""Ridge: linear regression on principal components of embeddings, as in the HEST benchmark :cite:p:`Jaume2024`.

Features are standardised, turned into their first 256 principal components and regressed on with a squared penalty, all
in closed form from sums over the training spots. The benchmark takes 100 / (n_components * n_genes) as penalty, which is
hardly any, and no intercept; here there is an intercept, and by default the penalty is the one that is best on training
sections that are left out, which is what a fair baseline needs.

Shapes: B spots, D features, K components, G genes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import reduce
from math import inf
from operator import add
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

_FOLDS = 5
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
        Penalty: a number; ``"cv"`` for the one that is best on sections that are left out, in up to five parts
        (``"gcv"`` if there is one section alone); ``"gcv"`` for generalised cross-validation, which takes spots for
        independent; ``"hest"`` for that of the HEST benchmark.

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
        alpha: float | Literal["cv", "gcv", "hest"] = "cv",
    ) -> None:
        super().__init__()
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1, got {n_components}.")
        if alpha not in {"cv", "gcv", "hest"} and (isinstance(alpha, str) or not 0 <= alpha < inf):
            raise ValueError(f"alpha must be 'cv', 'gcv', 'hest' or a number from 0, got {alpha!r}.")
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
        folds, x0_D, y0_G = sum_up(batches)
        weight_DG, bias_G = solve(folds, n_components=self.n_components, alpha=self.alpha)
        self.weight_DG = weight_DG.to(self.bias_G)
        self.bias_G = (y0_G + bias_G - x0_D @ weight_DG).to(self.bias_G)


def _features(batch: Batch) -> Tensor:
    if batch.features is None:
        raise ValueError("This model reads features, and the batch has none.")
    return batch.features


@dataclass(slots=True, kw_only=True)
class Sums:
    """Sums over spots from which a regression follows, in float64, of values about a point near the means."""

    n: int
    x_D: Tensor
    y_G: Tensor
    xx_DD: Tensor
    xy_DG: Tensor
    yy_G: Tensor

    @classmethod
    def of(cls, x_BD: Tensor, y_BG: Tensor) -> Sums:
        """Sum over some spots."""
        return cls(
            n=len(x_BD),
            x_D=x_BD.sum(0),
            y_G=y_BG.sum(0),
            xx_DD=x_BD.T @ x_BD,
            xy_DG=x_BD.T @ y_BG,
            yy_G=y_BG.square().sum(0),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Sums) -> Sums:
        return Sums(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def centred(self) -> Sums:
        """Return the same about the means."""
        x_D, y_G = self.x_D / self.n, self.y_G / self.n
        return Sums(
            n=self.n,
            x_D=torch.zeros_like(x_D),
            y_G=torch.zeros_like(y_G),
            xx_DD=self.xx_DD - self.n * x_D[:, None] * x_D,
            xy_DG=self.xy_DG - self.n * x_D[:, None] * y_G,
            yy_G=self.yy_G - self.n * y_G.square(),
        )

    def error(self, weight_DG: Tensor, bias_G: Tensor) -> float:
        """Squared error of a linear function on these spots, summed over spots and genes."""
        explained_G = (weight_DG * (2 * self.xy_DG - self.xx_DD @ weight_DG)).sum(0)
        offset_G = self.n * bias_G + 2 * (self.x_D @ weight_DG - self.y_G)
        return float((self.yy_G - explained_G + bias_G * offset_G).sum())


def sum_up(batches: Iterable[Batch]) -> tuple[list[Sums], Tensor, Tensor]:
    """Go through the spots once.

    Returns
    -------
    Sums over some of the sections each, which cross-validation leaves out in turn, and the point that they are about.
    """
    folds: dict[int, Sums] = {}
    origin: tuple[Tensor, Tensor] | None = None
    for batch in batches:
        if batch.target is None:
            raise ValueError("Training needs a batch with targets.")
        x_BD, y_BG = _features(batch).double().cpu(), batch.target.double().cpu()
        origin = origin or (x_BD.mean(0), y_BG.mean(0))
        fold_B = torch.zeros(len(batch)) if batch.section is None else batch.section.cpu() % _FOLDS
        for fold in sorted(set(fold_B.tolist())):
            added = Sums.of(*(values[fold_B == fold] - zero for values, zero in zip((x_BD, y_BG), origin, strict=True)))
            folds[fold] = folds[fold] + added if fold in folds else added
    if origin is None:
        raise ValueError("There is no training spot.")
    return list(folds.values()), *origin


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of standardised features, and what regression on them takes."""

    sums: Sums
    to_component_DK: Tensor
    variance_K: Tensor
    xy_KG: Tensor

    @classmethod
    def of(cls, sums: Sums, n_components: int) -> Components:
        """Find them; those that hardly vary are left out."""
        about_mean = sums.centred()
        sd_D = (about_mean.xx_DD.diagonal() / sums.n).clamp_min(0).sqrt()
        scale_D = torch.where(sd_D > 1e-9 * (sums.xx_DD.diagonal() / sums.n).sqrt().clamp_min(1e-6), 1 / sd_D, 0.0)
        variance_K, axes_DK = torch.linalg.eigh(scale_D[:, None] * about_mean.xx_DD * scale_D)
        kept = variance_K.argsort(descending=True)[:n_components]
        kept = kept[variance_K[kept] > 1e-9 * variance_K.max()]
        to_component_DK = scale_D[:, None] * axes_DK[:, kept]
        return cls(sums, to_component_DK, variance_K[kept], to_component_DK.T @ about_mean.xy_DG)

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Return weights of the features, ``(n_features, n_genes)``, and the intercept, ``(n_genes,)``."""
        weight_DG = self.to_component_DK @ (self.xy_KG / (self.variance_K + penalty)[:, None])
        return weight_DG, (self.sums.y_G - self.sums.x_D @ weight_DG) / self.sums.n

    @property
    def penalties(self) -> list[float]:
        """Penalties to choose from."""
        return (_PENALTIES * self.variance_K.mean().nan_to_num()).tolist()


def solve(folds: list[Sums], *, n_components: int, alpha: float | str) -> tuple[Tensor, Tensor]:
    """Regress on the principal components of standardised features; see :meth:`Components.solve`."""
    total = reduce(add, folds)
    components = Components.of(total, n_components)
    if alpha == "hest":
        return components.solve(100 / max(1, components.xy_KG.numel()))
    if alpha not in {"cv", "gcv"}:
        return components.solve(float(alpha))
    if alpha == "gcv" or len(folds) == 1:
        scores = [_gcv(components, penalty) for penalty in components.penalties]
    else:
        scores = _left_out(folds, total, n_components)
    return components.solve(components.penalties[scores.index(min(scores))])


def _left_out(folds: list[Sums], total: Sums, n_components: int) -> list[float]:
    """Squared error on the sections that are left out in turn, for each penalty."""
    fits = [(fold, Components.of(total - fold, n_components)) for fold in folds]
    errors = [[fold.error(*fit.solve(penalty)) for penalty in fit.penalties] for fold, fit in fits]
    return [sum(of_penalty) for of_penalty in zip(*errors, strict=True)]


def _gcv(components: Components, penalty: float) -> float:
    """Generalised cross-validation: the squared error that is left, over the square of the freedom that is left."""
    freedom = components.sums.n - 1 - float((components.variance_K / (components.variance_K + penalty)).sum())
    return components.sums.error(*components.solve(penalty)) / freedom**2 if freedom > 0 else inf


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
    hparams={"encoder": "rgb", "n_components": 256, "alpha": "cv"},
    tiny={"encoder": "rgb", "n_components": 4},
    original=Preset(
        hparams={"alpha": "hest"},
        target=TargetSpec(transform="log1p"),
        panel="hvg",
        notes="The benchmark fits no intercept, and takes UNI and other encoders at 0.5 um/px.",
    ),
)
