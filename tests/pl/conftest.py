"""A section with counts and a prediction, small enough to be computed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata.models import TableModel

from st_predict.specs import CropSpec, LevelSpec, ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spatialdata import SpatialData

PANEL = ["ERBB2", "COL1A1", "ACTB", "KRT8", "VIM"]
MEASURED = ["GAPDH", "VIM", "ERBB2", "KRT8", "COL1A1", "ACTB"]  # one more, and in another order


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture
def predicted(sdata: SpatialData) -> SpatialData:
    """12 spots with a radius of 20 px; spot 2 was not predicted, and in spot 5 nothing was measured."""
    rng = np.random.default_rng(1)
    obs = sdata["table"].obs.copy()
    counts = rng.poisson(20, size=(12, 6)).astype(np.float32)
    counts[5] = 0
    table = AnnData(counts, obs=obs, var=pd.DataFrame(index=MEASURED))
    values = rng.normal(12, 0.2, size=(12, 5)).astype(np.float32)
    values[2] = np.nan
    table.obsm["pred_m2ost"] = values
    card = ModelCard(model="m2ost", genes=tuple(PANEL), crop=CropSpec(levels=(LevelSpec(size=224),)))
    table.uns["st_predict"] = {"pred_m2ost": {"card": card.to_json(), "genes": np.array(PANEL), "version": "0.1.0"}}
    sdata.tables["table"] = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    return sdata


@pytest.fixture
def without_krt8(predicted: SpatialData) -> SpatialData:
    """The same, but the table lacks a gene of the panel."""
    table = predicted["table"]
    predicted.tables["table"] = table[:, table.var_names != "KRT8"].copy()
    return predicted


@pytest.fixture
def observed(predicted: SpatialData) -> pd.DataFrame:
    """What was measured, in the units of the prediction, without the code under test."""
    counts = predicted["table"].to_df()[PANEL]
    counts = counts[counts.sum(axis=1) > 0]
    return np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e6)
