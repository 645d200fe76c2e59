"""Standard deviations: of samples, of ensembles, and where they are written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import st_predict as stp
from st_predict import checkpoints
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

TINY = {**get_spec("m2ost").tiny, "drop": 0.3}
KEY, STD = "pred_m2ost", "pred_m2ost_std"
HOW: dict[str, Any] = {"device": "cpu", "precision": "float32"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny M2OST with dropout and random weights of a seed."""

    def make(seed: int = 0, **changes: Any) -> Path:
        card = ModelCard(model="m2ost", genes=tuple("abcd"), crop=get_spec("m2ost").crop_for(TINY), hparams=TINY)
        card = replace(card, **changes)
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            network = checkpoints.build(card)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        checkpoints.save(path, network, card)
        return path

    return make


def read(sdata: SpatialData, key: str) -> np.ndarray:
    return sdata.tables["table"].obsm[key].copy()


@pytest.mark.slow
def test_samples_have_the_spread_of_dropout(measured: SpatialData, make: Callable[..., Path]) -> None:
    path = make()
    stp.tl.predict(measured, path, n_samples=40, seed=5, **HOW)
    prediction = stp.get.prediction(measured, KEY)
    assert list(prediction.var_names) == list("abcd")
    assert prediction.obs_names.equals(measured.tables["table"].obs_names)
    np.testing.assert_array_equal(prediction.layers["std"], read(measured, STD))
    assert (read(measured, STD) > 0).all()
    mean, std = read(measured, KEY), read(measured, STD)
    member = json.loads(measured.tables["table"].uns["st_predict"][KEY]["params"])["members"][0]
    assert (member["n_samples"], member["seed"]) == (40, 5)
    stp.tl.predict(measured, path, n_samples=40, seed=5, **HOW)
    np.testing.assert_array_equal(read(measured, KEY), mean)
    np.testing.assert_array_equal(read(measured, STD), std)
    stp.tl.predict(measured, path, n_samples=40, seed=6, **HOW)  # of which no draw is one of those of seed 5
    other = read(measured, KEY)
    assert np.abs(other - mean).max() > 0
    # two means of 40 differ by the spread times sqrt(2 / 40)
    assert np.sqrt(np.mean((other - mean) ** 2 / std**2)) == pytest.approx(np.sqrt(2 / 40), rel=0.5)


def test_an_ensemble_is_the_mean_of_its_members(measured: SpatialData, make: Callable[..., Path]) -> None:
    paths = [make(seed) for seed in range(3)]
    each = []
    for path in paths:
        stp.tl.predict(measured, path, **HOW)
        each.append(read(measured, KEY))
        assert STD not in measured.tables["table"].obsm
    stp.tl.predict(measured, paths, **HOW)
    np.testing.assert_allclose(read(measured, KEY), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read(measured, STD), np.std(each, axis=0, ddof=1), rtol=1e-4, atol=1e-6)
    record = measured.tables["table"].uns["st_predict"][KEY]
    assert [m["checkpoint"] for m in json.loads(record["params"])["members"]] == [str(path) for path in paths]
    assert len(ModelCard.from_json(record["card"]).training["ensemble"]) == 3


def test_results_of_trainings_are_members(measured: SpatialData, tmp_path: Path) -> None:
    config = {"epochs": 1, "batch_size": 6, **HOW}
    results = [
        stp.tl.train(
            measured, panel=tuple("abcd"), out=tmp_path / str(seed), hparams=TINY, config={**config, "seed": seed}
        )
        for seed in (0, 1)
    ]
    table = measured.tables["table"]
    for given, paths in ((results[0], results[0].checkpoint), (results, [r.checkpoint for r in results])):
        stp.tl.predict(measured, given, key_added="by_result", **HOW)
        stp.tl.predict(measured, paths, key_added="by_path", **HOW)
        np.testing.assert_array_equal(table.obsm["by_result"], table.obsm["by_path"])
        assert table.uns["st_predict"]["by_result"]["params"] == table.uns["st_predict"]["by_path"]["params"]
    with pytest.raises(ValueError, match="is the same checkpoint as"):
        stp.tl.predict(measured, [results[0], results[0].checkpoint], **HOW)


def test_a_checkpoint_is_named_once(measured: SpatialData, make: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="is the same checkpoint as"):
        stp.tl.predict(measured, [make(0), make(1), make(0)], **HOW)


