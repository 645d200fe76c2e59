"""M2OST on a GPU: the published way beside ours; forward, from slide to predictions, in training, and what the GPU does.

    python benchmarks/gpu.py [--images FOLDER/*.jpg] [--out gpu.json] [--quick] [--device cpu]

Needs torch, numpy, Pillow and safetensors alone, of the package only ``specs``, ``crops`` and ``models``, and the minutes that
compilation takes. The slide is in memory, already decoded; weights are random. Without a GPU, or with ``--quick``, everything
is tiny and shows only that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _measure
import numpy as np
import torch
from _measure import Goal
from _published import PublishedM2OST
from PIL import Image
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from st_predict._runtime import Inference, pick_device
from st_predict.crops import Batch, iter_batches, plan_crops
from st_predict.models import get_spec, list_models
from st_predict.models.m2ost import M2OST, SPEC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from _measure import Sample
    from numpy.typing import NDArray
    from torch import Tensor

    from st_predict.crops import LevelPlan
    from st_predict.models import ModelSpec, SpotModel

    Run = Callable[[Batch], Tensor]
    Work = Callable[[], int]  # does something, and returns for how many spots

N_GENES = 250
CHUNK = 512
DOWNSAMPLES = (1, 2, 4)
MINUTES = 6.0  # after which nothing is compiled any more
MIB = 1 << 20
GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}  # as traces call it

PUBLISHED, EAGER = "published, float32", "bfloat16"
COMPILED, GRAPHS = "bfloat16, compiled", "bfloat16, CUDA graphs"
FAST = [Goal(at_least=6), Goal(figure="of bf16 rate", at_least=0.3), Goal(figure="correlation", at_least=0.9999)]
GOALS = {
    "float32": [Goal(figure="error", at_most=1e-4)],
    EAGER: FAST,
    COMPILED: FAST,
    GRAPHS: FAST,
    "cut on the device": [Goal(at_least=0.9)],
    "our step, bfloat16": [Goal(at_least=2)],
    "busy": [Goal(figure="share", at_least=0.95)],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much of everything.

    Parameters
    ----------
    hparams
        Of M2OST.
    grid, stride
        Spots along a side of the slide, and pixels from one to the next.
    batch, other_batches
        Spots a call.
    spots
        That a timed forward takes at least.
    rounds
        In which variants take turns.
    train_batch, steps
        Spots a step of training, and steps that are timed together.
    side
        Of the square matrices whose product gives the rate of the machine.
    """

    hparams: Mapping[str, Any]
    grid: int
    stride: int
    batch: int
    other_batches: Sequence[int]
    spots: int
    rounds: int
    train_batch: int
    steps: int
    side: int


