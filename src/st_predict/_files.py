"""Files: fetched and checked, written whole or not at all, hashed, and room for them on disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from st_predict._errors import InvalidValueError, StPredictError
from st_predict._locks import owned_folder
from st_predict._progress import track

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

__all__ = [
    "OFFLINE",
    "cache_dir",
    "check_space",
    "download",
    "is_offline",
    "make_folder",
    "sha256",
    "sha256_of_file",
    "user_cache_dir",
    "whole",
]

OFFLINE = "ST_PREDICT_OFFLINE"
"""Environment variable: nothing is downloaded if it is set, and not to 0."""

TIMEOUT_S = 30  # without a byte
PATIENCE_S, LEAST = 60, 1 << 16  # a body of which fewer bytes come in this time has stalled
MOST_BYTES = 2 << 30  # of a file whose size is not known
BLOCK = 1 << 20
_FOLDER_MODE = 0o775
_FULL = 1 << 16  # free bytes below which a disk is full


def cache_dir() -> Path:
    """Return the folder of everything that is downloaded: ``ST_PREDICT_CACHE`` if set, else the cache of the user."""
    return Path(os.environ.get("ST_PREDICT_CACHE") or user_cache_dir())


def is_offline() -> bool:
    """Whether ``ST_PREDICT_OFFLINE`` forbids downloads."""
    return os.environ.get(OFFLINE, "").strip().lower() not in {"", "0", "false", "no"}


def user_cache_dir() -> Path:
    """Return the folder in the user's own cache, whatever ``ST_PREDICT_CACHE`` is."""
    import pooch

    return Path(pooch.os_cache("st_predict"))


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, with the permissions that the umask leaves, but writable by all in no case."""
    for folder in reversed([parent for parent in path.parents if not parent.exists()]):
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    path.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def download(
    url: str,
    path: str | PathLike[str],
    *,
    sha256: str | None = None,
    git_blob: str | None = None,
    n_bytes: int | None = None,
) -> Path:
    """Return a file whose content is known, from ``path`` if it is there, else from ``url``.

    Parameters
    ----------
    url
        Where to get it.
    path
        Where it is, or shall be. A file that is there is never changed.
    sha256
        Expected SHA-256 of the content.
    git_blob
        Expected identifier of the content in git, if the SHA-256 is not known.
    n_bytes
        Size of the content; no more is read. Where it is not known, at most 2 GiB are.

    Returns
    -------
    ``path``.

    Raises
    ------
    ValueError
        If the content is not the expected one, or no hash is given.
    ConnectionError
        If the file cannot be got: no network, no such file, a connection that broke or stalled, or a file that is too large.
    OSError
        If it cannot be stored; a :class:`PermissionError` if that is why.
    """
    if (sha256 is None) == (git_blob is None):
        raise InvalidValueError(f"Exactly one of sha256 and git_blob must say what {url} holds.")
    path = Path(path)
    if path.exists():
        _check(path, sha256, git_blob, way_out=f"Move it away to get it again from {url}.")
        return path
    if is_offline():
        known = f"SHA-256 {sha256}" if sha256 else f"git blob {git_blob}"
        raise ConnectionError(f"{path} ({known}) is not there, and {OFFLINE} forbids to fetch it from {url}.")
    try:
        make_folder(path.parent)
        with whole(path) as fresh:
            _fetch(url, fresh, n_bytes)
            _check(fresh, sha256, git_blob, way_out=f"It came from {url} and was not kept; try again.", name=path)
    except OSError as error:
        if error.errno is None:  # of the network
            raise
        way_out = "Set ST_PREDICT_CACHE to a folder with space that you may write to."
        raise OSError(error.errno, f"Cannot store {path}: {error.strerror}. {way_out}") from error
    return path


def _fetch(url: str, path: Path, n_bytes: int | None) -> None:
    import requests
    import urllib3

    try:
        with requests.get(url, stream=True, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
            answer.raise_for_status()
            blocks = iter(
                partial(answer.raw.read1, BLOCK, decode_content=True), b""
            )  # as they come, not when they are full
            bounded: Iterator[bytes] = _bounded(blocks, MOST_BYTES if n_bytes is None else n_bytes)
            file.writelines(track(bounded, f"Downloading {url.rpartition('/')[2]}", n_bytes, unit="B", size=len))
    except (requests.RequestException, urllib3.exceptions.HTTPError, _UnfitBodyError) as error:
        raise ConnectionError(
            f"Cannot get {url}: {error}. Check the network, or put the file in place by hand."
        ) from error


class _UnfitBodyError(Exception):
    """A body that does not end."""


def _bounded(blocks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Yield blocks as they come; give up on a body that is too long, or of which hardly anything comes."""
    received, before, since = 0, 0, time.monotonic()
    for block in blocks:
        received += len(block)
        if received > most:
            raise _UnfitBodyError(f"it has more than the expected {most:,} bytes")
        if (now := time.monotonic()) - since > PATIENCE_S:
            if received - before < LEAST:
                raise _UnfitBodyError(f"only {received - before:,} bytes came in {now - since:.0f} s")
            before, since = received, now
        yield block


