"""Sections of the first Spatial Transcriptomics arrays, as their folders of text files and images."""

from __future__ import annotations

import gzip
import logging
import re
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_array, csr_matrix, vstack
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from st_predict._errors import InvalidValueError, StPredictError
from st_predict._keys import Keys
from st_predict._multiscale import halve, image_of_levels, transformations
from st_predict._validated import Count, File, Name, Positive, check
from st_predict.io._mpp import Mpp, lattice_pitch
from st_predict.io._pictures import read_picture
from st_predict.io._pyramid import SpatialDataPyramid
from st_predict.io._spots import Spots, spots_outside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike
    from typing import TextIO

    from numpy.typing import NDArray
    from xarray import DataArray, DataTree

__all__ = ["read_legacy_st"]

logger = logging.getLogger(__name__)

SPOT_NAME = re.compile(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)")
CHUNK = 512
_GZIP = b"\x1f\x8b"
REGION, INSTANCE = "region", "instance_id"


def read_legacy_st(  # noqa: PLR0913  # three files, and what they do not say
    counts: str | PathLike[str],
    spots: str | PathLike[str],
    image: str | PathLike[str],
    *,
    section: str,
    patient: str,
    mpp: float | None = None,
    spot_diameter_um: float = 100.0,
    pitch_um: float = 200.0,
    labels: str | PathLike[str] | None = None,
    image_key: str = "he",
    shapes_key: str = "spots",
    table_key: str = Keys.TABLE,
    n_levels: int = 4,
) -> SpatialData:
    """Read one section of the first generation of Spatial Transcriptomics.

    Known layouts: HER2+ breast cancer :cite:p:`Andersson2021`, breast cancer of ST-Net (HBC) and squamous cell carcinoma
    (cSCC). Text files may be compressed by gzip, and columns are separated by tabs or commas.

    Parameters
    ----------
    counts
        Table of counts: one row per spot, called ``{x}x{y}`` after its place on the array, one column per gene.
    spots
        Positions of the spots in the image. Either a table with the columns ``x``, ``y``, ``pixel_x``, ``pixel_y`` and
        optionally ``new_x``, ``new_y`` (place on the array, measured in the image) and ``selected`` (0 or 1), as in HER2+ and
        cSCC; or three columns with the name ``{x}x{y}`` and two pixel coordinates, with a header
        ``,X,Y`` or without one, as in HBC.
    image
        The H&E image that pixel coordinates refer to: 8-bit RGB as JPEG, PNG or TIFF. An orientation tag is applied,
        as image viewers do, with a warning.
    section
        Name of the section; spots are called ``{section}_{x}x{y}``.
    patient
        Name of the patient, so that splits can keep patients together.
    mpp
        Micrometres per pixel of the image. By default from the pitch of the array: ``pitch_um`` over the regression of
        pixels on array coordinates.
    spot_diameter_um
        Diameter of a spot.
    pitch_um
        Distance between the centres of neighbouring spots.
    labels
        Labels by a pathologist: a table with ``x``, ``y`` and ``label`` (HER2+), or ``xcoord``, ``ycoord`` and
        ``tumor`` (HBC). Places on the array are rounded to find their spot.
    image_key, shapes_key, table_key
        Names of the elements.
    n_levels
        Levels of the image. Each is half as wide as the one before, by means of 2 x 2 pixels.

    Returns
    -------
    SpatialData
        One section. Everything is in the coordinate systems ``"global"`` (pixels of the image) and ``"um"``:

        ``.images[image_key]``
            The image, in memory.
        ``.shapes[shapes_key]``
            Circles, by the names of the spots.
        ``.tables[table_key]``
            ``.X``: counts, sparse float32, ``(n_spots, n_genes)``; ``.obs``: ``array_row`` (y), ``array_col`` (x),
            ``patient``, ``section``, ``pathologist_label`` (missing: NaN); ``.obsm["spatial"]``: centres in pixels;
            ``.uns["assay"]``: ``"legacy_st"``; ``.uns["mpp_source"]``: where mpp comes from.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If an argument is of another type or range; if a file is damaged or has none of the known layouts; if counts are
        negative or not whole; if no spot is left; if pixels cannot be placed on an array.

    Notes
    -----
    Only spots that have counts and a place, and are not unselected, are kept; how many are dropped is logged. Genes are
    kept as they are, also repeated ones, which are logged; anndata then warns that names are not unique.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import pandas as pd
    >>> from PIL import Image
    >>> import st_predict as stp
    >>> spots = pd.DataFrame([(x, y) for x in range(3) for y in range(3)], columns=["x", "y"])
    >>> spots["pixel_x"], spots["pixel_y"] = 100 + 80 * spots["x"], 100 + 80 * spots["y"]
    >>> names = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    >>> counts = pd.DataFrame({"ERBB2": 3, "GNAS": 1}, index=names)
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     Image.fromarray(np.full((400, 400, 3), 200, np.uint8)).save(folder / "he.png")
    ...     counts.to_csv(folder / "counts.tsv")
    ...     spots.to_csv(folder / "spots.tsv", index=False)
    ...     files = folder / "counts.tsv", folder / "spots.tsv", folder / "he.png"
    ...     sdata = stp.io.read_legacy_st(*files, section="A1", patient="A", n_levels=2)
    >>> sdata["table"].shape, round(stp.io.find_mpp(sdata).value, 3)  # 200 um over 80 pixels
    ((9, 2), 2.5)
    """
    _check({"counts": counts, "spots": spots, "image": image}, File)
    _check({"labels": labels}, File | None)
    _check({"image_key": image_key, "shapes_key": shapes_key, "table_key": table_key}, Name)
    _check({"section": section, "patient": patient}, str)
    _check({"spot_diameter_um": spot_diameter_um, "pitch_um": pitch_um}, Positive)
    check("n_levels", n_levels, Count)
    with _reading(spots):
        places = _read_spots(Path(spots))
    with _reading(counts):
        names, genes, values = _read_counts(Path(counts))
    places, values = _with_both(places, names, values, section)
    resolution = _resolution(places, mpp, pitch_um)
    with _reading(image):
        picture = _read_image(Path(image), n_levels=n_levels, mpp=resolution.value)
    table = AnnData(values, obs=_obs(places, section, patient), var=pd.DataFrame(index=pd.Index(genes)))
    with _reading(labels):
        table.obs[Keys.LABEL] = _read_labels(None if labels is None else Path(labels), places)
    table.obs[REGION], table.obs[INSTANCE] = pd.Categorical([shapes_key] * len(places)), table.obs_names.to_numpy()
    table.obsm[Keys.SPATIAL] = places[["pixel_x", "pixel_y"]].to_numpy()
    table.uns |= {Keys.ASSAY: "legacy_st", Keys.MPP_SOURCE: resolution.source}
    circles = ShapesModel.parse(
        table.obsm[Keys.SPATIAL],
        geometry=0,
        radius=spot_diameter_um / 2 / resolution.value,
        index=table.obs_names,
        transformations=transformations(resolution.value),
    )
    _warn_of_outside(table, picture, section)
    return SpatialData(
        images={image_key: picture},
        shapes={shapes_key: circles},
        tables={table_key: TableModel.parse(table, region=shapes_key, region_key=REGION, instance_key=INSTANCE)},
    )


