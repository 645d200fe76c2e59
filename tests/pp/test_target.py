from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import coo_array, csc_matrix, csr_array, csr_matrix
from sklearn.preprocessing import MinMaxScaler

from st_predict import pp
from st_predict.pp import fit_limits
from st_predict.specs import TargetSpec

SPECS = [
    TargetSpec(transform=transform, total=total, over=over)
    for transform, total in [("log1p_total", 1e6), ("log1p_total", 10), ("log_proportion", 1e6), ("counts", 1e6)]
    for over in ("panel", "all")
]
INDEX = [4, 0, 2]

counts_matrices = arrays(np.int64, (4, 5), elements=st.integers(0, 5000)).map(lambda c: c + np.eye(4, 5, dtype=int))
"""The 1 on the diagonal gives every spot a count; of the panel by the column that is added in the test."""


def random_counts(n_spots: int = 30, n_genes: int = 8) -> np.ndarray:
    return np.random.default_rng(0).negative_binomial(1, 0.1, (n_spots, n_genes)) + np.eye(n_spots, n_genes, dtype=int)


def table(x: object, **layers: object) -> AnnData:
    n_spots, n_genes = x.shape
    obs = pd.DataFrame(index=[f"spot{i}" for i in range(n_spots)])
    return AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]), layers=layers)


@pytest.mark.parametrize("over", ["panel", "all"])
def test_log1p_total_is_that_of_scanpy(over):
    counts = random_counts()
    adata = AnnData(counts.astype(np.float64))
    adata = adata[:, INDEX].copy() if over == "panel" else adata
    sc.pp.normalize_total(adata, target_sum=1e6)
    sc.pp.log1p(adata)
    expected = adata.X if over == "panel" else adata.X[:, INDEX]
    got = pp.to_target(counts, TargetSpec(over=over), panel_index=INDEX)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == np.float32


def test_by_hand():
    counts = np.array([[1, 0, 3], [0, 2, 2]])
    got = pp.to_target(counts, TargetSpec(total=8), panel_index=[2, 0])
    np.testing.assert_allclose(got, np.log([[7, 3], [9, 1]]), rtol=1e-6)
    got = pp.to_target(counts, TargetSpec(total=8, over="all"), panel_index=[2, 0])
    np.testing.assert_allclose(got, np.log([[7, 3], [5, 1]]), rtol=1e-6)
    got = pp.to_target(counts, TargetSpec(transform="log_proportion"), panel_index=[2, 0])
    np.testing.assert_allclose(got, np.log([[4 / 6, 2 / 6], [3 / 4, 1 / 4]]), rtol=1e-6)
    got = pp.to_target(counts, TargetSpec(transform="log_proportion", over="all"), panel_index=[2, 0])
    np.testing.assert_allclose(got, np.log([[4 / 7, 2 / 7], [3 / 7, 1 / 7]]), rtol=1e-6)
    np.testing.assert_array_equal(pp.to_target(counts, TargetSpec(transform="counts"), panel_index=[2]), [[3], [2]])
    got = pp.to_target(counts, TargetSpec(transform="log1p"), panel_index=[2])
    np.testing.assert_allclose(got, np.log([[4], [3]]), rtol=1e-6)
    np.testing.assert_allclose(pp.from_target(got, TargetSpec(transform="log1p"), [1, 1]), [[3], [2]], rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.units)
@pytest.mark.parametrize("sparse", [csr_matrix, csc_matrix, csr_array, coo_array])
def test_sparse_is_dense(spec, sparse):
    counts = random_counts()
    expected = pp.to_target(counts, spec, panel_index=INDEX)
    matrix = sparse(counts)
    np.testing.assert_array_equal(pp.to_target(matrix, spec, panel_index=INDEX), expected)
    np.testing.assert_array_equal(matrix.toarray(), counts)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, bool])
def test_any_dtype_of_counts(dtype):
    counts = (random_counts() > 3).astype(int)
    counts[:, 0] = 1
    got = pp.to_target(counts.astype(dtype), TargetSpec())
    np.testing.assert_array_equal(got, pp.to_target(counts, TargetSpec()))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.units)
@given(counts=counts_matrices)
def test_there_and_back(spec, counts):
    counts[:, INDEX[0]] += 1
    totals = (counts[:, INDEX] if spec.over == "panel" else counts).sum(axis=1)
    target = pp.to_target(counts, spec, panel_index=INDEX)
    back = pp.from_target(target, spec, totals, n_summed=5 if spec.over == "all" else None)
    np.testing.assert_array_equal(np.rint(back), counts[:, INDEX])  # float32 holds counts below 100 000
    np.testing.assert_allclose(back, counts[:, INDEX], rtol=1e-5, atol=0.02)


@given(counts=counts_matrices, factor=st.integers(2, 50))
def test_log1p_total_ignores_depth(counts, factor):
    np.testing.assert_allclose(
        pp.to_target(counts * factor, TargetSpec()), pp.to_target(counts, TargetSpec()), rtol=1e-6, atol=1e-6
    )


