from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from scipy.stats import pearsonr
from shapely import Point, box
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale, set_transformation

import st_predict as stp
from st_predict import get
from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError, StPredictError
from st_predict.pl import spatial
from st_predict.specs import ModelCard, Reference, Reliability, TargetSpec

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from spatialdata import SpatialData

XY = np.array([(x, y) for y in (50, 200, 390) for x in (10, 150, 300, 590)], dtype=float)
KEEP_OBSERVED = np.arange(12) != 5
KEEP_PREDICTED = np.arange(12) != 2


def spots(axes: Axes) -> EllipseCollection:
    (collection,) = axes.collections
    return collection


def test_spots_are_where_and_as_large_as_they_are(predicted: SpatialData) -> None:
    axes = spatial(predicted, "ERBB2")
    assert axes.shape == (1, 3)
    for one, keep in ((axes[0, 1], KEEP_OBSERVED), (axes[0, 2], KEEP_PREDICTED)):
        np.testing.assert_allclose(spots(one).get_offsets(), XY[keep])
        # half of the shapes' coordinates are a pixel, so a radius of 10 is one of 20 px
        np.testing.assert_allclose(spots(one).get_widths(), 40)
        np.testing.assert_allclose(spots(one).get_heights(), 40)
    assert not axes[0, 0].collections


def test_a_spot_covers_its_pixels_on_paper(predicted: SpatialData) -> None:
    axes = spatial(predicted, "ERBB2", tissue_strength=0, margin=None, figsize=(12, 4))
    figure = axes[0, 1].figure
    figure.savefig("/dev/null", format="png", dpi=100)
    canvas = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    x0, y0 = axes[0, 1].transData.transform((300 - 40, 200 + 40))
    x1, y1 = axes[0, 1].transData.transform((300 + 40, 200 - 40))
    height = canvas.shape[0]
    window = canvas[round(height - y1) : round(height - y0), round(x0) : round(x1)].astype(int)
    coloured = (window.max(axis=2) - window.min(axis=2)) > 40
    # a circle with a diameter of half of the window
    assert coloured.mean() == pytest.approx(np.pi / 4 / 4, rel=0.1)


def test_values_are_those_of_the_table_in_the_units_of_the_model(
    predicted: SpatialData, observed: pd.DataFrame
) -> None:
    axes = spatial(predicted, ["COL1A1", "VIM"])
    prediction = get.frame(predicted)
    for row, gene in zip(axes, ["COL1A1", "VIM"], strict=True):
        np.testing.assert_allclose(spots(row[1]).get_array(), observed[gene], rtol=1e-5)
        np.testing.assert_allclose(spots(row[2]).get_array(), prediction[gene].dropna())


def test_each_map_has_its_own_scale(predicted: SpatialData, observed: pd.DataFrame) -> None:
    axes = spatial(predicted, ["ERBB2", "VIM"], percentiles=(10, 80))
    for row, gene in zip(axes, ["ERBB2", "VIM"], strict=True):
        for one, values in ((row[1], observed[gene]), (row[2], get.frame(predicted)[gene].dropna())):
            assert spots(one).get_clim() == pytest.approx(tuple(np.percentile(values, (10, 80))), rel=1e-5)
            assert spots(one).colorbar.extend == "both"
        assert spots(row[1]).colorbar.ax.get_ylabel() == ""
        assert spots(row[2]).colorbar.ax.get_ylabel().replace("\n", " ") == TargetSpec().units


def test_a_shared_scale_is_written_beside_both_maps(predicted: SpatialData, observed: pd.DataFrame) -> None:
    axes = spatial(predicted, "ERBB2", percentiles=(10, 80), scale="shared")
    both = np.concatenate([observed["ERBB2"], get.frame(predicted)["ERBB2"].dropna()])
    low, high = np.percentile(both, (10, 80))
    for one in axes[0, 1:]:
        assert spots(one).get_clim() == pytest.approx((low, high), rel=1e-5)
        np.testing.assert_array_equal(
            spots(one).cmap(spots(one).norm(spots(one).get_array())), spots(one).to_rgba(spots(one).get_array())
        )
    bar = spots(axes[0, 2]).colorbar
    assert bar.extend == "both"
    assert bar.ax.get_ylabel().replace("\n", " ") == f"{TargetSpec().units} same scale in both maps"
    assert spots(axes[0, 1]).colorbar is None


