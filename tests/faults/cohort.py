"""Cohorts on real processes: equal to one process, with killed workers and drivers, full and read-only disks, races.

    python tests/faults/cohort.py          # as the tests run it
    python tests/faults/cohort.py --all    # more slides, and 20 kills of workers and of drivers each

Prints JSON: per case, what was found. A case that cannot be tried here, such as mounting a disk without permission, is "skipped".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = {"device": "cpu", "precision": "float32", "pitch_um": 25.0}
HIDDEN = (".st_predict-", ".lock", ".owner")
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Cohort:
    """Slides and a checkpoint, with the results of one process.

    Parameters
    ----------
    folder
        Holds ``*.tif`` and ``model.safetensors``.
    expected
        Predictions by slide, of single calls in this process.
    """

    folder: Path
    expected: dict[str, Any]

    @property
    def slides(self) -> str:
        return str(self.folder / "*.tif")

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    def run(self, out: Path, **options: Any) -> Any:
        import st_predict as stp

        return stp.cohort.predict_many(self.slides, self.model, out=out, **{**CPU, **options})

    def differing(self, out: Path) -> list[str]:
        """Slides whose result is missing, or not equal bit for bit."""
        import anndata

        return [
            name
            for name, values in self.expected.items()
            if not (path := out / f"{name}.h5ad").exists() or not np.array_equal(anndata.read_h5ad(path).X, values)
        ]


def make_cohort(folder: Path, n: int) -> Cohort:
    """Write slides and a checkpoint of random weights, and predict them one by one."""
    import tifffile

    import st_predict as stp
    from st_predict import checkpoints
    from st_predict.models import get_spec
    from st_predict.specs import ModelCard

    spec = get_spec("m2ost")
    card = ModelCard(model="m2ost", genes=tuple("abcd"), crop=spec.crop_for(spec.tiny), hparams=dict(spec.tiny))
    checkpoints.save(folder / "model.safetensors", checkpoints.build(card), card)
    expected = {}
    for number in range(n):
        pixels = np.full((400, 400, 3), 245, np.uint8)
        pixels[60:340, 60:340] = np.random.default_rng(number).integers(60, 180, (280, 280, 3), dtype=np.uint8)
        path = folder / f"S{number}.tif"
        resolution = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), metadata=None, **resolution)
        sdata = stp.io.read_image(path)
        stp.pp.make_grid(sdata, pitch_um=CPU["pitch_um"])
        stp.tl.predict(sdata, folder / "model.safetensors", device="cpu", precision="float32")
        expected[path.stem] = stp.get.prediction(sdata).X
    return Cohort(folder, expected)


@contextlib.contextmanager
def two_workers() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


def equal(cohort: Cohort, client: Any, out: Path) -> dict[str, Any]:
    """Two workers, without faults."""
    pids = set(client.run(os.getpid).values())
    report = cohort.run(out, client=client)
    return {"workers": len(pids), "done": int((report["status"] == "done").sum()), "differing": cohort.differing(out)}


def killed_worker(cohort: Cohort, client: Any, out: Path, rng: np.random.Generator) -> dict[str, Any]:
    """A worker is killed while it has a slide in work."""
    pids = client.run(os.getpid)
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and not killed:
            busy = [worker for worker, tasks in client.processing().items() if tasks and worker in pids]
            if busy and any(out.glob("*.h5ad")):
                time.sleep(rng.uniform(0, 0.05))
                os.kill(pids[busy[0]], signal.SIGKILL)
                killed.append(pids[busy[0]])
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    report = cohort.run(out, client=client)
    unfinished = len(killed)
    killed.append(0)  # ends the thread, if all slides were too quick
    thread.join()
    return {
        "killed": unfinished,
        "done": int((report["status"] == "done").sum()),
        "differing": cohort.differing(out),
        "left behind": leftovers(out),
    }


def killed_workers(cohort: Cohort, folder: Path, kills: int) -> list[dict[str, Any]]:
    """Kill workers one after another; a cluster that does not start its worker again is replaced."""
    found: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    while len(found) < kills:
        with two_workers() as client:
            while len(found) < kills and both_are_there(client):
                found.append(killed_worker(cohort, client, folder / f"kw{len(found)}", rng))
    return found


def both_are_there(client: Any) -> bool:
    try:
        client.wait_for_workers(2, timeout=60)
    except TimeoutError:
        return False
    return True


def leftovers(out: Path) -> list[str]:
    """Temporary files, after the next file was written there."""
    from st_predict._files import whole

    with whole(out / "next.txt") as fresh:
        fresh.touch()
    (out / "next.txt").unlink()
    return [path.name for path in out.rglob(".*") if path.name.startswith(HIDDEN)]


def drive(folder: Path, expected: dict[str, Any], out: Path, told: Any) -> None:
    """Run a cohort in a process of its own, with one worker in a thread; tell how it ended."""
    from distributed import Client

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        told.send("begun")
        try:
            report = Cohort(folder, expected).run(out, client=client)
            told.send(["done", int(report["reused"].sum()), int((report["status"] == "done").sum())])
        except Exception as error:  # noqa: BLE001  # told to the other process
            told.send([type(error).__name__, str(error)])


def poisoned(cohort: Cohort, out: Path) -> dict[str, Any]:
    """A slide ends every worker that has it, and waits with others for the only one: the scheduler blames all of them."""
    import dask
    from distributed import Client, LocalCluster, WorkerPlugin

    class Poison(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            import os

            from st_predict.cohort import _plugin

            real = _plugin.run_job
            _plugin.run_job = lambda job, loaded: os._exit(1) if job.slide.id == "S0" else real(job, loaded)

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),  # the first death is the last
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(Poison())
        report = cohort.run(out, client=client)
    return {"failed": report.index[report["status"] == "failed"].tolist(), "differing": cohort.differing(out)}


def start_driver(cohort: Cohort, out: Path) -> tuple[Any, Any]:
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=drive, args=(cohort.folder, cohort.expected, out, there))
    process.start()
    there.close()
    return process, here


def last(told: Any) -> Any:
    """The last message of a driver."""
    message = None
    with contextlib.suppress(EOFError):
        while told.poll(PATIENCE_S):
            message = told.recv()
    return message


def killed_driver(cohort: Cohort, out: Path) -> dict[str, Any]:
    """The whole run is killed after its first slide, and started again."""
    process, told = start_driver(cohort, out)
    while not any(out.glob("*.h5ad")) and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    kept = len(list(out.glob("*.h5ad")))
    end = last(told)
    _, told = start_driver(cohort, out)
    again = last(told)
    return {
        "killed at work": end == "begun",
        "kept": kept,
        "again": again,
        "differing": cohort.differing(out),
        "left behind": leftovers(out),
    }


def race(cohort: Cohort, out: Path) -> dict[str, Any]:
    """Two runs work in one folder at the same time."""
    both = [start_driver(cohort, out) for _ in range(2)]
    ends = [last(told) for _, told in both]
    return {
        "done": sum(end[0] == "done" for end in ends),
        "refused": sum(end[0] == "FileExistsError" and "in use" in end[1] for end in ends),
        "differing": cohort.differing(out),
    }


@contextlib.contextmanager
def disk(options: str) -> Iterator[Path | None]:
    """Mount a file system in memory; ``None`` where that is not allowed."""
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
        if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            yield None
            return
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def full_disk(cohort: Cohort, whole: Path) -> Any:
    """The disk has room for half of the results; then it grows."""
    needed = sum(path.stat().st_size for path in whole.glob("*.h5ad"))
    with disk(f"size={needed // 2}") as out:
        if out is None:
            return "skipped"
        _, told = start_driver(cohort, out)
        end = last(told)
        kept = len(list(out.glob("*.h5ad")))
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        _, told = start_driver(cohort, out)
        return {"end": end, "kept": kept, "again": last(told), "differing": cohort.differing(out)}


def read_only(cohort: Cohort) -> Any:
    """The output folder cannot be written to."""
    with disk("ro,size=1m") as out:
        if out is None:
            return "skipped"
        _, told = start_driver(cohort, out)
        return {"end": last(told)}


def run_all(*, n_slides: int, kills: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        (top / "in").mkdir()
        cohort = make_cohort(top / "in", n_slides)
        found: dict[str, Any] = {"slides": n_slides}
        with two_workers() as client:
            found["equal"] = equal(cohort, client, top / "equal")
        found["killed worker"] = killed_workers(cohort, top, kills)
        found["poisoned"] = poisoned(cohort, top / "poisoned")
        found["killed driver"] = [killed_driver(cohort, top / f"kd{i}") for i in range(kills)]
        found["race"] = race(cohort, top / "race")
        found["full disk"] = full_disk(cohort, top / "equal")
        found["read-only"] = read_only(cohort)
    return found


def main() -> None:
    import dask
    from distributed.utils import get_mp_context

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="more slides, and 20 kills")
    many = parser.parse_args().all
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # which would set what is preloaded
        names = (
            "st_predict.tl st_predict.cohort distributed timm spatialdata aiobotocore.session requests s3fs tifffile"
        )
        CONTEXT.set_forkserver_preload([*names.split(), "skimage.transform", "statsmodels.api", "openslide"])
        found = run_all(n_slides=12 if many else 6, kills=20 if many else 1)
    json.dump(found, sys.stdout, indent=1)


# Processes are forked from a clean one that has imported what takes long.
CONTEXT = multiprocessing.get_context("forkserver")

if __name__ == "__main__":
    main()
