"""Clients of dask: the user's, a scheduler's, or a local cluster's."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client

__all__ = ["connected", "need_distributed"]

logger = logging.getLogger(__name__)

WORKER_BYTES = 3 << 30
"""Memory that is planned for a worker of a local cluster."""

_SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.0,  # slides wait for whichever worker is free
    "distributed.worker.profile.enabled": False,  # sampled call stacks, of which an hour is kept in memory
}
"""Settings of dask for a local cluster."""


def need_distributed() -> Any:
    """Import distributed.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("distributed")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Cohorts need the package distributed: pip install 'st-predict[cluster]'.", name="distributed"
        ) from error


@contextmanager
def connected(client: Client | str | None, *, n_workers: int | None, n_slides: int, device: str) -> Iterator[Client]:
    """Yield a client; a local cluster ends with the block.

    Parameters
    ----------
    client
        Client, address of a scheduler, or ``None`` for a local cluster.
    n_workers
        Number of workers of a local cluster; by default as many as cores and memory allow, and one per GPU.
    n_slides
        Number of slides, which limits the number of workers.
    device
        Device of the work.
    """
    distributed = need_distributed()
    if client is not None and n_workers is not None:
        raise InvalidValueError(
            "n_workers is for a cluster of this machine, and the workers of a client are there already.",
            Advice("leave out {}", "n_workers"),
            Advice("leave out {}", "client"),
        )
    if isinstance(client, distributed.Client):
        _check_usable(client)
        with client.as_current():
            yield client
    elif isinstance(client, str):
        with distributed.Client(client, set_as_default=False) as connection, connection.as_current():
            yield connection
    elif client is None:
        cluster = _local(device, n_workers, n_slides)
        try:
            with distributed.Client(cluster, set_as_default=False) as connection, connection.as_current():
                yield connection
        finally:
            _close(cluster)
    else:
        raise InvalidTypeError(
            f"client must be a distributed.Client, the address of a scheduler or None, got {type(client).__name__}."
        )


def _close(cluster: Any) -> None:
    """End a local cluster. Slow processes end with this one, and do not cost the report."""
    try:
        cluster.close()
    except TimeoutError:
        logger.warning("Workers did not end in time. They end with this program.")


def _check_usable(client: Client) -> None:
    if client.asynchronous:
        raise InvalidTypeError(
            "client is asynchronous, and slides are waited for here.",
            "make it without asynchronous=True, outside coroutines",
        )
    if client.status != "running":
        raise InvalidValueError(f"client is {client.status}.", Advice("connect again, and pass that as {}", "client"))


def _local(device: str, n_workers: int | None, n_slides: int) -> Any:
    """Start workers on this machine: one per GPU if dask-cuda is installed, else processes on the cores."""
    n_gpus = _count_gpus(device)
    if n_gpus and importlib.util.find_spec("dask_cuda") is not None:
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster(n_workers=min(n_workers or n_gpus, n_gpus, n_slides), threads_per_worker=1)
    if n_gpus > 1:
        logger.warning(
            "One of %d GPUs is used. Install dask-cuda for a worker per GPU, or connect to a cluster of your own.",
            n_gpus,
        )
    import dask
    from dask.system import CPU_COUNT
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    fitting = max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_BYTES))
    n = min(n_slides, n_workers or (1 if n_gpus else fitting))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, CPU_COUNT // n))
    with dask.config.set(_SETTINGS):
        return LocalCluster(
            n_workers=n,
            threads_per_worker=1,
            memory_limit=MEMORY_LIMIT // n,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            env={"OMP_NUM_THREADS": threads},
        )


def _count_gpus(device: str) -> int:
    if device != "auto" and not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
