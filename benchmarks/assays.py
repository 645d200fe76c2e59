"""Time and memory of `tl.predict` on a Visium HD section and on a Xenium section with an aligned H&E image.

    python benchmarks/assays.py --out assays.json

Objects have the elements that ``spatialdata_io.visium_hd`` and ``spatialdata_io.xenium`` make, are stored as zarr, and are opened and
predicted in a fresh process each. Bins of 8 um and cells lie on a square lattice; counts are sparse, of 18,000 and 400 genes. The H&E
image is noise that looks like tissue; that of Xenium is turned by 17 degrees against the cells. The network is far too small to predict
anything, so that what is seen is all the rest. CPU seconds are of all threads. The ratio is that of the CPU time per spot against
the bins.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Goal, peak_mib, print_table, report, run_alone, write_json

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

CASES = {
    "Visium HD, bins of 8 um": "hd",
    "Xenium, centroids of labels": "labels",
    "Xenium, centroids of polygons": "polygons",
}
GOAL = Goal(figure="peak MiB", at_most=6 * 1024)
CHUNK = 1024
HE_MPP, MORPHOLOGY_MPP = 0.5, 0.2125
BIN_UM, PITCH = 8, 60  # the pitch of cells is in pixels of the morphology image
DEGREES = 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="a few spots, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the objects are made, and kept")
    parser.add_argument("--out", type=Path, help="JSON file for what was measured")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    n_spots = 64 if args.quick else args.spots
    if args.variant:
        step, case = args.variant.split(", ")
        (make if step == "make" else run)(args.folder, case, n_spots)
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(args.folder or Path(temporary), n_spots)
    columns = ["spots", "centres s", "predict s", "CPU s", "CPU ms a spot", "ratio", "peak MiB"]
    print_table(rows, columns, title=f"{n_spots} spots of each assay")
    if args.out:
        write_json(args.out, assays=rows)


def measure(folder: Path, n_spots: int) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for variant, case in CASES.items():
        arguments = ["--folder", str(folder), "--spots", str(n_spots)]
        run_alone(__file__, f"make, {case}", *arguments)
        row = run_alone(__file__, f"run, {case}", *arguments) | {"variant": variant, "goal": str(GOAL)}
        row["met"] = "yes" if GOAL.met(row["peak MiB"]) else "NO"
        rows.append(row)
        row["ratio"] = row["CPU ms a spot"] / rows[0]["CPU ms a spot"]
    return rows


def run(folder: Path, case: str, n_spots: int) -> None:
    """Open an object, read its spots once, and predict them."""
    import spatialdata

    import st_predict as stp

    warnings.simplefilter("ignore")
    sdata = spatialdata.read_zarr(_path(folder, case, n_spots))
    start = time.perf_counter()
    assert len(stp.io.read_spots(sdata)) == n_spots
    centres = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    stp.tl.predict(sdata, _network(folder))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    table = sdata.tables[stp.io.find_table(sdata)]
    assert np.isfinite(table.obsm["pred_m2ost"]).all()
    assert not len(table.layers)
    report(
        **{
            "spots": n_spots,
            "centres s": centres,
            "predict s": seconds,
            "CPU s": cpu,
            "CPU ms a spot": 1000 * cpu / n_spots,
            "peak MiB": peak_mib(),
        }
    )


def _network(folder: Path) -> Path:
    """Save a network of one layer on crops of 64 px, with random weights and 250 genes."""
    import st_predict as stp

    path = folder / "network.safetensors"
    if not path.exists():
        spec = stp.models.get_spec("m2ost")
        genes = tuple(f"GENE{i}" for i in range(250))
        crop = replace(spec.crop_for(dict(spec.tiny)), mpp=HE_MPP)
        card = stp.specs.ModelCard(model="m2ost", genes=genes, crop=crop, hparams=dict(spec.tiny))
        stp.checkpoints.save(path, stp.checkpoints.build(card), card)
    return path


def _path(folder: Path, case: str, n_spots: int) -> Path:
    return folder / f"{case}-{n_spots}.zarr"


def make(folder: Path, case: str, n_spots: int) -> None:
    """Write an object, unless it is there."""
    path = _path(folder, case, n_spots)
    if not path.exists():
        warnings.simplefilter("ignore")
        (_visium_hd(n_spots) if case == "hd" else _xenium(n_spots, case)).write(path)
    report(path=str(path))


def _grid(n: int) -> NDArray[np.int64]:
    """``(n, 2)``: row and column of the first places of a square."""
    side = int(np.ceil(np.sqrt(n)))
    return np.column_stack([np.arange(n) // side, np.arange(n) % side])


def _visium_hd(n: int) -> SpatialData:
    import geopandas as gpd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    grid, pitch = _grid(n), BIN_UM / HE_MPP
    xy = (grid[:, ::-1] + 1) * pitch
    squares = shapely.box(*(xy - pitch / 2).T, *(xy + pitch / 2).T)
    name = "section_square_008um"
    table = _table(n, 18_000, density=0.006)
    table.obs["in_tissue"], table.obs["array_row"], table.obs["array_col"] = 1, grid[:, 0], grid[:, 1]
    table.obs["location_id"] = np.arange(n)
    table.obs["region"] = _constant(name, n)
    return SpatialData(
        images={"section_full_image": _he(int(xy.max() + pitch), "section", Identity())},
        shapes={name: ShapesModel.parse(gpd.GeoDataFrame(geometry=squares), transformations={"section": Identity()})},
        tables={"square_008um": TableModel.parse(table, region=name, region_key="region", instance_key="location_id")},
    )


def _xenium(n: int, case: str) -> SpatialData:
    import geopandas as gpd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

    grid = _grid(n)
    side = (int(grid.max()) + 2) * PITCH
    centres = (grid[:, ::-1] + 1) * PITCH
    outlines = shapely.buffer(shapely.points(centres * MORPHOLOGY_MPP), 14 * MORPHOLOGY_MPP, quad_segs=4)
    to_pixels = Scale([1 / MORPHOLOGY_MPP] * 2, axes=("x", "y"))
    table = _table(n, 400, density=0.15)
    ids = np.array([f"cell{i:08d}-1" for i in range(n)])
    table.obs["cell_id"], table.obs["transcript_counts"], table.obs["cell_area"] = ids, 60, 100.0
    region = "cell_labels" if case == "labels" else "cell_boundaries"
    table.obs["region"], table.obs["cell_labels"] = _constant(region, n), np.arange(1, n + 1)
    shapes = gpd.GeoDataFrame(geometry=outlines, index=ids)
    matrix = _he_to_morphology(side)
    he_side = int(np.ceil(side * MORPHOLOGY_MPP / HE_MPP * 1.3))
    labels = Labels2DModel.parse(
        _labels(n, side), dims=("y", "x"), scale_factors=[2, 2], transformations={"global": Identity()}
    )
    instance = "cell_labels" if case == "labels" else "cell_id"
    return SpatialData(
        images={"he_image": _he(he_side, "global", Affine(matrix, ("x", "y"), ("x", "y")))},
        labels={"cell_labels": labels},
        shapes={"cell_boundaries": ShapesModel.parse(shapes, transformations={"global": to_pixels})},
        tables={"table": TableModel.parse(table, region=region, region_key="region", instance_key=instance)},
    )


def _he_to_morphology(side: int) -> NDArray[np.float64]:
    """``(3, 3)``: the middle of the H&E image, turned, is that of the morphology image."""
    angle, scale = np.deg2rad(DEGREES), HE_MPP / MORPHOLOGY_MPP
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.full(2, np.ceil(side * MORPHOLOGY_MPP / HE_MPP * 1.3) / 2)
    matrix[:2, 2] = side / 2 - matrix[:2, :2] @ middle
    return matrix


def _labels(n: int, side: int) -> Any:
    """Return a lazy array of discs around the centres of the cells, numbered from 1."""
    import dask.array as da

    across = int(np.ceil(np.sqrt(n)))

    def block(block_info: Any = None) -> NDArray[np.uint32]:
        (top, bottom), (left, right) = block_info[None]["array-location"]
        y, x = np.arange(top, bottom)[:, None] + 0.5, np.arange(left, right)[None] + 0.5
        row, column = np.rint(y / PITCH) - 1, np.rint(x / PITCH) - 1
        number = row * across + column
        inside = np.hypot(y - (row + 1) * PITCH, x - (column + 1) * PITCH) < 14
        inside &= (row >= 0) & (column >= 0) & (column < across) & (number < n)
        return np.where(inside, number + 1, 0).astype(np.uint32)

    chunks = da.core.normalize_chunks(4096, (side, side))
    return da.map_blocks(block, chunks=chunks, dtype=np.uint32, meta=np.empty((0, 0), np.uint32))


def _he(side: int, system: str, transformation: Any) -> Any:
    """Image of noise in the colours of tissue, the same in every chunk."""
    import dask.array as da
    from spatialdata.models import Image2DModel

    generator = np.random.default_rng(0)
    coarse = generator.normal(0, 25, (3, CHUNK // 8, CHUNK // 8)).repeat(8, axis=1).repeat(8, axis=2)
    colour = np.array([170, 110, 160])[:, None, None]
    tile = np.clip(colour + coarse + generator.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)
    n = -(-side // CHUNK)
    pixels = da.tile(da.from_array(tile, chunks=(3, CHUNK, CHUNK)), (1, n, n))[:, :side, :side]
    return Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2, 2, 2],
        transformations={system: transformation},
    )


def _table(n: int, n_genes: int, *, density: float) -> AnnData:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    generator = np.random.default_rng(1)
    each = max(1, int(density * n_genes))
    columns = np.sort(generator.integers(0, n_genes, (n, each), dtype=np.int32), axis=1).ravel()
    counts = sparse.csr_matrix(
        (np.ones(n * each, np.float32), columns, np.arange(0, n * each + 1, each)), shape=(n, n_genes)
    )
    names = [f"GENE{i}" for i in range(n_genes)]
    return AnnData(counts, obs=pd.DataFrame(index=[str(i) for i in range(n)]), var=pd.DataFrame(index=names))


def _constant(name: str, n: int) -> Any:
    import pandas as pd

    return pd.Categorical.from_codes(np.zeros(n, np.int8), [name])


if __name__ == "__main__":
    main()
