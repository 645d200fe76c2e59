"""Values of a result, gene by gene, for files that other programs open, and where such a file may be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from st_predict._containers import check_table
from st_predict._errors import InvalidValueError, NotFoundError
from st_predict._validated import File, Flag, Text, Texts, check

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

__all__ = ["check_target", "read_columns"]


def check_target(path: Any, suffixes: Sequence[str], *, overwrite: bool) -> tuple[Path, str]:
    """Refuse, before any work, a file that could not be written.

    Parameters
    ----------
    path
        Where the file belongs.
    suffixes
        Endings that are known.
    overwrite
        Whether an existing file is replaced.

    Returns
    -------
    tuple of Path and str
        The path, and which of the endings it has.

    Raises
    ------
    FileExistsError
        If the file exists and is not to be replaced; a folder never is.
    FileNotFoundError
        If there is no folder for it.
    ValueError
        If it has another ending.
    """
    target: Path = check("path", path, File)
    replace_old = check("overwrite", overwrite, Flag)
    suffix = next((suffix for suffix in suffixes if target.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InvalidValueError(f"path must end in one of {list(suffixes)}, got {str(target)!r}.")
    if target.is_dir():
        raise FileExistsError(
            f"{str(target)!r} is a folder, which is never replaced; choose another name, or delete it."
        )
    if target.exists() and not replace_old:
        raise FileExistsError(f"{str(target)!r} exists; choose another name, or replace it with overwrite=True.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(target.parent)!r}.")
    return target, suffix


def read_columns(adata: AnnData, genes: Sequence[str] | str | None = None, layer: str | None = None) -> pd.DataFrame:
    """Return values of genes.

    Parameters
    ----------
    adata
        A result, genes as ``.var``.
    genes
        Genes in the order of the columns; ``None`` for all.
    layer
        Layer of the values; ``None`` for ``.X``.

    Returns
    -------
    DataFrame
        ``(n_obs, n_genes)``, float32, with the names of the rows as index.

    Raises
    ------
    KeyError
        If a gene or the layer does not exist.
    TypeError
        If ``adata`` is not AnnData.
    ValueError
        If names of genes are not unique.
    """
    check_table(adata)
    names, layer = check("genes", genes, Texts | None), check("layer", layer, Text | None)
    names = list(adata.var_names) if names is None else names
    if missing := [name for name in names if name not in adata.var_names]:
        raise NotFoundError(
            f"{len(missing)} of {len(names)} genes are not in adata, the first is {missing[0]!r}; it has {adata.n_vars}, such as "
            f"{list(adata.var_names[:3])}."
        )
    if layer is not None and layer not in adata.layers:
        raise NotFoundError(f"There is no layer {layer!r}; there are {sorted(adata.layers)}.")
    if len(set(names)) < len(names) or not adata.var_names.is_unique:
        raise InvalidValueError("Names of genes must be unique.", "make them unique with adata.var_names_make_unique()")
    values: Any = adata[:, names].X if layer is None else adata[:, names].layers[layer]
    values = values.compute(scheduler="synchronous") if hasattr(values, "compute") else values
    values = values.toarray() if sparse.issparse(values) else values
    return pd.DataFrame(np.asarray(values, np.float32), index=adata.obs_names, columns=names)
