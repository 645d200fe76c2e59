"""Key of a piece of work, and whether its result is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import sha256
from st_predict._keys import Keys
from st_predict._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from st_predict.cohort._slides import CohortSlide

__all__ = ["key_of", "read_note", "stat_of"]


def key_of(slide: CohortSlide, settings: Mapping[str, Any]) -> str:
    """Return the hash of everything that a result depends on: settings, version, and name, size and time of the slide.

    The folder of the slide is not part of it, so that results stay valid when a cohort is moved.
    """
    own = {"mpp": slide.mpp, "image_key": slide.image_key, "pitch_um": slide.pitch_um}
    known = {**settings, "slide": own, "files": stat_of(slide.path), "version": __version__}
    return sha256(json.dumps(known, sort_keys=True, default=_plain))[:32]


def _plain(value: Any) -> Any:
    """Write arrays of numpy as lists."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def stat_of(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time in nanoseconds, of a file or of all files of a folder."""
    # MIRAX slides have their pixels in a folder of the same name
    paths = [path, path.with_suffix("")] if path.suffix.lower() == ".mrxs" else [path]
    files = [file for each in paths for file in ([each] if each.is_file() else each.rglob("*")) if file.is_file()]
    stats = ((file.relative_to(path.parent).as_posix(), file.stat()) for file in files)
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def read_note(path: Path) -> dict[str, Any] | None:
    """Read the note in a slide's result; ``None`` if there is no result.

    Raises
    ------
    ValueError
        If the file is not a result of a cohort.
    """
    if not path.exists():
        return None
    try:
        with h5py.File(path) as file:
            note = json.loads(file["uns"][Keys.COHORT].asstr()[()])
        return {**note, "key": str(note["key"])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _foreign(path, "it has no note of a cohort") from error
    except OSError as error:  # of HDF5
        raise _foreign(path, f"it cannot be read ({' '.join(str(error).split())})") from error


def _foreign(path: Path, why: str) -> InvalidValueError:
    return InvalidValueError(
        f"{str(path)!r} is not a result of a cohort: {why}. It is not replaced.",
        "move it away",
        Advice("choose another folder in {}", "out"),
    )
