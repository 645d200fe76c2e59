"""Which scores can be had by knowing sequencing depth only: simulated sections with known rates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel

import st_predict as stp
from st_predict import metrics
from st_predict.pp import pearson_residuals
from st_predict.specs import CropSpec, LevelSpec, ModelCard, TargetSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_GENES, SIDE = 100, 15
GENES = tuple(f"gene{i}" for i in range(N_GENES))


@dataclass(frozen=True)
class Section:
    """Poisson counts with known rates; the last column is the sum over all genes outside the panel."""

    counts: NDArray[np.float64]
    rates: NDArray[np.float64]

    @property
    def panel(self) -> NDArray[np.float64]:
        return self.counts[:, :-1]

    @property
    def totals(self) -> NDArray[np.float64]:
        return self.counts.sum(axis=1)

    @property
    def proportions(self) -> NDArray[np.float64]:
        return self.panel.sum(axis=0) / self.totals.sum()


def simulate(generator: np.random.Generator, proportions: NDArray[np.float64]) -> Section:
    """Depth with the spread of a section of her2st, and six programmes that do not depend on it."""
    depth = np.exp(generator.normal(np.log(3000), 0.9, SIDE**2))
    activity = generator.normal(size=(SIDE**2, 6)) @ generator.normal(0, 0.5 / np.sqrt(6), (6, N_GENES))
    rates = proportions * np.exp(activity - activity.mean(axis=0))
    others = generator.poisson(depth * (1 - proportions.sum()))
    return Section(np.column_stack([generator.poisson(depth[:, None] * rates), others]).astype(float), rates)


@pytest.fixture(scope="module", params=[0, 1])
def pair(request: pytest.FixtureRequest) -> tuple[Section, Section]:
    """Training and test section; gene proportions differ as between patients of her2st, by 0.5 of their logarithm."""
    generator = np.random.default_rng(request.param)
    training = generator.lognormal(-7.5, 1.0, N_GENES)
    training *= 0.15 / training.sum()
    return simulate(generator, training), simulate(generator, training * generator.lognormal(0, 0.5, N_GENES))


def spatial_data(section: Section, predictions: dict[str, NDArray[np.float64]], target: TargetSpec) -> SpatialData:
    """Spots of 8 px on a lattice, with stored predictions."""
    xy = np.argwhere(np.ones((SIDE, SIDE))) * 10 + 5
    names = [f"s{i}" for i in range(len(xy))]
    shapes = gpd.GeoDataFrame({"radius": 4.0}, geometry=[Point(place) for place in xy], index=names)
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(xy)), "instance": names, "patient": "P9"}, index=names)
    table = AnnData(section.counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[*GENES, "others"]))
    card = ModelCard(model="mean", genes=GENES, crop=CropSpec(levels=(LevelSpec(size=8),)), target=target)
    table.uns["st_predict"] = {
        key: {"card": card.to_json(), "genes": np.array(GENES), "version": "0"} for key in predictions
    }
    for key, values in predictions.items():
        table.obsm[key] = values.astype(np.float32)
    image = Image2DModel.parse(np.zeros((3, 150, 150), np.uint8), dims=("c", "y", "x"))
    return SpatialData(
        images={"he": image},
        shapes={"spots": ShapesModel.parse(shapes)},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="instance")},
    )


def test_depth_has_no_score_and_the_true_rates_have_one(pair: tuple[Section, Section]) -> None:
    training, test = pair
    target = stp.pp.fit_target(training.panel, training.totals, TargetSpec(transform="pearson_residuals"))
    shares = np.asarray(target.reference.proportions)
    # Genes that the test section has more of rise with depth against the training proportions; the others fall.
    depth = np.sign(test.proportions - shares) * np.sqrt(test.totals)[:, None]
    seen = np.log(test.totals) + np.random.default_rng(9).normal(0, 0.3, len(test.totals))
    sdata = spatial_data(
        test, {"rates": np.log(test.rates), "depth": depth, "seen": np.tile(seen[:, None], (1, N_GENES))}, target
    )
    scores = {
        key: stp.tl.evaluate(sdata, key=key).genes.query("predictor == @key", local_dict={"key": key})
        for key in ("rates", "depth", "seen")
    }
    # chance alone gives a gene a correlation of 0.07 over 225 spots
    for key in ("depth", "seen"):
        for score in ("residual", "partial"):
            assert abs(scores[key][score].mean()) < 0.04
            assert np.sqrt((scores[key][score] ** 2).mean()) < 0.11
    assert scores["rates"]["residual"].mean() > 0.4
    assert scores["rates"]["partial"].mean() > 0.4
    # by the training proportions, depth would be scored, and the true rates lower
    relative = pearson_residuals(test.panel, test.totals, shares, clip=SIDE)
    assert metrics.pearson(depth, relative, axis=0).mean() > 0.15
    assert np.sqrt((metrics.pearson(np.sqrt(test.totals)[:, None] + 0 * relative, relative, axis=0) ** 2).mean()) > 0.2
    assert metrics.pearson(np.log(test.rates), relative, axis=0).mean() < scores["rates"]["residual"].mean() - 0.005


def test_partial_score_is_that_of_either_proportions(pair: tuple[Section, Section]) -> None:
    training, test = pair
    covariates = metrics.depth_covariates(test.totals)
    by_card, by_section = (
        metrics.partial_pearson(
            np.log(test.rates), pearson_residuals(test.panel, test.totals, shares, clip=SIDE), covariates
        )
        for shares in (training.proportions, test.proportions)
    )
    assert abs(by_card.mean() - by_section.mean()) < 0.01
    assert np.abs(by_card - by_section).max() < 0.08


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_other_proportions_than_in_training_are_told(shift: float) -> None:
    generator = np.random.default_rng(2)
    training = generator.lognormal(-7.5, 1.0, N_GENES)
    training *= 0.15 / training.sum()
    first, test = simulate(generator, training), simulate(generator, training * generator.lognormal(0, shift, N_GENES))
    target = stp.pp.fit_target(first.panel, first.totals, TargetSpec(transform="pearson_residuals"))
    sdata = spatial_data(test, {"rates": np.log(test.rates)}, target)
    evaluation = stp.tl.evaluate(sdata)
    assert any("other shares of all counts" in sentence for sentence in evaluation.words) == (shift > 0)
    # constants stay in the tables, and are not printed as rows without a number
    assert "section_mean" in set(evaluation.summary["predictor"])
    text = str(evaluation)
    assert "a constant has no correlation: section_mean." in " ".join(text.split())
    assert not [line for line in text.splitlines() if line.startswith("section_mean")]
    assert not re.search(r"-0\.0+\b", text)
