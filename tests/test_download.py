"""Downloads, from a server on loopback."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from st_predict import _files
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


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_good_file(server, tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    assert download(f"{server.url}/good", path, sha256=SHA256) == path
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == [path]


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
    with pytest.raises(ConnectionError, match=rf"Cannot download {server.url}/{path}.* store the file as .*file\.bin"):
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
            ConnectionError, match=f"file.bin \\({said}\\) does not exist, and ST_PREDICT_OFFLINE forbids"
        ):
            download(f"{server.url}/good", tmp_path / "file.bin", **hashes)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert server.asked == []
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert download(f"{server.url}/good", tmp_path / "file.bin", sha256=SHA256) == tmp_path / "file.bin"


class _Odd(BaseHTTPRequestHandler):
    """Bodies that do not end, hardly come, or do not come at all."""

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/round" else 200)
        if self.path == "/round":
            self.send_header("Location", "/round")
        if self.path == "/announced":
            self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        piece = {"/endless": b"x" * 65_536, "/announced": b"x" * 65_536, "/trickle": b"x"}.get(self.path)
        with suppress(OSError):
            while piece and not self.server.ended.wait(0.05 if len(piece) == 1 else 0):
                self.wfile.write(piece)
                self.server.sent += len(piece)
        if self.path == "/silent":
            self.server.ended.wait()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def odd():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as httpd:
        httpd.ended, httpd.sent, httpd.url = threading.Event(), 0, f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.ended.set()
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["endless", "announced"])
def test_a_body_that_does_not_end(odd, tmp_path, monkeypatch, path):
    for n_bytes in (1000, None):
        monkeypatch.setattr(_files, "MOST_BYTES", 1 << 20)
        with pytest.raises(
            ConnectionError, match=rf"Cannot download {odd.url}/{path}: it has more than the expected [\d,]+ b"
        ):
            download(f"{odd.url}/{path}", tmp_path / "file.bin", sha256=SHA256, n_bytes=n_bytes)
    assert list(tmp_path.iterdir()) == []
    assert odd.sent < 64 << 20  # what the sockets hold


def test_a_body_that_hardly_comes(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "PATIENCE_S", 0.3)
    with pytest.raises(ConnectionError, match=r"Cannot download .*/trickle: only \d+ bytes received in"):
        download(f"{odd.url}/trickle", tmp_path / "file.bin", sha256=SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_does_not_come(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "TIMEOUT_S", 0.3)
    with pytest.raises(ConnectionError, match=r"Cannot download .*/silent: .*timed out"):
        download(f"{odd.url}/silent", tmp_path / "file.bin", sha256=SHA256)
    assert list(tmp_path.iterdir()) == []


def test_redirects_end(odd, tmp_path):
    with pytest.raises(ConnectionError, match=r"Cannot download .*/round: .*redirects"):
        download(f"{odd.url}/round", tmp_path / "file.bin", sha256=SHA256)


def test_a_file_of_the_expected_size(server, tmp_path):
    assert download(f"{server.url}/good", tmp_path / "a", sha256=SHA256, n_bytes=len(CONTENT)).read_bytes() == CONTENT
    with pytest.raises(ConnectionError, match="more than the expected"):
        download(f"{server.url}/good", tmp_path / "b", sha256=SHA256, n_bytes=len(CONTENT) - 1)


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0, 0o775, 0o664)])
def test_the_cache_has_the_permissions_of_the_user(server, tmp_path, umask, folder, file):
    before = os.umask(umask)
    try:
        path = download(f"{server.url}/good", tmp_path / "new" / "er" / "file.bin", sha256=SHA256)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent, path.parent.parent)] == [file, folder, folder]


def test_no_name_of_a_file_in_the_making_can_be_guessed(server, tmp_path, monkeypatch):
    seen = []
    check = _files._check

    def look(path, *args, **options):
        seen.append((path, stat.S_IMODE(path.parent.stat().st_mode)))
        check(path, *args, **options)

    monkeypatch.setattr(_files, "_check", look)
    for name in "ab":
        download(f"{server.url}/good", tmp_path / name, sha256=SHA256)
    (first, mode), (second, _) = seen
    assert first.parent != second.parent
    assert first.parent.parent == tmp_path
    assert mode == 0o700
