"""Run a task over many slides on a cluster, and keep a report."""

from __future__ import annotations

import logging
import os
import tempfile
import uuid
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_predict._errors import InvalidValueError
from st_predict._files import make_folder
from st_predict._locks import locked
from st_predict._progress import track
from st_predict._validated import Count, File, Flag, Natural, check
from st_predict.cohort._cluster import connected, need_distributed
from st_predict.cohort._job import DONE, EMPTY, FAILED, Outcome, SlideJob, failed
from st_predict.cohort._key import key_of, read_note
from st_predict.cohort._merge import MERGED, join
from st_predict.cohort._report import COLUMNS, Report
from st_predict.cohort._slides import of_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from distributed import Client

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
    with locked(folder / f".lock{part}", folder=folder, what="run of a cohort"):
        notes = {job.slide.id: read_note(job.path) for job in jobs}
        report = Report.begin(folder / f"report{part}.csv", folder / "failed")
        todo = [job for job in jobs if not _is_known(job, notes[job.slide.id], report, options)]
        logger.info("%d of %d slides to do.", len(todo), len(jobs))
        if todo:
            with connected(options.client, n_workers=options.n_workers, n_slides=len(todo), device=device) as client:
                if options.check_first:
                    _refuse_broken(_look_over(client, todo, need_mpp=need_mpp))
                _work(client, todo, task, report, retries=options.retries)
        found = report.read()
        if options.merge:
            whole = found.index[found["status"] == DONE]
            join({name: folder / f"{name}.h5ad" for name in whole}, folder / MERGED)
    return found


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
    """Yield outcomes as they come; errors of reading and of memory are tried again, after the other slides."""
    from st_predict.cohort._plugin import TaskPlugin, run_on_worker

    name = f"st_predict-{uuid.uuid4().hex[:12]}"
    client.register_plugin(TaskPlugin(task, name))
    try:
        yield from _in_turn(client, jobs, partial(run_on_worker, plugin=name), retries=retries)
    finally:
        client.unregister_worker_plugin(name)


def _in_turn(
    client: Client, jobs: Sequence[SlideJob], function: Callable[[SlideJob], Outcome], *, retries: int
) -> Iterator[tuple[Outcome, SlideJob]]:
    from distributed import as_completed

    def submit(job: SlideJob) -> Any:
        future = client.submit(
            function, job, key=f"{job.slide.id}-{uuid.uuid4().hex[:12]}", pure=False, priority=-job.attempt
        )
        todo[future.key] = job
        return future

    todo: dict[str, SlideJob] = {}
    futures = [submit(job) for job in jobs]
    ended = as_completed(futures)
    del futures  # so that the scheduler forgets finished slides
    try:
        for future in ended:
            job = todo.pop(future.key)
            error = future.exception()
            outcome = future.result() if error is None else _lost(job, error)
            if outcome.may_pass and job.attempt < retries:
                ended.add(submit(replace(job, attempt=job.attempt + 1)))
                continue
            yield outcome, job
    finally:
        client.cancel([future for future in ended.futures if not future.done()], force=True)


def _lost(job: SlideJob, error: BaseException) -> Outcome:
    """Return the outcome of a job whose workers died, which distributed has tried several times."""
    return failed(job, error)


def look_over_slides(slides: Sequence[CohortSlide], *, options: Options, need_mpp: bool) -> pd.DataFrame:
    """Open all slides and look for resolution and tissue; return a row per slide."""
    need_distributed()
    mine = _absolute(of_shard(slides, options.shard))
    jobs = [SlideJob(slide=slide, key="", path=Path()) for slide in mine]
    with connected(options.client, n_workers=options.n_workers, n_slides=len(jobs), device="cpu") as client:
        found = _look_over(client, jobs, need_mpp=need_mpp)
    columns = [name for name in COLUMNS if name not in {"id", "key", "reused", "attempts"}]
    rows = [{name: getattr(one, name) for name in columns} for one in found]
    return pd.DataFrame(rows, index=pd.Index([one.id for one in found], name="id"), columns=columns)


def _look_over(client: Client, jobs: Sequence[SlideJob], *, need_mpp: bool) -> list[Outcome]:
    """Look at all slides, in the order of the list."""
    from st_predict.cohort._plugin import TaskPlugin, look_on_worker

    name = f"st_predict-{uuid.uuid4().hex[:12]}"
    client.register_plugin(TaskPlugin(None, name))
    try:
        looks = _in_turn(client, jobs, partial(look_on_worker, plugin=name, need_mpp=need_mpp), retries=0)
        seen = {outcome.id: outcome for outcome, _ in track(looks, "Looking at slides", len(jobs), unit="slide")}
    finally:
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
