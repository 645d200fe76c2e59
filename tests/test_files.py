"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import stat
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
    with pytest.raises(OSError, match=r"The crops need 1000000000\.0 GB for a while"):
        check_space("crops", tmp_path, 10**18)
