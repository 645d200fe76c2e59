"""Open TIFF files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tifffile

from st_predict._errors import InvalidValueError
from st_predict.io._regions import FAILURES, check_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_tiff", "open_tiff"]

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files, in both byte orders."""


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF or BigTIFF does."""
    with path.open("rb") as file:
        return file.read(4) in SIGNATURES


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is not a TIFF, or its index is damaged.
    """
    check_file(path)
    try:
        file = tifffile.TiffFile(path)
        n_pages = len(file.pages)
    except (*FAILURES, tifffile.TiffFileError) as error:  # no ValueError before 2025.9
        raise InvalidValueError(f"{path} cannot be read as TIFF: {error}.", "get it again") from error
    if n_pages == 0:
        file.close()
        raise InvalidValueError(f"{path} is a TIFF without an image, perhaps because it is damaged.", "get it again")
    return file
