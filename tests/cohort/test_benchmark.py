"""Benchmark files: what is wrong is named with its table and key, and the shipped ones run on folders of the right shape."""

from __future__ import annotations

import hashlib
import inspect
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import st_predict as stp
from st_predict.cli import app
from st_predict.cohort import _benchmark as module
from st_predict.cohort import _fit as fit
from st_predict.cohort._benchmark import SimulationTable
from st_predict.datasets import _her2st, simulate
from st_predict.datasets._splits import HER2ST

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"
SMALL = """
[benchmark]
panel = 4
panel_method = "mean"
device = "cpu"
[sections]
source = "simulate"
n_patients = 2
n_genes = 8
shape = [720, 880]
mpp = 1.2
[models.mean]
[models.near]
model = "neighbours"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "small.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[benchmark", r"small\.toml' is not a TOML file"),
        (
            "[benchmarks]",
            r"small\.toml has no tables \['benchmarks'\]; its tables are \['benchmark', 'sections', 'models'",
        ),
        (
            SMALL.replace("panel = 4", "panels = 4"),
            r"table \[benchmark\]: the keys \['panels'\] do not exist; there are .*'panel'",
        ),
        (SMALL.replace("panel = 4", "panel = 0"), r"table \[benchmark\]: panel must be at least 1.*got 0"),
        (SMALL.replace("panel = 4", 'protocol = "leave"'), r"\[benchmark\]: protocol must be 'hest'.*got 'leave'"),
        (SMALL.replace("panel = 4", "audit = 1"), r"audit must be True or False, got 1"),
        (
            SMALL.replace('source = "simulate"', ""),
            r"table \[sections\]: source must be one of \['her2st', 'hest'.*got None",
        ),
        (SMALL.replace("simulate", "visium"), r"source must be one of .*got 'visium'. Set source"),
        (
            SMALL.replace("n_genes = 8", "genes = 8"),
            r"table \[sections\]: the keys \['genes'\] do not exist; there are",
        ),
        (SMALL.replace("[models.mean]", "[models]\nmean = 3"), r"table \[models\]: expected a table per name"),
        (SMALL + '[models.a]\nmodel = "none"', r"table \[models\]: model 'a':.*none"),
        (
            SMALL + '[models.a]\nmodel = "mean"\nepochs = 3',
            r"model 'a': the keys \['epochs'\] do not exist; there are \['model'",
        ),
        (SMALL.partition("[models")[0], "models is empty"),
        (SMALL + '[folds.a]\ntrain = ["P1S1"]', r"table \[folds\.a\]: test is missing"),
        (SMALL + '[folds.a]\ntrain = ["P1S1"]\ntest = ["P9"]', r"unknown sections \['P9'\]"),
        (SMALL + '[folds.a]\ntrain = ["P1S1"]\ntest = ["P1S1"]', "on several sides of the fold 'a'"),
        (
            '[sections]\nsource = "her2st"\nnames = ["C2", "C9"]\n[models.mean]',
            r"\[sections\]: names has \['C9'\].*'A1'",
        ),
        (
            '[sections]\nsource = "stores"\npaths = ["no.zarr"]\n[models.mean]',
            r"\[sections\]: paths names \['.*no\.zarr'\]",
        ),
        ('[sections]\nsource = "hest"\n[models.mean]', r"\[sections\]: folder is missing"),
    ],
)
def test_what_is_wrong_is_named(write: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        stp.cohort.check_benchmark(write(text))


def test_a_file_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError, match=r"'no\.toml' does not exist; name a benchmark file"):
        stp.cohort.run_benchmark("no.toml", out="out")


def test_the_command_checks_runs_and_resumes(write: Callable[[str], Path], tmp_path: Path) -> None:
    path, out = write(SMALL), tmp_path / "out"
    checked = CliRunner().invoke(app, ["benchmark", str(path), "--out", str(out), "--check"])
    assert checked.exit_code == 0, checked.output
    assert "near, fold P1, seeds [0]: train: P2S1; validation: -; test: P1S1; leaks: none" in checked.output
    assert not out.exists()
    ran = CliRunner().invoke(app, ["benchmark", str(path), "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    table = pd.read_csv(out / "scores.csv")
    expected = stp.cohort.run_benchmark(path, out=tmp_path / "again")
    pd.testing.assert_frame_equal(table.fillna({"leaks": ""}), expected, check_dtype=False)
    summary = pd.read_csv(out / "summary.csv")
    assert summary["model"].tolist() == ["near", "mean"]
    files = {file: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    first = (out / "scores.csv").read_bytes()
    assert len(files) == 4
    assert CliRunner().invoke(app, ["benchmark", str(path), "--out", str(out)]).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.parquet")} == files
    assert (out / "scores.csv").read_bytes() == first


def test_every_option_of_the_simulation_is_a_key(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    options = set(inspect.signature(stp.datasets.simulate).parameters) - {"progress"}
    assert set(SimulationTable.__dataclass_fields__) == options
    drawn: dict[str, object] = {}
    monkeypatch.setattr(module, "simulate", lambda **given: drawn.update(given) or simulate(**given))
    text = SMALL.replace("n_genes = 8", 'n_genes = 8\nprogrammes = ["cross"]\ndepth = "cellularity"\ndispersion = 0')
    stp.cohort.check_benchmark(write(text))
    assert drawn["programmes"] == ["cross"]
    assert drawn["depth"] == "cellularity"
    assert drawn["dispersion"] == 0
    assert "cuts" not in drawn


def test_resolution_and_stain_of_a_model_reach_its_training(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, object]] = []
    train = fit.train

    def spy(*args: object, **given: object) -> object:
        result = train(*args, **given)
        seen.append((result.card.crop.mpp, result.card.training["stain"]["method"]))
        return result

    monkeypatch.setattr(fit, "train", spy)
    text = SMALL.partition("[models.mean]")[0] + '[models.ridge]\nmpp = 2.0\nstain = "reinhard"\n'
    stp.cohort.run_benchmark(write(text), out=tmp_path / "out")
    assert seen == [(2.0, "reinhard")] * 2


def test_errors_of_the_command_are_one_line(write: Callable[[str], Path], tmp_path: Path) -> None:
    text = SMALL + '[models.broken]\nmodel = "ridge"\nhparams = { encoder = "no_such" }'
    result = CliRunner().invoke(app, ["benchmark", str(write(text)), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: 2 of 6 cells failed")
    assert "--skip-failed" in result.output
    skipped = CliRunner().invoke(app, ["benchmark", str(write(text)), "--out", str(tmp_path / "out"), "--skip-failed"])
    assert skipped.exit_code == 0, skipped.output


def test_stores_and_folds_of_a_file(write: Callable[[str], Path], tmp_path: Path) -> None:
    for name, section in stp.datasets.simulate(2, 2, n_genes=8, shape=(720, 880), mpp=1.2).sections.items():
        section.write(tmp_path / f"{name}.zarr")
    text = """
    [sections]
    source = "stores"
    paths = ["P*.zarr"]
    [models.mean]
    [folds.shared]
    train = ["P1S1"]
    test = ["P1S2", "P2S1"]
    shared_patients = ["P1"]
    """
    (row,) = stp.cohort.check_benchmark(write(text)).to_dict("records")
    assert (row["fold"], row["train"], row["test"], row["leaks"]) == ("shared", ("P1S1",), ("P1S2", "P2S1"), "patient")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_files_are_valid(path: Path) -> None:
    from st_predict.cohort._benchmark import _Benchmark

    found = _Benchmark.read(path)
    assert {"log_total", "neighbours"} < set(found.models)


@pytest.fixture
def all_of_her2st(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository with all 36 sections, 16 spots and 12 genes each; the hashes are those of these files."""
    rng, entries = np.random.default_rng(0), {}
    genes = [f"G{i}" for i in range(12)]
    places = [(x, y) for x in range(2, 6) for y in range(2, 6)]
    for name in HER2ST:
        counts = rng.poisson(30, (16, 12))
        own = genes if name != "A1" else genes[:-1]  # sections differ in genes
        frame = pd.DataFrame(counts[:, : len(own)], index=[f"{x}x{y}" for x, y in places], columns=own)
        spots = pd.DataFrame([(x, y, x, y, 100 * x, 100 * y, 1) for x, y in places])
        spots.columns = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
        files = {
            f"data/ST-cnts/{name}.tsv.gz": lambda path, frame=frame: frame.to_csv(path, sep="\t"),
            f"data/ST-spotfiles/{name}_selection.tsv": lambda path, spots=spots: spots.to_csv(
                path, sep="\t", index=False
            ),
            f"data/ST-imgs/{name[0]}/{name}/HE.jpg": Image.fromarray(
                rng.integers(100, 200, (600, 600, 3), dtype=np.uint8)
            ).save,
        }
        for path, save in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            save(tmp_path / path)
            entries[path] = {"sha256": hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()}
    monkeypatch.setattr(_her2st, "_registry", lambda: json.loads(json.dumps({"commit": "abc", "files": entries})))
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("all_of_her2st")
def test_the_full_benchmark_on_36_sections(tmp_path: Path) -> None:
    plan = stp.cohort.check_benchmark(CONFIGS / "her2st-full.toml")
    text = (CONFIGS / "her2st-full.toml").read_text(encoding="utf-8")
    assert set(plan["model"]) == set(tomllib.loads(text)["models"])
    folds = plan[plan["model"] == "m2ost"]
    assert folds["fold"].tolist() == list("ABCDEFGH")
    assert folds["seeds"].tolist() == [(0, 1, 2)] * 8
    assert folds["test"].map(len).tolist() == [6, 6, 6, 6, 3, 3, 3, 3]
    assert set(plan["leaks"]) == {""}
    # a fold of the same file with models that need no image; the made-up genes have no pattern to select
    head = text.partition("[models.position]")[0].replace("panel = 50", 'panel_method = "mean"\npanel = 4')
    fold = {"train": [f"{patient}1" for patient in "ABCDGH"], "validation": ["F1"], "test": ["E1", "E2"]}
    sides = "".join(f"{side} = {list(names)}\n" for side, names in fold.items())
    (tmp_path / "one.toml").write_text(f"{head}[folds.E]\n{sides}", encoding="utf-8")
    table = stp.cohort.run_benchmark(tmp_path / "one.toml", out=tmp_path / "out")
    assert table.groupby("model")["section"].unique().map(list).to_dict() == {
        key: ["E1", "E2"] for key in ["log_total", "global_mean"]
    }
    assert set(table["held_out"]) == {"patient"}
    training = [stp.datasets.her2st(name)["table"] for name in fold["train"]]
    assert set(table["gene"]) == set(stp.pp.select_panel(training, n_genes=4, method="mean"))
