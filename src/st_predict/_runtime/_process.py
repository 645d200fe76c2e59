"""State of torch that a process shares: random generator, and threads around a fork."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["keeping_generator", "worker_threads"]

_LONGEST_WAIT_S = 1.0

_building = threading.RLock()
_ending: set[int] = set()


@contextmanager
def keeping_generator() -> Iterator[None]:
    """Restore torch's global generator afterwards: initial weights are drawn from it, even if a file replaces them.

    A lock keeps threads from restoring a state that another thread has changed.
    """
    with _building, torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def worker_threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Yield ``n`` workers that share torch's threads; the number of threads is restored afterwards."""
    threads, started = torch.get_num_threads(), set[int]()

    def begin() -> None:
        started.add(threading.get_native_id())
        torch.get_num_threads()  # at its first use a thread takes the last number that any thread has set
        torch.set_num_threads(threads // n)

    pool = ThreadPoolExecutor(n, initializer=begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # otherwise new threads would inherit a worker's number
        _ending.difference_update([thread for thread in list(_ending) if not _runs(thread)])
        _ending.update(started)


def _wait_for_ends() -> None:
    """Wait until the system has ended the workers, which is after Python has joined them.

    At their end they return memory to MKL under a lock. A process forked meanwhile would hold that lock for ever.
    """
    end = time.monotonic() + _LONGEST_WAIT_S
    while any(_runs(thread) for thread in list(_ending)) and time.monotonic() < end:
        time.sleep(0.001)
    _ending.clear()


def _runs(thread: int) -> bool:
    return Path(f"/proc/self/task/{thread}").exists()


def _compute_in_one_thread() -> None:
    """Use one thread in a forked process: a fork does not copy OpenMP's threads, and waiting for them never ends."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_wait_for_ends, after_in_child=_compute_in_one_thread)
