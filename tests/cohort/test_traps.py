"""What a cohort must not be fooled by: changed files, other runs, dead workers, files of the user."""

from __future__ import annotations

import asyncio
import os
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

import st_predict as stp
from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._locks import locked
from st_predict.cohort import _plugin, _run, _tasks
from st_predict.cohort._cluster import connected
from st_predict.cohort._job import SlideJob
from st_predict.cohort._key import key_of
from st_predict.cohort._slides import CohortSlide, list_slides

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = {"device": "cpu", "precision": "float32", "pitch_um": 80}


def key_now(path: Path) -> str:
    (slide,) = list_slides(path, pitch_um=100.0)
    return key_of(slide, {})


def test_a_store_whose_files_were_exchanged_has_another_key(tmp_path: Path) -> None:
    """Neither the sum of sizes nor the newest time changes."""
    store = tmp_path / "a.zarr"
    store.mkdir()
    for name, content in (("0", b"left"), ("1", b"right")):
        (store / name).write_bytes(content)
    os.utime(store / "0", ns=(1, 10**18))
    os.utime(store / "1", ns=(1, 10**18 - 5))
    before = key_now(store)
    assert key_now(store) == before
    for old, new in ("0x", "10", "x1"):
        (store / old).rename(store / new)
    assert key_now(store) != before


def test_another_file_of_the_same_size_and_time_has_another_key(tmp_path: Path) -> None:
    """As unpacked archives have them; the identifier stays."""
    keys = set()
    for name in "ab":
        (tmp_path / f"{name}.svs").write_bytes(b"1234")
        os.utime(tmp_path / f"{name}.svs", ns=(1, 10**18))
        (slide,) = list_slides(pd.DataFrame({"path": [tmp_path / f"{name}.svs"], "id": ["P1"]}), pitch_um=100.0)
        keys.add(key_of(slide, {}))
    assert len(keys) == 2


