"""What the benchmarks share: variants in fresh processes, interleaved over rounds, and a table of ratios with its goals.

A benchmark is a script with two ways to be called. With ``--variant NAME`` it runs that variant once and ends with
:func:`report`; without, it calls itself that way through :func:`interleave`, once a variant and round, so that a machine
that slows down does so for all of them. Needs Linux, for the peak of memory.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Sample = dict[str, Any]  # what one variant measured in one process


def report(**figures: Any) -> None:
    """Say what was measured, as the last line of this process."""
    print(json.dumps(figures), flush=True)


def run_alone(script: str, variant: str, *arguments: str) -> Sample:
    """Run ``python script --variant variant ...`` in a fresh process; return what it reports."""
    command = [sys.executable, script, "--variant", variant, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{variant} ended with {done.returncode}; what went wrong is above.")
    return json.loads(done.stdout.splitlines()[-1])


def interleave(script: str, variants: Sequence[str], *arguments: str, rounds: int) -> dict[str, list[Sample]]:
    """Run every variant once a round, each in a fresh process; return the samples of each, a round each."""
    samples: dict[str, list[Sample]] = {variant: [] for variant in variants}
    for i in range(rounds):
        for variant in variants:
            print(f"round {i + 1} of {rounds}: {variant}", file=sys.stderr, flush=True)
            samples[variant].append(run_alone(script, variant, *arguments))
    return samples


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on a figure of one row; ``"ratio"`` is that against the reference."""

    figure: str = "ratio"
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        bounds = [f"{sign} {b:g}" for sign, b in ((">=", self.at_least), ("<=", self.at_most)) if b is not None]
        return f"{self.figure} {' and '.join(bounds)}"


def summarise(
    samples: Mapping[str, Sequence[Sample]],
    *,
    figure: str,
    reference: str,
    goals: Mapping[str, Sequence[Goal]] | None = None,
) -> list[Sample]:
    """Medians of each variant, the spread of ``figure``, its ratio against the reference, and which goals are met.

    A ratio is the median over rounds of that within a round. The spread is that of the samples, largest less smallest,
    relative to the median.
    """
    rows = []
    for variant, mine in samples.items():
        values = [sample[figure] for sample in mine]
        row: Sample = {name: statistics.median(s[name] for s in mine) for name in mine[0]}
        row |= {"variant": variant, "spread": (max(values) - min(values)) / row[figure]}
        row["ratio"] = statistics.median(
            value / other[figure] for value, other in zip(values, samples[reference], strict=True)
        )
        wanted = (goals or {}).get(variant, ())
        row["goal"] = ", ".join(str(goal) for goal in wanted)
        row["met"] = ", ".join("yes" if goal.met(row[goal.figure]) else "NO" for goal in wanted)
        rows.append(row)
    return rows


def print_table(rows: Sequence[Sample], columns: Sequence[str], *, title: str) -> None:
    """Print the rows; ``columns`` are the figures to show between the variant and its goal."""
    shown = ["variant", *columns, "goal", "met"]
    cells = [shown] + [[_cell(name, row[name]) for name in shown] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "spread":
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def write_json(path: Path, **content: Any) -> None:
    """Write what was measured, with the machine and the day."""
    day = datetime.now(UTC).date().isoformat()
    path.write_text(json.dumps({"date": day, "machine": machine(), **content}, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def peak_mib() -> float:
    """Largest resident memory that this process has had; ``ru_maxrss`` would count that of the parent, too."""
    return _status_kib("VmHWM") / 1024


def resident_mib() -> float:
    """Resident memory of this process now."""
    return _status_kib("VmRSS") / 1024


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def page_faults() -> int:
    """Pages that this process had to be given so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
