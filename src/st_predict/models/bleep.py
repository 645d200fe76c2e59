"""BLEEP: mean expression of the measured spots nearest to a crop in a joint embedding :cite:p:`Xie2023`.

Crops and expression are embedded in one space by contrastive learning. All training spots are kept in a reference bank. The
prediction is the mean expression of the bank's spots whose embedded expression is nearest to the embedded crop. It stays in
the measured range and covers every gene of the panel, whether the network reads it or not.

Written from the paper and from the behaviour of the published code (https://github.com/bowang-lab/BLEEP, Apache-2.0);
:func:`convert` reads its weights. Differences:

- Published crops have red and blue exchanged; here they are RGB. The last published commit transposes crops and reads an
  attribute that is never set, so it cannot run; here crops are normalised and turned as it intends.
- The publication corrects expression by Harmony over all sections, including the predicted one; here it is not corrected.
- The soft targets are softmaxes of similarities divided by the temperature. With backbones other than ResNet50 the
  published code multiplies; at its temperature, 1, both are equal.

The loss is contrastive in every preset: the mean squared error of a retrieval has no gradient.

Shapes: B spots, R spots of the bank, K retrieved spots of the bank, C colours, H W image, D features, E channels of the
common space, G genes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._backbones import create_backbone, fetch_weights, n_features, weights_notice
from st_predict._errors import InvalidValueError
from st_predict._validated import Count, Natural, Positive, Probability, validated
from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._card import OF_TIMM
from st_predict.models._checks import check_names
from st_predict.models._layers import full_precision, resize_on_load
from st_predict.models._timm import crop_of, pixels_of
from st_predict.specs import IMAGENET, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict.crops import Batch

__all__ = ["BLEEP", "SPEC", "BLEEPConfig", "Bank", "contrastive_loss", "convert"]

Mode = Literal["simple", "average", "weighted"]


@validated
class BLEEPConfig:
    """Hyper-parameters of :class:`BLEEP`.

    Parameters
    ----------
    arch, weights, arch_args
        Image encoder: architecture in timm, tag of its pretrained weights (``None`` for random initial weights), and
        further arguments of the architecture.
    size
        Side of the crop, in pixels.
    dim
        Channels of the common space.
    drop
        Dropout rate in the heads.
    temperature
        Divisor of similarities in the loss.
    mode
        Prediction from the retrieved spots. ``"simple"``: the nearest spot. ``"average"``: mean of the ``k`` nearest.
        ``"weighted"``: their mean with weights ``exp(-d**2)``, where ``d`` is the distance of the embeddings before
        normalisation (constants that the published code adds to ``d**2`` cancel out).
    k
        Number of spots to retrieve, for ``"average"`` and ``"weighted"``; at most the size of the bank.
    encoded
        Indices into the panel of the genes that the expression head reads; ``None`` for all. With a panel of the whole
        transcriptome, let the head read only highly variable genes::

            genes = list(table.var_names)
            variable = st_predict.pp.select_panel(sections, n_genes=1000, method="hvg")
            hparams = {"encoded": [genes.index(gene) for gene in variable]}
            st_predict.tl.train(sections, "bleep", panel=genes, hparams=hparams, out="bleep")
    """

    arch: str = "resnet50"
    weights: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    size: Count = 224
    dim: Count = 256
    drop: Probability = 0.1
    temperature: Positive = 1.0
    mode: Mode = "average"
    k: Count = 50
    encoded: tuple[Natural, ...] | None = None

    def n_encoded(self, n_genes: int) -> int:
        """Count the genes of a panel that the expression head reads.

        Raises
        ------
        ValueError
            If ``encoded`` does not fit the panel, or the panel is empty.
        """
        if n_genes < 1:
            raise InvalidValueError(f"n_genes must be at least 1, got {n_genes}.")
        if self.encoded is None:
            return n_genes
        wrong = [i for i, n in Counter(self.encoded).items() if n > 1 or not 0 <= i < n_genes]
        if wrong or not self.encoded:
            raise InvalidValueError(
                f"encoded must hold at least one index into the panel, each once and from 0 to {n_genes - 1}; it has "
                f"{len(self.encoded)}, of which {wrong[:5]} are wrong."
            )
        return len(self.encoded)


class BLEEP(SpotModel):
    """Network of BLEEP with its reference bank.

    Parameters
    ----------
    n_genes
        Size of the panel.
    hparams
        Fields of :class:`BLEEPConfig`.

    Raises
    ------
    ValueError
        If the hyper-parameters do not fit together.
    """

    encoded_D: Tensor | None

    def __init__(self, n_genes: int, **hparams: Any) -> None:
        super().__init__()
        self.config = c = BLEEPConfig(**hparams)
        n_encoded = c.n_encoded(n_genes)
        self.backbone = create_backbone(c.arch, **c.arch_args)
        self.image_head = Projection(n_features(self.backbone), c)
        self.expression_head = Projection(n_encoded, c)
        self.bank = Bank(n_genes, c)
        self.register_buffer("encoded_D", None if c.encoded is None else torch.tensor(c.encoded), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``.

        Raises
        ------
        RuntimeError
            If the reference bank is empty.
        """
        return self.bank(self.embed_crops(batch.crops[0]))

    def loss(self, batch: Batch) -> Tensor:
        """Return the contrastive loss of the batch, a scalar; see :func:`contrastive_loss`."""
        spots_BE = self.embed_expression(batch.require("target"))
        return contrastive_loss(self.embed_crops(batch.crops[0]), spots_BE, self.config.temperature)

    def embed_crops(self, crops_BCHW: Tensor) -> Tensor:
        """Embed uint8 crops, ``(n_spots, dim)``."""
        x_BCHW = self.pixels(crops_BCHW).contiguous(memory_format=torch.channels_last)
        return self.image_head(self.backbone(x_BCHW))

    def embed_expression(self, target_BG: Tensor) -> Tensor:
        """Embed the expression of spots, ``(n_spots, dim)``."""
        return self.expression_head(target_BG if self.encoded_D is None else target_BG[:, self.encoded_D])

    def load_pretrained(self) -> None:
        """Load the pretrained ``weights`` into the image encoder."""
        c = self.config
        if c.weights is not None:
            self.backbone.load_state_dict(fetch_weights(f"{c.arch}.{c.weights}", **c.arch_args).state_dict())

    @property
    def notice(self) -> str:
        """Origin and licence of ``weights``; see :attr:`~st_predict.models.SpotModel.notice`."""
        return weights_notice(self.config.weights and f"{self.config.arch}.{self.config.weights}")

    @torch.inference_mode(
        mode=False
    )  # tensors made in inference mode, where validation may run, cannot be used in training
    @torch.no_grad()
    def finalize(self, batches: Iterable[Batch]) -> None:
        """Fill the reference bank with the targets of all spots. Needs twice the bank's memory meanwhile."""
        targets = [batch.require("target") for batch in batches]
        bank, training = self.bank, self.expression_head.training
        bank.values = bank.values[:0].clone()  # frees the old bank
        self.expression_head.eval()
        bank.keys = torch.cat([self.embed_expression(target_BG.to(bank.keys)) for target_BG in targets])
        bank.values = torch.cat(targets).to(bank.values)
        self.expression_head.train(training)


