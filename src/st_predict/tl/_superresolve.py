"""Predict every cell of the tissue of a section."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import torch
import zarr
from anndata import AnnData
from anndata.io import write_elem
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

import st_predict
from st_predict._keys import Keys
from st_predict.crops import Batch
from st_predict.io import find_image, find_mpp, open_pyramid, resolve_mpp
from st_predict.models import Inference, find_weights, load_checkpoint
from st_predict.models._dense import DenseEncoder
from st_predict.models._device import pick_device
from st_predict.pp import find_tissue
from st_predict.tl._cells import CellReader
from st_predict.tl._inputs import encoder_of
from st_predict.tl._write import check_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.models import ModelCard
    from st_predict.pp import Tissue
    from st_predict.tl._cells import CellGrid

__all__ = ["superresolve"]

logger = logging.getLogger(__name__)

_TOGETHER = 4096  # cells that the network predicts at a time
_CHUNK = 1024  # cells of a chunk on disk


def superresolve(  # noqa: PLR0913  # every one is a keyword
    sdata: SpatialData,
    model: PathLike[str] | str,
    *,
    image_key: str | None = None,
    table_key: str | None = None,
    mpp: float | Literal["spots"] | None = None,
    tissue_only: bool = True,
    out: PathLike[str] | str | None = None,
    key_added: str | None = None,
    hparams: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Predict every cell of the tissue of a section: squares of 8 um, unless the network was trained with others.

    The network is one of cells, as iStar, whether it was trained on the spots of this section, or on other sections. No spots
    are needed, and counts are never read.

    A cell has the units of a spot: the mean over the cells in the disk of a spot is what :func:`predict` gives for the spot. Where
    the target is in counts, a cell thus has as many as a spot all of whose cells were like it.

    Parameters
    ----------
    sdata
        Holds the image.
    model
        Path of a ``.safetensors`` file of :func:`train`, or name of a released checkpoint.
    image_key
        RGB image, 8 bit, single- or multi-scale; may be left out if there is one.
    table_key
        Table of spots, if the mpp of the image is to be had from its assay.
    mpp
        As in :func:`predict`.
    tissue_only
        Whether to leave out cells whose centre is not on the tissue (:func:`st_predict.pp.find_tissue`).
    out
        Folder to make, in which the table is stored by zarr, for sections that would not fit into memory. In ``sdata``,
        ``.X`` is then a dask array that is read from there.
    key_added
        Name of the table. By default ``cells_{model}``.
    hparams
        Hyper-parameters to change, as in :func:`predict`.
    batch_size
        Cells that the network predicts at a time.
    device, precision
        As in :func:`predict`.

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
    network, card = load_checkpoint(find_weights(model), hparams=hparams)
    encoder = _dense_encoder(card)
    image_key = find_image(sdata, image_key)
    find = find_mpp if card.crop.mpp is None else resolve_mpp
    found = find(sdata, image_key=image_key, table_key=table_key, mpp=mpp)
    key = key_added or Keys.cells(card.model)
    _check_free(sdata, key, out)
    how: dict[str, Any] = {"device": pick_device(device), "precision": precision}
    inference = Inference(network, working_batch=batch_size or _TOGETHER, **how)
    reader = CellReader(
        open_pyramid(sdata, image_key), encoder, card.crop, mpp=None if found is None else found.value, **how
    )
    cells = _on_tissue(reader.grid, find_tissue(sdata, image_key) if tissue_only else None)
    record = {
        "checkpoint": str(model),
        "image": image_key,
        "mpp": None if found is None else found.value,
        "mpp_source": "unknown" if found is None else found.source,
        "cell_px": reader.grid.width,
        "tissue_only": tissue_only,
        "device": str(inference.device),
        "precision": inference.precision,
    }
    shapes = _circles(sdata, reader.grid, cells, image_key=image_key)
    table = _table(reader.grid, cells, card, key=key, record=record)
    predicted = _predict(reader, inference, cells)
    table = _fill(table, predicted) if out is None else _store(table, predicted, Path(out))
    _put(sdata, table, shapes, key=key)
    logger.info("Predicted %d cells, %.4g px wide, in the table %r.", len(cells), reader.grid.width, key)


def _dense_encoder(card: ModelCard) -> DenseEncoder:
    encoder = encoder_of(card)
    if not isinstance(encoder, DenseEncoder):
        raise ValueError(
            f"{card.model!r} predicts spots from the image around them, and not cells. For a fine map of it, lay a lattice of spots "
            "with st_predict.pp.make_grid(sdata, pitch_um=...), and predict these with st_predict.tl.predict."
        )
    return encoder


def _check_free(sdata: SpatialData, key: str, out: PathLike[str] | str | None) -> None:
    """Refuse names of what is not an earlier result of this function, before any work is done."""
    grid_key = Keys.cell_grid(key)
    check_key(sdata, key, table_key=None, regions={grid_key})
    if grid_key in sdata and key not in sdata.tables:
        raise ValueError(f"{grid_key!r} is the name of another element of sdata; choose another key_added.")
    if out is not None and Path(out).exists():
        raise FileExistsError(f"{str(out)!r} exists; name another folder.")


def _on_tissue(grid: CellGrid, tissue: Tissue | None) -> NDArray[np.int64]:
    """Numbers of the cells to predict, rising."""
    if tissue is None:
        return np.concatenate(list(grid.bands()))
    cells = np.concatenate([band[tissue.at(grid.centres(band))] for band in grid.bands()])
    if not len(cells):
        raise ValueError(
            f"No tissue found: {100 * tissue.mask.mean():.2g} % of the image is tissue (contrast above {tissue.threshold:.3g}). For "
            "cells everywhere, tissue_only=False."
        )
    return cells


def _circles(sdata: SpatialData, grid: CellGrid, cells: NDArray[np.int64], *, image_key: str) -> gpd.GeoDataFrame:
    frame = gpd.GeoDataFrame(
        {"radius": np.full(len(cells), grid.width / 2)}, geometry=shapely.points(grid.centres(cells))
    )
    transformations = get_transformation(sdata.images[image_key], get_all=True)
    return ShapesModel.parse(frame, transformations=dict(transformations))


def _table(
    grid: CellGrid, cells: NDArray[np.int64], card: ModelCard, *, key: str, record: Mapping[str, Any]
) -> AnnData:
    """Make a table of cells, without values."""
    rows, columns = grid.places(cells)
    region = Keys.cell_grid(key)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical.from_codes(np.zeros(len(cells), dtype=np.int8), [region]),
            "instance": np.arange(len(cells)),
            Keys.ARRAY_ROW: rows,
            Keys.ARRAY_COL: columns,
        },
        index=[f"{row}x{column}" for row, column in zip(rows.tolist(), columns.tolist(), strict=True)],
    )
    table = AnnData(obs=obs, var=pd.DataFrame(index=list(card.genes)))
    table.obsm[Keys.SPATIAL] = grid.centres(cells)
    origin = {"card": card.to_json(), "version": st_predict.__version__, "params": json.dumps(record)}
    table.uns[Keys.UNS] = {key: origin}
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance")


def _predict(
    reader: CellReader, inference: Inference, cells: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield places in ``cells``, and ``(n, n_genes)`` for these."""
    for places, features in reader.describe(cells):
        batch = Batch(crops=(), index=torch.from_numpy(places), features=torch.from_numpy(features[:, None]))
        yield places, inference(batch).cpu().numpy()


