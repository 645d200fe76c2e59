"""Choose the image of a section, and the table of its spots, where several could be meant and none is named."""

from __future__ import annotations

import logging
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.transformations import get_transformation
from xarray import DataArray

from st_predict._errors import Advice, InvalidValueError
from st_predict.io._channels import is_rgba

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from spatialdata import SpatialData

__all__ = ["BINS", "CELLS_OF_BINS", "choose_image", "choose_table", "split_tables"]

logger = logging.getLogger(__name__)

BINS = re.compile(r"square_(\d{3})um(?:_labels)?(?=$|-)")
"""Names that spatialdata-io gives to tables and shapes of Visium HD, ``spatialdata.concatenate`` adds a suffix."""

CELLS_OF_BINS = re.compile(r"(cell|nucleus)_segmentations(?=$|-)")
"""Names of its tables of cells and of nuclei."""

DEFAULT_BIN_UM = 8
"""Bins that Space Ranger itself analyses."""

SUFFIX = re.compile(r"-[^-]+$")
"""Suffix of ``spatialdata.concatenate``."""

TABLE_SUFFIX = re.compile(r"-[^-]+$|_\d+$")
"""Suffix of the tables of a mapping, or of a list, that ``spatialdata.concatenate`` joined."""

RESOLUTION = re.compile(r"_(full|hires|lowres)_image(?=$|-)")
"""Images of one section in the readers of Visium, which show the same at several resolutions."""

NOT_HE = re.compile(r"(_cytassist|^if)_image(?=$|-)")
"""Images of readers that are not H&E images although they may be 8-bit RGB."""

MORPHOLOGY = re.compile(r"morphology_(focus|mip)(?=$|-)")
"""Fluorescence of ``spatialdata_io.xenium``."""

COSMX_IMAGE, COSMX_LABELS = re.compile(r"\d+_image(?=$|-)"), re.compile(r"\d+_labels(?=$|-)")

SAME_CORNER = 3
"""Pixels of the coarser image by which the corners of two images of the same area may differ."""

DIFFERENT_PIXELS = 1.05
"""Least ratio of the pixel sizes of two images that show the same area at two resolutions."""


def choose_image(sdata: SpatialData, region: str | None) -> str:
    """Name of the image of a region, if it is clear which one that is.

    Only 8-bit RGB images count, and of these the ones that share a coordinate system with the region. Images of the same area
    at several resolutions are one choice, and the finest is taken.

    Raises
    ------
    ValueError
        If there is no such image, or several show something else.
    """
    names = sorted(sdata.images)
    if not names:
        raise InvalidValueError(
            "There is no image in sdata.", "add one to sdata.images", "read one with st_predict.io.read_image"
        )
    found = [name for name in names if _may_be_stained(sdata, name, region)]
    if len(names) == 1 and not (NOT_HE.search(names[0]) or _is_fluorescence(names[0], region)):
        return names[0]
    if not found:
        raise InvalidValueError(
            f"No image of {names} is a brightfield image of the tissue (8-bit RGB): {_described(sdata, names)}.",
            "read the H&E image with fullres_image_file= of the readers of spatialdata-io",
            "convert one that has other values with st_predict.io.to_rgb8, and add the result as an image of its own",
            "add it with spatialdata_io.xenium_aligned_image or another reader, and a transformation to the coordinate system "
            "of the spots",
        )
    for narrow in (_sharing, _same_suffix):
        found = narrow(sdata, found, region) or found
        if (finest := _finest(sdata, found, region)) is not None:
            if len(names) > 1:
                logger.info("Image %r of %s is read%s.", finest, names, " (the finest)" if len(found) > 1 else "")
            return finest
    fewer = "" if found == names else f" Those that could be meant are {found}."
    raise InvalidValueError(
        f"There are several images in sdata: {names}.{fewer}",
        Advice("choose one with {}", "image_key"),
        "keep one of them",
    )


def choose_table(names: Sequence[str]) -> str | None:
    """Name of the table of 8 um bins among the tables of a Visium HD section; ``None`` if these are not such tables."""
    bins = {name: int(found[1]) for name in names if (found := BINS.match(name))}
    others = [name for name in names if name not in bins and not CELLS_OF_BINS.match(name)]
    default = [name for name, size in bins.items() if size == DEFAULT_BIN_UM]
    return default[0] if len(default) == 1 and not others else None


def split_tables(names: Sequence[str]) -> list[list[str]]:
    """Tables of each object that ``spatialdata.concatenate`` joined, by the suffix that it gave them; else all in one."""
    found: dict[str, list[str]] = {}
    for name in names:
        suffix = TABLE_SUFFIX.search(name)
        if suffix is None:
            return [list(names)]
        found.setdefault(suffix[0], []).append(name)
    stems = [sorted(TABLE_SUFFIX.sub("", name) for name in tables) for tables in found.values()]
    return list(found.values()) if all(stem == stems[0] for stem in stems) else [list(names)]


def _may_be_stained(sdata: SpatialData, name: str, region: str | None) -> bool:
    level = _finest_level(sdata.images[name])
    if level is None or not (level.sizes.get("c") == 3 or is_rgba(level)):
        return False
    # int8 is how HEST declares the slide: that a thumbnail has the right type does not make it the better image
    is_8_bit = level.dtype in {np.dtype(np.uint8), np.dtype(np.int8)}
    return is_8_bit and not _is_fluorescence(name, region) and not NOT_HE.search(name)


