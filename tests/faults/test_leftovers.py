"""What killed processes leave beside their results is removed by the next call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from spatialdata import read_zarr
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict import checkpoints
from st_predict.models import get_spec
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

SUPERRESOLVE = """
import sys, time
from pathlib import Path
from spatialdata import read_zarr
import st_predict as stp
from st_predict import _results

def slow(parts):
    Path(sys.argv[4]).touch()
    time.sleep(600)

_results._runs = slow
stp.tl.superresolve(read_zarr(sys.argv[1]), sys.argv[2], out=sys.argv[3], tissue_only=False, device="cpu")
"""


@pytest.fixture
def istar(tmp_path: Path) -> Path:
    """A checkpoint of random weights that predicts cells."""
    hparams = dict(get_spec("istar").tiny)
    card = ModelCard(model="istar", genes=("a", "b"), crop=get_spec("istar").crop_for(hparams), hparams=hparams)
    checkpoints.save(tmp_path / "istar.safetensors", checkpoints.build(card), card)
    return tmp_path / "istar.safetensors"


@pytest.mark.slow
def test_hidden_folders_of_killed_calls_are_removed(
    warm: Any, sdata: SpatialData, istar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    set_transformation(sdata["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")
    sdata.write(tmp_path / "section.zarr")
    results = tmp_path / "results"
    results.mkdir()
    killed, living = (
        warm.start(SUPERRESOLVE, tmp_path / "section.zarr", istar, results / name, tmp_path / name)
        for name in ("killed.zarr", "living.zarr")
    )
    try:
        while not all((tmp_path / name).exists() for name in ("killed.zarr", "living.zarr")):
            assert killed.poll() is living.poll() is None
            time.sleep(0.02)
        assert len(list(results.iterdir())) == 2
        killed.kill()
        (before,) = [path for path in results.iterdir() if str(living.pid) == (path / ".owner").read_text().split()[0]]
        stp.tl.superresolve(
            read_zarr(tmp_path / "section.zarr"), istar, out=results / "new.zarr", tissue_only=False, device="cpu"
        )
        assert sorted(results.iterdir()) == sorted([before, results / "new.zarr"])
        assert any(before.rglob("zarr.json"))
    finally:
        for process in (killed, living):
            process.kill()
