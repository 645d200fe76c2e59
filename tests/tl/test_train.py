"""Training: it learns, it repeats itself, it keeps its best, and it says what is wrong."""

from __future__ import annotations

import json
import os
import stat
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr

import st_predict as stp
from st_predict import checkpoints
from st_predict._training._fit import Adapter, _lr_factor
from st_predict.models import get_spec
from st_predict.pp import make_target
from st_predict.tl import LeakageError, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

    Config = Callable[..., TrainConfig]
    Make = Callable[..., SpatialData]

TINY = dict(get_spec("m2ost").tiny)
GENES = ("a", "b", "c", "d")


def train(sdatas: Any, out: Path, config: TrainConfig, **options: Any) -> stp.tl.TrainResult:
    known = {"panel": GENES, "out": out, "hparams": TINY, "config": config, "preset": "paper"}
    return stp.tl.train(sdatas, **{**known, **options})


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_overfits_a_few_spots(measured: SpatialData, tmp_path: Path, quick: Config) -> None:
    config = quick(epochs=60, batch_size=12, lr=1e-2, augment=False)
    result = train(measured, tmp_path / "out", config)
    loss = result.history["train_loss"]
    assert loss.iloc[-1] < 0.1 * loss.iloc[0]
    stp.tl.predict(measured, result.checkpoint)
    summary = stp.tl.evaluate(measured).summary.set_index("predictor")
    assert summary.loc["pred_m2ost", "gene_pearson"] > 0.75


def test_starts_at_the_mean_of_the_targets(measured: SpatialData, tmp_path: Path, quick: Config) -> None:
    target = make_target(measured.tables["table"], GENES, get_spec("m2ost").target).values
    spread = float(((target - target.mean(axis=0)) ** 2).mean())
    first = {
        start: train(measured, tmp_path / str(start), quick(epochs=1, lr=1e-9, start_at_mean=start)).history[
            "train_loss"
        ][0]
        for start in (True, False)
    }
    assert first[True] < spread + 1
    assert first[False] > 10 * spread + 10


