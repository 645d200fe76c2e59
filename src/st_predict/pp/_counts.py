"""Raw counts of a table, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array, issparse

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._validated import Text, check

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["check_counts", "dense", "read_counts"]


def read_counts(adata: AnnData, *, layer: str | None = None) -> NDArray[Any] | csr_array:
    """Counts of ``adata.X`` or of a layer, ``(n_spots, n_vars)``; may share memory with the table."""
    layer = check("layer", layer, Text | None)
    layers = sorted(filter(None, adata.layers))
    if layer is not None and layer not in adata.layers:
        raise NotFoundError(
            f"No layer {layer!r}; the table has {layers}, and .X.", Advice("choose one with {}", "layer")
        )
    counts = adata.X if layer is None else adata.layers[layer]
    if counts is None:
        raise InvalidValueError(
            f"The table has no .X; it has the layers {layers}.",
            Advice("name the layer with the raw counts with {}", "layer"),
        )
    return check_counts(counts)


def check_counts(counts: Any) -> NDArray[Any] | csr_array:
    """Return counts as an array or a CSR array in memory; refuse values that are not counts."""
    counts = in_memory(counts)
    try:
        matrix: Any = csr_array(counts) if issparse(counts) else np.asarray(counts)
    except ValueError as error:
        raise InvalidTypeError(f"Counts must be an array of numbers, got {type(counts).__name__}.") from error
    if matrix.ndim != 2:
        raise InvalidValueError(f"Counts must be (n_spots, n_vars), got the shape {matrix.shape}.")
    values = matrix.data if issparse(matrix) else matrix
    if values.dtype.kind in "ub":
        return matrix
    if values.dtype.kind not in "if":
        raise InvalidTypeError(f"Counts must be numbers, got the dtype {values.dtype}.")
    _check_values(values)
    return matrix


def in_memory(counts: Any) -> Any:
    """Load lazy counts: dask arrays, or a table backed by a file."""
    if hasattr(counts, "compute"):
        return counts.compute(scheduler="synchronous")
    return counts.to_memory() if hasattr(counts, "to_memory") else counts


def _check_values(values: NDArray[Any]) -> None:
    for what, bad in (
        ("NaN or infinite", ~np.isfinite(values)),
        ("negative", values < 0),
        ("not a whole number", values != np.rint(values)),
    ):
        if n := int(bad.sum()):
            raise InvalidValueError(
                f"{n} {'count is' if n == 1 else 'counts are'} {what}, the first is {values[bad][0]}. Raw counts are needed.",
                Advice("name the layer that holds them with {}", "layer"),
            )


def dense(counts: Any) -> NDArray[np.float64]:
    """Return a dense float64 copy of an array or a sparse matrix."""
    array = counts.toarray() if issparse(counts) else counts
    return np.array(array, dtype=np.float64)
