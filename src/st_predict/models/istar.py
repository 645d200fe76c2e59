"""iStar: expression of each cell of a dense map, of which a spot is the mean :cite:p:`Zhang2024`.

Frozen encoders describe square cells of 16 pixels at 0.5 um/px, thus of 8 um. An MLP predicts the expression of each cell by
itself; of a spot is known only the mean over the cells whose centre lies in its disk, and that is what is compared with its
measured expression. Afterwards the MLP can be applied to every cell of the tissue (:func:`st_predict.tl.superresolve`). Five of
them are fitted independently; a cell is predicted by their median.

Written from the paper and from a description of the published code (https://github.com/daviddaiweizhang/istar), which is
under the GPL. Where this differs:

- The publication describes cells by HIPT :cite:p:`Chen2022`: 192 features of what is around a tile, 384 of the cell, and its mean
  colour (``encoder="hipt"``, for those who have its weights). By default it is ``"rgb-cells"`` here, which needs none; the patches of any
  other vision transformer work as well. With HIPT and 250 genes, one MLP has 410,106 parameters.
- All five MLPs see the same batches, and differ in the weights that they start from; one epoch is the best for all of them.
- The publication is trained on the section that it then predicts. This works here too, as does predicting other sections: the
  disk of a spot is then that of its own assay.
- The published code divides a cell by the number of cells in a disk, so that cells add up to a spot. Here their mean is the spot.

Shapes: B spots, K cells of a spot, D features, E fits, M cells of all spots, I and O channels, G genes.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field  # types of hyper-parameters are read at run time
from torch import Tensor, nn
from torch.nn import functional as F

from st_predict._errors import InvalidValueError
from st_predict._validated import Count, Positive  # noqa: TC001  # types of hyper-parameters are read at run time
from st_predict.encoders import get_cell_encoder, load_cell_encoder, weights_digest
from st_predict.models._base import ModelSpec, Preset, Reads, SpotModel
from st_predict.models._card import Digest, Encoders, choice
from st_predict.models._layers import full_precision, renamed
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st_predict.crops import Batch

__all__ = ["SPEC", "IStar", "convert"]

_DEPTH = 4
_SLOPE, _FLOOR = 0.1, 0.01  # of the leaky units; how far the output bends before it would be negative


class IStar(SpotModel):
    """MLPs on the cells of a dense map.

    Parameters
    ----------
    n_genes
        Size of the panel.
    encoder
        What describes the cells: ``"rgb-cells"``; ``"hipt"``; or an encoder of :func:`st_predict.encoders.list_encoders`, or of timm, that
        is a vision transformer.
    cell
        Side of a cell, in pixels of the resolution that the encoder is shown; for a vision transformer that of a patch. By default 16.
    n_shifts
        Of ``"hipt"``: shifts of its tiles along each axis, over which is averaged.
    weights, weights_sha256
        Of ``"hipt"``: a file of :func:`st_predict.encoders.save_hipt_weights`, and its digest, which training adds to the card.
    radius_um
        Radius of the spots, in micrometres. By default that of their shapes, if these are circles.
    n_fits
        How many independent MLPs.
    hidden
        Channels of their layers.

    Raises
    ------
    ValueError
        If there are less than one fit or hidden channel, or the encoder does not describe such cells.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        encoder: str = "rgb-cells",
        cell: Count | None = None,
        n_shifts: Count = 4,
        weights: str | None = None,
        weights_sha256: str | None = None,
        radius_um: Annotated[Positive, Field(le=1000)] | None = None,
        n_fits: Count = 5,
        hidden: Count = 256,
    ) -> None:
        super().__init__()
        if n_fits < 1 or hidden < 1 or n_genes < 1:
            raise InvalidValueError(
                f"n_fits, hidden and n_genes must be at least 1, got {n_fits}, {hidden} and {n_genes}."
            )
        self.n_features = get_cell_encoder(encoder, cell=cell, n_shifts=n_shifts).n_features
        sizes = [self.n_features, *[hidden] * _DEPTH]
        self.layers = nn.ModuleList(Fits(*pair, n_fits=n_fits) for pair in pairwise(sizes))
        self.head = Fits(hidden, n_genes, n_fits=n_fits)

    def forward(self, batch: Batch) -> Tensor:
        """Return the prediction, ``(n_spots, n_genes)``: the mean over cells of the median over fits.

        Raises
        ------
        ValueError
            If the batch has no features of cells.
        """
        y_EBKG, known_BK1 = self.cells(batch)
        n_fits = len(y_EBKG)
        middle = y_EBKG.sort(0).values[(n_fits - 1) // 2 : n_fits // 2 + 1]
        return _mean(middle.mean(0), known_BK1)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error of all fits, each by itself."""
        target_BG, y_EBG = batch.require("target"), _mean(*self.cells(batch))
        return F.mse_loss(y_EBG, target_BG.expand_as(y_EBG))

    def cells(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what each fit predicts for each cell, and which of the cells there are."""
        x_BKD = batch.require("features")
        if x_BKD.ndim != 3 or x_BKD.shape[2] != self.n_features:
            raise InvalidValueError(
                f"iStar reads features (n_spots, n_cells, {self.n_features}) of cells, the batch has {tuple(x_BKD.shape)}."
            )
        missing_BK1 = x_BKD[..., :1].isnan()
        x_EMO = x_BKD.masked_fill(missing_BK1, 0).flatten(0, 1).expand(len(self.head.bias), -1, -1)
        for layer in self.layers:
            x_EMO = F.leaky_relu(layer(x_EMO), _SLOPE)
        with full_precision(x_EMO):
            y_EMG = F.elu(self.head(x_EMO.float()), _FLOOR) + _FLOOR
        return y_EMG.view(-1, *x_BKD.shape[:2], y_EMG.shape[-1]), ~missing_BK1

    def sample(self, batch: Batch, *, seed: int) -> Tensor:
        """Return what one of the fits predicts, drawn at random, ``(n_spots, n_genes)`` :cite:p:`Lakshminarayanan2017`.

        Raises
        ------
        ValueError
            If there is only one.
        """
        y_EBKG, known_BK1 = self.cells(batch)
        if len(y_EBKG) == 1:
            raise InvalidValueError(
                "There is a single fit, so all predictions are the same.", "train a network with n_fits above 1"
            )
        fit = int(torch.randint(len(y_EBKG), (), generator=torch.Generator().manual_seed(seed)))
        return _mean(y_EBKG[fit], known_BK1)

    @torch.no_grad()
    def start_at(self, mean_G: Tensor) -> None:
        """Begin with the mean of each gene; see :meth:`SpotModel.start_at`."""
        low = (mean_G.clamp_min(1e-6) / _FLOOR).log()  # where the output bends
        self.head.bias.copy_(torch.where(mean_G > _FLOOR, mean_G - _FLOOR, low))


def _mean(y_BKG: Tensor, known_BK1: Tensor) -> Tensor:
    """Mean over the cells of a spot."""
    return (y_BKG * known_BK1).sum(-2) / known_BK1.sum(-2)


class Fits(nn.Module):
    """A linear layer of each fit; they begin as those of torch do."""

    def __init__(self, n_in: int, n_out: int, *, n_fits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_fits, n_in, n_out).uniform_(-(n_in**-0.5), n_in**-0.5))
        self.bias = nn.Parameter(torch.empty(n_fits, 1, n_out).uniform_(-(n_in**-0.5), n_in**-0.5))

    def forward(self, x_EMI: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x_EMI, self.weight)


