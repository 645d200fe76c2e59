"""Jobs on a cluster: outcomes as they come, and what happens to jobs whose workers fail or die."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed import KilledWorker, as_completed

from st_predict.cohort._job import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client

    from st_predict.cohort._job import Outcome, SlideJob

__all__ = ["in_turn"]


def in_turn(
    client: Client, jobs: Sequence[SlideJob], function: Callable[[SlideJob], Outcome], *, retries: int
) -> Iterator[tuple[Outcome, SlideJob]]:
    """Yield outcomes as they come.

    Errors of reading and of memory are tried again, after the other slides. When a worker dies, the scheduler blames all
    slides that it had been given, also those that waited. So blamed ones are tried again at the end, one by one.

    Raises
    ------
    ConnectionError
        If the scheduler ends, or drops slides. These are not failures of slides.
    """
    blamed: list[SlideJob] = []
    for ended, job in _ended(client, jobs, function, retries=retries):
        if isinstance(ended, KilledWorker):
            blamed.append(replace(job, attempt=job.attempt + 1))
        else:
            yield _outcome(ended, job), job
    for suspect in blamed:
        yield from ((_outcome(ended, job), job) for ended, job in _ended(client, [suspect], function, retries=retries))


def _outcome(ended: Outcome | BaseException, job: SlideJob) -> Outcome:
    if not isinstance(ended, BaseException):
        return ended
    outcome = failed(job, ended)
    return replace(outcome, error=_DIED) if isinstance(ended, KilledWorker) else outcome


def _ended(
    client: Client, jobs: Sequence[SlideJob], function: Callable[[SlideJob], Outcome], *, retries: int
) -> Iterator[tuple[Outcome | BaseException, SlideJob]]:
    """Yield outcomes, or errors of the cluster, as they come."""
    # one group of tasks: what does not fit on the workers waits at the scheduler for any of them, and workers keep
    # statistics for each group
    group = f"slide-{uuid.uuid4().hex[:12]}"

    def submit(job: SlideJob) -> Any:
        key = group, job.slide.id, job.attempt
        todo[key] = job
        return client.submit(function, job, key=key, pure=False, priority=-job.attempt)

    todo: dict[tuple[str, str, int], SlideJob] = {}
    futures = [submit(job) for job in jobs]
    ended = as_completed(futures)
    del futures  # so that the scheduler forgets finished slides
    try:
        for future in ended:
            if future.cancelled():
                raise ConnectionError(_DROPPED)
            job = todo.pop(future.key)
            found: Outcome | BaseException = future.exception() or future.result()
            if getattr(found, "may_pass", False) and job.attempt < retries:
                ended.add(submit(replace(job, attempt=job.attempt + 1)))
                continue
            yield found, job
    finally:
        if client.status == "running":
            client.cancel([future for future in ended.futures if not future.done()], force=True)


_DIED = (
    "Workers died while they had only this slide, most often because memory ran out. Start fewer of them, and read their "
    "logs."
)
_DROPPED = "The scheduler ended, or dropped slides of this run. Finished slides are kept; run again to do the others."
