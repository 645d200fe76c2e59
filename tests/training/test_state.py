"""Files that training resumes from."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest
import torch

from st_predict._training._state import find_state, intact, replaced

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write(path: Path, value: float) -> None:
    with replaced(path) as fresh:
        torch.save({"weights": torch.full((1000,), value)}, fresh)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two states, of 1 and of 2."""
    (tmp_path / "checkpoints").mkdir()
    for value in (0.0, 1.0, 2.0):
        write(tmp_path / "checkpoints" / "last.ckpt", value)
    return tmp_path


def value(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["weights"][0])  # noqa: TID251


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # a bit of a weight
    path.write_bytes(content)


def removed(path: Path) -> None:
    path.unlink()


def test_the_last_two_are_kept(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["last.ckpt", "last.previous.ckpt"]
    assert [value(folder / "checkpoints" / name) for name in names] == [2, 1]
    assert find_state(folder).name == "last.ckpt"


@pytest.mark.parametrize("spoil", [emptied, cut, flipped, removed])
def test_a_damaged_state_falls_back_to_the_one_before(
    folder: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = (folder / "checkpoints" / name for name in ("last.ckpt", "last.previous.ckpt"))
    spoil(last)
    assert not intact(last)
    with caplog.at_level(logging.WARNING):
        assert value(find_state(folder)) == 1
    assert "training resumes from the epoch before, last.previous.ckpt" in caplog.text
    spoil(previous)
    kind = FileNotFoundError if spoil is removed else ValueError
    with pytest.raises(kind, match=r"last\.ckpt"):
        find_state(folder)


def test_an_error_keeps_both(folder: Path) -> None:
    path = folder / "checkpoints" / "last.ckpt"

    def fail() -> None:
        with replaced(path) as fresh:
            fresh.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert value(path) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
