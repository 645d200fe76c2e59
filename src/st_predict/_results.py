"""Writing of results into SpatialData objects: predictions, embeddings and tables of cells; nothing else writes."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import zarr
from anndata import AnnData
from anndata.io import write_elem
from spatialdata.models import ShapesModel, TableModel, get_table_keys
from spatialdata.transformations import get_transformation

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import whole
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict._validated import Text, check

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict._record import Kind

__all__ = ["Lattice", "Slot", "check_cells", "write_bounds", "write_cells"]

logger = logging.getLogger(__name__)

_CHUNK = 1024  # cells per chunk on disk

LARGEST_LAYER = 1 << 30
"""Maximum bytes of an additional layer: 100,000 bins of 18,000 genes would take another 7 GB."""

_LONGEST_KEY = 200  # file systems allow names of 255 bytes; the rest is for suffixes
_ZARR_FILES = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}

_OTHER_NAME = Advice("choose another name with {}", "key_added")

_A = {"prediction": "a prediction", "embedding": "an embedding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Slot for the result of some spots: a key and its table.

    Parameters
    ----------
    sdata
        Object to write to.
    key
        Key of the result.
    table_key
        Table of the spots; ``None`` for the shapes of a slide without a table.
    regions
        Shapes of the spots.
    xy
        ``(n_spots, 2)``: centres in level-0 pixels; required for a slide without a table.
    """

    sdata: SpatialData
    key: str
    table_key: str | None
    regions: tuple[str, ...]
    xy: NDArray[np.float64] | None = None

    def check_free(self, kind: Kind, *, derived: Sequence[str] = ()) -> None:
        """Refuse a key that holds anything but an earlier result of this kind for these spots.

        Parameters
        ----------
        kind
            Kind of result to write.
        derived
            Further keys of ``.obsm`` to write.

        Raises
        ------
        ValueError
            If the key cannot be stored, or ``.obsm``, ``.layers``, a table or another element of this name is the
            user's or a result for other spots.
        """
        _check_name(self.key)
        if self.table_key is not None:
            _check_slots(self.sdata.tables[self.table_key], self.key, kind, derived)
        if kind == "embedding" and self.table_key is not None and self.key in self.sdata:
            raise InvalidValueError(f"{self.key!r} is the name of another element of sdata.", _OTHER_NAME)
        _check_elements(self.sdata, self.key, kind, self.regions)

    def write_prediction(
        self, values: NDArray[np.float32], record: Record, *, std: NDArray[np.float32] | None = None
    ) -> None:
        """Write a prediction and its record.

        Values go to ``.obsm[key]`` of the table, and to ``.layers[key]`` if the panel covers all genes of the table and
        the layer takes at most 1 GiB; standard deviations go to ``.obsm[key + "_std"]``. The record has the genes. A
        slide without a table gets a linked table ``sdata.tables[key]``, with ``.layers["std"]``.

        Parameters
        ----------
        values
            ``(n_spots, n_genes)``: predictions in the order of the table.
        record
            Record of the result.
        std
            ``(n_spots, n_genes)``: standard deviations.
        """
        if self.table_key is None:
            linked = self._link(values, record.genes)
            if std is not None:
                linked.layers[Keys.STD] = std
            self._remove_prediction()
            self._write_table(linked, record)
            return
        self._remove_prediction()
        table = self.sdata.tables[self.table_key]
        if std is not None:
            table.obsm[Keys.std(self.key)] = std
            record = replace(record, derived=(Keys.std(self.key),))
        table.obsm[self.key] = values
        self._write_layer(table, values, record.genes)
        record.write(table.uns, self.key)

    def _write_layer(self, table: AnnData, values: NDArray[np.float32], genes: Sequence[str]) -> None:
        """Write the prediction as a layer, if the panel has all genes of the table and the layer is not too large."""
        places = {gene: column for column, gene in enumerate(genes)}
        if not table.n_vars or not set(table.var_names) <= places.keys():
            return
        if (size := table.n_obs * table.n_vars * values.itemsize) > LARGEST_LAYER:
            logger.info(
                "%r is not also written as a layer, which would take %.3g GB; st_predict.get.prediction(sdata, %r) returns it with "
                "gene names.",
                *(self.key, size / 1e9, self.key),
            )
            return
        table.layers[self.key] = values[:, [places[gene] for gene in table.var_names]]

    def write_features(self, features: NDArray[np.float32], record: Record) -> None:
        """Write an embedding ``(n_spots, n_features)`` to ``.obsm[key]``; a slide without a table gets a linked one."""
        if self.table_key is None:
            linked = self._link(features, [str(i) for i in range(features.shape[1])])
            if self.key in self.sdata.tables:
                del self.sdata.tables[self.key]
            self._write_table(linked, record)
            return
        table = self.sdata.tables[self.table_key]
        table.obsm[self.key] = features
        record.write(table.uns, self.key)

    def _link(self, values: NDArray[np.float32], names: Sequence[str]) -> AnnData:
        """Make a table that annotates the shapes of the region."""
        assert self.xy is not None  # known for a slide without a table
        region, shapes = self.regions[0], self.sdata.shapes[self.regions[0]]
        obs = pd.DataFrame({"region": pd.Categorical([region] * len(shapes)), "instance": shapes.index.to_numpy()})
        for column in (Keys.ARRAY_ROW, Keys.ARRAY_COL):
            if column in shapes:
                obs[column] = shapes[column].to_numpy()
        obs.index = shapes.index.astype(str)
        adata = AnnData(values, obs=obs, var=pd.DataFrame(index=list(names)))
        adata.obsm[Keys.SPATIAL] = self.xy.copy()
        return TableModel.parse(adata, region=region, region_key="region", instance_key="instance")

    def _remove_prediction(self) -> None:
        """Remove an earlier prediction, whose panel and slots may differ."""
        if self.key in self.sdata.tables:
            del self.sdata.tables[self.key]
        if self.table_key is None:
            return
        table = self.sdata.tables[self.table_key]
        if self.key not in Record.keys(table.uns):
            return
        derived = Record.derived_of(table.uns, self.key)
        for slots, names in ((table.obsm, [self.key, *derived]), (table.layers, [self.key])):
            for name in names:
                if name in slots:
                    del slots[name]
        Record.remove(table.uns, self.key)

    def _write_table(self, table: AnnData, record: Record) -> None:
        record.write(table.uns, self.key)
        self.sdata.tables[self.key] = table
        logger.info("Wrote %s to the table %r.", _A[record.kind or "prediction"], self.key)


