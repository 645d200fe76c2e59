"""Cells of sections: where they are, which a spot covers, and maps of them, against arithmetic and plain writings."""

from __future__ import annotations

import json
from dataclasses import replace

import anndata
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata
import torch
from anndata import AnnData
from shapely import box, points
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale, get_transformation, set_transformation

import st_predict as stp
from st_predict import checkpoints
from st_predict._record import Record
from st_predict._runtime import Compute
from st_predict._sections._cells import CellGrid, CellReader, cells_of_spots, join_cells, spot_cells
from st_predict._sections._section import open_sdata
from st_predict._where import Where
from st_predict.encoders._cells import _TYPICAL, CELL_NAMES, CellEncoder, RgbCells, get_cell_encoder, load_cell_encoder
from st_predict.encoders._hipt import Hipt, save_hipt_weights
from st_predict.io import open_pyramid
from st_predict.models import get_spec
from st_predict.specs import ModelCard

GENES = ("a", "b")
SLOPE = 0.25  # of the gene a with red, in units of the encoder
CPU = Compute(device="cpu", precision="float32")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def slide(sdata) -> SpatialData:
    """The gradient image, 0.5 um/px, with 12 spots of 20 px."""
    set_transformation(sdata["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")
    return sdata


@pytest.fixture
def checkpoint(tmp_path):
    """A network whose first gene is linear in the red of a cell; cells of 8 px."""
    hparams = {"encoder": "rgb-cells", "cell": 8, "n_fits": 1, "hidden": 2}
    card = ModelCard(model="istar", genes=GENES, crop=get_spec("istar").crop_for(hparams), hparams=hparams)
    network = checkpoints.build(card)
    for parameter in network.parameters():
        parameter.data.zero_()
    network.layers[0].weight.data[0, CELL_NAMES.index("mean_red_1"), 0] = 1
    network.layers[0].bias.data[0, 0, 0] = 10  # so that it is positive, where the layers change nothing
    for layer in network.layers[1:]:
        layer.weight.data[0, 0, 0] = 1
    network.head.weight.data[0, 0, 0] = SLOPE
    checkpoints.save(tmp_path / "linear.safetensors", network, card)
    return tmp_path / "linear.safetensors"


def expected_of(red: np.ndarray) -> np.ndarray:
    """What the network says of a cell with so much red, from 0 to 1."""
    centre, spread = _TYPICAL["mean_red"]
    return SLOPE * ((red - 1 - centre) / spread + 10) + 0.01


def red_of(columns: np.ndarray) -> np.ndarray:
    """Mean red of cells of 8 px in these columns of the gradient image."""
    return np.array([(np.arange(8 * c, 8 * c + 8) // 4).mean() for c in columns]) / 255


def test_every_cell_of_the_map(slide, checkpoint):
    stp.tl.superresolve(slide, checkpoint, tissue_only=False, device="cpu", precision="float32")
    table, circles = slide["cells_istar"], slide["cells_istar_grid"]
    assert table.shape == (50 * 75, 2)
    assert list(table.var_names) == list(GENES)
    rows, columns = (table.obs[name].to_numpy() for name in ("array_row", "array_col"))
    assert len(set(zip(rows, columns, strict=True))) == 50 * 75
    np.testing.assert_allclose(table.X[:, 0], expected_of(red_of(columns)), rtol=1e-5)
    np.testing.assert_allclose(table.obsm["spatial"], 8 * np.column_stack([columns, rows]) + 4)
    np.testing.assert_allclose(circles.loc[table.obs["instance"]].get_coordinates(), table.obsm["spatial"])
    assert set(circles["radius"]) == {4.0}
    assert get_transformation(circles, get_all=True) == get_transformation(slide["he"], get_all=True)
    image = spatialdata.rasterize_bins(
        slide,
        bins="cells_istar_grid",
        table_name="cells_istar",
        col_key="array_col",
        row_key="array_row",
        value_key="a",
    )
    np.testing.assert_allclose(image.to_numpy()[0], np.tile(expected_of(red_of(np.arange(75))), (50, 1)), rtol=1e-5)


def test_a_spot_is_the_mean_over_its_disk(slide, checkpoint):
    stp.tl.superresolve(slide, checkpoint, tissue_only=False, device="cpu", precision="float32")
    stp.tl.predict(slide, checkpoint, device="cpu", precision="float32")
    xy, cells = stp.io.read_spots(slide).xy, slide["cells_istar"]
    away = np.linalg.norm(cells.obsm["spatial"] - xy[:, None], axis=2)
    means = [cells.X[distances <= 20].mean(axis=0) for distances in away]
    np.testing.assert_allclose(slide["table"].obsm["pred_istar"], means, rtol=1e-5)


@pytest.mark.parametrize("mpp", [0.25, 0.3])
def test_a_finer_image_has_wider_cells(slide, checkpoint, mpp):
    stp.tl.superresolve(slide, checkpoint, tissue_only=False, mpp=mpp, device="cpu", precision="float32")
    cells = slide["cells_istar"]
    x = cells.obsm["spatial"][:, 0]
    width = np.diff(np.unique(x))
    np.testing.assert_allclose(width, 8 * 0.5 / mpp, rtol=2e-3)
    assert (cells.obsm["spatial"] < (600, 400)).all()
    whole = (np.abs(cells.obsm["spatial"] - (300, 200)) < (300, 200) - width[0]).all(axis=1)
    np.testing.assert_allclose(cells.X[whole, 0], expected_of((x / 4 - 0.5)[whole] / 255), atol=SLOPE / 0.13 / 255)


def test_a_large_section_is_streamed(slide, checkpoint, tmp_path):
    how = {"tissue_only": False, "device": "cpu", "precision": "float32"}
    stp.tl.superresolve(slide, checkpoint, **how)
    out = tmp_path / "cells.zarr"
    stp.tl.superresolve(slide, checkpoint, out=out, key_added="stored", **how)
    lazy, expected = slide["stored"], slide["cells_istar"]
    assert type(lazy.X).__module__.startswith("dask")
    stored = anndata.read_zarr(out)
    for table in (lazy, stored):
        np.testing.assert_array_equal(np.asarray(table.X), expected.X)
        pd.testing.assert_frame_equal(table.obs.drop(columns="region"), expected.obs.drop(columns="region"))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".cells")]
    np.testing.assert_array_equal(stp.get.prediction(slide, "stored").X, expected.X)
    slide.write(tmp_path / "slide.zarr")
    np.testing.assert_array_equal(SpatialData.read(tmp_path / "slide.zarr")["stored"].X, expected.X)
    with pytest.raises(FileExistsError, match=r"cells.zarr' exists; choose another folder"):
        stp.tl.superresolve(slide, checkpoint, out=out, **how)


def test_what_fails_leaves_nothing(slide, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(RgbCells, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stp.tl.superresolve(slide, checkpoint, tissue_only=False, out=tmp_path / "cells.zarr", device="cpu")
    assert [p.name for p in tmp_path.iterdir() if "cells" in p.name] == []
    assert "cells_istar_grid" not in slide


def test_only_the_tissue(checkpoint):
    rng = np.random.default_rng(0)
    image = np.full((3, 400, 600), 255, np.uint8)
    image[:, 100:300, 150:450] = rng.integers(60, 200, (3, 200, 300), dtype=np.uint8)
    sdata = SpatialData(images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))})
    how = {"mpp": 0.5, "device": "cpu", "precision": "float32"}
    stp.tl.superresolve(sdata, checkpoint, **how)
    xy = sdata["cells_istar"].obsm["spatial"]
    assert stp.pp.find_tissue(sdata).at(xy).all()
    assert 0.8 * 25 * 37 < len(xy) < 1.3 * 25 * 37
    sdata["he"] = Image2DModel.parse(np.full((3, 400, 600), 255, np.uint8), dims=("c", "y", "x"))
    with pytest.raises(ValueError, match=r"No tissue found: 0 % of the image .* tissue_only=False"):
        stp.tl.superresolve(sdata, checkpoint, **how)


def test_the_result_of_a_training_is_taken(slide, checkpoint):
    result = stp.tl.TrainResult(checkpoint=checkpoint, history=pd.DataFrame(), card=checkpoints.load(checkpoint)[1])
    for key, model in {"by_path": checkpoint, "by_result": result}.items():
        stp.tl.superresolve(slide, model, tissue_only=False, key_added=key, device="cpu")
    np.testing.assert_array_equal(slide["by_result"].X, slide["by_path"].X)
    one, other = (slide[key].uns["st_predict"] for key in ("by_path", "by_result"))
    assert str(checkpoint) in str(one)
    assert str(one).replace("by_path", "by_result") == str(other)


def test_only_its_own_results_are_replaced(slide, checkpoint):
    how = {"tissue_only": False, "device": "cpu"}
    for _ in range(2):
        stp.tl.superresolve(slide, checkpoint, **how)
    assert sorted(slide.tables) == ["cells_istar", "table"]
    for name, message in {
        "table": "not a prediction of st_predict",
        "he": "another element",
        "a b": "letters, digits",
    }.items():
        with pytest.raises(ValueError, match=message):
            stp.tl.superresolve(slide, checkpoint, key_added=name, **how)
    slide["mine_grid"] = slide["spots"]
    with pytest.raises(ValueError, match="'mine_grid' is the name of another element"):
        stp.tl.superresolve(slide, checkpoint, key_added="mine", **how)


def test_other_networks_are_shown_another_way(slide, tmp_path):
    tiny = dict(get_spec("m2ost").tiny)
    card = ModelCard(model="m2ost", genes=GENES, crop=get_spec("m2ost").crop_for(tiny), hparams=tiny)
    checkpoints.save(tmp_path / "m2ost.safetensors", checkpoints.build(card), card)
    with pytest.raises(ValueError, match=r"'m2ost' predicts spots, not cells.*pp.make_grid\(sdata, pitch_um=...\)"):
        stp.tl.superresolve(slide, tmp_path / "m2ost.safetensors")


@pytest.fixture
def two_colours() -> SpatialData:
    """An image with an edge at x = 304, a gene on either side of it, and 120 spots of 40 px that count 100 together."""
    rng = np.random.default_rng(0)
    side = (np.arange(600) >= 304).astype(int)
    image = np.array([[200, 110], [110, 60], [150, 140]])[:, None, side] + rng.normal(0, 4, (3, 400, 600))
    transformations = {name: Scale([mpp, mpp], axes=("x", "y")) for name, mpp in (("global", 1), ("um", 0.5))}
    he = Image2DModel.parse(image.clip(0, 255).astype(np.uint8), dims=("c", "y", "x"), transformations=transformations)
    xy = rng.uniform((20, 20), (580, 380), (120, 2))
    x, y = np.meshgrid(np.arange(-20, 21), np.arange(-20, 21))
    left = (
        np.array([((x + centre < 304) & (x**2 + y**2 <= 400)).sum() for centre in xy[:, 0]])
        / (x**2 + y**2 <= 400).sum()
    )
    index = [f"s{i}" for i in range(120)]
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 120), "instance": index, "patient": "P"}, index=index)
    counts = np.rint(100 * np.column_stack([left, 1 - left])).astype(np.float32)
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES)))
    circles = gpd.GeoDataFrame({"radius": [20.0] * 120}, geometry=points(xy), index=index)
    return SpatialData(
        images={"he": he},
        shapes={"spots": ShapesModel.parse(circles)},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )


