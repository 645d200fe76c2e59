"""Fixtures that every part of the tests shares.

What takes long to import is imported by the fixtures that need it: the process that hands tests out to workers runs none.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
import sys
import threading
from collections import Counter
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP: threads that wait by spinning slow the tests of another worker down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData
    from spatialdata import SpatialData

    from st_predict.tl import TrainConfig


settings.register_profile("patient", deadline=None)  # the machine may be busy
settings.load_profile("patient")

LONG_S = 60.0
"""A run that takes longer says which files took most of it."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[Any]:
    """Take modules and tests out of garbage collection, which then takes a hundredth of a second instead of a whole one."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_runtest_teardown() -> None:
    """Give torch its threads again: packages that compile their code change the number, and sums with it."""
    torch, asked = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None and asked.isdecimal() and torch.get_num_threads() != int(asked):
        torch.set_num_threads(int(asked))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the ten files that took longest, so that the suite stays quick."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):  # of a test; there are others, of warnings
                seconds[report.nodeid.partition("::")[0]] += report.duration
    if seconds.total() < LONG_S:
        return
    terminalreporter.section(f"slowest files, of {seconds.total():.0f} s in all workers")
    for name, took in seconds.most_common(10):
        terminalreporter.write_line(f"{took:7.1f} s  {name}")


GENES = tuple("abcd")


# Some of it is imported by the first training, or by the first that is read.
PRELOAD = """
import contextlib, importlib
names = "lightning.pytorch sklearn.linear_model spatialdata timm statsmodels.api st_predict.cli st_predict.tl"
for name in f"{names} aiobotocore.session distributed numba requests s3fs skimage.transform".split():
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
"""


def _warm() -> Any:
    """The module ``warm.py``."""
    specification = importlib.util.spec_from_file_location("warm", Path(__file__).with_name("warm.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Callable[[str], Any]]:
    """Makes what runs programs in forks of a process that has run some code."""
    made, module = [], _warm()

    def make(preload: str) -> Any:
        made.append(module.Warm(preload))
        return made[-1]

    yield make
    for forks in made:
        forks.close()


@pytest.fixture(scope="session")
def warm(fork_server: Callable[[str], Any]) -> Any:
    """Runs programs in forks of a process that has imported the package."""
    return fork_server(PRELOAD)


@pytest.fixture
def sdata() -> SpatialData:
    """A 400 x 600 image in three scales whose red channel is x // 4 and green is y // 4, and 12 spots."""
    return copy.deepcopy(_gradients())