class Projection(nn.Module):
    """Projection of features, ``(n_spots, n_features)``, into the common space, always in float32."""

    def __init__(self, n_features: int, c: BLEEPConfig) -> None:
        super().__init__()
        self.first = nn.Linear(n_features, c.dim)
        self.second = nn.Linear(c.dim, c.dim)
        self.drop = nn.Dropout(c.drop)
        self.norm = nn.LayerNorm(c.dim)

    def forward(self, x_BD: Tensor) -> Tensor:
        with full_precision(x_BD):
            x_BE = self.first(x_BD.to(self.first.weight.dtype))
            return self.norm(x_BE + self.drop(self.second(F.gelu(x_BE))))


def contrastive_loss(images_BE: Tensor, spots_BE: Tensor, temperature: float) -> Tensor:
    """Contrastive loss between the crops and the expression of a batch.

    The cross entropy over crops per expression, and over expressions per crop. Soft targets are the similarities among crops
    and among expressions; they sum to 1 only over crops. Gradients flow through them as well.
    """
    with full_precision(images_BE):
        logits_BB = spots_BE @ images_BE.T / temperature  # expressions down, crops across
        alike_BB = (images_BE @ images_BE.T + spots_BE @ spots_BE.T) / (2 * temperature)
        both_BB = logits_BB.log_softmax(1) + logits_BB.log_softmax(0)
        return -(alike_BB.softmax(1) * both_BB).sum() / (2 * len(logits_BB))


_BLOCK = 16_384  # spots of the bank compared at a time


