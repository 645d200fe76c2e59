"""Files: checked downloads, atomic writing, hashes, and free disk space."""

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
"""Environment variable that forbids downloads if set to anything but 0."""

TIMEOUT_S = 30  # without receiving data
PATIENCE_S, LEAST = 60, 1 << 16  # a download with fewer bytes in this time has stalled
MOST_BYTES = 2 << 30  # limit for files of unknown size
BLOCK = 1 << 20
_FOLDER_MODE = 0o775
_FULL = 1 << 16  # a disk with fewer free bytes counts as full


def cache_dir() -> Path:
    """Return the folder for downloads: ``ST_PREDICT_CACHE`` if set, else the user's cache."""
    return Path(os.environ.get("ST_PREDICT_CACHE") or user_cache_dir())


def is_offline() -> bool:
    """Return whether ``ST_PREDICT_OFFLINE`` forbids downloads."""
    return os.environ.get(OFFLINE, "").strip().lower() not in {"", "0", "false", "no"}


def user_cache_dir() -> Path:
    """Return the folder in the user's own cache, regardless of ``ST_PREDICT_CACHE``."""
    import pooch

    return Path(pooch.os_cache("st_predict"))


def make_folder(path: Path) -> None:
    """Make a folder and its parents with the umask's permissions, but never world-writable."""
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
    """Return a file with known content: ``path`` if it exists, else a download from ``url``.

    Parameters
    ----------
    url
        Address to download from.
    path
        Path of the file. An existing file is never changed.
    sha256
        Expected SHA-256 of the content.
    git_blob
        Expected git blob identifier of the content, if the SHA-256 is unknown.
    n_bytes
        Size of the content, and limit of the download; if unknown, the limit is 2 GiB.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ValueError
        If the content differs from the expected one, or a hash is missing.
    ConnectionError
        If the download fails: no network, missing file, broken or stalled connection, or too large a file.
    OSError
        If it cannot be stored; :class:`PermissionError` if permissions are missing.
    """
    if (sha256 is None) == (git_blob is None):
        raise InvalidValueError(f"Exactly one of sha256 and git_blob must be given for {url}.")
    path = Path(path)
    if path.exists():
        _check(path, sha256, git_blob, way_out=f"Move it away to download it again from {url}.")
        return path
    if is_offline():
        known = f"SHA-256 {sha256}" if sha256 else f"git blob {git_blob}"
        raise ConnectionError(f"{path} ({known}) does not exist, and {OFFLINE} forbids to download it from {url}.")
    try:
        make_folder(path.parent)
        with whole(path) as fresh:
            _fetch(url, fresh, n_bytes, name=path)
            _check(fresh, sha256, git_blob, way_out=f"It came from {url} and was not kept; try again.", name=path)
    except OSError as error:
        if error.errno is None:  # network errors
            raise
        way_out = "Set ST_PREDICT_CACHE to a writable folder with free space."
        raise OSError(error.errno, f"Cannot store {path}: {error.strerror}. {way_out}") from error
    return path


def _fetch(url: str, path: Path, n_bytes: int | None, *, name: Path) -> None:
    import requests
    import urllib3

    try:
        with requests.get(url, stream=True, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
            answer.raise_for_status()
            blocks = iter(
                partial(answer.raw.read1, BLOCK, decode_content=True), b""
            )  # chunks as received, to notice stalled downloads
            bounded: Iterator[bytes] = _bounded(blocks, MOST_BYTES if n_bytes is None else n_bytes)
            file.writelines(track(bounded, f"Downloading {url.rpartition('/')[2]}", n_bytes, unit="B", size=len))
    except (requests.RequestException, urllib3.exceptions.HTTPError, _UnfitBodyError) as error:
        raise ConnectionError(
            f"Cannot download {url}: {str(error).rstrip('.')}. Check the network, or store the file as {name}."
        ) from error


class _UnfitBodyError(Exception):
    """Download that is too long or stalled."""


def _bounded(blocks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Yield blocks as received; raise for a download that is too long or stalled."""
    received, before, since = 0, 0, time.monotonic()
    for block in blocks:
        received += len(block)
        if received > most:
            raise _UnfitBodyError(f"it has more than the expected {most:,} bytes")
        if (now := time.monotonic()) - since > PATIENCE_S:
            if received - before < LEAST:
                raise _UnfitBodyError(f"only {received - before:,} bytes received in {now - since:.0f} s")
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
    """Yield a temporary path for a file or folder, which is moved to ``path`` if the block ends without an error.

    ``path`` appears atomically, and a file is on disk before it replaces an existing one. An existing folder is only
    replaced if it is empty. Temporary folders of killed processes beside ``path`` are removed.

    Parameters
    ----------
    path
        Path of the result. Its folder must exist.
    keep_old
        Whether to keep a file that exists at ``path`` by then, with an error, instead of replacing it.

    Yields
    ------
    Path
        Path in a temporary folder beside ``path``; it does not exist yet.

    Raises
    ------
    FileExistsError
        If an existing file is kept, or a folder is not empty.
    OSError
        If the disk is full, whatever error the writing library raises.
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
            fresh.chmod(mode & ~stat.S_IWOTH)  # some libraries ignore the umask and give permissions to the owner only
        _move(fresh, path, keep_old=keep_old)
        _sync_folder(path.parent)


@contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    """Raise a disk-full error where the writing library raises another one."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError | StPredictError) or shutil.disk_usage(path.parent).free >= _FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _move(fresh: Path, path: Path, *, keep_old: bool) -> None:
    """Move a result to its place; another process may have written there meanwhile."""
    try:
        if keep_old and fresh.is_file():
            _rename_new(fresh, path)
        else:
            fresh.replace(path)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
        raise FileExistsError(f"{str(path)!r} exists by now and was kept. Choose another name.") from error


def _rename_new(fresh: Path, path: Path) -> None:
    """Rename a file to a new name, by a link because linking fails if the name exists."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise
    except OSError:  # file systems without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        fresh.replace(path)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, if the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(*parts: bytes | memoryview | str) -> str:
    """Return the SHA-256 of concatenated parts, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def sha256_of_file(path: PathLike[str] | str) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_space(what: str, folder: PathLike[str] | str, needed: int) -> None:
    """Refuse to write without enough space: on a full disk, writing to a memory map kills the process.

    Raises
    ------
    OSError
        If ``folder`` has less free space than ``needed`` bytes.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The {what} temporarily need {needed / 1e9:.1f} GB, but {str(folder)!r} has {free / 1e9:.1f} GB free. "
            "Set TMPDIR to another folder for temporary files",
        )
