"""The benchmarks run. How fast anything is, they say; no test does."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from st_predict.models import list_models

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

SCRIPTS = sorted(
    path
    for path in (Path(__file__).parents[1] / "benchmarks").glob("[!_]*.py")
    if '"--quick"' in path.read_text(encoding="utf-8")
)


def test_the_page_shows_what_was_measured() -> None:
    page = (SCRIPTS[0].parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    specification = importlib.util.spec_from_file_location("report", SCRIPTS[0].parent / "report.py")
    report = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(report)
    results = sorted((SCRIPTS[0].parent / "results").glob("*.json"))
    assert {path.stem for path in results} >= {"crops", "forward", "end_to_end"}
    for path in results:
        figures = json.loads(path.read_text(encoding="utf-8"))
        assert report.fill(page, path.stem, report.render(path.stem, figures)) == page


def test_there_are_benchmarks() -> None:
    assert "crops" in {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_benchmark_compares_variants(script, tmp_path) -> None:
    out = tmp_path / "figures.json"
    printed = subprocess.run(
        [sys.executable, script, "--quick", "--out", out],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["machine"]["cores"] >= 1
    rows = [row for table in figures.values() if isinstance(table, list) for row in table]
    assert len(rows) > 1
    for row in rows:
        assert row["variant"] in printed
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0
    # those are measured against something, which is one of them
    assert any(row["ratio"] == 1 for row in rows)


def test_crops_are_the_same_and_each_chunk_is_decoded_once(tmp_path) -> None:
    script = next(path for path in SCRIPTS if path.stem == "crops")
    done = subprocess.run(
        [sys.executable, script, "--quick", "--folder", tmp_path, "--variant", "check"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    checked = json.loads(done.stdout.splitlines()[-1])
    same = [
        "floor, zarr, 2 threads",
        "floor, TIFF, 2 threads",
        "floor, TIFF of 256 px, 2 threads",
        "zarr, a spot",
        "OpenSlide, a spot",
        "dask, a spot",
    ]
    assert [checked["pixels"][way] for way in same] == [[0.0] * 3] * len(same)
    assert min(checked["pixels"]["PIL, the published way"][1:]) > 0
    assert len(checked["chunks"]) == 9
    for counts in checked["chunks"].values():
        assert counts["most"] == 1
        assert counts["decoded"] == counts["touched"] > 0


def test_the_page_shows_the_scores_of_all_models() -> None:
    root = SCRIPTS[0].parents[1]
    specification = importlib.util.spec_from_file_location("her2st_models", root / "benchmarks" / "her2st_models.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    figures = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert script.fill(page, figures) == page
    assert {row["variant"] for row in figures["rows"]} >= set(list_models())
    assert all(f"| `{name}` |" in page for name in list_models() if name != "mean")