def _is_fluorescence(name: str, region: str | None) -> bool:
    """Whether a reader says so: Xenium by the name, CosMx, whose composites of channels are 8-bit RGB, by the region as well."""
    if MORPHOLOGY.match(name):
        return True
    return region is not None and bool(COSMX_LABELS.match(region) and COSMX_IMAGE.match(name))


def _finest_level(image: Any) -> DataArray | None:
    if isinstance(image, DataArray):
        return image
    levels = [level for scale in image.children.values() for level in list(scale.data_vars.values())[:1]]
    return max(levels, key=lambda level: level.sizes.get("x", 0) * level.sizes.get("y", 0), default=None)


def _described(sdata: SpatialData, names: Sequence[str]) -> str:
    levels = {name: _finest_level(sdata.images[name]) for name in names}
    return ", ".join(
        f"{name!r} has {level.sizes.get('c', 0)} channels of {level.dtype}{_not_he(name)}"
        for name, level in levels.items()
        if level is not None
    )


def _not_he(name: str) -> str:
    """Why an image is not taken although it may be 8-bit RGB."""
    if not (found := NOT_HE.search(name)):
        return ""
    return ", of the slide in the CytAssist" if "cytassist" in found[0] else ", of fluorescence"


def _sharing(sdata: SpatialData, names: Sequence[str], region: str | None) -> list[str]:
    """Images that share a coordinate system with the region."""
    element = None if region is None else _element(sdata, region)
    systems = set() if element is None else set(_systems(element))
    return [name for name in names if systems & set(_systems(sdata.images[name]))]


def _same_suffix(_sdata: SpatialData, names: Sequence[str], region: str | None) -> list[str]:
    """Images that ``spatialdata.concatenate`` gave the same suffix as the region."""
    suffix = None if region is None else SUFFIX.search(region)
    return [] if suffix is None else [name for name in names if name.endswith(suffix[0])]


def _finest(sdata: SpatialData, names: Sequence[str], region: str | None) -> str | None:
    """The finest of images that all show the same area; ``None`` if they do not."""
    sizes = {names[0]: 1.0}
    for name in names[1:]:
        ratio = _ratio(sdata, names[0], name, region)
        if ratio is None:
            return None
        sizes[name] = ratio
    ordered = sorted(sizes.values())
    if any(coarse / fine < DIFFERENT_PIXELS for fine, coarse in pairwise(ordered)):
        return None
    return min(sizes, key=lambda name: sizes[name])


def _ratio(sdata: SpatialData, first: str, second: str, region: str | None) -> float | None:
    """Pixel size of the second image in pixels of the first one, if they show the same area."""
    to_first = _between(sdata.images[second], sdata.images[first])
    if to_first is None and region is not None:
        to_first = _through(_element(sdata, region), sdata.images[second], sdata.images[first])
    if to_first is None:
        return None
    ratio = float(np.sqrt(abs(np.linalg.det(to_first[:2, :2]))))
    if _stem(first) is not None and _stem(first) == _stem(second):
        return ratio
    moved = _corners(sdata.images[second]) @ to_first[:2, :2].T + to_first[:2, 2]
    off = np.abs(moved - _corners(sdata.images[first])).max()
    return ratio if off <= SAME_CORNER * max(1.0, ratio) else None


def _stem(name: str) -> str | None:
    """Name of an image of a Visium section without its resolution."""
    return RESOLUTION.sub("", name, count=1) if RESOLUTION.search(name) else None


def _corners(image: Any) -> NDArray[np.float64]:
    level = _finest_level(image)
    assert level is not None  # it is RGB
    height, width = level.sizes["y"], level.sizes["x"]
    return np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64)


def _between(source: Any, target: Any) -> NDArray[np.float64] | None:
    """``(3, 3)`` from the pixels of an image to the pixels of another, through a coordinate system that they share."""
    of_source, of_target = _systems(source), _systems(target)
    for system in sorted(of_source.keys() & of_target.keys()):
        to, back = (np.asarray(m[system].to_affine_matrix(("x", "y"), ("x", "y"))) for m in (of_source, of_target))
        if np.isfinite(to).all() and np.isfinite(back).all() and np.linalg.det(back[:2, :2]) != 0:
            return np.asarray(np.linalg.solve(back, to), np.float64)
    return None


def _through(spots: Any, source: Any, target: Any) -> NDArray[np.float64] | None:
    """``(3, 3)`` as by :func:`_between`, for images that share a coordinate system with the spots, and none with each other."""
    if spots is None:
        return None
    to_source, to_target = _between(spots, source), _between(spots, target)
    if to_source is None or to_target is None or np.linalg.det(to_source[:2, :2]) == 0:
        return None
    return np.asarray(to_target @ np.linalg.inv(to_source), np.float64)


def _element(sdata: SpatialData, region: str) -> Any:
    for elements in (sdata.shapes, sdata.points, sdata.labels):
        if region in elements:
            return elements[region]
    return None


def _systems(element: Any) -> dict[str, Any]:
    found: dict[str, Any] = get_transformation(element, get_all=True)
    return found