@pytest.mark.parametrize("scale", ["own", "shared"])
def test_ends_of_the_scale_that_are_given(predicted: SpatialData, scale: str) -> None:
    for one in spatial(predicted, ["ERBB2", "VIM"], vmin=11, vmax=12.5, scale=scale)[:, 1:].ravel():
        assert spots(one).get_clim() == (11, 12.5)
    drawn = spots(spatial(predicted, "VIM", vmin=11, scale=scale)[0, 2])
    assert drawn.get_clim()[0] == 11
    assert drawn.get_clim()[1] > 12
    assert drawn.colorbar.extend == "max"
    beyond = spatial(predicted, "VIM", vmin=100, scale=scale)[0, 2]
    assert spots(beyond).get_clim()[0] == 100  # all values are below
    assert spots(beyond).get_clim()[1] > 100
    assert spots(beyond).colorbar.extend == "min"
    low, high = spots(spatial(predicted, "VIM", vmax=-100, scale=scale)[0, 2]).get_clim()
    assert low < high == -100
    spots(beyond).figure.canvas.draw()


def test_a_norm_is_copied_for_each_map(predicted: SpatialData) -> None:
    norm = PowerNorm(0.5)
    axes = spatial(predicted, "VIM", norm=norm, percentiles=(0, 100))
    assert (norm.vmin, norm.vmax) == (None, None)
    for one in axes[0, 1:]:
        drawn = spots(one)
        assert isinstance(drawn.norm, PowerNorm)
        assert drawn.norm.gamma == 0.5
        assert drawn.get_clim() == pytest.approx((drawn.get_array().min(), drawn.get_array().max()))
    partly = spatial(predicted, "VIM", norm=Normalize(vmin=3), percentiles=(0, 100))
    assert [spots(one).norm.vmin for one in partly[0, 1:]] == [3, 3]
    assert spots(partly[0, 1]).norm.vmax != spots(partly[0, 2]).norm.vmax
    shared = spatial(predicted, "VIM", norm=norm, scale="shared")
    assert spots(shared[0, 1]).norm is spots(shared[0, 2]).norm


def test_ends_of_the_scale_that_contradict(predicted: SpatialData) -> None:
    with pytest.raises(InvalidValueError, match=r"vmin must be below vmax, got 3 and 2\."):
        spatial(predicted, "VIM", vmin=3, vmax=2)
    with pytest.raises(InvalidValueError, match=r"norm and vmax = 2 both set .*eave out vmax="):
        spatial(predicted, "VIM", vmax=2, norm=Normalize())
    with pytest.raises(InvalidTypeError, match=r"norm must be a matplotlib\.colors\.Normalize, got 'log'\."):
        spatial(predicted, "VIM", norm="log")
    predicted["table"].obsm["pred_m2ost"] *= -1
    with pytest.raises(
        InvalidValueError, match=r"norm, a LogNorm, cannot scale values from -12\.\d to -11\.\d: .*norm=\."
    ):
        spatial(predicted, "VIM", norm=LogNorm())
    with pytest.raises(InvalidValueError, match=r"scale must be .*own.*shared"):
        spatial(predicted, "VIM", scale="both")
    assert not plt.get_fignums()


def with_std(sdata: SpatialData) -> None:
    table = sdata["table"]
    table.obsm["pred_m2ost_std"] = np.ones((12, 5), np.float32)
    table.uns["st_predict"]["pred_m2ost"]["derived"] = json.dumps(["pred_m2ost_std"])