def test_an_ensemble_of_samples_spreads_over_all_of_them(measured: SpatialData, make: Callable[..., Path]) -> None:
    paths, draws = [make(0), make(1)], []
    for i, path in enumerate(paths):
        stp.tl.predict(measured, path, n_samples=6, seed=1_000_003 * i, **HOW)  # members draw apart
        draws.append((read(measured, KEY), read(measured, STD)))
    stp.tl.predict(measured, paths, n_samples=6, **HOW)
    (m1, s1), (m2, s2) = draws
    # 12 draws, whose squares are those within a member and those between the two means
    squares = 5 * (s1**2 + s2**2) + 6 * ((m1 - m2) / 2) ** 2 * 2
    np.testing.assert_allclose(read(measured, STD), np.sqrt(squares / 11), rtol=1e-4)


def test_what_the_user_keeps_under_the_name_is_not_overwritten(
    measured: SpatialData, make: Callable[..., Path]
) -> None:
    mine = np.ones((12, 2))
    measured.tables["table"].obsm[STD] = mine
    stp.tl.predict(measured, make(), **HOW)  # writes no standard deviations
    with pytest.raises(ValueError, match=r"'pred_m2ost_std'.* was not written by st_predict"):
        stp.tl.predict(measured, make(), n_samples=2, **HOW)
    assert measured.tables["table"].obsm[STD] is mine


def test_standard_deviations_go_with_the_prediction_that_they_are_of(
    measured: SpatialData, make: Callable[..., Path]
) -> None:
    stp.tl.predict(measured, make(), n_samples=2, **HOW)
    stp.tl.predict(measured, make(), **HOW)
    assert STD not in measured.tables["table"].obsm
    assert "std" not in stp.get.prediction(measured, KEY).layers


@pytest.mark.parametrize("n_genes", [4, 1001])
def test_they_are_read_with_the_prediction(measured: SpatialData, make: Callable[..., Path], n_genes: int) -> None:
    genes = tuple(f"g{i}" for i in range(n_genes))
    stp.tl.predict(measured, make(genes=genes), n_samples=3, **HOW)
    prediction = stp.get.prediction(measured, KEY)
    assert prediction.layers["std"].shape == (12, n_genes)
    assert (prediction.layers["std"] > 0).all()
    np.testing.assert_array_equal(prediction.layers["std"], measured.tables["table"].obsm[STD])


def test_what_the_user_deletes_is_gone_and_no_trouble(measured: SpatialData, make: Callable[..., Path]) -> None:
    stp.tl.predict(measured, make(), n_samples=2, **HOW)
    del measured.tables["table"].obsm[STD]
    assert "std" not in stp.get.prediction(measured, KEY).layers
    stp.tl.predict(measured, make(), **HOW)


def test_a_spot_outside_the_image_has_none(measured: SpatialData, make: Callable[..., Path]) -> None:
    measured.shapes["spots"].geometry = measured.shapes["spots"].geometry.translate(-20)  # two columns are left of it
    stp.tl.predict(measured, make(), n_samples=2, **HOW)
    lost = np.isnan(read(measured, KEY)).all(axis=1)
    assert 0 < lost.sum() < 12
    np.testing.assert_array_equal(np.isnan(read(measured, STD)).any(axis=1), lost)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 1}, "n_samples must be at least 2, got 1"),
        ({"n_samples": 3, "seed": -1}, "seed must be at least 0, got -1"),
        ({"context": "mine"}, r"\['m2ost'\] cannot read counts of other spots"),
    ],
)
def test_unfit_arguments(measured: SpatialData, make: Callable[..., Path], options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stp.tl.predict(measured, make(), **options, **HOW)


def test_a_network_without_dropout_has_no_samples(measured: SpatialData, make: Callable[..., Path]) -> None:
    path = make(hparams=dict(get_spec("m2ost").tiny))
    with pytest.raises(ValueError, match="M2OST has no dropout"):
        stp.tl.predict(measured, path, n_samples=2, **HOW)


def test_members_of_other_units_have_no_mean(measured: SpatialData, make: Callable[..., Path]) -> None:
    other = make(genes=tuple("abdc"))
    with pytest.raises(ValueError, match="differ in panel or units"):
        stp.tl.predict(measured, [make(), other], **HOW)
    with pytest.raises(ValueError, match="at least one checkpoint, got an empty list"):
        stp.tl.predict(measured, [], **HOW)
