"""Measured sections and small checkpoints for training, prediction and evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from spatialdata.models import Image2DModel, TableModel

from st_predict.models import ModelCard, build_model, get_spec, save_checkpoint
from st_predict.tl import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spatialdata import SpatialData

TINY = dict(get_spec("m2ost").tiny)
GENES = tuple("abcd")


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

    def make(genes: tuple[str, ...] = GENES, *, mpp: float | None = None) -> Path:
        spec = get_spec("m2ost")
        card = ModelCard(model="m2ost", genes=genes, crop=replace(spec.crop_for(TINY), mpp=mpp), hparams=TINY)
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            network = build_model(card)
        path = tmp_path / f"tiny-{len(genes)}-{mpp}.safetensors"
        save_checkpoint(path, network, card)
        return path

    return make


@pytest.fixture
def quick() -> Callable[..., TrainConfig]:
    """Makes a configuration for the CPU."""

    def make(**options: object) -> TrainConfig:
        defaults = {"epochs": 2, "batch_size": 6, "lr": 3e-3, "device": "cpu", "precision": "float32"}
        return TrainConfig(**{**defaults, "progress": False, **options})

    return make


@pytest.fixture
def two_regions(measured: SpatialData) -> SpatialData:
    """Two sections in a table, rows in turn; each has an image of its own, the second one mirrored."""
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
