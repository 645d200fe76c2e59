"""State of the process after calls, and calls from forked and spawned processes, threads, an event loop and a notebook."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from spatialdata import read_zarr
from spatialdata.transformations import Scale, set_transformation

import st_predict as stp
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from spatialdata import SpatialData

TIMEOUT_S = 240  # for a busy machine
CONFIG = {"epochs": 1, "batch_size": 6, "device": "cpu", "precision": "float32"}

AS_BEFORE = """
import logging, random, sys, warnings
from pathlib import Path
import numpy as np
import torch
from spatialdata import read_zarr
import st_predict as stp
from st_predict import checkpoints
from st_predict.models import get_spec

torch.set_num_threads(2)
folder, checkpoint = Path(sys.argv[1]), sys.argv[2]
sdata, held_out = read_zarr(folder / "section.zarr"), read_zarr(folder / "held_out.zarr")
cpu = dict(device="cpu", precision="float32")
config = dict(epochs=1, batch_size=6, **cpu)
KNOWN = {"root", "torch", "st_predict", "spatialdata", "numba", "lightning.pytorch.utilities.rank_zero"}

def logs():
    found = {name: logging.getLogger(name) for name in KNOWN if name in logging.root.manager.loggerDict or name == "root"}
    return {name: (log.level, log.disabled, log.propagate, list(log.handlers)) for name, log in found.items()}

def state():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "filters": list(warnings.filters),
        "grad": torch.is_grad_enabled(),
        "products": torch.get_float32_matmul_precision(),
        "errors": np.geterr(),
        "logs": logs(),
    }

def train(model, **more):
    hparams = dict(get_spec(model).tiny)
    return stp.tl.train(sdata, model, panel=list("abcd"), out=folder / model, preset="paper", hparams=hparams, config=config, **more)

def check(name, call):
    before = state()
    result = call()
    after = state()
    for key in before:
        if key == "logs":
            assert before[key].items() <= after[key].items(), (name, key)
        else:
            assert before[key] == after[key], (name, key)
    print(name)
    return result

check("load", lambda: checkpoints.load(checkpoint))
check("predict", lambda: stp.tl.predict(sdata, checkpoint, **cpu))
check("evaluate", lambda: stp.tl.evaluate(sdata))
check("calibrate", lambda: stp.tl.calibrate(sdata))
check("train", lambda: train("m2ost", validation=held_out))
istar = check("istar", lambda: train("istar"))
check("superresolve", lambda: stp.tl.superresolve(sdata, istar, tissue_only=False, **cpu))
check("embed", lambda: stp.tl.embed(sdata, "rgb", device="cpu"))
check("mlp", lambda: stp.tl.predict(sdata, train("mlp"), key_added="mlp", **cpu))
"""

FORK = """
import os, sys
from multiprocessing import get_context
from spatialdata import read_zarr
import torch
import st_predict as stp

torch.set_num_threads(2)
sdata = read_zarr(sys.argv[1])

def predict(key="pred"):
    stp.tl.predict(sdata, sys.argv[2], key_added=key, device="cpu", precision="float32")
    return sdata.tables["table"].obsm[key]

expected = predict()
with get_context("fork").Pool(1) as pool:
    assert (pool.apply(predict, ("again",)) == expected).all()