def cells(axes: np.ndarray) -> list[tuple[int, int]]:
    places = [one.get_subplotspec() for one in axes]
    return [(place.rowspan.start, place.colspan.start) for place in places]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_genes", "std", "counted", "tissue"),
    [*product([1, 5], *[[False, True]] * 3), (2, False, True, True), (2, True, False, False)],
)
def test_layouts_are_well_formed(predicted: SpatialData, n_genes: int, std: bool, counted: bool, tissue: bool) -> None:
    with_std(predicted)
    if not counted:
        predicted["table"].X = None
    genes = list(get.frame(predicted))[:n_genes]
    n_maps = 1 + counted + std
    axes = spatial(predicted, genes, std=std, tissue=tissue)
    assert axes.shape == (n_genes, tissue + n_maps)
    figure = axes[0, 0].figure
    drawn = [one for one in figure.axes if one.images]
    assert len(drawn) == len(set(axes.ravel())) == tissue + n_genes * n_maps
    assert [one.get_title() for one in drawn].count("H&E") == tissue
    for row, gene in zip(axes, genes, strict=True):
        assert all(one.get_title().startswith(f"{gene}, ") for one in row[int(tissue) :])
        # the maps of a gene are side by side
        at = cells(row[int(tissue) :])
        assert at == [(at[0][0], at[0][1] + i) for i in range(n_maps)]
    assert len(set(cells(drawn))) == len(drawn)
    figure.draw_without_rendering()
    boxes = [one.get_position() for one in drawn]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert max(box.width for box in boxes) / min(box.width for box in boxes) < 1.2
    apart = [not a.padded(-1e-3).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert all(apart)


def test_the_tissue_is_drawn_once(predicted: SpatialData) -> None:
    axes = spatial(predicted, ["VIM", "ACTB", "KRT8"])
    assert axes[0, 0] is axes[1, 0] is axes[2, 0]
    assert len(axes[0, 0].images) == 1
    assert axes[0, 0].get_title() == "H&E"


def test_genes_per_row(predicted: SpatialData) -> None:
    genes = list(get.frame(predicted))
    assert cells(spatial(predicted, genes, ncols=2)[:, 1]) == [(0, 1), (0, 3), (1, 1), (1, 3), (2, 1)]
    assert cells(spatial(predicted, genes, ncols=1, tissue=False)[:, 0]) == [(i, 0) for i in range(5)]
    assert cells(spatial(predicted, genes[:2], ncols=9)[:, 1]) == [(0, 1), (0, 3)]
    for ncols in (0, "2", 1.5):
        with pytest.raises(InvalidValueError, match="ncols must be"):
            spatial(predicted, "VIM", ncols=ncols)


def test_units_are_wrapped_beside_a_map(predicted: SpatialData) -> None:
    axes = spatial(predicted, ["VIM", "ACTB"])
    axes[0, 0].figure.canvas.draw()
    for row in axes:
        bar = spots(row[2]).colorbar.ax
        assert bar.yaxis.label.get_window_extent().height < 1.1 * row[2].get_window_extent().height


def test_title_has_the_correlation_over_the_spots_that_have_both(
    predicted: SpatialData, observed: pd.DataFrame
) -> None:
    axes = spatial(predicted, "ACTB")
    pair = pd.concat([get.frame(predicted)["ACTB"], observed["ACTB"]], axis=1).dropna()
    assert len(pair) == 10
    r = pearsonr(*pair.to_numpy().T).statistic
    counts = predicted["table"].to_df().loc[pair.index]
    total = counts.sum(axis=1).to_numpy()
    mean = total * counts["ACTB"].sum() / total.sum()
    residual = ((counts["ACTB"] - mean) / np.sqrt(mean + mean**2 / 100)).to_numpy()
    design = np.column_stack([np.ones(10), np.log(total), np.log(total) ** 2])
    guess = pair.iloc[:, 0].to_numpy(np.float64)
    left = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (guess, residual)]
    title = f"ACTB, predicted\npartial r = {pearsonr(*left).statistic:.2f}, plain r = {r:.2f}"
    assert [one.get_title() for one in axes[0]] == ["H&E", "ACTB, observed", title]


def test_partial_correlation_uses_the_proportions_in_the_card(predicted: SpatialData) -> None:
    reference = Reference(proportions=(0.3, 0.05, 0.1, 0.2, 0.15), median_total=100.0)
    set_target(predicted, transform="pearson_residuals", reference=reference, clip=5.0)
    predicted["table"].obs["patient"] = "P1"
    title = spatial(predicted, "ACTB")[0, 2].get_title()
    evaluation = stp.tl.evaluate(predicted, key="pred_m2ost").genes.set_index(["predictor", "gene"])
    assert f"partial r = {evaluation.loc[('pred_m2ost', 'ACTB'), 'partial']:.2f}" in title


