"""A prediction is a table like any other: spatialdata-plot draws it, squidpy, scanpy and decoupler analyse it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.stats
import spatialdata

import st_predict as stp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

pytestmark = pytest.mark.filterwarnings("ignore")  # of these libraries, to their developers

XY = np.array([(x, y) for y in (50, 200, 390) for x in (10, 150, 300, 590)], float)
RIGHT = XY[:, 0] >= 300


@pytest.fixture
def sdata_predicted(measured: SpatialData, checkpoint: Callable[..., Path]) -> SpatialData:
    """A section with its prediction as a table of its own; genes a and b are high on the right, c and d on the left."""
    measured["table"].obsm["spatial"] = XY
    stp.tl.predict(measured, checkpoint(), device="cpu")
    prediction = stp.get.prediction(measured)
    noise = np.random.default_rng(0).normal(0, 0.1, prediction.shape)
    prediction.X = (np.where(RIGHT, 3, 1)[:, None] * [1, 1, -1, -1] + 5 + noise).astype(np.float32)
    measured["predicted"] = prediction
    return measured


@pytest.fixture
def table(sdata_predicted: SpatialData) -> AnnData:
    return sdata_predicted["predicted"]


def test_it_is_stored_with_the_section(sdata_predicted: SpatialData, tmp_path: Path) -> None:
    sdata_predicted.write(tmp_path / "section.zarr")
    again = spatialdata.read_zarr(tmp_path / "section.zarr")
    np.testing.assert_array_equal(again["predicted"].X, sdata_predicted["predicted"].X)
    elements, joined = spatialdata.join_spatialelement_table(
        sdata=again, spatial_element_names="spots", table_name="predicted"
    )
    assert list(elements["spots"].index) == list(joined.obs_names)


def test_spatialdata_plot_draws_it(sdata_predicted: SpatialData) -> None:
    import spatialdata_plot  # noqa: F401  # adds the method

    figure, axes = plt.subplots()
    drawn = sdata_predicted.pl.render_images("he").pl.render_shapes(
        "spots", color="a", table_name="predicted", method="matplotlib", cmap="viridis"
    )
    drawn.pl.show(ax=axes, coordinate_systems="global")
    spots = next(c for c in axes.collections if len(c.get_facecolor()) == 12)
    values = sdata_predicted["predicted"][:, "a"].X[:, 0]
    place = (values - values.min()) / np.ptp(values)
    np.testing.assert_allclose(spots.get_facecolor()[:, :3], plt.colormaps["viridis"](place)[:, :3], atol=0.01)
    plt.close(figure)


def test_squidpy_knows_neighbours(table: AnnData) -> None:
    import squidpy as sq

    sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=3)
    distances = np.linalg.norm(XY[:, None] - XY, axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1:4]
    linked = table.obsp["spatial_connectivities"].toarray() > 0
    assert all(linked[i, j] for i in range(12) for j in nearest[i])
    sq.gr.spatial_autocorr(table, mode="moran", show_progress_bar=False)
    found = table.uns["moranI"].loc[list("abcd"), "I"].to_numpy()
    weights = linked / linked.sum(axis=1, keepdims=True)
    centred = table.X - table.X.mean(axis=0)
    expected = 12 / weights.sum() * ((centred * (weights @ centred)).sum(axis=0) / (centred**2).sum(axis=0))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_clusters_and_their_neighbourhoods(table: AnnData) -> None:
    import squidpy as sq

    sc.pp.neighbors(table, n_neighbors=4, use_rep="X", method="gauss", transformer="sklearn")  # umap compiles for long
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, directed=False, random_state=0, resolution=0.3)
    assert pd.crosstab(table.obs["leiden"], RIGHT).gt(0).sum(axis=1).eq(1).all()  # no cluster is on both sides
    table.obs["side"] = pd.Categorical(np.where(RIGHT, "right", "left"))
    sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=3)
    sq.gr.nhood_enrichment(table, cluster_key="side", seed=0, show_progress_bar=False)
    score = table.uns["side_nhood_enrichment"]["zscore"]
    assert (np.diag(score) > 0).all()
    assert (score[~np.eye(2, dtype=bool)] < 0).all()


def test_decoupler_scores_pathways(table: AnnData) -> None:
    import decoupler as dc

    net = pd.DataFrame({"source": "T", "target": ["a", "c", "d"], "weight": [1.0, -1.0, 0.5]})
    dc.mt.ulm(data=table, net=net, tmin=3)
    weights = np.array([1.0, 0.0, -1.0, 0.5])
    for row, score in zip(table.X, table.obsm["score_ulm"]["T"], strict=True):
        fit = scipy.stats.linregress(weights, row)
        np.testing.assert_allclose(score, fit.slope / fit.stderr, rtol=1e-3)
