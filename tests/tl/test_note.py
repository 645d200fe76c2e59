"""What whoever predicts with released weights should know is logged, once."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from st_predict import checkpoints
from st_predict.tl import _ensemble, predict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from spatialdata import SpatialData


def test_a_note_of_released_weights_is_logged_once(
    measured: SpatialData,
    checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = checkpoint()
    noted = replace(checkpoints.list_weights()[0], name="noted", version="1", note="others predict better.")
    monkeypatch.setattr(checkpoints, "list_weights", lambda: [noted])
    monkeypatch.setattr(checkpoints, "find_weights", lambda _: path)
    monkeypatch.setattr(_ensemble, "_TOLD", set())
    with caplog.at_level(logging.WARNING):
        for name in ("noted", "noted@1", str(path)):
            predict(measured, name, device="cpu", key_added="p")
    assert [record.getMessage() for record in caplog.records if "others" in record.getMessage()] == [
        "noted@1: others predict better."
    ]
