"""Locks and temporary folders that name their owner: the remains of a killed process are told from files in use."""

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
"""File in a temporary folder: process, host and start time of the process that made it."""

_WRITTEN_S = 0.1  # in which a lock that was made gets the name of its owner
_ATTEMPTS = 3  # the first one removes the lock of a dead process


@contextmanager
def locked(path: Path, *, folder: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock: a file that names this process and host, and the time in its modification time.

    The lock of a process of this host that has ended is replaced; processes are compared by number and start time. The lock
    of another host is never replaced. The file is created exclusively, which local file systems and NFS of version 3 and
    later do atomically.

    Parameters
    ----------
    path
        File of the lock. It is removed at the end.
    folder
        Folder that the lock is for, to be named in errors.
    what
        Noun for the work that needs the lock, to be named in errors.

    Raises
    ------
    FileExistsError
        If another process, or another thread, holds the lock.
    """
    lock = _take(path)
    if lock is None:
        raise FileExistsError(
            f"{str(folder)!r} is in use by another {what}: {_holder(path)}. Wait for it to end, or name another folder. "
            f"If that process ran on another host and has ended there, delete {str(path)!r}."
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def owned_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder, and remove it at the end; folders of dead processes with the same prefix are removed first.

    Parameters
    ----------
    parent
        Existing folder for it.
    prefix
        Beginning of its name; the rest is random.

    Yields
    ------
    The folder, which holds only the file :data:`OWNER`.
    """
    remove_abandoned(parent, prefix)
    folder, lock = _make_owned(parent, prefix)
    try:
        yield folder
    finally:
        with suppress(FileNotFoundError):  # whoever removed it has done the work
            _remove(folder, lock)


def _make_owned(parent: Path, prefix: str) -> tuple[Path, SoftFileLock]:
    """Make a folder with an owner; as long as it is empty, another process may take it for abandoned and remove it."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            lock = _take(folder / OWNER)
        except (FileNotFoundError, FileExistsError):  # from making the folder of the lock again
            if parent.is_dir():
                continue
            raise
        except BaseException:
            with suppress(OSError):
                folder.rmdir()
            raise
        assert lock is not None  # nobody else knows the name
        return folder, lock


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove temporary folders of the user that are empty or whose process has ended on this host; others stay."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # folders that vanish or cannot be removed must not stop the work
            if not _is_own(folder):
                continue
            if not (folder / OWNER).is_file():
                folder.rmdir()  # only if it is empty: the process was killed before it could name itself
                logger.info("Removed %s, which was empty.", folder)
            elif (lock := _take(folder / OWNER)) is not None:
                _remove(folder, lock)
                logger.info("Removed %s, which a process that was killed had left.", folder)


def _is_own(folder: Path) -> bool:
    """Whether this is a folder, not a link to one, and of the user: nobody else may have exchanged it."""
    mine = not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid()
    return mine and folder.is_dir() and not folder.is_symlink()


def _remove(folder: Path, lock: SoftFileLock | None) -> None:
    """Remove a folder, its owner last: if this is interrupted, the rest is still known to be abandoned."""
    for path in folder.iterdir():
        if path.name == OWNER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if lock is not None:
        lock.release()
    with suppress(OSError):  # another process has taken it for abandoned in this moment, and removes it
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
    """Say who holds a lock."""
    with suppress(OSError):
        if not path.stat().st_size:  # made, and not yet written
            time.sleep(_WRITTEN_S)
    try:
        since = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(sep=" ", timespec="seconds")
        process, host, *_ = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "a process that left no name"
    return f"process {process} on host {host!r}, since {since}"
