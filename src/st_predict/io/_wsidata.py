"""Slides and tiles of wsidata, which LazySlide works with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from geopandas import GeoDataFrame
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from st_predict._containers import check_table
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._validated import Flag, Name, Positive, Text, check
from st_predict.io._pyramid import open_pyramid
from st_predict.io._read import read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["from_wsidata", "to_wsidata"]

TILE_ID, LIBRARY = "tile_id", "library_id"
"""Columns of the tables of wsidata that link rows to tiles."""

_WHICH = Advice("name the tiles with {}", "tile_key")


def from_wsidata(
    wsi: SpatialData, *, tile_key: str = "tiles", mpp: float | None = None, image_key: str = "he"
) -> SpatialData:
    """Convert a slide of wsidata to SpatialData, with its tiles as spots.

    Parameters
    ----------
    wsi
        Result of ``wsidata.open_wsi`` with tiles (``lazyslide.pp.tile_tissues``). It is not changed.
    tile_key
        Key of the tiles in ``wsi.shapes``. Only their centres are used; the network's fields of view set the size of the crops.
    mpp
        Micrometres per pixel of level 0. By default ``wsi.properties.mpp``, which ``wsi.set_mpp`` changes.
    image_key
        Name of the image.

    Returns
    -------
    SpatialData
        Object with:

        ``.images[image_key]``
            The slide, read lazily by the readers of :func:`read_image`, from the file of ``wsi``.
        ``.shapes[tile_key]``
            The tiles as polygons in level-0 pixels, by ``tile_id``.

    Raises
    ------
    KeyError
        If there are no such tiles; the message lists the shapes.
    TypeError
        If ``wsi`` is not an object of wsidata.
    ValueError
        If the slide is not in a file, or its mpp is unknown.

    See Also
    --------
    to_wsidata : Put a prediction back.

    Examples
    --------
    >>> sdata = st_predict.io.from_wsidata(wsi)  # doctest: +SKIP
    >>> st_predict.tl.predict(sdata, shapes_key="tiles")  # doctest: +SKIP
    >>> st_predict.io.to_wsidata(st_predict.get.prediction(sdata), wsi)  # doctest: +SKIP
    >>> lazyslide.pl.tiles(wsi, feature_key="st_predict", color="ERBB2")  # doctest: +SKIP
    """
    _check_wsi(wsi)
    tile_key, image_key = check("tile_key", tile_key, Name), check("image_key", image_key, Name)
    given = check("mpp", mpp, Positive | None)
    tiles = _tiles(wsi, tile_key)
    path = Path(str(wsi.reader.file))
    if not path.exists():
        raise InvalidValueError(
            f"The slide of this object is not a file on disk: its reader says {str(wsi.reader.file)!r}.",
            "open the file of the slide with wsidata.open_wsi",
        )
    value = given or wsi.properties.mpp
    if value is None:
        raise InvalidValueError(
            f"wsidata knows no resolution of {path.name!r}.",
            "set it with wsi.set_mpp",
            Advice("give micrometres per pixel of level 0 with {}", "mpp"),
        )
    sdata = read_image(path, mpp=float(value), image_key=image_key)
    if (found := open_pyramid(sdata, image_key).level_shapes[0]) != (shape := tuple(wsi.properties.shape)):
        raise InvalidValueError(
            f"{path.name!r} has {found} (height, width) px as it is read here, and {shape} in wsidata, so that tiles would lie elsewhere.",
            "store the slide without an orientation tag, and make the tiles again",
        )
    shapes = GeoDataFrame(geometry=list(tiles.geometry), index=pd.Index(_ids(tiles), name=TILE_ID))
    systems: dict[str, Any] = get_transformation(sdata.images[image_key], get_all=True)
    sdata.shapes[tile_key] = ShapesModel.parse(shapes, transformations=dict(systems))
    return sdata


def to_wsidata(
    prediction: AnnData,
    wsi: SpatialData,
    *,
    feature_key: str = "st_predict",
    tile_key: str = "tiles",
    overwrite: bool = False,
) -> None:
    """Add a prediction to a slide of wsidata, in LazySlide's format for tile features.

    Parameters
    ----------
    prediction
        Result of :func:`st_predict.get.prediction` for an object of :func:`from_wsidata`: one row per tile, named by its
        ``tile_id``.
    wsi
        Object of wsidata with the tiles.
    feature_key
        Name of the features, for the argument ``feature_key`` of LazySlide.
    tile_key
        Key of the tiles in ``wsi.shapes``.
    overwrite
        Whether to replace an existing table.

    Returns
    -------
    None
        Adds to ``wsi``:

        ``.tables[f"{feature_key}_{tile_key}"]``
            ``.X``: the prediction, ``(n_tiles, n_genes)``, in the order of the tiles; ``.var`` and ``.layers`` of the
            prediction. Tiles that were not predicted are NaN.

    Raises
    ------
    KeyError
        If there are no such tiles; the message lists the shapes.
    TypeError
        If ``wsi`` is not an object of wsidata, or ``prediction`` is not an AnnData object.
    ValueError
        If the table exists and ``overwrite`` is false, or rows of the prediction are not tiles.

    Examples
    --------
    >>> sdata = st_predict.io.from_wsidata(wsi)  # doctest: +SKIP
    >>> st_predict.tl.predict(sdata, shapes_key="tiles")  # doctest: +SKIP
    >>> st_predict.io.to_wsidata(st_predict.get.prediction(sdata), wsi)  # doctest: +SKIP
    """
    check_table(prediction)
    _check_wsi(wsi)
    name = f"{check('feature_key', feature_key, Text)}_{check('tile_key', tile_key, Text)}"
    tiles = _tiles(wsi, tile_key)
    if name in wsi.tables and not check("overwrite", overwrite, Flag):
        raise InvalidValueError(
            f"There is a table {name!r} already.",
            Advice("give the features another name with {}", "feature_key"),
            Advice("replace it with {}", "overwrite", value=True),
        )
    rows = _rows_of(prediction, [str(tile) for tile in _ids(tiles)], tile_key)
    ids = _ids(tiles)
    obs = pd.DataFrame({TILE_ID: ids, LIBRARY: pd.Categorical([tile_key] * len(ids))}, index=ids.astype(str))
    table = AnnData(_spread(prediction.X, rows, len(ids)), obs=obs, var=prediction.var.copy())
    for layer, values in prediction.layers.items():
        table.layers[layer] = _spread(values, rows, len(ids))
    wsi.tables[name] = TableModel.parse(table, region=tile_key, region_key=LIBRARY, instance_key=TILE_ID)


def _check_wsi(wsi: Any) -> None:
    if not isinstance(wsi, SpatialData) or not hasattr(wsi, "reader") or not hasattr(wsi, "properties"):
        raise InvalidTypeError(
            f"wsi must be an object of wsidata, as wsidata.open_wsi returns it, got {type(wsi).__name__}."
        )


def _tiles(wsi: Any, tile_key: str) -> GeoDataFrame:
    if tile_key not in wsi.shapes:
        raise NotFoundError(
            f"There are no tiles {tile_key!r}; the shapes are {sorted(wsi.shapes)}.",
            _WHICH,
            "make them, with lazyslide.pp.tile_tissues",
        )
    return wsi.shapes[tile_key]


def _ids(tiles: GeoDataFrame) -> NDArray[np.int64]:
    """``tile_id`` of each tile; its place where wsidata has no such column."""
    return np.asarray(tiles[TILE_ID] if TILE_ID in tiles else np.arange(len(tiles)), np.int64)


def _rows_of(prediction: AnnData, names: list[str], tile_key: str) -> NDArray[np.int64]:
    """Tile of each row of the prediction."""
    if len(twice := prediction.obs_names[prediction.obs_names.duplicated()]):
        raise InvalidValueError(
            f"{len(twice)} rows of the prediction have the name of another one, such as {twice[0]!r}."
        )
    rows = pd.Index(names).get_indexer(prediction.obs_names)
    if (unknown := prediction.obs_names[rows < 0]).size:
        raise InvalidValueError(
            f"{len(unknown)} of {prediction.n_obs} rows are none of the {len(names)} tiles {tile_key!r}, the first is {unknown[0]!r}.",
            _WHICH,
        )
    return np.asarray(rows, np.int64)


def _spread(values: Any, rows: NDArray[np.int64], n_tiles: int) -> NDArray[np.float32]:
    """Values of each tile, NaN for those that have none."""
    whole = np.full((n_tiles, values.shape[1]), np.nan, np.float32)
    whole[rows] = values.toarray() if hasattr(values, "toarray") else values
    return whole
