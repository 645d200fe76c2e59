"""Tables of a result: a row per spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import whole
from st_predict._keys import Keys
from st_predict.io._areas import read_areas, resolution_of
from st_predict.io._columns import check_target, read_columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["write_table"]

SPOT = "spot"
"""Column with the names of the rows."""


def write_table(
    adata: AnnData,
    path: str | PathLike[str],
    *,
    sdata: SpatialData | None = None,
    genes: Sequence[str] | str | None = None,
    layer: str | None = None,
    mpp: float | None = None,
    image_key: str | None = None,
    region: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a prediction as a table, Parquet or CSV: one row per spot.

    Columns are the name of the spot, ``.obs``, the centre of the spot, and the genes. Centres are in level-0 pixels,
    ``x_px`` and ``y_px``, from the upper left corner of the image, and in micrometres, ``x_um`` and ``y_um``, if the
    resolution is known.

    Parameters
    ----------
    adata
        A prediction, as :func:`st_predict.get.prediction` returns it.
    path
        File to write, ``.parquet`` or ``.csv``.
    sdata
        Object with the image and the spots. Without it, ``adata.obsm["spatial"]`` is taken as pixels of the
        full-resolution image.
    genes
        Genes to write; all by default.
    layer
        Layer of the values, such as ``"std"``; by default ``.X``.
    mpp
        Micrometres per pixel of level 0; by default from the record of the prediction, or from ``sdata``.
    image_key
        Image whose pixels are meant; may be left out if there is only one.
    region
        Section to write, if ``adata`` annotates several.
    overwrite
        Whether an existing file is replaced.

    Returns
    -------
    Path
        The path. In Parquet, values are float32, and the record of the prediction without its genes is kept as
        ``DataFrame.attrs``.

    Raises
    ------
    FileExistsError
        If the file exists and ``overwrite`` is false.
    FileNotFoundError
        If the folder of the file does not exist.
    KeyError
        If a gene, layer or element does not exist.
    TypeError
        If ``adata`` or ``sdata`` is something else.
    ValueError
        If centres are not known, columns have the same name, or an argument is not one of its choices.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2"], out=folder)
    ...     stp.tl.predict(sdata, result)
    ...     path = stp.io.write_table(stp.get.prediction(sdata), Path(folder) / "P1S1.parquet", sdata=sdata)
    ...     table = pd.read_parquet(path)
    >>> table.columns[-6:].tolist()
    ['x_px', 'y_px', 'x_um', 'y_um', 'GENE1', 'GENE2']
    """
    target, suffix = check_target(path, (".parquet", ".csv"), overwrite=overwrite)
    values = read_columns(adata, genes, layer)
    areas = read_areas(adata, sdata, image_key=image_key, region=region, outline="point")
    scale = resolution_of(adata, areas, sdata, mpp)
    centres = {"x_px": areas.centres[:, 0], "y_px": areas.centres[:, 1]}
    if scale is not None:
        centres |= {"x_um": areas.centres[:, 0] * scale, "y_um": areas.centres[:, 1] * scale}
    obs = adata.obs.iloc[areas.rows].reset_index(drop=True)
    names = pd.DataFrame({SPOT: adata.obs_names[areas.rows].astype(str)})
    values = values.iloc[areas.rows].reset_index(drop=True)
    table = pd.concat([names, obs, pd.DataFrame(centres), values], axis=1)
    if len(twice := table.columns[table.columns.duplicated()]):
        raise InvalidValueError(
            f"Several columns of the table would be called {twice[0]!r}.",
            "rename the column of adata.obs",
            Advice("leave out the gene with {}", "genes"),
        )
    with whole(target, keep_old=not overwrite) as fresh:
        if suffix == ".csv":
            table.to_csv(fresh, index=False)
        else:
            _write_parquet(table, fresh, _record(adata))
    return target


def _write_parquet(table: pd.DataFrame, path: Path, record: dict[str, Any]) -> None:
    table.attrs = {Keys.UNS: record}
    try:
        table.to_parquet(path, engine="pyarrow", index=False)
    except (TypeError, ValueError) as error:  # of pyarrow; a column of .obs with values of several types
        raise InvalidValueError(
            f"A column of adata.obs cannot be stored as Parquet: {error}", "delete the column, or give it one type"
        ) from error


def _record(adata: AnnData) -> dict[str, Any]:
    """Record of each prediction as it is stored, without the arrays."""
    stored = dict(adata.uns.get(Keys.UNS, {}))
    return {
        str(key): {
            str(name): str(value) for name, value in dict(fields).items() if not isinstance(value, np.ndarray | list)
        }
        for key, fields in stored.items()
    }