def test_a_constant_prediction_has_no_correlation(predicted: SpatialData) -> None:
    predicted["table"].obsm["pred_m2ost"][:, list(get.frame(predicted)).index("ACTB")] = 3
    assert spatial(predicted, "ACTB")[0, 2].get_title() == "ACTB, predicted\npartial undefined, plain undefined"


def set_target(sdata: SpatialData, **target: object) -> None:
    record = sdata["table"].uns["st_predict"]["pred_m2ost"]
    card = ModelCard.from_json(record["card"])
    record["card"] = replace(card, target=TargetSpec(**target)).to_json()


def test_a_gene_that_was_not_measured_is_drawn_as_predicted(without_krt8: SpatialData) -> None:
    set_target(without_krt8, transform="log1p_total", total=1e4, over="all")
    axes = spatial(without_krt8, "KRT8", tissue=False)
    assert axes.shape == (1, 1)
    assert axes[0, 0].get_title() == "KRT8, predicted"
    mixed = spatial(without_krt8, ["KRT8", "VIM"])
    assert mixed[0, 1].get_title() == "KRT8, not measured"
    assert len(spots(mixed[0, 1]).get_offsets()) == 0
    assert not spots(mixed[0, 1]).colorbar.ax.get_visible()
    assert spots(mixed[1, 1]).colorbar.ax.get_visible()
    shared = spatial(without_krt8, ["KRT8", "VIM"], scale="shared")
    labels = [spots(row[2]).colorbar.ax.get_ylabel() for row in shared]
    assert ["same scale" in label for label in labels] == [False, True]


@pytest.mark.parametrize(
    "target",
    [
        {"transform": "log1p_total", "total": 1e6, "over": "panel"},
        {"transform": "log_proportion", "over": "panel"},
        {"transform": "log_proportion", "over": "all"},
    ],
)
def test_other_units_are_not_drawn_beside_the_prediction(
    without_krt8: SpatialData, target: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    set_target(without_krt8, **target)
    axes = spatial(without_krt8, "VIM", scale="shared")
    assert [one.get_title() for one in axes[0]] == ["H&E", "VIM, predicted"]
    assert "same scale" not in spots(axes[0, 1]).colorbar.ax.get_ylabel()
    assert "1 of 5 panel genes are not in the table" in caplog.text
    assert "only the prediction is drawn" in caplog.text


def test_counts_need_no_other_gene(without_krt8: SpatialData) -> None:
    set_target(without_krt8, transform="counts", over="panel")
    drawn = spots(spatial(without_krt8, "VIM")[0, 1]).get_array()
    np.testing.assert_array_equal(drawn, without_krt8["table"].to_df()["VIM"][KEEP_OBSERVED])


def test_a_slide_without_counts(predicted: SpatialData) -> None:
    predicted["table"].X = None
    assert spatial(predicted, ["VIM", "ACTB"]).shape == (2, 2)


def test_standard_deviations_have_a_map_and_a_scale_of_their_own(predicted: SpatialData) -> None:
    with pytest.raises(ValueError, match="'pred_m2ost' has no standard deviations"):
        spatial(predicted, "VIM", std=True)
    table = predicted["table"]
    std = pd.DataFrame(np.arange(60.0).reshape(12, 5) / 10, index=table.obs_names, columns=get.frame(predicted).columns)
    std.iloc[2] = np.nan
    table.obsm["pred_m2ost_std"] = std.to_numpy(np.float32)
    table.uns["st_predict"]["pred_m2ost"]["derived"] = json.dumps(["pred_m2ost_std"])
    axes = spatial(predicted, "VIM", std=True)
    assert axes.shape == (1, 4)
    assert axes[0, 3].get_title() == "VIM, standard deviation"
    drawn = spots(axes[0, 3])
    np.testing.assert_allclose(drawn.get_array(), std["VIM"].drop(std.index[2]), rtol=1e-6)
    assert drawn.norm.vmin == 0
    assert drawn.norm.vmax == pytest.approx(std["VIM"].max())
    assert spatial(predicted, "VIM").shape == (1, 3)


def test_counts_in_a_layer(predicted: SpatialData, observed: pd.DataFrame) -> None:
    table = predicted["table"]
    table.layers["counts"] = table.X.copy()
    table.X = np.log1p(table.X)
    axes = spatial(predicted, "VIM", layer="counts")
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), observed["VIM"], rtol=1e-5)
    with pytest.raises(ValueError, match=r"not a whole number.*layer="):
        spatial(predicted, "VIM")
    with pytest.raises(KeyError, match=r"No layer 'raw'; the table has \['counts'\]"):
        spatial(predicted, "VIM", layer="raw")


