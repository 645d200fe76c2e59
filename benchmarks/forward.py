"""M2OST on a CPU: the published way beside ours, forward and in training.

    python benchmarks/forward.py [--quick] [--out forward.json]

Each variant runs in a fresh process, as a user's script does, variants interleaved over the rounds. Needs two cores, 10 GiB
and under 8 minutes; ``--quick`` takes one short round. Crops are cut from a simulated section, weights are the released.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import _measure
import numpy as np
import torch
from _measure import Goal
from _published import PublishedM2OST
from torch.nn import functional as F

from st_predict import checkpoints
from st_predict._runtime import Inference, pick_precision
from st_predict.crops import Batch
from st_predict.models import _attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from st_predict.models import SpotModel

CPU = torch.device("cpu")
PUBLISHED_BATCH = 32
GFLOP = 8.62  # of a spot, all of the published computation
FORWARD = ["published", "float32", "bfloat16", "bfloat16, fused attention"]
TRAINING = ["published step", "our step"]
RATES = ["float32 MKL", "float32 oneDNN", "bfloat16"]
GOALS = {
    "float32": [Goal(at_least=4), Goal(figure="error", at_most=1e-4), Goal(figure="peak MiB", at_most=1024)],
    "bfloat16": [
        Goal(at_least=7),
        Goal(figure="correlation", at_least=0.9999),
        Goal(figure="of bf16 rate", at_least=0.55),
        Goal(figure="peak MiB", at_most=1024),
    ],
    "our step": [Goal(at_least=2)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round with few spots")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--crops", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant is None:
        compare(args)
    elif args.variant == "agreement":
        agree(load_batch(args.crops))
    elif args.variant in FORWARD:
        forward(args.variant, load_batch(args.crops), quick=args.quick)
    else:
        train(args.variant, load_batch(args.crops), quick=args.quick)


def compare(args: argparse.Namespace) -> None:
    rounds = 1 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as folder:
        crops = Path(folder) / "crops.npy"
        np.save(crops, simulated_crops(*(2, 1200) if args.quick else (PUBLISHED_BATCH, 2400)))
        options = ["--crops", str(crops), *(["--quick"] if args.quick else [])]
        agreement = _measure.run_alone(__file__, "agreement", *options)
        samples = _measure.interleave(__file__, FORWARD, *options, rounds=rounds)
        steps = _measure.interleave(__file__, TRAINING, *options, rounds=min(rounds, 2))
    for variant, mine in samples.items():
        for sample in mine:
            sample.update(agreement.get(variant, {"error": 0.0, "correlation": 1.0}))
    rows = _measure.summarise(samples, figure="spots/s", reference="published", goals=GOALS)
    rows_of_steps = _measure.summarise(steps, figure="spots/s", reference="published step", goals=GOALS)
    columns = ["spots/s", "spread", "ratio", "of bf16 rate", "peak MiB", "page faults", "error", "correlation"]
    _measure.print_table(rows, columns, title="Forward, and its distance from the published computation in float32")
    _measure.print_table(rows_of_steps, columns[:3] + columns[4:6], title="Training step: forward, backward, Adam")
    rates = {name: statistics.median(s[name] for mine in samples.values() for s in mine) for name in RATES}
    print("\nMatrix products, GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    if args.out is not None:
        results = {"forward": rows, "training": rows_of_steps, "rates": rates}
        _measure.write_json(args.out, **results, samples=samples | steps)


def simulated_crops(n: int, side_px: int) -> np.ndarray:
    """Cut crops of three levels at random places of a simulated section, ``(3, n, 3, 224, 224)``."""
    import st_predict as stp  # only here: what is timed runs without the data containers

    (section,) = stp.datasets.simulate(1, 1, shape=(side_px, side_px)).sections.values()
    (image,) = section.images.values()
    pixels = np.asarray(image["scale0"]["image"] if "scale0" in image else image)
    centres = np.random.default_rng(0).integers(448, side_px - 448, (n, 2))
    levels = []
    for width in (1, 2, 4):
        side = 224 * width
        cut = np.stack([pixels[:, y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] for y, x in centres])
        levels.append(cut.reshape(n, 3, 224, width, 224, width).mean((3, 5)).astype(np.uint8))
    return np.stack(levels)


def load_batch(crops: Path) -> Batch:
    levels = torch.from_numpy(np.load(crops)).unbind()
    return Batch(crops=levels, index=torch.arange(len(levels[0])))


def forward(variant: str, batch: Batch, *, quick: bool) -> None:
    """Apply the network again and again, after a few spots that are not counted."""
    run = runner(variant)
    run(Batch(crops=tuple(crop[:8] for crop in batch.crops), index=batch.index[:8]))
    times, faults = [], _measure.page_faults()
    for _ in range(1 if quick or variant == "published" else 3):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    faults = _measure.page_faults() - faults
    speed = len(batch) / statistics.median(times)
    peak = _measure.peak_mib()
    rates = matrix_rates(512 if quick else 2048)
    figures = {"spots/s": speed, "of bf16 rate": speed * GFLOP / rates["bfloat16"], "peak MiB": peak}
    _measure.report(**figures, **{"page faults": faults / len(times)}, **rates)


def runner(variant: str) -> Callable[[Batch], Tensor]:
    network, _ = checkpoints.load(checkpoints.find_weights("m2ost@1"))
    if variant == "published":
        return published_way(network)
    inference = Inference(network, device=CPU, precision=variant.partition(",")[0])
    if "fused" not in variant:
        return inference

    def fused(batch: Batch) -> Tensor:
        with mock.patch.object(_attention, "_attend_in_products", fused_attention):
            return inference(batch)

    return fused


def fused_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, *, digested: bool) -> Tensor:
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    return _attention.digest(read) if digested else read


def published_way(network: SpotModel) -> Callable[[Batch], Tensor]:
    published = PublishedM2OST(network).eval()

    @torch.no_grad()
    def run(batch: Batch) -> Tensor:
        levels = [(crop.float() / 255).split(PUBLISHED_BATCH) for crop in batch.crops]
        return torch.cat([published(*part) for part in zip(*levels, strict=True)])

    return run


def matrix_rates(side: int) -> dict[str, float]:
    """GFLOP/s of the product of two square matrices."""
    a = torch.randn(side, side)
    rates = {"float32 MKL": matrix_rate(a), "bfloat16": matrix_rate(a.bfloat16())}
    torch.set_float32_matmul_precision("medium")
    return rates | {"float32 oneDNN": matrix_rate(a)}


def matrix_rate(a: Tensor) -> float:
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * len(a) ** 3 / statistics.median(times[2:]) / 1e9


def agree(batch: Batch) -> None:
    """Report the largest error, and the smallest correlation over the genes of a spot, against the published computation."""
    expected = runner("published")(batch)
    report: dict[str, Any] = {}
    for variant in FORWARD[1:]:
        ours = runner(variant)(batch)
        pairs = zip(ours.double(), expected.double(), strict=True)
        lowest = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)
        report[variant] = {"error": float((ours - expected).abs().max()), "correlation": lowest}
    _measure.report(**report)


def train(variant: str, batch: Batch, *, quick: bool) -> None:
    """Take a few steps; the first is not counted."""
    network, card = checkpoints.load(checkpoints.find_weights("m2ost@1"))
    n = 2 if quick else PUBLISHED_BATCH
    batch = Batch(crops=tuple(crop[:n] for crop in batch.crops), index=batch.index[:n])
    target = torch.zeros(n, len(card.genes))
    ours = variant == "our step"
    model: Any = network if ours else PublishedM2OST(network)
    inputs = [batch] if ours else [crop.float() / 255 for crop in batch.crops]
    half = ours and pick_precision("auto", CPU) == "bfloat16"
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-4)
    times, faults = [], 0
    for _ in range(2 if quick else 3):
        before, start = _measure.page_faults(), time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = F.mse_loss(model(*inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
        faults = _measure.page_faults() - before
    peak = _measure.peak_mib()
    _measure.report(**{"spots/s": n / statistics.median(times[1:]), "peak MiB": peak, "page faults": faults})


if __name__ == "__main__":
    main()
