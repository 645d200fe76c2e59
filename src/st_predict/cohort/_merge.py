"""Join the results of slides in one file, without loading them at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from st_predict._errors import InvalidValueError
from st_predict._files import whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["MERGED", "join"]

MERGED = "merged.h5ad"
"""File of the joined results in the output folder."""

logger = logging.getLogger(__name__)


def join(results: Mapping[str, Path], out: Path) -> Path:
    """Write the rows of all results to one file; the column ``slide`` of ``.obs`` names their slide.

    Parameters
    ----------
    results
        Files with at least one row, by slide.
    out
        File to write; an older one is replaced.
    """
    from anndata.experimental import concat_on_disk

    if not results:
        raise InvalidValueError("No slide has spots, so there is nothing to join.", "look into the report")
    with whole(out) as fresh:
        concat_on_disk(
            {name: str(path) for name, path in results.items()},
            str(fresh),
            label="slide",
            index_unique=":",
            merge="same",
            uns_merge="same",
        )
    logger.info("Joined %d slides in %s.", len(results), out)
    return out
