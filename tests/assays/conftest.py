"""Folders in the layouts of Space Ranger and Xenium, small, with a square of its own colour at each spot."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import h5py
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import zarr
from matplotlib import pyplot as plt
from PIL import Image
from scipy import sparse
from sybil import Document
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser
from typer.testing import CliRunner

from st_predict import checkpoints
from st_predict.cli import app
from st_predict.encoders import get_encoder
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from sybil import Example

ROOT = Path(__file__).parents[2]
GENES = ("ENSG01", "ENSG02", "ENSG03", "ENSG04")
STEP = 36  # between the 8 values of a channel


def colours(n: int) -> NDArray[np.int64]:
    """``(n, 3)``: a colour for each of up to 512 spots."""
    assert n <= 512
    codes = (np.arange(n) * 211) % 512  # neighbours get colours far apart
    return np.stack([codes // 64, codes // 8 % 8, codes % 8], axis=1) * STEP


def decode(rgb: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the colours that mean values from 0 to 1 belong to."""
    return np.rint(np.asarray(rgb, np.float64) * 255 / STEP).astype(np.int64) * STEP


def paint(shape: tuple[int, int], xy: NDArray[np.floating], side: float) -> NDArray[np.uint8]:
    """``(height, width, 3)``: white, with a square around each centre."""
    image = np.full((*shape, 3), 255, np.uint8)
    for (x, y), colour in zip(xy, colours(len(xy)), strict=True):
        low, high = (np.rint([x + sign * side / 2, y + sign * side / 2]).astype(int) for sign in (-1, 1))
        image[max(low[1], 0) : max(high[1], 0), max(low[0], 0) : max(high[0], 0)] = colour
    return image


def shrink(image: NDArray[np.uint8], width: int) -> tuple[NDArray[np.uint8], float]:
    """Return the image at another width, and the scale factor."""
    factor = width / image.shape[1]
    small = Image.fromarray(image).resize((width, round(image.shape[0] * factor)), Image.Resampling.BOX)
    return np.asarray(small), factor


def write_10x(
    path: Path, counts: NDArray[np.integer], barcodes: list[str], library: str = "lib", genes: tuple[str, ...] = GENES
) -> None:
    """Write a matrix of counts, ``(n_spots, n_genes)``, as Cell Ranger does since version 3."""
    matrix = sparse.csr_matrix(counts)  # of genes x barcodes, compressed by barcode
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([library.encode()])
        file.attrs["chemistry_description"] = "Visium V4 Slide - FFPE v2"
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        group["data"], group["indices"], group["indptr"] = matrix.data.astype(np.int32), matrix.indices, matrix.indptr
        group["shape"] = np.array(counts.shape[::-1], np.int32)
        features = group.create_group("features")
        names = np.array(genes[: counts.shape[1]], "S")
        features["id"], features["name"] = names, names
        features["feature_type"] = np.array([b"Gene Expression"] * len(names))
        features["genome"] = np.array([b"GRCh38"] * len(names))


@dataclass(frozen=True)
class Folder:
    """A folder that a reader opens.

    Parameters
    ----------
    path
        The folder.
    colours
        Colour of each spot, by its name in ``.obs_names``.
    mpp
        Micrometres per pixel of the full-resolution image.
    image
        The full-resolution image, ``(height, width, 3)``.
    """

    path: Path
    colours: pd.DataFrame
    mpp: float
    image: NDArray[np.uint8]

    def right(self, table: Any, rgb: NDArray[np.floating], *, suffix: str = "") -> float:
        """Share of the rows of a table whose colour is that of their spot."""
        names = [name.removesuffix(suffix) for name in table.obs_names]
        return float((decode(rgb) == self.colours.loc[names].to_numpy()).all(axis=1).mean())


def _turn(degrees: float) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@pytest.fixture
def coded() -> SimpleNamespace:
    """Colours of squares, how to paint them, and how to read them."""
    return SimpleNamespace(colours=colours, paint=paint, decode=decode)