def _check(arguments: Mapping[str, Any], kind: Any) -> None:
    for name, value in arguments.items():
        check(name, value, kind)


@contextmanager
def _reading(path: PathLike[str] | str | None) -> Iterator[None]:
    """Say which file it was where reading it fails."""
    try:
        yield
    except StPredictError:
        raise
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path} is not a text in UTF-8 ({error}).", "save it as UTF-8") from error
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory ({error}).") from error
    except (EOFError, OSError, SyntaxError, TypeError, ValueError, struct.error, zlib.error) as error:
        if isinstance(error, OSError) and error.filename is not None:  # says it already
            raise
        raise InvalidValueError(
            f"{path} cannot be read: {error}. It is damaged, or not such a file.", "get it again"
        ) from error


def _read_spots(path: Path) -> pd.DataFrame:
    """Spots by name, with ``x``, ``y``, ``new_x``, ``new_y``, ``pixel_x``, ``pixel_y``; only those selected."""
    with _open(path) as file:
        first = file.readline().rstrip("\r\n")
    separator = "\t" if "\t" in first else ","
    header = [name.strip().strip('"') for name in first.split(separator)]
    if {"x", "y", "pixel_x", "pixel_y"} <= set(header):
        frame = _of_selection(_read_table(path, sep=separator), path)
    elif len(header) == 3 and (SPOT_NAME.fullmatch(header[0]) or [h.lower() for h in header[1:]] == ["x", "y"]):
        named = SPOT_NAME.fullmatch(header[0]) is None
        frame = _of_names(_read_table(path, sep=separator, header=None, skiprows=int(named)), path)
    else:
        raise InvalidValueError(
            f"{path} is not a known file of spots: its first line is {header}. Expected the columns x, y, pixel_x and "
            "pixel_y, or a name like 7x13 and two pixel coordinates, separated by tabs or commas."
        )
    if frame.empty:
        raise InvalidValueError(f"{path} has no spots, or none that is selected.", "get the whole file")
    frame.index = pd.Index(_name(frame["x"], frame["y"]))
    if not frame.index.is_unique:
        raise InvalidValueError(f"{path} has spots twice: {sorted(set(frame.index[frame.index.duplicated()]))[:3]}.")
    if not np.isfinite(frame.to_numpy(dtype=np.float64)).all():
        bad = frame.index[~np.isfinite(frame.to_numpy(dtype=np.float64)).all(axis=1)]
        raise InvalidValueError(
            f"{path} has {len(bad)} spots with coordinates that are missing or not numbers, the first is {bad[0]!r}.",
            "fill them in, or delete these lines",
        )
    return frame


