"""Faults at random moments of five kinds of work: kills, races for one output, full disks, too little memory.

    python tests/faults/kills.py                # a few of each, as the tests run it
    python tests/faults/kills.py --all --page   # at least 50 kills of each; puts the counts into docs/reliability.md

Each piece of work runs in a process of its own. After each fault it is checked that the result is there as a whole or not at all, that running
the work again gives the result of an undisturbed run, that nothing else is left in the folder, and that the inputs are unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
PATIENCE_S = 300.0
SIZE, BLOCK = 4 << 20, 1 << 16  # of the file that is downloaded, and of its pieces
EPOCHS = 4
SMALL_DISKS = (0.02, 0.3, 0.6, 0.9)  # of what an undisturbed run leaves
MEMORY_MIB = (8, 64, 256, 1024)  # beyond what the process has at its start
TOO_LITTLE = re.compile(
    r"memory|allocat|no space|errno 28|errno 12|can't start new thread|failed to map|enospc|enomem", re.IGNORECASE
)
HIDDEN = (".st_predict-", ".crops-", ".lock", ".owner")
REFUSED = re.compile("exists|in use|already holds")
CPU = {"device": "cpu", "precision": "float32"}


@dataclass(frozen=True)
class Inputs:
    """What all work reads.

    Parameters
    ----------
    folder
        Holds two stored sections and two checkpoints.
    url
        Address of the file to download.
    sha256
        Hash of its content.
    """

    folder: Path
    url: str = ""
    sha256: str = ""

    def section(self, name: str = "section") -> Any:
        from spatialdata import read_zarr

        return read_zarr(self.folder / f"{name}.zarr")


@dataclass(frozen=True)
class Work:
    """A kind of work.

    Parameters
    ----------
    run
        Does the work in a folder; done again after a fault, it goes on or starts anew.
    digest
        Hash of the result in a folder; ``None`` if there is none.
    """

    run: Callable[[Inputs, Path], None]
    digest: Callable[[Inputs, Path], str | None]


def hashed(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def run_training(inputs: Inputs, folder: Path) -> None:
    import st_predict as stp
    from st_predict.models import get_spec

    out = folder / "out"
    stp.tl.train(
        inputs.section(),
        "m2ost",
        out=out,
        panel=tuple("abcd"),
        preset="paper",
        hparams=dict(get_spec("m2ost").tiny),
        validation=inputs.section("held_out"),
        config={"epochs": EPOCHS, "batch_size": 6, "lr": 3e-3, **CPU},
        resume=any((out / "checkpoints" / name).is_file() for name in ("last.ckpt", "last.previous.ckpt")),
    )


def digest_training(_inputs: Inputs, folder: Path) -> str | None:
    from safetensors.torch import load_file

    from st_predict.specs import ModelCard

    path = folder / "out" / "m2ost.safetensors"
    if not path.exists():
        return None
    weights = load_file(path)
    return hashed(
        *(weights[name].numpy() for name in sorted(weights)),
        np.frombuffer(ModelCard.of_file(path).to_json().encode(), np.uint8),
    )


def run_prediction(inputs: Inputs, folder: Path) -> None:
    from st_predict import cli

    out = folder / "prediction.h5ad"
    if not out.exists():
        options = [
            "--model",
            str(inputs.folder / "m2ost.safetensors"),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--precision",
            "float32",
        ]
        if cli.app(["predict", str(inputs.folder / "section.zarr"), *options], standalone_mode=False):
            raise SystemExit(sys.stderr.getvalue()[-300:])  # type: ignore[attr-defined]  # see child


def digest_prediction(_inputs: Inputs, folder: Path) -> str | None:
    import anndata

    path = folder / "prediction.h5ad"
    return hashed(np.asarray(anndata.read_h5ad(path).X)) if path.exists() else None


def run_cells(inputs: Inputs, folder: Path) -> None:
    import st_predict as stp

    out = folder / "cells.zarr"
    if not out.exists():
        stp.tl.superresolve(inputs.section(), inputs.folder / "istar.safetensors", out=out, tissue_only=False, **CPU)


def digest_cells(_inputs: Inputs, folder: Path) -> str | None:
    import anndata

    path = folder / "cells.zarr"
    return hashed(np.asarray(anndata.read_zarr(path).X)) if path.exists() else None


def run_features(inputs: Inputs, folder: Path) -> None:
    import st_predict as stp

    os.environ["ST_PREDICT_CACHE"] = str(folder)
    sdata = inputs.section()
    stp.tl.embed(sdata, "rgb", key_added="features", **CPU)
    (folder / "features.txt").write_text(hashed(sdata.tables["table"].obsm["features"]))


def digest_features(_inputs: Inputs, folder: Path) -> str | None:
    for path in (folder / "embeddings").rglob("*.npy"):
        np.load(path)  # what is in the cache is whole
    path = folder / "features.txt"
    return path.read_text() or None if path.exists() else None


def run_download(inputs: Inputs, folder: Path) -> None:
    from st_predict._files import download

    download(inputs.url, folder / "file.bin", sha256=inputs.sha256)


def digest_download(_inputs: Inputs, folder: Path) -> str | None:
    path = folder / "file.bin"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


WORK = {
    "`tl.train`": Work(run_training, digest_training),
    "`st-predict predict --out`": Work(run_prediction, digest_prediction),
    "`tl.superresolve(out=)`": Work(run_cells, digest_cells),
    "`tl.embed`, its cache": Work(run_features, digest_features),
    "a download": Work(run_download, digest_download),
}


def make_inputs(folder: Path) -> Inputs:
    """Write two small sections and two checkpoints of random weights."""
    import st_predict as stp
    from st_predict import checkpoints
    from st_predict.models import get_spec
    from st_predict.specs import ModelCard

    simulated = stp.datasets.simulate(2, 1, n_genes=4, shape=(400, 400), mpp=0.5, mean_count=200.0)
    for name, sdata in zip(("section", "held_out"), simulated.sections.values(), strict=True):
        sdata.tables["table"].var_names = list("abcd")
        sdata.write(folder / f"{name}.zarr")
    for model in ("m2ost", "istar"):
        spec = get_spec(model)
        hparams = dict(spec.tiny)
        card = ModelCard(model=model, genes=tuple("abcd"), crop=spec.crop_for(hparams), hparams=hparams)
        checkpoints.save(folder / f"{model}.safetensors", checkpoints.build(card), card)
    return Inputs(folder)


class _Slow(BaseHTTPRequestHandler):
    content = np.random.default_rng(0).bytes(SIZE)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked was killed
            for start in range(0, SIZE, BLOCK):
                self.wfile.write(self.content[start : start + BLOCK])
                time.sleep(0.01)

    def log_message(self, *_args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve a file slowly; give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file.bin"
        server.shutdown()


def child(name: str, inputs: Inputs, folder: Path, told: Any, ready: Any, memory_mib: int | None) -> None:
    """Do a piece of work in a process of its own; tell how it ended."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.stderr = io.StringIO()
    if ready is not None:
        ready.wait()
    told.send("begun")
    if memory_mib is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (memory_mib << 20),) * 2)
    try:
        WORK[name].run(inputs, folder)
        told.send("done")
    except BaseException as error:  # also what a command line raises
        told.send(f"{type(error).__name__}: {error}")


