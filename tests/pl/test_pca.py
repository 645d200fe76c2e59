from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from st_predict import get
from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.pl import pca_map
from st_predict.pl._palette import colours_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

GENES = ["ERBB2", "COL1A1", "ACTB", "KRT8", "VIM"]


def components(expression: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and first two axes ``(2, n_genes)``, by the singular values."""
    centre = expression.mean(axis=0)
    return centre, np.linalg.svd(expression - centre, full_matrices=False)[2][:2]


def scaled(scores: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.percentile(reference, (2, 98), axis=0)
    return ((scores - low) / (high - low)).clip(0, 1)


def even_in_lab(colours: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Equal steps of a value are equal steps in CIELAB, whichever way an axis points."""
    assert set(colours[:, 3]) == {1}
    lab = rgb2lab(colours[:, :3])
    terms = np.column_stack([np.ones(len(values)), values])
    fitted = terms @ np.linalg.lstsq(terms, lab, rcond=None)[0]
    np.testing.assert_allclose(lab, fitted, atol=0.05)
    assert np.ptp(lab[:, 0]) > 15
    lightness, blue_to_yellow = (np.abs(np.linalg.lstsq(terms, lab[:, axis], rcond=None)[0][1:3]) for axis in (0, 2))
    assert lightness[0] > lightness[1]  # by the first component, and hue by the second
    assert blue_to_yellow[1] > blue_to_yellow[0]
    assert np.ptp(lab[:, 2]) > 15


def test_both_maps_are_projected_on_what_was_observed(predicted: SpatialData, observed: pd.DataFrame) -> None:
    axes = pca_map(predicted)
    assert axes.shape == (1, 3)
    measured = observed[GENES].to_numpy(np.float64)
    prediction = get.frame(predicted)[GENES].dropna().to_numpy(np.float64)
    centre, turned = components(measured)
    reference = (measured - centre) @ turned.T
    for one, expression in ((axes[0, 1], measured), (axes[0, 2], prediction)):
        colours = one.collections[0].get_facecolors()
        assert colours.shape == (11, 4)
        even_in_lab(colours, scaled((expression - centre) @ turned.T, reference))


def test_the_same_expression_has_the_same_colour(predicted: SpatialData, observed: pd.DataFrame) -> None:
    frame = get.frame(predicted)
    frame.loc[observed.index, GENES] = observed[GENES].to_numpy(np.float32)
    predicted["table"].obsm["pred_m2ost"] = frame.to_numpy()
    first, second = (one.collections[0].get_facecolors() for one in pca_map(predicted)[0, 1:])
    names = predicted["table"].obs_names
    of_predicted = dict(zip(names[frame[GENES].notna().all(axis=1)], second, strict=True))
    for name, colour in zip(observed.index, first, strict=True):
        np.testing.assert_allclose(of_predicted[name], colour, atol=1e-5)


def test_each_map_may_be_scaled_by_itself(predicted: SpatialData, observed: pd.DataFrame) -> None:
    axes = pca_map(predicted, colours="each", tissue=False)
    centre, turned = components(observed[GENES].to_numpy(np.float64))
    prediction = get.frame(predicted)[GENES].dropna().to_numpy(np.float64)
    projected = (prediction - centre) @ turned.T
    even_in_lab(axes[0, 1].collections[0].get_facecolors(), scaled(projected, projected))


def test_without_counts_the_prediction_is_drawn_alone(predicted: SpatialData) -> None:
    predicted["table"].X = None
    axes = pca_map(predicted)
    assert [one.get_title().split("\n")[0] for one in axes[0]] == ["H&E", "predicted"]
    prediction = get.frame(predicted).dropna().to_numpy(np.float64)
    centre, turned = components(prediction)
    projected = (prediction - centre) @ turned.T
    even_in_lab(axes[0, 1].collections[0].get_facecolors(), scaled(projected, projected))


def test_genes_that_the_units_need_are_missing(without_krt8: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    axes = pca_map(without_krt8)
    assert [one.get_title().split("\n")[0] for one in axes[0]] == ["H&E", "predicted"]
    assert "1 of 5 panel genes are not in the table" in caplog.text
    assert "only the prediction is drawn" in caplog.text


def test_titles_say_how_much_the_components_explain(predicted: SpatialData, observed: pd.DataFrame) -> None:
    measured = observed[GENES].to_numpy(np.float64)
    variance = np.linalg.svd(measured - measured.mean(axis=0), compute_uv=False) ** 2
    shares = [f"{share:.0%}" for share in variance[:3] / variance.sum()]
    expected = f"PC1 {shares[0]}, PC2 {shares[1]} of variance"
    assert [one.get_title() for one in pca_map(predicted)[0]] == [
        "H&E",
        f"observed\n{expected}",
        f"predicted\n{expected}",
    ]
    other = pca_map(predicted, components=[3, 2])[0, 1].get_title()
    assert other == f"observed\nPC3 {shares[2]}, PC2 {shares[1]} of variance"


def test_a_constant_prediction_has_one_colour(predicted: SpatialData) -> None:
    predicted["table"].obsm["pred_m2ost"][:] = 10
    for colours in ("shared", "each"):
        drawn = pca_map(predicted, colours=colours)[0, 2].collections[0].get_facecolors()
        np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[0], drawn.shape))


