"""Intervals against ranks by hand, against what exchangeable spots must give, and on simulated patients."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import st_predict as stp
from st_predict import checkpoints
from st_predict._keys import Keys
from st_predict.models import get_spec
from st_predict.specs import ModelCard, TargetSpec
from st_predict.tl import Calibration, LeakageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., SpatialData]

KEY = "pred_m2ost"
TRAINED = {"sections": [{"section": "T1", "patients": ["PT"]}]}


def card_of(genes: Any, transform: str = "counts", **fields: Any) -> ModelCard:
    target = TargetSpec(transform=transform)
    return ModelCard(
        **{"model": "m2ost", "crop": get_spec("m2ost").crop, "target": target, "training": TRAINED}
        | {"genes": tuple(genes), **fields}
    )


def predict(sdata: SpatialData, mean: Any, card: ModelCard, *, sd: Any = None, **params: Any) -> None:
    """Store a prediction as tl.predict does."""
    table = sdata.tables["table"]
    for key, values in ((KEY, mean), (f"{KEY}_std", sd)):
        if values is not None:
            array = np.broadcast_to(np.asarray(values, np.float32), (table.n_obs, len(card.genes)))
            table.obsm[key] = array.copy()
    record = {"card": card.to_json(), "genes": np.array(card.genes), "version": "0", "params": json.dumps(params)}
    table.uns[Keys.UNS] = {KEY: record}
    if sd is not None:
        table.uns[Keys.UNS][KEY]["derived"] = json.dumps([f"{KEY}_std"])


def section(counts: Any, *, patient: str = "P1", name: str | None = "S1", n_chosen: int = 0) -> SpatialData:
    """A section with these counts, of which the first ``n_chosen`` spots are to be calibrated on."""
    counts = np.asarray(counts, dtype=np.float32)
    n, n_genes = counts.shape
    spots = [f"{name}-{i}" for i in range(n)]
    shapes = gpd.GeoDataFrame({"radius": 1.0}, geometry=[Point(5, 5)] * n, index=spots)
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * n), "instance": spots, "patient": patient}, index=spots)
    obs["chosen"] = np.arange(n) < n_chosen
    if name is not None:
        obs["section"] = name
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    return SpatialData(
        images={"he": Image2DModel.parse(np.zeros((3, 16, 16), np.uint8), dims=("c", "y", "x"))},
        shapes={"spots": ShapesModel.parse(shapes)},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )


def off_by(errors: Any, *, sd: Any = None, **options: Any) -> SpatialData:
    """A section of counts of 1000 and more, predicted as 1000."""
    errors = np.asarray(errors)
    sdata = section(1000 + errors, **options)
    predict(sdata, 1000, card_of(sdata.tables["table"].var_names), sd=sd)
    return sdata


def mixed(n: int, n_genes: int = 2, seed: int = 0) -> np.ndarray:
    """Columns with the numbers 1 to n in some order."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(1, n + 1), (n_genes, 1)), axis=1).T


# quantiles


@pytest.mark.parametrize(
    ("n", "coverage", "rank"), [(9, 0.9, 9), (19, 0.9, 18), (20, 0.9, 19), (99, 0.55, 55), (19, 0.95, 19), (1, 0.5, 1)]
)
def test_half_width_is_the_error_of_the_rank(n: int, coverage: float, rank: int) -> None:
    errors = mixed(n)
    errors[:, 1] *= -3  # another gene, other widths; whether above or below does not matter
    calibration = stp.tl.calibrate(off_by(errors), key=KEY, coverage=coverage)
    assert calibration.genes["quantile"].tolist() == [rank, 3 * rank]
    assert calibration.n_spots == n
    assert rank == int(np.ceil(np.nextafter((n + 1) * coverage, 0)))


