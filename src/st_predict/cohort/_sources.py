"""Sections of a cross-validation: objects in memory, stores, or members of a public data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.sparse import issparse
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from st_predict._containers import check_slide
from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._files import make_folder, sha256, whole
from st_predict._keys import Keys
from st_predict._sections import patients_of
from st_predict._validated import File, Text, check
from st_predict._version import __version__
from st_predict.cohort._key import stat_of
from st_predict.cohort._open import open_listed
from st_predict.cohort._slides import CohortSlide
from st_predict.datasets import her2st
from st_predict.io import read_hest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from anndata import AnnData

    from st_predict._where import Where

__all__ = ["Her2stSection", "HestSection", "SectionSource", "sources_of"]


class SectionSource(Protocol):
    """A section that workers open."""

    def patients(self, where: Where) -> frozenset[str]:
        """Return the patients of the spots."""

    def prepared(self, folder: Path) -> SectionSource:
        """Return a section that opens quickly and reads pixels where they are needed; may write to ``folder``."""

    def open(self) -> SpatialData:
        """Return the section with tables of its own, which results may be written to."""

    def digest(self) -> str:
        """Return a hash of the content, or of the files."""


class _Opened:
    """What most sections do: they are opened for their patients, and are quick to open."""

    __slots__ = ()

    def patients(self, where: Where) -> frozenset[str]:
        """Return the patients of the spots."""
        return patients_of_open(self.open(), where)  # type: ignore[attr-defined]  # of the classes below

    def prepared(self, _folder: Path) -> Any:
        """Return the section itself."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class ObjectSection(_Opened):
    """Section in memory."""

    sdata: SpatialData

    def open(self) -> SpatialData:
        """Return the same elements with copies of the tables."""
        return with_tables(self.sdata, {name: table.copy() for name, table in self.sdata.tables.items()})

    def digest(self) -> str:
        """Return a hash of tables, shapes, places of all elements, and the coarsest pixels of each image."""
        tables = [part for name, table in sorted(self.sdata.tables.items()) for part in (name, *_of_table(table))]
        shapes = [
            part
            for name, shapes in sorted(self.sdata.shapes.items())
            for part in (name, *(b"".join(shapes.geometry.to_wkb()), shapes.drop(columns="geometry").to_csv()))
        ]
        pixels = [part for name, image in sorted(self.sdata.images.items()) for part in (name, _coarsest(image))]
        places = [part for _, name, element in self.sdata.gen_spatial_elements() for part in (name, _place_of(element))]
        return sha256(*tables, *shapes, *places, *pixels)


@dataclass(frozen=True, slots=True)
class StoredSection(_Opened):
    """SpatialData store."""

    name: str
    path: Path

    def open(self) -> SpatialData:
        """Read the store."""
        return open_listed(CohortSlide(path=self.path, id=self.name))

    def digest(self) -> str:
        """Return a hash of size and time of the files."""
        return sha256(json.dumps([str(self.path), stat_of(self.path)]))


@dataclass(frozen=True, slots=True)
class Her2stSection:
    """Section of her2st, in the cache or a given folder."""

    name: str
    cache: Path | None = None

    def patients(self, where: Where) -> frozenset[str]:
        """Return the patient, the letter of the name; another column is looked for in the table."""
        return frozenset(self.name[0]) if where.group_key == Keys.PATIENT else patients_of_open(self.open(), where)

    def prepared(self, folder: Path) -> SectionSource:
        """Write the section to a store, because a picture is decoded whole, which takes seconds and much memory."""
        path = folder / f"{self.name}-{__version__}.zarr"
        if not path.exists():
            make_folder(folder)
            with whole(path) as fresh:
                self.open().write(fresh)
        return StoredSection(self.name, path)

    def open(self) -> SpatialData:
        """Read the section, whose files have known hashes."""
        return her2st(self.name, cache=self.cache, progress=False)

    def digest(self) -> str:
        """Return a hash of the name, because the files are checked on every use."""
        return sha256("her2st", self.name)


@dataclass(frozen=True, slots=True)
class HestSection(_Opened):
    """Sample of a downloaded copy of HEST-1k."""

    folder: Path
    name: str

    def open(self) -> SpatialData:
        """Read the sample."""
        return read_hest(self.folder, self.name)

    def digest(self) -> str:
        """Return a hash of size and time of the files."""
        files = [self.folder / "st" / f"{self.name}.h5ad", self.folder / "wsis" / f"{self.name}.tif"]
        return sha256(json.dumps([self.name, *(stat_of(path) for path in files)]))


def sources_of(sdatas: Mapping[str, SpatialData | PathLike[str] | str | SectionSource]) -> dict[str, SectionSource]:
    """Return the sections by name.

    Raises
    ------
    TypeError
        If it is not a mapping, or a member is neither a section nor a path.
    ValueError
        If it is empty.
    FileNotFoundError
        If a store does not exist.
    """
    if not isinstance(sdatas, Mapping):
        raise InvalidTypeError(
            f"sdatas must be a mapping from the names of sections to sections or stores, got {type(sdatas).__name__}.",
            'name them: {"C2": sdata, "C3": "C3.zarr"}',
        )
    if not sdatas:
        raise InvalidValueError("sdatas is empty; give at least two sections.")
    return {check("sdatas", name, Text): _source(name, section) for name, section in sdatas.items()}


def _source(name: str, section: object) -> SectionSource:
    if isinstance(section, StoredSection | ObjectSection | Her2stSection | HestSection):
        return section
    if isinstance(section, str | PathLike):
        path = check("sdatas", section, File).absolute()
        if not path.exists():
            raise FileNotFoundError(
                f"The store {str(path)!r} of the section {name!r} does not exist; correct its path."
            )
        return StoredSection(name, path)
    check_slide(section, argument=f"sdatas[{name!r}]")
    return ObjectSection(section)


def patients_of_open(sdata: SpatialData, where: Where) -> frozenset[str]:
    """Return the patients of a section's spots."""
    return frozenset(patients_of(sdata, where))


def with_tables(sdata: SpatialData, tables: Mapping[str, AnnData]) -> SpatialData:
    """Return an object with the same images and shapes, and other tables."""
    return SpatialData(
        images=dict(sdata.images),
        labels=dict(sdata.labels),
        points=dict(sdata.points),
        shapes=dict(sdata.shapes),
        tables=dict(tables),
        attrs=dict(sdata.attrs),
    )


def _of_table(table: AnnData) -> Iterable[bytes | str]:
    """Yield everything of a table that training and scoring may read."""
    for name, values in {"X": table.X, **dict(table.layers)}.items():
        yield str(name)
        if issparse(values):
            rows = values.tocsr()
            yield from (np.ascontiguousarray(part).tobytes() for part in (rows.data, rows.indices, rows.indptr))
        else:
            yield np.ascontiguousarray(values).tobytes()
    yield table.obs.to_csv()
    yield table.var.to_csv()
    yield from (np.ascontiguousarray(table.obsm[key]).tobytes() for key in sorted(table.obsm) if key == "spatial")


def _place_of(element: Any) -> str:
    """Return the transformations of an element, which hold its resolution."""
    transformations = get_transformation(element, get_all=True)
    return json.dumps({name: repr(own) for name, own in transformations.items()}, sort_keys=True)


def _coarsest(image: object) -> bytes:
    """Return the pixels of the coarsest level."""
    levels = list(image.values()) if isinstance(image, Mapping) else []
    array = next(iter(levels[-1].data_vars.values())) if levels else image
    return np.ascontiguousarray(np.asarray(array)).tobytes()
