"""Super-resolution: predictions of every cell of the tissue."""

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

_TOGETHER = 4096  # cells per batch


@shows_progress
def superresolve(  # noqa: PLR0913  # every argument is a keyword
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
    hparams: Mapping[str, object] | None = None,
    trust: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    progress: bool | None = None,
) -> None:
    """Predict gene expression of every cell of the tissue: squares of 8 um, unless the network was trained with another size.

    The network must be a cell-level model such as iStar, trained on this section's spots or on other sections. Spots
    are not needed, and counts are never read.

    Cells have the units of a spot: the mean over the cells within a spot equals the prediction of :func:`predict`. For
    targets in counts, a cell's value is the count of a spot that consists of such cells.

    Parameters
    ----------
    sdata
        Slide with the image. One object, a list or a mapping; all are checked before the first is predicted.
    model
        Result of :func:`train`, path of its ``.safetensors`` file, or name of a released checkpoint.
    image_key
        Key of the RGB image, 8 bit, single- or multi-scale; optional if there is only one.
    table_key
        Key of the spots' table, used to derive the mpp from the assay's spot pitch.
    bin_um
        Bin size of Visium HD in micrometres, such as 16; alternative to ``table_key``.
    mpp
        Micrometres per pixel (mpp) of the image at level 0; ``"spots"`` derives it from the assay's spot pitch.
    tissue_only
        Whether to leave out cells whose centre is off the tissue (:func:`st_predict.pp.find_tissue`).
    out
        New folder for the table, as zarr, for results larger than memory. ``.X`` in ``sdata`` is then a dask array that
        reads from it. Only for a single section.
    key_added
        Name of the table; by default ``cells_{model}``.
    hparams
        Hyper-parameters to change, as in :func:`predict`.
    trust
        Whether to accept every encoder and file that the checkpoint's card names. By default only encoders of
        :func:`st_predict.encoders.list_encoders` are accepted, and no files; see :func:`st_predict.checkpoints.load`.
    batch_size
        Number of cells per batch.
    device
        Device: ``"auto"`` (the first GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    precision
        Floating-point precision: ``"auto"`` (bfloat16 where the device supports it natively), ``"float32"`` or
        ``"bfloat16"``.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    None
        Adds to ``sdata``:

        ``.tables[key_added]`` : :class:`~anndata.AnnData`, ``(n_cells, n_genes)``, float32
            One row per cell, in the encoder's order of tiles. ``.obs["array_row"]`` and ``.obs["array_col"]`` are the
            position on the lattice of cells, counted from the corner of the image; :func:`spatialdata.rasterize_bins` turns
            a gene into an image with them. ``.obsm["spatial"]`` has centres in level-0 pixels, ``.uns["st_predict"]`` the
            record of the prediction.
        ``.shapes[f"{key_added}_grid"]`` : :class:`~geopandas.GeoDataFrame` of circles
            Cells that the rows annotate, in level-0 pixels and with all transformations of the image. The diameter is the
            cell size.

        Both replace the result of an earlier call with the same name. :func:`st_predict.get.prediction` and
        :func:`st_predict.pl.spatial` take ``key_added``.

    Raises
    ------
    KeyError
        If the image or the model does not exist; the message lists the existing ones.
    FileExistsError
        If ``out`` exists.
    ValueError
        If the network does not predict cells; ``key_added`` holds something else; no tissue is found; or as for
        :func:`predict`.
    MemoryError
        If memory is too small for one tile.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> small = {"encoder": "rgb-cells", "n_fits": 1, "hidden": 2}
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(sdata, "istar", panel=["GENE1"], out=out, mpp=2, hparams=small, config={"epochs": 1})
    ...     stp.tl.superresolve(sdata, result)
    >>> sdata["cells_istar"].shape  # cells, genes
    (650, 1)
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
    """A section to predict."""

    sdata: SpatialData
    image_key: str
    image: PyramidReader
    mpp: Mpp | None
    stain: Stain | None

    def reader(self, encoder: CellEncoder, crop: CropSpec, compute: Compute) -> CellReader:
        """Return the reader of its cells' features."""
        mpp = None if self.mpp is None else self.mpp.value
        return CellReader(self.image, encoder, crop, mpp=mpp, compute=compute)

    def describe(self) -> dict[str, Any]:
        """Return the image, its resolution and its own stain, if that was normalised."""
        return {
            "image": self.image_key,
            "mpp": None if self.mpp is None else self.mpp.value,
            "mpp_source": "unknown" if self.mpp is None else self.mpp.source,
            **({} if self.stain is None else {"stain": self.stain.to_dict()}),
        }


def _plan(sdata: SpatialData, where: Where, card: ModelCard, *, key: str, out: PathLike[str] | str | None) -> _Plan:
    check_cells(sdata, key, out)
    image_key, target = _image(sdata, where), stain_of(card)
    image, own = open_pyramid(sdata, image_key), None
    if target is not None:
        image, own = stained(sdata, image_key, image, target)
    mpp = _resolution(sdata, image_key, where, card)
    return _Plan(sdata=sdata, image_key=image_key, image=image, mpp=mpp, stain=own)


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
    params = {**record.params, **planned.describe(), **_describe(reader, inference)}
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
            f"{str(out)!r} is a single folder, got {len(slides)} sections.",
            Advice("leave out {}", "out"),
            "call this function once per section, each with its own folder",
        )


def _resolution(sdata: SpatialData, image_key: str, where: Where, card: ModelCard) -> Mpp | None:
    mpp = cast("float | Literal['spots'] | None", where.mpp)  # of one image
    table_key = named_table(sdata, where.table_key, where.bin_um)
    return find_mpp(sdata, image_key=image_key, table_key=table_key, mpp=mpp, required=card.crop.mpp is not None)


def _describe(reader: CellReader, inference: Inference) -> dict[str, Any]:
    """Return the settings of the prediction for its record."""
    return {
        "cell_px": reader.grid.width,
        "device": str(inference.device),
        "precision": inference.precision,
    }


def _refuse_spots(card: ModelCard) -> None:
    """Refuse a network that does not predict cells, before its encoder is loaded."""
    if get_spec(card.model).reads(card.hparams).kind != "cells":
        raise InvalidValueError(
            f"{card.model!r} predicts spots, not cells.",
            "for a fine map, make a lattice of spots with st_predict.pp.make_grid(sdata, pitch_um=...) and predict it with "
            "st_predict.tl.predict",
        )


def _on_tissue(grid: CellGrid, tissue: Tissue | None) -> NDArray[np.int64]:
    """Numbers of the cells to predict, in ascending order."""
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
    """Yield indices into ``cells``, and their predictions ``(n, n_genes)``."""
    for places, features in track(
        reader.describe(cells), "Predicting cells", len(cells), unit="cell", size=lambda one: len(one[0])
    ):
        batch = Batch(crops=(), index=torch.from_numpy(places), features=torch.from_numpy(features[:, None]))
        yield places, inference(batch).cpu().numpy()