@dataclass
class Running:
    """A process at work."""

    process: Any
    told: Any

    @classmethod
    def start(
        cls, name: str, inputs: Inputs, folder: Path, *, ready: Any = None, memory_mib: int | None = None
    ) -> Running:
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=child, args=(name, inputs, folder, there, ready, memory_mib))
        process.start()
        there.close()
        return cls(process, here)

    def wait_begun(self) -> None:
        if not self.told.poll(PATIENCE_S) or self.told.recv() != "begun":
            raise TimeoutError("A process did not begin.")

    def outcome(self) -> str:
        """``"done"``, the error, ``"killed"`` or ``"hang"``."""
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return "hang"
        end = "killed"
        with contextlib.suppress(EOFError):
            while self.told.poll():
                message = self.told.recv()
                end = end if message == "begun" else message
        return end


@dataclass(frozen=True)
class Setting:
    """What all faults of one kind of work share.

    Parameters
    ----------
    name
        Key of :data:`WORK`.
    inputs
        What is read.
    expected
        Digest of the result of an undisturbed run.
    seconds
        Time that run took.
    size
        Bytes it left.
    """

    name: str
    inputs: Inputs
    expected: str = ""
    seconds: float = 0.0
    size: int = 0

    @classmethod
    def measure(cls, name: str, inputs: Inputs) -> Setting:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            running = Running.start(name, inputs, folder)
            running.wait_begun()
            start = time.monotonic()
            end = running.outcome()
            seconds = time.monotonic() - start
            if end != "done":
                raise RuntimeError(f"{name} fails undisturbed: {end}")
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            setting = cls(name, inputs, seconds=seconds, size=size)
            return replace(setting, expected=str(setting.state(folder)))

    def state(self, folder: Path) -> str | None:
        """Digest of the result; ``None`` without one; ``"torn"`` for one that can't be read."""
        try:
            return WORK[self.name].digest(self.inputs, folder)
        except Exception as error:  # whatever a reader says of half a file
            return f"torn: {type(error).__name__}"

    def after(self, folder: Path, counts: Counter[str]) -> None:
        """Count what a fault left, and what running again gives."""
        from st_predict._files import whole

        found = self.state(folder)
        counts["result there" if found == self.expected else "no result" if found is None else "wrong or torn"] += 1
        end = Running.start(self.name, self.inputs, folder).outcome()
        counts[
            "same result when run again" if end == "done" and self.state(folder) == self.expected else "failed again"
        ] += 1
        if end != "done":
            print(f"{self.name}, run again: {end}", file=sys.stderr)
        for path in list(folder.rglob(".st_predict-*")):
            with whole(path.parent / "next.txt") as fresh:  # whatever is written there next
                fresh.touch()
            (path.parent / "next.txt").unlink()
        counts["left behind"] += sum(path.name.startswith(HIDDEN) for path in folder.rglob(".*"))


