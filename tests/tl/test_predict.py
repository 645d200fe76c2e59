"""Prediction: the right numbers for the right spots, and nothing else is touched."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shapely import Point
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Scale, Sequence, Translation, get_transformation, set_transformation

import st_predict as stp
from st_predict import checkpoints
from st_predict.crops import Batch, iter_batches, plan_crops
from st_predict.io import open_pyramid, read_spots

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from xarray import DataTree

KEY = "pred_m2ost"
MANY = tuple(f"g{i}" for i in range(1001))
SVS = Path(os.environ.get("ST_PREDICT_CACHE", Path(__file__).parents[3] / "shared/data/her2st")).parent / (
    "wsi/CMU-1-Small-Region.svs"
)


def digest(sdata: SpatialData, *, key: str = KEY) -> dict[str, str]:
    """A hash of every part of an object but what a prediction called ``key`` may write."""
    parts: dict[str, Any] = {}
    for name, image in sdata.images.items():
        for scale in image.children:
            parts[f"{name}/{scale}"] = np.asarray(image[scale]["image"].data)
        parts[f"{name}/systems"] = transformations(image)
        parts[f"{name}/attrs"] = {k: v for k, v in image.attrs.items() if k != "transform"}
    for name, shapes in sdata.shapes.items():
        parts[f"{name}/geometry"] = shapes.geometry.to_wkt().to_dict()
        parts[f"{name}/columns"] = shapes.drop(columns="geometry").to_dict()
        parts[f"{name}/systems"] = transformations(shapes)
        parts[f"{name}/attrs"] = {k: v for k, v in shapes.attrs.items() if k != "transform"}
    for name, table in sdata.tables.items():
        if name == key:
            continue
        parts[f"{name}/X"] = np.asarray(table.X)
        parts[f"{name}/obs"], parts[f"{name}/var"] = table.obs.to_dict(), table.var.to_dict()
        for slot in ("obsm", "layers", "obsp", "varm"):
            kept = {k: np.asarray(v) for k, v in getattr(table, slot).items() if k != key}
            parts[f"{name}/{slot}"] = kept
        parts[f"{name}/uns"] = {k: v for k, v in table.uns.items() if k != "st_predict"}
    return {name: hashlib.sha256(pickle.dumps(part)).hexdigest() for name, part in parts.items()}


def transformations(element: Any) -> dict[str, str]:
    return {name: repr(t) for name, t in get_transformation(element, get_all=True).items()}


def test_alone_it_writes_the_slots_that_are_documented_and_no_other(
    measured: SpatialData, checkpoint: Callable[..., Path]
) -> None:
    before = digest(measured)
    assert stp.tl.predict(measured, checkpoint()) is None
    table = measured.tables["table"]
    assert digest(measured) == before
    assert set(measured.tables) == {"table"}
    assert set(table.obsm) == {"spatial", KEY}
    assert set(filter(None, table.layers)) == {"mine", KEY}
    assert isinstance(table.obsm[KEY], np.ndarray)
    assert table.obsm[KEY].shape == (12, 4)
    assert table.obsm[KEY].dtype == np.float32
    np.testing.assert_array_equal(table.layers[KEY], stp.get.frame(measured)[list(table.var_names)])
    record = table.uns["st_predict"][KEY]
    assert set(record) == {"card", "genes", "version", "params"}
    assert record["genes"].tolist() == list("abcd")
    assert stp.specs.ModelCard.from_json(record["card"]) == checkpoints.load(checkpoint())[1]
    section = json.loads(record["params"])["sections"][0]
    assert section == {
        "region": "spots",
        "image": "he",
        "mpp": None,
        "mpp_source": "unknown",
        "level_downsamples": [1.0, 2.0, 4.0],
    }


def test_hash_notices_changes(measured: SpatialData) -> None:
    before = digest(measured)
    measured.tables["table"].obs["n"] = 1
    measured.shapes["spots"].loc["s3", "radius"] = 11.0
    changed = {name for name, value in digest(measured).items() if before[name] != value}
    assert changed == {"table/obs", "spots/columns"}


def test_numbers_are_those_of_the_network_on_crops_cut_by_hand(
    measured: SpatialData, checkpoint: Callable[..., Path]
) -> None:
    path = checkpoint()
    stp.tl.predict(measured, path, batch_size=5, precision="float32")
    network, _ = checkpoints.load(path)
    # the spot at (300, 200): 64 px of each of the three scales, none of which leaves the image
    image: DataTree = measured.images["he"]
    crops = []
    for level in range(3):
        pixels = np.asarray(image[f"scale{level}"]["image"].data)
        x, y = 300 // 2**level - 32, 200 // 2**level - 32
        crops.append(torch.from_numpy(pixels[None, :, y : y + 64, x : x + 64].copy()))
    batch = Batch(crops=tuple(crops), index=torch.tensor([0]))
    with torch.inference_mode():
        expected = network(batch)[0].numpy()
    np.testing.assert_allclose(stp.get.frame(measured).loc["s6"], expected, atol=1e-5)


def test_rows_follow_obs_names_whatever_the_order_of_the_shapes(
    measured: SpatialData, checkpoint: Callable[..., Path]
) -> None:
    path = checkpoint()
    stp.tl.predict(measured, path)
    expected = stp.get.frame(measured)
    measured.shapes["spots"] = measured.shapes["spots"].sample(frac=1, random_state=1)
    table = measured.tables["table"]
    measured.tables["table"] = table[np.random.default_rng(1).permutation(12)].copy()
    stp.tl.predict(measured, path)
    got = stp.get.frame(measured)
    assert list(got.index) == list(measured.tables["table"].obs_names) != list(expected.index)
    np.testing.assert_allclose(got.loc[expected.index], expected, atol=1e-5)
    assert np.ptp(expected.to_numpy(), axis=0).min() > 1e-3  # a wrong order would show


def test_regions_of_a_table_have_images_of_their_own(
    two_regions: SpatialData, measured: SpatialData, checkpoint: Callable[..., Path]
) -> None:
    path = checkpoint()
    with pytest.raises(ValueError, match=r"several images in sdata: \['he', 'mirrored'\].*image_key="):
        stp.tl.predict(two_regions, path)
    with pytest.raises(KeyError, match=r"no region 'more'; it has .*image_key="):
        stp.tl.predict(two_regions, path, image_key={"spots": "he"})
    stp.tl.predict(two_regions, path, image_key={"spots": "he", "more": "mirrored"})
    got = two_regions.tables["table"].obsm[KEY]
    stp.tl.predict(measured, path)
    np.testing.assert_allclose(got[::2], measured.tables["table"].obsm[KEY], atol=1e-5)
    alone = SpatialData(
        images={"he": two_regions.images["mirrored"]},
        shapes={"spots": measured.shapes["spots"]},
        tables={"table": measured.tables["table"]},
    )
    stp.tl.predict(alone, path)
    np.testing.assert_allclose(got[1::2], alone.tables["table"].obsm[KEY], atol=1e-5)
    assert np.abs(got[::2] - got[1::2]).max() > 1e-3


def move(sdata: SpatialData, x: float, names: list[str]) -> None:
    shapes = sdata.shapes["spots"].copy()
    shapes.loc[names, "geometry"] = [Point(x, 10)] * len(names)
    sdata.shapes["spots"] = shapes


def test_spots_outside_the_image_are_nan_and_are_reported(
    measured: SpatialData, checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    move(measured, -50, ["s2", "s7"])
    with caplog.at_level(logging.WARNING, logger="st_predict"):
        stp.tl.predict(measured, checkpoint())
    missing = stp.get.frame(measured).isna()
    assert missing.index[missing.all(axis=1)].tolist() == ["s2", "s7"]
    assert missing.to_numpy().sum() == 8
    assert "2 of 12 spots of 'spots' are outside the image" in caplog.text
    assert "['s2', 's7']" in caplog.text


def test_all_spots_outside_is_an_error(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    move(measured, -50, list(measured.shapes["spots"].index))
    with pytest.raises(ValueError, match="All 12 spots of 'spots' are outside the image"):
        stp.tl.predict(measured, checkpoint())
    assert KEY not in measured.tables["table"].obsm


def test_predicting_again_replaces_only_what_is_ours(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    stp.tl.predict(measured, checkpoint())
    stp.tl.predict(measured, checkpoint(), key_added="kept")
    kept = measured.tables["table"].obsm["kept"].copy()
    stp.tl.predict(measured, checkpoint(("a", "x")))
    table = measured.tables["table"]
    assert list(stp.get.frame(measured, KEY)) == ["a", "x"]
    assert KEY not in table.layers  # the panel no longer covers the table
    np.testing.assert_array_equal(table.obsm["kept"], kept)
    assert set(table.uns["st_predict"]) == {KEY, "kept"}


def test_a_linked_table_of_an_earlier_version_is_read_and_replaced(
    measured: SpatialData, checkpoint: Callable[..., Path], link: Callable[[SpatialData, str], AnnData]
) -> None:
    before = digest(measured)
    stp.tl.predict(measured, checkpoint(MANY))
    linked = link(measured, KEY)
    assert linked.shape == (12, 1001)
    assert KEY not in measured.tables["table"].obsm
    assert KEY not in measured.tables["table"].layers
    assert "st_predict" not in measured.tables["table"].uns
    assert stp.get.prediction(measured).n_vars == 1001
    stp.tl.predict(measured, checkpoint())
    assert set(measured.tables) == {"table"}
    assert stp.get.prediction(measured).n_vars == 4
    assert digest(measured) == before


@pytest.mark.parametrize("slot", ["obsm", "layers", "table", "shapes"])
def test_what_is_the_users_is_refused_before_any_work(
    measured: SpatialData, checkpoint: Callable[..., Path], slot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = measured.tables["table"]
    if slot == "table":
        measured.tables["mine"] = table.copy()
    elif slot == "shapes":
        measured.shapes["mine"] = measured.shapes["spots"].copy()
    else:
        getattr(table, slot)["mine"] = np.zeros(table.shape)
    before = digest(measured)

    def work(*_: object, **__: object) -> None:
        raise AssertionError("there was work")

    monkeypatch.setattr("st_predict._sections._section.iter_batches", work)
    with pytest.raises(ValueError, match=r"Choose another name with key_added="):
        stp.tl.predict(measured, checkpoint(), key_added="mine", table_key="table")
    assert digest(measured) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"symmetries": 0}, "symmetries must be 1 or 8, got 0"),
        ({"key_added": "a/b"}, "to be storable; got 'a/b'"),
        ({"hparams": {"depth": 2}}, r"\['depth'\] of 'm2ost' are fixed by training"),
    ],
)
def test_arguments_that_could_not_be_kept(
    measured: SpatialData, checkpoint: Callable[..., Path], options: dict[str, object], message: str
) -> None:
    before = digest(measured)
    with pytest.raises(ValueError, match=message):
        stp.tl.predict(measured, checkpoint(), **options)
    assert digest(measured) == before


def test_symmetries_are_averaged_and_recorded(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    path = checkpoint()
    for symmetries in (1, 8):
        stp.tl.predict(measured, path, symmetries=symmetries, key_added=f"by_{symmetries}", precision="float32")
    table = measured.tables["table"]
    network, card = checkpoints.load(path)
    reader = open_pyramid(measured, "he")
    spots = read_spots(measured, image_key="he", table_key="table", region="spots")
    (batch,) = iter_batches(reader, plan_crops(spots.xy, card.crop, downsamples=reader.downsamples), batch_size=None)
    views = [
        replace(batch, crops=tuple(torch.rot90(c.flip(-1) if mirrored else c, k, (-2, -1)) for c in batch.crops))
        for mirrored in (False, True)
        for k in range(4)
    ]
    with torch.no_grad():
        expected = torch.stack([network(view) for view in views])
    np.testing.assert_allclose(table.obsm["by_1"], expected[0], atol=1e-5)
    np.testing.assert_allclose(table.obsm["by_8"], expected.mean(0), atol=1e-5)
    assert json.loads(table.uns["st_predict"]["by_8"]["params"])["members"][0]["symmetries"] == 8


@pytest.mark.parametrize("model", ["ridge", "mean"])
def test_symmetries_of_what_reads_no_crops_are_refused(
    measured: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path, model: str
) -> None:
    how = {"panel": tuple("abcd"), "mpp": 0.5, "config": {"device": "cpu"}}
    set_transformation(measured["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")
    path = stp.tl.train(measured, model, out=tmp_path / "out", **how).checkpoint
    before = digest(measured)
    message = rf"8 symmetries have no effect on '{path}': '{model}' reads .*only crops.*Leave out symmetries="
    for models in (path, [checkpoint(), path]):
        with pytest.raises(ValueError, match=message):
            stp.tl.predict(measured, models, symmetries=8)
    assert digest(measured) == before
    with pytest.raises(ValueError, match="symmetries must be 1 or 8, got 3"):
        stp.tl.predict(measured, path, symmetries=3)
    stp.tl.predict(measured, path, symmetries=1, key_added="one")
    stp.tl.predict(measured, path, key_added="default")
    table = measured.tables["table"]
    np.testing.assert_array_equal(table.obsm["one"], table.obsm["default"])


def test_layer_only_if_the_panel_covers_the_table(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    stp.tl.predict(measured, checkpoint(("d", "c", "b")))
    assert KEY not in measured.tables["table"].layers
    stp.tl.predict(measured, checkpoint(("d", "x", "c", "b", "a")))
    table = measured.tables["table"]
    np.testing.assert_array_equal(table.layers[KEY], table.obsm[KEY][:, [4, 3, 2, 0]])


def test_a_large_panel_is_stored_in_the_table_too(
    measured: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    before = digest(measured)
    stp.tl.predict(measured, checkpoint(MANY))
    assert digest(measured) == before
    assert set(measured.tables) == {"table"}
    assert measured.tables["table"].obsm[KEY].shape == (12, 1001)
    result = stp.get.prediction(measured)
    assert list(result.var_names) == list(MANY)
    assert (result.obs["patient"] == "P1").all()
    measured.write(tmp_path / "s.zarr")
    again = read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(stp.get.prediction(again).X, result.X)
    stp.tl.predict(again, checkpoint(MANY))
    np.testing.assert_allclose(stp.get.prediction(again).X, result.X, atol=1e-5)


def test_a_slide_without_a_table_gets_one(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    toy = stp.datasets.toy()
    slide = SpatialData(images=dict(toy.images))
    stp.pp.make_grid(slide, pitch_um=250)
    stp.tl.predict(slide, checkpoint(mpp=2.0))
    grid, linked = slide.shapes["grid"], slide.tables[KEY]
    assert list(linked.obs_names) == list(grid.index)
    assert linked.uns["spatialdata_attrs"]["region"] == "grid"
    np.testing.assert_array_equal(linked.obs["array_row"], grid["array_row"])
    np.testing.assert_allclose(linked.obsm["spatial"], np.column_stack([grid.geometry.x, grid.geometry.y]))
    result = stp.get.prediction(slide)
    assert result.shape == (len(grid), 4)
    assert np.isfinite(result.X).all()
    params = json.loads(result.uns["st_predict"][KEY]["params"])
    assert params["sections"][0]["mpp"] == pytest.approx(1.2)
    slide.write(tmp_path / "slide.zarr")
    again = read_zarr(tmp_path / "slide.zarr")
    stp.tl.predict(again, checkpoint(mpp=2.0))
    np.testing.assert_allclose(stp.get.prediction(again).X, result.X, atol=1e-5)


def test_shapes_may_be_asked_for_beside_a_table(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    circles = gpd.GeoDataFrame({"radius": [5.0]}, geometry=[Point(300, 200)], index=["mine"])
    measured.shapes["circles"] = ShapesModel.parse(circles)
    stp.tl.predict(measured, checkpoint(), key_added="whole")
    stp.tl.predict(measured, checkpoint(), shapes_key="circles")
    expected = stp.get.frame(measured, "whole").loc["s6"]
    np.testing.assert_allclose(stp.get.prediction(measured, KEY).X[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="not both"):
        stp.tl.predict(measured, checkpoint(), shapes_key="circles", table_key="table")


def test_the_same_after_writing_and_reading(
    measured: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = checkpoint()
    stp.tl.predict(measured, path)
    expected = stp.get.prediction(measured)
    measured.write(tmp_path / "s.zarr")
    again = read_zarr(tmp_path / "s.zarr")
    read = stp.get.prediction(again)
    np.testing.assert_array_equal(read.X, expected.X)
    assert list(read.var_names) == list(expected.var_names)
    records = [dict(one.uns["st_predict"][KEY]) for one in (read, expected)]
    assert [list(record.pop("genes")) for record in records] == [list("abcd")] * 2
    assert records[0] == records[1]
    stp.tl.predict(again, path)
    np.testing.assert_allclose(again.tables["table"].obsm[KEY], expected.X, atol=1e-5)


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s], [s, c]])


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_transformations_of_shapes_do_not_matter(
    measured: SpatialData, checkpoint: Callable[..., Path], degrees: float
) -> None:
    path = checkpoint()
    stp.tl.predict(measured, path)
    expected = measured.tables["table"].obsm[KEY].copy()
    # where a spot is in the image: rotate, then scale by 4, then shift; stored is what this undoes
    centres = measured.shapes["spots"].geometry
    pixels = np.column_stack([centres.x, centres.y]) * 2
    shift = np.array([13.0, -7.0])
    stored = (pixels - shift) / 4 @ turned(degrees)  # row vectors: the inverse of the rotation from the left
    affine = np.eye(3)
    affine[:2, :2] = turned(degrees)
    moved = ShapesModel.parse(
        gpd.GeoDataFrame({"radius": 2.5}, geometry=gpd.points_from_xy(*stored.T), index=centres.index)
    )
    axes = ("x", "y")
    steps = [Affine(affine, axes, axes), Scale([4.0, 4.0], axes), Translation(shift, axes)]
    set_transformation(moved, Sequence(steps), "global")
    measured.shapes["spots"] = moved
    stp.tl.predict(measured, path)
    np.testing.assert_allclose(measured.tables["table"].obsm[KEY], expected, atol=1e-5)


def test_counts_do_not_matter(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    stp.tl.predict(measured, checkpoint(), key_added="first")
    measured.tables["table"].X[:] = 0
    stp.tl.predict(measured, checkpoint(), key_added="second")
    table = measured.tables["table"]
    np.testing.assert_array_equal(table.obsm["first"], table.obsm["second"])


@pytest.mark.data
@pytest.mark.skipif(not SVS.is_file(), reason=f"no slide {SVS}")
def test_slide_of_a_scanner(checkpoint: Callable[..., Path]) -> None:
    slide = stp.io.read_wsi(SVS)
    stp.pp.make_grid(slide, pitch_um=300)
    stp.tl.predict(slide, checkpoint(mpp=0.7))
    result = stp.get.prediction(slide)
    assert len(result) == len(slide.shapes["grid"]) > 5
    assert np.isfinite(result.X).all()
    section = json.loads(result.uns["st_predict"][KEY]["params"])["sections"][0]
    assert section["mpp"] == pytest.approx(0.499)  # aperio.MPP of this file


def with_image(measured: SpatialData, pixels: np.ndarray) -> SpatialData:
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"))
    return SpatialData(images={"he": image}, shapes=dict(measured.shapes), tables=dict(measured.tables))


def no_image(s: SpatialData) -> SpatialData:
    return SpatialData(shapes=dict(s.shapes), tables=dict(s.tables))


def two_images(s: SpatialData) -> SpatialData:
    s.images["other"] = s.images["he"]
    return s


def no_spots(s: SpatialData) -> SpatialData:
    return SpatialData(images=dict(s.images))


def empty_table(s: SpatialData) -> SpatialData:
    s.tables["table"]._inplace_subset_obs([])  # spatialdata does not let one in
    return s


def nan_coordinates(s: SpatialData) -> SpatialData:
    move(s, np.nan, ["s4"])
    return s


def grey(s: SpatialData) -> SpatialData:
    return with_image(s, np.zeros((1, 400, 600), np.uint8))


def sixteen_bit(s: SpatialData) -> SpatialData:
    return with_image(s, np.zeros((3, 400, 600), np.uint16))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_image, "There is no image in sdata"),
        (two_images, r"several images in sdata: \['he', 'other'\]"),
        (no_spots, "There are no spots: .*make_grid"),
        (empty_table, "Table 'table' is empty: it has no spots"),
        (nan_coordinates, r"1 of 12 spots .* not numbers, the first are \['s4'\]"),
        (grey, "Expected an RGB image, got 1 channels"),
        (sixteen_bit, r"Expected an 8-bit image \(uint8\), got uint16"),
    ],
)
def test_unfit_data(
    measured: SpatialData, checkpoint: Callable[..., Path], spoil: Callable[[SpatialData], SpatialData], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stp.tl.predict(spoil(measured), checkpoint())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "m3ost"}, KeyError, "No released checkpoint 'm3ost'"),
        (
            {"model": "stnet"},
            KeyError,
            r"'stnet' has no released weights; there are \['m2ost@.*Train it with st_predict.tl.train",
        ),
        ({"model": "there/is/none.safetensors"}, FileNotFoundError, "Found no checkpoint"),
        ({"image_key": "hee"}, KeyError, r"No image 'hee' in sdata; there are \['he'\]"),
        ({"table_key": "tab"}, KeyError, r"No table 'tab' in sdata; there are \['table'\]"),
        ({"shapes_key": "dots"}, KeyError, "No shapes element 'dots'"),
        ({"device": "abacus"}, ValueError, "Device 'abacus' cannot be used .*device=.auto."),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"precision": "half"}, ValueError, "precision must be .auto. or one of .*got .half."),
        ({"mpp": -1.0}, ValueError, "mpp must be above 0 or a mapping or 'spots', got -1"),
        ({"layer": "raw", "ignore_case": True}, ValueError, r"\['ignore_case', 'layer'\] only concern .*context="),
        ({"mpp": "spot"}, ValueError, "mpp must be a number or a mapping or 'spots', got 'spot'"),
    ],
)
def test_unfit_arguments(
    measured: SpatialData,
    checkpoint: Callable[..., Path],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    before = digest(measured)
    with pytest.raises(error, match=message):
        stp.tl.predict(measured, **{"model": checkpoint(), **options})
    assert digest(measured) == before
    assert KEY not in measured.tables["table"].obsm


def test_resolution_must_be_known_and_fine_enough(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(mpp=1.0)
    with pytest.raises(ValueError, match="Nothing says how many micrometres"):
        stp.tl.predict(measured, path)
    with pytest.raises(ValueError, match=r"The image has 2 um/px, the model needs 1 um/px or finer"):
        stp.tl.predict(measured, path, mpp=2.0)
    stp.tl.predict(measured, path, mpp=0.5)
    params = json.loads(measured.tables["table"].uns["st_predict"][KEY]["params"])
    assert (params["sections"][0]["mpp"], params["sections"][0]["mpp_source"]) == (0.5, "argument")


def test_checkpoint_that_is_cut_off_or_of_others(
    measured: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    whole = checkpoint().read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "foreign": b"PK\x03\x04" * 100}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a complete safetensors file"):
            stp.tl.predict(measured, path)
    save_file({"w": torch.zeros(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="has no st_predict card"):
        stp.tl.predict(measured, tmp_path / "bare.safetensors")


@pytest.mark.parametrize("model", ["stflow", "histogene"])
def test_a_spot_outside_the_image_is_not_seen_by_the_others_of_its_section(
    measured: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
    spec = stp.models.get_spec(model)
    hparams = {**spec.tiny, **({"prior": "zero"} if model == "stflow" else {})}  # what it draws belongs to rows
    card = stp.specs.ModelCard(
        model=model,
        genes=tuple("abcd"),
        crop=spec.crop_for(hparams),
        pixels=spec.pixels_for(hparams),
        hparams=hparams,
    )
    stp.checkpoints.save(tmp_path / "tiny.safetensors", stp.checkpoints.build(card), card)
    measured.tables["table"].obs[["array_row", "array_col"]] = [(i // 4, i % 4) for i in range(12)]
    measured.shapes["spots"].geometry = measured.shapes["spots"].geometry.translate(-20)  # a column is left of it
    how = {"mpp": 0.5, "device": "cpu", "precision": "float32"}
    stp.tl.predict(measured, tmp_path / "tiny.safetensors", **how)
    table = measured.tables["table"]
    all_spots = table.obsm[f"pred_{model}"]
    inside = np.isfinite(all_spots).all(axis=1)
    assert inside.sum() == 9
    measured.tables["table"] = table[inside].copy()
    stp.tl.predict(measured, tmp_path / "tiny.safetensors", **how)
    alone = measured.tables["table"].obsm[f"pred_{model}"]
    np.testing.assert_allclose(alone, all_spots[inside], rtol=1e-4, atol=1e-5)


def test_the_lattice_of_a_grid_is_read(measured: SpatialData, tmp_path: Path) -> None:
    spec = stp.models.get_spec("histogene")
    card = stp.specs.ModelCard(
        model="histogene", genes=tuple("abcd"), crop=spec.crop_for(spec.tiny), hparams={**spec.tiny, "n_pos": 4}
    )
    path = tmp_path / "tiny.safetensors"
    stp.checkpoints.save(path, stp.checkpoints.build(card), card)
    slide = SpatialData(images=dict(measured.images))
    for pitch, fits in ((150, True), (50, False)):
        stp.pp.make_grid(slide, pitch_um=pitch, mpp=1, tissue_only=False)
        grid = slide.shapes["grid"]
        assert (grid[["array_row", "array_col"]].to_numpy().max() < 4) == fits
        if fits:
            stp.tl.predict(slide, path, device="cpu")
            assert np.isfinite(slide.tables["pred_histogene"].X).all()
            del slide.tables["pred_histogene"]
        else:
            with pytest.raises(ValueError, match=r"4 .n_pos. rows and columns of a lattice, 0 to 3; .* {'grid': 11}"):
                stp.tl.predict(slide, path, device="cpu")
        del slide.shapes["grid"]


def test_a_section_that_is_too_large_is_named(
    measured: SpatialData, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr("st_predict.tl._ensemble.inputs_of", fail)
    with pytest.raises(MemoryError, match="Section 'spots' of 12 spots: Unable to allocate 3 TiB"):
        stp.tl.predict(measured, checkpoint())