@cache
def _gradients() -> SpatialData:
    import geopandas as gpd
    import pandas as pd
    from anndata import AnnData
    from shapely import Point
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    yy, xx = np.mgrid[:400, :600]
    image = np.stack([xx // 4, yy // 4, np.zeros_like(xx)]).astype(np.uint8)
    # shapes are stored in half-resolution coordinates, to check that transformations are applied
    centres = [(x / 2, y / 2) for y in (50, 200, 390) for x in (10, 150, 300, 590)]
    gdf = gpd.GeoDataFrame({"radius": 10.0}, geometry=[Point(c) for c in centres], index=[f"s{i}" for i in range(12)])
    shapes = ShapesModel.parse(gdf, transformations={"global": Scale([2.0, 2.0], axes=("x", "y"))})
    obs = pd.DataFrame({"region": "spots", "instance": gdf.index}, index=gdf.index)
    obs["region"] = obs["region"].astype("category")
    adata = AnnData(np.zeros((12, 4), np.float32), obs=obs)
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    img = Image2DModel.parse(image, dims=("c", "y", "x"), scale_factors=[2, 2], c_coords=["r", "g", "b"])
    return SpatialData(images={"he": img}, shapes={"spots": shapes}, tables={"table": table})


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put the hub of Hugging Face at another address, or offline, with a cache of its own.

    Before version 1.0, another module has a copy of the template, and sessions that are kept know whether they are offline.
    """
    from huggingface_hub import constants, file_download, utils

    forget = getattr(utils, "reset_sessions", lambda: None)

    def put(url: str | None, *, cache: Path) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", url is None)
        if url is not None:
            template = url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "ENDPOINT", url)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        forget()

    yield put
    forget()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path in self.server.cut else content)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def loopback() -> Iterator[ThreadingHTTPServer]:
    """A server of ``files`` (path to content), at ``url``; it notes what was ``asked`` and breaks off what is ``cut``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.files, httpd.cut, httpd.asked = {}, set(), []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def measured(sdata: SpatialData) -> SpatialData:
    """The gradient image of ``sdata`` with Poisson counts of the genes a to d and a patient."""
    old = sdata.tables["table"]
    table = old.copy()
    table.var_names = list(GENES)
    table.X = np.random.default_rng(0).poisson(20, old.shape).astype(np.float32)
    table.obs["patient"] = "P1"
    table.obs["section"] = "S1"
    table.layers["mine"] = np.full(table.shape, 7.0)
    table.obsm["spatial"] = np.arange(24.0).reshape(12, 2)
    table.uns["colours"] = {"a": "red"}
    sdata.tables["table"] = table
    return sdata


@pytest.fixture
def other(measured: SpatialData) -> Callable[[str], SpatialData]:
    """Makes a section of another patient, with the image and other counts."""

    def make(patient: str, section: str = "S1", seed: int = 1) -> SpatialData:
        copy = type(measured)(images=dict(measured.images), shapes=dict(measured.shapes))
        table = measured.tables["table"].copy()
        table.X = np.random.default_rng(seed).poisson(20, table.shape).astype(np.float32)
        table.obs["patient"], table.obs["section"] = patient, section
        copy.tables["table"] = table
        return copy

    return make


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny M2OST with random weights."""
    import torch

    from st_predict import checkpoints
    from st_predict.models import get_spec
    from st_predict.specs import ModelCard

    def make(genes: tuple[str, ...] = GENES, *, mpp: float | None = None) -> Path:
        spec = get_spec("m2ost")
        tiny = dict(spec.tiny)
        card = ModelCard(model="m2ost", genes=genes, crop=replace(spec.crop_for(tiny), mpp=mpp), hparams=tiny)
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            network = checkpoints.build(card)
        path = tmp_path / f"tiny-{len(genes)}-{mpp}.safetensors"
        checkpoints.save(path, network, card)
        return path

    return make


@pytest.fixture
def link() -> Callable[[SpatialData, str], AnnData]:
    """Moves a prediction to a table of its own, as earlier versions stored large panels."""
    from st_predict import get

    def move(sdata: SpatialData, key: str) -> AnnData:
        sdata.tables[key] = get.prediction(sdata, key)
        table = sdata.tables["table"]
        for slots in (table.obsm, table.layers):
            for name in [name for name in slots if str(name).startswith(key)]:
                del slots[name]
        del table.uns["st_predict"]
        return sdata.tables[key]

    return move


@pytest.fixture
def quick() -> Callable[..., TrainConfig]:
    """Makes a configuration for the CPU."""
    from st_predict.tl import TrainConfig

    def make(**options: object) -> TrainConfig:
        defaults = {"epochs": 2, "batch_size": 6, "lr": 3e-3, "device": "cpu", "precision": "float32"}
        return TrainConfig(**{**defaults, **options})

    return make


@pytest.fixture
def two_regions(measured: SpatialData) -> SpatialData:
    """Two sections in a table, rows in turn; each has an image of its own, the second one mirrored."""
    import pandas as pd
    from spatialdata.models import Image2DModel, TableModel

    first = measured
    mirrored = first.images["he"]["scale0"]["image"].data[:, :, ::-1]
    second_image = Image2DModel.parse(mirrored, dims=("c", "y", "x"), scale_factors=[2, 2], c_coords=["r", "g", "b"])
    shapes = first.shapes["spots"]
    table = first.tables["table"]
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["spots", "more"] * 12),
            "instance": np.repeat(shapes.index.to_numpy(), 2),
            "patient": ["P1", "P2"] * 12,
            "section": ["S1", "S9"] * 12,
        },
        index=[f"n{i}" for i in range(24)],
    )
    counts = np.random.default_rng(3).poisson(20, (24, 4)).astype(np.float32)
    adata = type(table)(counts, obs=obs, var=pd.DataFrame(index=list(GENES)))
    both = TableModel.parse(adata, region=["spots", "more"], region_key="region", instance_key="instance")
    return type(first)(
        images={"he": first.images["he"], "mirrored": second_image},
        shapes={"spots": shapes, "more": shapes.copy()},
        tables={"table": both},
    )