def test_sum_over_all_genes(predicted: SpatialData) -> None:
    table = predicted["table"]
    set_target(predicted, transform="log1p_total", total=1e4, over="all")
    counts = table.to_df()[KEEP_OBSERVED]
    expected = np.log1p(1e4 * counts["VIM"] / counts.sum(axis=1))
    np.testing.assert_allclose(spots(spatial(predicted, "VIM")[0, 1]).get_array(), expected, rtol=1e-5)


def test_a_prediction_in_a_table_of_its_own(predicted: SpatialData, observed: pd.DataFrame) -> None:
    table = predicted["table"]
    frame = get.frame(predicted).iloc[::-1]
    del table.obsm["pred_m2ost"]
    own = table[frame.index, :0].copy()
    own = type(own)(frame.to_numpy(), obs=own.obs, var=pd.DataFrame(index=frame.columns), uns=own.uns)
    del table.uns["st_predict"]
    predicted.tables["pred_m2ost"] = own
    axes = spatial(predicted, "VIM")
    np.testing.assert_allclose(spots(axes[0, 1]).get_offsets(), XY[::-1][KEEP_OBSERVED[::-1]])
    np.testing.assert_allclose(spots(axes[0, 1]).get_array(), observed["VIM"][::-1], rtol=1e-5)
    del predicted.tables["table"]
    assert spatial(predicted, "VIM").shape == (1, 2)