@given(counts=counts_matrices)
def test_log1p_total_adds_up(counts):
    shares = np.expm1(pp.to_target(counts, TargetSpec()).astype(np.float64))
    np.testing.assert_allclose(shares.sum(axis=1), 1e6, rtol=1e-5)


@pytest.mark.parametrize("as_matrix", [np.asarray, csr_matrix])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-2.0, r"1 count is negative, the first is -2\.0\. Raw counts"),
        (0.5, r"1 count is not a whole number, the first is 0\.5\. Raw counts"),
        (np.nan, "1 count is NaN or infinite, the first is nan"),
        (np.inf, "1 count is NaN or infinite, the first is inf"),
    ],
)
@pytest.mark.parametrize("spec", SPECS[::2], ids=lambda spec: spec.transform)
def test_what_is_no_count_is_refused(as_matrix, value, message, spec):
    counts = random_counts().astype(np.float64)
    counts[3, 7] = value  # not even in the panel
    with pytest.raises(ValueError, match=message) as error:
        pp.to_target(as_matrix(counts), spec, panel_index=INDEX)
    assert "layer=" not in str(error.value)
    with pytest.raises(ValueError, match=rf"{message}.*layer="):
        pp.make_target(table(as_matrix(counts)), ["g1"], spec)


def test_genes_that_are_not_found_are_matched_by_align_panel():
    adata = table(random_counts())
    with pytest.raises(KeyError, match=r"lacks 1 of the 2 panel genes: nope\. .*pp\.align_panel") as error:
        pp.make_target(adata, ["g1", "nope"], TargetSpec())
    assert "missing=" not in str(error.value)
    match = pp.align_panel(adata, ["g1", "nope"], missing="drop")
    assert pp.make_target(adata, match, TargetSpec(transform="log1p")).genes == ("g1",)


def test_bad_shapes_and_types():
    with pytest.raises(ValueError, match=r"got the shape \(3,\)"):
        pp.to_target(np.ones(3), TargetSpec())
    with pytest.raises(TypeError, match="must be numbers, got the dtype <U1"):
        pp.to_target(np.array([["1"]]), TargetSpec())
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        pp.from_target(np.ones((2, 3)), TargetSpec(), np.ones(3))
    with pytest.raises(ValueError, match="totals must be finite and not negative"):
        pp.from_target(np.ones((2, 3)), TargetSpec(), [1, -1])
    with pytest.raises(ValueError, match=r"all genes.*n_summed="):
        pp.from_target(np.ones((2, 3)), TargetSpec(transform="log_proportion", over="all"), [1, 1])


def test_a_zero_sum_has_no_target():
    counts = random_counts()
    counts[[2, 5]] = 0
    with pytest.raises(ValueError, match=r"2 of 30 spots have a total of zero \(rows \[2, 5\]"):
        pp.to_target(counts, TargetSpec())
    proportion = pp.to_target(counts, TargetSpec(transform="log_proportion"))
    np.testing.assert_allclose(proportion[2], np.log(1 / 8), rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.units)
def test_make_target_drops_spots_without_counts(spec, caplog):
    counts = random_counts()
    counts[7] = 0
    counts[11, INDEX] = 0  # has counts, but none of the panel
    adata = table(csr_matrix(counts))
    with caplog.at_level(logging.INFO, logger="st_predict"):
        target = pp.make_target(adata, [f"g{i}" for i in INDEX], spec)
    dropped = [7, 11] if spec.over == "panel" else [7]
    assert target.dropped == tuple(f"spot{i}" for i in dropped)
    assert f"Dropped {len(dropped)} of 30 spots" in caplog.text
    np.testing.assert_array_equal(target.rows, np.delete(np.arange(30), dropped))
    np.testing.assert_array_equal(target.values, pp.to_target(counts[target.rows], spec, panel_index=INDEX))
    assert (target.genes, len(target), target.spec) == (("g4", "g0", "g2"), 30 - len(dropped), spec)
    back = pp.from_target(target.values, spec, target.totals, n_summed=target.n_summed)
    np.testing.assert_array_equal(np.rint(back), counts[target.rows][:, INDEX])
    np.testing.assert_array_equal(adata.X.toarray(), counts)


@pytest.mark.parametrize("over", ["panel", "all"])
def test_spots_with_a_single_count_are_kept(over, caplog):
    counts = np.zeros((3, 4), np.float32)
    counts[0, 2] = 1  # the only count of the spot
    counts[2] = [3, 1, 2, 4]
    with caplog.at_level(logging.INFO, logger="st_predict"):
        target = pp.make_target(table(counts), ["g2", "g0"], TargetSpec(over=over))
    assert target.rows.tolist() == [0, 2] and target.dropped == ("spot1",)
    assert "Dropped 1 of 3 spots" in caplog.text
    total = 5 if over == "panel" else 10
    assert target.totals.tolist() == [1, total]
    expected = np.log1p(1e6 * np.array([[1, 0], [2 / total, 3 / total]]))
    np.testing.assert_allclose(target.values, expected, rtol=1e-6)


