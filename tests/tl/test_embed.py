"""Embeddings: the right numbers for the right spots, and what is kept of them on disk."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from torch import nn

import st_predict as stp
from st_predict._sections import _features as module
from st_predict.crops import iter_batches
from st_predict.encoders import get_encoder, read_as
from st_predict.encoders._catalogue import Encoder, EncoderSpec, load_encoder
from st_predict.specs import CropSpec, LevelSpec, PixelSpec
from st_predict.tl._embed import embed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CROP = CropSpec(levels=(LevelSpec(size=32),))
OPTIONS: dict[str, Any] = {"crop": CROP, "device": "cpu", "precision": "float32"}


@pytest.fixture(autouse=True)
def quiet_about_glass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image of ``measured`` is a gradient, in which no tissue is found."""
    monkeypatch.setattr(logging.getLogger("st_predict._sections._place"), "disabled", True)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where features are kept, for this test alone."""
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "own" / name)
    return tmp_path / "embeddings"


def means(x: torch.Tensor) -> torch.Tensor:
    """Mean colour and its square."""
    mean = x.mean((2, 3))
    return torch.cat([mean, mean.square()], 1)


class Weighted(nn.Module):
    """Mean colour times a weight; counts the spots it has seen."""

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return x.mean((2, 3)) * self.weight


def weighted(weight: float = 2.0, **changes: Any) -> tuple[Encoder, Weighted]:
    """Make an encoder with weights of a known source, and its network."""
    network = Weighted(weight)
    return Encoder(
        network, replace(EncoderSpec(name="weighted", source="test/weighted", crop=CROP), **changes)
    ), network


def test_large_crops_are_read_a_few_at_a_time(measured: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def seen(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return means(x)

    embed(measured, means, key_added="a", **OPTIONS)
    monkeypatch.setattr(module, "_READ_PIXELS", 3 * 32 * 32)
    embed(measured, seen, key_added="b", **OPTIONS)
    table = measured.tables["table"]
    np.testing.assert_array_equal(table.obsm["a"], table.obsm["b"])
    assert max(sizes) == 3
    assert sum(sizes) == table.n_obs


def test_writes_an_array_and_where_it_came_from(measured: SpatialData) -> None:
    table = measured.tables["table"]
    before = {"X": table.X.copy(), "mine": table.layers["mine"].copy(), "obs": table.obs.copy()}
    embed(measured, means, **OPTIONS)
    assert set(table.obsm) == {"spatial", "X_means"} and set(table.layers) - {None} == {
        "mine"
    }  # None is X, of anndata 0.13
    np.testing.assert_array_equal(table.X, before["X"])
    np.testing.assert_array_equal(table.layers["mine"], before["mine"])
    pd.testing.assert_frame_equal(table.obs, before["obs"])
    features = table.obsm["X_means"]
    assert type(features) is np.ndarray and features.dtype == np.float32 and features.shape == (12, 6)
    record = table.uns["st_predict"]["X_means"]
    assert set(record) == {"encoder", "version", "params"} and record["version"] == stp.__version__
    assert json.loads(record["encoder"])["weights"] is None
    params = json.loads(record["params"])
    assert (params["device"], params["precision"], params["crop"]["mpp"]) == ("cpu", "float32", None)
    assert params["sections"] == [
        {"region": "spots", "image": "he", "mpp": None, "mpp_source": "unknown", "level_downsamples": [1.0, 2.0, 4.0]}
    ]


def test_numbers_are_those_of_crops_cut_by_hand(measured: SpatialData) -> None:
    pixels = PixelSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    embed(measured, means, pixels=pixels, batch_size=5, **OPTIONS)
    image = np.asarray(measured.images["he"]["scale0"]["image"].data)
    x, y = 300 - 16, 200 - 16  # of spot s6
    mean = (image[:, y : y + 32, x : x + 32].mean((1, 2)) / 255 - pixels.mean) / pixels.std
    np.testing.assert_allclose(measured.tables["table"].obsm["X_means"][6], [*mean, *mean**2], atol=1e-5)


def test_rows_follow_obs_names_whatever_the_order_of_the_shapes(measured: SpatialData) -> None:
    embed(measured, means, **OPTIONS)
    expected = pd.DataFrame(measured.tables["table"].obsm["X_means"], index=measured.tables["table"].obs_names)
    measured.shapes["spots"] = measured.shapes["spots"].sample(frac=1, random_state=1)
    table = measured.tables["table"]
    measured.tables["table"] = table[np.random.default_rng(1).permutation(12)].copy()
    embed(measured, means, **OPTIONS)
    table = measured.tables["table"]
    assert list(table.obs_names) != list(expected.index)
    np.testing.assert_array_equal(table.obsm["X_means"], expected.loc[table.obs_names])
    assert expected.drop_duplicates().shape == (12, 6)  # a wrong order would show


def test_regions_of_a_table_have_images_of_their_own(two_regions: SpatialData, measured: SpatialData) -> None:
    embed(two_regions, means, image_key={"spots": "he", "more": "mirrored"}, **OPTIONS)
    got = two_regions.tables["table"].obsm["X_means"]
    embed(measured, means, **OPTIONS)
    np.testing.assert_array_equal(got[::2], measured.tables["table"].obsm["X_means"])
    assert np.abs(got[::2] - got[1::2]).max() > 1e-3
    params = json.loads(two_regions.tables["table"].uns["st_predict"]["X_means"]["params"])
    assert [section["region"] for section in params["sections"]] == ["spots", "more"]


def test_spots_outside_the_image_are_nan(measured: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    shapes = measured.shapes["spots"].copy()
    shapes.loc[["s2", "s7"], "geometry"] = [Point(-50, 10)] * 2
    measured.shapes["spots"] = shapes
    for _ in range(2):  # computed, then kept
        embed(measured, weighted()[0], device="cpu")
        missing = np.isnan(measured.tables["table"].obsm["X_weighted"])
        assert np.flatnonzero(missing.all(1)).tolist() == [2, 7] and missing.sum() == 6
    assert "2 of 12 spots of 'spots' are outside the image" in caplog.text


def test_resolution(measured: SpatialData) -> None:
    options = {**OPTIONS, "crop": replace(CROP, mpp=1.0)}
    with pytest.raises(ValueError, match="Nothing says how many micrometres"):
        embed(measured, means, **options)
    with pytest.raises(ValueError, match="The image has 2 um/px, the model needs 1 um/px or finer"):
        embed(measured, means, mpp=2.0, **options)
    for at_mpp, native in ((None, 1.0), (0.5, 0.5)):
        embed(measured, means, mpp=0.5, at_mpp=at_mpp, key_added="scaled", **options)
        scaled = measured.tables["table"].obsm["scaled"]
        params = json.loads(measured.tables["table"].uns["st_predict"]["scaled"]["params"])
        assert params["crop"]["mpp"] == native
        assert (params["sections"][0]["mpp"], params["sections"][0]["mpp_source"]) == (0.5, "argument")
        # 32 px at this resolution are 32 or 64 px of the image
        size = int(32 * native / 0.5)
        embed(measured, means, key_added="cut", **{**OPTIONS, "crop": CropSpec(levels=(LevelSpec(size=size),))})
        np.testing.assert_allclose(scaled, measured.tables["table"].obsm["cut"], atol=0.01)


def test_rgb(measured: SpatialData) -> None:
    embed(measured, mpp=1.0, device="cpu")
    table = measured.tables["table"]
    assert table.obsm["X_rgb"].shape == (12, 144) and np.isfinite(table.obsm["X_rgb"]).all()
    params = json.loads(table.uns["st_predict"]["X_rgb"]["params"])
    assert (params["crop"]["mpp"], params["precision"]) == (2.0, "float32")
    assert len(json.loads(table.uns["st_predict"]["X_rgb"]["encoder"])["weights"]) == 64


@pytest.mark.parametrize("bare", [True, False])
def test_a_slide_without_a_table_gets_a_linked_one(measured: SpatialData, bare: bool) -> None:
    embed(measured, means, **OPTIONS)
    expected = measured.tables["table"].obsm["X_means"]
    slide = SpatialData(images=dict(measured.images), shapes=dict(measured.shapes)) if bare else measured
    for _ in range(2):  # the second time replaces the first
        embed(slide, means, shapes_key="spots", key_added="alone", **OPTIONS)
        linked = slide.tables["alone"]
        np.testing.assert_array_equal(linked.X, expected)
        assert list(linked.obs_names) == list(measured.shapes["spots"].index)
        assert linked.uns["spatialdata_attrs"]["region"] == "spots"
        np.testing.assert_array_equal(linked.obsm["spatial"][0], [10, 50])
    slide.shapes["others"] = slide.shapes["spots"]
    with pytest.raises(ValueError, match="Table 'alone' is an embedding for other spots"):
        embed(slide, means, shapes_key="others", key_added="alone", **OPTIONS)


def test_what_is_not_an_embedding_is_never_overwritten(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    stp.tl.predict(measured, checkpoint(), key_added="pred")
    table = measured.tables["table"]
    table.obsm["theirs"] = np.zeros((12, 2))
    for key in ("theirs", "mine", "pred", "spatial"):
        with pytest.raises(ValueError, match=rf"(obsm|layers)\['{key}'\] is not an embedding of st_predict"):
            embed(measured, means, key_added=key, **OPTIONS)
    with pytest.raises(ValueError, match="'he' is the name of another element"):
        embed(measured, means, key_added="he", **OPTIONS)
    with pytest.raises(ValueError, match="Table 'table' is not an embedding"):
        embed(measured, means, shapes_key="spots", key_added="table", **OPTIONS)
    assert set(table.obsm) == {"spatial", "theirs", "pred"}
    embed(measured, means, key_added="ours", **OPTIONS)
    embed(measured, lambda x: x.mean((2, 3)), key_added="ours", **OPTIONS)
    assert table.obsm["ours"].shape == (12, 3) and set(table.uns["st_predict"]) == {"pred", "ours"}


def test_what_is_the_users_beside_an_embedding_stays(measured: SpatialData) -> None:
    embed(measured, means, key_added="ours", **OPTIONS)
    table = measured.tables["table"]
    table.layers["ours"] = np.ones(table.shape)
    embed(measured, means, key_added="ours", **OPTIONS)
    assert (table.layers["ours"] == 1).all()


def test_an_embedding_of_shapes_is_not_replaced_by_one_of_the_table(measured: SpatialData) -> None:
    embed(measured, means, shapes_key="spots", key_added="alone", **OPTIONS)
    with pytest.raises(ValueError, match="'alone' is the name of another element"):
        embed(measured, means, key_added="alone", **OPTIONS)
    assert "alone" in measured.tables and "alone" not in measured.tables["table"].obsm


def test_survives_storage(measured: SpatialData, tmp_path: Path) -> None:
    embed(measured, lambda x: x.mean((2, 3)), key_added="X_mine", **OPTIONS)
    measured.write(tmp_path / "s.zarr")
    stored = sd.read_zarr(tmp_path / "s.zarr")
    table = stored.tables["table"]
    np.testing.assert_array_equal(table.obsm["X_mine"], measured.tables["table"].obsm["X_mine"])
    embed(stored, means, key_added="X_mine", **OPTIONS)  # still known as ours
    assert table.obsm["X_mine"].shape == (12, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": lambda x: x.mean((2, 3)), **OPTIONS}, "is a lambda.*key_added="),
        ({"encoder": means, "key_added": "X means", **OPTIONS}, "to be storable; got 'X means'"),
        ({"encoder": means, "key_added": "a/b", **OPTIONS}, "to be storable; got 'a/b'"),
        ({"encoder": "rgb", "mpp": 0.5, "precision": "fp16", "device": "cpu"}, "precision must be"),
    ],
)
def test_arguments_that_could_not_be_kept(measured: SpatialData, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stp.tl.embed(measured, **options)
    assert set(measured.tables["table"].obsm) == {"spatial"}


def painted(measured: SpatialData, y: int, x: int) -> SpatialData:
    """The same section with one pixel that is another."""
    pixels = np.asarray(measured.images["he"]["scale0"]["image"].data).copy()
    pixels[2, y, x] = 99
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=[2, 2], c_coords=["r", "g", "b"])
    return SpatialData(images={"he": image}, shapes=dict(measured.shapes), tables=dict(measured.tables))


def test_features_are_computed_once(measured: SpatialData, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="st_predict")

    def computed(sdata: SpatialData = measured, weight: float = 2.0, n: int = 12, **options: Any) -> bool:
        changes = {name: options.pop(name) for name in ("name", "source", "pixels") if name in options}
        encoder, network = weighted(weight, **changes)
        embed(sdata, encoder, key_added="X", **{"device": "cpu", "precision": "float32", **options})
        assert network.seen in {0, n}
        sums = sdata.tables["table"].obsm["X"]
        embed(sdata, weighted(weight, **changes)[0], key_added="X", **{**options, "cache": False})
        np.testing.assert_allclose(sums, sdata.tables["table"].obsm["X"], atol=0.02)
        return network.seen > 0

    assert computed()
    assert not computed()
    assert [path.suffix for path in kept.rglob("*") if path.is_file()] == [".safetensors"]
    assert not computed(batch_size=5)
    assert not computed(painted(measured, 100, 100))  # no crop shows that pixel
    assert computed(painted(measured, 200, 150))
    assert computed(weight=2.001)
    assert computed(precision="bfloat16")
    assert computed(name="other")
    assert computed(source="test/other")
    assert computed(pixels=PixelSpec(mean=(0.5, 0.5, 0.5)))
    assert computed(mpp=0.5, at_mpp=1.0)
    assert computed(mpp=1.0, at_mpp=2.0)  # the same pixels, but said to be wider
    assert not computed()
    assert not caplog.text


def test_order_of_the_table_matters(measured: SpatialData) -> None:
    embed(measured, weighted()[0], device="cpu")
    table = measured.tables["table"]
    order = [3, 7, 11, 2, 6, 10, 1, 5, 9, 0, 4, 8]  # the image is read in the same order as before
    turned = SpatialData(
        images=dict(measured.images), shapes=dict(measured.shapes), tables={"table": table[order].copy()}
    )
    embed(turned, weighted()[0], device="cpu")
    np.testing.assert_array_equal(turned.tables["table"].obsm["X_weighted"], table.obsm["X_weighted"][order])


def test_nothing_is_kept_of_callables_or_without_cache(measured: SpatialData, kept: Path) -> None:
    embed(measured, Weighted(), **OPTIONS)
    embed(measured, weighted()[0], device="cpu", cache=False)
    assert not kept.exists()


@pytest.mark.parametrize("damage", ["cut", "emptied", "values", "header"])
def test_damaged_files_are_replaced(
    measured: SpatialData, kept: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, _ = weighted()
    embed(measured, encoder, device="cpu", precision="float32")
    expected = measured.tables["table"].obsm["X_weighted"]
    (path,) = kept.rglob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-10],
            "emptied": b"",
            "values": content[:-4] + np.float32(7).tobytes(),
            "header": content.replace(b"test/weighted", b"test/WEIGHTED"),
        }[damage]
    )
    for seen in (12, 0):
        encoder, network = weighted()
        embed(measured, encoder, device="cpu", precision="float32")
        assert network.seen == seen
        np.testing.assert_array_equal(measured.tables["table"].obsm["X_weighted"], expected)
    assert caplog.text.count("computed again") == 1


def test_a_cache_that_cannot_be_written(measured: SpatialData, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.write_text("a file where the folder must be")
    embed(measured, weighted()[0], device="cpu")
    assert np.isfinite(measured.tables["table"].obsm["X_weighted"]).all()
    assert "cannot be cached" in caplog.text


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_cache_that_may_only_be_read(
    measured: SpatialData,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    caplog.set_level(logging.INFO, logger="st_predict")

    def seen(weight: float) -> int:
        encoder, network = weighted(weight)
        embed(measured, encoder, device="cpu", precision="float32")
        return network.seen

    assert seen(2.0) == 12
    (shared,) = kept.rglob("*.safetensors")
    real = module.whole

    def refuse(path: Path) -> Any:
        if path.is_relative_to(kept):
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(module, "whole", refuse)  # root may write anywhere
    assert seen(2.0) == 0
    own = kept.parent / "own" / "st_predict" / "embeddings"
    assert not own.exists()
    assert seen(3.0) == 12
    (mine,) = own.rglob("*.safetensors")
    assert list(kept.rglob("*.safetensors")) == [shared]
    assert f"Cannot write to {shared.parent}" in caplog.text and f"are cached in {mine}." in caplog.text
    caplog.clear()
    expected = measured.tables["table"].obsm["X_weighted"]
    assert seen(3.0) == 0
    assert f"taken from {mine}" in caplog.text
    np.testing.assert_array_equal(measured.tables["table"].obsm["X_weighted"], expected)
    assert seen(2.0) == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_where_neither_cache_can_be_written_nothing_is_kept(
    measured: SpatialData, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(module, "whole", refuse)
    embed(measured, weighted()[0], device="cpu")
    assert np.isfinite(measured.tables["table"].obsm["X_weighted"]).all()
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert str(kept.parent / "own") in record.getMessage()


def test_an_encoder_is_loaded_only_when_the_section_is_fit(
    measured: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_args: object, **_options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("st_predict.tl._embed.load_encoder", load)
    with pytest.raises(ValueError, match="Nothing says how many micrometres"):
        embed(measured, "uni")
    with pytest.raises(KeyError, match="No image 'hee'"):
        embed(measured, "uni", image_key="hee")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encoder": "no-such-net"}, KeyError, "No encoder 'no-such-net'; there are .*'uni'"),
        ({"encoder": means, "crop": None}, ValueError, "Give it with crop="),
        ({"encoder": "rgb", "mpp": 1.0}, ValueError, "encoder 'rgb' has its own crop .* Leave out crop="),
        ({"encoder": 5}, TypeError, "got int"),
        ({"device": "abacus"}, ValueError, "Device 'abacus' cannot be used .*device=.auto."),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"precision": "half"}, ValueError, "precision must be .auto. or one of"),
        ({"at_mpp": -1.0}, ValueError, "at_mpp must be above 0, got -1"),
        ({"table_key": "tab"}, KeyError, r"No table 'tab' in sdata"),
        ({"encoder": nn.Identity()}, ValueError, "must give one row of features per crop"),
    ],
)
def test_unfit_arguments(measured: SpatialData, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        embed(measured, **{"encoder": means, **OPTIONS, **options})
    assert set(measured.tables["table"].obsm) == {"spatial"}


def test_a_full_disk_leaves_nothing_behind(measured: SpatialData, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    embed(measured, load_encoder("rgb"), mpp=1.0, device="cpu")
    assert not [path for path in kept.rglob("*") if path.is_file()]


def test_fields_of_view_are_cut_by_hand(measured: SpatialData) -> None:
    embed(measured, "efficientnet_lite0", fields=(64, 256), features="head", device="cpu", key_added="fields")
    embed(measured, "efficientnet_lite0", features="head", device="cpu", key_added="one")
    found = measured.tables["table"].obsm
    encoder = load_encoder("efficientnet_lite0", features="head")
    image = np.asarray(measured.images["he"]["scale0"]["image"].data)
    x, y = 300, 200  # of spot s6
    crop = torch.from_numpy(image[:, y - 112 : y + 112, x - 112 : x + 112].copy())[None]
    small = torch.from_numpy(image[:, y - 32 : y + 32, x - 32 : x + 32].copy())[None]
    enlarged = nn.functional.interpolate(encoder.pixels(small), size=(224, 224), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        expected = encoder.eval().backbone(encoder.pixels(crop))[0], encoder.backbone(enlarged)[0]
    np.testing.assert_allclose(found["one"][6], expected[0], atol=1e-4)
    np.testing.assert_allclose(found["fields"][6, :1280], expected[1], atol=1e-4)
    assert found["fields"].shape == (12, 2560)


def test_neighbours_and_standardized_features_are_made_of_the_plain_ones(measured: SpatialData) -> None:
    embed(measured, means, **OPTIONS)
    embed(measured, means, neighbours=2, key_added="joined", **OPTIONS)
    embed(measured, means, standardize=True, key_added="standard", **OPTIONS)
    table = measured.tables["table"]
    plain = table.obsm["X_means"]
    np.testing.assert_array_equal(table.obsm["joined"][:, :6], plain)
    # s5 at (75, 100); s4 (5, 100) is 70 away, s6 (150, 100), s1 (75, 25) are 75 away: the second and the third are equally far
    np.testing.assert_allclose(table.obsm["joined"][5, 6:], plain[[4, 6, 1]].mean(0), rtol=1e-5)
    varies = plain.std(0) > 1e-6
    expected = (plain - plain.mean(0))[:, varies] / plain.std(0)[varies]
    np.testing.assert_allclose(table.obsm["standard"][:, varies], expected, atol=1e-3)
    record = json.loads(table.uns["st_predict"]["joined"]["encoder"])
    assert (record["neighbours"], record["standardize"]) == (2, False)


def test_how_it_was_read_is_part_of_what_is_kept(measured: SpatialData, kept: Path) -> None:
    options = {"device": "cpu", "key_added": "e"}
    embed(measured, "efficientnet_lite0", **options)
    embed(measured, "efficientnet_lite0", neighbours=2, **options)  # of the same features
    embed(measured, "efficientnet_lite0", standardize=True, **options)
    assert len(list(kept.glob("*/*"))) == 1
    embed(measured, "efficientnet_lite0", features="head", **options)
    embed(measured, "efficientnet_lite0", fields=(224,), **options)
    assert len(list(kept.glob("*/*"))) == 3


def test_crops_are_read_once(measured: SpatialData, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return iter_batches(*args, **options)

    monkeypatch.setattr("st_predict._sections._section.iter_batches", counted)
    monkeypatch.setattr(module, "_READ", 4)  # three batches
    encoder, network = weighted()
    for seen in (12, 12):  # computed, then taken from the cache
        calls.clear()
        embed(measured, encoder, device="cpu", precision="float32")
        assert (len(calls), network.seen) == (1, seen)
    embed(measured, encoder, device="cpu", precision="float32", cache=False, key_added="plain")
    table = measured.tables["table"]
    np.testing.assert_array_equal(table.obsm["X_weighted"], table.obsm["plain"])
    # another last spot: the first crops are known, and only reading tells that others have changed
    spots = measured.shapes["spots"]
    spots.loc["s11", "geometry"] = Point(280, 190)
    measured.shapes["spots"] = spots
    calls.clear()
    embed(measured, encoder, device="cpu", precision="float32")
    assert len(calls) == 2
    assert len(list(kept.glob("*/*"))) == 2
    assert not np.array_equal(table.obsm["X_weighted"][11], table.obsm["plain"][11])


def test_the_number_of_spots_at_a_time_does_not_matter_for_what_is_kept(
    measured: SpatialData, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ", 4)
    encoder, network = weighted()
    for batch_size in (2, 5, 12):
        embed(measured, encoder, device="cpu", precision="float32", batch_size=batch_size)
    assert network.seen == 12
    assert len(list(kept.glob("*/*"))) == 1


def test_few_spots_are_named(measured: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        embed(measured, means, key_added="a", neighbours=11, **OPTIONS)
        assert not caplog.records
        embed(measured, means, key_added="b", neighbours=12, **OPTIONS)
        embed(measured, means, key_added="c", standardize=True, **OPTIONS)
    assert [record.getMessage() for record in caplog.records] == [
        "'spots' has 12 spots, fewer than a spot and its 12 neighbours; the available ones are used.",
        "'spots' has only 12 spots; features standardised over so few are unreliable.",
    ]


def test_the_size_that_the_encoder_sees_is_part_of_what_is_kept(measured: SpatialData, kept: Path) -> None:
    spec = read_as(get_encoder("efficientnet_lite0"), fields=(32, 64))
    for name, size in (("large", 224), ("small", 64)):
        embed(measured, replace(spec, input_size=size), key_added=name, device="cpu")
    table = measured.tables["table"]
    assert not np.allclose(table.obsm["large"], table.obsm["small"], atol=0.1)
    assert len(list(kept.glob("*/*"))) == 2
