"""All names under which st_predict writes into AnnData or SpatialData."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Keys"]


class Keys:
    """Names of the slots that st_predict reads and writes."""

    UNS = "st_predict"
    """``table.uns``: mapping from the key of a result to its record."""

    TABLE = "table"
    """Default name of the table of a :class:`~spatialdata.SpatialData` object."""

    ARRAY_ROW = "array_row"
    ARRAY_COL = "array_col"
    """``table.obs``: row and column of a spot on the assay's lattice."""

    IN_TISSUE = "in_tissue"
    """``table.obs``: 1 for spots on tissue and 0 for spots off it, as written by Space Ranger."""

    REGION, SPOT = "stp_region", "stp_spot"
    """``table.obs``: columns of :func:`st_predict.io.from_anndata` that link rows to spots."""

    PATIENT = "patient"
    SECTION = "section"
    LABEL = "pathologist_label"
    """``table.obs``: patient, section, and a pathologist's annotation."""

    ASSAY = "assay"
    """``table.uns``: assay (``"visium"``, ``"legacy_st"``...), which sets the pitch of the lattice."""

    BIN_UM = "bin_um"
    """``table.uns``: bin size of Visium HD in micrometres."""

    MPP = "mpp"
    """Attribute of an image: micrometres per pixel of its finest level."""

    MPP_SOURCE = "mpp_source"
    """``table.uns``: source of the image's mpp, in words."""

    SPATIAL = "spatial"
    """``table.obsm``: ``(n_obs, 2)`` spot centres ``x, y`` in level-0 pixels of the image."""

    UM = "um"
    """Coordinate system in micrometres; the scale of an image to it is its mpp."""

    GRID = "grid"
    """Shapes of :func:`st_predict.pp.make_grid`."""

    COHORT = "st_predict_cohort"
    """``uns`` of a slide's result of :func:`st_predict.cohort.predict_many`: JSON with the key of the work and its costs."""

    STD, LOWER, UPPER = "std", "lower", "upper"
    """Layers of a prediction's table: standard deviations and interval bounds."""

    @staticmethod
    def prediction(model: str) -> str:
        """Default key of a prediction in ``.obsm``, ``.layers`` and ``.uns``."""
        return f"pred_{model}"

    @staticmethod
    def joint_prediction(models: Collection[str]) -> str:
        """Default key of an ensemble prediction by these models."""
        return Keys.prediction(next(iter(models)) if len(models) == 1 else "ensemble")

    @staticmethod
    def embedding(encoder: str) -> str:
        """Default key of an embedding in ``.obsm`` and ``.uns``, with characters that SpatialData can store."""
        return f"X_{re.sub(r'[^A-Za-z0-9_.-]+', '_', encoder)}"

    @staticmethod
    def cells(model: str) -> str:
        """Default name of a table of cells."""
        return f"cells_{model}"

    @staticmethod
    def cell_grid(key: str) -> str:
        """Name of the shapes of the cells of a table."""
        return f"{key}_grid"

    @staticmethod
    def std(key: str) -> str:
        """Key of the standard deviations of a prediction in ``.obsm``."""
        return f"{key}_{Keys.STD}"

    @staticmethod
    def lower(key: str) -> str:
        """Key of the lower bounds of a prediction in ``.obsm``."""
        return f"{key}_{Keys.LOWER}"

    @staticmethod
    def upper(key: str) -> str:
        """Key of the upper bounds of a prediction in ``.obsm``."""
        return f"{key}_{Keys.UPPER}"

    @staticmethod
    def score(key: str, metric: str) -> str:
        """Column of ``table.var`` with scores per gene."""
        return f"{key}_{metric}"
