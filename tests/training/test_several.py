"""Several devices train as one with the larger batch, and write each file once."""

from __future__ import annotations

import json
import os
import socket
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._training import CropStore, Ranks, TrainConfig
from st_predict._training._fit import Adapter
from st_predict._training._loader import CropLoader, SectionLoader, for_training
from st_predict.models import get_spec
from st_predict.specs import ModelCard
from st_predict.tl import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

TIMEOUT_S = 600  # for a busy machine

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from st_predict.models import get_spec

def main():
    import spatialdata
    import st_predict as stp

    folder, out, devices, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    result = stp.tl.train(
        spatialdata.read_zarr(f"{folder}/train.zarr"),
        "m2ost",
        panel=list("abcd"),
        out=out,
        validation=spatialdata.read_zarr(f"{folder}/held_out.zarr"),
        preset="paper",
        hparams=dict(get_spec("m2ost").tiny),
        config={"epochs": 2, "batch_size": batch_size, "augment": False, "device": "cpu", "precision": "float32"},
        devices=devices,
    )
    print(json.dumps({"there": result.checkpoint.is_file(), "history": result.history.to_dict("list")}))

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folder(measured: SpatialData, other: Callable[..., SpatialData], tmp_path: Path) -> Path:
    measured.write(tmp_path / "train.zarr")
    other("P2").write(tmp_path / "held_out.zarr")
    return tmp_path


