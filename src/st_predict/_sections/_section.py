"""Slides and their sections: image, spots and mpp."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import get_table_keys

from st_predict._containers import check_slide
from st_predict._errors import Advice, InvalidValueError, NotFoundError, StPredictError
from st_predict._keys import Keys
from st_predict._on_tissue import on_tissue
from st_predict._results import Slot
from st_predict._sections._stained import stained
from st_predict.crops import iter_batches, plan_crops
from st_predict.io import (
    find_image,
    find_mpp,
    find_shapes,
    find_table,
    level_offsets,
    open_pyramid,
    read_spots,
    spots_outside,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from st_predict._stain import Stain
    from st_predict._where import Where
    from st_predict.crops import Batch, LevelPlan
    from st_predict.io import Mpp, PyramidReader, Spots
    from st_predict.specs import CropSpec

__all__ = [
    "Section",
    "Sections",
    "Slide",
    "about",
    "as_list",
    "at_table",
    "each",
    "name_of",
    "naming",
    "open_sdata",
    "open_table",
    "region_key_of",
    "section_name",
]

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=np.generic)
R = TypeVar("R")

Sections: TypeAlias = SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One tissue section.

    Parameters
    ----------
    region
        Name of its shapes.
    rows
        ``(n_spots,)``: rows of the table, or of the shapes of a slide without table.
    spots
        Centres in level-0 pixels.
    outside
        ``(n_spots,)``: true for spots with their centre outside the image, or off the tissue by ``in_tissue``.
    image_key
        Key of its image.
    reader
        Reader of its image.
    mpp
        Micrometres per pixel at level 0, with its source; ``None`` if unknown.
    stain
        Stain of the image, if colours are normalised to a reference.
    missing_levels
        Handling of crop levels that are finer than the image: refused, or masked, as are those wider than the image.
    """

    region: str
    rows: NDArray[np.int64]
    spots: Spots
    outside: NDArray[np.bool_]
    image_key: str
    reader: PyramidReader
    mpp: Mpp | None
    stain: Stain | None = None
    missing_levels: Literal["error", "mask"] = "error"

    def plan(self, crop: CropSpec, rows: NDArray[np.int64] | None = None) -> tuple[LevelPlan, ...]:
        """Plan the crops of some spots, by default of every spot."""
        mpp = None if self.mpp is None else self.mpp.value
        xy = self.spots.xy if rows is None else self.spots.xy[rows]
        reader = self.reader
        levels = partial(
            plan_crops, downsamples=reader.downsamples, shape=reader.level_shapes[0], offsets=level_offsets(reader)
        )
        try:
            return levels(xy, crop, mpp=mpp, missing_levels=self.missing_levels)
        except StPredictError as error:
            source = "" if self.mpp is None else f", mpp {mpp:.4g} from {self.mpp.source}"
            raise error.about(f"Image {self.image_key!r}{source}:") from None

    def lacks(self, crop: CropSpec) -> list[int]:
        """Masked levels of a crop, finest first: finer or wider than the image."""
        return [i for i, level in enumerate(self.plan(crop, np.empty(0, np.int64))) if level.missing]

    def batches(self, crop: CropSpec, *, batch_size: int | None, device: torch.device | None = None) -> Iterator[Batch]:
        """Read the crops of all spots except those ``outside``.

        Parameters
        ----------
        crop
            Crop to read around each spot.
        batch_size
            Number of spots per batch; ``None`` for all at once.
        device
            GPU to cut crops on; ``None`` for the host.

        Yields
        ------
        Batch
            Batches whose ``index`` are rows of the section.
        """
        rows = np.flatnonzero(~self.outside)
        plan = self.plan(crop, rows)
        numbers = torch.from_numpy(rows)
        for batch in iter_batches(self.reader, plan, batch_size=batch_size, pad_value=crop.pad_value, device=device):
            yield replace(batch, index=numbers[batch.index])

    @property
    def xy_um(self) -> NDArray[np.float32] | None:
        """``(n_spots, 2)``: centres in micrometres, if mpp is known."""
        return None if self.mpp is None else (self.spots.xy * self.mpp.value).astype(np.float32)

    def place(self, batch: Batch) -> Batch:
        """Add known spot positions to a batch."""
        rows = batch.index.numpy()
        grid = None if self.spots.grid is None else torch.from_numpy(self.spots.grid[rows])
        xy_um = None if self.xy_um is None else torch.from_numpy(self.xy_um[rows])
        return replace(batch, grid=grid, xy_um=xy_um)

    def describe(self) -> dict[str, Any]:
        """Return the section's entries for the record of a result."""
        return {
            "region": self.region,
            "image": self.image_key,
            "mpp": None if self.mpp is None else self.mpp.value,
            "mpp_source": "unknown" if self.mpp is None else self.mpp.source,
            "level_downsamples": list(self.reader.downsamples),
            **({} if self.stain is None else {"stain": self.stain.to_dict()}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Slide:
    """Spots of a table, or of shapes without a table, by section.

    Parameters
    ----------
    sdata
        Object with the elements.
    table_key
        Name of the table; ``None`` for a slide without one.
    sections
        One section per region that the table annotates.
    """

    sdata: SpatialData
    table_key: str | None
    sections: tuple[Section, ...]

    def slot(self, key: str) -> Slot:
        """Return the slot for a result of these spots."""
        return Slot(
            sdata=self.sdata,
            key=key,
            table_key=self.table_key,
            regions=tuple(section.region for section in self.sections),
            xy=None if self.table_key is not None else self.sections[0].spots.xy,
        )

    def gather(self, parts: Iterable[NDArray[T]]) -> NDArray[T]:
        """Gather the rows of each section, ``(n_spots, ...)``, in the order of the table."""
        whole: NDArray[T] | None = None
        for section, part in zip(self.sections, parts, strict=True):
            if whole is None:
                whole = np.empty((sum(len(s.rows) for s in self.sections), *part.shape[1:]), dtype=part.dtype)
            whole[section.rows] = part
        assert whole is not None  # a slide has at least one section
        return whole

    def describe(self) -> list[dict[str, Any]]:
        """Return each section's entries for the record of a result."""
        return [section.describe() for section in self.sections]


def open_sdata(sdata: SpatialData, where: Where, *, need_mpp: bool = False) -> Slide:
    """Find the table and, for each region that it annotates, the image and the spots.

    Parameters
    ----------
    sdata
        Object with images, shapes and tables.
    where
        Elements to use; shapes are the spots of a slide without a table, or replace its table.
    need_mpp
        Whether an unknown mpp is an error.

    Raises
    ------
    KeyError, ValueError
        If an element does not exist or is ambiguous, the table is empty, all spots of a section are outside its image,
        or the mpp is required and unknown.
    """
    check_slide(sdata)
    _refuse_two_kinds(where)
    where = at_table(sdata, where)
    table_key = find_table(sdata, where.table_key) if where.shapes_key is None else None
    if table_key is not None:
        return open_table(sdata, table_key, where, need_mpp=need_mpp)
    region = find_shapes(sdata, where.shapes_key)
    spots = read_spots(sdata, image_key=_image_of(sdata, region, where.image_key), shapes_key=region)
    section = _open_section(sdata, region, np.arange(len(spots)), spots, table_key=None, where=where, need_mpp=need_mpp)
    return Slide(sdata=sdata, table_key=None, sections=(section,))


def at_table(sdata: SpatialData, where: Where) -> Where:
    """Return ``where`` with the table by name, if it was given by bin size.

    Raises
    ------
    KeyError, ValueError
        If no table, or several, have bins of this size.
    """
    if where.bin_um is None:
        return where
    return replace(where, table_key=find_table(sdata, where.table_key, bin_um=where.bin_um), bin_um=None)


def _refuse_two_kinds(where: Where) -> None:
    """Refuse a table together with shapes that replace the table."""
    if where.shapes_key is None or (where.table_key is None and where.bin_um is None):
        return
    given = "table_key" if where.bin_um is None else "bin_um"
    table = f"table {where.table_key!r}" if where.bin_um is None else f"the table of bins of {where.bin_um:g} um"
    raise InvalidValueError(
        f"Either the rows of {table} are the spots, or the shapes {where.shapes_key!r} are, not both.",
        Advice("leave out {}", given),
        Advice("leave out {}", "shapes_key"),
    )


def open_table(sdata: SpatialData, table_key: str, where: Where, *, need_mpp: bool, region: str | None = None) -> Slide:
    """Open the sections of a table, or a single region."""
    sections, regions = [], _regions(sdata, table_key, region)
    if isinstance(where.mpp, Mapping) and (unknown := sorted(set(where.mpp) - _elements(sdata))):
        raise NotFoundError(
            f"The mapping from region to mpp has {unknown}, which are not elements of sdata; table {table_key!r} has {list(regions)}.",
            Advice("correct {}", "mpp"),
            "use names of shapes, points or labels",
        )
    for name, rows in regions.items():
        image_key = _image_of(sdata, name, where.image_key)
        spots = read_spots(sdata, image_key=image_key, table_key=table_key, region=name)
        section = _open_section(sdata, name, rows, spots, table_key=table_key, where=where, need_mpp=need_mpp)
        sections.append(section)
    return Slide(sdata=sdata, table_key=table_key, sections=tuple(sections))


def _elements(sdata: SpatialData) -> set[str]:
    return {*sdata.shapes, *sdata.points, *sdata.labels}


def _open_section(
    sdata: SpatialData,
    region: str,
    rows: NDArray[np.int64],
    spots: Spots,
    *,
    table_key: str | None,
    where: Where,
    need_mpp: bool,
) -> Section:
    image_key = _image_of(sdata, region, where.image_key)
    reader = open_pyramid(sdata, image_key)
    outside = _outside(region, spots, reader.level_shapes[0]) | ~_on_tissue(sdata, table_key, rows, where)
    if outside.all():
        raise InvalidValueError(
            f"No spot of {region!r} is both inside the image {image_key!r} and on tissue by .obs[{Keys.IN_TISSUE!r}].",
            "check the transformations of image and shapes",
            Advice("keep all spots with {}", "tissue_only", value=False),
        )
    stain = None
    if where.stain is not None:
        reader, stain = stained(sdata, image_key, reader, where.stain)
    return Section(
        region=region,
        rows=rows,
        spots=spots,
        outside=outside,
        image_key=image_key,
        reader=reader,
        stain=stain,
        missing_levels=where.missing_levels,
        mpp=_mpp_of(
            sdata,
            image_key=image_key,
            table_key=table_key,
            region=region,
            mpp=_given(region, where.mpp),
            need_mpp=need_mpp,
        ),
    )


def _on_tissue(sdata: SpatialData, table_key: str | None, rows: NDArray[np.int64], where: Where) -> NDArray[np.bool_]:
    if table_key is None:
        return np.ones(len(rows), dtype=bool)
    obs = sdata.tables[table_key].obs.iloc[rows]
    return on_tissue(obs, only=where.tissue_only, label=table_key, level=logging.INFO)


def _outside(region: str, spots: Spots, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the spots with their centre outside the image; their number is logged. Refuse if all are outside."""
    outside = spots_outside(spots, shape)
    if outside.all():
        exchanged = spots_outside(replace(spots, xy=spots.xy[:, ::-1]), shape)
        raise InvalidValueError(
            f"All {len(outside)} spots of {region!r} are outside the image of {shape} (height, width) px: they extend from "
            f"{spots.xy.min(axis=0).round(1).tolist()} to {spots.xy.max(axis=0).round(1).tolist()} (x, y). With x and y exchanged, "
            f"{(~exchanged).sum()} would be inside.",
            "check the transformations of image and shapes",
        )
    if outside.any():
        logger.warning(
            "%d of %d spots of %r are outside the image and left out: %s.",
            *(outside.sum(), len(outside), region, spots.names[outside][:5].tolist()),
        )
    return outside


def _image_of(sdata: SpatialData, region: str, image_key: str | Mapping[str, str] | None) -> str:
    if not isinstance(image_key, Mapping):
        return find_image(sdata, image_key, region=region)
    if region not in image_key:
        raise NotFoundError(
            f"The mapping from region to image has no region {region!r}; it has {sorted(image_key)}.",
            Advice("add it to {}", "image_key"),
        )
    return find_image(sdata, image_key[region])


def _regions(sdata: SpatialData, table_key: str, region: str | None) -> dict[str, NDArray[np.int64]]:
    """Return the table's rows of each annotated region, or of one of them."""
    table = sdata.tables[table_key]
    if table.n_obs == 0:
        raise InvalidValueError(
            f"Table {table_key!r} is empty: it has no spots.",
            "keep some rows",
            Advice("name another table with {}", "table_key"),
        )
    column = table.obs[region_key_of(table, table_key)].astype(str).to_numpy()
    names = dict.fromkeys(column) if region is None else [region]
    return {name: np.flatnonzero(column == name) for name in names}


def region_key_of(table: AnnData, table_key: str) -> str:
    """Return the column of ``.obs`` with the region of each row."""
    try:
        regions, region_key, _ = get_table_keys(table)
    except ValueError:
        regions = None
    if not regions:
        raise InvalidValueError(
            f"Table {table_key!r} does not name the shapes that it annotates.",
            "link it with sdata.set_table_annotates_spatialelement",
            Advice("name another table with {}", "table_key"),
        )
    if region_key not in table.obs:
        raise NotFoundError(
            f"Table {table_key!r} has no column {region_key!r} in .obs, the region of each row; it has "
            f"{sorted(table.obs.columns)}.",
            "add it",
            "name another one with sdata.set_table_annotates_spatialelement",
        )
    return str(region_key)


def _given(region: str, mpp: Any) -> float | Literal["spots"] | None:
    """Return the caller's mpp of a region."""
    return mpp.get(region) if isinstance(mpp, Mapping) else mpp


def _mpp_of(
    sdata: SpatialData,
    *,
    image_key: str,
    table_key: str | None,
    region: str,
    mpp: float | Literal["spots"] | None,
    need_mpp: bool,
) -> Mpp | None:
    """Find the mpp; errors are only logged if it is neither required nor given."""
    try:
        return find_mpp(sdata, image_key=image_key, table_key=table_key, shapes_key=region, mpp=mpp, required=need_mpp)
    except ValueError as error:
        if need_mpp or mpp is not None:
            raise
        logger.info("The mpp is unknown, but not required: %s", error)
        return None


def as_list(sdatas: Sections, argument: str = "sdatas") -> list[SpatialData]:
    """Return one section, several, or a mapping from names to sections, as a list.

    Raises
    ------
    TypeError
        If a member is not a :class:`~spatialdata.SpatialData`.
    ValueError
        If the list is empty.
    """
    if isinstance(sdatas, SpatialData):
        return [sdatas]
    if isinstance(sdatas, str | PathLike | AnnData | pd.DataFrame | np.ndarray) or not isinstance(sdatas, Iterable):
        check_slide(sdatas, argument=f"{argument}, or each of several in a list or a mapping,")
    found = list(sdatas.values()) if isinstance(sdatas, Mapping) else list(sdatas)
    if not found:
        raise InvalidValueError(f"{argument} is empty; give at least one section.")
    for sdata in found:
        check_slide(sdata, argument=f"Each member of {argument}")
    return found


@contextmanager
def naming(section: Section) -> Iterator[None]:
    """Name the section in out-of-memory errors."""
    try:
        yield
    except MemoryError as error:
        resolution = "" if section.mpp is None else f", mpp {section.mpp.value:.4g} from {section.mpp.source}"
        raise MemoryError(f"Section {section.region!r} of {len(section.rows)} spots{resolution}: {error}") from error


@contextmanager
def about(name: str) -> Iterator[None]:
    """Name the slide in errors, if there are several."""
    try:
        yield
    except StPredictError as error:
        if not name:
            raise
        raise error.about(name) from error.__cause__


def each(slides: Sequence[SpatialData], do: Callable[[SpatialData], R], *, named: Sections | None) -> list[R]:
    """Apply a function to each slide; errors name the slide by its key or position in ``named``."""
    results = []
    for slide in slides:
        with about(name_of(slide, named)):
            results.append(do(slide))
    return results


def section_name(obs: pd.DataFrame, region: str) -> str:
    """Return the name of a section; the names of sections that share a region are joined by a plus sign."""
    return "+".join(sorted(set(obs[Keys.SECTION].astype(str)))) if Keys.SECTION in obs else region


def name_of(slide: SpatialData, *named: Sections | Sequence[str] | None) -> str:
    """Return the beginning of a message about one of several slides; empty if there is only one."""
    for slides in named:
        if isinstance(slides, Mapping):
            found = [f"{name}:" for name, value in slides.items() if value is slide]
        elif isinstance(slides, Sequence) and len(slides) > 1:
            found = [f"Slide {i} of {len(slides)}:" for i, value in enumerate(slides, start=1) if value is slide]
        else:
            found = []
        if found:
            return found[0]
    return ""