@pytest.mark.parametrize(("n", "coverage", "needed"), [(8, 0.9, 9), (18, 0.95, 19), (98, 0.99, 99), (0, 0.5, 1)])
def test_too_few_spots(n: int, coverage: float, needed: int) -> None:
    sdata = off_by(mixed(100), n_chosen=n)
    with pytest.raises(
        ValueError, match=rf"coverage of {coverage:g} needs at least {needed} calibration spots, got {n}\. .*coverage="
    ):
        stp.tl.calibrate(sdata, coverage=coverage, spots="chosen")


@pytest.mark.parametrize("n", [12, 19, 30])
def test_exchangeable_spots_are_covered_as_the_theorem_says(n: int) -> None:
    counts = np.random.default_rng(n).integers(0, 10**6, (n + 30, 2000))
    sdata = section(counts, n_chosen=n)
    predict(sdata, 4e5, card_of(sdata.tables["table"].var_names))
    report = stp.tl.calibrate(sdata, spots="chosen").report(sdata)
    assert report["n_spots"].tolist() == [30] * 2000
    assert report["coverage"].mean() == pytest.approx(np.ceil((n + 1) * 0.9) / (n + 1), abs=0.008)


def test_sections_are_pooled() -> None:
    errors = mixed(30)
    both = [off_by(errors[:12]), off_by(errors[12:], name="S2")]
    calibration = stp.tl.calibrate(both)
    pd.testing.assert_frame_equal(calibration.genes, stp.tl.calibrate(off_by(errors)).genes)
    assert [(s["section"], len(s["spots"])) for s in calibration.sections] == [("S1", 12), ("S2", 18)]


def test_spots_without_prediction_or_counts_are_left_out() -> None:
    sdata = off_by(mixed(12))
    sdata.tables["table"].obsm[KEY][3, 0] = np.nan
    sdata.tables["table"].X[5] = 0
    calibration = stp.tl.calibrate(sdata)
    assert calibration.sections[0]["spots"] == [f"S1-{i}" for i in range(12) if i not in {3, 5}]


def test_spots_that_the_network_has_read_are_left_out() -> None:
    sdata = off_by(mixed(30), n_chosen=12)
    predict(sdata, 1000, card_of(["g0", "g1"]), context={"column": "c", "spots": [f"S1-{i}" for i in range(12)]})
    assert stp.tl.calibrate(sdata).sections[0]["spots"] == [f"S1-{i}" for i in range(12, 30)]
    sdata.tables["table"].obs["mine"] = np.arange(30) % 2 == 0
    calibration = stp.tl.calibrate(sdata, spots="mine")
    assert calibration.sections[0]["spots"] == [f"S1-{i}" for i in range(12, 30, 2)]
    assert set(calibration.report(sdata)["n_spots"]) == {9}


# standard deviations


def test_scaled() -> None:
    scores = mixed(19)
    sd = np.random.default_rng(1).choice([1, 2, 10], scores.shape)
    sdata = off_by(scores * sd, sd=sd)
    calibration = stp.tl.calibrate(sdata)
    assert calibration.scaled
    assert calibration.genes["quantile"].tolist() == [18, 18]
    calibration.apply(sdata)
    np.testing.assert_allclose(sdata.tables["table"].obsm[f"{KEY}_lower"], 1000 - 18 * sd, rtol=1e-6)
    np.testing.assert_allclose(sdata.tables["table"].obsm[f"{KEY}_upper"], 1000 + 18 * sd, rtol=1e-6)
    plain = stp.tl.calibrate(sdata, scaled=False)
    assert not plain.scaled
    np.testing.assert_array_equal(plain.genes["quantile"], np.sort(scores * sd, axis=0)[17])


def test_no_standard_deviation_counts_as_a_small_one() -> None:
    sd = np.full((19, 2), 10.0)
    sd[:3] = 0
    sd[:, 1] = 0
    errors = mixed(19)
    calibration = stp.tl.calibrate(off_by(errors, sd=sd))
    floor = 0.1 * np.sqrt(16 / 19 * 100)
    assert calibration.genes["floor"].tolist() == pytest.approx([floor, 1])
    scores = np.sort(errors[:, 0] / np.maximum(sd[:, 0], floor))
    assert calibration.genes["quantile"].tolist() == pytest.approx([scores[17], 18])


