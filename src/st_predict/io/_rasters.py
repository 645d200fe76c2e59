"""Images of a result: a value of each gene, or the number of the spot, per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import shapely

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import whole
from st_predict._validated import Count, Flag, Positive, check
from st_predict.io._areas import Outline, read_areas, resolution_of
from st_predict.io._columns import check_target, read_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from st_predict.io._areas import Areas

__all__ = ["write_raster"]

TILE = 256
"""Side of a tile, in pixels."""

PIXELS_ACROSS = 8
"""Least pixels across the narrowest spot, by default."""

MOST_CANDIDATES = 2_000_000
"""Pairs of a spot and a pixel that are compared at once."""

MOST_PIXELS = 2**30
"""Most pixels of a level, as the numbers of its spots are held in memory."""

BIG = 2**31  # bytes from which a TIFF needs offsets of 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raster:
    """Levels to write, one after another.

    Parameters
    ----------
    levels
        ``(height, width)`` each, int32: the number of the spot that a pixel belongs to, 0 for none; finest first.
    values
        ``(n_channels, n_spots + 1)``: values by number; the first is for pixels without a spot.
    names
        Names of the channels.
    step
        Level-0 pixels of the H&E image per pixel of the finest level.
    mpp
        Micrometres per level-0 pixel, if known.
    """

    levels: list[NDArray[np.int32]]
    values: NDArray[Any]
    names: list[str]
    step: float
    mpp: float | None


def write_raster(  # noqa: PLR0913  # every one is a keyword
    adata: AnnData,
    path: str | PathLike[str],
    *,
    sdata: SpatialData | None = None,
    genes: Sequence[str] | str | None = None,
    layer: str | None = None,
    labels: bool = False,
    downsample: float | None = None,
    shape: tuple[int, int] | None = None,
    radius_px: float | None = None,
    outline: Outline | None = None,
    mpp: float | None = None,
    image_key: str | None = None,
    region: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a prediction as an image aligned with the H&E image: one channel per gene, or the number of each spot.

    The upper left corners of raster and image are the same. A pixel has the value of the spot that covers its centre (the last
    row, if several do), and NaN outside spots. Levels of the pyramid are drawn in the same way, so that values are not mixed.

    Parameters
    ----------
    adata
        A prediction, as :func:`st_predict.get.prediction` returns it.
    path
        File to write, ``.ome.tif`` or ``.ome.tiff``, or folder ``.ome.zarr`` (version 0.4).
    sdata
        Object with the image and the shapes, points or labels that the rows of ``adata`` are linked to. Without it,
        ``adata.obsm["spatial"]`` is taken as pixels of the full-resolution image.
    genes
        Genes to write, one channel per gene; all by default.
    layer
        Layer of the values, such as ``"std"``; by default ``.X``.
    labels
        Whether to write labels instead of genes: 0 for none, else one more than the row of ``adata``.
    downsample
        Level-0 pixels of the image per pixel of the raster. By default the largest power of two at which 8 pixels or
        more lie across the narrowest spot, and at least 1.
    shape
        ``(height, width)`` of level 0; by default the image's, and without ``sdata`` as far as the spots reach.
    radius_px
        Radius of the rows in level-0 pixels; by default the shapes' own.
    outline
        Outline of a row with a centre and a radius: ``"circle"``, the default, or ``"square"`` for bins. Polygons and
        labels keep their outline.
    mpp
        Micrometres per pixel of level 0; by default from the record of the prediction, or from ``sdata``. It gives the
        size of the pixels of the raster.
    image_key
        Image whose pixels are meant; may be left out if there is only one.
    region
        Section to write, if ``adata`` annotates several.
    overwrite
        Whether an existing file is replaced. Folders are never replaced.

    Returns
    -------
    Path
        The path. Genes are ``(n_genes, height, width)``, float32, with their names as channels; labels ``(1, height,
        width)``, uint32.

    Raises
    ------
    FileExistsError
        If the file exists and ``overwrite`` is false, or the folder exists.
    FileNotFoundError
        If the folder of the file does not exist.
    KeyError
        If a gene, layer or element does not exist.
    TypeError
        If ``adata`` or ``sdata`` is something else.
    ValueError
        If the rows have no area, the raster would have more than 2**30 pixels, or an argument is not one of its choices.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = stp.tl.train(sdata, "ridge", panel=["GENE1", "GENE2"], out=folder)
    ...     stp.tl.predict(sdata, result)
    ...     prediction = stp.get.prediction(sdata)
    ...     path = stp.io.write_raster(prediction, Path(folder) / "P1S1.ome.tif", sdata=sdata, genes=["GENE1"])
    ...     path.name
    'P1S1.ome.tif'
    """
    target, suffix = check_target(path, (".ome.tif", ".ome.tiff", ".ome.zarr"), overwrite=overwrite)
    step, full = check("downsample", downsample, Positive | None), check("shape", shape, tuple[Count, Count] | None)
    as_labels = check("labels", labels, Flag)
    values = read_columns(adata, genes, layer)
    areas = read_areas(adata, sdata, image_key=image_key, region=region, radius_px=radius_px, outline=outline)
    areas.check_extent()
    step = _default_step(areas) if step is None else step
    raster = _Raster(
        levels=_levels(areas, full or areas.shape or _reach(areas), step),
        values=_labels(areas) if as_labels else _padded(values.to_numpy()[areas.rows]),
        names=["row"] if as_labels else list(values.columns),
        step=step,
        mpp=resolution_of(adata, areas, sdata, mpp),
    )
    with whole(target, keep_old=not overwrite) as fresh:
        write = _write_zarr if suffix == ".ome.zarr" else _write_tiff
        write(raster, fresh)
    return target