def write_bounds(
    table: AnnData,
    key: str,
    lower: NDArray[np.float32],
    upper: NDArray[np.float32],
    *,
    calibration: Mapping[str, Any],
) -> None:
    """Write interval bounds of a prediction, to ``.obsm`` or, for a prediction with its own table, to ``.layers``.

    Parameters
    ----------
    table
        Table with the prediction.
    key
        Key of the prediction.
    lower, upper
        ``(n_spots, n_genes)``: bounds.
    calibration
        Record of the calibration.

    Raises
    ------
    ValueError
        If the name of a bound is taken.
    """
    record = Record.read(table.uns, key)
    assert record is not None  # the prediction was read
    inside = key in table.obsm
    names = (Keys.lower(key), Keys.upper(key)) if inside else (Keys.LOWER, Keys.UPPER)
    slots = table.obsm if inside else table.layers
    if foreign := [name for name in names if name in slots and record.calibration is None]:
        raise InvalidValueError(
            f"{'.obsm' if inside else '.layers'} has {foreign}, which st_predict did not write for this prediction.",
            "rename or delete that first",
        )
    for name, values in zip(names, (lower, upper), strict=True):
        slots[name] = values
    derived = tuple(sorted({*record.derived, *names})) if inside else record.derived
    replace(record, calibration=calibration, derived=derived).write(table.uns, key)


def _check_name(key: str) -> None:
    """Refuse a key that SpatialData cannot store."""
    if not re.fullmatch(r"[\w.-]+", check("key_added", key, Text)):
        raise InvalidValueError(
            f"key_added must consist of letters, digits, _, - and ., to be storable; got {key!r}.",
            _OTHER_NAME,
        )
    if key in {".", ".."} or key.startswith("__") or key in _ZARR_FILES:
        raise InvalidValueError(
            f"key_added must not be '.', '..' or the name of a zarr file, nor begin with '__': {key!r} cannot be stored.",
            _OTHER_NAME,
        )
    if len(key.encode()) > _LONGEST_KEY:
        raise InvalidValueError(
            f"key_added must have at most {_LONGEST_KEY} characters (bytes in UTF-8), to be storable; got "
            f"{len(key.encode())}: {key[:20]!r}...",
            Advice("choose a shorter name with {}", "key_added"),
        )


def _check_slots(table: AnnData, key: str, kind: Kind, derived: Sequence[str]) -> None:
    """Refuse a key whose slots in a table hold something else."""
    if Record.kind_of(table.uns, key) != kind:
        for slot, names in ((".obsm", table.obsm), (".layers", table.layers)):
            if key in names:
                raise InvalidValueError(f"{slot}[{key!r}] is not {_A[kind]} of st_predict.", _OTHER_NAME)
    for name in derived:
        if name in table.obsm and name not in Record.derived_of(table.uns, key):
            raise InvalidValueError(f".obsm[{name!r}] was not written by st_predict.", _OTHER_NAME)


