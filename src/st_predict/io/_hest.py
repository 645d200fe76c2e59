"""Samples of HEST-1k, as its folder has them."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd

from st_predict._collections import hest_patient, read_hest_metadata
from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._validated import File, Positive, Text, check
from st_predict.io._anndata import from_anndata

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["read_hest"]

logger = logging.getLogger(__name__)

NOTED = (
    *("dataset_title", "subseries", "organ", "tissue", "disease_state", "oncotree_code", "species", "patient"),
    *("st_technology", "preservation_method", "license", "study_link"),
)
"""What the table keeps of the metadata, in ``.uns["hest"]``."""

ASSAYS = {("Visium", 100.0): "visium", ("Spatial Transcriptomics", 200.0): "legacy_st"}
"""Assay of a technology and a distance between spots in micrometres."""

ESTIMATED, EMBEDDED = "pixel_size_um_estimated", "pixel_size_um_embedded"


def read_hest(folder: str | PathLike[str], sample: str, *, mpp: float | None = None) -> SpatialData:
    """Read a sample of HEST-1k :cite:p:`Jaume2024` from a downloaded copy.

    Parameters
    ----------
    folder
        Complete or partial copy of the data set, with ``st/{sample}.h5ad``, ``wsis/{sample}.tif`` and
        ``metadata/{sample}.json``.
    sample
        Identifier of the sample, such as ``"TENX95"``; :func:`st_predict.datasets.list_hest` lists them.
    mpp
        Micrometres per pixel of the finest level of the slide. By default ``pixel_size_um_estimated`` of the metadata, which
        HEST measured on the positions of spots or cells. ``pixel_size_um_embedded``, from the slide file, is never used: it is
        often a print resolution (0.35 or 0.26).

    Returns
    -------
    SpatialData
        Object with:

        ``.tables["table"]``
            Counts as in the file. ``.obs["section"]``: the sample; ``.obs["patient"]``: name of the patient within its
            data set, in lower case, with the title of that set (:func:`st_predict.datasets.list_hest` has the same);
            missing if the metadata names nobody, so that training and evaluation ask for it. ``.uns["hest"]``: organ,
            species, technology, licence and so on.
        ``.shapes[sample]`` or ``.points[sample]``
            Spots: circles where their diameter is known.
        ``.images[f"{sample}_full_image"]``
            The slide, read lazily.

    Raises
    ------
    FileNotFoundError
        If a file of the sample is not in ``folder``; the message names it.
    ValueError
        If a file is damaged, or no pixel size was estimated and ``mpp`` is not given.

    Notes
    -----
    HEST-1k has Visium, Visium HD, Xenium and Spatial Transcriptomics, of human and mouse. Visium HD and Xenium are pooled into
    larger squares in ``st/``. Licences differ between samples.

    Examples
    --------
    >>> sdata = st_predict.io.read_hest("hest", "TENX95")  # doctest: +SKIP
    >>> st_predict.tl.predict(sdata)  # doctest: +SKIP
    """
    root, sample = Path(check("folder", folder, File)), check("sample", sample, Text)
    given = check("mpp", mpp, Positive | None)
    files = {
        "metadata": root / "metadata" / f"{sample}.json",
        "st": root / "st" / f"{sample}.h5ad",
        "wsis": root / "wsis" / f"{sample}.tif",
    }
    _check_files(root, sample, files)
    known = read_hest_metadata(files["metadata"])
    value = given or _estimated(sample, known)
    table = _read_table(files["st"])
    if Keys.SPATIAL not in table.obsm:
        raise InvalidValueError(f"{files['st']} has no places of spots, obsm['spatial'].", "get it again")
    _describe(table, sample, known, mpp=value)
    return from_anndata(table, files["wsis"], library_id=sample, mpp=value)


def _check_files(root: Path, sample: str, files: dict[str, Path]) -> None:
    missing = [path for path in files.values() if not path.is_file()]
    if not missing:
        return
    there = sorted(path.stem for path in (root / "metadata").glob("*.json"))
    if not there:
        raise FileNotFoundError(
            f"{str(root)!r} is not a copy of HEST-1k: it has no metadata/*.json. Give the folder that holds st, wsis and metadata."
        )
    if files["metadata"] in missing:
        raise NotFoundError(
            f"There is no sample {sample!r} in {str(root)!r}; there are {len(there)}, the first are {there[:5]}.",
            Advice("choose one with {}", "sample"),
        )
    raise FileNotFoundError(
        f"Sample {sample!r} lacks {', '.join(str(path) for path in missing)}. Download them: st_predict.datasets.hest({sample!r})."
    )


def _estimated(sample: str, known: dict[str, Any]) -> float:
    value = _number(known.get(ESTIMATED))
    if value is None or value <= 0:
        embedded = known.get(EMBEDDED)
        said = "" if embedded is None else f" Its file said {embedded} ({EMBEDDED}), which is often wrong."
        raise InvalidValueError(
            f"The metadata of {sample!r} has no {ESTIMATED}.{said}", Advice("give micrometres per pixel with {}", "mpp")
        )
    embedded = _number(known.get(EMBEDDED))
    if embedded and abs(embedded / value - 1) > 0.05:
        logger.info("%s: the file said %g um per pixel; the estimate of HEST, %g, is taken.", sample, embedded, value)
    return value


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _read_table(path: Path) -> AnnData:
    try:
        return anndata.read_h5ad(path)
    except MemoryError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InvalidValueError(
            f"{path} cannot be read: {error}. It is damaged, or no table.", "get it again"
        ) from error


def _describe(table: AnnData, sample: str, known: dict[str, Any], *, mpp: float) -> None:
    """Say in the table what the metadata says, in the words of this package."""
    table.uns["hest"] = {name: str(known[name]) for name in NOTED if name in known}
    diameter = _diameter(table, known, mpp=mpp)
    scale = {} if diameter is None else {"scalefactors": {"spot_diameter_fullres": diameter}}
    table.uns[Keys.SPATIAL] = {sample: scale}
    table.uns[Keys.MPP_SOURCE] = (
        f"metadata of HEST ({ESTIMATED})" if mpp == _number(known.get(ESTIMATED)) else "argument"
    )
    assay = ASSAYS.get((str(known.get("st_technology")), _number(known.get("inter_spot_dist")) or math.nan))
    if assay is not None:
        table.uns[Keys.ASSAY] = assay
    patient = hest_patient(known)
    if patient is None:
        logger.warning(
            "%s: HEST does not say whose tissue this is. Fill table.obs[%r] before training or evaluation, so that no patient is on "
            "both sides.",
            sample,
            Keys.PATIENT,
        )
    table.obs[Keys.PATIENT] = pd.Categorical([patient] * table.n_obs, categories=[patient] if patient else [])
    table.obs[Keys.SECTION] = pd.Categorical([sample] * table.n_obs)


def _diameter(table: AnnData, known: dict[str, Any], *, mpp: float) -> float | None:
    """Diameter of a spot in pixels, by the metadata; ``None`` if it has none, as for cells."""
    diameter_um = _number(known.get("spot_diameter"))
    return None if diameter_um is None or not np.isfinite(diameter_um) else diameter_um / mpp