@pytest.mark.slow
def test_a_map_that_was_learned_from_spots_is_sharper_than_they_are(two_colours, tmp_path):
    hparams = {"encoder": "rgb-cells", "n_fits": 1, "hidden": 32}
    config = {"epochs": 12, "batch_size": 10, "lr": 1e-2, "device": "cpu", "precision": "float32"}
    run = {"panel": list(GENES), "out": tmp_path / "run", "preset": "original", "hparams": hparams, "config": config}
    trained = stp.tl.train(two_colours, "istar", **run)
    assert trained.card.target.units == "counts, from 0 at the least to 1 at the largest of training"
    stp.tl.superresolve(two_colours, trained.checkpoint, tissue_only=False, device="cpu", precision="float32")
    cells = two_colours["cells_istar"]
    beyond = cells.obs["array_col"].to_numpy() - 19 + 0.5  # cells from the edge
    for values, side in ((cells.X[:, 0], beyond < 0), (cells.X[:, 1], beyond > 0)):
        assert np.array_equal(values > 0.5, side)  # a spot is two and a half cells wide
        assert values[side].mean() > 0.9
        assert values[~side].mean() < 0.1


# Where cells are


@pytest.fixture
def grid() -> CellGrid:
    return CellGrid(width=7.5, shape=(23, 31), n=4)