def _check_elements(sdata: SpatialData, key: str, kind: Kind, regions: Sequence[str]) -> None:
    """Refuse a key that is the name of another element."""
    if key not in sdata.tables:
        if key in sdata:
            raise InvalidValueError(f"{key!r} is the name of another element of sdata.", _OTHER_NAME)
        return
    if Record.kind_of(sdata.tables[key].uns, key) != kind:
        raise InvalidValueError(f"Table {key!r} is not {_A[kind]} of st_predict.", _OTHER_NAME)
    there, _, _ = get_table_keys(sdata.tables[key])
    shared = set(np.atleast_1d(there)) & set(regions)
    if not shared or (kind == "embedding" and shared != set(np.atleast_1d(there)) | set(regions)):
        raise InvalidValueError(f"Table {key!r} is {_A[kind]} for other spots.", _OTHER_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Square cells of an image.

    Parameters
    ----------
    rows, columns
        ``(n_cells,)``: position of each cell on the lattice, counted from the corner of the image.
    centres
        ``(n_cells, 2)``: x and y in level-0 pixels.
    width
        Side of a cell, in level-0 pixels.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    centres: NDArray[np.float64]
    width: float


def check_cells(sdata: SpatialData, key: str, out: PathLike[str] | str | None) -> None:
    """Refuse a name that is taken by anything but a table of cells.

    Raises
    ------
    FileExistsError
        If ``out`` exists.
    ValueError
        If another element has the name of the table or of its shapes.
    """
    shapes_key = Keys.cell_grid(key)
    _check_name(key)
    _check_elements(sdata, key, "prediction", [shapes_key])
    if shapes_key in sdata and key not in sdata.tables:
        raise InvalidValueError(f"{shapes_key!r} is the name of another element of sdata.", _OTHER_NAME)
    if out is not None and Path(out).exists():
        raise FileExistsError(f"{str(out)!r} exists; choose another folder.")


def write_cells(
    sdata: SpatialData,
    key: str,
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    record: Record,
    *,
    lattice: Lattice,
    image_key: str,
    out: PathLike[str] | str | None = None,
) -> None:
    """Write a table of cells and the circles that it annotates; both replace an earlier result.

    Parameters
    ----------
    sdata
        Object to write to.
    key
        Name of the table.
    parts
        Indices of cells, and their predictions ``(n, n_genes)``; every cell once.
    record
        Record of the result.
    lattice
        Positions of the cells.
    image_key
        Image; the circles get its coordinate systems.
    out
        New folder to store the table part by part, atomically. By default values are kept in memory.
    """
    table = _empty_table(lattice, record, key=key)
    shapes = _circles(lattice, sdata.images[image_key])
    table = _fill(table, parts) if out is None else _store(table, parts, Path(out))
    if key in sdata.tables:
        del sdata.tables[key]
    if Keys.cell_grid(key) in sdata.shapes:
        del sdata.shapes[Keys.cell_grid(key)]
    sdata.shapes[Keys.cell_grid(key)] = shapes
    sdata.tables[key] = table


def _circles(lattice: Lattice, image: Any) -> gpd.GeoDataFrame:
    frame = gpd.GeoDataFrame(
        {"radius": np.full(len(lattice.rows), lattice.width / 2)}, geometry=shapely.points(lattice.centres)
    )
    return ShapesModel.parse(frame, transformations=dict(get_transformation(image, get_all=True)))


def _empty_table(lattice: Lattice, record: Record, *, key: str) -> AnnData:
    """Make a table of cells, without values."""
    rows, columns, n_cells, region = lattice.rows, lattice.columns, len(lattice.rows), Keys.cell_grid(key)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical.from_codes(np.zeros(n_cells, dtype=np.int8), [region]),
            "instance": np.arange(n_cells),
            Keys.ARRAY_ROW: rows,
            Keys.ARRAY_COL: columns,
        },
        index=[f"{row}x{column}" for row, column in zip(rows.tolist(), columns.tolist(), strict=True)],
    )
    table = AnnData(obs=obs, var=pd.DataFrame(index=list(record.genes)))
    table.obsm[Keys.SPATIAL] = lattice.centres
    record.write(table.uns, key)
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance")


def _fill(table: AnnData, parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> AnnData:
    """Fill the table in memory."""
    try:
        values = np.empty(table.shape, dtype=np.float32)
    except MemoryError as error:
        size = table.n_obs * table.n_vars * 4 / 1e9
        raise MemoryError(
            f"{table.n_obs} cells of {table.n_vars} genes need {size:.3g} GB, more than memory. "
            "Store them part by part, with st_predict.tl.superresolve(..., out=)."
        ) from error
    for places, part in parts:
        values[places] = part
    table.X = values
    return table


def _store(table: AnnData, parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], out: Path) -> AnnData:
    """Write the table and then its values, part by part."""
    chunks = (min(_CHUNK, table.n_obs), table.n_vars)
    with whole(out) as fresh:
        group = zarr.open_group(fresh, mode="w", zarr_format=3)
        write_elem(group, "/", table)
        zeros = da.zeros(table.shape, dtype=np.float32, chunks=chunks)
        # shards are only written whole
        write_elem(group, "X", zeros, dataset_kwargs={"chunks": chunks, "shards": None})
        values: Any = group["X"]
        for run, block in _runs(parts):
            values[run] = block
    table.X = da.from_zarr(out / "X")  # type: ignore[no-untyped-call]
    return table


def _runs(
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Split parts into runs of consecutive indices."""
    for places, part in parts:
        ends = np.flatnonzero(np.diff(places) != 1) + 1
        for run, block in zip(np.split(places, ends), np.split(part, ends), strict=True):
            yield slice(run[0], run[-1] + 1), block
