"""Locks and temporary folders with an owner, to distinguish files in use from remains of killed processes."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filelock import SoftFileLock

__all__ = ["locked", "owned_folder", "remove_abandoned"]

logger = logging.getLogger(__name__)

OWNER = ".owner"
"""File in a temporary folder with process, host and start time of its owner."""

_WRITTEN_S = 0.1  # time for a new lock to get the name of its owner
_ATTEMPTS = 3  # the first one removes the lock of a dead process


@contextmanager
def locked(path: Path, *, folder: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock: a file with process and host, and the start time as its modification time.

    Locks of ended processes of this host are replaced; processes are compared by number and start time. Locks of other
    hosts are never replaced. The file is created exclusively, which local file systems and NFS of version 3 and later
    do atomically.

    Parameters
    ----------
    path
        File of the lock, removed at the end.
    folder
        Locked folder, named in errors.
    what
        Noun for the work that holds the lock, for errors.

    Raises
    ------
    FileExistsError
        If another process, or another thread, holds the lock.
    """
    lock = _take(path)
    if lock is None:
        raise FileExistsError(
            f"{str(folder)!r} is in use by another {what}: {_holder(path)}. Wait for it to end, or choose another folder. "
            f"If that process ran on another host and has ended, delete {str(path)!r}."
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def owned_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder and remove it at the end; folders of dead processes with the same prefix are removed first.

    Parameters
    ----------
    parent
        Existing parent folder.
    prefix
        Beginning of its name; the rest is random.

    Yields
    ------
    Path
        Folder, with only the file :data:`OWNER` in it.
    """
    remove_abandoned(parent, prefix)
    folder, lock = _make_owned(parent, prefix)
    try:
        yield folder
    finally:
        with suppress(FileNotFoundError):  # another process removed it
            _remove(folder, lock)


def _make_owned(parent: Path, prefix: str) -> tuple[Path, SoftFileLock]:
    """Make a folder with an owner; while it is empty, another process may consider it abandoned and remove it."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            lock = _take(folder / OWNER)
        except (FileNotFoundError, FileExistsError):  # the lock's folder was removed or made again
            if parent.is_dir():
                continue
            raise
        except BaseException:
            with suppress(OSError):
                folder.rmdir()
            raise
        assert lock is not None  # the random name is unknown to other processes
        return folder, lock


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove temporary folders of the user that are empty or whose process has ended on this host; others stay."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # folders that vanish or cannot be removed must not stop the work
            if not _is_own(folder):
                continue
            if not (folder / OWNER).is_file():
                folder.rmdir()  # only empty ones, whose process was killed before it wrote the owner
                logger.info("Removed %s, which was empty.", folder)
            elif (lock := _take(folder / OWNER)) is not None:
                _remove(folder, lock)
                logger.info("Removed %s, left by a killed process.", folder)


def _is_own(folder: Path) -> bool:
    """Return whether this is the user's own folder and not a link, so that other users cannot have replaced it."""
    mine = not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid()
    return mine and folder.is_dir() and not folder.is_symlink()


def _remove(folder: Path, lock: SoftFileLock | None) -> None:
    """Remove a folder, the owner file last, so that the rest still counts as abandoned after an interruption."""
    for path in folder.iterdir():
        if path.name == OWNER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if lock is not None:
        lock.release()
    with suppress(OSError):  # another process considers it abandoned and removes it right now
        folder.rmdir()


def _take(path: Path) -> SoftFileLock | None:
    """Take a free lock, or the lock of a dead process of this host; return ``None`` if it is held."""
    from filelock import SoftFileLock, Timeout

    lock = SoftFileLock(path, thread_local=False)
    for _ in range(_ATTEMPTS):
        with suppress(Timeout):
            lock.acquire(blocking=False)
            return lock
    return None


def _holder(path: Path) -> str:
    """Return the holder of a lock, for messages."""
    with suppress(OSError):
        if not path.stat().st_size:  # created, but not yet written
            time.sleep(_WRITTEN_S)
    try:
        since = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(sep=" ", timespec="seconds")
        process, host, *_ = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "an unknown process"
    return f"process {process} on host {host!r}, since {since}"