def _default_step(areas: Areas) -> float:
    left, top, right, bottom = shapely.bounds(areas.outlines).T
    narrowest = float(np.minimum(right - left, bottom - top).min())
    # corners of polygons may lie a rounding error closer
    return float(2 ** max(0, int(np.floor(np.log2(narrowest / PIXELS_ACROSS * 1.000001)))))


def _reach(areas: Areas) -> tuple[int, int]:
    _, _, right, bottom = shapely.total_bounds(areas.outlines)
    if right <= 0 or bottom <= 0:
        raise InvalidValueError("All spots lie left of or above the image.", "correct their centres")
    return int(np.ceil(bottom)), int(np.ceil(right))


def _padded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(n_genes, n_spots + 1)``, NaN for pixels without a spot."""
    return np.concatenate([np.full((1, values.shape[1]), np.nan, np.float32), values]).T


def _labels(areas: Areas) -> NDArray[np.uint32]:
    return np.concatenate([[0], areas.rows + 1]).astype(np.uint32)[None]


def _levels(areas: Areas, shape: tuple[int, int], step: float) -> list[NDArray[np.int32]]:
    """Number of the spot of each pixel, at each level, until one tile holds it."""
    size = tuple(max(1, int(np.ceil(side / step))) for side in shape)
    if size[0] * size[1] > MOST_PIXELS:
        raise InvalidValueError(
            f"The raster would have {size[1]} x {size[0]} px.", Advice("make its pixels larger with {}", "downsample")
        )
    found = [_draw(areas.outlines, (size[0], size[1]), step)]
    while max(found[-1].shape) > TILE:
        height, width = (-(-side // 2) for side in found[-1].shape)
        step *= 2
        found.append(_draw(areas.outlines, (height, width), step))
    return found


def _draw(outlines: NDArray[np.object_], size: tuple[int, int], step: float) -> NDArray[np.int32]:
    """Number of the spot that covers the centre of each pixel, from 1; 0 for none.

    Parameters
    ----------
    outlines
        ``(n,)`` polygons, in level-0 pixels.
    size
        Height and width of the raster.
    step
        Level-0 pixels per pixel.
    """
    drawn = np.zeros(size, np.int32)
    bounds = shapely.bounds(outlines) / step - 0.5  # the centre of a pixel is whole
    first = np.clip(np.ceil(bounds[:, :2]), 0, None).astype(np.int64)
    last = np.minimum(np.floor(bounds[:, 2:]), np.array(size[::-1]) - 1).astype(np.int64)
    sides = np.clip(last - first + 1, 0, None)
    n_pixels = sides.prod(axis=1)
    shapely.prepare(outlines)
    part = np.cumsum(n_pixels) // MOST_CANDIDATES
    for number in np.unique(part):
        spots = np.flatnonzero((part == number) & (n_pixels > 0))
        of_spot = np.repeat(spots, n_pixels[spots])
        place = np.arange(len(of_spot)) - np.repeat(np.cumsum(n_pixels[spots]) - n_pixels[spots], n_pixels[spots])
        y, x = np.divmod(place, sides[of_spot, 0])
        x, y = x + first[of_spot, 0], y + first[of_spot, 1]
        inside = shapely.intersects_xy(outlines[of_spot], (x + 0.5) * step, (y + 0.5) * step)
        drawn[y[inside], x[inside]] = of_spot[inside] + 1  # the last one stays
    return drawn


def _write_tiff(raster: _Raster, path: Path) -> None:
    import tifffile

    n_bytes = len(raster.values) * sum(level.size for level in raster.levels) * 4
    with tifffile.TiffWriter(path, ome=True, bigtiff=n_bytes >= BIG) as file:
        for number, level in enumerate(raster.levels):
            shape = (len(raster.values), *level.shape)
            file.write(
                _tiles(raster.values, level),
                shape=shape,
                dtype=raster.values.dtype,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                subifds=0 if number else len(raster.levels) - 1,
                subfiletype=1 if number else 0,
                metadata=None if number else _ome(raster),
            )


def _tiles(values: NDArray[Any], level: NDArray[np.int32]) -> Iterator[NDArray[Any]]:
    height, width = level.shape
    for channel in values:
        for top, left in product(range(0, height, TILE), range(0, width, TILE)):
            part = channel[level[top : top + TILE, left : left + TILE]]
            missing = [(0, TILE - side) for side in part.shape]
            yield np.pad(part, missing, constant_values=channel[0])


def _ome(raster: _Raster) -> dict[str, Any]:
    """Metadata that tifffile turns into OME-XML."""
    found: dict[str, Any] = {"axes": "CYX", "Channel": {"Name": raster.names}}
    if raster.mpp is not None:
        side = raster.mpp * raster.step
        found |= {"PhysicalSizeX": side, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": side, "PhysicalSizeYUnit": "µm"}
    return found


def _write_zarr(raster: _Raster, path: Path) -> None:
    import zarr
    from ome_zarr.format import FormatV04
    from ome_zarr.writer import write_multiscale

    unit = {} if raster.mpp is None else {"unit": "micrometer"}
    group = zarr.open_group(path, mode="w", zarr_format=2)
    write_multiscale(
        [_lazy(raster.values, level) for level in raster.levels],
        group,
        fmt=FormatV04(),
        axes=[{"name": "c", "type": "channel"}, *({"name": name, "type": "space", **unit} for name in "yx")],
        coordinate_transformations=[_placed(raster, raster.step * 2**k) for k in range(len(raster.levels))],
        storage_options={"chunks": (1, TILE, TILE)},
        name="prediction",
    )
    group.attrs["omero"] = {"channels": [_channel(raster, k) for k in range(len(raster.names))]}


def _lazy(values: NDArray[Any], level: NDArray[np.int32]) -> da.Array:
    """Values of a level, looked up block by block."""
    numbers = da.from_array(level, chunks=(TILE, TILE))  # type: ignore[no-untyped-call]
    return da.map_blocks(  # type: ignore[no-untyped-call]
        lambda block: values[:, block],
        numbers,
        dtype=values.dtype,
        new_axis=0,
        chunks=((len(values),), *numbers.chunks),
    )


def _placed(raster: _Raster, step: float) -> list[dict[str, Any]]:
    """Transformations of a level: it shares the corner of the image, and the origin is the centre of the image's first pixel."""
    mpp = 1.0 if raster.mpp is None else raster.mpp
    shift = (step - 1) / 2 * mpp
    return [
        {"type": "scale", "scale": [1.0, step * mpp, step * mpp]},
        {"type": "translation", "translation": [0.0, shift, shift]},
    ]


def _channel(raster: _Raster, number: int) -> dict[str, Any]:
    values = raster.values[number][1:]
    found = values[np.isfinite(values)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    window = {"start": low, "end": high, "min": low, "max": high}
    return {"label": raster.names[number], "color": "FFFFFF", "active": number == 0, "window": window}