def test_scaled_intervals_cover_quiet_and_loud_spots_alike() -> None:
    rng = np.random.default_rng(0)
    sd = np.repeat([[5.0], [50.0]], 100, axis=0)
    sdata = off_by(rng.normal(0, sd, (200, 50)).round(), sd=sd)
    sdata.tables["table"].obs["chosen"] = np.tile([True, False], 100)
    shares = {}
    for scaled in (True, False):
        stp.tl.calibrate(sdata, spots="chosen", scaled=scaled).apply(sdata)
        lower, upper = (sdata.tables["table"].obsm[f"{KEY}_{side}"] for side in ("lower", "upper"))
        values = sdata.tables["table"].X
        shares[scaled] = ((lower <= values) & (values <= upper))[1::2].reshape(2, 50, 50).mean(axis=(1, 2))
    assert np.abs(shares[True] - 0.9).max() < 0.02
    assert shares[False][0] == 1
    assert shares[False][1] < 0.85


def test_some_have_standard_deviations() -> None:
    with_sd, without = off_by(mixed(12), sd=1), off_by(mixed(12), name="S2")
    with pytest.raises(ValueError, match="1 of 2 objects have standard deviations"):
        stp.tl.calibrate([with_sd, without])
    with pytest.raises(KeyError, match=r"'pred_m2ost' has no standard deviations.*n_samples="):
        stp.tl.calibrate(without, scaled=True)
    with pytest.raises(KeyError, match="no standard deviations"):
        stp.tl.calibrate(with_sd).apply(without)
    assert not stp.tl.calibrate([with_sd, without], scaled=False).scaled


# intervals


def test_apply() -> None:
    sdata = off_by(mixed(19))
    table = sdata.tables["table"]
    table.obsm[KEY] += np.array([0, -995], np.float32)
    before = table.copy()
    calibration = stp.tl.calibrate(off_by(mixed(19)))
    calibration.apply(sdata)
    lower, upper = table.obsm[f"{KEY}_lower"], table.obsm[f"{KEY}_upper"]
    assert lower[0].tolist() == pytest.approx([982, 0])  # counts are never below zero
    assert upper[0].tolist() == pytest.approx([1018, 23])
    result = stp.get.prediction(sdata)
    assert result.var_names.tolist() == ["g0", "g1"]
    assert result.obs_names.equals(table.obs_names)
    for side, bounds in (("lower", lower), ("upper", upper)):
        assert isinstance(bounds, np.ndarray)
        assert bounds.dtype == np.float32
        np.testing.assert_array_equal(result.layers[side], bounds)
    record, earlier = table.uns[Keys.UNS][KEY], before.uns[Keys.UNS][KEY]
    assert set(record) - set(earlier) == {"calibration", "derived"}
    assert {name: list(record[name]) for name in earlier} == {name: list(earlier[name]) for name in earlier}
    assert json.loads(record["calibration"]) == {
        "coverage": 0.9,
        "scaled": False,
        "sections": [{"section": "S1", "patients": ["P1"], "spots": 19}],
        "version": stp.__version__,
    }
    np.testing.assert_array_equal(table.obsm[KEY], before.obsm[KEY])
    table.obsm[KEY] += 1
    calibration.apply(sdata)  # its own bounds may be replaced
    assert table.obsm[f"{KEY}_upper"][0].tolist() == pytest.approx([1019, 24])