def _read_table(path: Path, **options: Any) -> pd.DataFrame:
    with _open(path) as file:
        return pd.read_csv(file, **options)


def _of_selection(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    frame = frame.rename(columns=lambda name: str(name).strip())
    for name in frame.columns.intersection(["x", "y", "pixel_x", "pixel_y", "new_x", "new_y", "selected"]):
        frame[name] = _numbers(frame[name], path, f"the column {name!r}")
    if "selected" in frame:
        frame = frame[frame["selected"] != 0]
    as_found = {name: frame.get(f"new_{name}", frame[name]) for name in ("x", "y")}
    return pd.DataFrame(
        {
            "x": frame["x"].round().astype(np.int64),
            "y": frame["y"].round().astype(np.int64),
            "new_x": as_found["x"],
            "new_y": as_found["y"],
            "pixel_x": frame["pixel_x"],
            "pixel_y": frame["pixel_y"],
        }
    )


def _of_names(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    place = _places(frame[0].astype(str).tolist(), path)
    whole = np.rint(place).astype(np.int64)
    return pd.DataFrame(
        {
            "x": whole[:, 0],
            "y": whole[:, 1],
            "new_x": place[:, 0],
            "new_y": place[:, 1],
            "pixel_x": _numbers(frame[1], path, "the second column").to_numpy(),
            "pixel_y": _numbers(frame[2], path, "the third column").to_numpy(),
        }
    )


def _numbers(column: pd.Series, path: Path, what: str) -> pd.Series:
    """Return a column as numbers; empty cells are NaN."""
    numbers = pd.to_numeric(column, errors="coerce")
    if len(wrong := column[numbers.isna() & column.notna()]):
        raise InvalidValueError(
            f"{path}: {len(wrong)} of {len(column)} values of {what} are not numbers, the first is {wrong.iloc[0]!r}.",
            "write numbers as 12.5, without units",
        )
    return numbers.astype(np.float64)


def _places(names: list[str], path: Path) -> NDArray[np.float64]:
    """``(n, 2)``: x and y of names like 7x13."""
    matches = [SPOT_NAME.fullmatch(name.strip().strip('"')) for name in names]
    if None in matches:
        raise InvalidValueError(f"{path}: expected names of spots like 7x13, got {names[matches.index(None)]!r}.")
    return np.array([match.groups() for match in matches if match], dtype=np.float64).reshape(-1, 2)


def _name(x: pd.Series, y: pd.Series) -> list[str]:
    return [f"{column}x{row}" for column, row in zip(x, y, strict=True)]


def _read_counts(path: Path) -> tuple[pd.Index[str], list[str], csr_matrix]:
    """Names of spots, genes, and counts ``(n_spots, n_genes)``."""
    names, rows = [], []
    with _open(path) as file:
        first = file.readline().rstrip("\r\n")
        separator = "\t" if "\t" in first else ","
        genes = [gene.strip('"') for gene in first.split(separator)[1:]]
        for line in file:
            name, _, values = line.rstrip("\r\n").partition(separator)
            names.append(name)
            rows.append(_row(values.split(separator), name=name, n_genes=len(genes), path=path))
    if genes and all(SPOT_NAME.fullmatch(gene.strip()) for gene in genes):
        raise InvalidValueError(
            f"{path} has a column per spot ({genes[:3]}...) and a row per gene ({names[:3]}...); a row per spot is needed.",
            "transpose the table",
        )
    if not rows or not genes:
        raise InvalidValueError(f"{path} holds no counts.")
    repeated = pd.Index(genes)[pd.Index(genes).duplicated()]
    if len(repeated):
        logger.warning("%s has %d genes more than once, the first are %s.", path, len(repeated), list(repeated[:3]))
    place = pd.DataFrame(np.rint(_places(names, path)).astype(np.int64))
    index = pd.Index(_name(place[0], place[1]))
    if not index.is_unique:
        raise InvalidValueError(f"{path} has spots twice: {sorted(set(index[index.duplicated()]))[:3]}.")
    return index, genes, csr_matrix(vstack(rows, format="csr"))


def _row(cells: list[str], *, name: str, n_genes: int, path: Path) -> csr_array:
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError as error:
        raise InvalidValueError(
            f"{path}: spot {name!r} has a count that is not a number ({error}).",
            "write whole numbers, separated by tabs or commas",
        ) from None
    if len(values) != n_genes:
        raise InvalidValueError(f"{path}: spot {name!r} has {len(values)} counts for {n_genes} genes.")
    bad = ~(np.isfinite(values) & (values >= 0) & (values == np.rint(values)))
    if bad.any():
        raise InvalidValueError(
            f"{path}: counts must be whole and not negative, but spot {name!r} has {values[bad][0]:g}."
        )
    return csr_array(values[None].astype(np.float32))


def _open(path: Path) -> TextIO:
    """Open a text, compressed or not whatever its name says; a byte order mark, as Excel writes it, is skipped."""
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    return gzip.open(path, "rt", encoding="utf-8-sig") if compressed else path.open(encoding="utf-8-sig")


def _with_both(
    places: pd.DataFrame, names: pd.Index[str], values: csr_matrix, section: str
) -> tuple[pd.DataFrame, csr_matrix]:
    """Spots that have counts and a place, in the order of the counts."""
    rows = np.flatnonzero(names.isin(places.index))
    if len(rows) == 0:
        raise InvalidValueError(
            f"Section {section}: none of the {len(names)} spots with counts ({list(names[:3])}...) is among the "
            f"{len(places)} selected spots with a place ({list(places.index[:3])}...).",
            "check that both files are of one section, and that the file of spots is complete",
        )
    if len(rows) < max(len(names), len(places)):
        logger.info(
            "Section %s: %d spots are kept; %d with counts have no place or are not selected, %d with a place have no counts.",
            section,
            len(rows),
            len(names) - len(rows),
            len(places) - len(rows),
        )
    return places.loc[names[rows]], values[rows]


def _resolution(places: pd.DataFrame, mpp: float | None, pitch_um: float) -> Mpp:
    if mpp is not None:
        return Mpp(mpp, "argument")
    pitch = lattice_pitch(places[["pixel_x", "pixel_y"]].to_numpy(), places[["new_y", "new_x"]].to_numpy())
    return Mpp(pitch_um / pitch, f"distance between spots (legacy_st: {pitch_um:g} um, {pitch:.2f} px)")


def _read_image(path: Path, *, n_levels: int, mpp: float) -> DataArray | DataTree:
    levels = [_pixels(path)]
    while len(levels) < n_levels and min(levels[-1].shape[:2]) > 1:
        levels.append(halve(levels[-1]))
    return image_of_levels([_chunked(level) for level in levels], mpp=mpp)


def _chunked(level: NDArray[np.uint8]) -> da.Array:
    # the name is random: hashing the pixels would take longer than reading them
    return da.from_array(level.transpose(2, 0, 1), chunks=(3, CHUNK, CHUNK), name=False)  # type: ignore[no-untyped-call]


def _pixels(path: Path) -> NDArray[np.uint8]:
    """``(height, width, 3)``."""
    pixels = read_picture(path)
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise InvalidValueError(
            f"{path}: expected an 8-bit RGB image, got mode {'RGBA'[: pixels.shape[2]]!r} with values of type "
            f"{pixels.dtype}.",
            "convert it first",
        )
    return np.ascontiguousarray(pixels)


def _obs(places: pd.DataFrame, section: str, patient: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            Keys.ARRAY_ROW: places["y"].to_numpy(),
            Keys.ARRAY_COL: places["x"].to_numpy(),
            Keys.PATIENT: pd.Categorical([patient] * len(places)),
            Keys.SECTION: pd.Categorical([section] * len(places)),
        },
        index=[f"{section}_{name}" for name in places.index],
    )


def _read_labels(path: Path | None, places: pd.DataFrame) -> pd.Categorical:
    """A label a spot, missing where there is none."""
    if path is None:
        return pd.Categorical.from_codes(np.full(len(places), -1), categories=pd.Index([], dtype=str))
    with _open(path) as file:
        separator = "\t" if "\t" in file.readline() else ","
    frame = _read_table(path, sep=separator).rename(columns={"xcoord": "x", "ycoord": "y", "tumor": "label"})
    if not {"x", "y", "label"} <= set(frame.columns):
        raise InvalidValueError(f"{path} is not a file of labels: expected x, y and label, got {list(frame.columns)}.")
    placed = frame.dropna(subset=["x", "y", "label"])
    index = _name(placed["x"].round().astype(np.int64), placed["y"].round().astype(np.int64))
    labels = pd.Series(placed["label"].astype(str).to_numpy(), index=index)
    found = labels.index.isin(places.index)
    if found.sum() < len(frame):
        logger.info(
            "%s: of %d labels, %d have no place and %d no spot.",
            path,
            len(frame),
            len(frame) - len(placed),
            (~found).sum(),
        )
    if not labels.index.is_unique:
        raise InvalidValueError(
            f"{path} labels spots twice: {sorted(set(labels.index[labels.index.duplicated()]))[:3]}."
        )
    return pd.Categorical(labels.reindex(places.index))


def _warn_of_outside(table: AnnData, image: DataArray | DataTree, section: str) -> None:
    spots = Spots(table.obs_names, table.obsm[Keys.SPATIAL])
    outside = spots_outside(spots, SpatialDataPyramid(image).level_shapes[0])
    if outside.any():
        logger.warning("Section %s: %d of %d spots lie outside the image.", section, outside.sum(), len(outside))