def test_a_moved_folder_is_no_new_work(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.svs").write_bytes(b"1234")
    before = key_now(tmp_path / "x" / "a.svs")
    (tmp_path / "x").rename(tmp_path / "y")
    assert key_now(tmp_path / "y" / "a.svs") == before


def test_a_worker_refuses_weights_that_are_not_those_of_the_key(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint()
    models = (str(path),)
    task = _tasks.PredictTask(models=models, digests=_tasks.digests_of(models), machine=_tasks.Machine(device="cpu"))
    task.load()
    shutil.copy(checkpoint(("x", "y")), path)
    with pytest.raises(InvalidValueError, match=r"is not the file .* was started with"):
        task.load()


def test_a_worker_refuses_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    task = _plugin.TaskPlugin(None, "x")
    monkeypatch.setattr(_plugin, "__version__", "0.0.1")
    with pytest.raises(InvalidValueError, match=r"has st_predict 0\.0\.1"):
        task.setup(None)


def test_a_worker_that_cannot_load_says_why_for_each_slide(
    write_slide: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a worker that joins later reaches the client by its slides only."""
    machine = _tasks.Machine(device="cuda:99")
    plugin = _plugin.TaskPlugin(_tasks.PredictTask(models=(), digests=(), machine=machine), "x")
    with pytest.raises(InvalidValueError, match="cuda:99"):
        plugin.setup(None)
    monkeypatch.setattr(_plugin, "get_worker", lambda: SimpleNamespace(plugins={"x": plugin}))
    job = SlideJob(slide=CohortSlide(path=write_slide("a.tif"), id="a"), key="k", path=tmp_path / "a.h5ad")
    assert "cuda:99" in _plugin.run_on_worker(job, plugin="x").error


def test_shards_refuse_to_join_and_the_whole_run_waits_for_them(
    client: Any, write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    slides, model, out = [write_slide(f"{i}.tif") for i in range(3)], checkpoint(), tmp_path / "out"
    options = {"out": out, "client": client, **CPU}
    with pytest.raises(InvalidValueError, match=r"only a part of the slides.*Leave out merge="):
        stp.cohort.predict_many(slides, model, shard=(1, 2), merge=True, **options)
    stp.cohort.predict_many(slides, model, shard=(1, 2), **options)
    with locked(out / ".lock-2-of-2", folder=out, what="run"):
        stp.cohort.predict_many(slides, model, shard=(1, 2), **options)  # another part of the same division
        for shard in (None, (1, 3)):
            with pytest.raises(FileExistsError, match="is in use by"):
                stp.cohort.predict_many(slides, model, shard=shard, **options)
    with locked(out / ".lock", folder=out, what="run"), pytest.raises(FileExistsError, match="is in use by"):
        stp.cohort.predict_many(slides, model, shard=(1, 2), **options)
    report = stp.cohort.predict_many(slides, model, merge=True, **options)
    assert report["reused"].tolist() == [True, False, True]
    assert sorted(path.name for path in out.glob(".lock*")) == []


def test_an_empty_shard_has_an_empty_report(client: Any, write_slide: Callable[..., Path], tmp_path: Path) -> None:
    slide = write_slide("a.tif")
    assert len(stp.cohort.check_slides(slide, client=client, shard=(2, 2))) == 0
    assert len(stp.cohort.check_slides(slide, shard=(2, 2))) == 0
    assert len(stp.cohort.embed_many(slide, "rgb", out=tmp_path / "out", shard=(2, 2), device="cpu")) == 0


def test_report_and_joined_rows_have_the_order_of_the_list(
    write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path, client: Any
) -> None:
    slides = [write_slide(f"{name}.tif") for name in "ca"]
    options = {"out": tmp_path / "out", "client": client, **CPU}
    model = checkpoint()
    stp.cohort.predict_many(slides[1:], model, **options)
    report = stp.cohort.predict_many(slides, model, merge=True, **options)
    assert report.index.tolist() == ["c", "a"]
    assert pd.read_csv(tmp_path / "out" / "report.csv")["id"].tolist() == ["a", "c"]  # as they ended
    joined = anndata.read_h5ad(tmp_path / "out" / "merged.h5ad")
    assert joined.obs["slide"].unique().tolist() == ["c", "a"]


def test_nothing_to_join_is_no_error(
    client: Any, write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path, caplog: Any
) -> None:
    options = {"out": tmp_path / "out", "client": client, "merge": True, **CPU}
    model = checkpoint()
    stp.cohort.predict_many(write_slide("a.tif"), model, **options)
    assert (tmp_path / "out" / "merged.h5ad").exists()
    report = stp.cohort.predict_many(write_slide("white.tif", tissue=False), model, **options)
    assert report["status"].tolist() == ["empty"]
    assert "No slide has spots" in caplog.text
    assert not (tmp_path / "out" / "merged.h5ad").exists()  # that of the other list


@pytest.mark.parametrize("name", ["report.csv", "merged.h5ad"])
def test_other_files_of_the_user_are_not_replaced(
    client: Any, write_slide: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    anndata.AnnData(np.ones((2, 2))).write_h5ad(out / "merged.h5ad")
    (out / "report.csv").write_text("mine\n1\n")
    for other in {"report.csv", "merged.h5ad"} - {name}:
        (out / other).unlink()
    before = (out / name).read_bytes()
    with pytest.raises(InvalidValueError, match="It is not replaced"):
        stp.cohort.predict_many(write_slide("a.tif"), checkpoint(), out=out, client=client, merge=True, **CPU)
    assert (out / name).read_bytes() == before
    assert not list(out.glob("a.h5ad"))


def test_a_slide_that_is_listed_twice_is_named(
    write_slide: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_slide("a.tif")
    (tmp_path / "b.tif").symlink_to(path)
    list_slides([path, tmp_path / "b.tif"], pitch_um=100.0)
    assert "['a', 'b'] are one file" in caplog.text
    caplog.clear()
    list_slides(pd.DataFrame({"path": [path, path], "id": ["a", "c"], "pitch_um": [50, 100]}), pitch_um=100.0)
    assert caplog.text == ""


def test_arguments_without_effect_are_refused(client: Any, write_slide: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="n_workers is for a cluster of this machine"):
        stp.cohort.check_slides(write_slide("a.tif"), client=client, n_workers=2)


def test_an_asynchronous_or_closed_client_is_refused(write_slide: Callable[..., Path], tmp_path: Path) -> None:
    ended = Client(processes=False, n_workers=1, dashboard_address=":0", set_as_default=False)
    ended.close()
    with pytest.raises(InvalidValueError, match="client is closed"):
        stp.cohort.check_slides(write_slide("a.tif"), client=ended)

    async def call() -> None:
        options = {"processes": False, "n_workers": 1, "dashboard_address": ":0", "set_as_default": False}
        async with Client(asynchronous=True, **options) as waiting:
            with pytest.raises(InvalidTypeError, match="client is asynchronous"):
                stp.cohort.check_slides(write_slide("a.tif"), client=waiting)

    asyncio.run(call())


def test_a_client_of_the_user_stays_open(client: Any, write_slide: Callable[..., Path]) -> None:
    stp.cohort.check_slides(write_slide("a.tif"), client=client)
    stp.cohort.check_slides(write_slide("a.tif"), client=client.scheduler.address)
    assert client.status == "running"
    assert client.submit(sum, [1, 2]).result() == 3


def test_the_check_finds_a_store_whose_resolution_is_unknown(
    client: Any, sdata: Any, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    sdata.write(tmp_path / "a.zarr")
    options = {"out": tmp_path / "out", "client": client, "device": "cpu"}
    model = checkpoint(mpp=0.5)
    alone = stp.cohort.predict_many(tmp_path / "a.zarr", model, **options)
    assert alone.loc["a", "status"] == "failed"  # so that the check must say so
    with pytest.raises(InvalidValueError, match="1 of 1 slides cannot be used"):
        stp.cohort.predict_many(tmp_path / "a.zarr", model, check_first=True, retry_failed=True, **options)


def test_features_of_another_table_are_not_taken(client: Any, tmp_path: Path) -> None:
    """A store may hold features of an earlier call."""
    toy = stp.datasets.toy()
    old = toy["table"].copy()
    toy["other"] = old
    toy["other"].obsm["X_rgb"] = np.zeros((old.n_obs, 144), np.float32)
    toy.write(tmp_path / "a.zarr")
    stp.cohort.embed_many(
        tmp_path / "a.zarr",
        "rgb",
        out=tmp_path / "out",
        client=client,
        table_key="table",
        cache=False,
        device="cpu",
    )
    assert np.abs(anndata.read_h5ad(tmp_path / "out" / "a.h5ad").X).max() > 0


def test_a_lost_scheduler_fails_no_slide(
    client: Any,
    write_slide: Callable[..., Path],
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slides are not at fault: the next run does them, without being asked to."""
    slides = [write_slide(f"{i}.tif") for i in range(6)]
    options = {"out": tmp_path / "out", **CPU}
    model, add = checkpoint(), _run.Report.add

    def add_and_end(self: Any, outcome: Any) -> None:
        add(self, outcome)
        lost.cluster.close()

    with Client(processes=False, n_workers=1, dashboard_address=":0", set_as_default=False) as lost:
        monkeypatch.setattr(_run.Report, "add", add_and_end)
        with pytest.raises(ConnectionError, match="run again"):
            stp.cohort.predict_many(slides, model, client=lost, **options)
    assert not (tmp_path / "out" / "failed").exists()
    monkeypatch.setattr(_run.Report, "add", add)
    assert stp.cohort.predict_many(slides, model, client=client, **options)["status"].eq("done").all()


def test_workers_that_end_slowly_cost_no_report(
    write_slide: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a busy machine."""

    def start(**_: object) -> LocalCluster:
        cluster = LocalCluster(processes=False, n_workers=1, dashboard_address=":0")
        end = cluster.close

        def close(*arguments: Any) -> None:
            end(*arguments)
            raise TimeoutError

        monkeypatch.setattr(cluster, "close", close)
        return cluster

    monkeypatch.setattr("distributed.LocalCluster", start)
    assert stp.cohort.check_slides(write_slide("a.tif"))["status"].tolist() == ["done"]
    assert "Workers did not end in time" in caplog.text


def test_a_cluster_keeps_nothing_for_each_slide(client: Any, write_slide: Callable[..., Path], tmp_path: Path) -> None:
    """Workers keep statistics and profiles for each name of tasks, for as long as they live: 1 MiB."""
    slides = [write_slide(f"one{name}.tif") for name in "abc"]
    stp.cohort.embed_many(slides, "rgb", out=tmp_path / "out", client=client, cache=False, device="cpu")
    names = set(client.cluster.scheduler.task_prefixes)
    assert "slide" in names
    assert not {name for name in names if "one" in name}


def test_a_local_cluster_is_seen_by_this_machine_only_and_samples_no_stacks() -> None:
    with connected(None, n_workers=1, n_slides=1, device="cpu") as client:
        addresses = client.run_on_scheduler(
            lambda dask_scheduler: [socket.getsockname()[0] for socket in dask_scheduler.http_server._sockets.values()]
        )
        (callbacks,) = client.run(lambda dask_worker: list(dask_worker.periodic_callbacks)).values()
    assert set(addresses) <= {"127.0.0.1", "::1"}
    assert "heartbeat" in callbacks
    assert "profile" not in callbacks  # a MiB for each of the first slides


def test_a_report_without_a_peak(
    client: Any, write_slide: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """Windows does not tell it."""
    monkeypatch.setattr("st_predict.cohort._job.peak_mib", lambda: float("nan"))
    out = tmp_path / "out"
    report = stp.cohort.embed_many(write_slide("a.tif"), "rgb", out=out, client=client, cache=False, device="cpu")
    assert report["peak_mib"].dtype == float
    again = stp.cohort.embed_many(write_slide("a.tif"), "rgb", out=out, client=client, cache=False, device="cpu")
    assert again["peak_mib"].isna().all()
