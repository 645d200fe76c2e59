"""Lists of slides: from a CSV file, paths, patterns or a table."""

from __future__ import annotations

import glob
import logging
import re
from collections import Counter
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, StPredictError
from st_predict._validated import Count, File, Name, Positive, check, validated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["CohortSlide", "Slides", "list_slides", "of_shard"]

Slides: TypeAlias = "PathLike[str] | str | Sequence[PathLike[str] | str] | pd.DataFrame"

logger = logging.getLogger(__name__)

COLUMNS = ("path", "id", "mpp", "image_key", "pitch_um")
"""Columns of a list; only ``path`` is required."""

RESERVED = {"merged"}
"""Names of other files in the output folder."""

_GLOB = re.compile(r"[*?\[]")


@validated
class CohortSlide:
    """A slide of a list.

    Parameters
    ----------
    path
        File of the slide or image, or SpatialData store.
    id
        Name of the slide, and of its result.
    mpp
        Micrometres per pixel at level 0; ``None`` if the file states it.
    image_key
        Name of the image; ``None`` for the default.
    pitch_um
        Distance between grid spots in micrometres, for slides without spots; ``None`` for the default.
    """

    path: File
    id: Name
    mpp: Positive | None = None
    image_key: Name | None = None
    pitch_um: Positive | None = None


def list_slides(slides: Slides, *, pitch_um: float) -> list[CohortSlide]:
    """Return the slides of a list; files are not opened.

    Parameters
    ----------
    slides
        List of slides.
    pitch_um
        Distance between grid spots, for slides without their own.

    Raises
    ------
    FileNotFoundError
        If a CSV file does not exist.
    ValueError
        If the list is empty, a pattern matches nothing, a row is invalid, or two slides have the same identifier.
    TypeError
        If the list is of another type.
    """
    pitch_um = check("pitch_um", pitch_um, Positive)
    found = [slide if slide.pitch_um else replace(slide, pitch_um=pitch_um) for slide in _rows(slides)]
    if not found:
        raise InvalidValueError("The list has no slides.", Advice("name at least one in {}", "slides"))
    if reserved := sorted(RESERVED & {slide.id.casefold() for slide in found}):
        raise InvalidValueError(f"{reserved} are names of other results.", "give these slides other identifiers")
    _refuse_duplicates(found)
    _warn_of_copies(found)
    return found


def _rows(slides: Slides) -> Iterator[CohortSlide]:
    if isinstance(slides, pd.DataFrame):
        yield from _of_table(slides, Path())
        return
    many = [slides] if isinstance(slides, str | PathLike) else slides
    if not _is_iterable(many):
        raise InvalidTypeError(f"slides must be paths, the path of a CSV file or a table, got {type(slides).__name__}.")
    for entry in many:
        path = check("slides", entry, File)
        if path.suffix.lower() == ".csv":
            yield from _of_table(_read_csv(path), path.parent)
        else:
            yield from (CohortSlide(path=each, id=_default_id(each)) for each in _expand(path))


def _is_iterable(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, bytes)


def _expand(path: Path) -> list[Path]:
    """Return a path, or the matches of a pattern in order."""
    text = fspath(path)
    if path.exists() or not _GLOB.search(text):
        return [path]
    if matches := sorted(glob.glob(text, recursive=True)):  # noqa: PTH207  # absolute patterns
        return [Path(match) for match in matches]
    raise InvalidValueError(f"No file matches {text!r}.", Advice("correct it in {}", "slides"))


def _default_id(path: Path) -> str:
    """Return the file's name without its suffix, with ``_`` for characters that results may not have in their names."""
    return re.sub(r"[^\w.-]+", "_", path.stem).lstrip(".") or "slide"


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InvalidValueError(
            f"{str(path)!r} is not a CSV file with a header ({error}).", f"give it columns of {list(COLUMNS)}"
        ) from error


def _of_table(table: pd.DataFrame, folder: Path) -> Iterator[CohortSlide]:
    """Yield the slides of a table; relative paths start at ``folder``."""
    if "path" not in table:
        raise InvalidValueError(
            f"The list has no column 'path'; it has {list(table.columns)}.", f"give it columns of {list(COLUMNS)}"
        )
    if others := [str(name) for name in table.columns if name not in COLUMNS]:
        logger.warning("The columns %s of the list are not used; those that are used are %s.", others, list(COLUMNS))
    columns = [name for name in COLUMNS if name in table]
    for number, row in enumerate(table[columns].to_dict("records"), start=1):
        yield _of_row({str(name): value for name, value in row.items() if not _is_blank(value)}, number, folder)


def _is_blank(value: Any) -> bool:
    return (isinstance(value, str) and not value.strip()) or bool(pd.isna(value))


def _of_row(row: Mapping[str, Any], number: int, folder: Path) -> CohortSlide:
    if "path" not in row:
        raise InvalidValueError(f"Row {number} of the list has no path.", "fill it in")
    path = folder / str(row["path"]).strip()
    numbers = {name: _number(row[name], name, number) for name in ("mpp", "pitch_um") if name in row}
    image_key = str(row["image_key"]).strip() if "image_key" in row else None
    try:
        return CohortSlide(
            path=path,
            id=str(row["id"]).strip() if "id" in row else _default_id(path),
            mpp=numbers.get("mpp"),
            image_key=image_key,
            pitch_um=numbers.get("pitch_um"),
        )
    except StPredictError as error:
        raise error.about(f"Row {number} of the list is invalid:") from error


def _number(value: Any, name: str, row: int) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise InvalidValueError(
            f"The {name} in row {row} of the list must be a number, got {value!r}.", "correct it"
        ) from error


def _warn_of_copies(slides: Iterable[CohortSlide]) -> None:
    """Name slides that are the same work on one file, directly or by links."""
    found: dict[tuple[object, ...], list[str]] = {}
    for slide in slides:
        work = slide.path.resolve(), slide.mpp, slide.image_key, slide.pitch_um
        found.setdefault(work, []).append(slide.id)
    for names in found.values():
        if len(names) > 1:
            logger.warning("The slides %s are one file, and each is done; leave out all but one.", names)


def _refuse_duplicates(slides: Iterable[CohortSlide]) -> None:
    """Refuse identifiers that occur twice; some file systems ignore case."""
    slides = list(slides)
    counts = Counter(slide.id.casefold() for slide in slides)
    twice = {i: [str(s.path) for s in slides if s.id.casefold() == i] for i, n in counts.items() if n > 1}
    if twice:
        raise InvalidValueError(
            f"Several slides have the same identifier: {twice}.", "give each its own in the column 'id' of a CSV file"
        )


def of_shard(slides: Sequence[CohortSlide], shard: tuple[int, int] | None) -> list[CohortSlide]:
    """Return every n-th slide, from the number of the shard on; all slides without a shard."""
    if shard is None:
        return list(slides)
    number, n = check("shard", shard, tuple[Count, Count])
    if number > n:
        raise InvalidValueError(f"The shard {number} of {n} does not exist.", Advice("count from 1 in {}", "shard"))
    return list(slides[number - 1 :: n])
