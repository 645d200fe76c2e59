"""Many slides give the results of single calls, and a report of what went wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import st_predict as stp
from st_predict import get
from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._locks import locked
from st_predict._record import Record
from st_predict.cli import app
from st_predict.cohort._job import SlideJob, failed
from st_predict.cohort._slides import CohortSlide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = {"device": "cpu", "precision": "float32"}


def single(path: Path, model: Path) -> Any:
    """The prediction of one slide by the functions for one slide."""
    sdata = stp.io.read_image(path)
    stp.pp.make_grid(sdata, pitch_um=60)
    stp.tl.predict(sdata, model, **CPU)
    return get.prediction(sdata)


def test_results_are_those_of_single_calls(
    client: Any, write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    slides = [write_slide(f"{name}.tif", seed=seed) for seed, name in enumerate("ab")]
    model = checkpoint()
    report = stp.cohort.predict_many(slides, model, out=tmp_path / "out", client=client, pitch_um=60, merge=True, **CPU)
    assert report["status"].tolist() == ["done", "done"]
    for path in slides:
        alone, found = single(path, model), anndata.read_h5ad(tmp_path / "out" / f"{path.stem}.h5ad")
        assert alone.n_obs == report.loc[path.stem, "spots"] > 5
        np.testing.assert_array_equal(found.X, alone.X)
        pd.testing.assert_index_equal(found.obs_names, alone.obs_names)
        np.testing.assert_array_equal(found.obsm["spatial"], alone.obsm["spatial"])
    assert report["mpp"].tolist() == [1.0, 1.0]
    joined = anndata.read_h5ad(tmp_path / "out" / "merged.h5ad")
    assert joined.obs["slide"].value_counts().to_dict() == report["spots"].to_dict()
    np.testing.assert_array_equal(joined[joined.obs["slide"] == "b"].X, single(slides[1], model).X)
    record = Record.read(joined.uns, "pred_m2ost")  # came along
    assert record.genes == tuple("abcd")
    assert record.params["members"][0]["checkpoint"] == str(model)
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("?.h5ad")) < 2 * 400 * 400 * 3  # no pixels


def test_a_slide_that_is_coarser_than_the_network(
    client: Any, write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    slide, model = write_slide("a.tif"), checkpoint(mpp=0.5)  # the slide has 1 um per pixel
    options = {"out": tmp_path / "out", "client": client, "pitch_um": 60, **CPU}
    refused = stp.cohort.predict_many(slide, model, **options)
    assert refused.loc["a", "status"] == "failed"
    assert "0.5 um/px or finer" in refused.loc["a", "error"]
    masked = stp.cohort.predict_many(slide, model, missing_levels="mask", **options)
    assert masked.loc["a", "status"] == "done"
    sdata = stp.io.read_image(slide)
    stp.pp.make_grid(sdata, pitch_um=60)
    stp.tl.predict(sdata, model, missing_levels="mask", **CPU)
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out" / "a.h5ad").X, get.prediction(sdata).X)
    stp.tl.train(stp.datasets.toy(), "mean", panel=["GENE1"], out=tmp_path / "mean")
    with pytest.raises(ValueError, match=r"'mean' needs all levels .*Leave out missing_levels="):
        stp.cohort.predict_many(slide, tmp_path / "mean" / "mean.safetensors", missing_levels="mask", **options)


@pytest.fixture
def cohort(write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A list with a good slide, one without tissue, one without mpp, a truncated and a missing one; and a model."""
    write_slide("good.tif")
    write_slide("white.tif", tissue=False)
    write_slide("nompp.tif", mpp=None)
    whole = write_slide("broken.tif").read_bytes()
    (tmp_path / "broken.tif").write_bytes(whole[: len(whole) // 2])
    path = tmp_path / "slides.csv"
    path.write_text("path,pitch_um\ngood.tif,80\nwhite.tif,\nnompp.tif,\nbroken.tif,\nmissing.tif,\n")
    return path, checkpoint()


def test_broken_slides_are_recorded_and_the_others_go_on(
    client: Any, cohort: tuple[Path, Path], tmp_path: Path, write_slide: Callable[..., Path]
) -> None:
    slides, model = cohort
    out = tmp_path / "out"

    def run(**options: Any) -> pd.DataFrame:
        return stp.cohort.predict_many(slides, model, out=out, client=client, **{**CPU, **options})

    report = run()
    assert report["status"].to_dict() == {
        "good": "done",
        "white": "empty",
        "nompp": "failed",
        "broken": "failed",
        "missing": "failed",
    }
    assert report["attempts"].to_dict() == {"good": 1, "white": 1, "nompp": 1, "broken": 3, "missing": 1}
    assert "the column 'mpp'" in report.loc["nompp", "error"]
    assert anndata.read_h5ad(out / "white.h5ad").shape == (0, 4)
    known = json.loads((out / "failed" / "broken.json").read_text())
    assert known["traceback"].startswith("Traceback")
    assert known["kind"] == "OSError"
    assert (pd.read_csv(out / "report.csv")["seconds"] >= 0).all()

    before = (out / "good.h5ad").stat().st_mtime_ns
    again = run()
    assert again["reused"].all()  # done ones are hits, failed ones are not tried
    assert again["status"].to_dict() == report["status"].to_dict()
    assert (out / "good.h5ad").stat().st_mtime_ns == before
    shutil.copy(write_slide("new.tif"), tmp_path / "missing.tif")
    mended = run()
    assert mended.loc["missing", ["status", "reused"]].tolist() == ["done", False]  # another file is work
    assert not (out / "failed" / "missing.json").exists()
    retried = run(retry_failed=True, retries=0)
    assert retried.loc["broken", ["attempts", "reused"]].tolist() == [1, False]

    changed = run(cut_tissue="nan")
    assert changed.loc["good", ["status", "reused"]].tolist() == ["done", False]  # another argument is work
    os.utime(tmp_path / "good.tif", ns=(1, 1))
    assert not run(cut_tissue="nan").loc["good", "reused"]  # another file, by its time


def test_slides_are_looked_at_before_work(client: Any, cohort: tuple[Path, Path], tmp_path: Path) -> None:
    slides, model = cohort
    looked = stp.cohort.check_slides(slides, client=client)
    assert looked["status"].tolist() == ["done", "empty", "failed", "failed", "failed"]
    assert looked.loc["good", ["spots", "mpp"]].tolist()[1] == 1.0
    with pytest.raises(InvalidValueError, match=r"3 of 5 slides cannot be used, and nothing was computed: nompp"):
        stp.cohort.predict_many(slides, model, out=tmp_path / "out", client=client, check_first=True, **CPU)
    assert list((tmp_path / "out").glob("*.h5ad")) == []


def test_embeddings_are_those_of_single_calls(client: Any, write_slide: Callable[..., Path], tmp_path: Path) -> None:
    path = write_slide("a.tif")
    out = tmp_path / "out"
    report = stp.cohort.embed_many([path], "rgb", out=out, client=client, pitch_um=60, cache=False, device="cpu")
    sdata = stp.io.read_image(path)
    stp.pp.make_grid(sdata, pitch_um=60)
    stp.tl.embed(sdata, "rgb", cache=False, device="cpu")
    found = anndata.read_h5ad(out / "a.h5ad")
    np.testing.assert_array_equal(found.X, sdata.tables["X_rgb"].X)
    assert report.loc["a", "spots"] == found.n_obs > 5
    again = stp.cohort.embed_many([path], "rgb", out=out, client=client, pitch_um=60, cache=False, device="cpu")
    assert again["reused"].all()
    other = stp.cohort.embed_many([path], "rgb", out=out, client=client, pitch_um=60, neighbours=2, device="cpu")
    assert not other["reused"].any()


def test_workers_get_absolute_paths(
    cohort: tuple[Path, Path], client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may run in another folder."""
    monkeypatch.chdir(tmp_path)
    stp.cohort.predict_many("slides.csv", cohort[1].name, out="out", client=client, retries=0, **CPU)
    assert json.loads((tmp_path / "out" / "failed" / "broken.json").read_text())["path"] == str(tmp_path / "broken.tif")
    record = Record.read(anndata.read_h5ad(tmp_path / "out" / "good.h5ad").uns, "pred_m2ost")
    assert record.params["members"][0]["checkpoint"] == str(cohort[1])


def test_shards_have_reports_of_their_own(
    client: Any, write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    slides, model = [write_slide(f"{i}.tif") for i in range(3)], checkpoint()
    for number, names in ((1, ["0", "2"]), (2, ["1"])):
        part = stp.cohort.predict_many(slides, model, out=tmp_path / "out", client=client, shard=(number, 2), **CPU)
        assert sorted(part.index.astype(str)) == names
        assert pd.read_csv(tmp_path / "out" / f"report-{number}-of-2.csv").shape[0] == len(names)
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.h5ad")) == ["0", "1", "2"]


def test_the_command(cohort: tuple[Path, Path], client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slides, model = cohort
    options = ["--model", model, "--out", tmp_path / "out", "--scheduler", client.scheduler.address, "--device", "cpu"]

    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["batch", *map(str, [*arguments, *options])])

    broken = run(slides, "--retries", 0)
    assert (broken.exit_code, broken.stdout) == (1, f"1 done, 1 empty, 3 failed: {tmp_path / 'out'}\n")
    fine = run(tmp_path / "good.tif", "--pitch-um", 80, "--merge", "--shard", "1/1")
    assert (fine.exit_code, fine.stdout) == (0, f"1 done, 0 empty, 0 failed: {tmp_path / 'out'}\n"), fine.output
    assert "slide" in anndata.read_h5ad(tmp_path / "out" / "merged.h5ad").obs
    checked = run(slides, "--check", "--retry-failed")
    assert checked.exit_code == 1
    assert "cannot be used" in checked.stderr
    assert "--shard must be" in run(slides, "--shard", "3of20").stderr


def test_two_runs_in_one_folder(client: Any, cohort: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (
        locked(out / ".lock", folder=out, what="run of a cohort"),
        pytest.raises(FileExistsError, match="is in use by"),
    ):
        stp.cohort.predict_many(*cohort, out=out, client=client, **CPU)


def test_a_file_of_the_user_is_not_replaced(client: Any, cohort: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mine = anndata.AnnData(np.ones((2, 2)))
    for write in (mine.write_h5ad, lambda path: path.write_text("mine")):
        write(out / "good.h5ad")
        before = (out / "good.h5ad").read_bytes()
        with pytest.raises(InvalidValueError, match="is not a result of a cohort"):
            stp.cohort.predict_many(*cohort, out=out, client=client, **CPU)
        assert (out / "good.h5ad").read_bytes() == before


def test_invalid_arguments_are_refused_before_work(client: Any, cohort: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    slides, model = cohort
    with pytest.raises(InvalidTypeError, match="client must be"):
        stp.cohort.predict_many(slides, model, out=out, client=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="n_samples must be at least 2"):
        stp.cohort.predict_many(slides, model, out=out, client=client, n_samples=1)
    with pytest.raises(InvalidValueError, match="retries"):
        stp.cohort.predict_many(slides, model, out=out, client=client, retries=-1)
    with pytest.raises(FileNotFoundError):
        stp.cohort.predict_many(slides, tmp_path / "no.safetensors", out=out, client=client)
    assert not (out / "report.csv").exists() or len(pd.read_csv(out / "report.csv")) == 0


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(5, "Input/output error"), True),
        (TimeoutError("the share does not answer"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory"), True),
        (FileNotFoundError("no such file"), False),
        (PermissionError("not yours"), False),
        (OSError(28, "No space left on device"), False),
        (InvalidValueError("The mpp is unknown."), False),
        (RuntimeError("another fault"), False),
    ],
)
def test_only_reading_and_memory_are_tried_again(error: Exception, again: bool, tmp_path: Path) -> None:
    job = SlideJob(slide=CohortSlide(path=tmp_path / "a.svs", id="a"), key="k", path=tmp_path / "a.h5ad")
    assert failed(job, error).may_pass is again


def test_without_distributed_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, cohort: tuple[Path, Path], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'st-predict\[cluster\]'"):
        stp.cohort.predict_many(*cohort, out=tmp_path / "out", **CPU)
    assert not (tmp_path / "out").exists()
