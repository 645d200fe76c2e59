"""Predict every cell of the tissue of a section."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from st_predict import checkpoints
from st_predict._errors import Advice, InvalidValueError
from st_predict._keys import Keys
from st_predict._progress import shows_progress, track
from st_predict._record import Record
from st_predict._results import Lattice, check_cells, write_cells
from st_predict._runtime import Compute, Inference
from st_predict._sections import CellReader, as_list, each, stain_of, stained
from st_predict._validated import Fields, File, Flag, Name, check
from st_predict._where import Where
from st_predict.crops import Batch
from st_predict.encoders import CellEncoder
from st_predict.io import PyramidReader, find_image, find_mpp, find_region, named_table, open_pyramid
from st_predict.models import get_spec
from st_predict.pp import find_tissue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._sections import CellGrid, Sections
    from st_predict._stain import Stain
    from st_predict.checkpoints import Trained
    from st_predict.io import Mpp
    from st_predict.pp import Tissue
    from st_predict.specs import CropSpec, ModelCard

__all__ = ["superresolve"]

logger = logging.getLogger(__name__)

_TOGETHER = 4096  # cells that the network predicts at a time


@shows_progress
def superresolve(  # noqa: PLR0913  # every one is a keyword
    sdata: Sections,
    model: PathLike[str] | str | Trained,
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    bin_um: float | None = None,
    mpp: float | Literal["spots"] | None = None,
    tissue_only: bool = True,
    out: PathLike[str] | str | None = None,
    key_added: str | None = None,
    hparams: Mapping[str, Any] | None = None,
    trust: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool | None = None,
) -> None:
    """Predict every cell of the tissue of a section: squares of 8 um, unless the network was trained with others.

    The network is one of cells, as iStar, whether it was trained on the spots of this section, or on other sections. No spots
    are needed, and counts are never read.

    A cell has the units of a spot: the mean over the cells in the disk of a spot is what :func:`predict` gives for the spot. Where
    the target is in counts, a cell thus has as many as a spot all of whose cells were like it.

    Parameters
    ----------
    sdata
        Holds the image. One object, a list or a mapping; all are checked before the first is predicted.
    model
        Result of :func:`train`, path of its ``.safetensors`` file, or name of a released checkpoint.
    image_key
        RGB image, 8 bit, single- or multi-scale; may be left out if there is one.
    table_key
        Table of spots, if the mpp of the image is to be had from its assay.
    bin_um
        Side of the bins of Visium HD in micrometres, such as 16, instead of ``table_key``.
    mpp
        Micrometres per pixel of level 0 of the image; ``"spots"`` takes it from the lattice of the assay.
    tissue_only
        Whether to leave out cells whose centre is not on the tissue (:func:`st_predict.pp.find_tissue`).
    out
        Folder to make, in which the table is stored by zarr, for sections that would not fit into memory. In ``sdata``,
        ``.X`` is then a dask array that is read from there. For one section only.
    key_added
        Name of the table. By default ``cells_{model}``.
    hparams
        Hyper-parameters to change, as in :func:`predict`.
    trust
        Whether to take the card of the checkpoint as it is. By default a card may name encoders of
        :func:`st_predict.encoders.list_encoders` only, and no files; see :func:`st_predict.checkpoints.load`.
    batch_size
        Cells that the network predicts at a time.
    device
        ``"auto"`` takes the first GPU if there is one; ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the device does so natively; ``"float32"``, ``"bfloat16"``.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    Nothing; adds to ``sdata``:

    ``.tables[key_added]`` : :class:`~anndata.AnnData`, ``(n_cells, n_genes)``, float32
        A row a cell, tile by tile as the encoder sees them. ``.obs["array_row"]`` and ``.obs["array_col"]`` are its place on
        the lattice of cells, which begins at the corner of the image, so that :func:`spatialdata.rasterize_bins` makes an image of a
        gene. ``.obsm["spatial"]`` are centres in level-0 pixels; ``.uns["st_predict"]`` says where the values come from.
    ``.shapes[f"{key_added}_grid"]`` : :class:`~geopandas.GeoDataFrame` of circles
        The cells that the rows are linked to, in level-0 pixels and with all transformations of the image. Their diameter is
        the side of a cell.

    Both replace what an earlier call has made under the same name. :func:`st_predict.get.prediction` and
    :func:`st_predict.pl.spatial` take ``key_added``.

    Raises
    ------
    KeyError
        If the image or the model does not exist; the message lists those that do.
    FileExistsError
        If ``out`` exists.
    ValueError
        If the network does not predict cells; something else has the name ``key_added``; there is no tissue; or as for
        :func:`predict`.
    MemoryError
        If memory does not suffice for one tile.
    """
    where = Where(image_key=image_key, table_key=table_key, bin_um=bin_um, mpp=mpp)
    compute = Compute(device=device, precision=precision, batch_size=batch_size)
    key_added, hparams = check("key_added", key_added, Name | None), check("hparams", hparams, Fields | None)
    tissue_only, out = check("tissue_only", tissue_only, Flag), check("out", out, File | None)
    slides = as_list(sdata, "sdata")
    each(slides, lambda slide: _image(slide, where), named=sdata)  # before weights are loaded
    _refuse_one_folder(out, slides)
    path = checkpoints.find_weights(model)
    network, card = checkpoints.load(path, hparams=hparams, trust=trust)
    _refuse_spots(card)
    encoder = checkpoints.load_encoder(path, card, hparams=hparams, trust=trust)
    assert isinstance(encoder, CellEncoder)
    key, together = key_added or Keys.cells(card.model), compute.batch_size or _TOGETHER
    inference = Inference(network, working_batch=together, device=compute.place, precision=compute.precision)
    read = {"checkpoint": checkpoints.name_of(model), "tissue_only": tissue_only}

    for planned in each(slides, lambda slide: _plan(slide, where, card, key=key, out=out), named=sdata):
        reader = planned.reader(encoder, card.crop, compute)
        _write(planned, reader, inference, Record(card=card, params=read), key=key, out=out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A section whose cells are to be predicted."""

    sdata: SpatialData
    image_key: str
    mpp: Mpp | None
    stain: Stain | None

    def reader(self, encoder: CellEncoder, crop: CropSpec, compute: Compute) -> CellReader:
        """Return what gives the features of its cells."""
        mpp = None if self.mpp is None else self.mpp.value
        image: PyramidReader = open_pyramid(self.sdata, self.image_key)
        if self.stain is not None:
            image, _ = stained(self.sdata, self.image_key, image, self.stain)
        return CellReader(image, encoder, crop, mpp=mpp, compute=compute)