def test_files_and_history(measured: SpatialData, other: Make, tmp_path: Path, quick: Config) -> None:
    old = os.umask(0o027)
    try:
        result = train(measured, tmp_path / "a" / "out", quick(epochs=3, schedule="cosine"), validation=[other("P2")])
    finally:
        os.umask(old)
    out = tmp_path / "a" / "out"
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/{name}" for name in ("best.ckpt", "last.ckpt", "last.previous.ckpt", "begun.json")}
    assert files - {"checkpoints/best.previous.ckpt"} == {"m2ost.safetensors", "history.csv"} | checkpoints
    assert result.checkpoint == out / "m2ost.safetensors"
    for name in ("m2ost.safetensors", "history.csv"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o640
    history = pd.read_csv(out / "history.csv")
    pd.testing.assert_frame_equal(history, result.history)
    assert set(history) == {"epoch", "train_loss", "val_loss", "val_mse", "val_pearson", "lr"}
    assert history["epoch"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(history["lr"], 3e-3 * (1 + np.cos(np.pi * np.arange(3) / 3)) / 2)


def test_nothing_else_changes(
    measured: SpatialData, tmp_path: Path, quick: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), dict(os.environ)  # noqa: NPY002
    before = measured.tables["table"].to_df(), measured.tables["table"].obs.copy()
    filters = list(warnings.filters)
    train(measured, tmp_path / "out", quick())
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert dict(os.environ) == states[2]
    assert warnings.filters == filters
    pd.testing.assert_frame_equal(measured.tables["table"].to_df(), before[0])
    pd.testing.assert_frame_equal(measured.tables["table"].obs, before[1])
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "temporary"]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_random_state_and_crops_are_put_back_after_an_error(
    measured: SpatialData, tmp_path: Path, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    state = torch.get_rng_state()
    stop_at(monkeypatch, epoch=1)
    with pytest.raises(Stop):
        train(measured, tmp_path / "out", quick())
    assert torch.equal(torch.get_rng_state(), state)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_seed_gives_the_same_weights(measured: SpatialData, tmp_path: Path, quick: Config) -> None:
    first = train(measured, tmp_path / "1", quick()).checkpoint
    torch.rand(3)  # the state of the user does not matter
    assert same_weights(first, train(measured, tmp_path / "2", quick()).checkpoint)
    assert not same_weights(first, train(measured, tmp_path / "3", quick(seed=1)).checkpoint)


class Stop(Exception):  # noqa: N818  # not an error of ours
    """Something breaks."""


def stop_at(monkeypatch: pytest.MonkeyPatch, *, epoch: int) -> None:
    step = Adapter.training_step

    def stopping(self: Adapter, *args: Any) -> Any:
        if self.current_epoch == epoch:
            raise Stop
        return step(self, *args)

    monkeypatch.setattr(Adapter, "training_step", stopping)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resumed_is_as_uninterrupted(
    measured: SpatialData,
    other: Make,
    tmp_path: Path,
    quick: Config,
    schedule: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = quick(epochs=4, schedule=schedule, level_drop=0.2)
    hparams = {**TINY, "drop": 0.1, "attn_drop": 0.1}
    options = {"validation": [other("P2")], "hparams": hparams}
    whole = train(measured, tmp_path / "whole", config, **options)
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=2)
        with pytest.raises(Stop):
            train(measured, tmp_path / "out", config, **options)
    assert not (tmp_path / "out" / "m2ost.safetensors").exists()
    resumed = train(measured, tmp_path / "out", config, resume=True, **options)
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    assert same_weights(resumed.checkpoint, whole.checkpoint)
    assert resumed.card == whole.card


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_nothing_in_the_folder_of_a_training_is_run(
    measured: SpatialData, other: Make, tmp_path: Path, quick: Config, name: str
) -> None:
    options = {"validation": [other("P2")]}
    train(measured, tmp_path / "out", quick(epochs=1), **options)
    file = tmp_path / "out" / "checkpoints" / name
    state = {"callbacks": Marker(tmp_path / "ran"), "state_dict": Marker(tmp_path / "ran")}
    torch.save(state, file)
    with pytest.raises(ValueError, match="holds more than tensors, numbers and texts"):
        train(measured, tmp_path / "out", quick(epochs=1), resume=True, **options)
    assert not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False)  # noqa: TID251  # this is what it would do
    assert (tmp_path / "ran").exists()


def test_resuming_needs_something(measured: SpatialData, tmp_path: Path, quick: Config) -> None:
    with pytest.raises(FileNotFoundError, match="Nothing to resume"):
        train(measured, tmp_path / "out", quick(), resume=True)


def scores(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let validation give these scores, one an epoch."""
    given = iter(values)

    def scored(*_: object) -> dict[str, float]:
        return {"val_pearson": next(given), "val_mse": 1.0}

    monkeypatch.setattr("st_predict._training._fit.validation_scores", scored)


def test_stops_early_and_keeps_the_best(
    measured: SpatialData, other: Make, tmp_path: Path, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, [0.1, 0.3, 0.2, 0.25, 0.9])
    result = train(measured, tmp_path / "out", quick(epochs=5, patience=2), validation=[other("P2")])
    assert result.history["epoch"].tolist() == [0, 1, 2, 3]
    assert result.card.training["best"]["epoch"] == 1
    with monkeypatch.context() as patch:
        scores(patch, [0.1, 0.3])
        short = train(measured, tmp_path / "short", quick(epochs=2), validation=[other("P2")])
    assert same_weights(result.checkpoint, short.checkpoint)


def test_resumes_from_the_last_epoch_though_it_was_not_the_best(
    measured: SpatialData, other: Make, tmp_path: Path, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, [0.3, 0.2, 0.1])
    train(measured, tmp_path, quick(epochs=3), validation=[other("P2")])
    (tmp_path / "m2ost.safetensors").unlink()
    scores(monkeypatch, [0.25])  # of the fourth epoch, the only one that is left to train
    result = train(measured, tmp_path, quick(epochs=4), validation=[other("P2")], resume=True)
    np.testing.assert_allclose(result.history["val_pearson"], [0.3, 0.2, 0.1, 0.25], rtol=1e-6)
    assert result.card.training["best"]["epoch"] == 0


@pytest.mark.parametrize("monitor", ["pearson", "loss"])
def test_checkpoint_is_that_of_the_best_epoch(
    measured: SpatialData, other: Make, tmp_path: Path, quick: Config, monitor: str
) -> None:
    held_out = other("P2")
    config = quick(epochs=6, lr=1e-2, monitor=monitor)
    result = train(measured, tmp_path / "out", config, validation=[held_out])
    stp.tl.predict(held_out, result.checkpoint, precision="float32")
    predicted = stp.get.frame(held_out)
    counts = np.asarray(held_out.tables["table"].X, float)
    target = np.log1p(1e6 * counts / counts.sum(axis=1, keepdims=True))
    if monitor == "pearson":
        expected = np.mean([pearsonr(predicted[gene], target[:, i]).statistic for i, gene in enumerate(GENES)])
        best = result.history.loc[result.history["val_pearson"].idxmax()]
        assert expected == pytest.approx(best["val_pearson"], abs=1e-4)
    else:
        best = result.history.loc[result.history["val_loss"].idxmin()]
        assert np.mean((predicted.to_numpy() - target) ** 2) == pytest.approx(best["val_loss"], rel=1e-4)
    assert result.card.training["best"] == pytest.approx(dict(best))
    assert result.card.training["kept"] == f"best epoch by val_{monitor}"


@pytest.mark.parametrize("monitor", ["pearson", "loss"])
def test_without_validation_the_last_epoch_is_kept(
    measured: SpatialData, other: Make, tmp_path: Path, quick: Config, monitor: str
) -> None:
    config = quick(epochs=3, lr=1e-2, monitor=monitor, patience=1)
    result = train(measured, tmp_path / "out", config)
    assert result.history["epoch"].tolist() == [0, 1, 2]
    assert not [name for name in result.history if name.startswith("val_")]
    training = checkpoints.load(result.checkpoint)[1].training
    assert training["kept"] == "last epoch"
    assert training["best"] == pytest.approx(dict(result.history.iloc[-1]))
    with pytest.MonkeyPatch.context() as patch:
        scores(patch, [0.1, 0.2, 0.3])  # so that the last epoch is the best
        validated = train(measured, tmp_path / "validated", quick(epochs=3, lr=1e-2), validation=[other("P2")])
    assert same_weights(result.checkpoint, validated.checkpoint)
    assert not (tmp_path / "out" / "checkpoints" / "best.ckpt").exists()
    # an interrupted training goes on
    result.checkpoint.unlink()
    longer = train(measured, tmp_path / "out", replace(config, epochs=4), resume=True)
    assert longer.history["epoch"].tolist() == [0, 1, 2, 3]


def test_validation_scores_sections_apart(measured: SpatialData, other: Make, tmp_path: Path, quick: Config) -> None:
    held_out = [other("P2", seed=1), other("P3", seed=2)]
    result = train(measured, tmp_path / "out", quick(epochs=1), validation=held_out)
    each = []
    for sdata in held_out:
        stp.tl.predict(sdata, result.checkpoint, precision="float32")
        table = sdata.tables["table"]
        target = make_target(table, GENES, result.card.target).values
        each += [pearsonr(stp.get.frame(sdata)[gene], target[:, i]).statistic for i, gene in enumerate(GENES)]
    assert np.mean(each) == pytest.approx(result.history["val_pearson"][0], abs=1e-4)


def test_card(measured: SpatialData, other: Make, tmp_path: Path, quick: Config) -> None:
    config = quick()
    sections = [measured, other("P2")]
    options = {"allow_shared": ["P1", "P2"], "mpp": None, "card": {"organism": "human", "license": "CC0-1.0"}}
    result = train(sections, tmp_path / "out", config, validation=[other("P1", "S2"), other("P3")], **options)
    _, card = checkpoints.load(result.checkpoint)
    assert card == result.card
    assert (card.model, card.genes, card.organism, card.license) == ("m2ost", GENES, "human", "CC0-1.0")
    assert [level.fov for level in card.crop.levels] == [64, 128, 256]
    assert json.loads(json.dumps(card.training)) == card.training
    assert [(s["section"], s["patients"], s["n_spots"]) for s in card.training["sections"]] == [
        ("S1", ["P1"], 12),
        ("S1", ["P2"], 12),
    ]
    assert [s["section"] for s in card.training["validation"]] == ["S2", "S1"]
    assert card.training["shared_patients"] == ["P1"]  # those that are, not those that may be
    assert card.training["config"]["epochs"] == 2
    assert card.training["st_predict"] == stp.__version__


def test_spots_without_counts_and_outside_the_image_are_left_out(
    measured: SpatialData, tmp_path: Path, quick: Config, caplog: pytest.LogCaptureFixture
) -> None:
    measured.tables["table"].X[[2, 5]] = 0
    shapes = measured.shapes["spots"].copy()
    shapes.geometry = [p if name not in {"s5", "s9"} else type(p)(-40, 5) for name, p in shapes.geometry.items()]
    measured.shapes["spots"] = shapes
    with caplog.at_level("WARNING", logger="st_predict"):
        result = train(measured, tmp_path / "out", quick(level_drop=0.5))
    assert result.card.training["sections"][0]["n_spots"] == 9
    assert "Dropped 2 of 12 spots" in caplog.text
    assert "2 of 12 spots of 'spots' are outside the image" in caplog.text
    assert np.isfinite(result.history["train_loss"]).all()


def test_panel_may_be_selected_by_number(measured: SpatialData, other: Make, tmp_path: Path, quick: Config) -> None:
    result = train([measured, other("P2")], tmp_path / "out", quick(epochs=1), panel=3)
    assert list(result.card.genes) == stp.pp.select_panel([measured, other("P2")], n_genes=3)


def test_sections_in_a_table_with_images_of_their_own(two_regions: SpatialData, tmp_path: Path, quick: Config) -> None:
    images = {"spots": "he", "more": "mirrored"}
    result = train(two_regions, tmp_path / "out", quick(epochs=1), image_key=images)
    assert [s["patients"] for s in result.card.training["sections"]] == [["P1"], ["P2"]]
    with pytest.raises(ValueError, match=r"several images in sdata: \['he', 'mirrored'\].*image_key="):
        train(two_regions, tmp_path / "other", quick(epochs=1))


def test_resolution(tmp_path: Path, quick: Config, measured: SpatialData) -> None:
    toy = stp.datasets.toy()
    result = train(toy, tmp_path / "out", quick(epochs=1), panel=toy.tables["table"].var_names[:4], mpp=2.4)
    assert result.card.crop.mpp == 2.4
    with pytest.raises(ValueError, match="Nothing says how many micrometres"):
        train(measured, tmp_path / "none", quick(), mpp=1.0)
    with pytest.raises(ValueError, match="mpp must be above 0, got 0"):
        train(measured, tmp_path / "none", quick(), mpp=0)


def test_results_are_never_overwritten(measured: SpatialData, tmp_path: Path, quick: Config) -> None:
    out = tmp_path / "out"
    train(measured, out, quick(epochs=1))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for leave in ("m2ost.safetensors", "history.csv", "checkpoints/last.ckpt"):
        with pytest.raises(FileExistsError, match="already holds a training"):
            train(measured, out, quick(epochs=1))
        assert {path: path.read_bytes() for path in before if path.exists()} == {
            path: content for path, content in before.items() if path.exists()
        }
        (out / leave).unlink()
    assert train(measured, out, quick(epochs=1)).checkpoint.exists()


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_folder_that_cannot_be_written(measured: SpatialData, tmp_path: Path, quick: Config, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=f"Cannot write results to '{tmp_path / place}'"):
        train(measured, tmp_path / place, quick())
    assert (tmp_path / "file").read_text() == "mine"


def test_no_permission_or_no_space(
    measured: SpatialData, tmp_path: Path, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"Cannot write results to .*: No space left on device"):
        train(measured, tmp_path / "out", quick())


def missing(s: SpatialData) -> None:
    s.tables["table"].var_names = ["a", "b", "x", "y"]


def negative(s: SpatialData) -> None:
    s.tables["table"].X[3, 1] = -1


def fractions(s: SpatialData) -> None:
    s.tables["table"].X[3, 1] = 0.5


def all_zero(s: SpatialData) -> None:
    s.tables["table"].X[:] = 0


def no_table(s: SpatialData) -> None:
    del s.tables["table"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "missing"),
        (negative, "1 count is negative.*layer="),
        (fractions, "1 count is not a whole number"),
        (all_zero, "All 12 spots have a sum of zero"),
        (no_table, "No table with counts found"),
    ],
)
def test_unfit_data(
    measured: SpatialData, tmp_path: Path, quick: Config, spoil: Callable[[SpatialData], None], message: str
) -> None:
    spoil(measured)
    with pytest.raises((ValueError, KeyError), match=message):
        train(measured, tmp_path / "out", quick())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "m3ost"}, KeyError, r"No model 'm3ost'; there are \[.*'m2ost'"),
        ({"panel": "GENE"}, TypeError, "panel must be a list of genes"),
        ({"panel": 5}, ValueError, "4 genes"),
        ({"panel": ()}, ValueError, "panel"),
        ({"group_key": "donor"}, KeyError, "no column 'donor'.*group_key="),
        ({"validation": ["P7"]}, ValueError, "No patient"),
        ({"hparams": {"size": 65}}, ValueError, "size must be a multiple of"),
        ({"hparams": {"width": 65}}, ValueError, "'m2ost' has no hyper-parameters .*'width'.*; there are"),
        ({"hparams": {"size": object()}}, TypeError, "to be stored in the card"),
    ],
)
def test_unfit_arguments(
    measured: SpatialData,
    tmp_path: Path,
    quick: Config,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        train(measured, tmp_path / "out", quick(), **options)
    assert not (tmp_path / "out").exists()


def test_gene_that_the_table_has_twice(measured: SpatialData, tmp_path: Path, quick: Config) -> None:
    measured.tables["table"].var_names = ["a", "b", "b", "d"]
    with pytest.raises(ValueError, match=r"more than (once|one)|duplicate"):
        train(measured, tmp_path / "out", quick(), panel=["a", "b", "d"])
    assert not (tmp_path / "out").exists()


def test_leakage_is_refused(measured: SpatialData, tmp_path: Path, quick: Config) -> None:
    with pytest.raises(LeakageError):
        train(measured, tmp_path / "out", quick(), validation=[measured])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "abacus"}, "Device 'abacus'"),
        ({"precision": "half"}, "precision must be"),
    ],
)
def test_machine_is_checked_before_any_work(
    measured: SpatialData, tmp_path: Path, quick: Config, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(measured, tmp_path / "out", quick(**options))
    assert not (tmp_path / "out").exists()


def test_optimizer_is_the_one_that_was_asked_for(quick: Config) -> None:
    for name, expected in {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.items():
        network = torch.nn.Linear(2, 2)
        adapter = Adapter(network, quick(optimizer=name, lr=0.5, weight_decay=0.1))
        optimizer = adapter.configure_optimizers()["optimizer"]
        assert type(optimizer) is expected
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 0.1)


def test_learning_rate_rises_and_falls(quick: Config) -> None:
    config = quick(schedule="cosine", warmup=2, epochs=10)
    factors = np.array([_lr_factor(step, config=config, steps=5) for step in range(51)])
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(factors[10:], (1 + np.cos(np.pi * np.arange(41) / 40)) / 2, atol=1e-12)
    level = quick(schedule="constant", warmup=1)
    assert [_lr_factor(step, config=level, steps=4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_resuming_something_else_is_refused(tmp_path: Path, measured: SpatialData, other: Make, quick: Config) -> None:
    train(measured, tmp_path, quick(epochs=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="started with another genes"):
        train(measured, tmp_path, quick(epochs=2), panel=GENES[::-1], resume=True)
    with pytest.raises(ValueError, match="started with another hparams"):
        train(measured, tmp_path, quick(epochs=2), hparams={**TINY, "depth": 2}, resume=True)
    with pytest.raises(ValueError, match=r"started with another config\.lr and sections"):
        stp.tl.train(other("P2"), panel=GENES, out=tmp_path, hparams=TINY, config=quick(lr=0.5), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_training_that_ended_before_its_first_epoch_is_begun_anew(
    measured: SpatialData, tmp_path: Path, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match="crops temporarily need"):
            train(measured, tmp_path, quick(lr=0.1))
    result = train(measured, tmp_path, quick(lr=0.2, epochs=1))
    assert result.card.training["config"]["lr"] == 0.2
    assert json.loads((tmp_path / "checkpoints" / "begun.json").read_text())["config.lr"] == 0.2


def test_crops_that_do_not_fit_are_refused(
    measured: SpatialData, tmp_path: Path, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"crops temporarily need 0\.0 GB"):
        train(measured, tmp_path / "out", quick())
    assert not list((tmp_path / "out").glob(".crops-*"))