def test_two_processes_train_as_one_with_the_doubled_batch(warm: Any, folder: Path) -> None:
    """Two that this package starts, and two that another program starts, as torchrun does."""
    found = {}
    for name, devices, batch_size in (("one", 1, 6), ("two", 2, 3)):
        done = warm.run(PROGRAM, folder, folder / name, devices, batch_size, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(2):
        environment = {**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{rank}.txt").open("wb") as said:
            options = {"stdout": said.fileno(), "environment": environment}
            started.append(warm.start(PROGRAM, folder, folder / "started", 2, 3, **options))
    assert [each.wait(TIMEOUT_S) for each in started] == [0, 0]
    for rank in range(2):
        found[f"rank {rank}"] = json.loads((folder / f"{rank}.txt").read_text().splitlines()[-1])
    expected = pd.DataFrame(found["one"]["history"])
    assert len(expected) == 2
    for each in found.values():
        assert each["there"]
        pd.testing.assert_frame_equal(pd.DataFrame(each["history"]), expected, rtol=1e-4, atol=1e-5)
    weights = load_file(folder / "one" / "m2ost.safetensors")
    for name in ("two", "started"):
        for key, values in load_file(folder / name / "m2ost.safetensors").items():
            np.testing.assert_allclose(values, weights[key], atol=1e-5, err_msg=key)
        files = sorted(str(path.relative_to(folder / name)) for path in (folder / name).rglob("*"))
        assert files == sorted(str(path.relative_to(folder / "one")) for path in (folder / "one").rglob("*"))
        assert len(pd.read_csv(folder / name / "history.csv")) == 2


def stored(n: int, sections: int = 1) -> CropStore:
    return CropStore(
        crops=(),
        target=np.arange(n, dtype=np.float32)[:, None],
        section=np.arange(n) * sections // n,
        grid=None,
        xy_um=None,
    )


@pytest.mark.parametrize(("n", "steps"), [(24, 4), (25, 4), (26, 5), (29, 5)])
def test_processes_share_the_batch_of_one(n: int, steps: int) -> None:
    """Two batches of 3 are one of 6; a rest of a single spot is for no process to train on."""
    one = [batch.index.tolist() for batch in CropLoader(stored(n), 6, seed=3)]
    two = [[batch.index.tolist() for batch in CropLoader(stored(n), 3, 3, rank, 2)] for rank in range(2)]
    assert len(two[0]) == len(two[1]) == len(CropLoader(stored(n), 3, 3, 0, 2)) == steps
    assert [first + second for first, second in zip(*two, strict=True)] == one[:steps]


@pytest.mark.parametrize("world", [2, 3])
def test_means_of_uneven_shares_are_the_mean_of_the_step(world: int) -> None:
    """Gradients of processes are averaged, so that a process with fewer spots counts less."""
    n, size = 11, 2
    loaders = [CropLoader(stored(n), size, 3, rank, world) for rank in range(world)]
    shares = list(zip(*loaders, strict=True))
    one = list(CropLoader(stored(n), size * world, seed=3))
    assert {len(batch) for batches in shares for batch in batches} == {1, 2}
    for step, batches in enumerate(shares):
        means = [loader.weight(step) * float(b.target.mean()) for loader, b in zip(loaders, batches, strict=True)]
        assert np.mean(means) == pytest.approx(float(one[step].target.mean()))
    sections = [SectionLoader(stored(10, sections=3), 0, 2, 1, rank, 2) for rank in range(2)]
    assert [loader.weight(0) for loader in sections] == [4 / 3, 2 / 3]


def test_the_loss_of_a_process_is_weighted_before_its_gradient() -> None:
    loader = CropLoader(stored(5), 3, None, 1, 2)
    (batch,) = loader
    loss = torch.tensor(2.0)
    network = torch.nn.Linear(1, 1)
    adapter = Adapter(network, TrainConfig(augment=False), loss=lambda *_: loss, loader=loader)  # type: ignore[arg-type]
    with warnings.catch_warnings(action="ignore"):  # of Lightning, which logs without a trainer
        assert float(adapter.training_step(batch, 0)) == pytest.approx(2 * 2 * 2 / 5)


def test_processes_and_devices_must_agree() -> None:
    """Shares for processes that do not exist would be lost."""
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    assert Ranks.of(2, 1, "auto", environment=environment).world == 2
    with pytest.raises(InvalidValueError, match="2 processes were started, but devices and num_nodes name 4"):
        Ranks.of(4, 1, "auto", environment=environment)


def test_processes_share_the_sections_of_a_step() -> None:
    store = stored(20, sections=5)
    one = [batch.index.tolist() for batch in SectionLoader(store, per_batch=2, seed=1)]
    two = [[batch.index.tolist() for batch in SectionLoader(store, 0, 1, 1, rank, 2)] for rank in range(2)]
    assert [first + second for first, second in zip(*two, strict=True)] == one[:2]  # the fifth has no partner


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 0, False)),
        ({"RANK": "5", "LOCAL_RANK": "1"}, (5, 1, True)),  # torchrun
        ({"NODE_RANK": "2", "LOCAL_RANK": "1"}, (9, 1, True)),
        ({"SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_NTASKS": "8"}, (6, 2, True)),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}, (0, 0, False)),  # a job of one task
    ],
)
def test_the_number_of_a_process(environment: dict[str, str], expected: tuple[int, int, bool]) -> None:
    ranks = Ranks.of(4, 1, "auto", environment=environment)
    assert (ranks.rank, ranks.local_rank, ranks.external) == expected
    assert ranks.strategy == "ddp"
    assert ranks.writes == (expected[0] == 0)
    assert Ranks.of(1, 1, "auto", environment=environment).writes  # every process of its own training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices must be"),
        ({"devices": [0, 0]}, "must be different indices"),
        ({"devices": 2, "strategy": "fsdp"}, "strategy must be"),
        ({"num_nodes": 2}, "Nothing has started this program on 2 machines"),
        ({"devices": 2, "model": "ridge"}, "fitted in closed form, on one device. Leave out devices="),
        ({"devices": 2, "config": {"device": "cuda:1"}}, "cuda:1"),
    ],
)
def test_what_cannot_be(measured: SpatialData, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        train(measured, panel=list("abcd"), out=tmp_path / "out", **{"model": "m2ost", **options})
    assert not (tmp_path / "out").exists()


def test_an_epoch_needs_a_batch_for_each() -> None:
    spec = get_spec("m2ost")
    card = ModelCard(model="m2ost", genes=("a",), crop=spec.crop_for(spec.tiny), hparams=dict(spec.tiny))
    with pytest.raises(InvalidValueError, match="fewer batches than there are devices, 3"):
        for_training(stored(2), card, TrainConfig(), Ranks(devices=3))
