"""Features of tiles around spots, beside crops, from training to evaluation; targets smoothed in training only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import st_predict as stp
from st_predict._runtime import Compute
from st_predict._sections import _features, open_sdata, smoothed
from st_predict._sections._inputs import inputs_of
from st_predict._sections._observed import Observed
from st_predict._sections._tiles import tile_features
from st_predict._where import Where
from st_predict.models import Reads, get_spec
from st_predict.specs import CropSpec, LevelSpec, ModelCard
from st_predict.tl import _train

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

CPU = Compute(device="cpu", precision="float32")
CROP = CropSpec(levels=(LevelSpec(size=40),))
TINY = dict(get_spec("triplex").tiny)
QUICK: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "float32"}


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))


def test_tiles_are_squares_of_the_image(sdata: SpatialData) -> None:
    (section,) = open_sdata(sdata, Where()).sections
    encoder = stp.encoders.load_encoder(lambda x: x.mean((2, 3)), crop=CROP)
    found = tile_features(section, encoder, crop=CROP, n=3, compute=CPU)
    image = np.asarray(sdata.images["he"]["scale0"]["image"]) / 255
    height, width = image.shape[1:]
    assert found.shape == (12, 9, 3)
    for spot, (x, y) in enumerate(section.spots.xy.astype(int)):
        for tile in range(9):
            left, top = x - 20 + 40 * (tile % 3 - 1), y - 20 + 40 * (tile // 3 - 1)
            if left >= 0 and top >= 0 and left + 40 <= width and top + 40 <= height:
                expected = image[:, top : top + 40, left : left + 40].mean((1, 2))
                np.testing.assert_allclose(found[spot, tile], expected, atol=1e-5)
            else:
                assert np.isnan(found[spot, tile]).all() == (tile != 4)
    assert np.isnan(found).any()


def test_tiles_of_spots_outside_are_missing(sdata: SpatialData) -> None:
    (section,) = open_sdata(sdata, Where()).sections
    outside = np.arange(12) == 5
    encoder = stp.encoders.load_encoder(lambda x: x.mean((2, 3)), crop=CROP)
    found = tile_features(replace(section, outside=outside), encoder, crop=CROP, n=3, compute=CPU)
    np.testing.assert_array_equal(np.isnan(found).all((1, 2)), outside)


def test_a_square_of_tiles_has_a_centre() -> None:
    with pytest.raises(ValueError, match="tiles must be odd"):
        Reads(tiles=4, load_encoder=lambda: None)
    assert (Reads().inputs, Reads(load_encoder=lambda: None).inputs) == ("crops", "crops and features")


def test_crops_and_features_are_of_the_same_spots(sdata: SpatialData) -> None:
    sdata.tables["table"].obs[["array_row", "array_col"]] = [(i // 4, i % 4) for i in range(12)]
    (section,) = open_sdata(sdata, Where(mpp=2.0)).sections
    spec = get_spec("triplex")
    card = ModelCard(model="triplex", genes=("a", "b"), crop=spec.crop_for(TINY), hparams=TINY)
    encoder = spec.reads(TINY).load_encoder()
    (whole,) = inputs_of(section, card, encoder, compute=CPU, batch_size=None)
    parts = list(inputs_of(section, card, encoder, compute=CPU, batch_size=5))
    for part in parts:
        assert torch.equal(part.crops[0], whole.crops[0][part.index])
        torch.testing.assert_close(part.features, whole.features[part.index], equal_nan=True)
    own = {"encoder": "rgb", "mpp": 2.0, "key_added": "own", "device": "cpu"}
    stp.tl.embed(sdata, **own)
    np.testing.assert_allclose(whole.features[:, 12], sdata["table"].obsm["own"], atol=1e-6)


# Smoothed targets


def lattice(*, hexagonal: bool) -> np.ndarray:
    rows, columns = np.divmod(np.arange(20), 5)
    x = columns + 0.5 * (rows % 2) * hexagonal
    return np.stack([100 * x, 100 * rows * (np.sqrt(3) / 2 if hexagonal else 1)], axis=1)


@pytest.mark.parametrize(("hexagonal", "n_near"), [(False, 8), (True, 6)])
def test_smoothed_targets_are_means_over_measured_neighbours(sdata: SpatialData, hexagonal: bool, n_near: int) -> None:
    (section,) = open_sdata(sdata, Where()).sections
    xy = np.concatenate([lattice(hexagonal=hexagonal), [[9e4, 9e4]]])  # the last spot has no neighbours
    section = replace(section, spots=replace(section.spots, xy=xy, grid=None))
    rows = np.delete(np.arange(21), 6)  # one is not measured
    target = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    observed = Observed(
        name="s", patients=(), section=section, rows=rows, target=target, totals=np.ones(20), counts=None
    )
    found = smoothed(observed)
    near = np.linalg.norm(xy[rows][:, None] - xy[rows], axis=2) < (105 if hexagonal else 145)
    assert near.sum(1).max() == n_near + 1
    np.testing.assert_allclose(found.target, [target[own].mean(0) for own in near], atol=1e-6)
    np.testing.assert_array_equal(found.target[-1], target[-1])
    assert found.target is not observed.target
    one = observed.take(np.arange(20) == 3)
    assert smoothed(one) is one


def test_neighbours_on_a_lattice_that_is_not_perfect(sdata: SpatialData) -> None:
    """Spots of the legacy assay lie some micrometres beside their places."""
    (section,) = open_sdata(sdata, Where()).sections
    rows, columns = np.divmod(np.arange(400), 20)
    xy = 100.0 * np.column_stack([columns, rows]) + np.random.default_rng(0).normal(0, 3, (400, 2))
    section = replace(section, spots=replace(section.spots, xy=xy, grid=None))
    target = np.random.default_rng(1).normal(size=(400, 1)).astype(np.float32)
    observed = Observed(
        name="s", patients=(), section=section, rows=np.arange(400), target=target, totals=np.ones(400), counts=None
    )
    near = (np.abs(rows[:, None] - rows) <= 1) & (np.abs(columns[:, None] - columns) <= 1)
    expected = np.array([target[own].mean(0) for own in near])
    np.testing.assert_allclose(smoothed(observed).target, expected, atol=1e-6)


@pytest.fixture(scope="module")
def patients() -> dict[str, SpatialData]:
    return stp.datasets.simulate(2, 1, n_genes=6, shape=(360, 400), mpp=1.2, seed=0).sections


def test_train_predict_and_evaluate(
    patients: dict[str, SpatialData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = patients.values()
    learned = []

    def keep(card: ModelCard, data: Any, val_data: Any, *, config: Any, **how: Any) -> Any:
        learned.append((data.target, val_data.target, data))
        if not config.smooth:
            raise NotImplementedError  # not trained: its targets are enough
        return learn(card, data, val_data, config=config, **how)

    learn = _train.learn
    monkeypatch.setattr(_train, "learn", keep)
    how = {"validation": [second], "panel": list(first["table"].var_names[:4]), "preset": "paper", "hparams": TINY}
    with pytest.raises(NotImplementedError):
        stp.tl.train([first], "triplex", out=tmp_path / "plain", config=QUICK, **how)
    result = stp.tl.train([first], "triplex", out=tmp_path / "smooth", config={**QUICK, "smooth": True}, **how)
    (plain, val_plain, store), (smooth, val_smooth, _) = learned
    assert store.features.shape == (len(plain), 25, 144)
    assert len(store.crops[0]) == len(plain)
    np.testing.assert_array_equal(val_plain, val_smooth)  # what is scored is as measured
    assert (smooth.std(0) < 0.8 * plain.std(0)).all()
    card = ModelCard.of_file(result.checkpoint)
    assert card.training["config"]["smooth"] is True
    assert card.training["encoder"]["name"] == "rgb"
    monkeypatch.setattr(_features, "_compute", lambda *_: pytest.fail("features are in the cache"))
    stp.tl.predict(second, result, device="cpu", precision="float32")
    assert np.isfinite(second["table"].obsm["pred_triplex"]).all()
    assert len(stp.tl.evaluate(second).sections) == 1
