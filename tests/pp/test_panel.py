from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from st_predict import pp

TP53, ESR1, ERBB2 = "ENSG00000141510", "ENSG00000091831", "ENSG00000141736"


def table(var_names: list[str], **columns: list[str]) -> AnnData:
    counts = np.arange(2 * len(var_names)).reshape(2, -1)
    var = pd.DataFrame(columns, index=pd.Index(var_names))
    return AnnData(csr_matrix(counts), obs=pd.DataFrame(index=["a", "b"]), var=var)


def columns(match: pp.PanelMatch) -> list[int]:
    assert all(len(group) == 1 for group in match.columns)
    return [group[0] for group in match.columns]


def test_order_is_that_of_the_panel(caplog):
    adata = table(["TP53", "GAPDH", "ESR1", "ERBB2"])
    with caplog.at_level(logging.INFO, logger="st_predict"):
        match = pp.align_panel(adata, ["ERBB2", "TP53"])
    assert match.matched == ("ERBB2", "TP53")
    assert columns(match) == [3, 0]
    assert (match.missing, match.duplicated, match.how, match.source) == ((), (), ("exact", "exact"), "var_names")
    assert "2 of 2 panel genes found in var_names (2 exactly); 0 missing, 0 duplicated." in caplog.text
    np.testing.assert_array_equal(match.take(adata.X), [[3, 0], [7, 4]])


@pytest.mark.parametrize("panel", [[f"{ERBB2}.7", f"{TP53}.12"], [ERBB2, TP53]])
@pytest.mark.parametrize("var_names", [[TP53, ESR1, ERBB2], [f"{TP53}.3", f"{ESR1}.1", f"{ERBB2}.9"]])
def test_versions_of_ensembl_ids_do_not_count(panel, var_names):
    match = pp.align_panel(table(var_names), panel)
    assert columns(match) == [2, 0]
    assert set(match.how) == ({"exact"} if set(panel) <= set(var_names) else {"version"})


def test_a_dot_in_a_symbol_is_no_version():
    match = pp.align_panel(table(["RP11-34P13.7", "RP11-34P13.8", "TP53"]), ["RP11-34P13.8", "TP53"])
    assert columns(match) == [1, 2]
    with pytest.raises(KeyError, match=r"lacks 1 of the 2 panel genes: RP11-34P13\.9\. .*aliases="):
        pp.align_panel(table(["RP11-34P13.7", "TP53"]), ["TP53", "RP11-34P13.9"])


def test_the_pseudoautosomal_copy_is_another_gene():
    match = pp.align_panel(table([f"{TP53}.1_PAR_Y", f"{TP53}.1", ESR1]), [TP53])
    assert columns(match) == [1]


def test_ids_of_the_other_type_are_found_in_var():
    adata = table(["TP53", "ESR1"], gene_ids=[TP53, ESR1], feature_types=["Gene Expression"] * 2)
    match = pp.align_panel(adata, [ESR1])
    assert (columns(match), match.source) == ([1], "gene_ids")
    adata = table([TP53, ESR1], symbol=pd.Categorical(["TP53", "ESR1"]), length=[10, 20])
    assert pp.align_panel(adata, ["ESR1"]).source == "symbol"


def test_ids_of_the_other_type_only():
    with pytest.raises(ValueError, match=r"'ensembl' \(ENSG00000141510\), var_names have another \(TP53, ESR1\)"):
        pp.align_panel(table(["TP53", "ESR1"]), [TP53])
    with pytest.raises(ValueError, match="'symbol'"):
        pp.align_panel(table([TP53, ESR1]), ["TP53"])


def test_several_columns_could_be_meant():
    adata = table(["TP53", "ESR1"], gene_ids=[TP53, ESR1], old_ids=[ESR1, TP53])
    with pytest.raises(ValueError, match=r"\['gene_ids', 'old_ids'\]\. Choose one with id_column="):
        pp.align_panel(adata, [ESR1])
    assert columns(pp.align_panel(adata, [ESR1], id_column="old_ids")) == [0]
    with pytest.raises(KeyError, match=r"No column 'nope' in \.var; it has \['gene_ids', 'old_ids'\]"):
        pp.align_panel(adata, [ESR1], id_column="nope")


@pytest.mark.parametrize("gene_id_type", [None, "symbol", "ensembl"])
def test_the_one_column_with_panel_genes_is_found(gene_id_type):
    adata = table(["Act5C", "tim"], ids=["FBgn0000042", "FBgn0014396"])  # ids of flies look like symbols
    assert columns(pp.align_panel(adata, ["FBgn0014396"], gene_id_type=gene_id_type)) == [1]


