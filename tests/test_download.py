"""Downloads, from a server on loopback."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from st_predict._files import cache_dir, download

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# printf hello | git hash-object --stdin
HELLO_BLOB = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"


@pytest.fixture
def server(loopback):
    loopback.files = {"/good": CONTENT, "/cut": CONTENT, "/hello": b"hello"}
    loopback.cut = {"/cut"}
    return loopback


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_good_file(server, tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    assert download(f"{server.url}/good", path, sha256=SHA256) == path
    assert path.read_bytes() == CONTENT
    assert _files(tmp_path) == [path]


def test_a_good_file_by_its_git_blob(server, tmp_path):
    assert download(f"{server.url}/hello", tmp_path / "h", git_blob=HELLO_BLOB).read_bytes() == b"hello"


def test_a_file_that_is_there_is_used(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    assert download(f"{server.url}/good", path, sha256=SHA256) == path
    assert server.asked == []


@pytest.mark.parametrize("hashes", [{"sha256": SHA256}, {"git_blob": HELLO_BLOB}])
def test_a_wrong_file_that_is_there_is_named_and_left_alone(server, tmp_path, hashes):
    path = tmp_path / "file.bin"
    path.write_bytes(b"mine")
    with pytest.raises(
        ValueError, match=rf"file\.bin is not the expected file: .* instead of {next(iter(hashes.values()))}.*Move it"
    ):
        download(f"{server.url}/good", path, **hashes)
    assert path.read_bytes() == b"mine"
    assert server.asked == []


@pytest.mark.parametrize("hashes", [{"sha256": "0" * 64}, {"git_blob": "0" * 40}])
def test_a_wrong_file_is_not_kept(server, tmp_path, hashes):
    with pytest.raises(ValueError, match=r"is not the expected file: .*was not kept"):
        download(f"{server.url}/good", tmp_path / "file.bin", **hashes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["cut", "missing"])
def test_a_broken_connection_and_a_missing_file(server, tmp_path, path):
    with pytest.raises(ConnectionError, match=f"Cannot get {server.url}/{path}"):
        download(f"{server.url}/{path}", tmp_path / "file.bin", sha256=SHA256)
    assert list(tmp_path.iterdir()) == []


def test_no_server(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match="Check the network"):
        download(f"{server.url}/good", tmp_path / "file.bin", sha256=SHA256)


def test_no_permission(server, tmp_path, monkeypatch):
    def mkdir(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(PermissionError, match=r"Cannot store .*file\.bin.*ST_PREDICT_CACHE"):
        download(f"{server.url}/good", tmp_path / "file.bin", sha256=SHA256)


def test_a_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match=r"Cannot store .*ST_PREDICT_CACHE"):
        download(f"{server.url}/good", tmp_path / "taken" / "file.bin", sha256=SHA256)
    assert server.asked == []


@pytest.mark.parametrize("hashes", [{}, {"sha256": SHA256, "git_blob": HELLO_BLOB}])
def test_exactly_one_hash_is_needed(tmp_path, hashes):
    with pytest.raises(ValueError, match="Exactly one of sha256 and git_blob"):
        download("http://127.0.0.1/x", tmp_path / "x", **hashes)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("ST_PREDICT_CACHE")
    assert cache_dir().name == "st_predict"


def test_offline(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ST_PREDICT_OFFLINE", "1")
    for hashes, said in (
        ({"sha256": SHA256}, f"SHA-256 {SHA256}"),
        ({"git_blob": HELLO_BLOB}, f"git blob {HELLO_BLOB}"),
    ):
        with pytest.raises(
            ConnectionError, match=f"file.bin \\({said}\\) is not there, and ST_PREDICT_OFFLINE forbids"
        ):
            download(f"{server.url}/good", tmp_path / "file.bin", **hashes)
    assert _files(tmp_path) == []
    assert server.asked == []
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert download(f"{server.url}/good", tmp_path / "file.bin", sha256=SHA256) == tmp_path / "file.bin"