def _plan(sdata: SpatialData, where: Where, card: ModelCard, *, key: str, out: PathLike[str] | str | None) -> _Plan:
    check_cells(sdata, key, out)
    image_key = _image(sdata, where)
    return _Plan(sdata=sdata, image_key=image_key, mpp=_resolution(sdata, image_key, where, card), stain=stain_of(card))


def _write(
    planned: _Plan,
    reader: CellReader,
    inference: Inference,
    record: Record,
    *,
    key: str,
    out: PathLike[str] | str | None,
) -> None:
    """Predict the cells of a section, and write them."""
    tissue = find_tissue(planned.sdata, planned.image_key) if record.params["tissue_only"] else None
    cells = _on_tissue(reader.grid, tissue)
    params = {**record.params, "image": planned.image_key, **_describe(reader, inference, planned.mpp)}
    write_cells(
        planned.sdata,
        key,
        _predict(reader, inference, cells),
        replace(record, params=params),
        lattice=_lattice(reader.grid, cells),
        image_key=planned.image_key,
        out=out,
    )
    logger.info("Predicted %d cells, %.4g px wide, in the table %r.", len(cells), reader.grid.width, key)


def _image(sdata: SpatialData, where: Where) -> str:
    table_key = named_table(sdata, where.table_key, where.bin_um)
    return find_image(sdata, cast("str | None", where.image_key), region=find_region(sdata, table_key))


def _refuse_one_folder(out: PathLike[str] | str | None, slides: Sequence[SpatialData]) -> None:
    if out is not None and len(slides) > 1:
        raise InvalidValueError(
            f"{str(out)!r} is one folder, and there are {len(slides)} sections.",
            Advice("leave out {}", "out"),
            "call this function once per section, with a folder for each",
        )


def _resolution(sdata: SpatialData, image_key: str, where: Where, card: ModelCard) -> Mpp | None:
    mpp = cast("float | Literal['spots'] | None", where.mpp)  # of one image
    table_key = named_table(sdata, where.table_key, where.bin_um)
    return find_mpp(sdata, image_key=image_key, table_key=table_key, mpp=mpp, required=card.crop.mpp is not None)


def _describe(reader: CellReader, inference: Inference, mpp: Mpp | None) -> dict[str, Any]:
    """Return what a reader of the result needs to know of how cells were seen and computed."""
    return {
        "mpp": None if mpp is None else mpp.value,
        "mpp_source": "unknown" if mpp is None else mpp.source,
        "cell_px": reader.grid.width,
        "device": str(inference.device),
        "precision": inference.precision,
    }


def _refuse_spots(card: ModelCard) -> None:
    """Refuse a network that does not predict cells, before its encoder is loaded."""
    if get_spec(card.model).reads(card.hparams).kind != "cells":
        raise InvalidValueError(
            f"{card.model!r} predicts spots from the image around them, and not cells.",
            "for a fine map, lay a lattice of spots with st_predict.pp.make_grid(sdata, pitch_um=...), and predict these with "
            "st_predict.tl.predict",
        )


def _on_tissue(grid: CellGrid, tissue: Tissue | None) -> NDArray[np.int64]:
    """Numbers of the cells to predict, rising."""
    if tissue is None:
        return np.concatenate(list(grid.bands()))
    cells = np.concatenate([band[tissue.at(grid.centres(band))] for band in grid.bands()])
    if not len(cells):
        raise InvalidValueError(
            f"No tissue found: {100 * tissue.mask.mean():.2g} % of the image is tissue (contrast above {tissue.threshold:.3g}).",
            Advice("take cells everywhere with {}", "tissue_only", value=False),
        )
    return cells


def _lattice(grid: CellGrid, cells: NDArray[np.int64]) -> Lattice:
    rows, columns = grid.places(cells)
    return Lattice(rows=rows, columns=columns, centres=grid.centres(cells), width=grid.width)


def _predict(
    reader: CellReader, inference: Inference, cells: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield places in ``cells``, and ``(n, n_genes)`` for these."""
    for places, features in track(
        reader.describe(cells), "Predicting cells", len(cells), unit="cell", size=lambda one: len(one[0])
    ):
        batch = Batch(crops=(), index=torch.from_numpy(places), features=torch.from_numpy(features[:, None]))
        yield places, inference(batch).cpu().numpy()