def test_values_on_a_bound_are_covered_and_nan_stays() -> None:
    sdata = section(np.full((30, 2), 7))
    predict(sdata, [0.1, 14.2], card_of(["g0", "g1"]), sd=0.3)
    sdata.tables["table"].obsm[KEY][29] = np.nan
    stp.tl.calibrate(sdata).apply(sdata)
    lower, upper = (sdata.tables["table"].obsm[f"{KEY}_{side}"] for side in ("lower", "upper"))
    assert np.isnan(lower[29]).all()
    assert np.isnan(upper[29]).all()
    assert (upper[:29, 0] >= 7).all()
    assert (lower[:29, 1] <= 7).all()
    np.testing.assert_allclose(upper[:29, 0], 7, rtol=1e-6)
    np.testing.assert_allclose(lower[:29, 1], 7, rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "least", "largest"),
    [
        (TargetSpec(), 0, np.log1p(1e6)),
        (TargetSpec(transform="log1p"), 0, np.inf),
        (TargetSpec(transform="counts"), 0, np.inf),
        (TargetSpec(transform="log_proportion"), -np.inf, 0),
        (TargetSpec(total=100, scale="minmax", limits=((0.5, 1), (2.5, 1))), [-0.25, 0], [np.log1p(100) / 2 - 0.25, 0]),
    ],
)
def test_bounds_are_values_that_there_can_be(target: TargetSpec, least: Any, largest: Any) -> None:
    counts = np.array([[1, 0], [0, 1]] * 6)  # spots with all counts in one gene: the extremes of a proportion
    sdata = section(counts)
    card = replace(card_of(["g0", "g1"]), target=target)
    predict(sdata, 40, card)
    predict(guess := section(counts, name="S2"), -3, card)
    calibration = stp.tl.calibrate(sdata)
    calibration.apply(guess)
    slots = guess.tables["table"].obsm
    values = stp.pp.make_target(sdata.tables["table"], ["g0", "g1"], target).values
    assert (slots[f"{KEY}_lower"] <= values).all()
    assert (values <= slots[f"{KEY}_upper"]).all()
    for side, expected in (
        ("lower", np.maximum(-3 - calibration.genes["quantile"], least)),
        ("upper", np.minimum(-3 + calibration.genes["quantile"], largest)),
    ):
        np.testing.assert_allclose(slots[f"{KEY}_{side}"][0], expected, rtol=1e-6)


def test_linked_table(
    measured: SpatialData, checkpoint: Callable[..., Path], link: Callable[[SpatialData, str], AnnData]
) -> None:
    old = measured.tables["table"]
    genes = [f"g{i}" for i in range(1001)]
    counts = np.random.default_rng(0).poisson(5, (12, 1001)).astype(np.float32)
    measured.tables["table"] = type(old)(counts, obs=old.obs, var=pd.DataFrame(index=genes), uns=dict(old.uns))
    stp.tl.predict(measured, checkpoint(tuple(genes)))
    linked = link(measured, KEY)
    linked.layers["std"] = np.full((12, 1001), 2.0, np.float32)
    calibration = stp.tl.calibrate(measured)
    truth = np.log1p(1e6 * counts / counts.sum(axis=1, keepdims=True))
    expected = np.sort(np.abs(truth - linked.X), axis=0)[11]  # ceil(13 * 0.9) = 12
    assert calibration.scaled
    np.testing.assert_allclose(calibration.genes["quantile"], expected / 2, rtol=1e-5)
    calibration.apply(measured)
    np.testing.assert_allclose(linked.layers["upper"], np.minimum(linked.X + expected, np.log1p(1e6)), rtol=1e-5)
    np.testing.assert_allclose(linked.layers["lower"], np.maximum(linked.X - expected, 0), rtol=1e-4, atol=1e-4)
    assert f"{KEY}_lower" not in measured.tables["table"].obsm
    assert json.loads(linked.uns[Keys.UNS][KEY]["calibration"])["scaled"]
    measured.tables["table"].obs_names = [f"other{i}" for i in range(12)]
    with pytest.raises(ValueError, match="is for other spots than the table with the counts"):
        stp.tl.calibrate(measured)


