"""Space on disk."""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["check_space"]


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
