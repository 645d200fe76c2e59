"""Put measured figures into docs/contributing/performance.md, and what a slide costs into docs/performance.md.

    python benchmarks/report.py crops.json forward.json end_to_end.json sections.json costs.json

Each file is what the benchmark of that name wrote with ``--out``; it is kept in ``benchmarks/results``, and its tables go
between the marks of that name in the page.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
USERS, CONTRIBUTORS = ROOT / "docs" / "performance.md", ROOT / "docs" / "contributing" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"

# Of each benchmark: its tables, and which figures of them are shown under which names.
TABLES: dict[str, dict[str, dict[str, str]]] = {
    "crops": {
        "rows": {
            "ms": "ms a spot",
            "spread": "spread",
            "ratio": "ratio",
            "against": "against",
            "growth_mib": "memory, MiB",
        },
        "pictures": {
            "ms": "ms a spot",
            "cpu_ms": "CPU ms a spot",
            "ratio": "ratio",
            "against": "against",
            "growth_mib": "memory, MiB",
            "more_mib": "more memory, MiB",
        },
    },
    "forward": {
        "forward": {
            "spots/s": "spots/s",
            "spread": "spread",
            "ratio": "ratio",
            "of bf16 rate": "of the bf16 rate",
            "peak MiB": "peak, MiB",
            "page faults": "page faults",
            "error": "largest error",
        },
        "training": {"spots/s": "spots/s", "spread": "spread", "ratio": "ratio", "peak MiB": "peak, MiB"},
    },
    "end_to_end": {
        "main": {"spots/s": "spots/s", "spread": "spread", "ratio": "ratio", "peak MiB": "peak, MiB"},
        "large": {"spots": "spots", "ms/spot": "ms a spot", "peak MiB": "peak, MiB"},
    },
    "sections": {
        "sections": {"ms a spot": "ms a spot", "ratio": "ratio", "data MiB": "data, MiB", "peak MiB": "peak, MiB"},
    },
    "assays": {
        "assays": {
            "spots": "spots",
            "centres s": "finding the centres, s",
            "predict s": "tl.predict, s",
            "CPU s": "of all threads, CPU s",
            "CPU ms a spot": "CPU ms a spot",
            "ratio": "ratio",
            "peak MiB": "peak, MiB",
        },
    },
    "costs": {
        "costs": {
            "spots": "spots",
            "seconds": "seconds",
            "spots/s": "spots/s",
            "ratio": "ratio",
            "peak MiB": "peak, MiB",
        },
    },
    "gpu": {
        "forward": {
            "spots/s": "spots/s",
            "spread": "spread",
            "ratio": "ratio",
            "of bf16 rate": "of the bf16 rate",
            "GPU MiB": "memory of the GPU, MiB",
            "error": "largest error",
        },
        "training": {"spots/s": "spots/s", "spread": "spread", "ratio": "ratio", "GPU MiB": "memory of the GPU, MiB"},
        "end_to_end, bfloat16": {"spots/s": "spots/s", "ratio": "ratio", "uploaded MiB": "copied to the GPU, MiB"},
        "models": {"spots/s": "spots/s", "of bf16 rate": "of the bf16 rate", "GPU MiB": "memory of the GPU, MiB"},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    for file in parser.parse_args().files:
        text = file.read_text(encoding="utf-8")
        figures = json.loads(text)
        figures.pop("samples", None)
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{file.stem}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        path = page_of(file.stem)
        page = fill(path.read_text(encoding="utf-8"), file.stem, render(file.stem, figures))
        if "profile" in figures:
            page = fill(page, "profile", stages(figures["profile"]))
        path.write_text(page, encoding="utf-8")


def page_of(name: str) -> Path:
    """Page with the figures of a benchmark."""
    return USERS if name == "costs" else CONTRIBUTORS


def fill(page: str, name: str, text: str) -> str:
    """Replace what stands between the marks of that name."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{page_of(name)} has no place for {name}.")
    return pattern.sub(lambda match: match[1] + text + match[2], page)


def render(name: str, figures: dict[str, Any]) -> str:
    machine = figures["machine"]
    device = figures.get("device", machine["processor"])
    where = f"{device}, {machine['cores']} cores, torch {machine['torch']}, {figures['date']}."
    tables = [table(figures[key], columns) for key, columns in TABLES[name].items() if key in figures]
    return "\n".join([*tables, f"*{where}*", ""])


def stages(seconds: dict[str, float]) -> str:
    lines = ["| | seconds |", "| --- | --- |", *(f"| {stage} | {time:.2f} |" for stage, time in seconds.items())]
    return "\n".join([*lines, "\n*One run of the section above, by `cProfile`, as the main thread sees it.*\n"])


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    judged = ["goal", "met"] if any(row["goal"] for row in rows) else []
    lines = [["", *columns.values(), *judged], ["---"] * (len(columns) + 1 + len(judged))]
    lines += [[row["variant"], *(cell(key, row.get(key, "")) for key in [*columns, *judged])] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name in {"spread", "of bf16 rate"}:
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