def test_dataframes_of_an_earlier_version() -> None:
    sdata = off_by(mixed(19), sd=2)
    calibration = stp.tl.calibrate(sdata)
    calibration.apply(sdata)
    table, expected = sdata.tables["table"], stp.get.prediction(sdata)
    for name, values in ((KEY, expected.X), *((f"{KEY}_{x}", expected.layers[x]) for x in ("std", "lower", "upper"))):
        table.obsm[name] = pd.DataFrame(values, index=table.obs_names, columns=["g0", "g1"])
    del table.uns[Keys.UNS][KEY]["genes"]
    read = stp.get.prediction(sdata)
    assert read.var_names.tolist() == ["g0", "g1"]
    assert set(read.layers) == {"std", "lower", "upper"}
    again = stp.tl.calibrate(sdata)
    pd.testing.assert_frame_equal(again.genes, calibration.genes)
    again.apply(sdata)
    for layer in ("lower", "upper"):
        np.testing.assert_array_equal(read.layers[layer], expected.layers[layer])
        np.testing.assert_array_equal(table.obsm[f"{KEY}_{layer}"], expected.layers[layer])


def test_bounds_go_with_the_prediction(measured: SpatialData, checkpoint: Callable[..., Path]) -> None:
    table, path = measured.tables["table"], checkpoint()
    stp.tl.predict(measured, path)
    stp.tl.calibrate(measured).apply(measured)
    assert {f"{KEY}_lower", f"{KEY}_upper"} < set(table.obsm)
    stp.tl.predict(measured, path)
    assert not {f"{KEY}_lower", f"{KEY}_upper"} & set(table.obsm)