def test_make_target_reads_a_layer():
    counts = random_counts()
    adata = table(np.log1p(counts), counts=counts)
    target = pp.make_target(adata, ["g4"], TargetSpec(over="all"), layer="counts")
    np.testing.assert_array_equal(target.values, pp.to_target(counts, TargetSpec(over="all"), panel_index=[4]))
    with pytest.raises(KeyError, match=r"No layer 'raw'; the table has \['counts'\]"):
        pp.make_target(adata, ["g4"], TargetSpec(), layer="raw")
    adata.X = None
    with pytest.raises(ValueError, match=r"no \.X; it has the layers \['counts'\]\. .*layer="):
        pp.make_target(adata, ["g4"], TargetSpec())


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_make_target_sums_duplicates_of_a_match():
    counts = random_counts()
    adata = table(counts)
    adata.var_names = ["a", "b", "a", "c", "d", "e", "f", "g"]
    match = pp.align_panel(adata, ["b", "a"], duplicates="sum")
    got = pp.make_target(adata, match, TargetSpec(transform="counts"))
    np.testing.assert_array_equal(got.values, np.column_stack([counts[:, 1], counts[:, 0] + counts[:, 2]])[got.rows])
    with pytest.raises(ValueError, match="belongs to a table with other genes"):
        pp.make_target(table(counts), match, TargetSpec())


def test_make_target_of_nothing():
    with pytest.raises(ValueError, match="The table has no spots"):
        pp.make_target(table(np.zeros((0, 3))), ["g0"], TargetSpec())
    with pytest.raises(ValueError, match="All 4 spots have a sum of zero over the panel"):
        pp.make_target(table(np.zeros((4, 3))), ["g0", "g1"], TargetSpec())


def scaled(spec: TargetSpec, counts: np.ndarray) -> TargetSpec:
    """The same units from 0 at the least to 1 at the largest value of these spots."""
    limits = fit_limits(pp.to_target(counts, spec, panel_index=INDEX))
    return replace(spec, scale="minmax", limits=limits)


def test_limits_by_hand():
    limits = fit_limits(np.array([[1, 5, 2], [3, 4, 2]], np.float32))
    assert limits == ((1.0, 4.0, 2.0), (3.0, 5.0, 2.0))
    assert all(type(value) is float for values in limits for value in values)  # as JSON has them
    spec = TargetSpec(transform="counts", scale="minmax", limits=limits)
    got = pp.to_target([[1, 4, 2], [2, 5, 2], [5, 0, 7]], spec)  # the last one is beyond all limits
    np.testing.assert_array_equal(got, np.array([[0, 0, 0], [0.5, 1, 0], [2, -4, 0]], np.float32))
    assert got.dtype == np.float32


@pytest.mark.parametrize("values", [np.ones(3), np.ones((0, 3))])
def test_limits_need_spots(values):
    with pytest.raises(ValueError, match="at least one spot"):
        fit_limits(values)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.units)
def test_minmax_is_that_of_scikit_learn(spec):
    training, others = random_counts()[:20], random_counts()[20:]
    scaler = MinMaxScaler().fit(pp.to_target(training, spec, panel_index=INDEX).astype(np.float64))
    minmax = scaled(spec, training)
    got = pp.to_target(training, minmax, panel_index=INDEX)
    np.testing.assert_array_equal(got.min(axis=0), 0)
    np.testing.assert_array_equal(got.max(axis=0), 1)
    unscaled = pp.to_target(others, spec, panel_index=INDEX).astype(np.float64)
    np.testing.assert_allclose(pp.to_target(others, minmax, panel_index=INDEX), scaler.transform(unscaled), atol=1e-6)
    made = pp.make_target(table(others), [f"g{i}" for i in INDEX], minmax)
    np.testing.assert_allclose(made.values, scaler.transform(unscaled), atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.units)
@given(counts=counts_matrices)
def test_there_and_back_scaled(spec, counts):
    counts[:, INDEX[0]] += 1
    totals = (counts[:, INDEX] if spec.over == "panel" else counts).sum(axis=1)
    minmax = scaled(spec, counts)
    target = pp.to_target(counts, minmax, panel_index=INDEX)
    back = pp.from_target(target, minmax, totals, n_summed=5 if spec.over == "all" else None)
    np.testing.assert_allclose(back, counts[:, INDEX], rtol=1e-5, atol=0.02)


def test_limits_are_needed_for_every_gene():
    counts, untrained = random_counts(), TargetSpec(scale="minmax")
    for fails in (
        lambda: pp.to_target(counts, untrained),
        lambda: pp.make_target(table(counts), ["g1", "g2"], untrained),
        lambda: pp.from_target(counts, untrained, counts.sum(axis=1)),
    ):
        with pytest.raises(ValueError, match="no limits: training sets them"):
            fails()
    of_three = scaled(TargetSpec(), counts)
    with pytest.raises(ValueError, match="limits of 3 genes, for a panel of 2"):
        pp.to_target(counts, of_three, panel_index=INDEX[:2])
    with pytest.raises(ValueError, match="limits of 3 genes, for a panel of 8"):
        pp.from_target(counts, of_three, counts.sum(axis=1))
