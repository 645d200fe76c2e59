"""State that torch shares between the parts of a process: its random generator, and its threads around a fork."""

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
    """Put torch's global generator back afterwards: initial weights are drawn from it, also where a file replaces them.

    Threads take turns, so that none of them restores a state that another one has changed.
    """
    with _building, torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def worker_threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Give ``n`` workers that share the threads of torch, whose number is as before afterwards."""
    threads, started = torch.get_num_threads(), set[int]()

    def begin() -> None:
        started.add(threading.get_native_id())
        torch.set_num_threads(threads // n)

    pool = ThreadPoolExecutor(n, initializer=begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # otherwise new threads would take the number of a worker
        _ending.difference_update([thread for thread in list(_ending) if not _runs(thread)])
        _ending.update(started)


def _wait_for_ends() -> None:
    """Wait until workers have ended for the system too, which is after Python has joined them.

    At their end they return memory to MKL under a lock, which would be held for ever in a process that is forked meanwhile.
    """
    end = time.monotonic() + _LONGEST_WAIT_S
    while any(_runs(thread) for thread in list(_ending)) and time.monotonic() < end:
        time.sleep(0.001)
    _ending.clear()


def _runs(thread: int) -> bool:
    return Path(f"/proc/self/task/{thread}").exists()


def _compute_in_one_thread() -> None:
    """Let a forked process compute in one thread: a fork does not copy the threads of OpenMP, and waiting for them never ends."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_wait_for_ends, after_in_child=_compute_in_one_thread)
