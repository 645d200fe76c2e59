"""The HER2+ breast cancer sections of Andersson et al. (2021)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache as cached
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._files import cache_dir, download
from st_predict._progress import shows_progress
from st_predict._validated import File, Text, check
from st_predict.io import read_legacy_st

if TYPE_CHECKING:
    from os import PathLike

    from spatialdata import SpatialData

__all__ = ["her2st"]

URL = "https://raw.githubusercontent.com/almaan/her2st"


@overload
def her2st(
    sections: str, *, cache: str | PathLike[str] | None = None, url: str = URL, progress: bool | None = None
) -> SpatialData: ...


@overload
def her2st(
    sections: Iterable[str], *, cache: str | PathLike[str] | None = None, url: str = URL, progress: bool | None = None
) -> dict[str, SpatialData]: ...


@shows_progress
def her2st(
    sections: str | Iterable[str],
    *,
    cache: str | PathLike[str] | None = None,
    url: str = URL,
    progress: bool | None = None,
) -> SpatialData | dict[str, SpatialData]:
    """Read sections of HER2-positive breast cancer, measured by Spatial Transcriptomics :cite:p:`Andersson2021`.

    36 sections of eight patients: A1-A6, B1-B6, C1-C6, D1-D6, E1-E3, F1-F3, G1-G3 and H1-H3. Spots have a diameter of
    100 um and a pitch of 200 um. A pixel has about 0.69 um, for patient A 0.92 um.

    The data are licensed CC-BY-4.0. They come from the repository almaan/her2st on GitHub, at a fixed commit. Missing
    files are downloaded, about 5 MB per section.

    Parameters
    ----------
    sections
        Name of one section, or several names.
    cache
        Folder for downloaded files: a copy of the repository, with its ``data/ST-cnts``, or a folder that has or will have
        such a copy in ``her2st``. By default ``ST_PREDICT_CACHE``, or the user's cache.
    url
        Address to download from: ``{url}/{commit}/data/...``.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    SpatialData or dict of str to SpatialData
        One section for one name, else a mapping from name to section. Elements are named as by
        :func:`st_predict.io.read_legacy_st`: image ``"he"``, shapes ``"spots"`` and table ``"table"``. The patient is
        the letter of the section.

    Raises
    ------
    ValueError
        If an argument is of another type, a section does not exist, or a file differs from that commit.
    ConnectionError
        If a file is missing and cannot be downloaded.
    OSError
        If a downloaded file cannot be stored.

    Notes
    -----
    A pathologist labelled one section per patient: A1, B1, C1, D1, E1, F1, G2 and H1. Labels are linked to spots by their
    place on the array, because their pixel coordinates belong to another image and count from below. In other sections,
    and for the few spots whose label has no place in the file, ``.obs["pathologist_label"]`` is missing. The repository
    also has labels of a section J1, but not the section.

    ``her2st.json``, beside this module, lists every file of the 36 sections with its SHA-256 or git blob id, which is checked
    on every use.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.her2st("C2")  # doctest: +SKIP
    >>> sdata["table"].shape  # doctest: +SKIP
    (187, 15706)
    """
    root, url = _root(check("cache", cache, File | None)), check("url", url, Text)
    if isinstance(sections, str):
        return _read(sections, root, url)
    if not isinstance(sections, Iterable):
        raise InvalidTypeError(f"sections must be one name or several, got {sections!r}.")
    names = list(sections)
    for name in names:  # before any download
        _paths(name)
    return {name: _read(name, root, url) for name in names}


def _root(cache: str | PathLike[str] | None) -> Path:
    folder = cache_dir() if cache is None else Path(cache)
    return folder if (folder / "data" / "ST-cnts").is_dir() else folder / "her2st"


def _read(section: str, root: Path, url: str) -> SpatialData:
    registry = _registry()
    local = {
        what: download(f"{url}/{registry['commit']}/{path}", root / path, **registry["files"][path])
        for what, path in _paths(section).items()
    }
    return read_legacy_st(
        local["counts"], local["spots"], local["image"], labels=local.get("labels"), section=section, patient=section[0]
    )


def _paths(section: str) -> dict[str, str]:
    """Files of a section, as paths in the repository."""
    paths: dict[str, Any] = _registry()["files"]
    known = sorted(Path(path).name.partition(".")[0] for path in paths if path.startswith("data/ST-cnts/"))
    if not isinstance(section, str) or section not in known:
        raise InvalidValueError(f"her2st has no section {section!r}; there are {known}.")
    prefixes = {
        "counts": f"data/ST-cnts/{section}.",
        "spots": f"data/ST-spotfiles/{section}_",
        "image": f"data/ST-imgs/{section[0]}/{section}/",
        "labels": f"data/ST-pat/lbl/{section}_",
    }
    return {what: path for what, prefix in prefixes.items() for path in paths if path.startswith(prefix)}


@cached
def _registry() -> dict[str, Any]:
    registry: dict[str, Any] = json.loads(files(__package__).joinpath("her2st.json").read_text(encoding="utf-8"))
    return registry
