"""Apply a network to batches, in the precision and so many spots at a time as suit the device."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from st_predict._errors import InvalidValueError
from st_predict._memory import is_out_of_memory
from st_predict._runtime._device import pick_precision
from st_predict._runtime._process import worker_threads
from st_predict._validated import Count, check
from st_predict.crops import N_SYMMETRIES, apply_symmetry

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from torch import Tensor

    from st_predict._runtime._network import Network
    from st_predict.crops import Batch

__all__ = ["Inference", "Moments"]

logger = logging.getLogger(__name__)

# On a CPU, few enough to stay in cache, and enough that calling a layer costs little beside computing it.
_WORKING_BATCH = {"cpu": 4, "cuda": 256}
_MAX_WORKERS = 16  # each takes about 100 MB


class Inference:
    """A network on a device, ready to predict.

    Parameters
    ----------
    network
        Is put on the device and into evaluation mode.
    device
        Where to compute.
    precision
        ``"auto"`` computes in bfloat16 where the device does so natively, else in float32; or one of the two.
    working_batch
        How many spots to work off at a time; halved where memory does not suffice. By default what suits the device.
    scope
        Of the model (:class:`~st_predict.models.ModelSpec`): batches of a ``"section"`` are never cut.
    symmetries
        8 predicts the mean over the symmetries of the crops, at eight times the cost; 1 takes them as they are.
    compile
        Whether to compile the network for the working batch, and on CUDA to replay it as a graph. Takes half a minute
        or more, so that it pays for long jobs only.

    Attributes
    ----------
    precision
        ``"float32"`` or ``"bfloat16"``. Float32 is never TF32, unless torch was told so for matrix products.

    Raises
    ------
    ValueError
        If the precision does not exist, the working batch is less than 1, or ``symmetries`` is neither 1 nor 8.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device,
        precision: str = "auto",
        working_batch: int | None = None,
        scope: Literal["spot", "section"] = "spot",
        symmetries: int = 1,
        compile: bool = False,
    ) -> None:
        check("working_batch", working_batch, Count | None)
        if isinstance(symmetries, bool) or symmetries not in (1, N_SYMMETRIES):  # a list has no hash
            raise InvalidValueError(f"symmetries must be 1 or {N_SYMMETRIES}, got {symmetries}.")
        self.network = network.to(device).eval()
        self.device = device
        self.precision = pick_precision(precision, device)
        self.working_batch = working_batch or _WORKING_BATCH.get(device.type, 32)
        self.scope = scope
        self.symmetries = symmetries
        self._max_workers = _MAX_WORKERS if device.type == "cpu" else 1
        self.compiled = compile
        self._forward: Any = torch.compile(network, dynamic=False, mode="reduce-overhead") if compile else network
        if device.type == "cpu":
            _keep_freed_memory()

    def __call__(self, batch: Batch, *, seed: int | None = None) -> Tensor:
        """Predict a batch that is on any device; with a ``seed``, draw a prediction at random (:meth:`Network.sample`).

        Returns
        -------
        ``(n_spots, n_genes)`` float32, on the device of the network.

        Raises
        ------
        MemoryError
            If there is not enough memory even for one spot at a time, or for one whole section.
        """
        done: list[Tensor] = []
        rest = batch
        with _exact_products(self.device, self.precision):
            while True:
                finished, too_large = self._predict(self._split(rest), seed)
                done += finished
                if too_large is None:
                    return done[0] if len(done) == 1 else torch.cat(done)
                rest = rest.take(slice(sum(map(len, finished)), None))
                self._shrink(too_large)

    def over(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Predict batch after batch; what a GPU has predicted is fetched while it computes the next.

        Yields
        ------
        Index of a batch as it came, and the prediction, on the host.
        """
        before: tuple[Tensor, Callable[[], Tensor]] | None = None
        for batch in batches:
            following = batch.index, _fetch(self(batch))
            if before is not None:
                yield before[0], before[1]()
            before = following
        if before is not None:
            yield before[0], before[1]()

    def draws_over(
        self, batches: Iterable[Batch], *, n_samples: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Draw ``n_samples`` predictions of each batch at random.

        Yields
        ------
        Index of a batch as it came; mean of its predictions; and the sum of their squared differences from it, both on the host.
        """
        # neighbouring seeds have nothing in common
        seeds = np.random.SeedSequence(seed).generate_state(n_samples, np.uint64) >> 1
        for batch in batches:
            on_device, moments = batch.to(self.device), Moments()
            for each in seeds.tolist():
                moments.add(self(on_device, seed=each))
            yield batch.index, moments.mean.cpu(), moments.squares.cpu()

    def _split(self, batch: Batch) -> list[Batch]:
        """Split a batch into what is computed at a time; an empty batch and a section are one part."""
        step = self.working_batch if self.scope == "spot" else max(len(batch), 1)
        return [batch.take(slice(start, start + step)) for start in range(0, max(len(batch), 1), step)]

    def _predict(self, parts: list[Batch], seed: int | None) -> tuple[list[Tensor], int | None]:
        """Predict parts until one does not fit into memory.

        Returns
        -------
        Predictions of the parts before that one, and its number of spots; ``None`` if all fit.
        """
        finished: list[Tensor] = []
        with closing(self._attempts(parts, seed)) as attempts:
            for part, prediction in zip(parts, attempts, strict=True):
                if prediction is None:
                    return finished, len(part)
                finished.append(prediction)
        return finished, None

    def _attempts(self, parts: list[Batch], seed: int | None) -> Generator[Tensor | None, None, None]:
        """Try parts one after another; on a CPU each core takes its own, so that none waits after every layer."""
        # samples come from a generator that all threads share
        workers = min(torch.get_num_threads(), len(parts), self._max_workers) if seed is None else 1
        if workers == 1:
            yield from (self._try(part, seed) for part in parts)
            return
        with worker_threads(workers) as pool:
            yield from pool.map(self._try, parts)

    def _try(self, part: Batch, seed: int | None = None) -> Tensor | None:
        """Predict, or return ``None`` where memory does not suffice; that of the attempt is then free again."""
        try:
            with torch.inference_mode(), self._autocast():
                return self._mean(part.to(self.device), seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _mean(self, part: Batch, seed: int | None) -> Tensor:
        """Predict the mean over the symmetries."""
        if self.symmetries == 1:
            return self._run(part, seed)
        views = (
            replace(part, crops=tuple(apply_symmetry(crop.contiguous(), i) for crop in part.crops))
            for i in range(N_SYMMETRIES)
        )
        return torch.stack([self._run(view, seed) for view in views]).mean(0)

    def _run(self, part: Batch, seed: int | None) -> Tensor:
        n = len(part)
        if seed is not None:
            return self.network.sample(part, seed=seed).float()
        if not self.compiled or self.scope == "section":
            return self._forward(part).float()
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # a graph has one shape, and the next replay overwrites its output
        whole = part if n == self.working_batch else _pad(part, self.working_batch)
        return self._forward(whole)[:n].float().clone()

    def _shrink(self, size: int) -> None:
        if self.scope == "section":
            raise MemoryError(
                f"The memory of {self.device} does not suffice for a section of {size} spots, which this model reads as "
                "a whole; another device may have more."
            )
        if size == 1 and self._max_workers == 1:
            raise MemoryError(f"The memory of {self.device} does not suffice for a single spot.")
        self.working_batch = max(1, size // 2)
        self._max_workers = 1
        logger.warning(
            "The memory of %s does not suffice for %d spots at a time; going on with %d.",
            self.device,
            size,
            self.working_batch,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Moments:
    """Mean of predictions, and the sum of their squared differences from it, one prediction at a time.

    Attributes
    ----------
    n
        How many there were.
    mean, squares
        ``(n_spots, n_genes)``; there are none before the first prediction.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, mean: Any, squares: Any = 0.0, n: int = 1) -> None:
        """Take in a prediction, or the moments of ``n`` (Chan, Golub and LeVeque 1983)."""
        if not self.n:
            self.mean, self.squares, self.n = mean, squares, n
            return
        both = self.n + n
        difference = mean - self.mean
        self.mean = self.mean + difference * (n / both)
        self.squares = self.squares + squares + difference**2 * (self.n * n / both)
        self.n = both


def _fetch(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy to the host; what is returned waits for that."""
    if x.device.type != "cuda":
        return x.cpu
    on_host = x.to("cpu", non_blocking=True)
    arrival = torch.cuda.current_stream(x.device).record_event()

    def wait() -> Tensor:
        arrival.synchronize()
        return on_host

    return wait


def _pad(batch: Batch, n: int) -> Batch:
    """Repeat the last spot until there are ``n``."""
    return batch.take(torch.arange(n, device=batch.index.device).clamp(max=len(batch) - 1))


def _keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 32 MiB, which the system would else map and clear anew for each layer.

    glibc raises its mmap threshold after a large block is freed; allocate one to trigger that.
    """
    with suppress(RuntimeError):  # without that memory, it is slower
        torch.empty(31 << 20, dtype=torch.uint8)


@contextmanager
def _exact_products(device: torch.device, precision: str) -> Iterator[None]:
    """Compute what is float32 in float32, by the fastest way; afterwards all settings are as before."""
    with ExitStack() as stack:
        if device.type == "cpu" and precision == "float32" and _fast_path_is_exact():
            stack.enter_context(_setting(_matmul_of_onednn(), "bf16"))
        if device.type == "cuda" and hasattr(torch.backends.cudnn, "conv"):  # else older than torch 2.9
            stack.enter_context(_setting(torch.backends.cudnn.conv, "ieee"))
        yield


@contextmanager
def _setting(backend: Any, value: str) -> Iterator[None]:
    before = backend.fp32_precision
    backend.fp32_precision = value
    try:
        yield
    finally:
        backend.fp32_precision = before


def _matmul_of_onednn() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", None)  # new in torch 2.9


@cache
def _fast_path_is_exact() -> bool:
    """Whether products stay exact where oneDNN may use bfloat16: on some processors it does, and MKL is then left alone.

    On others it computes in float32 all the same, and on those of AMD twice as fast as MKL.
    """
    if _matmul_of_onednn() is None:
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = [((256, 192), (192, 576)), ((6, 197, 64), (6, 64, 393)), ((6, 197, 393), (6, 393, 64))]
    pairs = [[torch.randn(shape, generator=generator) for shape in pair] for pair in shapes]
    with _setting(_matmul_of_onednn(), "bf16"):
        return all(bool(((a @ b).double() - a.double() @ b.double()).abs().max() < 1e-3) for a, b in pairs)
