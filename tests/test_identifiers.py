"""Names of genes from a table in the form of HGNC's complete set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from st_predict._identifiers import GeneAliases, gene_id_type_of, unversioned
from st_predict.pp import align_panel

if TYPE_CHECKING:
    from pathlib import Path

# rows of the complete set of HGNC, of real genes, in which names are shared as they are there
HGNC = pd.DataFrame(
    {
        "hgnc_id": ["HGNC:26077", "HGNC:26189", "HGNC:7729", "HGNC:3430", "HGNC:6554"],
        "symbol": ["MARCHF1", "MTARC1", "SEPTIN2", "ERBB2", "LEPR"],
        "alias_symbol": ["RNF171|FLJ20668", "FLJ22390", "DIFF6", "NEU|HER-2|CD340|HER2", "OBR|CD295"],
        "prev_symbol": ["MARCH1", "MOSC1|MARC1", "SEPT2", "NGL", ""],
        "ensembl_gene_id": [
            "ENSG00000145416",
            "ENSG00000186205",
            "ENSG00000168385",
            "ENSG00000141736",
            "ENSG00000116678",
        ],
    }
)


def table(names: list[str]) -> AnnData:
    return AnnData(np.ones((2, len(names))), var=pd.DataFrame(index=names))


def test_old_and_new_symbols_are_the_same_gene() -> None:
    adata = table(["MARCH1", "SEPTIN2", "CD340", "X"])
    match = align_panel(adata, ["MARCHF1", "SEPT2", "ERBB2"], aliases=HGNC)
    assert match.columns == ((0,), (1,), (2,))
    assert match.how == ("alias", "alias", "alias")
    assert "3 by alias" in str(match)


def test_symbols_find_ensembl_identifiers_of_any_version() -> None:
    adata = table(["ENSG00000141736.14", "ENSG00000116678"])
    match = align_panel(adata, ["LEPR", "ERBB2"], aliases=HGNC)
    assert match.columns == ((1,), (0,))
    back = align_panel(table(["HER2"]), ["ENSG00000141736.3"], aliases=HGNC)
    assert back.columns == ((0,),)


def test_a_current_symbol_is_not_the_old_name_of_another_gene() -> None:
    names = pd.DataFrame({"symbol": ["A", "B"], "prev_symbol": ["B", "C"], "alias_symbol": ["", ""]})
    aliases = GeneAliases.of(names)
    assert aliases.gene("B") == 1
    assert aliases.gene("C") == 1
    assert aliases.gene("A") == 0
    # the table has the current B, which is not A
    with pytest.raises(KeyError, match="has none of the 1 panel genes: A"):
        align_panel(table(["B"]), ["A"], aliases=names)


def test_a_name_of_two_genes_is_not_used() -> None:
    names = pd.DataFrame({"symbol": ["A", "B"], "alias_symbol": ["both|one", "both"]})
    assert GeneAliases.of(names).gene("both") is None
    assert GeneAliases.of(names).gene("one") == 0


def test_a_name_that_is_old_for_one_gene_and_an_alias_of_another_is_not_used() -> None:
    names = pd.DataFrame(
        {"symbol": ["A", "B", "C"], "prev_symbol": ["OLD", "OLD", ""], "alias_symbol": ["", "", "OLD|X"]}
    )
    assert GeneAliases.of(names).gene("OLD") is None
    assert GeneAliases.of(names).gene("X") == 2


@pytest.mark.parametrize(
    ("panel", "names", "options"),
    [
        (["ERBB2", "Erbb2"], ["ERBB2"], {"ignore_case": True}),
        (["ENSG00000141736.1", "ENSG00000141736.2"], ["ENSG00000141736"], {}),
    ],
)
def test_a_column_is_not_two_genes_of_a_panel(panel: list[str], names: list[str], options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match=r"are the same gene of the table\. Leave one"):
        align_panel(table(names), panel, **options)


def test_the_case_of_other_names_of_the_table_does_not_matter() -> None:
    adata = table(["Probe_1_at", "Gene2"])
    adata.var["symbol"] = ["ERBB2", "TP53"]
    assert align_panel(adata, ["ERBB2", "TP53"], organism="homo_sapiens").source == "symbol"


def test_a_column_of_another_panel_gene_is_not_taken() -> None:
    names = pd.DataFrame({"symbol": ["A"], "alias_symbol": ["A1|A2"]})
    match = align_panel(table(["A1"]), ["A1", "A"], aliases=names, missing="drop")
    assert match.matched == ("A1",)


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_files_are_read_as_they_are_published(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"hgnc_complete_set.txt{compression}"
    quoted = HGNC.assign(prev_symbol=[f'"{name}"' if "|" in name else name for name in HGNC["prev_symbol"]])
    quoted.to_csv(path, sep="\t", index=False, quoting=3)
    assert GeneAliases.of(path).gene("MARC1") == GeneAliases.of(HGNC).gene("MARC1") == 1
    assert align_panel(table(["MARC1"]), ["MTARC1"], aliases=str(path)).how == ("alias",)


def test_unfit_tables(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="The table of aliases"):
        GeneAliases.of(tmp_path / "nope.txt")
    with pytest.raises(ValueError, match=r"needs the column 'symbol' and at least one of .*it has \['symbol'\]"):
        GeneAliases.of(pd.DataFrame({"symbol": ["A"]}))
    with pytest.raises(TypeError, match="path of a tab-separated file or a data frame, got int"):
        GeneAliases.of(3)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00" * 9)
    with pytest.raises(ValueError, match=r"is not a tab-separated table|needs the column 'symbol'"):
        GeneAliases.of(tmp_path / "binary.txt")


def test_types() -> None:
    assert gene_id_type_of(["ENSG00000141736", "ENSMUSG00000062312.3", "X"]) == "ensembl"
    assert gene_id_type_of(["ERBB2"]) == "symbol"
    assert unversioned("ENSG00000141736.14") == "ENSG00000141736"
    assert unversioned("RP11-34P13.7") == "RP11-34P13.7"


HUMAN, MOUSE = ["ERBB2", "GNAS", "CD74", "C1orf112", "MT-CO1"], ["Erbb2", "Gnas", "Cd74", "H2-Aa", "mt-Co1"]


@pytest.mark.parametrize(
    ("panel", "names", "options", "refused"),
    [
        (HUMAN, HUMAN, {"organism": "human"}, None),
        (MOUSE, HUMAN, {"organism": "mouse"}, "panel's organism is mouse.*as in human: another organism"),
        (HUMAN, HUMAN, {"organism": "mouse"}, None),  # the same names, whatever the card says
        (HUMAN, MOUSE, {"organism": "Homo sapiens"}, "panel's organism is human.*as in mouse and rat"),
        (MOUSE, MOUSE, {"organism": "Mus musculus"}, None),
        (MOUSE, MOUSE, {"organism": "rat"}, None),
        (HUMAN, MOUSE, {}, "symbols like Erbb2.*another organism.*ignore_case=True"),
        (HUMAN, MOUSE, {"ignore_case": True}, None),
        (HUMAN, MOUSE, {"ignore_case": True, "organism": "human"}, "another organism"),
        (HUMAN, HUMAN, {"organism": "axolotl"}, None),
        (
            ["ENSG00000141736"],
            ["ENSMUSG00000062312"],
            {},
            "is human, but the table has Ensembl identifiers of mouse",
        ),
        (["ENSG00000141736"], ["ENSG00000141736"], {"organism": "rat"}, "panel's organism is rat.*of human"),
        (["gene1", "gene2"], ["gene1", "gene2"], {"organism": "human"}, None),
    ],
)
def test_another_organism(panel: list[str], names: list[str], options: dict[str, object], refused: str | None) -> None:
    if refused is None:
        assert align_panel(table(names), panel, missing="drop", **options).matched
        return
    with pytest.raises(ValueError, match=refused):
        align_panel(table(names), panel, missing="drop", **options)