@pytest.fixture
def visium_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a Visium section; hexagonal, 100 um between spots."""

    def make(
        name: str = "outs",
        *,
        version: int = 2,
        mpp: float = 0.5,
        degrees: float = 0.0,
        n_rows: int = 6,
        n_cols: int = 14,
        library: str = "lib",
        hires_width: int = 400,
    ) -> Folder:
        path = tmp_path / name
        (path / "spatial").mkdir(parents=True)
        grid = np.array([(r, c) for r in range(n_rows) for c in range(r % 2, n_cols, 2)])
        pitch = 100 / mpp
        xy = (grid[:, ::-1] * [pitch / 2, pitch * np.sqrt(3) / 2]) @ _turn(degrees).T
        xy = np.rint(xy - xy.min(axis=0) + pitch)
        on_tissue = (grid[:, 0] > 0) & (grid[:, 1] > 1)
        barcodes = np.array([f"AAAC{i:04d}-1" for i in range(len(grid))])
        shape = tuple(int(side) for side in np.ceil(xy.max(axis=0) + pitch)[::-1])
        image = paint(shape, xy, 0.68 * pitch)
        hires, hires_factor = shrink(image, hires_width)
        lowres, lowres_factor = shrink(image, hires_width // 4)
        Image.fromarray(image).save(path / "tissue.tif")
        Image.fromarray(hires).save(path / "spatial" / "tissue_hires_image.png")
        Image.fromarray(lowres).save(path / "spatial" / "tissue_lowres_image.png")
        factors = {
            "spot_diameter_fullres": 55 / mpp,
            "fiducial_diameter_fullres": 90 / mpp,
            "tissue_hires_scalef": hires_factor,
            "tissue_lowres_scalef": lowres_factor,
        }
        (path / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        positions = pd.DataFrame(
            {
                "barcode": barcodes,
                "in_tissue": on_tissue.astype(int),
                "array_row": grid[:, 0],
                "array_col": grid[:, 1],
                "pxl_row_in_fullres": xy[:, 1].astype(int),
                "pxl_col_in_fullres": xy[:, 0].astype(int),
            }
        ).sample(frac=1, random_state=1)
        file = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
        positions.to_csv(path / "spatial" / file, index=False, header=version > 1)
        counts = np.random.default_rng(0).poisson(3, (len(grid), len(GENES)))
        write_10x(path / "raw_feature_bc_matrix.h5", counts, list(barcodes), library)
        write_10x(path / "filtered_feature_bc_matrix.h5", counts[on_tissue], list(barcodes[on_tissue]), library)
        return Folder(path, pd.DataFrame(colours(len(xy)), index=barcodes), mpp, image)

    return make


@pytest.fixture
def decoder(tmp_path: Path) -> Callable[[float], Path]:
    """Saves a network that predicts the mean red, green and blue of a field of 64 px at some resolution."""

    def make(mpp: float) -> Path:
        spec = get_encoder("rgb")
        card = ModelCard(
            model="ridge",
            genes=("red", "green", "blue"),
            crop=replace(spec.crop, mpp=mpp),
            hparams={"encoder": "rgb", "alpha": "cv", "n_components": 256},
        )
        network = checkpoints.build(card)
        weight = torch.zeros(144, 3)
        weight[0, 0] = weight[1, 1] = weight[2, 2] = 1.0
        network.weight_DG = weight
        path = tmp_path / f"decoder-{mpp}.safetensors"
        checkpoints.save(path, network, card)
        return path

    return make


@pytest.fixture
def quietly() -> Callable[..., Any]:
    """Calls a reader whose warnings are about its own libraries."""

    def call(reader: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(*arguments, **options)

    return call


@pytest.fixture
def hd_folder(tmp_path: Path) -> Callable[..., Folder]:
    """Writes the folder of a Visium HD section with bins of 8 and 16 um, 2 um of which are not there."""

    def make(
        name: str = "hd",
        *,
        mpp: float = 0.1,
        degrees: float = 0.0,
        n_bins: int = 18,
        sizes: tuple[int, ...] = (2, 8, 16),
        cells: bool = False,
        hires_width: int = 300,
    ) -> Folder:
        path = tmp_path / name
        side = 8 / mpp
        origin = np.array([side, side])
        extent = n_bins * side + 2 * side
        turn = _turn(degrees)
        corners = np.array([[0, 0], [extent, 0], [0, extent], [extent, extent]]) @ turn.T
        shift = -corners.min(axis=0)
        shape = tuple(int(v) for v in np.ceil(np.ptp(corners, axis=0))[::-1])
        found: dict[str, NDArray[np.int64]] = {}
        image = np.full((*shape, 3), 255, np.uint8)
        for size in sizes:
            n, step = n_bins * 8 // size, size / mpp
            if size == 2:
                n = 12  # a corner of the section
            grid = np.array([(r, c) for r in range(n) for c in range(n)])
            xy = ((grid[:, ::-1] + 0.5) * step + origin) @ turn.T + shift
            on_tissue = (grid.sum(axis=1) > 1) & (grid.sum(axis=1) % 11 > 0)
            barcodes = np.array([f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in grid])
            if size == 8:
                image = paint(shape, xy, side if degrees % 90 == 0 else 0.7 * side)
                found |= dict(zip(barcodes, colours(len(xy)), strict=True))
                if cells:
                    names = _write_segmentations(path, xy[on_tissue], side, mpp=mpp, hires=hires_width / shape[1])
                    found |= dict(zip(names, colours(len(xy))[on_tissue], strict=True))
            _write_bins(
                path / "binned_outputs" / f"square_{size:03d}um",
                {"xy": xy, "grid": grid, "on_tissue": on_tissue, "barcodes": barcodes},
                size=size,
                mpp=mpp,
                hires=hires_width / shape[1],
            )
        _write_images(path, image, hires_width)
        _write_slice(path, image)
        return Folder(path, pd.DataFrame.from_dict(found, orient="index"), mpp, image)

    return make


def _write_bins(path: Path, bins: dict[str, Any], *, size: int, mpp: float, hires: float) -> None:
    (path / "spatial").mkdir(parents=True)
    factors = {
        "spot_diameter_fullres": size / mpp,
        "bin_size_um": float(size),
        "microns_per_pixel": mpp,
        "tissue_hires_scalef": hires,
        "tissue_lowres_scalef": hires / 4,
    }
    (path / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    positions = pd.DataFrame(
        {
            "barcode": bins["barcodes"],
            "in_tissue": bins["on_tissue"].astype(int),
            "array_row": bins["grid"][:, 0],
            "array_col": bins["grid"][:, 1],
            "pxl_row_in_fullres": bins["xy"][:, 1],
            "pxl_col_in_fullres": bins["xy"][:, 0],
        }
    )
    positions.sample(frac=1, random_state=1).to_parquet(path / "spatial" / "tissue_positions.parquet")
    counts = np.random.default_rng(size).poisson(1, (len(positions), len(GENES)))
    barcodes, kept = list(bins["barcodes"]), bins["on_tissue"]
    write_10x(path / "raw_feature_bc_matrix.h5", counts, barcodes)
    write_10x(path / "filtered_feature_bc_matrix.h5", counts[kept], list(bins["barcodes"][kept]))


def _write_segmentations(path: Path, xy: NDArray[np.float64], side: float, *, mpp: float, hires: float) -> list[str]:
    """Write cells and their nuclei, a hexagon around each centre; return the names of the cells."""
    folder = path / "segmented_outputs"
    (folder / "spatial").mkdir(parents=True)
    factors = {"tissue_hires_scalef": hires, "tissue_lowres_scalef": hires / 4, "microns_per_pixel": mpp}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    names = [f"cellid_{i + 1:09d}-1" for i in range(len(xy))]
    counts = np.random.default_rng(3).poisson(2, (len(xy), len(GENES)))
    write_10x(folder / "filtered_feature_cell_matrix.h5", counts, names)
    angles = np.deg2rad(np.arange(0, 361, 60))
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for file, radius in (("cell", 0.3 * side), ("nucleus", 0.15 * side)):
        features = [
            {
                "type": "Feature",
                "properties": {"cell_id": i + 1},
                "geometry": {"type": "Polygon", "coordinates": [(place + radius * corners).tolist()]},
            }
            for i, place in enumerate(xy)
        ]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / f"{file}_segmentations.geojson").write_text(text)
    return names


def _write_slice(path: Path, image: NDArray[np.uint8]) -> None:
    """Write the image of the CytAssist, 60 px wide and of nothing that the H&E image shows, and how it lies on that."""
    (path / "spatial").mkdir(exist_ok=True)
    noise = np.random.default_rng(5).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    tifffile.imwrite(path / "spatial" / "cytassist_image.tiff", noise, photometric="rgb")
    scale = image.shape[1] / 60
    to_microscope, back = ([[s, 0, 0], [0, s, 0], [0, 0, 1]] for s in (scale, 1 / scale))
    same = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    matrices = {
        "cytassist_colrow_to_spot_colrow": same,
        "spot_colrow_to_cytassist_colrow": same,
        "microscope_colrow_to_spot_colrow": back,
        "spot_colrow_to_microscope_colrow": to_microscope,
    }
    with h5py.File(path / "feature_slice.h5", "w") as file:
        layout = json.dumps({"file_format": "1.0", "transform": list(range(9))})
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": layout, "transform_matrices": matrices})


def _write_images(path: Path, image: NDArray[np.uint8], hires_width: int) -> None:
    """Write the images of a section of Visium HD."""
    (path / "spatial").mkdir(parents=True)
    (path / "microscope_image").mkdir()
    Image.fromarray(image).save(path / "microscope_image" / "tissue.tif")
    for name, width in (("hires", hires_width), ("lowres", hires_width // 4)):
        Image.fromarray(shrink(image, width)[0]).save(path / "spatial" / f"tissue_{name}_image.png")


@dataclass(frozen=True)
class Bundle(Folder):
    """A Xenium bundle; the image is the H&E image.

    Parameters
    ----------
    affine
        ``(3, 3)`` from pixels of the H&E image to those of the morphology image.
    """

    affine: NDArray[np.float64]


PIXEL_UM = 0.2125
"""Side of a pixel of the morphology images of Xenium, in micrometres."""


@pytest.fixture
def xenium_folder(tmp_path: Path) -> Callable[..., Bundle]:
    """Writes the bundle of a Xenium section with an H&E image that is turned, mirrored and of another resolution."""

    def make(
        name: str = "xenium",
        *,
        version: str = "xenium-3.1.0.4",
        degrees: float = 17.0,
        mirrored: bool = False,
        mpp: float = 0.11,
        n_cells: int = 120,
        pitch: int = 60,  # morphology pixels, 12.75 um
        he: bool = True,
        genes: tuple[str, ...] = GENES,
    ) -> Bundle:
        path = tmp_path / name
        (path / "morphology_focus").mkdir(parents=True)
        n = int(np.ceil(np.sqrt(n_cells)))
        centres = np.array([(c, r) for r in range(n) for c in range(n)])[:n_cells] * pitch + pitch + 0.5
        side = (n + 1) * pitch
        matrix = _turn(degrees) * (mpp / PIXEL_UM) @ np.diag([-1 if mirrored else 1, 1])
        corners = np.array([[0, 0], [side, 0], [0, side], [side, side]]) @ np.linalg.inv(matrix).T
        low = corners.min(axis=0)
        affine = np.eye(3)
        affine[:2, :2], affine[:2, 2] = matrix, matrix @ low
        in_he = centres @ np.linalg.inv(matrix).T - low
        shape = tuple(int(v) for v in np.ceil(np.ptp(corners, axis=0))[::-1])
        image = paint(shape, in_he, 0.68 * pitch * PIXEL_UM / mpp)
        ids = _write_cells(path, centres, side, version)
        _write_tables(path, centres, ids, genes)
        _write_morphology(path, side, version)
        if he:
            tifffile.imwrite(path / "s_he_image.ome.tif", image, photometric="rgb")
            np.savetxt(path / "s_he_imagealignment.csv", affine, delimiter=",")
        return Bundle(path, pd.DataFrame(colours(n_cells), index=ids), mpp, image, affine)

    return make


def _write_cells(path: Path, centres: NDArray[np.float64], side: int, version: str) -> list[str]:
    """Write what a Xenium bundle says of its cells: numbers, labels and tables."""
    n = len(centres)
    numbers = np.arange(n, dtype=np.uint32) * 4099 + 77
    letters = "abcdefghijklmnop"
    ids = ["".join(letters[(int(i) >> shift) & 15] for shift in range(28, -4, -4)) + "-1" for i in numbers]
    masks = np.zeros((side, side), np.uint32)
    for i, (x, y) in enumerate(centres):
        rows, columns = (slice(int(centre) - 15, int(centre) + 16) for centre in (y, x))
        yy, xx = np.ogrid[rows, columns]
        masks[rows, columns][np.hypot(xx + 0.5 - x, yy + 0.5 - y) < 14] = i + 1
    with zarr.storage.ZipStore(path / "cells.zarr.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w", zarr_format=2)
        group.create_array("cell_id", data=np.column_stack([numbers, np.ones(n, np.uint32)]))
        names = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y"]
        names += ["nucleus_area", "z_level", "nucleus_count"]
        group.create_array("cell_summary", data=np.zeros((n, len(names))), attributes={"column_names": names})
        for i in (0, 1):
            group.create_array(f"masks/{i}", data=masks, chunks=(256, 256))
            group.create_array(f"polygon_sets/{i}/cell_index", data=np.arange(n, dtype=np.uint32))
    (path / "experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL_UM, "analysis_sw_version": version}))
    return ids


def _write_tables(path: Path, centres: NDArray[np.float64], ids: list[str], genes: tuple[str, ...]) -> None:
    """Write counts, places and outlines of the cells; all in micrometres."""
    n = len(ids)
    counts = np.random.default_rng(0).poisson(5, (n, len(GENES)))
    counts[3] = 0
    write_10x(path / "cell_feature_matrix.h5", counts, ids, genes=genes)
    cells = pd.DataFrame(
        {"cell_id": ids, "x_centroid": centres[:, 0] * PIXEL_UM, "y_centroid": centres[:, 1] * PIXEL_UM}
    )
    cells["transcript_counts"], cells["cell_area"], cells["nucleus_area"] = counts.sum(axis=1), 27.8, 10.0
    cells.to_parquet(path / "cells.parquet")
    angles = np.deg2rad(np.arange(0, 405, 45))
    ring = 14 * PIXEL_UM * np.column_stack([np.cos(angles), np.sin(angles)])
    vertices = (centres[:, None] * PIXEL_UM + ring).reshape(-1, 2)
    boundaries = pd.DataFrame({"cell_id": np.repeat(ids, 9), "vertex_x": vertices[:, 0], "vertex_y": vertices[:, 1]})
    boundaries["label_id"] = np.repeat(np.arange(1, n + 1), 9)
    for kind in ("cell", "nucleus"):
        boundaries.to_parquet(path / f"{kind}_boundaries.parquet")
    transcripts = pd.DataFrame({"cell_id": ids, "feature_name": GENES[0], "z_location": 0.0, "qv": 40.0})
    transcripts["x_location"], transcripts["y_location"] = cells["x_centroid"], cells["y_centroid"]
    transcripts.to_parquet(path / "transcripts.parquet")


def _write_morphology(path: Path, side: int, version: str) -> None:
    """Write the fluorescence image, of 16 bits."""
    pixels = np.random.default_rng(0).integers(0, 4000, (1, side, side)).astype(np.uint16)
    name = (
        "morphology_focus/ch0000_dapi.ome.tif"
        if version.startswith("xenium-4")
        else "morphology_focus/morphology_focus_0000.ome.tif"
    )
    tifffile.imwrite(path / name, pixels, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI"]}})


@pytest.fixture
def codes() -> SimpleNamespace:
    """Colours of spots, and how to paint and to read them."""
    return SimpleNamespace(colours=colours, paint=paint, decode=decode)


def _in_shell(example: Example) -> None:
    """Run a block of commands of ``st-predict``, each in this process."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [None]
        if program is None:
            continue
        assert program == "st-predict", f"{example.path}:{example.line}: mark this block, or let it call st-predict"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"


PARSERS = (
    SkipParser(),
    PythonCodeBlockParser(),
    *(CodeBlockParser(language, _in_shell) for language in ("bash", "console", "sh", "shell")),
)


@pytest.fixture
def read_page() -> Callable[[str], Document]:
    """Reads the examples of a page, named from the root of the project."""
    return lambda name: Document.parse(str(ROOT / name), *PARSERS)


@pytest.fixture
def run(
    read_page: Callable[[str], Document], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the blocks of a page one after another, in the folder with the data, with some names known before."""
    mpl.use("agg")
    loggers = [logging.getLogger(name) for name in (None, "st_predict")]  # the command line sets them
    before = [(logger.level, list(logger.handlers)) for logger in loggers]

    def page(name: str, **known: Any) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        document = read_page(name)
        document.namespace.update(known)
        for example in document.examples():
            with contextlib.suppress(SkipTest):
                example.evaluate()
        return document.namespace

    yield page
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers
    plt.close("all")
