"""Networks in the memory of a worker. Only modules that have a client import this one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import dask
from distributed import WorkerPlugin, get_worker

from st_predict._errors import InvalidValueError
from st_predict._version import __version__
from st_predict.cohort._job import failed, look_at, run_job
from st_predict.cohort._run_cell import run_cell

if TYPE_CHECKING:
    from st_predict._where import Where
    from st_predict.cohort._cell import Cell
    from st_predict.cohort._job import Outcome, SlideJob
    from st_predict.cohort._tasks import Task

__all__ = ["TaskPlugin", "look_on_worker", "run_cell_on_worker", "run_on_worker"]


class TaskPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Loads the networks of a task once per worker.

    Parameters
    ----------
    task
        Work to do on every slide; ``None`` to only look at slides.
    name
        Name of the plugin, unique to the run.
    """

    def __init__(self, task: Task | Any, name: str) -> None:
        self.task = task
        self.name = name
        self.version = __version__
        self.error: Exception | None = None

    def setup(self, worker: Any) -> None:  # as distributed calls it
        """Load the networks. An error is kept too, as nobody else sees the error of a worker which joins later."""
        self.lock = threading.Lock()  # a worker with several threads still has one slide in memory
        self.loaded: Any = None
        try:
            self._check_version()
            self.loaded = None if self.task is None else self.task.load()
        except Exception as error:
            self.error = error
            raise

    def _check_version(self) -> None:
        if self.version != __version__:
            raise InvalidValueError(
                f"A worker has st_predict {__version__}, and this run was started with {self.version}.",
                "install the same version on all machines",
            )

    def teardown(self, worker: Any) -> None:  # as distributed calls it
        """Free the networks."""
        self.loaded = None


def _own_computations() -> Any:
    """Compute lazy arrays in this thread: in a task, dask would make tasks of the cluster of them."""
    return dask.config.set(scheduler="synchronous")


def run_on_worker(job: SlideJob, plugin: str) -> Outcome:
    """Do a job with the networks of the worker that runs it."""
    mine: TaskPlugin = get_worker().plugins[plugin]
    with mine.lock, _own_computations():
        return run_job(job, mine.loaded) if mine.error is None else failed(job, mine.error)


def look_on_worker(job: SlideJob, plugin: str, *, where: Where | None, need_mpp: bool) -> Outcome:
    """Look at a slide, on the worker that would read it."""
    mine: TaskPlugin = get_worker().plugins[plugin]
    with mine.lock, _own_computations():
        return look_at(job, where, need_mpp=need_mpp) if mine.error is None else failed(job, mine.error)


def run_cell_on_worker(cell: Cell, plugin: str) -> None:
    """Train and score a cell of a cross-validation."""
    mine: TaskPlugin = get_worker().plugins[plugin]
    with mine.lock, _own_computations():
        if mine.error is not None:
            raise mine.error
        run_cell(cell, mine.loaded.study, mine.loaded.sources)
