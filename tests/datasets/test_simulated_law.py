"""Options of the simulator: each against its law, a statistic with a known value, or the image."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats
from skimage.color import rgb2hed

from st_predict import metrics
from st_predict._errors import InvalidValueError
from st_predict.datasets import Simulation, simulate, toy
from st_predict.datasets._expression import COVARIATES
from st_predict.datasets._histology import draw_style

pytestmark = pytest.mark.slow

SIDE, MPP = 1504, 2.0  # 3 mm
INSIDE = np.s_[60:-60, 60:-60]  # of images at 8 um per pixel; all sections have a white margin
ALL = ("nuclei", "region", "cross")
TOY_COUNTS, TOY_COLOURS = [648, 309, 805, 191, 423, 715, 693, 829], [197.893, 155.09, 187.112]


@pytest.fixture(scope="module")
def cuts() -> Simulation:
    """Two patients with two cuts of one block each, with few counts."""
    return simulate(
        2,
        2,
        shape=(SIDE, SIDE),
        mpp=MPP,
        mean_count=2.6,
        programmes=ALL,
        depth="cellularity",
        cuts="consecutive",
        seed=11,
    )


@pytest.fixture(scope="module")
def plain() -> Simulation:
    """The same patients with the default arguments."""
    return simulate(2, 2, shape=(SIDE, SIDE), mpp=MPP, seed=11)


def moran(values: np.ndarray, obs: pd.DataFrame) -> float:
    """Moran's I with the four neighbours on the lattice, from its definition."""
    place = obs[["array_row", "array_col"]].to_numpy(float)
    near = np.abs(place[:, None] - place).sum(axis=-1) == 1
    z = values - values.mean()
    return len(z) / near.sum() * (z @ near @ z) / (z @ z)


