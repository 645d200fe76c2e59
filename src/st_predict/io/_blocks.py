"""Blocks of lazy arrays: a result that several blocks need is computed once and kept."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.core import flatten, get_dependencies, istask
from dask.core import get as compute
from dask.highlevelgraph import HighLevelGraph
from dask.sizeof import sizeof

from st_predict.io._source_file import source_file
from st_predict.io._spool import Spool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import dask.array as da

    from st_predict.io._source_file import SourceFile

    Key = Any
    Graph = dict[Key, Any]

__all__ = ["MEMORY", "SharedBlocks", "block_keys"]

MEMORY = 256 << 20
"""Bytes of shared results that are kept in memory; beyond, results go to disk or are computed again."""

WIDE = 16
"""Number of blocks that must need a result to make it worth a file, if it fits into memory but others need the place."""


MANY = 1000
"""Number of blocks that must need a result for its computation to be logged, as it may take a while."""

logger = logging.getLogger(__name__)


class SharedBlocks:
    """Computes blocks of arrays whose graphs may share work, such as the levels of a computed pyramid.

    A task is *shared* if more than one block, or more than one shared task, needs its result. Shared results are kept:
    in memory up to ``MEMORY`` bytes, larger ones in a temporary folder, which is removed with this object. Tasks run in
    the thread that asks; a thread that needs a result which another one computes waits for it.

    Parameters
    ----------
    arrays
        Arrays whose blocks are asked for.
    name
        Name of the image, for messages.
    held
        Keys of blocks that are read in pieces, and therefore kept.
    """

    def __init__(self, arrays: Sequence[da.Array], *, name: str, held: Collection[Key] = ()) -> None:
        self._arrays, self._held = tuple(arrays), frozenset(held)
        self._spool = Spool(name)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._graph: Graph | None = None
        self._needed_by: dict[Key, int] = {}  # shared results, and how many others need each
        self._pending: dict[Key, int] = {}  # how many of these have not been computed yet
        self._computed: set[Key] = set()
        self._running: dict[Key, Future[Any]] = {}
        self._in_memory: dict[Key, tuple[Any, int]] = {}  # values and their bytes, those used last at the end
        self._n_bytes = 0
        self._foreign: set[Key] = set()  # tasks that do not give the pixels of their files

    def __reduce__(self) -> tuple[Any, ...]:
        # other processes compute for themselves
        return _restored, (self._arrays, self._spool.name, self._held)

    def get(self, key: Key) -> Any:
        """Return the result of a task, by its key in the graph."""
        self._open()
        with self._lock:
            if (kept := self._kept(key)) is not None:
                return kept
            future = self._running.get(key)
            mine = future is None
            if future is None:
                future = self._running[key] = Future()
        return self._run(key, future) if mine else future.result()

    def _open(self) -> None:
        with self._opening:
            if self._graph is None:
                graph = HighLevelGraph.merge(*(array.dask for array in self._arrays)).to_dict()
                blocks = {key for array in self._arrays for key in block_keys(array)}
                self._needed_by = shared_results(graph, blocks)
                self._pending = dict(self._needed_by)
                self._graph = graph

    def _kept(self, key: Key) -> Any:
        if key in self._in_memory:
            self._in_memory[key] = entry = self._in_memory.pop(key)
            return entry[0]
        return self._spool.get(key)

    def _run(self, key: Key, future: Future[Any]) -> Any:
        try:
            value, inputs = self._compute(key)
            with self._lock:
                value = self._keep(key, value, inputs)
                del self._running[key]
        except BaseException as error:
            with self._lock:
                self._running.pop(key, None)
            future.set_exception(error)
            raise
        future.set_result(value)
        return value

    def _compute(self, key: Key) -> tuple[Any, list[Key]]:
        """Compute a result from shared ones; return it and the keys of these."""
        if self._needed_by.get(key, 0) >= MANY:
            logger.info(
                "Image %r: decoding a part that %d blocks are cut from, once.", self._spool.name, self._needed_by[key]
            )
        own, inputs = self._cone(key)
        known = {name: self.get(name) for name in inputs}
        if (source := source_file(own, larger_than=MEMORY)) is not None and self._stored(source):
            del own[source.task]
            pixels = self._spool.get(source.task)
            known[source.task] = pixels.reshape(*(1,) * (len(source.task) - 1 - pixels.ndim), *pixels.shape)
        if key in known:
            return known[key], inputs
        (value,) = compute(own, [key], known)
        return value, inputs

    def _stored(self, source: SourceFile) -> bool:
        """Decode a file in parts, to disk, instead of by its task as a whole; return whether that gives the same pixels."""
        assert self._graph is not None  # opened
        if source.task in self._foreign:
            return False
        self._spool.put_parts(source.task, source.shape, source.parts())
        if source.agrees(self._graph, self._spool.get(source.task)):
            return True
        logger.info(
            "Image %r: %s is decoded as a whole, as its parts cannot be checked.", self._spool.name, source.path
        )
        self._foreign.add(source.task)
        self._spool.drop(source.task)
        return False

    def _cone(self, key: Key) -> tuple[Graph, list[Key]]:
        """Tasks that only ``key`` needs, and keys of the shared results that these read."""
        assert self._graph is not None  # opened
        own, todo = {key: self._graph[key]}, [key]
        inputs: dict[Key, None] = {}
        while todo:
            for name in get_dependencies(self._graph, todo.pop()):
                if name in self._needed_by:
                    inputs[name] = None
                elif name not in own:
                    own[name] = self._graph[name]
                    todo.append(name)
        return own, list(inputs)

    def _keep(self, key: Key, value: Any, inputs: list[Key]) -> Any:
        if key not in self._computed:
            self._computed.add(key)
            for name in inputs:
                self._pending[name] -= 1
        if key not in self._needed_by and key not in self._held:
            return _owned(value)
        n_bytes = sizeof(value)
        if n_bytes > MEMORY and self._spool.put(key, value):
            return self._spool.get(key)
        value = _owned(value)
        self._in_memory[key] = value, n_bytes
        self._n_bytes += n_bytes
        while self._n_bytes > MEMORY:
            self._evict()
        return value

    def _evict(self) -> None:
        """Free the memory of a result that nobody needs any more, or else of the one that was used longest ago."""
        finished = (key for key in self._in_memory if not self._pending.get(key) and key not in self._held)
        key = next(finished, None)
        unfinished = key is None
        if key is None:
            key = next(iter(self._in_memory))
        value, n_bytes = self._in_memory.pop(key)
        self._n_bytes -= n_bytes
        if unfinished and (key in self._held or self._needed_by[key] >= WIDE):
            self._spool.put(key, value)


def block_keys(array: da.Array) -> list[Key]:
    """Keys of all blocks of an array."""
    return list(flatten(array.__dask_keys__()))  # type: ignore[no-untyped-call]


def _restored(arrays: Sequence[da.Array], name: str, held: Collection[Key]) -> SharedBlocks:
    return SharedBlocks(arrays, name=name, held=held)


def _owned(value: Any) -> Any:
    """Copy an array that is a view of a larger one, which it would keep alive, or of a file."""
    root = value
    while isinstance(getattr(root, "base", None), np.ndarray):
        root = root.base
    if not isinstance(value, np.ndarray) or (root.nbytes == value.nbytes and not isinstance(root, np.memmap)):
        return value
    return np.array(value, order="C")


def shared_results(graph: Graph, blocks: Collection[Key]) -> dict[Key, int]:
    """Results that more than one block or other shared result needs, directly or through tasks of its own.

    Parameters
    ----------
    graph
        Tasks by key.
    blocks
        Keys of the results that are asked for.

    Returns
    -------
    dict of object to int
        For each shared result the number of blocks and of other shared results that need it.
    """
    owner: dict[Key, Key] = {}  # block or shared result that a task is computed for
    others: dict[Key, set[Key]] = {}  # where there are several
    shared: dict[Key, int] = {}
    for key in reversed(_in_order(graph, blocks)):
        if key in blocks or key in others:
            needed_by = others.pop(key, {owner[key]} if key in owner else set())
            owner[key] = key
            # other values are there already, unless they are names of other results
            if needed_by and (istask(graph[key]) or get_dependencies(graph, key)):  # type: ignore[no-untyped-call]
                shared[key] = len(needed_by)
        for name in get_dependencies(graph, key):
            _add(owner[key], name, owner, others)
    return shared


def _add(needs: Key, name: Key, owner: dict[Key, Key], others: dict[Key, set[Key]]) -> None:
    if name in others:
        others[name].add(needs)
    elif owner.setdefault(name, needs) != needs:
        others[name] = {owner[name], needs}


def _in_order(graph: Graph, blocks: Collection[Key]) -> list[Key]:
    """Keys that the blocks need, each behind those that it needs."""
    done: dict[Key, None] = {}
    for block in blocks:
        if block in done:
            continue
        path: list[tuple[Key, Iterator[Key]]] = [(block, iter(get_dependencies(graph, block)))]
        while path:
            key, needs = path[-1]
            name = next((name for name in needs if name not in done), None)
            if name is None:
                done[key] = None
                path.pop()
            else:
                path.append((name, iter(get_dependencies(graph, name))))
    return list(done)