def test_the_image_is_that_under_the_spots(predicted: SpatialData) -> None:
    axes = spatial(predicted, "VIM", margin=0.0)
    (image,) = axes[0, 0].images
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (4, 596, 396, 44)  # 1 % of the width around the outermost centres
    pixels = np.asarray(image.get_array())
    assert pixels.shape == (352, 592, 3)
    # the image says where it is from: red is x // 4, green is y // 4
    np.testing.assert_array_equal(pixels[0, :, 0], np.arange(4, 596) // 4)
    np.testing.assert_array_equal(pixels[:, 0, 1], np.arange(44, 396) // 4)
    whole = spatial(predicted, "VIM", margin=None)
    assert whole[0, 0].get_xlim() == (0, 600)
    assert whole[0, 0].get_ylim() == (400, 0)


def test_a_large_image_is_read_coarsely(predicted: SpatialData) -> None:
    wide = np.zeros((3, 400, 6000), np.uint8)
    wide[0] = np.arange(6000) // 32
    predicted.images["wide"] = Image2DModel.parse(wide, dims=("c", "y", "x"))
    axes = spatial(predicted, "VIM", image_key="wide", margin=None)
    pixels = np.asarray(axes[0, 0].images[0].get_array())
    assert pixels.shape == (80, 1200, 3)
    np.testing.assert_allclose(pixels[40, :, 0], np.arange(2.5, 6000, 5) / 32, atol=1)


def test_squares_are_drawn_as_squares(predicted: SpatialData) -> None:
    index = predicted["spots"].index
    corners = [box(x - 5, y - 5, x + 5, y + 5) for x, y in XY / 2]
    squares = gpd.GeoDataFrame(geometry=corners, index=index)
    predicted.shapes["spots"] = ShapesModel.parse(
        squares, transformations={"global": Scale([2.0, 2.0], axes=("x", "y"))}
    )
    collection = spots(spatial(predicted, "VIM", spot_scale=2)[0, 2])
    assert isinstance(collection, PolyCollection)
    assert len(collection.get_paths()) == 11
    extents = collection.get_paths()[0].get_extents()
    assert (extents.x0, extents.x1, extents.y0, extents.y1) == (10 - 20, 10 + 20, 50 - 20, 50 + 20)


def test_one_of_several_sections(predicted: SpatialData) -> None:
    table = predicted["table"]
    shapes = predicted["spots"]
    points = [Point(p.x, p.y / 2) for p in shapes.geometry[6:]]
    lower = gpd.GeoDataFrame({"radius": 10.0}, geometry=points, index=shapes.index[6:])
    predicted.shapes["other"] = ShapesModel.parse(lower, transformations={"global": Scale([2.0, 2.0], axes=("x", "y"))})
    table.obs["region"] = pd.Categorical(["spots"] * 6 + ["other"] * 6)
    table.uns["spatialdata_attrs"]["region"] = ["spots", "other"]
    with pytest.raises(ValueError, match=r"several regions: .* Choose one with region="):
        spatial(predicted, "VIM")
    axes = spatial(predicted, "VIM", region="other")
    np.testing.assert_allclose(spots(axes[0, 2]).get_offsets(), XY[6:] / (1, 2))
    np.testing.assert_allclose(spots(axes[0, 2]).get_array(), get.frame(predicted)["VIM"].iloc[6:])


def test_scale_bar_is_as_long_as_it_says(predicted: SpatialData) -> None:
    set_transformation(predicted["he"], {"global": Identity(), "um": Scale([0.5, 0.5], axes=("x", "y"))}, set_all=True)
    axes = spatial(predicted, "VIM", margin=None)
    (bar,) = axes[0, 0].artists
    # the image is 300 um wide, of which 50 um are the longest round part below a quarter
    assert bar.txt_label.get_text() == "50 µm"
    assert bar.size_bar.get_children()[0].get_width() == pytest.approx(100)
    assert not axes[0, 1].artists


def test_no_scale_bar_without_mpp(predicted: SpatialData) -> None:
    assert not spatial(predicted, "VIM")[0, 0].artists


def test_unknown_names_are_errors_that_help(predicted: SpatialData) -> None:
    with pytest.raises(KeyError, match=r"No gene 'erb2' in the panel of 5 genes.*Take one of \['ERBB2'\]"):
        spatial(predicted, ["VIM", "erb2"])
    with pytest.raises(KeyError, match=r"No gene 'XYZ' in the panel of 5 genes, which begins with \['ERBB2'"):
        spatial(predicted, "XYZ")
    with pytest.raises(KeyError, match=r"No prediction 'pred_x'; there are \['pred_m2ost'\]"):
        spatial(predicted, "VIM", key="pred_x")
    with pytest.raises(KeyError, match=r"No image 'nope'"):
        spatial(predicted, "VIM", image_key="nope")
    with pytest.raises(ValueError, match="list of genes is empty"):
        spatial(predicted, [])
    assert not plt.get_fignums()


def test_no_image(predicted: SpatialData) -> None:
    del predicted.images["he"]
    with pytest.raises(ValueError, match="There is no image in sdata"):
        spatial(predicted, "VIM")


def test_options_out_of_range(predicted: SpatialData) -> None:
    for option in ({"tissue_strength": 1.5}, {"spot_scale": 0}, {"percentiles": (98, 2)}, {"margin": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} (must|should) be"):
            spatial(predicted, "VIM", **option)
    assert not plt.get_fignums()


def test_units_that_are_unknown(predicted: SpatialData) -> None:
    frame = get.frame(predicted)
    del predicted["table"].uns["st_predict"]
    with pytest.raises(ValueError, match=r"gene names of 'pred_m2ost' are unknown.*uns_merge=\"same\""):
        spatial(predicted, "VIM")
    predicted["table"].obsm["pred_m2ost"] = frame
    with pytest.raises(ValueError, match=r"units of 'pred_m2ost' are unknown.*uns_merge=\"same\""):
        spatial(predicted, "VIM")


def test_a_dataframe_of_an_earlier_version(predicted: SpatialData) -> None:
    drawn = [spots(one).get_array() for one in spatial(predicted, "VIM")[0, 1:]]
    table = predicted["table"]
    table.obsm["pred_m2ost"] = get.frame(predicted)
    del table.uns["st_predict"]["pred_m2ost"]["genes"]
    for one, values in zip(spatial(predicted, "VIM")[0, 1:], drawn, strict=True):
        np.testing.assert_array_equal(spots(one).get_array(), values)


def test_axes_of_the_user(predicted: SpatialData) -> None:
    figure, given = plt.subplots(1, 3)
    axes = spatial(predicted, "VIM", ax=given)
    assert list(axes[0]) == list(given)
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="1 x 3 panels, so ax needs 3 Axes, got 2"):
        spatial(predicted, "VIM", ax=given[:2])
    with pytest.raises(TypeError, match="ax must be one matplotlib Axes"):
        spatial(predicted, "VIM", ax=[1, 2, 3])
    _, five = plt.subplots(1, 5)
    two = spatial(predicted, ["VIM", "ACTB"], ax=five)
    assert [list(row) for row in two] == [[five[0], five[1], five[2]], [five[0], five[3], five[4]]]
    with pytest.raises(ValueError, match="ax needs 5 Axes, got 3"):
        spatial(predicted, ["VIM", "ACTB"], ax=given)


def test_saving_replaces_the_file_and_closes_the_figure(predicted: SpatialData, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    path.write_text("older")
    spatial(predicted, "VIM", save=path)
    assert plt.imread(path).ndim == 3
    assert list(tmp_path.iterdir()) == [path]
    assert not plt.get_fignums()


def test_a_figure_that_cannot_be_saved_leaves_nothing(predicted: SpatialData, tmp_path: Path) -> None:
    path = tmp_path / "map.xyz"
    path.write_text("older")
    with pytest.raises(ValueError, match=r"'map.xyz': its name must end in one of .*'.png'"):
        spatial(predicted, "VIM", save=path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        spatial(predicted, "VIM", save=tmp_path / "nope" / "map.png")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]
    assert not plt.get_fignums()


def test_the_object_is_not_changed(predicted: SpatialData) -> None:
    table = predicted["table"]
    before = (table.X.copy(), table.obsm["pred_m2ost"].copy(), table.obs.copy(), predicted["spots"].copy())
    spatial(predicted, ["VIM", "ERBB2"])
    np.testing.assert_array_equal(table.X, before[0])
    np.testing.assert_array_equal(table.obsm["pred_m2ost"], before[1])
    pd.testing.assert_frame_equal(table.obs, before[2])
    assert predicted["spots"].equals(before[3])


def test_the_only_prediction_is_the_default(predicted: SpatialData) -> None:
    table = predicted["table"]
    for slots in (table.obsm, table.uns["st_predict"]):
        slots["mine"] = slots.pop("pred_m2ost")
    assert spatial(predicted, "VIM").shape == (1, 3)
    table.obsm["pred_b"], table.uns["st_predict"]["pred_b"] = table.obsm["mine"], table.uns["st_predict"]["mine"]
    with pytest.raises(
        InvalidValueError, match=r"Several predictions found: \['mine', 'pred_b'\]. Choose one with key="
    ):
        spatial(predicted, "VIM")


def test_advice_is_about_arguments_of_this_plot(predicted: SpatialData) -> None:
    with pytest.raises(
        InvalidValueError, match=r"with st_predict\.tl\.predict\(.*, or leave them out with std=False\."
    ):
        spatial(predicted, "VIM", std=True)
    with pytest.raises(NotFoundError, match=r"the table has \[\]. Leave out layer= to take X\."):
        spatial(predicted, "VIM", layer="raw")
    set_transformation(predicted["he"], Scale([0.5, 0.4], axes=("x", "y")), "um")
    with pytest.raises(InvalidValueError, match="Pixels are not square") as caught:
        spatial(predicted, "VIM")
    assert "mpp=" not in str(caught.value)
    del predicted["table"].uns["st_predict"]["pred_m2ost"]["genes"]
    set_transformation(predicted["he"], Scale([0.5, 0.5], axes=("x", "y")), "um")
    with pytest.raises(InvalidValueError, match="gene names of 'pred_m2ost' are unknown") as caught:
        spatial(predicted, "VIM")
    assert "genes=" not in str(caught.value)  # they are those to draw


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("genes", None),
        ("genes", 3),
        ("genes", [3]),
        ("key", 3),
        ("layer", ["counts"]),
        ("table_key", 3),
        ("image_key", 3),
        ("region", 3),
        ("tissue", "yes"),
        ("std", None),
        ("scale", 3),
        ("vmin", "low"),
        ("vmax", np.inf),
        ("norm", "log"),
        ("ncols", 0),
        ("tissue_strength", "half"),
        ("tissue_strength", np.nan),
        ("spot_scale", None),
        ("margin", np.inf),
        ("percentiles", 2),
        ("percentiles", ("a", "b")),
        ("cmap", 3),
        ("ax", 3),
        ("figsize", (3,)),
        ("save", 3),
        ("show", 1),
    ],
)
def test_arguments_of_another_type_are_named(predicted: SpatialData, argument: str, value: object) -> None:
    with pytest.raises(StPredictError, match=rf"^{argument}.* (must be|must be|is missing)"):
        spatial(**{"sdata": predicted, "genes": "VIM", argument: value})
    with pytest.raises(InvalidTypeError, match="sdata must be a SpatialData object, got a list of 1"):
        spatial([predicted], "VIM")
    assert not plt.get_fignums()


def test_a_colour_map_that_does_not_exist(predicted: SpatialData) -> None:
    with pytest.raises(
        InvalidValueError, match=r"Unknown colour map 'virdis'; similar ones of matplotlib are \['viridis'"
    ):
        spatial(predicted, "VIM", cmap="virdis")
    assert not plt.get_fignums()


def test_titles_have_the_scores_of_the_card(predicted: SpatialData) -> None:
    record = predicted["table"].uns["st_predict"]["pred_m2ost"]
    card = ModelCard.from_json(record["card"])
    scores = Reliability(
        held_out="patient",
        sections=("X1",),
        patients=("X",),
        n_spots=300,
        partial=(0.5, 0.126, None, 0.1, 0.1),
        low=(0.4, -0.1, None, 0.1, 0.1),
        high=(0.6, 0.3, None, 0.1, 0.1),
        ceiling=(0.9,) * 5,
    )
    for held_out in ("patient", "section"):
        record["card"] = replace(card, reliability=(replace(scores, held_out=held_out),)).to_json()
        titles = [row[2].get_title() for row in spatial(predicted, ["ERBB2", "COL1A1", "ACTB"])]
        assert [" ".join(title.splitlines()[2:]) for title in titles] == [
            f"r = 0.50 (0.40 to 0.60), another {held_out}",
            f"not reliable: r = 0.13 (-0.10 to 0.30), another {held_out}",
            f"not measured on another {held_out}",
        ]


def test_spots_beside_the_tissue_are_in_no_correlation(predicted: SpatialData, observed: pd.DataFrame) -> None:
    table, gene = predicted.tables["table"], "ACTB"
    on = np.arange(table.n_obs) % 3 > 0
    table.obs["in_tissue"] = on.astype(int)
    pair = pd.concat([get.frame(predicted)[gene], observed[gene]], axis=1)
    r = pearsonr(*pair.loc[table.obs_names[on].intersection(pair.dropna().index)].to_numpy().T).statistic
    assert f"plain r = {r:.2f}" in spatial(predicted, gene)[0, 2].get_title()
    everything = spatial(predicted, gene)[0, 2].get_title()
    del table.obs["in_tissue"]
    assert spatial(predicted, gene)[0, 2].get_title() != everything


@pytest.mark.parametrize(
    ("kind", "line"), [(list, "for section in sections: "), (dict, "for section in sections.values(): ")]
)
def test_several_sections_are_drawn_in_a_loop(predicted: SpatialData, kind: type, line: str) -> None:
    sections = {"A": predicted} if kind is dict else [predicted]
    for draw in (
        lambda given: stp.pl.spatial(given, "ACTB"),
        stp.pl.pca_map,
        lambda given: stp.pl.crops(given, stp.models.get_spec("m2ost").crop),
    ):
        with pytest.raises(InvalidTypeError) as raised:
            draw(sections)
        assert line in str(raised.value)
    drawn: list[object] = []
    exec(line + "drawn.append(spatial(section, 'ACTB'))", {"sections": sections, "drawn": drawn, "spatial": spatial})
    assert len(drawn) == 1
