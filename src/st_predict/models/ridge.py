"""Ridge: linear regression on principal components of embeddings, as in the HEST benchmark :cite:p:`Jaume2024`.

Ridge regression on the first 256 principal components of standardised features, in closed form. The benchmark has no intercept
and a penalty of 100 / (n_components * n_genes), which is nearly zero. Here the model has an intercept, and by default the
penalty is chosen by cross-validation over training sections, as a fair baseline needs. With ``rank``, the first principal
components of the training targets are fitted, and genes are reconstructed from them. The coefficients then have reduced rank,
as in :cite:t:`Izenman1975`, which takes the components of the fitted values instead.

Shapes: B spots, D features, K components, R components of the targets, G genes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, NotNegative  # noqa: TC001  # types of hyper-parameters are read at run time
from st_predict.encoders import get_encoder
from st_predict.models._base import RECOMMENDED, ModelSpec, Preset
from st_predict.models._card import OF_ENCODER
from st_predict.models._features import FeatureModel, features_of
from st_predict.models._layers import full_precision, resize_on_load
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict.crops import Batch

__all__ = ["SPEC", "Ridge"]

Array: TypeAlias = NDArray[np.float64]

_FOLDS = 5
_PENALTIES = np.logspace(-6, 4, 41)  # relative to the mean variance of a component


class Ridge(FeatureModel):
    """Ridge regression on embeddings.

    Parameters
    ----------
    n_genes
        Size of the panel.
    reading
        Arguments of :func:`st_predict.tl.embed`: ``encoder``, ``features``, ``fields``, ``neighbours`` and ``standardize``.
    n_components
        Largest number of principal components to keep.
    alpha
        Penalty. A number; ``"cv"``, chosen by cross-validation over sections, with up to five folds (over parts of the spots,
        if only one section is given); or ``"hest"``, the HEST benchmark's.
    rank
        Number of principal components of the training targets to fit; genes are reconstructed from them. ``None`` fits each
        gene on its own, as does any number not below the number of genes or spots. Components follow the variance of the
        targets: if scales differ much, as with counts, they describe only the genes with a large variance, and others are
        predicted by their mean.

    Raises
    ------
    ValueError
        If a hyper-parameter is invalid.
    """

    weight_DG: Tensor
    bias_G: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        n_components: Count = 256,
        alpha: NotNegative | Literal["cv", "hest"] = "cv",
        rank: Count | None = None,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        if n_components < 1:
            raise InvalidValueError(f"n_components must be at least 1, got {n_components}.")
        if alpha not in {"cv", "hest"} and (isinstance(alpha, str) or not 0 <= alpha < inf):
            raise InvalidValueError(f"alpha must be 'cv', 'hest' or a number from 0, got {alpha!r}.")
        if rank is not None and rank < 1:
            raise InvalidValueError(f"rank must be at least 1, or None for full rank, got {rank}.")
        self.n_components, self.alpha, self.rank = n_components, alpha, rank
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
        n_features, features_BD = len(self.weight_DG), batch.require("features")
        if features_BD.shape[1] != n_features:
            raise InvalidValueError(
                f"The model was fitted to {n_features} features of {self.reading.encoder!r}, the batch has {features_BD.shape[1]}."
            )
        with full_precision(self.weight_DG):
            return features_BD.float() @ self.weight_DG + self.bias_G

    def finalize(self, batches: Iterable[Batch]) -> None:
        """Fit to the training spots."""
        x_BD, y_BG, section_B = gather(batches)
        alpha: Any = self.alpha
        check_finite(x_BD, f"features of {self.reading.encoder!r}")
        check_finite(y_BG, "targets")
        fitted = Components.of(x_BD, y_BG, self.n_components, self.rank)
        if alpha == "hest":
            alpha = 100 / max(1, len(fitted.spread_K) * y_BG.shape[1])
        elif alpha == "cv":
            alpha = fitted.mean_variance * best_penalty(
                x_BD, y_BG, section_B, n_components=self.n_components, rank=self.rank
            )
        weight_DG, bias_G = fitted.solve(alpha)
        self.weight_DG = torch.from_numpy(weight_DG).to(self.bias_G)
        self.bias_G = torch.from_numpy(bias_G).to(self.bias_G)


def gather(batches: Iterable[Batch]) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return features, targets and sections of all spots."""
    parts = []
    for batch in batches:
        section = torch.zeros(len(batch), dtype=torch.int64) if batch.section is None else batch.section
        parts.append(
            [x.cpu().numpy() for x in (batch.require("features").double(), batch.require("target").double(), section)]
        )
    if not parts:
        raise InvalidValueError("Training needs at least one spot, got 0.")
    x_BD, y_BG, section_B = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x_BD, y_BG, section_B


