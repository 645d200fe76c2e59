"""Trainings that are killed, interrupted, moved, raced and that diverge: real processes and real signals."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from spatialdata import read_zarr

import st_predict as stp
from st_predict._training._fit import Adapter
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

    from st_predict.tl import TrainConfig

    Config = Callable[..., TrainConfig]

pytestmark = pytest.mark.slow

GENES = ("a", "b", "c", "d")
TINY = dict(get_spec("m2ost").tiny)
EPOCHS = 12
CONFIG = {"epochs": EPOCHS, "batch_size": 6, "lr": 3e-3, "device": "cpu", "precision": "float32"}
TRAIN = """
import os, sys, time
from pathlib import Path
from spatialdata import read_zarr
import st_predict as stp
from st_predict._training._fit import Adapter

step = Adapter.training_step

def slow(self, *args):
    if self.current_epoch == {pause}:
        Path({reached!r}).touch()
        time.sleep(600)
    return step(self, *args)

Adapter.training_step = slow
held_out = [read_zarr(path) for path in {validation!r}]
stp.tl.train(read_zarr({section!r}), "m2ost", out={out!r}, validation=held_out or None, **{options!r})
"""


def options(**changes: Any) -> dict[str, Any]:
    """Arguments of a training."""
    return {"panel": GENES, "preset": "paper", "hparams": TINY, "config": CONFIG, **changes}


@pytest.fixture
def section(measured: SpatialData, tmp_path: Path) -> Path:
    """A stored section of one patient."""
    measured.write(tmp_path / "section.zarr")
    return tmp_path / "section.zarr"


@pytest.fixture
def held_out(other: Callable[[str], SpatialData], section: Path, tmp_path: Path) -> Path:
    """A stored section of another patient."""
    other("P2").write(tmp_path / "held_out.zarr")
    return tmp_path / "held_out.zarr"


@pytest.fixture
def start(warm: Any) -> Callable[..., Any]:
    """Starts a training; returns when it is within epoch ``pause``, where it stays."""

    def training(section: Path, out: Path, *, pause: int, validation: tuple[Path, ...] = ()) -> Any:
        reached, said = out.with_suffix(".reached"), out.with_suffix(".said")
        code = TRAIN.format(
            section=str(section),
            validation=[str(path) for path in validation],
            out=str(out),
            pause=pause,
            reached=str(reached),
            options=options(),
        )
        with said.open("w") as file:
            process = warm.start(code, stderr=file.fileno())
        while not reached.exists():
            assert process.poll() is None, said.read_text()
            time.sleep(0.02)
        return process

    return training


def same(one: Any, other: Any) -> bool:
    first, second = load_file(one.checkpoint), load_file(other.checkpoint)
    pd.testing.assert_frame_equal(one.history, other.history)
    equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return equal and one.card == other.card


def test_a_killed_training_that_was_moved_resumes_bit_for_bit(
    section: Path, held_out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, start: Callable[..., Any]
) -> None:
    out, moved, sdata = tmp_path / "out", tmp_path / "moved", read_zarr(section)
    validated = {"validation": read_zarr(held_out)}
    expected = stp.tl.train(sdata, "m2ost", out=tmp_path / "whole", **options(**validated))
    assert expected.card.training["best"]["epoch"] < EPOCHS - 1  # else the last weights were the best
    start(section, out, pause=EPOCHS - 1, validation=(held_out,)).kill()
    assert [path.name for path in out.glob(".lock")] == [".lock"]
    (crops,) = out.glob(".crops-*")
    assert any(crops.rglob("*.npy"))
    shutil.move(out, moved)
    (moved / "checkpoints" / "last.ckpt").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        resumed = stp.tl.train(sdata, "m2ost", out=moved, resume=True, **options(**validated))
    assert "last.ckpt is damaged; training resumes from the epoch before, last.previous.ckpt" in caplog.text
    assert same(resumed, expected)
    assert not out.exists()
    left = {path.name for path in moved.iterdir()}
    assert left == {"m2ost.safetensors", "history.csv", "checkpoints"}


def test_weights_of_the_best_epoch_are_not_those_of_a_later_one(section: Path, held_out: Path, tmp_path: Path) -> None:
    sdata, validated = read_zarr(section), {"validation": read_zarr(held_out)}
    result = stp.tl.train(sdata, "m2ost", out=tmp_path / "out", **options(**validated))
    checkpoints = tmp_path / "out" / "checkpoints"
    best = result.card.training["best"]["epoch"]
    # as if a later epoch had been the best, and the training had been killed before its last.ckpt
    (checkpoints / "best.ckpt").replace(checkpoints / "best.previous.ckpt")
    shutil.copy(checkpoints / "last.ckpt", checkpoints / "best.ckpt")
    assert best < EPOCHS - 1
    result.checkpoint.rename(tmp_path / "expected.safetensors")
    again = stp.tl.train(sdata, "m2ost", out=tmp_path / "out", resume=True, **options(**validated))
    assert load_file(again.checkpoint).keys() == load_file(tmp_path / "expected.safetensors").keys()
    for name, weights in load_file(tmp_path / "expected.safetensors").items():
        assert torch.equal(load_file(again.checkpoint)[name], weights)
    (checkpoints / "best.previous.ckpt").unlink()
    with pytest.raises(ValueError, match=rf"The weights of the best epoch, {best}, are not in .*best\.ckpt"):
        stp.tl.train(sdata, "m2ost", out=tmp_path / "out", resume=True, **options(**validated))


def test_two_trainings_do_not_share_a_folder(section: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    out, sdata = tmp_path / "out", read_zarr(section)
    first = start(section, out, pause=0)
    try:
        (crops,) = out.glob(".crops-*")
        with pytest.raises(FileExistsError, match=rf"{re.escape(str(out))}.*process {first.pid} on host .*, since 20"):
            stp.tl.train(sdata, "m2ost", out=out, **options())
        assert crops.exists()
    finally:
        first.kill()
    result = stp.tl.train(sdata, "m2ost", out=out, **options(config={**CONFIG, "epochs": 1}))
    assert result.checkpoint.exists()
    assert not crops.exists()


def test_states_are_written_beside_their_place(section: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))  # on another file system, moving is copying
    stp.tl.train(read_zarr(section), "m2ost", out=tmp_path / "out", **options(config={**CONFIG, "epochs": 1}))


@pytest.mark.parametrize("content", ["", "cut", "other", "text"])
def test_damaged_folders_say_so(section: Path, tmp_path: Path, content: str) -> None:
    sdata, short = read_zarr(section), {**CONFIG, "epochs": 1}
    stp.tl.train(sdata, "m2ost", out=tmp_path / "out", **options(config=short))
    last = tmp_path / "out" / "checkpoints" / "last.ckpt"
    if content == "other":
        torch.save({"weights": torch.zeros(3)}, last)
    else:
        last.write_bytes(last.read_bytes()[:-50] if content == "cut" else content.encode())
    with pytest.raises(ValueError, match=r"last\.ckpt.*(damaged|lacks).* Start anew in another folder\.$"):
        stp.tl.train(sdata, "m2ost", out=tmp_path / "out", resume=True, **options(config={**short, "epochs": 2}))
    assert not (tmp_path / "out" / ".lock").exists()


def test_ctrl_c_stays_a_keyboard_interrupt(
    section: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    sdata, config = read_zarr(section), {**CONFIG, "epochs": 4}
    expected = stp.tl.train(sdata, "m2ost", out=tmp_path / "whole", **options(config=config))
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, ours))
    step, handlers = Adapter.training_step, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def pressing(self: Adapter, *args: Any) -> Any:
        if self.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "training_step", pressing)
        with pytest.raises(KeyboardInterrupt):
            stp.tl.train(sdata, "m2ost", out=tmp_path / "out", **options(config=config))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoints"}
    assert same(stp.tl.train(sdata, "m2ost", out=tmp_path / "out", resume=True, **options(config=config)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer": "sgd", "lr": 1e6},
            r"(loss|weight '.*') is not finite at epoch \d+, step \d+, with a learning rate of 1e\+06",
        ),
        ({"optimizer": "sgd", "lr": 1e37}, r"(loss|weight '.*') is not finite at epoch 0, step \d+, .* of 1e\+37"),
        ({"weight_decay": 1e37, "optimizer": "adamw"}, r"(loss|weight '.*') is not finite at epoch 0, step \d+, "),
    ],
)
@pytest.mark.parametrize("validated", [False, True])
def test_diverged_training_stops(
    section: Path, held_out: Path, tmp_path: Path, change: dict[str, Any], message: str, *, validated: bool
) -> None:
    more = {"validation": read_zarr(held_out)} if validated else {}
    advice = r".* Start anew in another folder with a smaller 'lr', or with 'clip' or 'warmup', in config=\."
    with pytest.raises(ValueError, match=f"^Training diverged: the {message}{advice}"):
        stp.tl.train(read_zarr(section), "m2ost", out=tmp_path / "out", **options(config={**CONFIG, **change}, **more))
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("value", [float("inf"), 1e300])  # the latter is infinite in float32
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_infinite_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        stp.tl.TrainConfig(**{name: value})