FULL = Sizes(
    hparams=SPEC.hparams,
    grid=100,
    stride=112,
    batch=256,
    other_batches=(64, 1024),
    spots=2048,
    rounds=5,
    train_batch=96,
    steps=5,
    side=8192,
)
QUICK = Sizes(
    hparams=SPEC.tiny,
    grid=14,
    stride=60,
    batch=32,
    other_batches=(64,),
    spots=64,
    rounds=1,
    train_batch=8,
    steps=1,
    side=512,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What every part works with; ``failures`` collects what could not be measured, and why."""

    device: torch.device
    sizes: Sizes
    slide: MemoryPyramid
    plan: tuple[LevelPlan, ...]
    network: SpotModel
    rates: Mapping[str, float]
    deadline: float
    failures: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, function: Callable[[], Any]) -> Any | None:
        """Call what may not work on every machine, if there is time."""
        try:
            if time.monotonic() > self.deadline:
                raise TimeoutError("no time was left")
            return function()
        except Exception as error:  # noqa: BLE001  # whatever it is, the other variants are measured
            self.failures[name] = f"{type(error).__name__}: {error}"
            return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="RGB images to make the slide of")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="show that it runs")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    setup = make_setup(device, FULL if device.type == "cuda" and not args.quick else QUICK, args.images)
    results = compare(setup)
    for variant, error in setup.failures.items():
        print(f"\nNot measured: {variant}: {error}")
    if args.out is not None:
        _measure.write_json(
            args.out,
            device=device_name(device),
            rates=setup.rates,
            failures=setup.failures,
            spots=n_spots(setup),
            **results,
        )


def make_setup(device: torch.device, sizes: Sizes, images: Sequence[Path]) -> Setup:
    torch.set_float32_matmul_precision("highest")  # no TF32
    torch.manual_seed(0)  # noqa: TID251  # initial weights know no other generator
    slide = MemoryPyramid(make_slide(images, sizes.grid * sizes.stride))
    centres = (np.arange(sizes.grid) + 0.5) * sizes.stride
    xy = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    return Setup(
        device=device,
        sizes=sizes,
        slide=slide,
        plan=plan_crops(xy, SPEC.crop_for(sizes.hparams), downsamples=slide.downsamples),
        network=M2OST(N_GENES, **sizes.hparams).to(device).eval(),
        rates=matrix_rates(device, sizes.side),
        deadline=time.monotonic() + MINUTES * 60,
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"none, {device.type}"


def n_spots(setup: Setup) -> int:
    return len(setup.plan[0].origins)


def compare(setup: Setup) -> dict[str, Any]:
    """Measure everything; print a table each."""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in setup.rates.items())
    print(f"{device_name(setup.device)}, torch {torch.__version__}; matrix products, TFLOP/s: {rates}")
    check_crops(setup)
    rows, inferences = forward(setup)
    results: dict[str, Any] = {"forward": rows, "training": training(setup)}
    for part in (end_to_end, profiled):
        for name, inference in inferences.items():
            title = f"{part.__name__}, {name}"
            measure = partial(part, setup, name, inference)
            needed = part is end_to_end and name == EAGER
            results[title] = measure() if needed else setup.attempt(title, measure)
    return results | {"models": every_model(setup)}


# The slide.


class MemoryPyramid:
    """An image in memory, each level the means of 2 x 2 pixels of the one before, that is read in chunks."""

    def __init__(self, finest: NDArray[np.uint8]) -> None:
        self._levels = [finest]
        for _ in DOWNSAMPLES[1:]:
            self._levels.append(halved(self._levels[-1]))
        self.level_shapes = tuple(level.shape[1:] for level in self._levels)
        self.downsamples = tuple(map(float, DOWNSAMPLES))
        self.n_bytes_read: list[int] = []  # a number a read: threads may append at once

    def edges(self, level: int) -> tuple[NDArray[np.int64], ...]:
        return tuple(np.append(np.arange(0, side, CHUNK), side) for side in self.level_shapes[level])

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> NDArray[np.uint8]:
        pixels = self._levels[level][:, y : y + height, x : x + width]
        self.n_bytes_read.append(pixels.nbytes)
        return pixels.transpose(1, 2, 0)


def halved(level: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sums = sum(level[:, y::2, x::2].astype(np.uint16) for y in (0, 1) for x in (0, 1))
    return ((sums + 2) // 4).astype(np.uint8)


def make_slide(images: Sequence[Path], side: int) -> NDArray[np.uint8]:
    """``(3, side, side)``: strips of the images, tiled with flips, or a synthetic one."""
    if not images:
        return synthetic(side)
    Image.MAX_IMAGE_PIXELS = None
    bounds = np.linspace(0, side, len(images) + 1).astype(int)
    strips = [strip(path, side, right - left) for path, (left, right) in zip(images, pairwise(bounds), strict=True)]
    return np.ascontiguousarray(np.concatenate(strips, axis=1).transpose(2, 0, 1))


def synthetic(side: int) -> NDArray[np.uint8]:
    rng, slope = np.random.default_rng(0), np.linspace(0, 160, side, dtype=np.float32)
    noise = rng.integers(0, 64, (3, side, side), dtype=np.uint8)
    return noise + (slope[:, None] / 2 + slope / 2).astype(np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None] * 10


def strip(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, cols = (there_and_back(length, n) for length, n in zip(pixels.shape, (height, width), strict=False))
    return pixels[rows][:, cols]


def there_and_back(length: int, n: int) -> NDArray[np.int64]:
    """The middle ``n`` of ..., 1, 0, 0, 1, ..., ``length`` - 1, ``length`` - 1, ..."""
    forth = (np.arange(n) + (length - n) // 2) % (2 * length)
    return np.minimum(forth, 2 * length - 1 - forth)


# The clock.


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(work: Work, device: torch.device) -> float:
    """Return spots a second."""
    synchronize(device)
    start = time.perf_counter()
    n = work()
    synchronize(device)
    return n / (time.perf_counter() - start)


def warm(work: Callable[[], Any], device: torch.device) -> Sample:
    """Do it for the first time; return how long that took, and how much memory of the GPU on top of what was held."""
    held = 0
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"start s": seconds, "GPU MiB": (peak - held) / MIB}


def interleaved(works: Mapping[str, Work], known: Mapping[str, Sample], setup: Setup) -> dict[str, list[Sample]]:
    """Measure in turns; a sample has what is ``known`` of its variant, too."""
    samples: dict[str, list[Sample]] = {name: [] for name in works}
    for _ in range(setup.sizes.rounds):
        for name, work in works.items():
            speed = clock(work, setup.device)
            samples[name].append({"spots/s": speed} | known[name])
    return samples


def matrix_rates(device: torch.device, side: int) -> dict[str, float]:
    """TFLOP/s of the product of two square matrices."""
    a = torch.randn(side, side, device=device)
    return {name: matrix_rate(a.to(dtype)) for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32))}


def matrix_rate(a: Tensor, n: int = 5) -> float:
    def multiply() -> int:
        for _ in range(n):
            a @ a
        return n

    multiply()
    return 2 * len(a) ** 3 / 1e12 * float(np.median([clock(multiply, a.device) for _ in range(5)]))


def gflop(function: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / 1e9


# Forward.


def check_crops(setup: Setup) -> None:
    """Crops of the device are those of the host, bit for bit."""
    cut = partial(iter_batches, setup.slide, setup.plan, batch_size=setup.sizes.batch)
    for host, device in zip(cut(), cut(device=setup.device), strict=True):
        assert torch.equal(host.index, device.index)
        for a, b in zip(host.crops, device.crops, strict=True):
            assert b.device.type == setup.device.type
            assert torch.equal(a.to(b.device), b)
    print(f"Crops of {n_spots(setup)} spots, cut on the device and on the host, are the same.")


def first_batch(setup: Setup, n: int) -> Batch:
    """Crops of ``n`` spots, on the device."""
    return next(iter_batches(setup.slide, setup.plan, batch_size=n, device=setup.device)).to(setup.device)


def forward(setup: Setup) -> tuple[list[Sample], dict[str, Inference]]:
    """Apply the network to crops on the device. Returns our runners, too: with and without graphs, for the usual batch."""
    sizes = setup.sizes
    batches = {n: first_batch(setup, n) for n in (sizes.batch, *sizes.other_batches)}
    usual = batches[sizes.batch]
    published = published_way(setup.network)
    exact, spot = published(usual), replace(usual, crops=tuple(crop[:1] for crop in usual.crops))
    of_spot = gflop(lambda: published(spot))
    runs, known = {}, {}
    for name, (n, build) in ways(setup).items():
        make = partial(prepare, build, batches[n], setup.device)
        found = setup.attempt(name, make) if name.startswith((COMPILED, GRAPHS)) else make()
        if found is not None:
            runs[name], cost, values = found
            known[name] = cost | distance(values[: len(exact)], exact[: len(values)])
    works = {name: partial(again, run, batches[ways(setup)[name][0]], sizes.spots) for name, run in runs.items()}
    rows = _measure.summarise(
        with_rate(interleaved(works, known, setup), dict.fromkeys(runs, of_spot), setup),
        figure="spots/s",
        reference=PUBLISHED,
        goals=GOALS,
    )
    columns = ["spots/s", "spread", "ratio", "of bf16 rate", "GPU MiB", "start s", "error", "correlation"]
    title = f"Forward, {of_spot:.3g} GFLOP a spot, batches of {sizes.batch} unless said, and distance from {PUBLISHED}"
    _measure.print_table(rows, columns, title=title)
    return rows, {name: runs[name] for name in (EAGER, GRAPHS) if name in runs}


def ways(setup: Setup) -> dict[str, tuple[int, Callable[[], Run]]]:
    """Ways to apply the network: spots a batch, and how to make what does it."""
    n, network = setup.sizes.batch, setup.network
    low = partial(Inference, device=setup.device, precision="bfloat16")
    found: dict[str, tuple[int, Callable[[], Run]]] = {
        PUBLISHED: (n, partial(published_way, network)),
        "float32": (n, partial(Inference, network, device=setup.device, precision="float32", working_batch=n)),
        EAGER: (n, partial(low, network, working_batch=n)),
    }
    sizes = (n, *setup.sizes.other_batches)
    found |= {f"{EAGER}, batch {other}": (other, partial(low, network, working_batch=other)) for other in sizes[1:]}
    if setup.device.type != "cuda":  # elsewhere it takes a minute and gains nothing
        return found
    found[COMPILED] = n, lambda: low(torch.compile(network, dynamic=False), working_batch=n)
    for other in sizes:
        name = GRAPHS if other == n else f"{GRAPHS}, batch {other}"
        found[name] = other, partial(low, network, working_batch=other, compile=True)
    return found


def published_way(network: SpotModel) -> Run:
    published = PublishedM2OST(network).eval()

    @torch.no_grad()
    def run(batch: Batch) -> Tensor:
        return published(*(crop.float() / 255 for crop in batch.crops))

    return run


def prepare(build: Callable[[], Run], batch: Batch, device: torch.device) -> tuple[Run, Sample, Tensor]:
    """Make a runner and call it until it is compiled, captured and replayed; return it, what that took, and its values."""
    run, values = None, torch.empty(0)

    def start() -> None:
        nonlocal run, values
        run = build()
        for _ in range(3):
            values = run(batch)

    cost = warm(start, device)
    return run, cost, values


def again(run: Run, batch: Batch, n_spots: int) -> int:
    """Call it for as many spots or a few more."""
    n_calls = -(-n_spots // len(batch))
    for _ in range(n_calls):
        run(batch)
    return n_calls * len(batch)


def distance(values: Tensor, exact: Tensor) -> Sample:
    """Largest error, and smallest correlation over the genes of a spot."""
    pairs = torch.stack([values, exact], dim=1).double()
    lowest = min(float(torch.corrcoef(pair)[0, 1]) for pair in pairs)
    return {"error": float((pairs[:, 0] - pairs[:, 1]).abs().max()), "correlation": lowest}


def with_rate(
    samples: Mapping[str, Sequence[Sample]], of_spot: Mapping[str, float], setup: Setup
) -> dict[str, list[Sample]]:
    """Add the share of the rate of matrix products in bfloat16."""
    return {
        name: [s | {"of bf16 rate": s["spots/s"] * of_spot[name] / 1e3 / setup.rates["bf16"]} for s in mine]
        for name, mine in samples.items()
    }


# From the slide to predictions.


def end_to_end(setup: Setup, name: str, inference: Inference) -> list[Sample]:
    """All spots of the slide, beside the network alone on crops that are on the device."""
    cut = partial(iter_batches, setup.slide, setup.plan, batch_size=setup.sizes.batch)
    works: dict[str, Work] = {
        "network alone": partial(again, inference, first_batch(setup, setup.sizes.batch), n_spots(setup)),
        "cut on the device": lambda: len(predict(inference, cut(device=setup.device), n_spots(setup))),
        "cut on the host": lambda: len(predict(inference, cut(), n_spots(setup))),
        "crops alone, on the device": lambda: sum(map(len, cut(device=setup.device))),
        "crops alone, on the host": lambda: sum(map(len, cut())),
    }
    check_predictions(inference, cut(device=setup.device), predict(inference, cut(), n_spots(setup)))
    known = {variant: warm(work, setup.device) for variant, work in works.items()}
    setup.slide.n_bytes_read.clear()
    works["crops alone, on the device"]()
    read = sum(setup.slide.n_bytes_read) / MIB
    crops = n_spots(setup) * sum(3 * level.size**2 for level in setup.plan) / MIB
    for variant, mine in known.items():
        mine["uploaded MiB"] = read if "device" in variant else crops if variant == "cut on the host" else 0.0
    rows = _measure.summarise(
        interleaved(works, known, setup), figure="spots/s", reference="network alone", goals=GOALS
    )
    title = f"{n_spots(setup)} spots from slide to predictions, {name}; all crops are {crops:,.0f} MiB, the slide {read:,.0f}"
    _measure.print_table(rows, ["spots/s", "spread", "ratio", "GPU MiB", "uploaded MiB"], title=title)
    return rows


def check_predictions(inference: Inference, batches: Iterable[Batch], values: Tensor) -> None:
    """What came while something else was computed is what comes when nothing else is."""
    for batch in batches:
        torch.testing.assert_close(values[batch.index], inference(batch).cpu(), atol=0.01, rtol=0.01)


def predict(inference: Inference, batches: Iterable[Batch], n: int) -> Tensor:
    """Collect the predictions of all batches on the host, ``(n, n_genes)``."""
    values = torch.full((n, N_GENES), torch.nan)
    for index, part in inference.over(batches):
        values[index] = part
    return values


# Training.


def training(setup: Setup) -> list[Sample]:
    """Forward, backward and Adam, on crops that are on the device."""
    batch = first_batch(setup, setup.sizes.train_batch)
    levels = [crop.float() / 255 for crop in batch.crops]
    fresh = partial(M2OST, N_GENES, **setup.sizes.hparams)
    works = {
        "published step, float32": step(setup, PublishedM2OST(fresh()), levels, low=False),
        "our step, float32": step(setup, fresh(), [batch], low=False),
        "our step, bfloat16": step(setup, fresh(), [batch], low=True),
    }
    known = {variant: warm(work, setup.device) for variant, work in works.items()}
    rows = _measure.summarise(
        interleaved(works, known, setup), figure="spots/s", reference="published step, float32", goals=GOALS
    )
    title = f"Training: forward, backward, Adam; batches of {len(batch)}"
    _measure.print_table(rows, ["spots/s", "spread", "ratio", "GPU MiB"], title=title)
    return rows


def step(setup: Setup, network: torch.nn.Module, inputs: Sequence[Any], *, low: bool) -> Work:
    network = network.to(setup.device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    target = torch.randn(setup.sizes.train_batch, N_GENES, device=setup.device)

    def work() -> int:
        for _ in range(setup.sizes.steps):
            with torch.autocast(setup.device.type, dtype=torch.bfloat16, enabled=low):
                loss = F.mse_loss(network(*inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return setup.sizes.steps * len(target)

    return work


# What the GPU does.


def profiled(setup: Setup, name: str, inference: Inference, *, skipped: int = 3, n_batches: int = 12) -> dict[str, Any]:
    """Record some batches on the way from slide to predictions, when the first have passed."""
    batches = iter_batches(setup.slide, setup.plan, batch_size=setup.sizes.batch, device=setup.device)
    predictions = inference.over(batches)
    for _ in islice(predictions, skipped):
        pass
    on_gpu = setup.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        for _ in islice(predictions, n_batches):
            pass
        synchronize(setup.device)
    predictions.close()
    events = trace(recorded, GPU_WORK if on_gpu else {"cpu_op"})
    if not events:
        raise RuntimeError("the profiler saw nothing of the GPU")
    busy = busy_share(events)
    rows = [{"variant": "busy", "share": busy, "calls": len(events), "ms": sum(e["dur"] for e in events) / 1e3}]
    goals = GOALS["busy"]
    rows[0] |= {"goal": str(goals[0]), "met": "yes" if goals[0].met(busy) else "NO"}
    rows += largest(events)
    what = "GPU" if on_gpu else "no GPU: operators, the outer with the inner ones,"
    title = f"From slide to predictions, {name}: {what} in {n_batches} batches of {setup.sizes.batch}"
    _measure.print_table(rows, ["share", "calls", "ms"], title=title)
    return {"busy": busy, "largest": rows[1:]}


def trace(recorded: profile, categories: set[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return sorted((e for e in events if e.get("cat") in categories and "dur" in e), key=lambda e: e["ts"])


def busy_share(events: Sequence[dict[str, Any]]) -> float:
    """Part of the time, from the first event to the end of the last, in which there is any."""
    busy, end = 0.0, events[0]["ts"]
    for event in events:
        stop = event["ts"] + event["dur"]
        busy += max(0.0, stop - max(end, event["ts"]))
        end = max(end, stop)
    return busy / (end - events[0]["ts"])


def largest(events: Sequence[dict[str, Any]], n: int = 12) -> list[Sample]:
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        times[event["name"]] += event["dur"]
        calls[event["name"]] += 1
    return [
        {
            "variant": name[:100],
            "share": time_us / times.total(),
            "calls": calls[name],
            "ms": time_us / 1e3,
            "goal": "",
            "met": "",
        }
        for name, time_us in times.most_common(n)
    ]


# The other networks.


def every_model(setup: Setup) -> list[Sample]:
    """Each registered network on noise, at its published size; a solution in closed form is none."""
    rows = []
    for name in list_models():
        if get_spec(name).closed_form:
            continue
        rows += setup.attempt(name, partial(model_rows, setup, name)) or []
    columns = ["spots/s", "spread", "ratio", "of bf16 rate", "GPU MiB"]
    _measure.print_table(rows, columns, title=f"Every network; batches, or sections, of {setup.sizes.batch} spots")
    return rows


def model_rows(setup: Setup, name: str) -> list[Sample]:
    spec = get_spec(name)
    hparams = spec.hparams if setup.sizes is FULL else spec.tiny
    batch = noise(spec, hparams, setup)
    network = spec.build(n_genes=N_GENES, **hparams).to(setup.device).eval()
    network.finalize([replace(batch, target=torch.rand(len(batch), N_GENES, device=setup.device))])
    of_spot = gflop(lambda: network(batch)) / len(batch)
    works, known = {}, {}
    for precision in ("float32", "bfloat16"):
        build = partial(
            Inference,
            network,
            device=setup.device,
            precision=precision,
            working_batch=setup.sizes.batch,
            scope=spec.scope,
        )
        run, cost, _ = prepare(build, batch, setup.device)
        works[f"{name}, {precision}"] = partial(again, run, batch, setup.sizes.spots)
        known[f"{name}, {precision}"] = cost
    samples = with_rate(interleaved(works, known, setup), dict.fromkeys(works, of_spot), setup)
    return _measure.summarise(samples, figure="spots/s", reference=f"{name}, float32")


def noise(spec: ModelSpec, hparams: Mapping[str, Any], setup: Setup) -> Batch:
    """Spots on a lattice whose crops are noise."""
    n, device = setup.sizes.batch, setup.device
    index = torch.arange(n, device=device)
    grid = torch.stack([index // 16, index % 16], dim=1)
    crops = tuple(
        torch.randint(0, 256, (n, 3, level.size, level.size), dtype=torch.uint8, device=device)
        for level in spec.crop_for(hparams).levels
    )
    return Batch(crops=crops, index=index, grid=grid, xy_um=grid * 100.0)


if __name__ == "__main__":
    main()