def check_finite(values_BD: Array, what: str) -> None:
    """Refuse spots with NaN or infinity, which cannot be decomposed.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    if n := int((~np.isfinite(values_BD)).any(1).sum()):
        raise InvalidValueError(
            f"{n} of {len(values_BD)} training spots have {what} that are not finite.", "leave these spots out"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Principal components of standardised features, and targets projected on them."""

    scaler: StandardScaler
    axes_KD: Array
    spread_K: Array
    along_KG: Array
    mean_G: Array

    @classmethod
    def of(cls, x_BD: Array, y_BG: Array, n_components: int, rank: int | None = None) -> Components:
        """Compute the components; nearly constant ones are left out."""
        scaler, mean_G = StandardScaler().fit(x_BD), y_BG.mean(0)
        try:
            u_BK, spread_K, axes_KD = np.linalg.svd(scaler.transform(x_BD), full_matrices=False)
        except np.linalg.LinAlgError as error:
            raise InvalidValueError(
                f"The {x_BD.shape[1]} features of {len(x_BD)} spots have no principal components ({error})."
            ) from error
        kept = (spread_K > 3e-5 * max(1, spread_K[0])) & (np.arange(len(spread_K)) < n_components)
        return cls(
            scaler=scaler,
            axes_KD=axes_KD[kept],
            spread_K=spread_K[kept],
            along_KG=u_BK.T[kept] @ of_rank(y_BG - mean_G, rank),
            mean_G=mean_G,
        )

    @property
    def mean_variance(self) -> float:
        """Mean variance of the components, the unit of penalties."""
        return float(np.square(self.spread_K).mean()) if len(self.spread_K) else 1.0

    def solve(self, alpha: float) -> tuple[Array, Array]:
        """Return weights of the features, ``(n_features, n_genes)``, and the intercept, ``(n_genes,)``."""
        shrunk_K1 = (self.spread_K / (np.square(self.spread_K) + alpha))[:, None]
        weight_DG = self.axes_KD.T @ (shrunk_K1 * self.along_KG) / self.scaler.scale_[:, None]
        return weight_DG, self.mean_G - self.scaler.mean_ @ weight_DG


def of_rank(centred_BG: Array, rank: int | None) -> Array:
    """Keep the first ``rank`` principal components of centred targets, ``(n_spots, n_genes)``."""
    if rank is None or rank >= min(centred_BG.shape):
        return centred_BG
    axes_RG = np.linalg.svd(centred_BG, full_matrices=False)[2][:rank]
    return centred_BG @ axes_RG.T @ axes_RG


def best_penalty(
    x_BD: Array, y_BG: Array, section_B: NDArray[np.int64], *, n_components: int, rank: int | None = None
) -> float:
    """Return the penalty with the least cross-validation error over sections, or over parts of a single section.

    Components of features and targets are computed anew without the held-out part. The error is measured on the genes; its
    share outside the components of the targets is the same for all penalties.
    """
    n_sections = len(np.unique(section_B))
    several = n_sections > 1
    if not several and len(x_BD) < 2:
        return float(_PENALTIES[-1])
    folds = GroupKFold(min(_FOLDS, n_sections)) if several else KFold(min(_FOLDS, len(x_BD)))
    errors = np.zeros(len(_PENALTIES))
    for rest, out in folds.split(x_BD, groups=section_B if several else None):
        fitted = Components.of(x_BD[rest], y_BG[rest], n_components, rank)
        for i, penalty in enumerate(_PENALTIES):
            weight_DG, bias_G = fitted.solve(fitted.mean_variance * penalty)
            errors[i] += np.square(x_BD[out] @ weight_DG + bias_G - y_BG[out]).sum()
    return float(_PENALTIES[errors.argmin()])


SPEC = ModelSpec(
    name="ridge",
    summary="Ridge regression on principal components of embeddings of the crops.",
    citation="Jaume2024",
    license="CC-BY-NC-SA-4.0 (github.com/mahmoodlab/HEST)",
    family="baseline",
    build=Ridge,
    crop=get_encoder("rgb").crop,
    reads_of=features_of,
    of_card=OF_ENCODER,
    closed_form=True,
    hparams={"encoder": "rgb", "n_components": 256, "alpha": "cv"},
    tiny={"encoder": "rgb", "n_components": 4},
    recommended=replace(RECOMMENDED, hparams={"rank": 8}),
    original=Preset(
        hparams={"alpha": "hest"},
        target=TargetSpec(transform="log1p"),
        panel="hvg",
        notes="The benchmark fits no intercept, and uses UNI and other encoders at 0.5 um/px.",
    ),
)