@pytest.mark.parametrize("components", [(1, 2), [2, 1], (1, 2, 3)])
def test_a_legend_has_the_colours_and_names_of_the_components(
    predicted: SpatialData, components: tuple[int, ...]
) -> None:
    axes = pca_map(predicted, components=components)
    square, *strip = axes[0, -1].child_axes
    names = [f"PC{number}" for number in components]
    assert [square.get_ylabel(), square.get_xlabel(), *(one.get_xlabel() for one in strip)] == names
    lab = rgb2lab(square.images[0].get_array())
    assert (np.diff(lab[..., 0], axis=0) > 0).all()  # upwards: lighter
    assert (np.diff(lab[..., 2], axis=1) > 0).all()  # to the right: yellower
    assert [label.get_text() for label in square.get_yticklabels()] == ["low", "high"]
    for one in strip:
        row = rgb2lab(one.images[0].get_array())[0]
        assert (np.diff(row[:, 1]) > 0).all()
        assert np.ptp(row[:, 0]) < 0.1


# Machado, Oliveira and Fernandes (2009), table of severity 1.0, for linear RGB
MACHADO = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def seen(rgb: NDArray[np.float64], defect: str) -> NDArray[np.float64]:
    """CIELAB of colours as a dichromat sees them."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    there = (linear @ np.array(MACHADO[defect]).T).clip(0, 1)
    return rgb2lab(np.where(there <= 0.0031308, 12.92 * there, 1.055 * there ** (1 / 2.4) - 0.055))


def smallest_difference(colours: Callable[[NDArray[np.float64]], NDArray[np.float64]], n: int, defect: str) -> float:
    """Smallest CIEDE2000 of two spots that differ by half of the range in the first two components."""
    first, second = np.random.default_rng(0).random((2, 5000, n))
    far = np.linalg.norm((first - second)[:, :2], axis=1) > 0.5
    return float(deltaE_ciede2000(seen(colours(first[far]), defect), seen(colours(second[far]), defect)).min())


@pytest.mark.parametrize("defect", MACHADO)
def test_different_spots_look_different_to_colour_blind_readers(defect: str) -> None:
    # a difference of 2 is just noticeable
    assert smallest_difference(colours_of, 2, defect) > 12
    assert smallest_difference(colours_of, 3, defect) > 8
    assert smallest_difference(lambda components: components, 3, defect) < 2  # red, green and blue


def test_too_little_to_fit(predicted: SpatialData) -> None:
    predicted["table"].X[3:] = 0
    assert pca_map(predicted).shape == (1, 3)
    with pytest.raises(ValueError, match=r"3 needs at least 4 spots and 3 genes with values, got 3 and 5.*\(1, 2\)"):
        pca_map(predicted, components=(1, 3))
    with pytest.raises(ValueError, match="colours must be 'shared' or 'each', got 'both'"):
        pca_map(predicted, colours="both")
    plt.close("all")
    predicted["table"].X[1:] = 0
    with pytest.raises(ValueError, match="2 needs at least 3 spots and 2 genes with values, got 1 and 5"):
        pca_map(predicted)
    assert not plt.get_fignums()


@pytest.mark.parametrize("components", [(1,), (1, 1), (1, 2, 3, 4), (0, 1), 2, "PC1"])
def test_other_components_are_refused(predicted: SpatialData, components: object) -> None:
    with pytest.raises(InvalidValueError, match="components"):
        pca_map(predicted, components=components)


def test_saved(predicted: SpatialData, tmp_path: Path) -> None:
    axes = pca_map(predicted, save=tmp_path / "pca.pdf")
    assert (tmp_path / "pca.pdf").read_bytes().startswith(b"%PDF")
    assert axes[0, 0].figure.number not in plt.get_fignums()


def test_the_only_prediction_is_the_default(predicted: SpatialData) -> None:
    table = predicted["table"]
    for slots in (table.obsm, table.uns["st_predict"]):
        slots["mine"] = slots.pop("pred_m2ost")
    assert pca_map(predicted).shape == (1, 3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("colours", None), ("key", 3), ("layer", 3), ("tissue", 1), ("margin", "wide"), ("figsize", 3)],
)
def test_arguments_of_another_type_are_named(predicted: SpatialData, argument: str, value: object) -> None:
    with pytest.raises(InvalidValueError, match=f"^{argument} must be"):
        pca_map(predicted, **{argument: value})
    with pytest.raises(InvalidTypeError, match=r"sdata must be a SpatialData object, got the path 's\.zarr'"):
        pca_map("s.zarr")
    assert not plt.get_fignums()
