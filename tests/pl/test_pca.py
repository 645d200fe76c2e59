from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pytest

from st_predict import get
from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict.pl import pca_map

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

GENES = ["ERBB2", "COL1A1", "ACTB", "KRT8", "VIM"]


def components(expression: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and first three axes ``(3, n_genes)``, by the singular values."""
    centre = expression.mean(axis=0)
    return centre, np.linalg.svd(expression - centre, full_matrices=False)[2][:3]


def scaled(scores: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.percentile(reference, (2, 98), axis=0)
    return ((scores - low) / (high - low)).clip(0, 1)


def same_up_to_sign(drawn: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """An axis may point either way; 0 and 1 are then exchanged."""
    for one, other in zip(drawn.T, expected.T, strict=True):
        assert np.allclose(one, other, atol=1e-4) or np.allclose(one, 1 - other, atol=1e-4)


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
        same_up_to_sign(colours[:, :3], scaled((expression - centre) @ turned.T, reference))
        assert set(colours[:, 3]) == {1}


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
    same_up_to_sign(axes[0, 1].collections[0].get_facecolors()[:, :3], scaled(projected, projected))


def test_without_counts_the_prediction_is_drawn_alone(predicted: SpatialData) -> None:
    predicted["table"].X = None
    axes = pca_map(predicted)
    assert [one.get_title().split("\n")[0] for one in axes[0]] == ["H&E", "predicted"]
    prediction = get.frame(predicted).dropna().to_numpy(np.float64)
    centre, turned = components(prediction)
    projected = (prediction - centre) @ turned.T
    same_up_to_sign(axes[0, 1].collections[0].get_facecolors()[:, :3], scaled(projected, projected))


def test_genes_that_the_units_need_are_missing(without_krt8: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    axes = pca_map(without_krt8)
    assert [one.get_title().split("\n")[0] for one in axes[0]] == ["H&E", "predicted"]
    assert "1 of 5 panel genes are not in the table" in caplog.text
    assert "only the prediction is drawn" in caplog.text


def test_titles_say_how_much_the_components_explain(predicted: SpatialData, observed: pd.DataFrame) -> None:
    measured = observed[GENES].to_numpy(np.float64)
    variance = np.linalg.svd(measured - measured.mean(axis=0), compute_uv=False) ** 2
    shares = [f"{share:.0%}" for share in variance[:3] / variance.sum()]
    expected = f"red PC1 ({shares[0]}), green PC2 ({shares[1]}), blue PC3 ({shares[2]})"
    assert [one.get_title() for one in pca_map(predicted)[0]] == [
        "H&E",
        f"observed\n{expected}",
        f"predicted\n{expected}",
    ]


def test_a_constant_prediction_has_one_colour(predicted: SpatialData) -> None:
    predicted["table"].obsm["pred_m2ost"][:] = 10
    for colours in ("shared", "each"):
        drawn = pca_map(predicted, colours=colours)[0, 2].collections[0].get_facecolors()
        np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[0], drawn.shape))


def test_too_little_to_fit(predicted: SpatialData) -> None:
    predicted["table"].X[3:] = 0
    with pytest.raises(ValueError, match="need at least 4 spots and 3 genes with values, got 3 and 5"):
        pca_map(predicted)
    with pytest.raises(ValueError, match="colours must be 'shared' or 'each', got 'both'"):
        pca_map(predicted, colours="both")
    assert not plt.get_fignums()


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