assert torch.get_num_threads() == 2
"""


@pytest.fixture
def stored(measured: SpatialData, other: Callable[[str], SpatialData], tmp_path: Path) -> Path:
    """Folder of two stored sections, of 0.5 um/px."""
    for name, sdata in (("section", measured), ("held_out", other("P2"))):
        set_transformation(sdata["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")
        sdata.write(tmp_path / f"{name}.zarr")
    return tmp_path


@pytest.fixture
def run(warm: Any) -> Callable[..., str]:
    """Runs code in a process that has done nothing yet; one that hangs is an error."""

    def code(program: str, *arguments: object) -> str:
        result = warm.run(program, *arguments, timeout=TIMEOUT_S)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return code


def predict(section: Path, checkpoint: Path) -> NDArray[np.float32]:
    sdata = read_zarr(section)
    stp.tl.predict(sdata, checkpoint, device="cpu", precision="float32")
    return sdata.tables["table"].obsm["pred_m2ost"]


def test_global_state_is_as_before(
    stored: Path, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, run: Callable[..., str]
) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(stored / "cache"))
    done = run(AS_BEFORE, stored, checkpoint())
    assert done.split()[-1] == "mlp"
    assert len(done.split()) == 9


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_a_forked_process_predicts_the_same(
    stored: Path, checkpoint: Callable[..., Path], run: Callable[..., str]
) -> None:
    run(FORK, stored / "section.zarr", checkpoint())


@pytest.mark.slow
def test_a_spawned_process_predicts_the_same(stored: Path, checkpoint: Callable[..., Path]) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(predict, stored / "section.zarr", checkpoint()).result(timeout=TIMEOUT_S)
    np.testing.assert_array_equal(found, predict(stored / "section.zarr", checkpoint()))


def test_threads_predict_the_same(stored: Path, checkpoint: Callable[..., Path]) -> None:
    paths = [checkpoint(), checkpoint(mpp=0.5)]
    expected = [predict(stored / "section.zarr", path) for path in paths]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predict, [stored / "section.zarr"] * 8, paths * 4))
    for i, prediction in enumerate(found):
        np.testing.assert_array_equal(prediction, expected[i % 2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_running_event_loop(stored: Path, checkpoint: Callable[..., Path]) -> None:
    """As in a kernel of Jupyter, whose cells run inside of a loop."""

    async def cell() -> NDArray[np.float32]:
        sdata = read_zarr(stored / "section.zarr")
        options = {"panel": list("abcd"), "preset": "paper", "hparams": dict(get_spec("m2ost").tiny)}
        stp.tl.train(sdata, "m2ost", out=stored / "out", config=CONFIG, **options)
        return predict(stored / "section.zarr", checkpoint())

    np.testing.assert_array_equal(asyncio.run(cell()), predict(stored / "section.zarr", checkpoint()))


# Stands for the kernel, which is a fork of a process that has imported the package.
KERNEL = """
import importlib.util, os, sys

specification = importlib.util.spec_from_file_location("warm", sys.argv[1])
warm = importlib.util.module_from_spec(specification)
specification.loader.exec_module(warm)
environment = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}  # the fork has another
code = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
sys.exit(warm.Warm(address=sys.argv[2]).run(code, *sys.argv[3:], environment=environment).returncode)
"""


@pytest.fixture
def manager(warm: Any) -> type:
    """What starts such a kernel."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = ["-c", KERNEL, warm.file, warm.address] if warm.can_fork else ["-m", "ipykernel_launcher"]
    warm.run("")  # it listens from now on

    class Manager(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=[sys.executable, *command, "-f", "{connection_file}"])

    return Manager


def test_a_notebook(stored: Path, checkpoint: Callable[..., Path], manager: type) -> None:
    import nbclient
    import nbformat

    code = f"""
from spatialdata import read_zarr
import st_predict as stp
sdata = read_zarr({str(stored / "section.zarr")!r})
stp.tl.train(sdata, "m2ost", panel=list("abcd"), out={str(stored / "out")!r}, preset="paper",
             hparams={dict(get_spec("m2ost").tiny)!r}, config={CONFIG!r})
stp.tl.predict(sdata, {str(checkpoint())!r}, device="cpu", precision="float32")
print(repr(float(sdata.tables["table"].obsm["pred_m2ost"].sum())))
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=TIMEOUT_S, kernel_manager_class=manager).execute()
    printed = [out.text for out in notebook.cells[0].outputs if out.output_type == "stream" and out.name == "stdout"]
    assert float(printed[-1]) == pytest.approx(float(predict(stored / "section.zarr", checkpoint()).sum()))
