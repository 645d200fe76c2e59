"""The work of one slide: open, lay a grid, run, write."""

from __future__ import annotations

import errno
import json
import time
import traceback
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from st_predict._errors import NoTissueError, StPredictError
from st_predict._files import whole
from st_predict._keys import Keys
from st_predict._memory import is_out_of_memory
from st_predict._record import Record
from st_predict._sections import open_slides
from st_predict._version import __version__
from st_predict.cohort._open import add_grid, open_listed
from st_predict.cohort._peak import peak_mib, reset_peak
from st_predict.io import find_image, find_mpp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from st_predict._where import Where
    from st_predict.cohort._slides import CohortSlide
    from st_predict.cohort._tasks import Loaded
    from st_predict.io import Mpp

__all__ = ["DONE", "EMPTY", "FAILED", "SlideJob", "Outcome", "failed", "full_of", "look_at", "run_job"]

DONE, EMPTY, FAILED = "done", "empty", "failed"
"""Status of a slide: spots were written; there is no tissue; an error was recorded."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_COLUMNS = {"mpp", "image_key", "pitch_um"}
"""Arguments of functions that columns of a list set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideJob:
    """Work on a slide.

    Parameters
    ----------
    slide
        Slide to read.
    key
        Hash of everything that the result depends on.
    path
        Path of the result.
    attempt
        Number of earlier attempts.
    """

    slide: CohortSlide
    key: str
    path: Path
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of the work on a slide, as a row of the report.

    Parameters
    ----------
    id
        Name of the slide.
    status
        Done, empty or failed.
    key
        Hash of everything that the result depends on.
    spots
        Number of spots.
    mpp, mpp_source
        Micrometres per pixel, and where the number comes from.
    seconds
        Time of the last attempt.
    peak_mib
        Largest memory of the process meanwhile.
    reused
        Whether the result was there already.
    attempts
        Number of attempts.
    error
        Message of a failure.
    kind
        Type of the error.
    traceback
        Its traceback.
    may_pass
        Whether another attempt may help: errors of reading and of memory.
    full
        Error number if the output cannot be written at all.
    """

    id: str
    status: str
    key: str
    spots: int = 0
    mpp: float | None = None
    mpp_source: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0
    reused: bool = False
    attempts: int = 1
    error: str = ""
    kind: str = ""
    traceback: str = ""
    may_pass: bool = False
    full: int | None = None


def run_job(job: SlideJob, loaded: Loaded) -> Outcome:
    """Do the work of a slide; its errors become a failed outcome."""
    start = time.monotonic()
    reset_peak()
    try:
        return _run(job, loaded, start)
    except Exception as error:  # noqa: BLE001  # every error of a slide is recorded, and the others go on
        return failed(job, error, seconds=time.monotonic() - start)


def _run(job: SlideJob, loaded: Loaded, start: float) -> Outcome:
    sdata = open_listed(job.slide)
    try:
        add_grid(sdata, job.slide)
        result, status = loaded.run(sdata, job.slide), DONE
        mpp, source = _mpp_of(result)
    except NoTissueError:
        result, status = loaded.empty(), EMPTY
        mpp, source = _described(_find(sdata, job.slide))
    outcome = Outcome(
        id=job.slide.id,
        status=status,
        key=job.key,
        spots=result.n_obs,
        mpp=mpp,
        mpp_source=source,
        seconds=round(time.monotonic() - start, 3),
        peak_mib=round(peak_mib(), 1),
        attempts=job.attempt + 1,
    )
    _write(job, result, outcome)
    return outcome


def _write(job: SlideJob, result: AnnData, outcome: Outcome) -> None:
    """Write the result whole, with the note that it is known by; an older one is replaced."""
    note = {name: value for name, value in asdict(outcome).items() if value not in ("", None)}
    slide = {"path": str(job.slide.path), "version": __version__}
    result.uns[Keys.COHORT] = json.dumps({**note, **slide})
    with whole(job.path) as fresh:
        result.write_h5ad(fresh)


def _mpp_of(result: AnnData) -> tuple[float | None, str]:
    """Return the mpp in the record of a result, and its sources."""
    keys = Record.keys(result.uns)
    record = Record.read(result.uns, keys[0]) if keys else None
    return _common([] if record is None else record.params.get("sections", []))


def _common(sections: Sequence[Mapping[str, Any]]) -> tuple[float | None, str]:
    """Return the mpp of sections, if all have the same, and its sources."""
    values = {section["mpp"] for section in sections}
    sources = dict.fromkeys(section["mpp_source"] for section in sections)
    return (values.pop() if len(values) == 1 else None), "; ".join(sources)


def _find(sdata: SpatialData, slide: CohortSlide) -> Mpp | None:
    return find_mpp(sdata, image_key=find_image(sdata, slide.image_key), mpp=slide.mpp)


def _described(mpp: Mpp | None) -> tuple[float | None, str]:
    return (None, "unknown") if mpp is None else (mpp.value, mpp.source)


def look_at(job: SlideJob, where: Where | None, *, need_mpp: bool) -> Outcome:
    """Open a slide and look for its resolution and tissue, without computing anything.

    Parameters
    ----------
    job
        Slide to look at.
    where
        Elements of stores that the work will use; ``None`` if no work is planned.
    need_mpp
        Whether the work needs the mpp of a slide with spots.
    """
    start = time.monotonic()
    reset_peak()
    try:
        sdata = open_listed(job.slide)
        outcome = _look(job, sdata, where, need_mpp=need_mpp)
    except Exception as error:  # noqa: BLE001  # every error of a slide is recorded, and the others go on
        return failed(job, error, seconds=time.monotonic() - start)
    return replace(outcome, seconds=round(time.monotonic() - start, 3), peak_mib=round(peak_mib(), 1))


def _look(job: SlideJob, sdata: SpatialData, where: Where | None, *, need_mpp: bool) -> Outcome:
    status, n_spots = DONE, sum(len(table) for table in sdata.tables.values())
    bare = not (sdata.shapes or sdata.tables)
    try:
        add_grid(sdata, job.slide)
    except NoTissueError:
        status = EMPTY
    if bare and status == DONE:
        n_spots = sum(len(shapes) for shapes in sdata.shapes.values())
    mpp, source = _described(_find(sdata, job.slide)) if bare else (None, "")
    if where is not None and status == DONE:  # as the work will open it
        own = replace(where, image_key=job.slide.image_key, mpp=job.slide.mpp)
        sections = [each for slide in open_slides(sdata, own, need_mpp=need_mpp) for each in slide.sections]
        n_spots = sum(len(each.rows) for each in sections)
        mpp, source = _common([each.describe() for each in sections])
    return Outcome(id=job.slide.id, status=status, key=job.key, spots=n_spots, mpp=mpp, mpp_source=source)


def failed(job: SlideJob, error: BaseException, *, seconds: float = 0.0) -> Outcome:
    """Return the outcome of an error."""
    return Outcome(
        id=job.slide.id,
        status=FAILED,
        key=job.key,
        seconds=round(seconds, 3),
        peak_mib=round(peak_mib(), 1),
        attempts=job.attempt + 1,
        error=_said(error),
        kind=type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        may_pass=_may_pass(error),
        full=full_of(error),
    )


def _said(error: BaseException) -> str:
    """Return the message in one line; advice names the columns of the list."""
    if isinstance(error, StPredictError):
        return " ".join(
            error.say(lambda way: f"the column {way.argument!r}" if way.argument in _COLUMNS else None).split()
        )
    return " ".join(str(error).split()) or type(error).__name__


def full_of(error: BaseException) -> int | None:
    """Return the error number if no output can be written, to a full or read-only disk."""
    return error.errno if isinstance(error, OSError) and error.errno in _FULL else None


def _may_pass(error: BaseException) -> bool:
    """Return whether another attempt may help: errors of reading and of memory, not of the input."""
    if isinstance(error, (StPredictError, _LASTING)) or full_of(error):
        return False
    return isinstance(error, OSError) or (isinstance(error, Exception) and is_out_of_memory(error))
