"""Locks and temporary folders, against processes that are killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from st_predict import _locks
from st_predict._locks import OWNER, locked, owned_folder, remove_abandoned

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from st_predict._locks import locked, owned_folder
with {what}:
    print("ready", flush=True)
    time.sleep({seconds})
"""


def start(what: str, seconds: float = 60) -> subprocess.Popen[str]:
    """Start a process that holds a lock or a folder; it is ready when this returns."""
    code = HOLD.format(what=what, seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def lock(path: Path) -> AbstractContextManager[None]:
    return locked(path, folder=path.parent, what="training")


def holding(path: Path) -> str:
    return f"locked(Path({str(path)!r}), folder=Path({str(path.parent)!r}), what='training')"


def test_a_lock_names_its_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = start(holding(path))
    try:
        named = rf"process {process.pid} on host '{re.escape(socket.gethostname())}.*', since 20\d\d-.*"
        with pytest.raises(FileExistsError, match=rf"{re.escape(str(tmp_path))}.* in use by another training: {named}"):
            lock(path).__enter__()
        assert path.exists()
    finally:
        kill(process)
    assert path.exists()  # left by the kill
    with lock(path):
        assert path.read_text().splitlines()[0] == str(os.getpid())
    assert not path.exists()


def test_a_process_with_a_reused_number_is_not_the_owner(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = start(holding(path))
    old, host, started = path.read_text().splitlines()
    kill(process)
    path.write_text(f"{os.getpid()}\n{host}\n{started}\n")  # this process lives, and began at another time
    assert old != str(os.getpid())
    with lock(path):
        assert path.read_text().splitlines()[2] != started


@pytest.mark.parametrize("content", ["1\nanother-host\n", "4194304\nanother-host\n7\n", "", "nonsense"])
def test_locks_of_other_hosts_stay(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(content)
    with pytest.raises(FileExistsError, match=r"has ended, delete '.*\.lock'"):
        lock(path).__enter__()
    assert path.read_text() == content


def test_a_lock_is_for_one_thread(tmp_path: Path) -> None:
    path, refused = tmp_path / ".lock", []

    def second() -> None:
        try:
            lock(path).__enter__()
        except FileExistsError as error:
            refused.append(str(error))

    with lock(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in refused[0]
    with pytest.raises(ZeroDivisionError), lock(path):
        _ = 1 / 0
    assert not path.exists()


@pytest.mark.slow
def test_one_of_ten_racers_takes_the_lock_of_a_dead_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    kill(start(holding(path)))
    code = (
        f"import time\nfrom pathlib import Path\nfrom st_predict._locks import locked\nimport filelock\n"
        f"while not Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.001)\n"
        f"with {holding(path)}:\n    print('won', flush=True); time.sleep(3)"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    (tmp_path / "go").touch()
    ends = [racer.communicate() for racer in racers]
    assert [out for out, _ in ends].count("won\n") == 1
    assert sum("in use by another training" in error for _, error in ends) == 9


def test_folders_of_dead_processes_are_removed_and_others_stay(tmp_path: Path) -> None:
    holder = f"owned_folder(Path({str(tmp_path)!r}), '.crops-')"
    dead = start(holder)
    (abandoned,) = tmp_path.iterdir()
    (abandoned / "deep").mkdir()
    (abandoned / "deep" / "level0.npy").write_bytes(b"x" * 1000)
    living = start(holder)
    (used,) = set(tmp_path.iterdir()) - {abandoned}
    foreign, fresh, target = tmp_path / ".crops-far", tmp_path / ".crops-new", tmp_path / "target"
    for folder in (foreign, fresh, target):
        folder.mkdir()
    (fresh / "theirs").touch()  # not ours: it names no owner
    (foreign / OWNER).write_text("1\nanother-host\n")
    (target / OWNER).write_text((abandoned / OWNER).read_text())
    (tmp_path / ".crops-link").symlink_to(target)
    before = set(tmp_path.iterdir())
    try:
        remove_abandoned(tmp_path, ".crops-")
        assert set(tmp_path.iterdir()) == before  # both live
        kill(dead)
        with owned_folder(tmp_path, ".crops-") as own:
            assert set(tmp_path.iterdir()) == (before | {own}) - {abandoned}
            (own / "x").mkdir()
        assert set(tmp_path.iterdir()) == before - {abandoned}
        assert (target / OWNER).exists()
    finally:
        kill(living)
    remove_abandoned(tmp_path, ".crops-")
    assert not used.exists()


@pytest.mark.parametrize("late", [False, True])
def test_empty_folders_are_removed_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    (tmp_path / ".crops-killed").mkdir()  # by a process that could not name itself any more
    take, taken = _locks._take, []

    def beside_another_process(path: Path) -> object:
        taken.append(path)
        if len(taken) == 1:
            remove_abandoned(tmp_path, ".crops-")
            if late:  # after the lock has looked for its folder
                raise FileNotFoundError(2, "No such file or directory", str(path))
        return take(path)

    monkeypatch.setattr(_locks, "_take", beside_another_process)
    with owned_folder(tmp_path, ".crops-") as own:
        assert list(tmp_path.iterdir()) == [own]
        (own / "part").touch()
    assert taken[-1] == own / OWNER
    assert len(taken) == 1 + late
    assert not list(tmp_path.iterdir())


def test_racing_folders(tmp_path: Path) -> None:
    """Threads that make and remove folders beside one another: none fails, and nothing is left."""

    def work(_: int) -> None:
        for _ in range(50):
            with owned_folder(tmp_path, ".crops-") as own:
                (own / "part").touch()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert not list(tmp_path.iterdir())
