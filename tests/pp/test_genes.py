from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import TableModel

from st_predict import datasets, pp

SHARED = Path(__file__).parents[3] / "shared" / "data"
HER2ST = Path(os.environ.get("ST_PREDICT_CACHE", SHARED / "her2st"))


def table(counts: np.ndarray, names: list[str]) -> AnnData:
    counts = np.asarray(counts)
    obs = pd.DataFrame(index=[f"spot{i}" for i in range(len(counts))])
    return AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=pd.Index(names)))


def section(seed: int, *, n_genes: int = 120, n_spots: int = 80) -> AnnData:
    """Counts whose mean and overdispersion differ from gene to gene, the same in every section."""
    genes = np.random.default_rng(0)
    mean, shape = genes.lognormal(1, 1, n_genes), genes.uniform(0.2, 20, n_genes)
    rng = np.random.default_rng(seed)
    counts = rng.poisson(mean * rng.gamma(shape, 1 / shape, (n_spots, n_genes)))
    return table(counts, [f"g{i:03d}" for i in range(n_genes)])


def test_m2ost_keeps_what_varies_in_every_section():
    # variances: a 4, b 1, c 0.25, d 0 and then a 0, b 1, c 4, d 0.25
    first = table([[0, 0, 0, 7], [4, 2, 1, 7]], list("abcd"))
    second = table([[4, 0, 3, 9], [2, 4, 3, 8]], list("bcad"))
    assert pp.select_panel([first, second], n_genes=1, n_variable=2) == ["b"]
    with pytest.raises(
        ValueError, match=r"Asked for 2 genes, but only 1 genes are among the 2 most variable of each of 2"
    ):
        pp.select_panel([first, second], n_genes=2, n_variable=2)


def test_m2ost_against_numpy():
    sections = [section(1), section(2), section(3)]
    tops = [set(a.var_names[np.argsort(-a.X.toarray().var(axis=0))[:60]]) for a in sections]
    common = set.intersection(*tops)
    assert 20 < len(common) < 60
    assert pp.select_panel(sections, n_genes=len(common), n_variable=60) == sorted(common)
    drawn = pp.select_panel(sections, n_genes=20, n_variable=60)
    assert len(set(drawn)) == 20 and set(drawn) < common


def test_m2ost_depends_on_the_seed_and_on_nothing_else():
    sections = [section(1), section(2)]
    panel = pp.select_panel(sections, n_genes=20, n_variable=60)
    assert panel == pp.select_panel(sections, n_genes=20, n_variable=60)
    assert panel == pp.select_panel([s[:, ::-1].copy() for s in sections[::-1]], n_genes=20, n_variable=60)
    assert panel != pp.select_panel(sections, n_genes=20, n_variable=60, seed=1)


def test_m2ost_breaks_ties_by_name():
    tied = table([[0, 0, 0], [1, 1, 1]], list("cab"))
    assert pp.select_panel([tied], n_genes=2, n_variable=2) == ["a", "b"]


def test_mean_is_over_spots_not_over_sections():
    # totals: a 6, b 4, c 5 (only in the second); means over sections would put b before c
    first = table([[2, 4], [0, 0], [1, 0], [1, 0]], list("ab"))
    second = table([[1, 5, 0], [1, 0, 0]], list("acd"))
    assert pp.select_panel([first, second], n_genes=3, method="mean") == ["a", "c", "b"]
    with pytest.raises(ValueError, match="Asked for 5 genes, but only 4 genes are in the tables"):
        pp.select_panel([first, second], n_genes=5, method="mean")


@pytest.mark.slow
def test_hvg_is_that_of_scanpy():
    one = section(1)
    reference = one.copy()
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    sc.pp.highly_variable_genes(reference, n_top_genes=20)
    assert set(pp.select_panel([one], n_genes=20, method="hvg")) == set(
        reference.var_names[reference.var.highly_variable]
    )


def test_hvg_uses_common_genes_and_ranks():
    one, two = section(1), section(2)[:, 10:].copy()
    panel = pp.select_panel([one, two], n_genes=30, method="hvg")
    assert len(panel) == len(set(panel)) == 30
    assert set(panel) <= set(two.var_names)
    assert pp.select_panel([one, two], n_genes=10, method="hvg")[:5] != sorted(panel)[:5]
    with pytest.raises(ValueError, match="Asked for 111 genes, but only 110 genes have counts and are in each of 2"):
        pp.select_panel([one, two], n_genes=111, method="hvg")


