"""The folder of a training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from st_predict import checkpoints
from st_predict._training import Run, TrainConfig
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

SPEC = get_spec("m2ost")
CARD = ModelCard(model="m2ost", genes=("a", "b"), crop=SPEC.crop_for(SPEC.tiny), hparams=dict(SPEC.tiny))


def test_the_history_is_the_table_that_pandas_would_write(tmp_path: Path) -> None:
    history = [{"epoch": 0, "train_loss": 1 / 3, "lr": 1e-4}, {"epoch": 1, "train_loss": float("nan"), "val": 2.0}]
    run = Run.create(tmp_path / "out", SPEC, resume=False)
    assert run.save(checkpoints.build(CARD), CARD, history) == tmp_path / "out" / "m2ost.safetensors"
    pd.DataFrame(history).to_csv(tmp_path / "pandas.csv", index=False)
    assert (tmp_path / "out" / "history.csv").read_bytes() == (tmp_path / "pandas.csv").read_bytes()


def test_a_note_names_what_changed(tmp_path: Path) -> None:
    config = TrainConfig(epochs=2)
    Run.create(tmp_path, SPEC, resume=False).note(CARD, config, sections={"sections": ["S1"]})
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    resumed = Run.create(tmp_path, SPEC, resume=True)
    resumed.note(CARD, TrainConfig(epochs=9, device="cuda"), sections={"sections": ["S1"]})  # these may change
    with pytest.raises(ValueError, match=r"started with another config\.lr and sections"):
        resumed.note(CARD, TrainConfig(epochs=2, lr=1.0), sections={"sections": ["S2"]})
    with pytest.raises(FileExistsError, match="already holds a training"):
        Run.create(tmp_path, SPEC, resume=False)


def test_a_training_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    """Its note lacks fields of the configuration that were added since."""
    Run.create(tmp_path, SPEC, resume=False).note(CARD, TrainConfig(), sections={})
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    path = tmp_path / "checkpoints" / "begun.json"
    note = json.loads(path.read_text())
    assert note.pop("config.smooth") is False
    path.write_text(json.dumps(note))
    resumed = Run.create(tmp_path, SPEC, resume=True)
    resumed.note(CARD, TrainConfig(), sections={})
    with pytest.raises(ValueError, match=r"started with another config\.smooth"):
        resumed.note(CARD, TrainConfig(smooth=True), sections={})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff", b"[]"])
def test_a_damaged_note_is_named(tmp_path: Path, content: bytes) -> None:
    Run.create(tmp_path, SPEC, resume=False)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    note = tmp_path / "checkpoints" / "begun.json"
    with pytest.raises(FileNotFoundError, match=r"Nothing to resume: .*begun\.json"):
        Run.create(tmp_path, SPEC, resume=True).note(CARD, TrainConfig(), sections={})
    note.write_bytes(content)
    with pytest.raises(ValueError, match=r"begun\.json' is damaged.*Start anew in another folder\.$"):
        Run.create(tmp_path, SPEC, resume=True).note(CARD, TrainConfig(), sections={})
