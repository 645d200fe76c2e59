"""Several sections on one colour scale."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import concat
from matplotlib.colors import LogNorm
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from st_predict import get
from st_predict._record import Record
from st_predict.pl import cohort, spatial
from st_predict.specs import TargetSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.fixture
def slides(predicted: SpatialData) -> Mapping[str, SpatialData]:
    """Two slides; values of the second are higher."""
    other = deepcopy(predicted["table"])
    other.obsm["pred_m2ost"] = other.obsm["pred_m2ost"] + 3
    second = SpatialData(
        images=dict(predicted.images), shapes=dict(predicted.shapes), tables={"table": TableModel.parse(other)}
    )
    return {"S1": predicted, "S2": second}


def test_each_gene_has_one_scale_and_one_bar(slides: Mapping[str, SpatialData]) -> None:
    axes = cohort(slides, ["VIM", "ACTB"], percentiles=(10, 80))
    assert axes.shape == (2, 2)
    for row, gene in zip(axes, ["VIM", "ACTB"], strict=True):
        frames = [get.frame(slide)[gene].dropna() for slide in slides.values()]
        ends = np.percentile(np.concatenate(frames), (10, 80))
        for one, frame in zip(row, frames, strict=True):
            (drawn,) = one.collections
            np.testing.assert_allclose(drawn.get_array(), frame)
            assert drawn.get_clim() == pytest.approx(tuple(ends), rel=1e-5)
    figure = axes[0, 0].figure
    bars = [one for one in figure.axes if one.get_label() == "<colorbar>"]
    assert len(bars) == 2
    assert all(bar.get_ylabel().startswith("predicted,") for bar in bars)


def test_titles_have_name_score_and_missing_spots(slides: Mapping[str, SpatialData]) -> None:
    titles = [one.get_title().replace("\n", " ") for one in cohort(slides, "VIM")[0]]
    score = spatial(slides["S1"], "VIM")[0, 2].get_title().splitlines()[1].split(", ")[0]
    assert score.startswith("partial r = ")
    # a shift does not change a correlation
    assert titles == [f"{name}, VIM {score} 1 of 12 spots without value" for name in ("S1", "S2")]
    slides["S1"]["table"].X = None
    assert cohort(slides, "VIM")[0, 0].get_title().split("\n")[1] == "not measured"


def test_observed_values(slides: Mapping[str, SpatialData], observed) -> None:
    one = cohort(slides, "VIM", values="observed")[0, 1]
    np.testing.assert_allclose(one.collections[0].get_array(), observed["VIM"], rtol=1e-5)
    with pytest.raises(ValueError, match="values must be 'predicted' or 'observed'"):
        cohort(slides, "VIM", values="both")


def test_tissue_and_layout(slides: Mapping[str, SpatialData]) -> None:
    axes = cohort({**slides, "S3": slides["S1"]}, ncols=2)
    assert axes.shape == (1, 3)
    assert [one.get_title() for one in axes[0]] == ["S1", "S2", "S3"]
    assert [one.get_subplotspec().rowspan.start for one in axes[0]] == [0, 0, 1]
    assert all(len(one.images) == 1 and not one.collections for one in axes[0])
    several = cohort({**slides, "S3": slides["S1"]}, ["VIM", "ACTB"], ncols=2)
    assert [[one.get_subplotspec().rowspan.start for one in row] for row in several] == [[0, 0, 1], [2, 2, 3]]
    given = cohort(slides, "VIM", ax=plt.subplots(1, 2)[1])
    assert given.shape == (1, 2)


def test_regions_of_one_slide(predicted: SpatialData) -> None:
    first, second = predicted["table"], deepcopy(predicted["table"])
    second.obs["region"] = "more"
    second.obsm["pred_m2ost"] = second.obsm["pred_m2ost"] + 3
    both = concat([first, second], uns_merge="same", index_unique="-")
    both.obs["region"] = both.obs["region"].astype("category")
    predicted.shapes["more"] = ShapesModel.parse(predicted.shapes["spots"].copy())
    predicted.tables["table"] = TableModel.parse(
        both, region=["spots", "more"], region_key="region", instance_key="instance", overwrite_metadata=True
    )
    axes = cohort(predicted, "VIM")
    assert [one.get_title().split("\n")[0] for one in axes[0]] == ["spots, VIM", "more, VIM"]
    arrays = [one.collections[0].get_array() for one in axes[0]]
    np.testing.assert_allclose(arrays[1], arrays[0] + 3, rtol=1e-5)


def test_what_does_not_fit_together(slides: Mapping[str, SpatialData]) -> None:
    with pytest.raises(KeyError, match=r"Slide 'S1'.*'nowhere'"):
        cohort(slides, "VIM", key="nowhere")
    with pytest.raises(KeyError, match=r"Slide 'S1'.*'NOGENE'"):
        cohort(slides, "NOGENE")
    with pytest.raises(ValueError, match="empty mapping"):
        cohort({}, "VIM")
    with pytest.raises(TypeError, match="sdata must be"):
        cohort({"S1": "s.zarr"}, "VIM")
    with pytest.raises(ValueError, match=r"vmin|limits|norm"):
        cohort(slides, "VIM", norm=LogNorm(vmin=-1, vmax=2))
    slides["S2"]["table"].uns["st_predict"]["other"] = slides["S2"]["table"].uns["st_predict"].pop("pred_m2ost")
    slides["S2"]["table"].obsm["other"] = slides["S2"]["table"].obsm.pop("pred_m2ost")
    with pytest.raises(ValueError, match=r"of one model, got {'S1': 'pred_m2ost', 'S2': 'other'}.*key="):
        cohort(slides, "VIM")
    slides["S2"]["table"].uns["st_predict"]["pred_m2ost"] = slides["S2"]["table"].uns["st_predict"].pop("other")
    slides["S2"]["table"].obsm["pred_m2ost"] = slides["S2"]["table"].obsm.pop("other")
    assert not plt.get_fignums()


def test_what_one_scale_cannot_compare(slides: Mapping[str, SpatialData]) -> None:
    with pytest.raises(ValueError, match="LogNorm"):
        cohort(slides, "VIM", norm=LogNorm(vmin=-1, vmax=2))
    table = slides["S2"]["table"]
    for slots in (table.obsm, table.uns["st_predict"]):
        slots["other"] = slots["pred_m2ost"]
        del slots["pred_m2ost"]
    with pytest.raises(ValueError, match=r"of one model, got \{'S1': 'pred_m2ost', 'S2': 'other'\}.*key="):
        cohort(slides, "VIM")
    for slots in (table.obsm, table.uns["st_predict"]):
        slots["pred_m2ost"] = slots["other"]
        del slots["other"]
    stored = slides["S2"]["table"].uns["st_predict"]["pred_m2ost"]
    card = Record.read(slides["S2"]["table"].uns, "pred_m2ost").card
    stored["card"] = replace(card, target=TargetSpec(transform="log1p")).to_json()
    with pytest.raises(ValueError, match=r"same units, got .*'S1'.*'S2'"):
        cohort(slides, "VIM")
    assert not plt.get_fignums()


def test_the_image_is_named_where_there_are_several(slides: Mapping[str, SpatialData]) -> None:
    for slide in slides.values():
        slide.images["copy"] = deepcopy(slide["he"])
    with pytest.raises(ValueError, match="image_key="):
        cohort(slides, "VIM")
    assert cohort(slides, "VIM", image_key="he").shape == (1, 2)
