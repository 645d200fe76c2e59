"""Sample metadata of large data sets, from downloaded files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["STIMAGE", "hest_patient", "read_hest_metadata", "read_stimage_metadata", "stimage_slides"]

STIMAGE = ("ST", "Visium", "VisiumHD")
"""Folders of STimage-1K4M, by technology."""


def read_hest_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a sample, without empty, blank or NaN values."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidValueError(f"{path} cannot be read: {error}.", "download it again") from error
    if not isinstance(stored, dict):
        raise InvalidValueError(f"{path} must contain a mapping from names to values.", "download it again")
    return {name: kept for name, value in stored.items() if (kept := _said(value)) is not None}


def _said(value: Any) -> Any:
    """Return a value without surrounding spaces; ``None`` for empty values."""
    if isinstance(value, str):
        return value.strip() or None
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def hest_patient(known: dict[str, Any]) -> str | None:
    """Return a patient's name, unique to the data set and the same in all its samples; ``None`` if not given.

    Different studies use the same patient numbers, and capitalisation differs between samples of a study.
    """
    patient, title = _said(known.get("patient")), _said(known.get("dataset_title"))
    return None if patient is None else f"{' '.join(str(patient).split()).casefold()} ({title or 'unknown data set'})"


def stimage_slides(root: Path) -> dict[str, str]:
    """Return slides with spot positions in a folder, and the folder of their technology."""
    return {
        path.name.removesuffix("_coord.csv"): technology
        for technology in STIMAGE
        for path in sorted((root / technology / "coord").glob("*_coord.csv"))
    }


def read_stimage_metadata(root: Path) -> pd.DataFrame | None:
    """Read the newest table of slides in ``meta``, indexed by slide; ``None`` if there is none."""
    files = list((root / "meta").glob("meta_all_gene*.csv"))
    if not files:
        return None
    path = max(files, key=_dated)
    frame = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)
    if "slide" not in frame:
        raise InvalidValueError(f"{path} has no column 'slide'; it has {list(frame.columns)}.", "download it again")
    return frame.set_index("slide")


def _dated(path: Path) -> tuple[str, str]:
    """Return year, and month with day, of a name like ``meta_all_gene02122025.csv``; names without a date count as oldest."""
    date = path.stem.removeprefix("meta_all_gene")
    return date[4:], date[:4]