def test_each_cell_has_one_number(grid):
    rows, columns = np.indices(grid.shape).reshape(2, -1)
    numbers = grid.numbers(rows, columns)
    assert len(set(numbers)) == 23 * 31
    assert all(np.array_equal(a, b) for a, b in zip(grid.places(numbers), (rows, columns), strict=True))
    bands = list(grid.bands())
    assert np.array_equal(np.concatenate(bands), np.sort(numbers))
    assert [set(grid.places(band)[0] // 4) for band in bands] == [{i} for i in range(6)]
    np.testing.assert_allclose(grid.centres(grid.numbers(np.array([2]), np.array([5]))), [[5.5 * 7.5, 2.5 * 7.5]])
    np.testing.assert_allclose(
        grid.tile_centres(np.array([9])), [[6 * 7.5, 6 * 7.5]]
    )  # the second in the second row of 8


def test_cells_of_disks(grid):
    rng = np.random.default_rng(0)
    xy = rng.uniform((0, 0), (31 * 7.5, 23 * 7.5), (40, 2))
    radius = rng.uniform(0.5, 40, 40)
    found = cells_of_spots(grid, xy, radius)
    everywhere = np.concatenate(list(grid.bands()))
    for cells, centre, r in zip(found, xy, radius, strict=True):
        away = np.linalg.norm(grid.centres(everywhere) - centre, axis=1)
        expected = everywhere[away <= r] if (away <= r).any() else everywhere[[away.argmin()]]
        assert sorted(cells[cells >= 0]) == sorted(expected)
    assert (found >= 0).sum(axis=1).min() == 1
    assert np.array_equal(cells_of_spots(grid, np.repeat(xy, 300, axis=0), np.repeat(radius, 300))[::300], found)


def test_sections_with_more_cells_a_spot():
    few, many = np.zeros((2, 3, 4), np.float32), np.ones((1, 5, 4), np.float32)
    joined = np.concatenate(join_cells([few, many]))
    assert joined.shape == (3, 5, 4)
    assert np.isnan(joined[:2, 3:]).all()
    assert np.isfinite(joined[2]).all()
    of_whole_spots = np.zeros((2, 4), np.float32)
    assert join_cells([of_whole_spots])[0] is of_whole_spots


def cells_of(sdata: SpatialData, encoder: CellEncoder, *, radius_um: float | None = None) -> np.ndarray:
    (section,) = open_sdata(sdata, Where(), need_mpp=True).sections
    return spot_cells(section, encoder, crop=encoder.cells.crop, radius_um=radius_um, compute=CPU)


def test_features_of_spots_are_kept(slide, monkeypatch):
    encoder = load_cell_encoder("rgb-cells", cell=8)
    features = cells_of(slide, encoder)
    assert features.shape == (12, 22, len(CELL_NAMES))
    wider = cells_of(slide, encoder, radius_um=11)  # 22 px
    assert wider.shape[1] > 22
    monkeypatch.setattr(RgbCells, "forward", lambda *_: 1 / 0)
    assert np.array_equal(cells_of(slide, encoder), features, equal_nan=True)
    assert np.array_equal(cells_of(slide, encoder, radius_um=10), features, equal_nan=True)
    changed = np.asarray(slide["he"]["scale0"]["image"]).copy()
    changed[0, 200, 300] += 1
    slide["he"] = Image2DModel.parse(
        changed, dims=("c", "y", "x"), transformations=get_transformation(slide["he"], get_all=True)
    )
    with pytest.raises(ZeroDivisionError):
        cells_of(slide, encoder)


def test_spots_outside_the_image_have_no_cells(slide):
    slide["spots"].geometry = slide["spots"].translate(xoff=10)  # x in half pixels: the last column leaves
    features = cells_of(slide, load_cell_encoder("rgb-cells", cell=8))
    assert np.isnan(features).all(axis=(1, 2)).tolist() == [False, False, False, True] * 3


def test_a_radius_that_is_not_known(slide, checkpoint):
    corners = [box(c.x - 9, c.y - 9, c.x + 9, c.y + 9) for c in slide["spots"].geometry]
    squares = gpd.GeoDataFrame(geometry=corners, index=slide["spots"].index)
    slide["spots"] = ShapesModel.parse(squares, transformations=get_transformation(slide["spots"], get_all=True))
    with pytest.raises(ValueError, match=r"spots of 'spots' are not circles.*'radius_um' in hparams="):
        stp.tl.predict(slide, checkpoint)
    stp.tl.predict(slide, checkpoint, hparams={"radius_um": 10.0}, device="cpu")
    assert np.isfinite(slide["table"].obsm["pred_istar"]).all()
    with pytest.raises(ValueError, match="radius_um must be above 0, got -1"):
        stp.tl.predict(slide, checkpoint, hparams={"radius_um": -1})


# What cells are described by


def test_tiles_leave_no_seam():
    image = np.random.default_rng(0).integers(0, 256, (3, 301, 403), dtype=np.uint8)
    sdata = SpatialData(images={"he": Image2DModel.parse(image, dims=("c", "y", "x"))})
    encoder = load_cell_encoder("rgb-cells", cell=2)
    reader = CellReader(open_pyramid(sdata), encoder, encoder.cells.crop, mpp=0.5, compute=CPU)
    assert reader.grid == CellGrid(width=2.0, shape=(150, 201), n=64)
    cells = np.concatenate(list(reader.grid.bands()))
    described = np.full((len(cells), len(CELL_NAMES)), np.nan, np.float32)
    for places, features in reader.describe(cells):
        described[places] = features
    white = torch.ones(1, 3, 301 + 65, 403 + 65)
    white[..., 32:-33, 32:-33] = torch.from_numpy(image) / 255
    whole = RgbCells(cell=2, halo=32)(white)[0].numpy()
    np.testing.assert_allclose(described, whole[reader.grid.places(cells)], atol=2e-3)


@pytest.fixture
def hipt() -> CellEncoder:
    """Tiny, with random weights and two shifts along each axis."""
    generator = torch.Generator().manual_seed(0)
    network = Hipt(dim=24, depth=1, section_dim=12, section_depth=1)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return CellEncoder(network, get_cell_encoder("hipt", n_shifts=2)).eval()


@torch.no_grad()
def test_the_map_of_hipt(sdata, hipt):
    reader = CellReader(open_pyramid(sdata), hipt, hipt.cells.crop, mpp=0.5, compute=CPU)
    assert reader.grid.shape == (25, 37)
    image = np.full((3, 1024, 1024), 255, np.uint8)
    image[:, :400, :600] = np.asarray(sdata["he"]["scale0"]["image"])
    sums, coverage = np.zeros((25, 37, 39)), np.zeros((25, 37, 1))
    for down in (0, 8):
        for right in (0, 8):
            corners = [
                [(16 * p + down, 16 * q + right) for q in range(-(-(37 - right) // 16))]
                for p in range(-(-(25 - down) // 16))
            ]
            tiles = [[image[:, 16 * y : 16 * y + 256, 16 * x : 16 * x + 256] for y, x in row] for row in corners]
            tokens = np.array(
                [[hipt.backbone(torch.from_numpy(t)[None] / 127.5 - 1)[0].numpy() for t in row] for row in tiles]
            )
            around = hipt.backbone.of_section(torch.from_numpy(tokens[:, :, 0, :24])).numpy()
            for row in range(down, 25):
                for column in range(right, 37):
                    (p, r), (q, c) = divmod(row - down, 16), divmod(column - right, 16)
                    sums[row, column] += np.concatenate([around[p, q], tokens[p, q, 1 + 16 * r + c]])
                    coverage[row, column] += 1
    means = sums / coverage
    assert set(coverage.ravel()) == {1, 2, 4}
    expected = np.empty_like(means)
    mirrored = np.pad(means, ((8, 8), (8, 8), (0, 0)), mode="symmetric")
    for row in range(25):
        for column in range(37):
            expected[row, column, :12] = mirrored[row : row + 16, column : column + 16, :12].mean((0, 1))
            expected[row, column, 12:36] = mirrored[row + 6 : row + 10, column + 6 : column + 10, 12:36].mean((0, 1))
            expected[row, column, 36:] = means[row, column, 36:]
    cells = np.concatenate(list(reader.grid.bands()))[3::7]
    described = np.full((len(cells), 39), np.nan)
    for places, features in reader.describe(cells):
        described[places] = features
    np.testing.assert_allclose(described, expected[reader.grid.places(cells)], atol=2e-4)


def test_iStar_on_hipt(slide, tmp_path):  # noqa: N802
    generator = torch.Generator().manual_seed(0)

    def random(dim: int, first: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        shapes = {
            "cls_token": (1, 1, dim),
            "pos_embed": (1, 197, dim),
            "norm.weight": (dim,),
            "norm.bias": (dim,),
            **first,
        }
        return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    weights = tmp_path / "hipt.safetensors"
    save_hipt_weights(
        random(384, {"patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,)}),
        random(192, {"phi.0.weight": (192, 384), "phi.0.bias": (192,)}),
        weights,
    )
    table = slide["table"].copy()
    table.X = np.random.default_rng(0).poisson(20, table.shape).astype(np.float32)
    table.obs["patient"] = "P"
    slide["table"] = table
    hparams = {"encoder": "hipt", "n_shifts": 1, "n_fits": 2, "hidden": 8, "weights": str(weights)}
    how = {"epochs": 1, "device": "cpu", "precision": "float32"}
    trained = stp.tl.train(
        slide, "istar", panel=list(table.var_names), out=tmp_path / "run", hparams=hparams, config=how
    )
    assert len(trained.card.hparams["weights_sha256"]) == 64
    with pytest.raises(ValueError, match="HIPT's weights are not part of the package"):  # a path on a card
        stp.tl.predict(slide, trained.checkpoint, device="cpu")
    with pytest.raises(ValueError, match="HIPT's weights are not part of the package"):
        stp.tl.superresolve(slide, trained.checkpoint, device="cpu")
    moved = weights.rename(tmp_path / "moved.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no weights .*hipt.safetensors'"):
        stp.tl.predict(slide, trained.checkpoint, trust=True, device="cpu")
    with pytest.raises(ValueError, match="not the weights that the network was trained with"):
        stp.tl.predict(slide, trained.checkpoint, hparams={"weights": str(trained.checkpoint)}, device="cpu")
    stp.tl.predict(slide, trained.checkpoint, hparams={"weights": str(moved)}, device="cpu", precision="float32")
    stp.tl.superresolve(
        slide, trained.checkpoint, hparams={"weights": str(moved)}, tissue_only=False, device="cpu", precision="float32"
    )
    assert slide["cells_istar"].shape == (25 * 37, 4)
    cells, xy = slide["cells_istar"], stp.io.read_spots(slide).xy
    means = [cells.X[np.linalg.norm(cells.obsm["spatial"] - centre, axis=1) <= 20].mean(axis=0) for centre in xy]
    np.testing.assert_allclose(slide["table"].obsm["pred_istar"], means, rtol=1e-4)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_several_sections(slide, checkpoint, tmp_path, kind):
    other = SpatialData.init_from_elements({"he": slide["he"].copy(), "spots": slide["spots"].copy()})
    pair = {"A": slide, "B": other}
    sections = pair if kind is dict else kind(pair.values())
    with pytest.raises(ValueError, match=r"cells.zarr' is a single folder, got 2 sections.*out="):
        stp.tl.superresolve(sections, checkpoint, tissue_only=False, device="cpu", out=tmp_path / "cells.zarr")
    stp.tl.superresolve(sections, checkpoint, tissue_only=False, device="cpu", precision="float32")
    for one in pair.values():
        columns = one["cells_istar"].obs["array_col"].to_numpy()
        np.testing.assert_allclose(one["cells_istar"].X[:, 0], expected_of(red_of(columns)), rtol=1e-4)


def test_nothing_is_predicted_where_one_of_several_is_unfit(slide, checkpoint):
    broken = SpatialData.init_from_elements({"spots": slide["spots"].copy()})
    with pytest.raises(ValueError, match=r"^B: There is no image in sdata"):
        stp.tl.superresolve({"A": slide, "B": broken}, checkpoint, tissue_only=False, device="cpu")
    assert "cells_istar" not in slide.tables


def test_cells_are_read_in_the_colours_of_training(checkpoint, tmp_path):
    section = stp.datasets.simulate(1, 1, n_genes=4, shape=(480, 480), mpp=0.5, seed=2).sections["P1S1"]
    target = stp.pp.Stain(method="reinhard", mean=(8.6, -0.1, 0.05), sd=(0.6, 0.1, 0.02))
    network, card = checkpoints.load(checkpoint)
    stained = tmp_path / "stained.safetensors"
    checkpoints.save(stained, network, replace(card, training={"stain": target.to_dict()}))
    for weights, key in ((checkpoint, "plain"), (stained, "stained")):
        stp.tl.superresolve(section, weights, key_added=key, device="cpu", precision="float32")
    notes = {key: Record.read(section[key].uns, key).params for key in ("plain", "stained")}
    own = stp.pp.fit_stain(section, "reinhard").to_dict()  # the slide, not the training
    assert notes["stained"]["stain"] == json.loads(json.dumps(own))
    assert "stain" not in notes["plain"]
    assert not np.allclose(section["plain"].X, section["stained"].X)
    facts = checkpoints.card_facts(ModelCard.of_file(stained))
    assert facts["stain"] == "slides are normalised to the training's, by reinhard"
    assert "stain" not in checkpoints.card_facts(card)
