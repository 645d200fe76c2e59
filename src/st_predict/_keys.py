"""Every string under which st_predict writes into AnnData or SpatialData."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Keys"]


class Keys:
    """Names of the slots that st_predict reads and writes."""

    UNS = "st_predict"
    """``table.uns``: a mapping from the key of a prediction to where it came from."""

    TABLE = "table"
    """Default name of the table of a :class:`~spatialdata.SpatialData` object."""

    ARRAY_ROW = "array_row"
    ARRAY_COL = "array_col"
    """``table.obs``: place of a spot on the lattice of its assay."""

    IN_TISSUE = "in_tissue"
    """``table.obs``: 1 for spots on tissue and 0 for spots beside it, as Space Ranger writes it."""

    REGION, SPOT = "stp_region", "stp_spot"
    """``table.obs``: columns of :func:`st_predict.io.from_anndata` that link rows to spots."""

    PATIENT = "patient"
    SECTION = "section"
    LABEL = "pathologist_label"
    """``table.obs``: whose tissue, which section, and what a pathologist saw."""

    ASSAY = "assay"
    """``table.uns``: ``"visium"``, ``"legacy_st"``...; says the pitch of the lattice."""

    BIN_UM = "bin_um"
    """``table.uns``: side of the bins of Visium HD, in micrometres."""

    MPP = "mpp"
    """Attribute of an image: micrometres per pixel of its finest level."""

    MPP_SOURCE = "mpp_source"
    """``table.uns``: where the mpp of the image comes from, in words."""

    SPATIAL = "spatial"
    """``table.obsm``: ``(n_obs, 2)`` spot centres ``x, y`` in level-0 pixels of the image."""

    UM = "um"
    """Coordinate system in micrometres; the scale of an image to it is its mpp."""

    GRID = "grid"
    """Shapes of :func:`st_predict.pp.make_grid`."""

    STD, LOWER, UPPER = "std", "lower", "upper"
    """Layers of a table that is a prediction: its standard deviations, and the bounds of its intervals."""

    @staticmethod
    def prediction(model: str) -> str:
        """Default key of a prediction in ``.obsm``, ``.layers`` and ``.uns``."""
        return f"pred_{model}"

    @staticmethod
    def joint_prediction(models: Collection[str]) -> str:
        """Default key of what checkpoints of these models predict together."""
        return Keys.prediction(next(iter(models)) if len(models) == 1 else "ensemble")

    @staticmethod
    def embedding(encoder: str) -> str:
        """Default key of an embedding in ``.obsm`` and ``.uns``, of characters that SpatialData can store."""
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
        """Column of ``table.var`` with a score a gene."""
        return f"{key}_{metric}"
