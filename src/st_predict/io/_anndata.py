"""Sections that are AnnData objects, as ``scanpy`` and ``squidpy`` read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, get_transformation, set_transformation
from xarray import DataArray, DataTree

from st_predict._containers import check_table, share_arrays
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError
from st_predict._keys import Keys
from st_predict._multiscale import halve, image_of_levels
from st_predict._validated import Positive, Text, check
from st_predict.io._read import read_image

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["from_anndata"]

COARSEST = 1024
"""Levels of an image in memory are halved until their longer side is at most this."""

_GIVE = Advice("give the image that the coordinates refer to with {}", "image")

Picture = PathLike[str] | str | np.ndarray | DataArray | DataTree


def from_anndata(
    adata: AnnData,
    image: Picture | Mapping[str, Picture] | None = None,
    *,
    spatial_key: str = Keys.SPATIAL,
    library_id: str | None = None,
    library_key: str | None = None,
    mpp: float | None = None,
) -> SpatialData:
    """Convert an AnnData object with spots, such as the result of ``scanpy.read_visium``, to SpatialData.

    Counts are shared, not copied. Results are written to the new object only; :func:`st_predict.get.to_anndata` returns them
    as AnnData.

    Parameters
    ----------
    adata
        Table of the spots.
    image
        Image in whose pixels the coordinates are; for Visium the full-resolution image given to Space Ranger. A file, a uint8
        array ``(height, width, 3)`` or an image element. By default the coarse images in ``.uns["spatial"]``. For several
        libraries: mapping from library to image.
    spatial_key
        Key of ``.obsm`` with the spot centres ``(x, y)``, in pixels of the full-resolution image.
    library_id
        Library of ``.uns["spatial"]``; optional if there is only one. Without ``.uns["spatial"]``: name of the section.
    library_key
        Column of ``.obs`` with the library of each spot, for several libraries in one object.
    mpp
        Micrometres per pixel of the full-resolution image. By default from the image file or Space Ranger's scale factors; for
        Visium, :func:`find_mpp` can derive it later from the distance between spots.

    Returns
    -------
    SpatialData
        Object with:

        ``.tables["table"]``
            The table, with the columns ``stp_region`` and ``stp_spot`` of ``.obs`` that link it to the spots.
        ``.shapes[library]`` or ``.points[library]``
            The spots of each library: circles if ``.uns["spatial"]`` has the diameter, else points.
        ``.images[f"{library}_full_image"]``
            The image, or the coarse ones as ``{library}_hires_image`` and so on.

        All elements of a library share a coordinate system with its name, in full-resolution pixels.

    Raises
    ------
    FileNotFoundError
        If the file of the image does not exist.
    KeyError
        If the key of ``.obsm``, the library or the column does not exist; the message lists the existing ones.
    TypeError
        If ``adata`` is not an AnnData object, or ``image`` is of another type.
    ValueError
        If several libraries fit, an image is missing, or coordinates are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import st_predict as stp
    >>> toy = stp.datasets.toy()
    >>> adata = toy["table"]  # spots with centres in .obsm["spatial"], in pixels of the image
    >>> pixels = np.asarray(toy["he"]["scale0"]["image"]).transpose(1, 2, 0)
    >>> sdata = stp.io.from_anndata(adata, pixels, library_id="P1S1", mpp=1.2)
    >>> sorted(name for _, name, _ in sdata.gen_elements())
    ['P1S1', 'P1S1_full_image', 'table']
    """
    check_table(adata)
    mpp, spatial_key = check("mpp", mpp, Positive | None), check("spatial_key", spatial_key, Text)
    xy = _coordinates(adata, spatial_key)
    libraries = _libraries(adata, check("library_id", library_id, Text | None), library_key)
    images: dict[str, Any] = {}
    spots: dict[str, Any] = {}
    for library in libraries:
        images |= _images(library, _image_of(image, library, libraries), mpp=mpp)
        spots[library.element] = _spots(library, xy)
    rows = np.concatenate([library.rows for library in libraries])
    table = _table(adata, libraries, rows=None if len(rows) == adata.n_obs else np.sort(rows))
    return SpatialData.init_from_elements({**images, **spots, Keys.TABLE: table})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Library:
    """Spots of one section, and what ``.uns["spatial"]`` says of it."""

    name: str
    rows: NDArray[np.int64]
    stored: Mapping[str, Any]

    @property
    def element(self) -> str:
        """Name that SpatialData can store."""
        return re.sub(r"[^\w.-]+", "_", self.name)

    @property
    def factors(self) -> Mapping[str, Any]:
        """Scale factors of Space Ranger."""
        found: Mapping[str, Any] = self.stored.get("scalefactors", {})
        return found


def _coordinates(adata: AnnData, key: str) -> NDArray[np.float64]:
    if key not in adata.obsm:
        raise NotFoundError(
            f"There is no {key!r} in .obsm; there are {sorted(adata.obsm)}.",
            Advice("name the centres of the spots with {}", "spatial_key"),
        )
    try:
        xy = np.asarray(adata.obsm[key], np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f".obsm[{key!r}] must be numbers ({error}).") from error
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise InvalidValueError(f".obsm[{key!r}] must be (n_spots, 2), got the shape {xy.shape}.")
    if n_bad := int((~np.isfinite(xy[:, :2])).any(axis=1).sum()):
        raise InvalidValueError(f"{n_bad} of {len(xy)} spots have no coordinates in .obsm[{key!r}].", "leave them out")
    return xy[:, :2]


def _libraries(adata: AnnData, library_id: str | None, library_key: str | None) -> list[_Library]:
    stored = adata.uns.get(Keys.SPATIAL, {})
    stored = {str(name): of for name, of in stored.items() if isinstance(of, Mapping)} if stored else {}
    if library_id is not None and stored and library_id not in stored:
        raise NotFoundError(
            f"There is no library {library_id!r} in .uns[{Keys.SPATIAL!r}]; there are {sorted(stored)}.",
            Advice("choose one with {}", "library_id"),
        )
    if library_key is not None:
        return _by_column(adata, stored, library_id, library_key)
    if len(stored) > 1 and library_id is None:
        columns = [name for name in adata.obs if set(adata.obs[name].astype(str)) <= set(stored)]
        raise InvalidValueError(
            f"There are several libraries in .uns[{Keys.SPATIAL!r}]: {sorted(stored)}. Columns of .obs that may say which "
            f"spots are of which one: {columns}.",
            Advice("name that column with {}", "library_key"),
            Advice("choose the library of all spots with {}", "library_id"),
        )
    name = library_id or next(iter(stored), "section")
    return [_Library(name=name, rows=np.arange(adata.n_obs), stored=stored.get(name, {}))]


def _by_column(adata: AnnData, stored: Mapping[str, Any], library_id: str | None, library_key: str) -> list[_Library]:
    check("library_key", library_key, Text)
    if library_key not in adata.obs:
        raise NotFoundError(
            f"There is no column {library_key!r} in .obs; there are {sorted(adata.obs.columns)}.",
            Advice("name another one with {}", "library_key"),
        )
    column = adata.obs[library_key].astype(str).to_numpy()
    names = list(dict.fromkeys(column)) if library_id is None else [library_id]
    if stored and (without := sorted(set(names) - set(stored))):
        raise NotFoundError(
            f"Column {library_key!r} names {without}, which are not in .uns[{Keys.SPATIAL!r}]; there are {sorted(stored)}.",
            Advice("name another column with {}", "library_key"),
        )
    found = [_Library(name=name, rows=np.flatnonzero(column == name), stored=stored.get(name, {})) for name in names]
    if empty := [library.name for library in found if not len(library.rows)]:
        raise NotFoundError(
            f"No spot has {empty[0]!r} in column {library_key!r}; it has {sorted(set(column))}.",
            Advice("choose another library with {}", "library_id"),
        )
    return found


def _image_of(image: Any, library: _Library, libraries: list[_Library]) -> Any:
    if isinstance(image, Mapping) and not isinstance(image, DataTree):
        if unknown := sorted(set(image) - {one.name for one in libraries}):
            raise NotFoundError(
                f"The mapping from library to image has {unknown}; the libraries are {[one.name for one in libraries]}.",
                Advice("correct {}", "image"),
            )
        return image.get(library.name)
    if image is not None and len(libraries) > 1:
        raise InvalidValueError(
            f"One image was given, and there are several libraries: {[one.name for one in libraries]}.",
            Advice("give a mapping from library to image with {}", "image"),
        )
    return image


def _images(library: _Library, image: Any, *, mpp: float | None) -> dict[str, Any]:
    """Images of a library: the one that is given, else the coarse ones that are stored."""
    mpp = mpp or _stored_mpp(library)
    if image is not None:
        return {f"{library.element}_full_image": _placed(_element(image), library, scale=1.0, mpp=mpp)}
    found = {}
    for name, pixels in library.stored.get("images", {}).items():
        factor = library.factors.get(f"tissue_{name}_scalef")
        if factor is not None:
            element = _element(_as_uint8(pixels))
            scale = 1 / float(factor)
            found[f"{library.element}_{name}_image"] = _placed(element, library, scale=scale, mpp=mpp)
    if not found:
        raise InvalidValueError(
            f"Library {library.name!r} has no image in .uns[{Keys.SPATIAL!r}], with a scale factor.", _GIVE
        )
    return found


def _stored_mpp(library: _Library) -> float | None:
    """Return what Space Ranger says, for Visium HD."""
    value = library.factors.get("microns_per_pixel")
    return None if value is None else float(value)


def _as_uint8(pixels: Any) -> NDArray[np.uint8]:
    """8-bit RGB of an image of ``.uns["spatial"]``, which scanpy stores from 0 to 1, sometimes with transparency."""
    array = np.asarray(pixels)[..., :3]
    return np.rint(array * 255).astype(np.uint8) if np.issubdtype(array.dtype, np.floating) else array


def _element(image: Any) -> DataArray | DataTree:
    """Image element of a file, an array or an element, which is copied without its pixels."""
    if isinstance(image, str | PathLike):
        return _of_file(Path(image))
    if isinstance(image, DataArray | DataTree):
        copied: DataArray | DataTree = image.copy(deep=False)
        return copied
    if not isinstance(image, np.ndarray):
        raise InvalidTypeError(
            f"image must be a file, an array or an image element, got {type(image).__name__}.", _GIVE
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InvalidValueError(
            f"image must be (height, width, 3) of uint8, got {image.shape} of {image.dtype}.", "convert it"
        )
    levels = [image]
    while max(levels[-1].shape[:2]) > COARSEST:
        levels.append(halve(levels[-1]))
    chunked = [da.from_array(one.transpose(2, 0, 1), chunks=(3, 512, 512), name=False) for one in levels]  # type: ignore[no-untyped-call]
    return image_of_levels(chunked, mpp=None)


def _of_file(path: Path) -> DataArray | DataTree:
    of_file: DataArray | DataTree = read_image(path, image_key="image").images["image"]
    return of_file


def _placed(element: Any, library: _Library, *, scale: float, mpp: float | None) -> Any:
    """Put an image, whose pixels are ``scale`` full-resolution pixels wide, into the coordinate systems of its library."""
    systems: dict[str, Any] = {library.element: Identity() if scale == 1 else Scale([scale, scale], axes=("x", "y"))}
    own = get_transformation(element, get_all=True)
    if mpp is not None:
        systems[Keys.UM] = Scale([mpp * scale, mpp * scale], axes=("x", "y"))
    elif Keys.UM in own:  # the file says so
        systems[Keys.UM] = own[Keys.UM]
    set_transformation(element, systems, set_all=True)
    Image2DModel().validate(element)
    return element


def _spots(library: _Library, xy: NDArray[np.float64]) -> Any:
    """Circles, or points if their diameter is unknown."""
    index, system = pd.RangeIndex(len(library.rows)), {library.element: Identity()}
    diameter = library.factors.get("spot_diameter_fullres")
    if diameter is None:
        frame = pd.DataFrame(xy[library.rows], columns=["x", "y"], index=index)
        return PointsModel.parse(frame, transformations=system)
    return ShapesModel.parse(
        xy[library.rows], geometry=0, radius=float(diameter) / 2, index=index, transformations=system
    )


def _table(adata: AnnData, libraries: list[_Library], *, rows: NDArray[np.int64] | None) -> AnnData:
    """Return the table with links to the spots; its arrays are shared with ``adata`` unless some rows are left out."""
    region = np.empty(adata.n_obs, object)
    spot = np.zeros(adata.n_obs, np.int64)
    for library in libraries:
        region[library.rows], spot[library.rows] = library.element, np.arange(len(library.rows))
    table = share_arrays(adata if rows is None else adata[rows])
    kept = slice(None) if rows is None else rows
    table.obs[Keys.REGION] = pd.Categorical(region[kept])
    table.obs[Keys.SPOT] = spot[kept]
    table.uns.pop("spatialdata_attrs", None)
    sizes = [float(library.factors.get("bin_size_um", np.nan)) for library in libraries]
    if len(set(sizes)) == 1 and np.isfinite(sizes[0]) and Keys.ASSAY not in table.uns:
        table.uns[Keys.ASSAY], table.uns[Keys.BIN_UM] = "visium_hd", sizes[0]
    names = [library.element for library in libraries]
    return TableModel.parse(table, region=names, region_key=Keys.REGION, instance_key=Keys.SPOT)
