"""Join the results of slides in one file, without loading them at once."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import h5py
from anndata import AnnData, read_h5ad
from anndata.experimental import concat_on_disk
from anndata.io import read_elem, write_elem

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import whole
from st_predict._record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["MERGED", "join"]

MERGED = "merged.h5ad"
"""File of the joined results in the output folder."""

SLIDE = "slide"
"""Column of ``.obs`` that names the slide."""

logger = logging.getLogger(__name__)

_OF_A_SLIDE = {"sections", "warnings"}
"""Parameters in a record that differ between slides."""


def join(results: Mapping[str, Path], out: Path) -> Path:
    """Write the rows of all results to one file; the column ``slide`` of ``.obs`` names their slide.

    Parameters
    ----------
    results
        Files with at least one row, by slide.
    out
        File to write; an older one is replaced.
    """
    if not results:
        raise InvalidValueError("No slide has spots, so there is nothing to join.", Advice("leave out {}", "merge"))
    with whole(out) as fresh:
        if len(results) == 1:  # which concat_on_disk only copies
            _name_rows(*next(iter(results.items()))).write_h5ad(fresh)
        else:
            paths = {name: str(path) for name, path in results.items()}
            concat_on_disk(paths, str(fresh), label=SLIDE, index_unique=":", merge="same")
        with h5py.File(next(iter(results.values()))) as one, h5py.File(fresh, "r+") as joined:
            uns = read_elem(one["uns"])
            write_elem(joined, "uns", _common(uns))
    logger.info("Joined %d slides in %s.", len(results), out)
    return out


def _name_rows(slide: str, path: Path) -> AnnData:
    """Read a result and name its rows as :func:`~anndata.experimental.concat_on_disk` does."""
    found = read_h5ad(path)
    found.obs[SLIDE] = slide
    found.obs[SLIDE] = found.obs[SLIDE].astype("category")
    found.obs_names = found.obs_names + f":{slide}"
    return found


def _common(uns: Mapping[str, object]) -> dict[str, object]:
    """Return the records without the entries about one slide."""
    found: dict[str, object] = {}
    for key in Record.keys(uns):
        record = Record.read(uns, key)
        assert record is not None  # it has this key
        kept = {name: value for name, value in record.params.items() if name not in _OF_A_SLIDE}
        replace(record, params=kept).write(found, key)
    return found
