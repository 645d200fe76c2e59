"""Join the results of slides in one file, without loading them at once."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import dask
import h5py
from anndata import AnnData, read_h5ad
from anndata.experimental import concat_on_disk
from anndata.io import read_elem, write_elem

from st_predict._errors import InvalidValueError
from st_predict._files import sha256, whole
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict.cohort._key import read_note

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


def join(results: Mapping[Path, str], out: Path) -> None:
    """Write the rows of all results to one file; the column ``slide`` of ``.obs`` names their slide.

    Parameters
    ----------
    results
        Keys of the results, by file. Without any, there is no joined file, and one of an earlier run is removed.
    out
        File to write; an older one is replaced.

    Raises
    ------
    ValueError
        If a file has another key: a worker of an earlier run has written it since.
    """
    if not results:
        logger.warning("No slide has spots, so there is no %s.", out)
        out.unlink(missing_ok=True)
        return
    for path, key in results.items():
        if (note := read_note(path)) is None or note["key"] != key:
            raise InvalidValueError(
                f"{str(path)!r} was replaced or removed while this run worked.", "wait for other runs, and run again"
            )
    with whole(out) as fresh:
        first = next(iter(results))
        if len(results) == 1:  # which concat_on_disk only copies
            _name_rows(first).write_h5ad(fresh)
        else:
            paths = {path.stem: str(path) for path in results}
            with dask.config.set(scheduler="synchronous"):  # a client of the user cannot write to an open file
                concat_on_disk(paths, str(fresh), label=SLIDE, index_unique=":", merge="same")
        with h5py.File(first) as one, h5py.File(fresh, "r+") as joined:
            note = {"key": sha256(*results.values()), "slides": [path.stem for path in results]}
            uns = {**_common(read_elem(one["uns"])), Keys.COHORT: json.dumps(note)}
            write_elem(joined, "uns", uns)
    logger.info("Joined %d slides in %s.", len(results), out)


def _name_rows(path: Path) -> AnnData:
    """Read a result and name its rows as :func:`~anndata.experimental.concat_on_disk` does."""
    found, slide = read_h5ad(path), path.stem
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