def hematoxylin(simulation: Simulation, name: str) -> np.ndarray:
    """Hematoxylin at 8 um per pixel, as scikit-image separates it."""
    image = np.moveaxis(simulation.sections[name]["he"]["scale1"]["image"].to_numpy(), 0, -1)
    fine = rgb2hed(image)[..., 0]
    return fine.reshape(SIDE // 4, 2, SIDE // 4, 2).mean(axis=(1, 3))


def explained(covariates: list[np.ndarray], values: np.ndarray) -> float:
    """Share of the variance that a sum of cubic polynomials explains."""
    design = np.column_stack([np.ones(len(values)), *(c**k for c in covariates for k in (1, 2, 3))])
    rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return 1 - rest.var() / values.var()


def test_old_arguments_give_the_sections_that_they_gave() -> None:
    """Figures of the first release; another version of NumPy may move single counts."""
    table, image = toy()["table"], toy()["he"]["scale0"]["image"].to_numpy()
    np.testing.assert_allclose(table.to_df().sum().to_numpy(), TOY_COUNTS, rtol=0.02)
    np.testing.assert_allclose(image.mean(axis=(1, 2)), TOY_COLOURS, rtol=1e-3)
    explicit = simulate(
        1,
        1,
        n_genes=8,
        shape=(720, 880),
        mpp=1.2,
        programmes=["nuclei", "region"],
        depth="random",
        cuts="separate",
        stain_shift=1.0,
        expression_shift=1.0,
        dispersion=0.08,
    ).sections["P1S1"]
    np.testing.assert_array_equal(explicit["table"].X.toarray(), table.X.toarray())
    np.testing.assert_array_equal(explicit["he"]["scale0"]["image"].to_numpy(), image)


@pytest.mark.parametrize(
    ("programmes", "expected"),
    [
        (("nuclei", "region", "cross"), {"nuclei": 16, "region": 16, "cross": 16, "none": 12}),
        (["cross"], {"cross": 48, "none": 12}),
        (["cross", "nuclei", "nuclei"], {"nuclei": 24, "cross": 24, "none": 12}),
        ([], {"none": 60}),
    ],
)
def test_programmes_share_four_genes_in_five(programmes: list[str], expected: dict[str, int]) -> None:
    genes = simulate(1, 1, shape=(400, 400), seed=3, programmes=programmes).genes
    assert genes["programme"].value_counts().to_dict() == expected
    driven = genes[genes["programme"] != "none"]
    assert set(driven["covariate"]) == set(COVARIATES.index[COVARIATES["programme"].isin(expected)])
    assert (driven.groupby("covariate")["effect"].sum().abs() < 1e-9).all()


def test_a_cross_gene_follows_the_product_of_its_two_scales(cuts: Simulation) -> None:
    for truth in cuts.truth.values():
        for gene, row in cuts.genes.query("programme == 'cross'").iterrows():
            spot, region = row["covariate"].split(":")
            known = COVARIATES.loc[[spot, region]]
            z = (truth.covariates[[spot, region]] - known["centre"]) / known["spread"]
            product = np.tanh(z[spot]) * np.tanh(z[region])
            law = stats.linregress(product, truth.log_rate[gene])
            assert law.slope == pytest.approx(row["effect"] / COVARIATES.loc[row["covariate"], "spread"], rel=0.15)
            assert abs(law.rvalue) > 0.99


def test_neither_scale_nor_their_sum_predicts_a_cross_gene() -> None:
    simulation = simulate(3, 1, n_genes=10, shape=(1600, 1600), seed=1, programmes=["cross"])
    covariates = pd.concat([truth.covariates for truth in simulation.truth.values()])
    for name in COVARIATES.index[COVARIATES["programme"] == "cross"]:
        known = COVARIATES.loc[name.split(":")]
        spot, region = np.tanh((covariates[known.index] - known["centre"]) / known["spread"]).to_numpy().T
        values = covariates[name].to_numpy()
        assert max(explained([spot], values), explained([region], values), explained([spot, region], values)) < 0.2
        assert explained([spot * region], values) > 0.99


def test_depth_follows_cellularity_and_is_as_smooth_as_on_measured_sections(
    cuts: Simulation, plain: Simulation
) -> None:
    """Log total counts of her2st C2 to C5 have Moran's I of 0.53 to 0.64 by the same formula, up to 0.81 by others."""
    found: dict[str, list[tuple[float, float]]] = {}
    for kind, simulation in {"cells": cuts, "random": plain}.items():
        for name, sdata in simulation.sections.items():
            table = sdata["table"]
            log_total = np.log1p(table.X.toarray().sum(axis=1))
            blurred = ndimage.gaussian_filter(hematoxylin(simulation, name), 150 / 8)
            col, row = (table.obsm["spatial"] * MPP / 8).astype(int).T
            seen = np.corrcoef(np.log(simulation.truth[name].depth), blurred[row, col])[0, 1]
            found.setdefault(kind, []).append((moran(log_total, table.obs), seen))
    smooth, seen = np.array(found["cells"]).T
    assert 0.55 <= smooth.mean() <= 0.8
    assert smooth.min() > 0.5
    assert smooth.max() < 0.85
    assert seen.min() > 0.4
    smooth, seen = np.array(found["random"]).T
    assert np.abs(smooth).max() < 0.25
    assert np.abs(seen).max() < 0.25


def test_cuts_of_a_block_are_laid_out_alike_and_separate_sections_are_not(cuts: Simulation, plain: Simulation) -> None:
    alike = {}
    for kind, simulation in {"cuts": cuts, "separate": plain}.items():
        for patient in ("P1", "P2"):
            first, second = (
                simulation.truth[f"{patient}S{s}"].covariates["spot_epithelium"].rename(lambda n: n.split("_")[1])
                for s in (1, 2)
            )
            images = [ndimage.gaussian_filter(hematoxylin(simulation, f"{patient}S{s}"), 60 / 8) for s in (1, 2)]
            alike[kind, patient] = first.corr(second), np.corrcoef(*(image[INSIDE].ravel() for image in images))[0, 1]
    assert min(alike["cuts", "P1"] + alike["cuts", "P2"]) > 0.7
    assert max(alike["separate", "P1"] + alike["separate", "P2"]) < 0.4
    one, other = (cuts.sections[f"P1S{s}"]["he"]["scale0"]["image"].to_numpy().astype(float) for s in (1, 2))
    details = [image[1] - ndimage.gaussian_filter(image[1], 6 / MPP) for image in (one, other)]
    assert abs(np.corrcoef(*(d.ravel() for d in details))[0, 1]) < 0.2  # nuclei are other nuclei


def test_blocks_of_patients_differ(cuts: Simulation) -> None:
    first, second = (ndimage.gaussian_filter(hematoxylin(cuts, f"P{p}S1"), 60 / 8) for p in (1, 2))
    assert abs(np.corrcoef(first[INSIDE].ravel(), second[INSIDE].ravel())[0, 1]) < 0.4


def test_few_counts_have_as_many_zeros_as_the_negative_binomial(cuts: Simulation) -> None:
    zeros, expected, counts = [], [], []
    for name, truth in cuts.truth.items():
        mean = np.exp(truth.log_rate).mul(truth.depth, axis=0).to_numpy()
        observed = cuts.sections[name]["table"].X.toarray()
        zeros.append((observed == 0).mean())
        expected.append(stats.nbinom.pmf(0, 1 / 0.08, 1 / (1 + 0.08 * mean)).mean())
        counts.append(observed.mean())
    np.testing.assert_allclose(zeros, expected, atol=0.01)
    assert np.mean(counts) == pytest.approx(1.4 * 2.6, rel=0.25)  # the levels of genes are drawn


@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_variance_of_counts_is_that_of_the_dispersion(dispersion: float) -> None:
    simulation = simulate(1, 1, shape=(1000, 1000), mpp=2.0, n_genes=200, seed=2, dispersion=dispersion)
    truth, table = simulation.truth["P1S1"], simulation.sections["P1S1"]["table"]
    mean = np.exp(truth.log_rate).mul(truth.depth, axis=0).to_numpy()
    squares = (table.X.toarray() - mean) ** 2 / (mean + dispersion * mean**2)
    assert squares.mean() == pytest.approx(1, abs=0.08)


def residuals(share: np.ndarray):
    def transform(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
        usual = totals[:, None] * share
        return (counts - usual) / np.sqrt(usual + usual**2 / 100 + 1e-9)

    return transform


@pytest.mark.parametrize("kind", ["cuts", "plain"])
def test_ceilings_agree_with_thinning_and_with_a_perfect_predictor(kind: str, request: pytest.FixtureRequest) -> None:
    simulation: Simulation = request.getfixturevalue(kind)
    driven = (simulation.genes["programme"] != "none").to_numpy()
    for name, sdata in simulation.sections.items():
        counts, truth = sdata["table"].X.toarray().astype(int), simulation.truth[name]
        mean = np.exp(truth.log_rate).mul(truth.depth, axis=0).to_numpy()
        transform = residuals(counts.sum(axis=0) / counts.sum())
        totals = counts.sum(axis=1)
        ceiling = sdata["table"].var[["ceiling", "noise_ceiling"]].to_numpy()
        thinned = metrics.noise_ceiling(counts, totals, transform, seed=0, n_splits=20)
        perfect = metrics.pearson(transform(mean, mean.sum(axis=1)), transform(counts, totals), axis=0)
        for own, other in zip(ceiling.T, (perfect, thinned), strict=True):
            assert np.mean(own[driven] - other[driven]) == pytest.approx(0, abs=0.04)
            assert np.corrcoef(own[driven], other[driven])[0, 1] > 0.6
        assert (ceiling[:, 0] <= ceiling[:, 1]).all()


def test_both_ceilings_are_one_for_poisson_counts() -> None:
    var = simulate(1, 1, shape=(480, 480), seed=1, dispersion=0.0).sections["P1S1"]["table"].var
    np.testing.assert_allclose(var["ceiling"], var["noise_ceiling"])


def test_shift_of_expression_scales_differences_of_patients() -> None:
    differences = []
    for shift in (0.0, 1.0, 3.0):
        simulation = simulate(2, 1, n_genes=50, shape=(400, 400), seed=3, expression_shift=shift, programmes=[])
        level = [simulation.truth[name].log_rate.iloc[0].to_numpy() for name in ("P1S1", "P2S1")]
        differences.append(level[0] - level[1])
    np.testing.assert_allclose(differences[0], 0, atol=1e-12)
    np.testing.assert_allclose(differences[2], 3 * differences[1], atol=1e-9)
    assert differences[1].std() == pytest.approx(np.sqrt(2 * (0.3**2 + 0.1**2)), rel=0.25)


def test_shift_of_stain_scales_differences_of_patients() -> None:
    strength = {shift: np.log(draw_style(np.random.default_rng(3), shift=shift).strength) for shift in (0.0, 1.0, 3.0)}
    np.testing.assert_allclose(strength[0.0], 0)
    np.testing.assert_allclose(strength[3.0], 3 * strength[1.0])


def test_without_shift_of_stain_colours_are_those_of_the_stains() -> None:
    """By Beer-Lambert's law, optical densities lie in the plane of both stains."""
    normals = {}
    for shift in (0.0, 4.0):
        for patient, sdata in simulate(2, 1, n_genes=2, shape=(480, 480), seed=3, stain_shift=shift).sections.items():
            image = sdata["he"]["scale1"]["image"].to_numpy().reshape(3, -1).astype(float)
            density = -np.log(np.maximum(image, 1) / np.array([[243.0], [241.0], [244.0]]))
            density = density[:, density.sum(axis=0) > 0.5]
            normals[shift, patient] = np.linalg.svd(density, full_matrices=False)[0][:, 2]
    usual = np.cross([0.60, 0.71, 0.37], [0.16, 0.86, 0.48])
    usual /= np.linalg.norm(usual)
    close = {key: abs(normal @ usual) for key, normal in normals.items()}
    assert min(close[0.0, "P1S1"], close[0.0, "P2S1"]) > 0.995
    assert min(close[4.0, "P1S1"], close[4.0, "P2S1"]) < 0.99


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("programmes", "cross", "programmes must be"),
        ("programmes", ["far"], r"programmes\.0 must be 'nuclei', 'region' or 'cross', got 'far'"),
        ("depth", "deep", "depth must be 'random' or 'cellularity', got 'deep'"),
        ("cuts", True, "cuts must be 'separate' or 'consecutive'"),
        ("stain_shift", -1.0, "stain_shift must be at least 0"),
        ("expression_shift", None, "expression_shift must be"),
        ("dispersion", float("inf"), "dispersion must be a finite number"),
    ],
)
def test_options_that_do_not_exist_are_refused(argument: str, value: object, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        simulate(**{argument: value})
