"""The benchmarks run. How fast anything is, they say; no test does."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import read_zarr

import st_predict as stp
from st_predict.datasets import _her2st
from st_predict.models import list_models

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]

BY_HAND = {"triplex_simulated", "levels"}  # six trainings; scores instead of ratios
SCRIPTS = sorted(
    path
    for path in (Path(__file__).parents[1] / "benchmarks").glob("[!_]*.py")
    if '"--quick"' in path.read_text(encoding="utf-8") and path.stem not in BY_HAND
)


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import modules of their own folder, which is first on the path when they are run as scripts."""
    monkeypatch.syspath_prepend(str(SCRIPTS[0].parent))


ALONE = {"gpu"}  # it says that it needs torch and little else: in a fresh process


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, SCRIPTS[0].with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def test_the_page_shows_what_was_measured() -> None:
    report = load("report")
    results = sorted((SCRIPTS[0].parent / "results").glob("*.json"))
    assert {path.stem for path in results} >= {"crops", "forward", "end_to_end"}
    for path in results:
        figures = json.loads(path.read_text(encoding="utf-8"))
        page = report.page_of(path.stem).read_text(encoding="utf-8")
        assert report.fill(page, path.stem, report.render(path.stem, figures)) == page


def test_there_are_benchmarks() -> None:
    assert "crops" in {path.stem for path in SCRIPTS}


def test_a_variant_runs_in_a_fresh_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, os, sys\nprint('said')\nprint(json.dumps([os.getppid(), *sys.argv[1:]]))")
    measure = load("_measure")
    assert measure.run_alone(str(script), "ours", "--quick") == [os.getpid(), "--variant", "ours", "--quick"]
    script.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ours ended with 3"):
        measure.run_alone(str(script), "ours")


# Variants are forks of the same process as the script, which has imported what takes long.
MAIN = """
import importlib.util, json, runpy, sys
from pathlib import Path

address, helper, script = sys.argv[1:4]
specification = importlib.util.spec_from_file_location("warm", helper)
warm = importlib.util.module_from_spec(specification)
specification.loader.exec_module(warm)
forks = warm.Warm(address=address)
sys.path.insert(0, str(Path(script).parent))
import _measure

def run_alone(script, variant, *arguments):
    done = forks.run(Path(script), "--variant", variant, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

_measure.run_alone = run_alone
sys.argv = sys.argv[3:]
runpy.run_path(script, run_name="__main__")
"""


def run(warm: Any, script: Path, folder: Path) -> dict[str, Any]:
    """Run a benchmark; return its figures, which must be those that it prints."""
    out, environment = folder / "figures.json", os.environ | {"TMPDIR": str(folder), "HOME": str(folder)}
    arguments = [script, "--quick", "--out", out]
    if script.stem in ALONE or not warm.can_fork:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, check=False, capture_output=True, text=True
        )
    else:
        done = warm.run(MAIN, warm.address, warm.file, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["machine"]["cores"] >= 1
    rows = [row for table in figures.values() if isinstance(table, list) for row in table]
    assert len(rows) > 1
    for row in rows:
        assert row["variant"] in done.stdout
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0
    # those are measured against something, which is one of them
    assert any(row["ratio"] == 1 for row in rows)
    return figures


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.stem != "crops"], ids=lambda path: path.stem)
def test_benchmark_compares_variants(warm: Any, script: Path, tmp_path: Path) -> None:
    run(warm, script, tmp_path)


def test_crops_are_the_same_and_each_chunk_is_decoded_once(warm: Any, tmp_path: Path) -> None:
    checked = run(warm, next(path for path in SCRIPTS if path.stem == "crops"), tmp_path)
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
    script = load("her2st_models")
    figures = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert script.fill(page, figures) == page
    assert set(list_models()) - {row["variant"] for row in figures["rows"]} <= {"triplex"}  # not run yet
    assert all(f"| `{name}` |" in page for name in list_models() if name != "mean")


def test_levels_are_compared_on_patients_that_did_not_train(tmp_path: Path) -> None:
    script, out = SCRIPTS[0].with_name("levels.py"), tmp_path / "levels.json"
    networks = ["whole", "level 0", "attention on joined channels (no ITMM, no DPE)"]
    command = [sys.executable, script, "--quick", "--out", out, "--work", tmp_path / "work", "--networks", *networks]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text(encoding="utf-8"))
    rows = {(row["network"], row["genes"]): row for row in figures["rows"]}
    assert list(rows) == [(network, kind) for network in networks for kind in ("spot", "near", "far", "cross")]
    for (network, kind), row in rows.items():
        if network != "whole":
            assert row["difference"] == pytest.approx(row["score"] - rows["whole", kind]["score"], abs=2e-4)
            assert row["low"] < row["high"]
        assert f"{row['score']:.3f}" in done.stdout
    assert figures["seeds"] == 1
    again = subprocess.run(command, check=True, capture_output=True, text=True)  # from the working folder
    assert again.stdout == done.stdout


