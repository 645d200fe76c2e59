"""Train on several devices of a machine: a process per further device follows the one that writes."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import socket
import traceback
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from st_predict._progress import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    from numpy.typing import NDArray

    from st_predict._training._config import TrainConfig
    from st_predict._training._ranks import Ranks
    from st_predict._training._store import CropStore, Store
    from st_predict.models import SpotModel
    from st_predict.specs import ModelCard

__all__ = ["fit_on_several"]

READY = "ready"

_END_S = 60.0  # for followers to end after the last step


def fit_on_several(
    card: ModelCard,
    data: Store,
    val_data: CropStore | None,
    *,
    config: TrainConfig,
    folder: Path,
    resume: bool,
    ranks: Ranks,
) -> tuple[SpotModel, list[dict[str, float]]]:
    """Run :func:`~st_predict._training._fit.fit` here and in one follower per further device, which writes nothing.

    Lightning would start the user's program again for each device; that program would then find the folder locked, and
    read all slides again. Followers get the arrays instead; crops stay in their files.

    Raises
    ------
    RuntimeError
        If a follower cannot start or fails; the message has its error.
    """
    from st_predict._training._fit import fit

    port = _free_port()
    start = {"config": config, "folder": folder, "resume": resume}
    with _followers(ranks, port, (card, data, val_data), start), _environment(0, port, ranks.world):
        try:
            return fit(card, data, val_data, config=config, folder=folder, resume=resume, ranks=ranks)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@contextmanager
def _followers(ranks: Ranks, port: int, data: tuple[Any, ...], start: Mapping[str, Any]) -> Iterator[None]:
    """Start a process per further device, and end all of them with the block."""
    ForkingPickler.register(np.memmap, _reduce)
    context = multiprocessing.get_context("spawn")
    running: list[tuple[SpawnProcess, Connection]] = []
    try:
        for rank in range(1, ranks.world):
            here, there = context.Pipe(duplex=False)
            own = replace(ranks, rank=rank, local_rank=rank)
            process = context.Process(
                target=_follow, args=(own, port, there), kwargs={"data": data, "start": dict(start)}, daemon=True
            )
            process.start()
            there.close()
            running.append((process, here))
        for _, line in running:
            _expect(line, READY)
        try:
            yield
        except Exception as error:
            _blame(running, error)
            raise
        for process, _ in running:
            process.join(_END_S)
    finally:
        for process, _ in running:
            process.kill()


def _expect(line: Connection, message: str) -> None:
    """Wait for a message of a follower."""
    try:
        said = line.recv()
    except EOFError:
        said = (
            "it ended. A program that trains on several devices must start under 'if __name__ == \"__main__\":', as its "
            "processes import it"
        )
    if said != message:
        raise RuntimeError(f"A process of the training did not start: {said}")


def _blame(running: list[tuple[SpawnProcess, Connection]], error: Exception) -> None:
    """Raise the error of a follower, whose end is what this process has noticed."""
    for _, line in running:
        with suppress(EOFError, OSError):
            if line.poll(1.0):
                raise RuntimeError(f"A process of the training failed: {line.recv()}") from error


def _follow(ranks: Ranks, port: int, line: Connection, *, data: tuple[Any, ...], start: Mapping[str, Any]) -> None:
    """Train on a further device, in a process of its own."""
    try:
        from st_predict._training._fit import fit

        with _environment(ranks.rank, port, ranks.world), shown(progress=False):
            line.send(READY)
            fit(*data, ranks=ranks, **start)
    except BaseException:  # told to the process that started this one
        with suppress(OSError):
            line.send(traceback.format_exc())
        raise


@contextmanager
def _environment(rank: int, port: int, world: int) -> Iterator[None]:
    """Set the variables by which Lightning knows its processes, and restore them."""
    values = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _reduce(array: np.memmap[Any, Any]) -> Any:
    """Send the place of a mapped file instead of its content; copy views."""
    if not isinstance(array.base, mmap.mmap):
        return np.asarray(array).__reduce__()
    return _mapped, (str(array.filename), array.dtype, array.shape, array.offset)


def _mapped(path: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape, offset=offset)
