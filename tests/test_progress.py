"""Progress bars: shown where a person looks on, as the caller asks, and nowhere else."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

import st_predict as stp
from st_predict import _files, _progress
from st_predict.models import get_spec
from st_predict.specs import CropSpec, LevelSpec

QUICK = {"epochs": 1, "batch_size": 6, "device": "cpu", "precision": "float32"}
SMALL = dict(get_spec("m2ost").tiny)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Show bars without waiting for two seconds."""
    monkeypatch.setattr(_progress, "DELAY_S", 0.0)


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "slide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def grey(crops):
    return crops.float().mean((2, 3))


def calls(measured, checkpoint, tmp_path, png):
    """Every function with an argument ``progress``, and a word of the bar it shows on small data."""
    crop = CropSpec(levels=(LevelSpec(size=8),))
    train = partial(stp.tl.train, [measured], "m2ost", panel=list("abcd"), hparams=SMALL, config=QUICK)
    return {
        "predict": (partial(stp.tl.predict, measured, checkpoint(), mpp=0.5), "Predicting with m2ost"),
        "embed": (partial(stp.tl.embed, measured, grey, crop=crop, key_added="grey", cache=False), "Describing crops"),
        "train": (partial(train, out=tmp_path / "trained"), "Training"),
        "train_reads": (partial(train, out=tmp_path / "read"), "Reading crops"),
        "find_tissue": (partial(stp.pp.find_tissue, measured), "Finding tissue"),
        "select_panel": (partial(stp.pp.select_panel, [measured], n_genes=1, method="spatial", fdr=1), "Testing genes"),
        "read_image": (partial(stp.io.read_image, png, cache=tmp_path / "cache"), "Storing slide.png"),
        "simulate": (partial(stp.datasets.simulate, 1, 1, n_genes=4, shape=(400, 400)), "Simulating"),
    }


@pytest.mark.parametrize(
    "name", ["predict", "embed", "train", "train_reads", "find_tissue", "select_panel", "read_image", "simulate"]
)
def test_the_caller_decides(name, measured, checkpoint, tmp_path, png, capfd):
    call, words = calls(measured, checkpoint, tmp_path, png)[name]
    call(progress=True)
    assert words in capfd.readouterr().err


@pytest.mark.parametrize("name", ["predict", "train", "select_panel"])
@pytest.mark.parametrize("progress", [None, False])
def test_a_pipe_gets_no_bar(name, progress, measured, checkpoint, tmp_path, png, capfd):
    call, _ = calls(measured, checkpoint, tmp_path, png)[name]
    call(progress=progress)
    said = capfd.readouterr()
    assert not [c for c in said.out + said.err if ord(c) < 32 and c != "\n"]


@pytest.mark.parametrize("progress", [None, True, False])
def test_a_terminal_gets_bars_unless_the_caller_says_no(progress, measured, checkpoint, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    stp.tl.predict(measured, checkpoint(), mpp=0.5, progress=progress)
    assert ("12/12" in terminal.getvalue()) is (progress is not False)


def test_a_bar_of_less_than_two_seconds_does_not_appear(monkeypatch):
    monkeypatch.undo()
    assert _progress.DELAY_S == 2
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(_progress.track(range(3), "Work", 3, unit="part")) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_a_download_counts_bytes(loopback, tmp_path, capfd):
    content = b"weights" * 100_000
    loopback.files["/w.bin"] = content
    url = f"{loopback.url}/w.bin"
    with _progress.shown(progress=True):
        _files.download(url, tmp_path / "w.bin", sha256=hashlib.sha256(content).hexdigest(), n_bytes=len(content))
    said = capfd.readouterr().err
    assert "Downloading w.bin" in said
    assert "700k/700k" in said


def test_the_answer_holds_for_what_a_verb_calls_and_not_longer(capfd):
    @_progress.shows_progress
    def inner(*, progress=None):
        list(_progress.track(range(2), "Inner", 2, unit="part"))

    @_progress.shows_progress
    def outer(*, progress=None):
        inner()

    outer(progress=True)
    assert "Inner" in capfd.readouterr().err
    inner()
    assert capfd.readouterr().err == ""
    assert not _progress.is_wanted()


def test_an_error_closes_the_bar():
    def broken():
        yield 1
        raise ValueError("broken")

    with _progress.shown(progress=True), pytest.raises(ValueError, match="broken"):
        list(_progress.track(broken(), "Work", 2, unit="part"))
    assert not _progress._bars()._instances


def test_no_thread_watches_the_bars():
    import threading

    before = threading.active_count()
    with _progress.shown(progress=True), _progress.bar("Work", 2, unit="part"):
        assert threading.active_count() == before


@pytest.mark.parametrize("value", ["yes", 1.5, [True]])
def test_another_answer_is_refused(value, measured):
    with pytest.raises(ValueError, match="progress"):
        stp.pp.find_tissue(measured, progress=value)


def test_training_shows_scores_behind_its_bar(measured, other, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stp.tl.train(
        [measured],
        "m2ost",
        panel=list("abcd"),
        validation=[other("P2")],
        hparams=SMALL,
        config={**QUICK, "epochs": 2},
        out=tmp_path / "run",
        progress=True,
    )
    said = capfd.readouterr().err
    assert "epoch=2/2" in said
    assert "val_pearson=" in said
    assert "4/4" in said  # 2 epochs of 12 spots in batches of 6


def test_one_line_shows_what_is_done(measured, caplog):
    with caplog.at_level(logging.INFO, logger="st_predict"):
        stp.pp.find_tissue(measured)
    assert "is tissue" in caplog.text


def test_downloads_from_the_hub_follow():
    from huggingface_hub.utils import are_progress_bars_disabled

    assert not are_progress_bars_disabled()
    with _progress.shown(progress=False), _progress.hub_bars():
        assert are_progress_bars_disabled()
    with _progress.shown(progress=True), _progress.hub_bars():
        assert not are_progress_bars_disabled()
    assert not are_progress_bars_disabled()