def test_draws_of_blocks_are_correlated_as_if_their_spots_were_repeated() -> None:
    script = load("levels")
    rng = np.random.default_rng(0)
    block = script.block_of(pd.Index([f"P1S1_{col}x{row}" for col in range(1, 8) for row in range(1, 8)]))
    assert len(block) == 49
    assert np.unique(block, return_counts=True)[1].max() == 9  # 3 x 3 spots
    weights = script.draw_weights(rng, block)
    assert (weights[0] == 1).all()
    assert all(len(set(draw[block == one])) == 1 for draw in weights[:5] for one in set(block))
    a, b = rng.normal(size=(2, 49, 3))
    found = script.weighted_pearson(a, a + b, weights)
    for draw, scores in zip(weights[:5].astype(int), found, strict=False):
        rows = np.repeat(np.arange(49), draw)
        expected = [np.corrcoef(a[rows, gene], (a + b)[rows, gene])[0, 1] for gene in range(3)]
        np.testing.assert_allclose(scores, expected)


def test_the_page_shows_what_levels_give_and_levels_help() -> None:
    script = load("levels")
    figures = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.fill(page, figures) == page
    assert figures["seeds"] == 3
    assert {row["network"] for row in figures["rows"]} == set(script.NETWORKS)
    high = {row["genes"]: row["high"] for row in figures["rows"] if row["network"] == "level 0"}
    assert high["far"] < 0
    assert high["cross"] < 0


def test_the_page_shows_the_compared_models() -> None:
    script = load("compare")
    page = script.PAGE.read_text(encoding="utf-8")
    kept = sorted(script.RESULTS.glob("*.csv"))
    assert {path.stem for path in kept} == {"her2st-small", "her2st-small-paper", "simulated"}
    for path in kept:
        assert script.fill(page, path.stem, pd.read_csv(path)) == page
        assert page.count(f"<!-- compare {path.stem} -->") == 1


def test_the_page_shows_predictors_without_an_image() -> None:
    script = load("protocols")
    page, table = script.PAGE.read_text(encoding="utf-8"), pd.read_csv(script.RESULTS)
    assert script.fill(page, table) == page
    assert "m2ost-paper" in set(table["protocol"])
    assert set(table["protocol"]) <= set(stp.cohort.list_protocols())
    scored = table.dropna(subset=["spot_pearson"])
    assert (scored["spot_pearson_low"] <= scored["spot_pearson"]).all()


def test_predictors_without_an_image_on_real_sections(tmp_path: Path) -> None:
    root = _her2st._root(None)
    names = ["B4", "C2", "C3", "D1"]
    if not all((root / _her2st._paths(name)["counts"]).exists() for name in names):
        pytest.skip("needs counts of her2st in ST_PREDICT_CACHE")
    script = SCRIPTS[0].with_name("protocols.py")
    command = [sys.executable, script, "--out", tmp_path, "--sections", *names, "--protocols", "hest"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| `hest` | panel |") == 5  # no training section of a left-out patient
    # the mean of the training sections, by numpy
    tables = {name: read_zarr(tmp_path / "sections" / f"{name}.zarr").tables["table"] for name in names}
    scores = pd.concat([pd.read_parquet(path) for path in (tmp_path / "hest").glob("global_mean-D-*.parquet")])
    panel = scores["gene"].tolist()
    counts = {name: table[:, panel].X.toarray() for name, table in tables.items()}
    training = np.log1p(np.concatenate([counts[name] for name in names[:3]])).mean(axis=0)
    own = np.log1p(counts["D1"])
    expected = np.mean([np.corrcoef(training, spot)[0, 1] for spot in own if spot.std() > 0])
    assert scores["spot_pearson"].iloc[0] == pytest.approx(expected, abs=1e-5)


def test_the_page_shows_the_speed_beside_istar() -> None:
    script = load("istar_speed")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.fill(page, json.loads(script.RESULTS.read_text(encoding="utf-8"))["rows"]) == page


def test_each_claim_has_an_interval_and_a_command() -> None:
    script = load("claims")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.fill(page) == page
    found = script.claims()
    assert len(found) == 15
    assert all(claim.interval and claim.command for claim in found)
    assert {claim.holds.partition(",")[0].partition(":")[0] for claim in found} <= {"yes", "no", "not shown"}
    gains = [claim for claim in found if "simulated" in claim.found]
    for claim in gains:  # the verdict follows from the interval
        low, high = map(float, claim.interval.split(" to "))
        assert claim.holds == ("yes" if low > 0 else "no, the opposite" if high < 0 else "not shown")


def test_the_page_shows_the_scores_with_and_without_stain() -> None:
    script = load("her2st_stain")
    rows = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.fill(page, rows) == page
    assert page.count("| macenko |") == 1
