"""The code of the pages about assays runs as it stands, on folders with the names that the pages use."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import scanpy

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the blocks of a page one after another, in the folder with the data, with some names known before."""

    def page(name, **known):
        monkeypatch.chdir(tmp_path)
        blocks = re.findall(r"```python\n(.*?)```", (PAGES / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        for block in blocks:
            exec(compile(block, name, "exec"), known)
        return known

    return page


pytestmark = pytest.mark.filterwarnings("ignore")  # of readers


def finite(table, key="pred_m2ost"):
    return np.isfinite(table.obsm[key]).all()


def test_visium(visium_folder, run):
    for name in ("outs", "A", "B"):
        visium_folder(name)
    known = run("visium.md")
    assert finite(known["sdata"].tables["table"])
    assert known["prediction"].n_vars == 250
    assert all(finite(section.tables["table"]) for section in known["sections"].values())


def test_anndata(visium_folder, run, tmp_path):
    import anndata

    for name in ("outs", "A", "B"):
        visium_folder(name, library=name)
    visium_folder("slide").path.joinpath("tissue.tif").rename(tmp_path / "slide.svs")
    tables = {name: scanpy.read_visium(tmp_path / name) for name in ("A", "B")}
    cells = tables["A"].copy()
    cells.obsm["centroids"] = cells.obsm["spatial"]
    del cells.uns["spatial"]
    joined = anndata.concat(tables, label="library_id", uns_merge="unique", index_unique="-")
    known = run("anndata.md", cells=cells, joined=joined)
    assert finite(known["adata"])
    assert sorted(known["sdata"].images) == ["A_full_image", "B_full_image"]


def test_several_sections(visium_folder, run):
    for name in ("A", "B"):
        visium_folder(name)
    known = run("several-sections.md")
    assert finite(known["joined"].tables["table"], "pred_joined")
    assert known["joined"].tables["table"].n_obs == 98
