"""Files to resume training from: the last two of each kind, skipping damaged ones."""

from __future__ import annotations

import logging
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from st_predict._errors import InvalidValueError
from st_predict._files import whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BEST", "LAST", "find_state", "intact", "is_begun", "replaced", "versions"]

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
BEST = "best.ckpt"

_ANEW = "start anew in another folder"


def versions(path: Path) -> list[Path]:
    """Return the paths of a file and of its previous version."""
    return [path, path.with_name(f"{path.stem}.previous{path.suffix}")]


def is_begun(folder: Path) -> bool:
    """Whether a folder has the state of an epoch, damaged or not."""
    return any(path.is_file() for path in versions(folder / "checkpoints" / LAST))


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which then replaces ``path``; the previous version is kept."""
    with whole(path) as fresh:
        yield fresh
        if path.exists():
            path.replace(versions(path)[1])


def find_state(folder: Path) -> Path:
    """Return the newest intact state of a training; log a warning if the last epoch is missing.

    Raises
    ------
    FileNotFoundError
        If the folder has no state.
    ValueError
        If all states are damaged.
    """
    last, previous = versions(folder / "checkpoints" / LAST)
    if intact(last):
        return last
    found = "is damaged" if last.is_file() else "does not exist"
    if intact(previous):
        logger.warning("%s %s; training resumes from the epoch before, %s.", last, found, previous.name)
        return previous
    if not is_begun(folder):
        raise FileNotFoundError(f"Nothing to resume: {str(last)!r} does not exist.")
    other = "is damaged as well" if previous.is_file() else "does not exist"
    raise InvalidValueError(f"{str(last)!r} {found}, and {previous.name!r} {other}.", _ANEW)


def intact(path: Path) -> bool:
    """Whether a PyTorch file is complete, by the checksums of its parts, without unpickling."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
