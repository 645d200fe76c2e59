"""What predict, train and evaluate need of each section: an image, its spots, its mpp."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from spatialdata import SpatialData
from spatialdata.models import get_table_keys

from st_predict.crops import plan_crops
from st_predict.io import (
    find_image,
    find_mpp,
    find_shapes,
    find_table,
    open_pyramid,
    read_spots,
    resolve_mpp,
    spots_outside,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st_predict.crops import Batch, LevelPlan
    from st_predict.io import Mpp, PyramidReader, Spots
    from st_predict.specs import CropSpec

__all__ = ["Section", "Sections", "as_list", "open_sections"]

logger = logging.getLogger(__name__)

Sections: TypeAlias = SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One tissue section.

    Parameters
    ----------
    region
        Name of its shapes.
    rows
        ``(n_spots,)``: rows of the table (of the shapes, where there is no table).
    spots
        Centres in level-0 pixels.
    reader
        Its image.
    mpp
        Micrometres per pixel of level 0, and where that came from; ``None`` if unknown.
    """

    region: str
    rows: NDArray[np.int64]
    spots: Spots
    reader: PyramidReader
    mpp: Mpp | None

    def plan(self, crop: CropSpec) -> tuple[LevelPlan, ...]:
        """Plan the crops of every spot."""
        mpp = None if self.mpp is None else self.mpp.value
        return plan_crops(self.spots.xy, crop, downsamples=self.reader.downsamples, mpp=mpp)

    @property
    def xy_um(self) -> NDArray[np.float32] | None:
        """``(n_spots, 2)``: centres in micrometres, if mpp is known."""
        return None if self.mpp is None else (self.spots.xy * self.mpp.value).astype(np.float32)

    def place(self, batch: Batch) -> Batch:
        """Add to a batch where its spots are, as far as that is known."""
        rows = batch.index.numpy()
        grid = None if self.spots.grid is None else torch.from_numpy(self.spots.grid[rows])
        xy_um = None if self.xy_um is None else torch.from_numpy(self.xy_um[rows])
        return replace(batch, grid=grid, xy_um=xy_um)

    def describe(self) -> dict[str, Any]:
        """Return what a reader of a result needs to know of how the section was read."""
        return {
            "region": self.region,
            "mpp": None if self.mpp is None else self.mpp.value,
            "mpp_source": "unknown" if self.mpp is None else self.mpp.source,
            "level_downsamples": list(self.reader.downsamples),
        }

    def outside(self) -> NDArray[np.bool_]:
        """Spots whose centre is not in the image; a message says how many, an error if they all are."""
        outside = spots_outside(self.spots, self.reader.level_shapes[0])
        if outside.all():
            raise ValueError(
                f"All {len(outside)} spots of {self.region!r} lie outside the image of "
                f"{self.reader.level_shapes[0]} (height, width) px: check the transformations of image and shapes."
            )
        if outside.any():
            first = self.spots.names[outside][:5].tolist()
            logger.warning(
                "%d of %d spots of %r lie outside the image and are left out: %s.",
                *(outside.sum(), len(outside), self.region, first),
            )
        return outside


def open_sections(
    sdata: SpatialData,
    *,
    image_key: str | Mapping[str, str] | None = None,
    table_key: str | None = None,
    shapes_key: str | None = None,
    mpp: float | Literal["spots"] | None = None,
    need_mpp: bool = False,
) -> tuple[str | None, list[Section]]:
    """Find the table and, for each region that it annotates, the image and the spots.

    Returns
    -------
    Name of the table, ``None`` if the slide has none; and the sections.

    Raises
    ------
    KeyError, ValueError
        If an element does not exist or is ambiguous, the table is empty, or ``need_mpp`` and mpp is unknown.
    """
    if table_key is not None and shapes_key is not None:
        raise ValueError(
            f"Either the rows of table {table_key!r} are the spots, or the shapes {shapes_key!r} are: give table_key or "
            "shapes_key, not both."
        )
    table_key = find_table(sdata, table_key) if shapes_key is None else None
    regions = _regions(sdata, table_key) if table_key is not None else {find_shapes(sdata, shapes_key): None}
    sections = [
        _open_section(
            sdata,
            region,
            rows,
            table_key=table_key,
            image_key=image_key,
            need_mpp=need_mpp,
            mpp=mpp,
        )
        for region, rows in regions.items()
    ]
    return table_key, sections


def _regions(sdata: SpatialData, table_key: str) -> dict[str, NDArray[np.int64] | None]:
    """Rows of the table for each region that it annotates."""
    table = sdata.tables[table_key]
    _, region_key, _ = get_table_keys(table)
    if table.n_obs == 0:
        raise ValueError(f"Table {table_key!r} is empty: there is no spot to predict.")
    column = table.obs[region_key].astype(str).to_numpy()
    return {region: np.flatnonzero(column == region) for region in dict.fromkeys(column)}


def _open_section(
    sdata: SpatialData,
    region: str,
    rows: NDArray[np.int64] | None,
    *,
    table_key: str | None,
    image_key: str | Mapping[str, str] | None,
    need_mpp: bool,
    mpp: float | Literal["spots"] | None,
) -> Section:
    if isinstance(image_key, Mapping):
        if region not in image_key:
            raise KeyError(f"image_key names no image for region {region!r}; it has {sorted(image_key)}.")
        image_key = image_key[region]
    image_key = find_image(sdata, image_key)
    if table_key is None:
        spots = read_spots(sdata, image_key=image_key, shapes_key=region)
    else:
        spots = read_spots(sdata, image_key=image_key, table_key=table_key, region=region)
    return Section(
        region=region,
        rows=np.arange(len(spots.names)) if rows is None else rows,
        spots=spots,
        reader=open_pyramid(sdata, image_key),
        mpp=_mpp_of(sdata, need_mpp, image_key=image_key, table_key=table_key, shapes_key=region, mpp=mpp),
    )


def _mpp_of(sdata: SpatialData, need_mpp: bool, **where: Any) -> Mpp | None:  # noqa: FBT001
    """Find mpp; where it is neither needed nor given, what is odd about it is no reason to stop."""
    if need_mpp:
        return resolve_mpp(sdata, **where)
    try:
        return find_mpp(sdata, **where)
    except ValueError as error:
        if where["mpp"] is not None:
            raise
        logger.info("The mpp is not known, and not needed: %s", error)
        return None


def as_list(sdatas: Sections) -> list[SpatialData]:
    """One section, some, or a mapping from their names: as a list.

    Raises
    ------
    TypeError
        If anything among them is no :class:`~spatialdata.SpatialData`.
    ValueError
        If there is none.
    """
    if isinstance(sdatas, SpatialData):
        return [sdatas]
    found = list(sdatas.values()) if isinstance(sdatas, Mapping) else list(sdatas)
    if not found:
        raise ValueError("No section was given.")
    if wrong := [type(s).__name__ for s in found if not isinstance(s, SpatialData)]:
        raise TypeError(f"Sections must be SpatialData objects, got {sorted(set(wrong))}.")
    return found
