"""Run a task over many slides on a cluster, and keep a report."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import make_folder
from st_predict._locks import locked
from st_predict._progress import track
from st_predict._validated import Count, File, Flag, Natural, check
from st_predict.cohort._cluster import connected, need_distributed
from st_predict.cohort._job import DONE, EMPTY, FAILED, Outcome, SlideJob
from st_predict.cohort._key import key_of, read_note
from st_predict.cohort._merge import MERGED, join
from st_predict.cohort._report import COLUMNS, Report
from st_predict.cohort._slides import of_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from distributed import Client

    from st_predict._where import Where
    from st_predict.cohort._slides import CohortSlide
    from st_predict.cohort._tasks import Task

__all__ = ["Options", "look_over_slides", "run", "writable"]

logger = logging.getLogger(__name__)

_MESSAGE = 200
"""Characters of an error in a list of errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a cohort is run; see :func:`~st_predict.cohort.predict_many`."""

    client: Client | str | None = None
    n_workers: int | None = None
    shard: tuple[int, int] | None = None
    check_first: bool = False
    retry_failed: bool = False
    retries: int = 2
    merge: bool = False

    def __post_init__(self) -> None:
        check("n_workers", self.n_workers, Count | None)
        check("retries", self.retries, Natural)
        for name in ("check_first", "retry_failed", "merge"):
            check(name, getattr(self, name), Flag)
        if self.merge and self.shard is not None and self.shard[1] != 1:
            raise InvalidValueError(
                f"The shard {self.shard[0]} of {self.shard[1]} is only a part of the slides that would be joined.",
                Advice("leave out {}, and join in a run of all slides afterwards", "merge"),
            )


def run(
    slides: Sequence[CohortSlide],
    task: Task,
    *,
    out: os.PathLike[str] | str,
    options: Options,
    device: str,
    need_mpp: bool,
) -> pd.DataFrame:
    """Do the work of all slides that has no result yet; return the report.

    Parameters
    ----------
    slides
        Slides of the whole list.
    task
        Work to do on each.
    out
        Folder of the results.
    options
        Cluster, shard, retries.
    device
        Device of the work, for a local cluster.
    need_mpp
        Whether the work needs the mpp of a slide with spots.
    """
    need_distributed()
    folder = writable(check("out", out, File))
    mine = _absolute(of_shard(slides, options.shard))
    part = "" if options.shard is None else "-{}-of-{}".format(*options.shard)
    jobs = [SlideJob(slide=s, key=key_of(s, task.settings), path=folder / f"{s.id}.h5ad") for s in mine]
    with _alone(folder, part):
        if options.merge:
            read_note(folder / MERGED)  # refuses another file
        notes = {job.slide.id: read_note(job.path) for job in jobs}
        report = Report.begin(folder / f"report{part}.csv", folder / "failed")
        todo = [job for job in jobs if not _is_known(job, notes[job.slide.id], report, options)]
        logger.info("%d of %d slides to do.", len(todo), len(jobs))
        if todo:
            with connected(options.client, n_workers=options.n_workers, n_slides=len(todo), device=device) as client:
                if options.check_first:
                    _refuse_broken(_look_over(client, todo, task.where, need_mpp=need_mpp))
                _work(client, todo, task, report, retries=options.retries)
        found = report.read().loc[[job.slide.id for job in jobs]]
        if options.merge:
            join({job.path: job.key for job in jobs if found.loc[job.slide.id, "status"] == DONE}, folder / MERGED)
    return found


@contextmanager
def _alone(folder: Path, part: str) -> Iterator[None]:
    """Keep other runs out of the folder; parts of one division may work in it at the same time."""
    what, own = "run of a cohort", folder / f".lock{part}"
    together = f"-of-{part.rpartition('-')[2]}" if part else None
    with locked(own, folder=folder, what=what):
        for other in folder.glob(".lock*"):
            if other != own and not (together and other.name.endswith(together)):
                with locked(other, folder=folder, what=what):  # of a dead process
                    pass
        yield


def _absolute(slides: Sequence[CohortSlide]) -> list[CohortSlide]:
    """Make paths absolute, because workers may run in another folder."""
    return [replace(slide, path=slide.path.absolute()) for slide in slides]


def writable(folder: Path) -> Path:
    """Make the output folder and return its absolute path; refuse one that cannot be written to, before any work."""
    folder = folder.absolute()
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"Cannot write results to {str(folder)!r}: {error.strerror}") from error
    return folder


def _is_known(job: SlideJob, note: Mapping[str, Any] | None, report: Report, options: Options) -> bool:
    """Add the row of a slide whose result, or failure, is already there; return whether it was."""
    if note is not None and note["key"] == job.key:
        names = {"status", "spots", "mpp", "mpp_source", "seconds", "peak_mib", "attempts"}
        known = {name: value for name, value in note.items() if name in names}
        report.add(replace(_unknown(job), **known, reused=True))
        return True
    if options.retry_failed or (earlier := report.earlier_failure(job)) is None:
        return False
    names = {"seconds", "peak_mib", "attempts", "error"}
    report.add(replace(_unknown(job), **{n: v for n, v in earlier.items() if n in names}, reused=True))
    return True


def _unknown(job: SlideJob) -> Outcome:
    return Outcome(id=job.slide.id, status=FAILED, key=job.key)


def _work(client: Client, jobs: Sequence[SlideJob], task: Task, report: Report, *, retries: int) -> None:
    """Do the jobs; the report has each as soon as it ends."""
    for outcome, job in track(_finished(client, jobs, task, retries), "Slides", len(jobs), unit="slide"):
        if outcome.full is not None:
            raise OSError(
                outcome.full,
                f"{os.strerror(outcome.full)}. Finished slides are kept; make space and run again",
                str(job.path),
            )
        report.note_failure(job, outcome)
        report.add(outcome)
        if outcome.status == FAILED:
            logger.warning("%s failed: %s", outcome.id, outcome.error)
        elif outcome.status == EMPTY:
            logger.warning("%s has no tissue; its result has no spots.", outcome.id)


def _finished(client: Client, jobs: Sequence[SlideJob], task: Task, retries: int) -> Iterator[tuple[Outcome, SlideJob]]:
    """Yield outcomes as they come."""
    from st_predict.cohort._futures import in_turn
    from st_predict.cohort._plugin import TaskPlugin, run_on_worker

    name = f"st_predict-{uuid.uuid4().hex[:12]}"
    client.register_plugin(TaskPlugin(task, name))
    try:
        yield from in_turn(client, jobs, partial(run_on_worker, plugin=name), retries=retries)
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)


def look_over_slides(slides: Sequence[CohortSlide], *, options: Options) -> pd.DataFrame:
    """Open all slides and look for resolution and tissue; return a row per slide."""
    need_distributed()
    mine = _absolute(of_shard(slides, options.shard))
    jobs = [SlideJob(slide=slide, key="", path=Path()) for slide in mine]
    found: list[Outcome] = []
    if jobs:
        with connected(options.client, n_workers=options.n_workers, n_slides=len(jobs), device="cpu") as client:
            found = _look_over(client, jobs, None, need_mpp=False)
    columns = [name for name in COLUMNS if name not in {"id", "key", "reused", "attempts"}]
    rows = [{name: getattr(one, name) for name in columns} for one in found]
    return pd.DataFrame(rows, index=pd.Index([one.id for one in found], name="id"), columns=columns)


def _look_over(client: Client, jobs: Sequence[SlideJob], where: Where | None, *, need_mpp: bool) -> list[Outcome]:
    """Look at all slides, in the order of the list."""
    from st_predict.cohort._futures import in_turn
    from st_predict.cohort._plugin import TaskPlugin, look_on_worker

    name = f"st_predict-{uuid.uuid4().hex[:12]}"
    client.register_plugin(TaskPlugin(None, name))
    try:
        look = partial(look_on_worker, plugin=name, where=where, need_mpp=need_mpp)
        looks = in_turn(client, jobs, look, retries=0)
        seen = {outcome.id: outcome for outcome, _ in track(looks, "Looking at slides", len(jobs), unit="slide")}
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)
    return [seen[job.slide.id] for job in jobs]


def _refuse_broken(looked: Sequence[Outcome]) -> None:
    """Refuse to begin if a slide cannot be worked on; slides without tissue can."""
    broken = [f"{one.id} ({one.error[:_MESSAGE]})" for one in looked if one.status == FAILED]
    if broken:
        raise InvalidValueError(
            f"{len(broken)} of {len(looked)} slides cannot be used, and nothing was computed: {'; '.join(broken)}.",
            "correct these slides, or their rows in the list",
        )
