"""The only code that writes predictions."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData
from spatialdata.models import TableModel, get_table_keys

import st_predict
from st_predict._keys import Keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.models import ModelCard
    from st_predict.tl._sections import Section

__all__ = ["check_key", "check_name", "derived_keys", "link_to_shapes", "write_prediction"]

logger = logging.getLogger(__name__)

# A DataFrame in .obsm costs zarr a group a column; above this a table of its own is far cheaper.
MAX_OBSM_GENES = 1000


def write_prediction(
    sdata: SpatialData,
    values: NDArray[np.float32],
    card: ModelCard,
    *,
    key: str,
    table_key: str | None,
    section: Section,
    provenance: Mapping[str, Any],
    std: NDArray[np.float32] | None = None,
) -> None:
    """Write ``values`` ``(n_spots, n_genes)`` and where they came from; ``section`` is that of a slide without a table.

    They go to ``.obsm[key]`` of the table, and to ``.layers[key]`` if the panel covers all of its genes; their standard
    deviations ``std`` to ``.obsm[key + "_std"]``. A panel of more than 1000 genes, and a slide without a table, get a linked
    table ``sdata.tables[key]``, with ``.layers["std"]``.
    """
    record = {"card": card.to_json(), "version": st_predict.__version__, "params": json.dumps(dict(provenance))}
    frame = pd.DataFrame(values, columns=list(card.genes))
    if table_key is None:
        linked = link_to_shapes(sdata, frame, section)
    elif len(card.genes) > MAX_OBSM_GENES:
        linked = _link_like(sdata.tables[table_key], frame)
    else:
        linked = None
    _remove(sdata, key, table_key=table_key)
    if linked is not None:
        if std is not None:
            linked.layers[Keys.STD] = std
        _write_table(sdata, linked, key, record)
    elif table_key is not None:
        table = sdata.tables[table_key]
        if std is not None:
            table.obsm[Keys.std(key)] = pd.DataFrame(std, columns=frame.columns, index=table.obs_names)
            record["derived"] = json.dumps([Keys.std(key)])
        _write_slots(table, frame, key, record)


def check_key(
    sdata: SpatialData, key: str, *, table_key: str | None, regions: set[str], derived: Sequence[str] = ()
) -> None:
    """Refuse a key that holds something st_predict did not write, before any work is done.

    ``derived`` are keys of ``.obsm`` that will be written as well.

    Raises
    ------
    ValueError
        If ``.obsm``, ``.layers``, a table or another element of that name is the user's, or a prediction for other
        spots.
    """
    check_name(key)
    if table_key is not None:
        _check_slots(sdata.tables[table_key], key, derived)
    if key in sdata.tables and not _is_prediction(sdata.tables[key], key):
        raise ValueError(f"Table {key!r} is not a prediction of st_predict; choose another key_added.")
    if key in sdata.tables and not _regions(sdata.tables[key]) & regions:
        raise ValueError(f"Table {key!r} is a prediction for other spots; choose another key_added.")
    if key in sdata and key not in sdata.tables:
        raise ValueError(f"{key!r} is the name of another element of sdata; choose another key_added.")


def _check_slots(table: AnnData, key: str, derived: Sequence[str]) -> None:
    if not _is_prediction(table, key):
        for slot, mapping in ((".obsm", table.obsm), (".layers", table.layers)):
            if key in mapping:
                raise ValueError(f"{slot}[{key!r}] is not a prediction of st_predict; choose another key_added.")
    for name in derived:
        if name in table.obsm and name not in derived_keys(table, key):
            raise ValueError(f".obsm[{name!r}] was not written by st_predict; choose another key_added.")


def check_name(key: str) -> None:
    """Refuse a key that SpatialData could not store.

    Raises
    ------
    ValueError
        If it has other characters than letters, digits, ``_``, ``-`` and ``.``.
    """
    if not re.fullmatch(r"[\w.-]+", key):
        raise ValueError(
            f"key_added may have letters, digits, _, - and . alone, else it could not be stored; got {key!r}."
        )


def derived_keys(table: AnnData, key: str) -> list[str]:
    """Keys of ``.obsm`` that hold what belongs to a prediction: standard deviations, bounds."""
    names: list[str] = json.loads(table.uns.get(Keys.UNS, {}).get(key, {}).get("derived", "[]"))
    return names


def _is_prediction(table: AnnData, key: str) -> bool:
    """Whether ``key`` is of a prediction, and not of an embedding or of the user."""
    return "card" in table.uns.get(Keys.UNS, {}).get(key, {})


def _regions(table: AnnData) -> set[str]:
    region, _, _ = get_table_keys(table)
    return {region} if isinstance(region, str) else set(region)


def _remove(sdata: SpatialData, key: str, *, table_key: str | None) -> None:
    """Remove what an earlier prediction left, which may have gone elsewhere: its panel may have been another one."""
    if key in sdata.tables:
        del sdata.tables[key]
    table = None if table_key is None else sdata.tables[table_key]
    if table is None or key not in table.uns.get(Keys.UNS, {}):
        return
    for slots, names in ((table.obsm, [key, *derived_keys(table, key)]), (table.layers, [key])):
        for name in names:
            if name in slots:
                del slots[name]
    table.uns[Keys.UNS] = {name: record for name, record in table.uns[Keys.UNS].items() if name != key}
    if not table.uns[Keys.UNS]:
        del table.uns[Keys.UNS]


def _write_slots(table: AnnData, frame: pd.DataFrame, key: str, record: dict[str, str]) -> None:
    frame.index = table.obs_names
    table.obsm[key] = frame
    if table.n_vars and set(table.var_names) <= set(frame.columns):
        table.layers[key] = frame[table.var_names.tolist()].to_numpy()
    table.uns[Keys.UNS] = {**table.uns.get(Keys.UNS, {}), key: record}


def link_to_shapes(sdata: SpatialData, frame: pd.DataFrame, section: Section) -> AnnData:
    """Make a table whose rows are the shapes of a section, and whose values are those of ``frame``."""
    shapes = sdata.shapes[section.region]
    obs = pd.DataFrame({"region": pd.Categorical([section.region] * len(shapes)), "instance": shapes.index.to_numpy()})
    for column in (Keys.ARRAY_ROW, Keys.ARRAY_COL):
        if column in shapes:
            obs[column] = shapes[column].to_numpy()
    obs.index = shapes.index.astype(str)
    adata = AnnData(frame.to_numpy(), obs=obs, var=pd.DataFrame(index=frame.columns))
    adata.obsm[Keys.SPATIAL] = section.spots.xy.copy()
    return TableModel.parse(adata, region=section.region, region_key="region", instance_key="instance")


def _link_like(table: AnnData, frame: pd.DataFrame) -> AnnData:
    region, region_key, instance_key = get_table_keys(table)
    obs = table.obs[[region_key, instance_key]].copy()
    adata = AnnData(frame.to_numpy(), obs=obs, var=pd.DataFrame(index=frame.columns))
    return TableModel.parse(adata, region=region, region_key=region_key, instance_key=instance_key)


def _write_table(sdata: SpatialData, adata: AnnData, key: str, record: dict[str, str]) -> None:
    adata.uns[Keys.UNS] = {key: record}
    sdata.tables[key] = adata
    logger.info("Wrote the prediction to the table %r.", key)