def kill_at_random(setting: Setting, n: int, rng: np.random.Generator) -> Counter[str]:
    """Kill the work ``n`` times, at moments that are uniform over an undisturbed run; those that come too late are extra."""
    counts: Counter[str] = Counter()
    while counts["while at work"] < n and counts["kills"] < 4 * n:
        with tempfile.TemporaryDirectory() as place:
            running = Running.start(setting.name, setting.inputs, Path(place))
            running.wait_begun()
            time.sleep(rng.uniform(0, setting.seconds))
            running.process.kill()
            end = running.outcome()
            counts["kills"] += 1
            counts["while at work" if end == "killed" else "too late" if end == "done" else "error"] += 1
            setting.after(Path(place), counts)
    return counts


def race(setting: Setting, n: int) -> Counter[str]:
    """Let ``n`` processes do the same work with the same output at the same time."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, CONTEXT.Manager() as manager:
        ready = manager.Barrier(n)
        racers = [Running.start(setting.name, setting.inputs, Path(place), ready=ready) for _ in range(n)]
        for racer in racers:
            end = racer.outcome()
            refused = REFUSED.search(end) is not None
            counts["racers"] += 1
            counts["done" if end == "done" else "refused" if refused else "error"] += 1
            if end != "done":
                print(f"{setting.name}, racer: {end[:200]}", file=sys.stderr)
        setting.after(Path(place), counts)
    return counts


@contextlib.contextmanager
def small_disk(n_bytes: int) -> Iterator[Path | None]:
    """Mount a file system in memory; ``None`` where that is not allowed."""
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={max(n_bytes, 4096)}", "tmpfs", place]
        if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            yield None
            return
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def fill_disk(setting: Setting, shares: tuple[float, ...]) -> Counter[str]:
    """Do the work on disks that are too small, then again after they have grown."""
    counts: Counter[str] = Counter()
    for share in shares:
        with small_disk(int(share * setting.size)) as folder:
            if folder is None:
                counts["skipped"] += 1
                continue
            end = Running.start(setting.name, setting.inputs, folder).outcome()
            counts["disks"] += 1
            counts[_judge(setting, end)] += 1
            subprocess.run(["mount", "-o", f"remount,size={10 * setting.size + (64 << 20)}", str(folder)], check=True)
            setting.after(folder, counts)
    return counts


def limit_memory(setting: Setting, limits: tuple[int, ...]) -> Counter[str]:
    """Do the work with limits of memory, then again without."""
    counts: Counter[str] = Counter()
    for limit in limits:
        with tempfile.TemporaryDirectory() as place:
            end = Running.start(setting.name, setting.inputs, Path(place), memory_mib=limit).outcome()
            counts["limits"] += 1
            counts[_judge(setting, end)] += 1
            setting.after(Path(place), counts)
    return counts


def _judge(setting: Setting, end: str) -> str:
    """Class of an outcome where something was too small."""
    if end in ("done", "killed", "hang"):
        return {"done": "done", "killed": "process ended", "hang": "hang"}[end]
    clear = TOO_LITTLE.search(end) is not None
    print(f"{setting.name}, too little ({'clear' if clear else 'poor'}): {end[:300]!r}", file=sys.stderr)
    return "clear error" if clear else "poor error"


def fingerprint(folder: Path) -> str:
    """Hash of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def run_all(
    out: Path | None, plan: tuple[int, int, tuple[float, ...], tuple[int, ...]], *, seed: int
) -> dict[str, Any]:
    """Try all faults on all work that has no counts in the file ``out``; return the counts."""
    kills, racers, disks, memory = plan
    rng, found = np.random.default_rng(seed), json.loads(out.read_text()) if out is not None and out.exists() else {}
    with tempfile.TemporaryDirectory() as place, serving() as url:
        inputs = make_inputs(Path(place))
        before = fingerprint(inputs.folder)
        inputs = replace(inputs, url=url, sha256=hashlib.sha256(_Slow.content).hexdigest())
        for name in [name for name in WORK if name not in found]:
            setting = Setting.measure(name, inputs)
            found[name] = {
                "kill": kill_at_random(setting, kills, rng),
                "race": race(setting, racers),
                "disk": fill_disk(setting, disks),
                "memory": limit_memory(setting, memory),
                "inputs changed": int(fingerprint(inputs.folder) != before),
            }
            if out is not None:
                out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return {name: found[name] for name in WORK}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown of the counts."""
    columns = {
        "kill": [
            "kills",
            "while at work",
            "result there",
            "no result",
            "wrong or torn",
            "same result when run again",
            "left behind",
        ],
        "race": ["racers", "done", "refused", "error", "wrong or torn", "same result when run again"],
        "disk": [
            "disks",
            "done",
            "clear error",
            "poor error",
            "process ended",
            "wrong or torn",
            "same result when run again",
        ],
        "memory": [
            "limits",
            "done",
            "clear error",
            "poor error",
            "process ended",
            "wrong or torn",
            "same result when run again",
        ],
    }
    titles = {
        "kill": "Killed (`SIGKILL`) at random moments of an undisturbed run:",
        "race": "Processes that do the same work with one output at the same time; run again once afterwards:",
        "disk": "On disks (tmpfs) of 2, 30, 60 and 90 % of the space needed, then again after they have grown:",
        "memory": "With 8, 64, 256 and 1024 MiB of address space more than at the start (`RLIMIT_AS`), then again without a limit:",
    }
    parts = []
    for kind, names in columns.items():
        lines = [["work", *names], ["---"] * (len(names) + 1)]
        lines += [[name, *(str(counts[kind].get(column, 0)) for column in names)] for name, counts in found.items()]
        parts.append(titles[kind] + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def write_page(found: dict[str, dict[str, Any]]) -> None:
    pattern = re.compile(r"(<!-- kills -->\n).*?(<!-- end of kills -->)", re.DOTALL)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(pattern.sub(lambda match: f"{match[1]}{table(found)}\n{match[2]}", page), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--all", action="store_true", help="50 kills and 10 racers of each kind of work, all disks and limits"
    )
    parser.add_argument("--json", type=Path, help="file for the counts; work that has counts there is not done again")
    parser.add_argument("--page", action="store_true", help="put the counts into docs/reliability.md")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    plan = (50, 10, SMALL_DISKS, MEMORY_MIB) if args.all else (1, 2, SMALL_DISKS[1:2], ())
    found = run_all(args.json, plan, seed=args.seed)
    if args.page:
        write_page(found)
    print(table(found))


# Processes are forked from a clean one that has imported what takes long.
CONTEXT = multiprocessing.get_context("forkserver")

if __name__ == "__main__":
    CONTEXT.set_forkserver_preload(
        [
            *("st_predict.tl", "st_predict.cli", "lightning.pytorch", "timm", "spatialdata", "sklearn.linear_model"),
            *("aiobotocore.session", "distributed", "requests", "s3fs", "skimage.transform"),
        ]
    )
    main()