def test_samples_are_scaled_by(measured: SpatialData, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    network, card = checkpoints.load(checkpoint())
    with torch.no_grad():
        network.head.bias += 1
    other = tmp_path / "other.safetensors"
    checkpoints.save(other, network, card)
    stp.tl.predict(measured, [checkpoint(), other], precision="float32")
    calibration = stp.tl.calibrate(measured)
    assert calibration.scaled
    np.testing.assert_allclose(calibration.genes["floor"], 0.1 * 0.5**0.5, rtol=1e-3)  # of two values that differ by 1
    assert stp.tl.calibrate(off_by(mixed(12), sd=0)).genes["floor"].tolist() == [1, 1]
    calibration.apply(measured)
    assert json.loads(measured.tables["table"].uns[Keys.UNS][KEY]["derived"]) == [
        f"{KEY}_lower",
        f"{KEY}_std",
        f"{KEY}_upper",
    ]


def test_bounds_of_others_are_kept() -> None:
    calibration, sdata = stp.tl.calibrate(off_by(mixed(12))), off_by(mixed(12))
    sdata.tables["table"].obsm[f"{KEY}_upper"] = np.ones((12, 1))
    with pytest.raises(ValueError, match=r".obsm has \['pred_m2ost_upper'\], which st_predict did not write"):
        calibration.apply(sdata)
    assert f"{KEY}_lower" not in sdata.tables["table"].obsm


def test_another_network_is_refused() -> None:
    calibration, sdata = stp.tl.calibrate(off_by(mixed(12))), section(1000 + mixed(12), name="S2")
    card = card_of(["g0", "g1"])
    predict(sdata, 1000, replace(card, hparams={"depth": 3}, training={}))
    with pytest.raises(
        ValueError, match=r"come from different networks or settings.*differ in \['hparams', 'training'\]"
    ):
        calibration.apply(sdata)
    predict(sdata, 1000, card, context={"column": "c", "spots": ["S2-0"]})
    with pytest.raises(ValueError, match=r"differ in \['context'\]"):
        calibration.report(sdata)
    predict(sdata, 1000, card, members=[{"symmetries": 8}])
    with pytest.raises(ValueError, match=r"differ in \['members'\]"):
        stp.tl.calibrate([off_by(mixed(12)), sdata])
    again = off_by(mixed(12), name="S3")
    how = {"checkpoint": "elsewhere", "precision": "bfloat16", "seed": 3}  # of no matter
    predict(again, 1000, card, members=[{"symmetries": 8, **how}], device="cuda", sections=[{"mpp": 0.5}])
    stp.tl.calibrate(sdata).apply(again)


# who may be calibrated on


def test_what_was_trained_on_is_refused() -> None:
    for training in (
        {"sections": [{"section": "S0+S1", "patients": ["P0", "P1"]}]},
        {"sections": [], "unlabelled": [{"section": "S1", "patients": ["P1"]}]},
        {"ensemble": [TRAINED, {"sections": [{"section": "S1", "patients": ["P1"]}]}]},
        {"sections": [{"section": "S1", "patients": ["D7"]}], "group_key": "donor"},  # D7 may be P1
    ):
        sdata = off_by(mixed(12))
        predict(sdata, 1000, card_of(["g0", "g1"], training=training))
        with pytest.raises(LeakageError, match=r"trained on \[\('P1', 'S1'\)\]"):
            stp.tl.calibrate(sdata)
    sdata, other = off_by(mixed(12)), off_by(mixed(12), name="S2")
    for train in (sdata, [off_by(mixed(12)), other]):  # by object, and by patient and name
        with pytest.raises(LeakageError, match=r"trained on \[\('P1', 'S1'\)\]"):
            stp.tl.calibrate(sdata, train=train)
    with pytest.raises(LeakageError, match=r"trained on \[\('P1', 'S2'\)\]"):
        stp.tl.calibrate(sdata, train=other).report(other)  # nor is it reported on
    unnamed = off_by(mixed(12), name=None)
    with pytest.raises(LeakageError, match=r"\('P1', 'spots'\).*their own names in .obs\['section'\]"):
        stp.tl.calibrate(unnamed, train=off_by(mixed(12), name=None))


def test_same_names_of_other_patients_are_no_leak() -> None:
    sdata = off_by(mixed(12), patient="P2")
    assert stp.tl.calibrate(sdata, train=off_by(mixed(12), patient="P1")).n_spots == 12


def test_unknown_training_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sdata = off_by(mixed(12))
    stp.tl.calibrate(sdata)
    assert not caplog.records
    predict(sdata, 1000, card_of(["g0", "g1"], training={}))
    stp.tl.calibrate(sdata)
    assert "card does not list training sections" in caplog.text


def test_so_they_are_if_a_later_member_of_an_ensemble_had_an_epoch_chosen(caplog: pytest.LogCaptureFixture) -> None:
    chose = {**TRAINED, "validation": [{"section": "S1", "patients": ["P1"]}]}
    sdata = off_by(mixed(12))
    ensemble = [{"model": "ridge", **TRAINED}, {"model": "m2ost", **chose}]
    predict(sdata, 1000, card_of(["g0", "g1"], model="ridge", training={"ensemble": ensemble}))
    stp.tl.calibrate(sdata)
    assert "epoch of the network was chosen on [('P1', 'S1')]" in caplog.text


@pytest.mark.parametrize(("model", "said"), [("m2ost", True), ("ridge", False)])
def test_sections_that_chose_the_epoch_are_named(caplog: pytest.LogCaptureFixture, model: str, *, said: bool) -> None:
    sdata = off_by(mixed(12))
    training = {**TRAINED, "validation": [{"section": "S1", "patients": ["P1"]}]}
    predict(sdata, 1000, card_of(["g0", "g1"], model=model, training=training))
    stp.tl.calibrate(sdata)
    assert ("epoch of the network was chosen on [('P1', 'S1')]" in caplog.text) == said


def test_report_leaves_out_what_was_calibrated_on() -> None:
    errors = np.concatenate([mixed(19), [[5, 5], [50, 5], [5, 50], [50, 50]]])
    sdata, same, other = (
        off_by(errors, n_chosen=19),
        off_by(errors[19:], name="S2"),
        off_by(errors[19:22], patient="P2"),
    )
    calibration = stp.tl.calibrate(sdata, spots="chosen")
    report = calibration.report({"a": sdata, "b": same, "c": other})
    assert report.columns.tolist() == ["section", "patient", "shared", "gene", "n_spots", "coverage", "width"]
    assert report["section"].tolist() == ["S1", "S1", "S2", "S2", "S1", "S1"]
    assert report["patient"].tolist() == ["P1", "P1", "P1", "P1", "P2", "P2"]
    assert report["shared"].tolist() == ["section", "section", "patient", "patient", "none", "none"]
    assert report["gene"].tolist() == ["g0", "g1"] * 3
    assert report["n_spots"].tolist() == [4, 4, 4, 4, 3, 3]
    assert report["coverage"].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 2 / 3, 2 / 3])
    assert report["width"].tolist() == pytest.approx([36] * 6, rel=1e-4)
    with pytest.raises(LeakageError, match="Section 'S1' has no spots left to report on"):
        stp.tl.calibrate(sdata).report([same, sdata])
    with pytest.raises(ValueError, match=r"Several sections are called \[\('P1', 'S1'\)\]"):
        calibration.report([sdata, off_by(errors)])


