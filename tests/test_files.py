"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from st_predict._files import check_space, sha256, sha256_of_file, whole

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def write_half(path: Path, error: type[BaseException]) -> None:
    with whole(path) as fresh:
        fresh.write_text("half")
        raise error


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with whole(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
        assert fresh.suffix == ".txt"  # writers choose the format by it
    assert path.read_text() == "new"
    assert names(tmp_path) == ["result.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_changes_when_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result.txt"]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with whole(tmp_path / "store.zarr") as fresh:
        (fresh / "inner").mkdir(parents=True)
        (fresh / "inner" / "part").write_text("x")
        assert not (tmp_path / "store.zarr").exists()
    assert (tmp_path / "store.zarr" / "inner" / "part").read_text() == "x"
    with pytest.raises(OSError), whole(tmp_path / "store.zarr") as fresh:
        fresh.mkdir()
    assert (tmp_path / "store.zarr" / "inner" / "part").exists()


def test_files_get_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole(tmp_path / "private") as fresh:
            fresh.touch(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o640


def test_a_long_name(tmp_path: Path) -> None:
    with whole(tmp_path / ("n" * 250)) as fresh:
        fresh.touch()
    assert (tmp_path / ("n" * 250)).exists()


def test_hashes(tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3)
    (tmp_path / "f").write_bytes(b"abc" + array.tobytes())
    expected = hashlib.sha256(b"abc" + array.tobytes()).hexdigest()
    assert sha256("abc", array.data) == sha256(b"a", "bc", array.data) == sha256_of_file(tmp_path / "f") == expected


def test_space(tmp_path: Path) -> None:
    check_space("crops", tmp_path, 1)
    with pytest.raises(OSError, match=r"The crops temporarily need 1000000000\.0 GB"):
        check_space("crops", tmp_path, 10**18)


def lose_race(path: Path) -> None:
    """Write a file or a folder that another process has written meanwhile."""
    with whole(path, keep_old=True) as fresh:
        for place, text in ((fresh, "mine"), (path, "theirs")):
            if path.suffix == ".zarr":
                place.mkdir()
            (place / "part" if path.suffix == ".zarr" else place).write_text(text)


@pytest.mark.parametrize(("name", "part"), [("result.txt", "."), ("store.zarr", "part")])
def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path, name: str, part: str) -> None:
    path = tmp_path / name
    with pytest.raises(FileExistsError, match=rf"{name}' exists by now and was kept"):
        lose_race(path)
    assert (path / part).read_text() == "theirs"
    assert names(tmp_path) == [name]


def test_new_files_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "result.txt"
    with whole(path, keep_old=True) as fresh:
        fresh.write_text("mine")
    assert path.read_text() == "mine"
    with pytest.raises(FileExistsError, match="was kept"), whole(path, keep_old=True) as fresh:
        fresh.write_text("again")
    assert path.read_text() == "mine"


def test_a_full_disk_is_named_whatever_a_library_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.txt"
    with pytest.raises(RuntimeError, match="unexpected pos"), whole(path):
        raise RuntimeError("unexpected pos 1092928")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=512))
    with pytest.raises(OSError, match=r"No space left on device.*result\.txt"), whole(path):
        raise RuntimeError("unexpected pos 1092928")
    assert names(tmp_path) == []
