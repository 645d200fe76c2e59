"""iStar: expression of the cells of a dense map, trained on their mean per spot :cite:p:`Zhang2024`.

Frozen encoders describe square cells of 16 pixels at 0.5 um/px, that is 8 um. An MLP predicts the expression of each cell. It
is weakly supervised: the mean over the cells whose centre lies in the disk of a spot is compared with the spot's measured
expression. Afterwards the MLP can be applied to every cell of the tissue (:func:`st_predict.tl.superresolve`). Five MLPs are
fitted independently; the prediction of a cell is their median.

Written from the paper and from a description of the published code (https://github.com/daviddaiweizhang/istar), which is
under the GPL. Differences:

- The publication describes cells by HIPT :cite:p:`Chen2022`: 192 features of the surroundings, 384 of the cell, and its mean
  colour (``encoder="hipt"``, which needs its weights). The default here is ``"rgb-cells"``, which needs no weights; the patches
  of any other vision transformer work as well. With HIPT and 250 genes, one MLP has 410,106 parameters.
- HIPT's features of a cell and its colour are the published ones. The 192 of the surroundings are not the same: the
  published code passes each shift of a section through the network in parts of one size, padded to multiples of 4,096 pixels,
  and the network sees the padding; here it sees the tiles of the whole section. They correlate by 0.96 (median over
  features, at worst -0.56), so a published MLP does not see its features here: fit it again.
- The cells of a spot are those whose centre lies in its disk. The published disks overlap with these by 0.86.
- All five MLPs see the same batches and differ in their initial weights; the best epoch is chosen jointly.
- The publication trains on the section that it then predicts. This works here too. Other sections can be predicted as well;
  the disk of a spot is then its own assay's.
- The published code divides a cell by the number of cells in a disk, so that cells add up to a spot. Here their mean is the spot.

Shapes: B spots, K cells per spot, D features, E fits, M cells of all spots, I and O channels, G genes.
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
_SLOPE, _FLOOR = 0.1, 0.01  # slope of leaky units; value below which the output bends so that it stays positive


class IStar(SpotModel):
    """MLPs on the cells of a dense map.

    Parameters
    ----------
    n_genes
        Size of the panel.
    encoder
        Encoder of the cells: ``"rgb-cells"``, ``"hipt"``, or a vision transformer of :func:`st_predict.encoders.list_encoders` or of
        timm.
    cell
        Side of a cell, in pixels at the encoder's resolution, by default 16. For a vision transformer, the side of its patches.
    n_shifts
        Number of shifts of HIPT's tiles along each axis, to average features over; only for ``"hipt"``.
    weights, weights_sha256
        File written by :func:`st_predict.encoders.save_hipt_weights`, and its digest, which training adds to the card; only for
        ``"hipt"``.
    radius_um
        Radius of the spots, in micrometres. By default from their shapes, if these are circles.
    n_fits
        Number of independent MLPs.
    hidden
        Channels of the hidden layers.

    Raises
    ------
    ValueError
        If ``n_fits`` or ``hidden`` is below 1, or the encoder does not describe such cells.
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
        """Return the prediction, ``(n_spots, n_genes)``: median over fits, then mean over cells.

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
        """Return the mean squared error, averaged over fits."""
        target_BG, y_EBG = batch.require("target"), _mean(*self.cells(batch))
        return F.mse_loss(y_EBG, target_BG.expand_as(y_EBG))

    def cells(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the prediction of each fit for each cell, and a mask of existing cells."""
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
        """Return the prediction of a randomly drawn fit, ``(n_spots, n_genes)`` :cite:p:`Lakshminarayanan2017`.

        Raises
        ------
        ValueError
            If ``n_fits`` is 1.
        """
        y_EBKG, known_BK1 = self.cells(batch)
        if len(y_EBKG) == 1:
            raise InvalidValueError(
                "The network has a single fit, so all samples are the same.", "train a network with n_fits above 1"
            )
        fit = int(torch.randint(len(y_EBKG), (), generator=torch.Generator().manual_seed(seed)))
        return _mean(y_EBKG[fit], known_BK1)

    @torch.no_grad()
    def start_at(self, mean_G: Tensor) -> None:
        """Initialise with the mean of each gene; see :meth:`~st_predict.models.SpotModel.start_at`."""
        # lower means, as residuals have, would start where the output is so flat that nothing is learned
        self.head.bias.copy_((mean_G - _FLOOR).clamp_min(0))


def _mean(y_BKG: Tensor, known_BK1: Tensor) -> Tensor:
    """Mean over the cells of each spot."""
    return (y_BKG * known_BK1).sum(-2) / known_BK1.sum(-2)


class Fits(nn.Module):
    """One linear layer per fit, initialised like torch's."""

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
    """Inputs of the network: features of the cells that each spot covers."""
    load = partial(load_cell_encoder, weights=weights, weights_sha256=weights_sha256)
    return Reads(
        kind="cells",
        describe_encoder=lambda: get_cell_encoder(encoder, cell=cell, n_shifts=n_shifts).encoder,
        load_encoder=lambda: load(encoder, cell=cell, n_shifts=n_shifts),
        radius_um=radius_um,
    )


def with_digest(*, weights: str | None = None, **_: Any) -> dict[str, Any]:
    """SHA-256 of the weights file, for the card."""
    return {} if weights is None else {"weights_sha256": weights_digest(weights)}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of one MLP of the published code to :class:`IStar` with a single fit.

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
    """Infer hyper-parameters from the shapes of converted weights."""
    n_fits, n_features, hidden = state["layers.0.weight"].shape
    hipt = n_features == get_cell_encoder("hipt").n_features
    return {"n_fits": n_fits, "hidden": hidden, "encoder": "hipt" if hipt else None}


SPEC = ModelSpec(
    name="istar",
    summary="MLP on the cells of a dense map; a spot is the mean of its cells.",
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
        notes="Batches have 128 spots, also if a sixteenth of the spots is fewer. Cells at the edge of the image are treated like "
        "all others. The panel are highly variable genes given their mean, not genes with a high variance of counts.",
    ),
    convert=convert,
    hparams_of=hparams_of,
)
