"""Simulated sections: layout, and whether image, truth and counts say the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
import spatialdata
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2hed
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from st_predict._errors import InvalidValueError
from st_predict.datasets import Simulation, simulate, toy
from st_predict.datasets._expression import COVARIATES, DISPERSION
from st_predict.io import find_mpp, read_legacy_st

SIDE, MPP = 1600, 1.0


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(2, 2, shape=(SIDE, SIDE), mpp=MPP, seed=5)


@pytest.fixture(scope="module")
def measured(simulation: Simulation) -> pd.DataFrame:
    """Mean hematoxylin of each spot, its crop and the rings around it, as scikit-image sees it, and the covariates."""
    tables = []
    for name, sdata in simulation.sections.items():
        hematoxylin = rgb2hed(pixels(sdata, "scale1"))[..., 0]
        rows = [hematoxylin_around(hematoxylin, x, y) for x, y in sdata["table"].obsm["spatial"]]
        seen = pd.DataFrame(rows, index=sdata["table"].obs_names)
        both = pd.concat([seen, simulation.truth[name].covariates], axis=1)
        # patients and sections differ in stain
        tables.append(both - both.mean())
    return pd.concat(tables)


def hematoxylin_around(hematoxylin: np.ndarray, x: float, y: float) -> dict[str, float]:
    row, col = np.ogrid[: SIDE // 2, : SIDE // 2]
    dx, dy = np.abs(2 * col + 1 - x), np.abs(2 * row + 1 - y)
    square = np.maximum(dx, dy)
    return {
        "spot": hematoxylin[np.hypot(dx, dy) < 50].mean(),
        "crop": hematoxylin[square < 112].mean(),
        "near": hematoxylin[(square >= 112) & (square < 224)].sum() / 224**2,
        "far": hematoxylin[(square >= 224) & (square < 448)].sum() / 448**2,
    }


def pixels(sdata: spatialdata.SpatialData, scale: str) -> np.ndarray:
    return np.moveaxis(sdata["he"][scale]["image"].to_numpy(), 0, -1)


def log_cpm(simulation: Simulation, name: str) -> pd.DataFrame:
    counts = simulation.sections[name]["table"].to_df()
    return np.log1p(1e6 * counts.div(counts.sum(axis=1), axis=0))


def digest(simulation: Simulation) -> str:
    found = hashlib.sha256()
    for name, sdata in simulation.sections.items():
        found.update(name.encode())
        for scale in sdata["he"].children:
            found.update(pixels(sdata, scale).tobytes())
        found.update(sdata["table"].X.toarray().tobytes())
        found.update(sdata["table"].obs.to_csv().encode())
        found.update(sdata["spots"].to_wkb().to_csv().encode())
        found.update(simulation.truth[name].log_rate.to_numpy().tobytes())
    found.update(simulation.genes.to_csv().encode())
    return found.hexdigest()


def test_same_seed_same_bytes_and_another_seed_others():
    first, again, other = (simulate(1, 1, shape=(480, 480), n_genes=10, seed=seed) for seed in (1, 1, 2))
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)


def test_a_section_does_not_depend_on_how_many_others_there_are():
    alone = simulate(1, 1, shape=(480, 480), n_genes=10, seed=1)
    among = simulate(2, 2, shape=(480, 480), n_genes=10, seed=1)
    assert list(among.sections) == ["P1S1", "P1S2", "P2S1", "P2S2"]
    only_first = Simulation(
        sections={"P1S1": among.sections["P1S1"]}, truth={"P1S1": among.truth["P1S1"]}, genes=among.genes
    )
    assert digest(alone) == digest(only_first)
    images = {pixels(sdata, "scale0").tobytes() for sdata in among.sections.values()}
    assert len(images) == 4


def test_layout_of_a_section(simulation: Simulation):
    sdata = simulation.sections["P2S1"]
    Image2DModel().validate(sdata["he"])
    ShapesModel().validate(sdata["spots"])
    TableModel().validate(sdata["table"])
    table = sdata["table"]
    assert list(sdata.images) == ["he"] and list(sdata.shapes) == ["spots"] and list(sdata.tables) == ["table"]
    assert set(sdata.coordinate_systems) == {"global", "um"}
    assert table.uns["assay"] == "legacy_st"
    assert set(table.obs["patient"]) == {"P2"} and set(table.obs["section"]) == {"P2S1"}
    assert list(table.obs_names) == [
        f"P2S1_{x}x{y}" for x, y in zip(table.obs["array_col"], table.obs["array_row"], strict=True)
    ]
    assert list(table.var_names) == list(simulation.genes.index)
    counts = table.X.toarray()
    assert (counts >= 0).all() and (counts == np.round(counts)).all() and (counts.sum(axis=1) > 0).all()


@pytest.mark.parametrize("mpp", [0.8, 1.5])
def test_both_ways_to_the_resolution_agree(mpp: float):
    sdata = simulate(1, 1, shape=(800, 960), mpp=mpp, n_genes=4).sections["P1S1"]
    assert find_mpp(sdata, required=True).value == pytest.approx(mpp)
    assert find_mpp(sdata, mpp="spots", required=True).value == pytest.approx(mpp)
    assert sdata["spots"]["radius"].iloc[0] * mpp == pytest.approx(50)


def test_layout_is_that_of_a_section_that_was_read(tmp_path):
    ours = toy()
    place = ours["table"].obs[["array_col", "array_row"]].set_axis(["x", "y"], axis=1).reset_index(drop=True)
    place[["pixel_x", "pixel_y"]] = ours["table"].obsm["spatial"]
    counts = ours["table"].to_df().astype(int).set_axis([f"{x}x{y}" for x, y in place[["x", "y"]].to_numpy()])
    counts.to_csv(tmp_path / "counts.tsv", sep="\t")
    place.to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    Image.fromarray(pixels(ours, "scale0")).save(tmp_path / "he.png")
    files = (tmp_path / name for name in ("counts.tsv", "spots.tsv", "he.png"))
    read = read_legacy_st(*files, section="P1S1", patient="P1")
    pd.testing.assert_frame_equal(
        read["table"].obs[ours["table"].obs.columns], ours["table"].obs, check_categorical=False, check_like=True
    )
    assert read["table"].uns["spatialdata_attrs"] == ours["table"].uns["spatialdata_attrs"]
    assert set(read["table"].uns) == set(ours["table"].uns)
    np.testing.assert_array_equal(read["table"].X.toarray(), ours["table"].X.toarray())
    assert read["table"].X.dtype == ours["table"].X.dtype
    np.testing.assert_allclose(read["spots"].geometry.x, ours["spots"].geometry.x)
    np.testing.assert_allclose(read["spots"]["radius"], ours["spots"]["radius"])
    for scale in ours["he"].children:
        np.testing.assert_array_equal(pixels(read, scale), pixels(ours, scale))
    assert set(read.coordinate_systems) == set(ours.coordinate_systems)


def test_levels_are_means_of_two_by_two_pixels(simulation: Simulation):
    sdata = simulation.sections["P1S1"]
    image = sdata["he"]
    assert list(image.children) == ["scale0", "scale1", "scale2", "scale3"]
    for i in range(3):
        fine, coarse = (pixels(sdata, f"scale{i + k}").astype(float) for k in (0, 1))
        height, width = coarse.shape[:2]
        mean = fine.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(coarse, mean, atol=0.5)
        assert max(image[f"scale{i}"]["image"].data.chunksize) <= 512


def test_levels_lie_where_spatialdata_would_put_them(simulation: Simulation):
    image = simulation.sections["P1S1"]["he"]
    systems = get_transformation(image, get_all=True)
    expected = Image2DModel.parse(
        np.zeros((3, SIDE, SIDE), np.uint8), dims=("c", "y", "x"), scale_factors=[2, 2, 2], transformations=systems
    )
    for scale in expected.children:
        ours, theirs = image[scale]["image"], expected[scale]["image"]
        np.testing.assert_array_equal(ours["x"], theirs["x"])
        np.testing.assert_array_equal(ours["y"], theirs["y"])
        assert ours.attrs["transform"] == theirs.attrs["transform"]


def test_spots_lie_on_tissue_inside_the_image(simulation: Simulation):
    for sdata in simulation.sections.values():
        xy = sdata["table"].obsm["spatial"]
        np.testing.assert_allclose(xy, np.column_stack([sdata["spots"].geometry.x, sdata["spots"].geometry.y]))
        assert 40 <= len(xy) <= 64
        assert (xy > 50).all() and (xy < SIDE - 50).all()
        on_tissue = found_tissue(pixels(sdata, "scale1"))
        row, col = np.ogrid[: SIDE // 2, : SIDE // 2]
        share = [on_tissue[np.hypot(2 * col + 1 - x, 2 * row + 1 - y) < 50].mean() for x, y in xy]
        assert min(share) > 0.4


def found_tissue(image: np.ndarray) -> np.ndarray:
    """All that is not the white that touches the border of the image."""
    white = ndimage.binary_opening(image.min(axis=-1) > 220, iterations=2)
    pieces, _ = ndimage.label(white)
    border = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    return ~np.isin(pieces, border[border > 0])


def test_programmes_and_drivers(simulation: Simulation):
    genes = simulation.genes
    assert genes["programme"].value_counts().to_dict() == {"nuclei": 24, "region": 24, "none": 12}
    free = genes["programme"] == "none"
    assert (genes.loc[free, "effect"] == 0).all() and (genes.loc[free, "covariate"] == "").all()
    assert genes.loc[~free, "effect"].abs().between(0.5, 0.8).all()
    programme_of_driver = COVARIATES["programme"].reindex(genes.loc[~free, "covariate"]).to_numpy()
    assert (programme_of_driver == genes.loc[~free, "programme"]).all()
    assert set(genes.loc[~free, "covariate"]) == set(COVARIATES.index[COVARIATES["programme"] != "cross"])
    assert genes.groupby("covariate")["effect"].sum().abs().max() < 1e-9


def test_truth_follows_the_driver_of_each_gene(simulation: Simulation):
    for truth in simulation.truth.values():
        for gene, row in simulation.genes[simulation.genes["programme"] != "none"].iterrows():
            rank = truth.covariates[row["covariate"]].corr(truth.log_rate[gene], method="spearman")
            assert rank * np.sign(row["effect"]) > 0.98
        free = simulation.genes.index[simulation.genes["programme"] == "none"]
        np.testing.assert_allclose(truth.log_rate[free].std(), 0, atol=1e-12)


def test_a_high_correlation_with_the_truth_is_reachable(simulation: Simulation):
    reached = {}
    for name, truth in simulation.truth.items():
        rate = np.exp(truth.log_rate)
        expected = np.log1p(1e6 * rate.div(rate.sum(axis=1), axis=0))
        reached[name] = log_cpm(simulation, name).corrwith(expected).groupby(simulation.genes["programme"]).mean()
    table = pd.DataFrame(reached)
    assert (table.mean(axis=1)[["nuclei", "region"]] > 0.6).all()
    assert (table.loc["nuclei"] > 0.6).all()
    assert (table.loc["region"] > 0.4).all()  # there are sections with few lymphocytes


def test_free_genes_follow_nothing(simulation: Simulation):
    free = simulation.genes.index[simulation.genes["programme"] == "none"]
    for name, truth in simulation.truth.items():
        both = pd.concat([log_cpm(simulation, name)[free], truth.covariates], axis=1).corr()
        found = both.loc[free, truth.covariates.columns].abs().to_numpy()
        by_chance = np.sqrt(2 / np.pi / len(truth.depth))  # mean of |r| of independent values
        assert found.mean() < 1.5 * by_chance


def test_counts_are_negative_binomial_around_their_mean(simulation: Simulation):
    squares, ratios = [], []
    for name, sdata in simulation.sections.items():
        truth = simulation.truth[name]
        mean = np.exp(truth.log_rate).mul(truth.depth, axis=0).to_numpy()
        counts = sdata["table"].X.toarray()
        squares.append((counts - mean) ** 2 / (mean + DISPERSION * mean**2))
        ratios.append(counts / mean)
    # about 10,000 values: the mean of the squares is known to about 2 %
    assert np.mean(np.concatenate(squares)) == pytest.approx(1, abs=0.08)
    assert np.mean(np.concatenate(ratios)) == pytest.approx(1, abs=0.02)


def test_covariates_are_what_the_constants_say(simulation: Simulation):
    covariates = pd.concat([truth.covariates for truth in simulation.truth.values()])
    known = COVARIATES.loc[covariates.columns]
    standard = (covariates - known["centre"]) / known["spread"]
    # the border of an image, beyond which there is nothing, weighs more here than in the larger images they come from
    assert (standard.mean().abs() < 0.7).all()
    assert standard.std().between(0.6, 1.6).all()


def test_what_drives_nuclei_genes_is_seen_inside_the_spot(measured: pd.DataFrame):
    seen = measured.corr()
    assert seen.loc["spot", "spot_nuclei"] > 0.85
    assert seen.loc["spot", "spot_epithelium"] > 0.6
    assert seen.loc["far", "spot_nuclei"] < 0.5


def test_what_drives_region_genes_is_seen_only_around_the_spot(measured: pd.DataFrame):
    seen = measured.corr()
    assert seen.loc["near", "near_epithelium"] > 0.8
    assert seen.loc["far", "far_epithelium"] > 0.85
    assert seen.loc["far", "far_lymphocytes"] > 0.4
    for within in ("spot", "crop"):
        assert seen.loc[within, "near_epithelium"] < seen.loc["near", "near_epithelium"] - 0.2
        assert seen.loc[within, "far_epithelium"] < 0.5
        assert seen.loc[within, "far_lymphocytes"] < 0.35


def test_counts_of_genes_follow_the_image_at_their_own_scale(simulation: Simulation, measured: pd.DataFrame):
    # the answer of a covariate, from counts and pixels alone: genes that go up minus genes that go down
    counts = pd.concat([log_cpm(simulation, name) for name in simulation.sections])
    section = counts.index.str.split("_").str[0]
    counts = counts - counts.groupby(section).transform("mean")
    scores = {
        name: (counts[rows.index] * np.sign(rows["effect"])).mean(axis=1)
        for name, rows in simulation.genes.groupby("covariate")
        if name
    }
    seen = pd.concat([pd.DataFrame(scores), measured[["spot", "near", "far"]]], axis=1).corr()
    assert seen.loc["spot_nuclei", "spot"] > 0.75 > seen.loc["spot_nuclei", "far"] + 0.3
    assert seen.loc["far_epithelium", "far"] > 0.75 > seen.loc["far_epithelium", "spot"] + 0.3


def test_sections_of_a_patient_share_its_level_of_genes():
    simulation = simulate(2, 2, n_genes=200, shape=(800, 800), seed=3)
    free = simulation.genes.index[simulation.genes["programme"] == "none"]
    level = {name: np.log(sdata["table"].to_df()[free].mean()) for name, sdata in simulation.sections.items()}
    within = [np.std(level[f"P{p}S1"] - level[f"P{p}S2"]) for p in (1, 2)]
    between = [np.std(level[f"P1S{s}"] - level[f"P2S{s}"]) for s in (1, 2)]
    assert min(between) > 1.5 * max(within)


def test_sections_survive_zarr(tmp_path):
    sdata = toy()
    sdata.write(tmp_path / "toy.zarr")
    back = spatialdata.read_zarr(tmp_path / "toy.zarr")
    np.testing.assert_array_equal(pixels(back, "scale0"), pixels(sdata, "scale0"))
    np.testing.assert_array_equal(back["table"].X.toarray(), sdata["table"].X.toarray())
    pd.testing.assert_frame_equal(back["table"].obs, sdata["table"].obs, check_dtype=False)
    assert back["table"].uns["assay"] == "legacy_st"
    assert find_mpp(back, required=True).value == pytest.approx(1.2)


def test_toy_is_tiny_and_always_the_same():
    first, again = toy(), toy()
    assert first["table"].shape == (19, 8)
    assert pixels(first, "scale0").shape == (720, 880, 3)
    np.testing.assert_array_equal(first["table"].X.toarray(), again["table"].X.toarray())
    np.testing.assert_array_equal(pixels(first, "scale0"), pixels(again, "scale0"))
    made = simulate(1, 1, n_genes=8, shape=(720, 880), mpp=1.2, seed=0).sections["P1S1"]
    first["table"].X.data[:] = 7
    first["table"].obs["patient"] = "me"
    first["spots"]["radius"] = 1.0
    first["he"]["scale0"]["image"].values[:] = 0
    first["he"]["scale1"]["image"].data = first["he"]["scale1"]["image"].data * 0
    for sdata in (again, toy()):  # what was changed was another copy
        np.testing.assert_array_equal(sdata["table"].X.toarray(), made["table"].X.toarray())
        pd.testing.assert_frame_equal(sdata["table"].obs, made["table"].obs)
        pd.testing.assert_frame_equal(pd.DataFrame(sdata["spots"]), pd.DataFrame(made["spots"]))
        for scale in ("scale0", "scale1"):
            np.testing.assert_array_equal(pixels(sdata, scale), pixels(made, scale))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_patients": 0}, "n_patients must be at least 1, got 0"),
        ({"n_sections": 0}, "n_sections must be at least 1"),
        ({"n_genes": -1}, "n_genes must be at least 1"),
        ({"mean_count": 0.0}, "mean_count must be above 0"),
        ({"mean_count": float("nan")}, "mean_count must be a finite number"),
        ({"mean_count": 1e9}, "mean_count must be at most 1e\\+06"),
        ({"mpp": 0.0}, "mpp must be above 0"),
        ({"mpp": 8.0}, "mpp must be at most 4, got 8.0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"shape": (700, 804)}, "multiples of 8"),
        ({"shape": (0, 800)}, r"shape\.0 must be at least 1, got 0"),
        ({"shape": (160, 800), "mpp": 0.5}, r"160 x 800 px at 0.5 um/px \(80 x 400 um\) are too small"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        simulate(**arguments)


@pytest.mark.parametrize("n_genes", [1, 2, 3, 5])
def test_few_genes(n_genes: int):
    simulation = simulate(1, 1, n_genes=n_genes, shape=(400, 400))
    assert simulation.sections["P1S1"]["table"].n_vars == n_genes
    assert len(simulation.genes) == n_genes


@pytest.mark.parametrize("seed", range(4))
def test_tissue_without_glands_or_epithelium_is_drawn_too(seed: int):
    sdata = simulate(1, 1, n_genes=2, shape=(264, 264), seed=seed).sections["P1S1"]
    image = pixels(sdata, "scale0").astype(float)
    assert image.max() > 230 and image.std() > 10


def test_an_image_without_tissue_for_a_spot_is_refused():
    with pytest.raises(ValueError, match="No spot lies on the tissue of 200 x 264 px"):
        simulate(1, 1, n_genes=5, shape=(200, 264), seed=10)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_patients", "2"),
        ("n_sections", None),
        ("n_genes", 2.5),
        ("shape", 800),
        ("shape", (800,)),
        ("shape", (800, "800")),
        ("mpp", None),
        ("mean_count", "many"),
        ("seed", 0.5),
    ],
)
def test_arguments_of_another_type_are_named(argument: str, value: object):
    with pytest.raises(InvalidValueError, match=rf"^{argument}.* (must be|is missing)"):
        simulate(**{argument: value})


def test_numbers_of_numpy_are_taken():
    options = {"n_genes": np.int64(3), "mpp": np.float32(1), "seed": np.int64(1), "mean_count": np.float64(5)}
    made = simulate(np.int64(1), np.int64(1), shape=(np.int64(800), np.int64(800)), **options)
    assert made.sections["P1S1"]["table"].n_vars == 3