def reads_of(
    *,
    encoder: str = "rgb-cells",
    cell: int | None = None,
    n_shifts: int = 4,
    weights: str | None = None,
    weights_sha256: str | None = None,
    radius_um: float | None = None,
    **_: Any,
) -> Reads:
    """The cells that a spot covers, as the encoder describes them."""
    load = partial(load_cell_encoder, weights=weights, weights_sha256=weights_sha256)
    return Reads(
        kind="cells",
        describe_encoder=lambda: get_cell_encoder(encoder, cell=cell, n_shifts=n_shifts).encoder,
        load_encoder=lambda: load(encoder, cell=cell, n_shifts=n_shifts),
        radius_um=radius_um,
    )


def with_digest(*, weights: str | None = None, **_: Any) -> dict[str, Any]:
    """The SHA-256 of the file of weights, for the card."""
    return {} if weights is None else {"weights_sha256": weights_digest(weights)}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a state dict of one MLP of the published code into one of :class:`IStar` with a single fit.

    Tensors of several fits are joined along their first axis.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    layers = {f"layers.{i}": f"net_lat.{i}.linear" for i in range(_DEPTH)} | {"head": "net_out.linear"}
    names = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")}
    found = renamed(state, names, model="iStar")
    return {name: tensor.T[None] if tensor.ndim > 1 else tensor[None, None] for name, tensor in found.items()}


def hparams_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Hyper-parameters that the shapes of converted weights tell."""
    n_fits, n_features, hidden = state["layers.0.weight"].shape
    hipt = n_features == get_cell_encoder("hipt").n_features
    return {"n_fits": n_fits, "hidden": hidden, "encoder": "hipt" if hipt else None}


SPEC = ModelSpec(
    name="istar",
    summary="MLP on the cells of a dense map, of which a spot is the mean.",
    citation="Zhang2024",
    license="GPL-3.0 (github.com/daviddaiweizhang/istar)",
    family="dense",
    build=IStar,
    crop=get_cell_encoder("rgb-cells").crop,
    reads_of=reads_of,
    complete_of=with_digest,
    of_card={"encoder": choice("rgb-cells", "hipt") | Encoders, "weights_sha256": Digest | None},
    of_user=("weights",),
    at_prediction=("weights", "radius_um"),
    hparams={"encoder": "rgb-cells", "n_fits": 5, "hidden": 256},
    tiny={"encoder": "rgb-cells", "cell": 8, "n_fits": 3, "hidden": 128},
    original=Preset(
        training={"epochs": 400, "batch_size": 128, "lr": 1e-4, "augment": False, "start_at_mean": False},
        hparams={"encoder": "hipt"},
        target=TargetSpec(transform="counts", scale="minmax"),
        panel="hvg",
        notes="Batches have 128 spots, and not a sixteenth of the spots where that is less. Cells at the edge of the image are "
        "described like all others. The panel are genes of a high variance that is above what their mean lets expect, not simply of a "
        "high variance of counts.",
    ),
    convert=convert,
    hparams_of=hparams_of,
)