def test_genes_that_were_not_measured_have_no_interval_and_no_coverage() -> None:
    sdata, whole = off_by(mixed(12)), off_by(mixed(12), name="S2")
    measured = sdata.tables["table"][:, ["g1"]].copy()
    del sdata.tables["table"]
    sdata.tables["table"] = measured
    with pytest.raises(KeyError, match=r"lacks 1 of the 2 panel genes: g0\. .*missing=\"drop\""):
        stp.tl.calibrate(sdata)
    calibration = stp.tl.calibrate(sdata, missing="drop")
    assert calibration.genes["quantile"].isna().tolist() == [True, False]
    report = calibration.report(whole).set_index("gene")
    assert np.isnan(report.loc["g0", ["coverage", "width"]].astype(float)).all()
    assert report.loc["g1", "coverage"] == 1


def test_unfit_input() -> None:
    sdata = off_by(mixed(12))
    for coverage, must in ((0, "above 0"), (1, "below 1"), (90, "below 1"), (float("nan"), "a finite number")):
        with pytest.raises(ValueError, match=f"coverage must be {must}, got {coverage}"):
            stp.tl.calibrate(sdata, coverage=coverage)
    with pytest.raises(ValueError, match=r"Several sections are called \[\('P1', 'S1'\)\]"):
        stp.tl.calibrate([sdata, off_by(mixed(12))])
    with pytest.raises(KeyError, match=r"No prediction 'pred'; there are \['pred_m2ost'\]"):
        stp.tl.calibrate(sdata, key="pred")
    with pytest.raises(KeyError, match="No column 'mine'"):
        stp.tl.calibrate(sdata, spots="mine")
    sdata.tables["table"].obs["mine"] = "True"
    with pytest.raises(ValueError, match=r"'mine'\] must be true or false"):
        stp.tl.calibrate(sdata, spots="mine")
    with pytest.raises(KeyError, match="no column 'donor'"):
        stp.tl.calibrate(sdata, group_key="donor")
    sdata.tables["table"].obsm[KEY][:] = np.nan
    with pytest.raises(ValueError, match="No spot of section 'S1' has both counts and a prediction 'pred_m2ost'"):
        stp.tl.calibrate(sdata)
    frame = stp.get.frame(sdata)
    del sdata.tables["table"].uns[Keys.UNS]
    for key in (None, KEY):
        with pytest.raises(ValueError, match="gene names of 'pred_m2ost' are unknown"):
            stp.tl.calibrate(sdata, key=key)
    sdata.tables["table"].obsm[KEY] = frame
    with pytest.raises(KeyError, match="'pred_m2ost' has no card"):
        stp.tl.calibrate(sdata, key=KEY)


