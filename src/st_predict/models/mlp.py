"""MLP: a small perceptron on embeddings :cite:p:`Rumelhart1986`, between ridge regression and networks on pixels.

Features are standardised over the training spots; mean and standard deviation are part of the checkpoint.

Shapes: B spots, D features, H hidden channels, G genes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field  # types of hyper-parameters are read at run time
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, Probability  # noqa: TC001  # types of hyper-parameters are read at run time
from st_predict.encoders import get_encoder
from st_predict.models._base import RECOMMENDED, ModelSpec
from st_predict.models._card import OF_ENCODER
from st_predict.models._features import FeatureModel, features_of, read_features
from st_predict.models._layers import Head, full_precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict.crops import Batch

__all__ = ["MLP", "SPEC"]


class MLP(FeatureModel):
    """A perceptron on standardised embeddings, always in float32.

    Parameters
    ----------
    n_genes
        Size of the panel.
    reading
        Arguments of :func:`st_predict.tl.embed`: ``encoder``, ``features``, ``fields``, ``neighbours`` and ``standardize``.
    n_features
        Number of features per spot. ``None`` if the encoder knows it, as encoders of timm and of
        :func:`st_predict.encoders.list_encoders` do.
    hidden
        Channels of each hidden layer.
    depth
        Number of hidden layers.
    drop
        Dropout rate after each hidden layer.

    Raises
    ------
    ValueError
        If a hyper-parameter is invalid.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        n_features: Count | None = None,
        hidden: Count = 256,
        depth: Annotated[Count, Field(le=1000)] = 1,
        drop: Probability = 0.5,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        if depth < 1 or hidden < 1:
            raise InvalidValueError(f"depth and hidden must be at least 1, got {depth} and {hidden}.")
        self.n_features = self.reading.count(n_features)
        sizes = [self.n_features, *[hidden] * (depth - 1)]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Dropout(drop)) for size in sizes)
        )
        self.head = Head(hidden, n_genes)
        self.register_buffer("mean_D", torch.zeros(self.n_features))
        self.register_buffer("scale_D", torch.ones(self.n_features))

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Raises
        ------
        ValueError
            If the batch has no features, or another number of them.
        """
        with full_precision(self.mean_D):
            x_BD = (read_features(batch, self.n_features, self.reading.encoder) - self.mean_D) / self.scale_D
            return self.head(self.layers(x_BD))

    def fit_inputs(self, batches: Iterable[Batch]) -> None:
        """Compute mean and standard deviation of the training features; constant features are only centred."""
        scaler = StandardScaler()
        for batch in batches:
            scaler.partial_fit(read_features(batch, self.n_features, self.reading.encoder).double().cpu().numpy())
        self.mean_D.copy_(torch.from_numpy(scaler.mean_))
        self.scale_D.copy_(torch.from_numpy(scaler.scale_))

    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        self.head.start_at(mean_G)


SPEC = ModelSpec(
    name="mlp",
    summary="Small perceptron on embeddings of the crops.",
    citation="Rumelhart1986",
    license="BSD-3-Clause (here)",
    build=MLP,
    crop=get_encoder("rgb").crop,
    reads_of=features_of,
    of_card=OF_ENCODER,
    hparams={"encoder": "rgb", "hidden": 256, "depth": 1, "drop": 0.5},
    tiny={"encoder": "rgb", "hidden": 16, "drop": 0.1},
    recommended=replace(
        RECOMMENDED,
        training={"epochs": 60, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 1e-2, "average": 0.98},
    ),
)
