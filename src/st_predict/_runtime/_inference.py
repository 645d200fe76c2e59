"""Apply a network to batches, in the precision and batch size that suit the device."""

from __future__ import annotations

import logging
import threading
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

# On a CPU, few enough to stay in cache, and enough that computing a layer outweighs calling it.
_WORKING_BATCH = {"cpu": 4, "cuda": 256}
_MAX_WORKERS = 16  # each takes about 100 MB

# Calls that use the setting of a backend, and its precision before them.
_settings: dict[Any, tuple[int, str]] = {}
_settings_lock = threading.Lock()


class Inference:
    """A network on a device, ready to predict.

    Parameters
    ----------
    network
        Network, which is moved to the device and put into evaluation mode.
    device
        Device to compute on.
    precision
        Precision: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for bfloat16 if the device supports it natively, else float32.
    working_batch
        Number of spots at a time; halved when out of memory. By default a number that suits the device.
    scope
        Scope of the model (:class:`~st_predict.models.ModelSpec`): batches of a ``"section"`` are never split.
    symmetries
        Number of crop symmetries averaged (test-time augmentation): 8 costs eight times as much as 1.
    compile
        Whether to compile the network for the working batch, and on CUDA to replay it as a graph. It takes half a minute
        or more, so it pays only for long jobs.

    Attributes
    ----------
    precision
        Precision in use, ``"float32"`` or ``"bfloat16"``. Float32 is not TF32, unless torch is set so for matrix products.

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
        """Predict a batch from any device; with a ``seed``, draw a random prediction (:meth:`Network.sample`).

        Returns
        -------
        Tensor
            ``(n_spots, n_genes)`` float32, on the device of the network.

        Raises
        ------
        MemoryError
            If a single spot, or a whole section, does not fit into memory.
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
        """Predict batch by batch; results are fetched from a GPU while it computes the next batch.

        Yields
        ------
        tuple of Tensor and Tensor
            Index of the batch, unchanged, and its prediction on the host.
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
        tuple of Tensor, Tensor and Tensor
            Index of the batch, unchanged; mean of its predictions, and the sum of their squared deviations, both on the
            host.
        """
        # decorrelates neighbouring seeds
        seeds = np.random.SeedSequence(seed).generate_state(n_samples, np.uint64) >> 1
        for batch in batches:
            on_device, moments = batch.to(self.device), Moments()
            for each in seeds.tolist():
                moments.add(self(on_device, seed=each))
            yield batch.index, moments.mean.cpu(), moments.squares.cpu()

    def _split(self, batch: Batch) -> list[Batch]:
        """Split a batch into working batches; an empty batch and a section are one part."""
        step = self.working_batch if self.scope == "spot" else max(len(batch), 1)
        return [batch.take(slice(start, start + step)) for start in range(0, max(len(batch), 1), step)]

    def _predict(self, parts: list[Batch], seed: int | None) -> tuple[list[Tensor], int | None]:
        """Predict parts until one does not fit into memory.

        Returns
        -------
        tuple of list and int or None
            Predictions of the parts that fit, and the number of spots of the first that does not; ``None`` if all fit.
        """
        finished: list[Tensor] = []
        with closing(self._attempts(parts, seed)) as attempts:
            for part, prediction in zip(parts, attempts, strict=True):
                if prediction is None:
                    return finished, len(part)
                finished.append(prediction)
        return finished, None

    def _attempts(self, parts: list[Batch], seed: int | None) -> Generator[Tensor | None, None, None]:
        """Try parts in turn; on a CPU each core has its own part, which avoids synchronisation after every layer."""
        # samples come from a generator shared by all threads
        workers = min(torch.get_num_threads(), len(parts), self._max_workers) if seed is None else 1
        if workers == 1:
            yield from (self._try(part, seed) for part in parts)
            return
        with worker_threads(workers) as pool:
            yield from pool.map(self._try, parts)

    def _try(self, part: Batch, seed: int | None = None) -> Tensor | None:
        """Predict, or return ``None`` when out of memory, with the attempt's memory freed."""
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
        # a graph has a fixed shape, and the next replay overwrites its output
        whole = part if n == self.working_batch else _pad(part, self.working_batch)
        return self._forward(whole)[:n].float().clone()

    def _shrink(self, size: int) -> None:
        if self.scope == "section":
            raise MemoryError(
                f"Out of memory on {self.device}: this model reads a section of {size} spots as a whole; another device may "
                "have more memory."
            )
        if size == 1 and self._max_workers == 1:
            raise MemoryError(f"Out of memory on {self.device} with a single spot at a time.")
        self.working_batch = max(1, size // 2)
        self._max_workers = 1
        logger.warning(
            "Out of memory on %s with %d spots at a time; continuing with %d.",
            self.device,
            size,
            self.working_batch,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Moments:
    """Running mean of predictions, and sum of squared deviations from it.

    Attributes
    ----------
    n
        Number of predictions.
    mean, squares
        Mean and sum of squared deviations, ``(n_spots, n_genes)``; undefined before the first prediction.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, mean: Any, squares: Any = 0.0, n: int = 1) -> None:
        """Add a prediction, or the moments of ``n`` predictions (Chan, Golub and LeVeque 1983)."""
        if not self.n:
            self.mean, self.squares, self.n = mean, squares, n
            return
        both = self.n + n
        difference = mean - self.mean
        self.mean = self.mean + difference * (n / both)
        self.squares = self.squares + squares + difference**2 * (self.n * n / both)
        self.n = both


def _fetch(x: Tensor) -> Callable[[], Tensor]:
    """Start copying to the host; the returned function waits for the copy."""
    if x.device.type != "cuda":
        return x.cpu
    on_host = x.to("cpu", non_blocking=True)
    arrival = torch.cuda.current_stream(x.device).record_event()

    def wait() -> Tensor:
        arrival.synchronize()
        return on_host

    return wait


def _pad(batch: Batch, n: int) -> Batch:
    """Repeat the last spot to fill the batch up to ``n`` spots."""
    return batch.take(torch.arange(n, device=batch.index.device).clamp(max=len(batch) - 1))


def _keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 32 MiB, which the system would otherwise map and clear again for each layer.

    glibc raises its mmap threshold after a large block is freed; allocate one to trigger that.
    """
    with suppress(RuntimeError):  # if out of memory, only speed is lost
        torch.empty(31 << 20, dtype=torch.uint8)


@contextmanager
def _exact_products(device: torch.device, precision: str) -> Iterator[None]:
    """Compute float32 exactly in float32, by the fastest backend; restore all settings afterwards."""
    with ExitStack() as stack:
        if device.type == "cpu" and precision == "float32" and _fast_path_is_exact():
            stack.enter_context(_setting(_matmul_of_onednn(), "bf16"))
        if device.type == "cuda" and hasattr(torch.backends.cudnn, "conv"):  # torch 2.9 and newer
            stack.enter_context(_setting(torch.backends.cudnn.conv, "ieee"))
        yield


@contextmanager
def _setting(backend: Any, value: str) -> Iterator[None]:
    """Set the precision of a backend, which all threads share: the last call that needs it restores what the first found."""
    with _settings_lock:
        n_users, before = _settings.get(backend, (0, backend.fp32_precision))
        _settings[backend] = n_users + 1, before
        backend.fp32_precision = value
    try:
        yield
    finally:
        with _settings_lock:
            n_users, before = _settings.pop(backend)
            if n_users > 1:
                _settings[backend] = n_users - 1, before
            else:
                backend.fp32_precision = before


def _matmul_of_onednn() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", None)  # new in torch 2.9


@cache
def _fast_path_is_exact() -> bool:
    """Whether products stay exact if oneDNN may use bfloat16. On some processors it does; then MKL is used.

    On other processors oneDNN computes in float32 anyway, on AMD's twice as fast as MKL.
    """
    if _matmul_of_onednn() is None:
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = [((256, 192), (192, 576)), ((6, 197, 64), (6, 64, 393)), ((6, 197, 393), (6, 393, 64))]
    pairs = [[torch.randn(shape, generator=generator) for shape in pair] for pair in shapes]
    with _setting(_matmul_of_onednn(), "bf16"):
        return all(bool(((a @ b).double() - a.double() @ b.double()).abs().max() < 1e-3) for a, b in pairs)