def _check(path: Path, sha256: str | None, git_blob: str | None, *, way_out: str, name: Path | None = None) -> None:
    digest = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    expected, got = sha256 or git_blob, digest.hexdigest()
    if got != expected:
        kind = "SHA-256" if sha256 else "git blob"
        raise InvalidValueError(
            f"{name or path} is not the expected file: {kind} {got} instead of {expected}. {way_out}"
        )


@contextmanager
def whole(path: PathLike[str] | str, *, keep_old: bool = False) -> Iterator[Path]:
    """Give a place to write a file or a folder to, which is moved to ``path`` when the block ends without an error.

    So ``path`` appears whole or not at all, and a file is on disk before it replaces an existing one. An existing folder is
    replaced only if it is empty. Temporary folders that killed processes left beside ``path`` are removed.

    Parameters
    ----------
    path
        Where the result belongs. Its folder must exist.
    keep_old
        Whether a file that is at ``path`` by then is kept, which is an error; otherwise it is replaced.

    Yields
    ------
    A path in a temporary folder beside ``path``. Nothing is there yet.

    Raises
    ------
    FileExistsError
        If a file is kept, or a folder is there that is not empty.
    OSError
        If the disk is full, whatever the library that writes says then.
    """
    path = Path(path)
    with owned_folder(path.parent, ".st_predict-") as folder:
        fresh = folder / f"new{path.suffix}"
        fresh.touch()
        mode = fresh.stat().st_mode
        fresh.unlink()
        with _naming_full_disk(path):
            yield fresh
        if fresh.is_file():
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            fresh.chmod(mode & ~stat.S_IWOTH)  # some libraries give rights to the owner only, whatever the umask
        _move(fresh, path, keep_old=keep_old)
        _sync_folder(path.parent)


@contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    """Say that a disk is full where a library that writes to it says something else."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError | StPredictError) or shutil.disk_usage(path.parent).free >= _FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _move(fresh: Path, path: Path, *, keep_old: bool) -> None:
    """Move a result to its place, where another process may have put one meanwhile."""
    try:
        if keep_old and fresh.is_file():
            _rename_new(fresh, path)
        else:
            fresh.replace(path)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
        raise FileExistsError(f"{str(path)!r} exists now, and was kept. Choose another name.") from error


def _rename_new(fresh: Path, path: Path) -> None:
    """Give a file a name that is new; only links are refused by the system if there is a file."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        fresh.replace(path)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(*parts: bytes | memoryview | str) -> str:
    """SHA-256 of parts that follow each other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def sha256_of_file(path: PathLike[str] | str) -> str:
    """SHA-256 of the content of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_space(what: str, folder: PathLike[str] | str, needed: int) -> None:
    """Refuse what would not fit: a full disk kills whoever writes to a memory map.

    Raises
    ------
    OSError
        If ``folder`` has less free space than the bytes that are ``needed``.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The {what} need {needed / 1e9:.1f} GB for a while, {str(folder)!r} has {free / 1e9:.1f} GB free. For what is "
            "temporary, TMPDIR names another folder",
        )