class Bank(nn.Module):
    """Measured spots: ``keys``, embedded expression ``(n, dim)``, and ``values``, targets ``(n, n_genes)``."""

    keys: Tensor
    values: Tensor

    def __init__(self, n_genes: int, c: BLEEPConfig) -> None:
        super().__init__()
        self.mode, self.k = c.mode, 1 if c.mode == "simple" else c.k
        self.register_buffer("keys", torch.empty(0, c.dim))
        self.register_buffer("values", torch.empty(0, n_genes))
        resize_on_load(self, "keys", "values")

    def forward(self, images_BE: Tensor) -> Tensor:
        """Return the mean target of the spots nearest to embedded crops, ``(n_spots, n_genes)``."""
        if not len(self.keys):
            raise RuntimeError(
                "The reference bank is empty, and BLEEP predicts from the spots in it: train the network, or fill the bank "
                "with finalize(batches)."
            )
        with full_precision(images_BE):
            nearest_BK = self.nearest(images_BE)
            # an embedding bag adds up rows without copying them
            return F.embedding_bag(
                nearest_BK, self.values, per_sample_weights=self._weights(images_BE, nearest_BK), mode="sum"
            )

    @torch.no_grad()
    def nearest(self, images_BE: Tensor) -> Tensor:
        """Return the rows of the spots with the largest cosine similarity, ``(n_spots, k)``, nearest first."""
        k, query_BE = min(self.k, len(self.keys)), F.normalize(images_BE)
        cosines, rows = [], []
        for start in range(0, len(self.keys), _BLOCK):
            keys_RE = self.keys[start : start + _BLOCK]
            cosine_BR = query_BE @ keys_RE.T / torch.linalg.vector_norm(keys_RE, dim=1)
            best = cosine_BR.topk(min(k, len(keys_RE)))
            cosines.append(best.values)
            rows.append(best.indices + start)
        return torch.cat(rows, 1).gather(1, torch.cat(cosines, 1).topk(k).indices)

    def _weights(self, images_BE: Tensor, nearest_BK: Tensor) -> Tensor:
        if self.mode == "weighted":
            return (self.keys[nearest_BK] - images_BE[:, None]).square().sum(2).neg().softmax(1)
        return images_BE.new_full(nearest_BK.shape, 1 / nearest_BK.shape[1])


_TRUNK = "image_encoder.model."
_HEADS = {"image_projection": "image_head", "spot_projection": "expression_head"}
_LAYERS = {"projection": "first", "fc": "second", "layer_norm": "norm"}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the published code (any backbone) to :class:`BLEEP`, with an empty reference bank.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    # earlier versions of the published code call a spot "well"
    theirs = {name.removeprefix("module.").replace("well_", "spot_"): tensor for name, tensor in state.items()}
    ours = {
        f"{head}.{layer}.{part}": f"{_HEADS[head]}.{_LAYERS[layer]}.{part}"
        for head in _HEADS
        for layer in _LAYERS
        for part in ("weight", "bias")
    }
    trunk = {name: f"backbone.{name.removeprefix(_TRUNK)}" for name in theirs if name.startswith(_TRUNK)}
    check_names(theirs, ours, model="BLEEP", unused=trunk, missing=() if trunk else [f"{_TRUNK}*"])
    ours |= trunk
    dim, n_genes = theirs["spot_projection.projection.weight"].shape
    bank = {"bank.keys": torch.empty(0, dim), "bank.values": torch.empty(0, n_genes)}
    return {ours[name]: tensor for name, tensor in theirs.items()} | bank


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer hyper-parameters from the shapes of converted weights."""
    return {"dim": len(state["image_head.first.weight"])}


SPEC = ModelSpec(
    name="bleep",
    summary="Contrastive embedding of crop and expression, answered by the nearest measured spots.",
    citation="Xie2023",
    license="Apache-2.0 (github.com/bowang-lab/BLEEP)",
    family="retrieval",
    at_prediction=("mode", "k"),
    build=BLEEP,
    config=BLEEPConfig,
    crop=crop_of(),
    crop_of=crop_of,
    pixels=IMAGENET,
    pixels_of=pixels_of,
    of_card=OF_TIMM,
    hparams={"arch": "resnet50", "weights": None, "size": 224, "dim": 256, "mode": "average", "k": 50},
    original=Preset(
        training={
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 1e-3,
            "batch_size": 256,
            "epochs": 4,
            "monitor": "loss",
        },
        hparams={"weights": "a1_in1k"},  # timm's default weights
        target=TargetSpec(total=1e4, over="all"),
        panel="hvg",
        notes="Not reproduced: Harmony over all sections, including the predicted one; red and blue exchanged; spots "
        "scaled to the median total of their section, here to 10,000; the union of the highly variable genes of each "
        "section; validation on a random 20 % of the spots of the training sections; leaving out the last, smaller batch of "
        "an epoch. The publication has 3,467 genes, that union over its four sections, the predicted one included; here "
        "`panel=3467` selects as many, from the training sections only.",
    ),
    tiny={
        "size": 32,
        "arch_args": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
        "dim": 8,
        "mode": "weighted",
    },
    convert=convert,
    hparams_of=hparams_of,
)