def test_case_is_only_ignored_on_request():
    adata = table(["TP53", "Esr1", "C1orf159"])
    with pytest.raises(
        KeyError, match=r"lacks 2 of the 3 panel genes: ESR1, C1ORF159\. .*the 2 genes that .*ignore_case=True"
    ):
        pp.align_panel(adata, ["TP53", "ESR1", "C1ORF159"])
    match = pp.align_panel(adata, ["TP53", "ESR1", "C1ORF159"], ignore_case=True)
    assert (columns(match), match.how) == ([0, 1, 2], ("exact", "case", "case"))
    assert "(1 exactly, 2 by case)" in str(match)


def test_missing_genes():
    adata = table(["TP53", "ESR1"])
    panel = ["A", "B", "ESR1", "C", "D", "E", "F"]
    with pytest.raises(KeyError, match=r'lacks 6 of the 7 panel genes: A, B, C, D, E and 1 more\. .*missing="drop"'):
        pp.align_panel(adata, panel)
    match = pp.align_panel(adata, panel, missing="drop")
    assert (match.matched, match.missing) == (("ESR1",), ("A", "B", "C", "D", "E", "F"))
    with pytest.raises(
        KeyError, match=r"has none of the 2 panel genes: A, B\. .*genes .*are TP53, ESR1 \(in var_names"
    ):
        pp.align_panel(adata, ["A", "B"], missing="drop")


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicated_genes():
    adata = table(["TP53", "ESR1", "GAPDH", "ESR1", "GAPDH", "ESR1"])  # counts 0 to 5 and 6 to 11
    panel = ["ESR1", "TP53"]
    with pytest.raises(ValueError, match=r'var_names has 1 of the panel genes more than once: ESR1\. .*"sum".*"first"'):
        pp.align_panel(adata, panel)
    match = pp.align_panel(adata, panel, duplicates="sum")
    assert (match.columns, match.duplicated) == (((1, 3, 5), (0,)), ("ESR1",))
    np.testing.assert_array_equal(match.take(adata.X), [[9, 0], [27, 6]])
    np.testing.assert_array_equal(match.take(adata.X.toarray()), [[9, 0], [27, 6]])
    match = pp.align_panel(adata, panel, duplicates="first")
    np.testing.assert_array_equal(match.take(adata.X), [[1, 0], [7, 6]])
    assert pp.align_panel(adata, ["TP53"]).duplicated == ()  # what is not in the panel may be there twice


def test_versions_can_make_duplicates():
    adata = table([f"{TP53}.1", f"{TP53}.2", ESR1])
    with pytest.raises(ValueError, match="more than once"):
        pp.align_panel(adata, [TP53])
    assert pp.align_panel(adata, [f"{TP53}.2"]).columns == ((1,),)  # an exact id is meant as it is


def test_bad_arguments():
    adata = table(["TP53"])
    with pytest.raises(ValueError, match="duplicates must be 'error', 'sum' or 'first', got 'mean'"):
        pp.align_panel(adata, ["TP53"], duplicates="mean")
    with pytest.raises(ValueError, match="missing must be 'error' or 'drop', got 'zero'"):
        pp.align_panel(adata, ["TP53"], missing="zero")
    with pytest.raises(ValueError, match=r"gene_id_type must be .*'ensembl'.*, got 'entrez'"):
        pp.align_panel(adata, ["TP53"], gene_id_type="entrez")
    with pytest.raises(ValueError, match="The panel is empty"):
        pp.align_panel(adata, [])
    with pytest.raises(ValueError, match="The panel has 1 of its genes more than once: TP53"):
        pp.align_panel(adata, ["TP53", "TP53"])
    with pytest.raises(TypeError, match=r"got 'TP53'\. .*read_panel"):
        pp.align_panel(adata, "TP53")
    with pytest.raises(TypeError, match="panel must be a list of genes, got 3"):
        pp.align_panel(adata, 3)
    with pytest.raises(ValueError, match="Expected counts of 1 genes, got 3"):
        pp.align_panel(adata, ["TP53"]).take(np.ones((2, 3)))


def test_read_panel(tmp_path):
    path = tmp_path / "panel.txt"
    path.write_bytes(b"\xef\xbb\xbfTP53\r\nHLA-C \r\n\r\nRP11-34P13.7\r\n")
    assert pp.read_panel(path) == ["TP53", "HLA-C", "RP11-34P13.7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no genes"),
        ("\n \n", "has no genes"),
        ("TP53\nESR1\nTP53\n", "has 1 of its genes more than once: TP53"),
        ("TP53\nESR1\tENSG1\n", r"Line 2 of .* is not one gene: 'ESR1\\tENSG1'"),
        ("TP53, ESR1", "Line 1 of .* is not one gene"),
    ],
)
def test_read_panel_refuses(tmp_path, text, message):
    path = tmp_path / "panel.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        pp.read_panel(path)