# files


def test_save_and_load(tmp_path: Path) -> None:
    sd = np.random.default_rng(1).uniform(0.5, 3, (19, 2))
    calibration = stp.tl.calibrate(off_by(mixed(19), sd=sd), coverage=0.8)
    path = tmp_path / "calibration.json"
    calibration.save(path)
    calibration.save(path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = Calibration.load(path)
    pd.testing.assert_frame_equal(loaded.genes, calibration.genes, check_exact=True)
    for name in ("key", "coverage", "scaled", "sections", "trained", "group_key", "card", "settings"):
        assert getattr(loaded, name) == getattr(calibration, name)
    new = off_by(mixed(30, seed=4), sd=np.ones((30, 2)), name="S2")
    pd.testing.assert_frame_equal(loaded.report(new), calibration.report(new))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(FileNotFoundError):
        Calibration.load(path)
    stp.tl.calibrate(off_by(mixed(12))).save(path)
    content = json.loads(path.read_text())
    for text, said in (
        ("{", "is not a readable calibration"),
        ("[]", "is not a readable calibration"),
        (json.dumps({**content, "format_version": 2}), "format 2 is newer than this st_predict"),
        (json.dumps({k: v for k, v in content.items() if k != "genes"}), "'genes'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            Calibration.load(path)


# simulated patients


@pytest.fixture(scope="module")
def patients() -> dict[str, SpatialData]:
    """Sections predicted by a regression on what drives the genes, fitted to P1S1: the image is read without fault."""
    simulation = stp.datasets.simulate(2, 2, shape=(640, 640), mpp=3.6, seed=0)
    card = card_of(
        simulation.genes.index, "log1p_total", training={"sections": [{"section": "P1S1", "patients": ["P1"]}]}
    )
    seen = {name: np.column_stack([t.covariates, np.ones(len(t.depth))]) for name, t in simulation.truth.items()}
    targets = {
        name: stp.pp.make_target(sdata.tables["table"], card.genes, card.target).values
        for name, sdata in simulation.sections.items()
    }
    weights = np.linalg.lstsq(seen["P1S1"], targets["P1S1"])[0]
    for name, sdata in simulation.sections.items():
        predict(sdata, seen[name] @ weights, card)
    return simulation.sections


def split(sdata: SpatialData, seed: int) -> None:
    obs = sdata.tables["table"].obs
    obs["chosen"] = np.random.default_rng(seed).random(len(obs)) < 0.5


def test_ninety_percent_of_the_same_patient_and_fewer_of_another(patients: dict[str, SpatialData]) -> None:
    held_out, shares = patients["P1S2"], []
    for seed in range(8):
        split(held_out, seed)
        report = stp.tl.calibrate(held_out, spots="chosen").report([held_out, patients["P2S1"], patients["P2S2"]])
        shares.append(report.groupby("shared")["coverage"].mean())
    mean = pd.concat(shares, axis=1).mean(axis=1)
    assert 0.88 <= mean["section"] <= 0.92
    assert mean["none"] < 0.85  # the level of each gene is another one: a standard deviation of 0.3 of its logarithm


def test_ninety_percent_of_several_sections(patients: dict[str, SpatialData]) -> None:
    both, shares = [patients["P2S1"], patients["P2S2"]], []
    for seed in range(8):
        for sdata in both:
            split(sdata, seed)
        shares.append(stp.tl.calibrate(both, spots="chosen").report(both)["coverage"].mean())
    assert 0.88 <= np.mean(shares) <= 0.92


def test_trained_sections_are_known_by_the_card(patients: dict[str, SpatialData]) -> None:
    with pytest.raises(LeakageError, match=r"\('P1', 'P1S1'\)"):
        stp.tl.calibrate(patients["P1S1"])