def test_hvg_bears_empty_spots_and_genes():
    one = section(1)
    counts = one.X.toarray()
    counts[3], counts[:, 5] = 0, 0
    assert len(pp.select_panel([table(counts, list(one.var_names))], n_genes=119, method="hvg")) == 119


@pytest.mark.parametrize("method", ["m2ost", "mean", "hvg"])
def test_layers_spatialdata_dense_and_nothing_is_changed(method):
    adata = section(1)
    expected = pp.select_panel([adata], n_genes=10, method=method)
    moved = AnnData(np.log1p(adata.X), obs=adata.obs, var=adata.var, layers={"counts": adata.X.toarray()})
    before = moved.copy()
    sdata = SpatialData(tables={"table": TableModel.parse(moved)})
    assert pp.select_panel([sdata], n_genes=10, method=method, layer="counts") == expected
    assert (moved.X != before.X).nnz == 0
    np.testing.assert_array_equal(moved.layers["counts"], before.layers["counts"])
    pd.testing.assert_frame_equal(moved.var, before.var)
    assert list(moved.uns) == list(before.uns) and list(moved.obs) == list(before.obs)
    with pytest.raises(ValueError, match="not a whole number"):
        pp.select_panel([moved], n_genes=10, method=method)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_bad_input():
    adata = section(1)
    with pytest.raises(ValueError, match="method must be 'm2ost', 'mean', 'hvg' or 'spatial', got 'best'"):
        pp.select_panel([adata], method="best")
    for name in ("n_genes", "n_variable"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            pp.select_panel([adata], **{name: 0})
    with pytest.raises(TypeError, match=r"got one AnnData\. Write \[adata\]"):
        pp.select_panel(adata)
    with pytest.raises(TypeError, match="Each member of adatas must be AnnData or SpatialData, got an int"):
        pp.select_panel([3])
    with pytest.raises(ValueError, match="adatas is empty"):
        pp.select_panel([])
    with pytest.raises(ValueError, match=r"Table 1 has no counts \(0 spots, 120 genes\)"):
        pp.select_panel([adata, adata[:0].copy()])
    with pytest.raises(ValueError, match=r'Table 0 has 1 of its genes more than once: .*\ba\b.*"sum".*"first"'):
        pp.select_panel([table([[1, 2]], ["a", "a"])])
    with pytest.raises(ValueError, match="has no table"):
        pp.select_panel([SpatialData()])
    with pytest.raises(KeyError, match=r"No layer 'counts'; the table has \[\]"):
        pp.select_panel([adata], layer="counts")


@pytest.mark.data
def test_the_published_panel_follows_the_rule():
    """All 250 published genes are in the intersection, which over all 36 sections has 329 genes."""
    if not HER2ST.exists():
        pytest.skip(f"no {HER2ST}")
    published = datasets.panel("m2ost_her2")
    sections = [read_her2st(name) for name in ("B4", "C2")]
    with pytest.raises(ValueError, match="genes are among the 1500 most variable") as error:
        pp.select_panel(sections, n_genes=10_000)
    n_common = int(str(error.value).split("but only ")[1].split()[0])
    assert 329 < n_common < 1500
    assert set(published) <= set(pp.select_panel(sections, n_genes=n_common))


def read_her2st(name: str) -> AnnData:
    counts = pd.read_csv(HER2ST / f"data/ST-cnts/{name}.tsv.gz", sep="\t", index_col=0, engine="pyarrow")
    spots = pd.read_csv(HER2ST / f"data/ST-spotfiles/{name}_selection.tsv", sep="\t")
    kept = counts.index.isin(spots["x"].astype(str) + "x" + spots["y"].astype(str))
    return table(counts[kept].to_numpy(), list(counts.columns))


@pytest.mark.parametrize(
    ("name", "value", "method", "other"),
    [
        ("seed", 1, "mean", "m2ost"),
        ("n_variable", 9, "spatial", "m2ost"),
        ("min_mean", 1.0, "m2ost", "spatial"),
        ("fdr", 0.1, "hvg", "spatial"),
    ],
)
def test_arguments_of_another_method_are_refused(name, value, method, other):
    with pytest.raises(
        ValueError, match=rf"{name}={value} is for the method '{other}' and has no effect on '{method}'"
    ):
        pp.select_panel([section(1)], n_genes=2, method=method, **{name: value})