def _fill(table: AnnData, predicted: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> AnnData:
    """Put the values into memory."""
    values = np.empty(table.shape, dtype=np.float32)
    for places, part in predicted:
        values[places] = part
    table.X = values
    return table


def _store(table: AnnData, predicted: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]], out: Path) -> AnnData:
    """Write the table and then its values, part by part, to a folder that appears whole or not at all."""
    chunks = (min(_CHUNK, table.n_obs), table.n_vars)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        fresh = Path(folder) / out.name
        group = zarr.open_group(fresh, mode="w", zarr_format=3)
        write_elem(group, "/", table)
        zeros = da.zeros(table.shape, dtype=np.float32, chunks=chunks)
        write_elem(
            group, "X", zeros, dataset_kwargs={"chunks": chunks, "shards": None}
        )  # a shard is written as a whole
        values: Any = group["X"]
        for places, part in predicted:
            ends = np.flatnonzero(np.diff(places) != 1) + 1
            for run, block in zip(np.split(places, ends), np.split(part, ends), strict=True):
                values[run[0] : run[-1] + 1] = block
        fresh.rename(out)
    table.X = da.from_zarr(out / "X")  # type: ignore[no-untyped-call]
    return table


def _put(sdata: SpatialData, table: AnnData, shapes: gpd.GeoDataFrame, *, key: str) -> None:
    if key in sdata.tables:
        del sdata.tables[key]
    if Keys.cell_grid(key) in sdata.shapes:
        del sdata.shapes[Keys.cell_grid(key)]
    sdata.shapes[Keys.cell_grid(key)] = shapes
    sdata.tables[key] = table
