"""Bad inputs, by kind, and what becomes of each: right, clear, poor, wrong, hang, crash or changed.

    python tests/faults/inputs.py                 # a share of each kind, as the tests run it
    python tests/faults/inputs.py --all --page    # all; writes the counts into docs/reliability.md

An input is spoiled in one way, a function is called, and what comes of it is judged by something that does not come from that call:

right
    The result is that of the valid twin of the input, or a warning names what is odd.
clear
    An error of the package, or of a file that is named. It names the value, and a way out: an argument of the function that was called, or
    what to do with the data.
poor
    An error that lacks one of these.
crash
    An error of another library, that does not say which input was wrong.
wrong
    Another result than that of the valid twin, without a word.
hang
    No answer in time.
changed
    The object of the caller is not what it was, apart from the slots of the result.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import json
import logging
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st_predict._errors import Advice, StPredictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from spatialdata import SpatialData

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
PATIENCE_S = 30
OUTCOMES = ("right", "clear", "poor", "crash", "wrong", "hang", "changed")
KINDS = (
    *(
        "images",
        "transformations",
        "spots",
        "tables",
        "arguments",
        "configurations",
        "cards",
        "slides",
        "legacy folders",
    ),
    *("gene lists", "command line"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A bad input.

    Parameters
    ----------
    kind, name
        What it is.
    call
        Calls the package with a bench, and returns a result to compare with ``twin``, or nothing.
    spoil
        Changes the object of the bench before that.
    says
        Pattern that an error, or a warning, must have: the value that is wrong, or the element that has it.
    function
        Function that is called, whose arguments are ways out.
    twin
        Name of the valid result; ``None`` where there is none, so that an error or a warning has to come.
    """

    kind: str
    name: str
    call: Callable[[Bench], Any]
    spoil: Callable[[SpatialData], Any] | None = None
    says: str = ""
    function: Callable[..., Any] | None = None
    twin: str | None = "prediction"


@dataclass
class Bench:
    """What cases work with: a fresh section, weights, and a folder."""

    folder: Path
    make: Callable[[], SpatialData]
    weights: Path
    twins: dict[str, Any] = field(default_factory=dict)
    sdata: Any = None
    n: int = 0

    def new(self) -> Path:
        """Return the path of a new folder."""
        self.n += 1
        path = self.folder / f"case{self.n}"
        path.mkdir()
        return path


class Hang(BaseException):
    """Not caught by what catches errors."""


@contextlib.contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Raise :class:`Hang` after some time."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Words(logging.Handler):
    """Collects warnings of the package."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text."""
        self.said.append(record.getMessage())


@contextlib.contextmanager
def listening() -> Iterator[Words]:
    """Collect warnings of the package, and of Python."""
    words, logger = Words(), logging.getLogger("st_predict")
    logger.addHandler(words)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield words
    finally:
        logger.removeHandler(words)


def digest(sdata: Any) -> str:
    """Hash of all that a user has in an object, without the slots of results."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        total.update(value if isinstance(value, bytes) else repr(value).encode())

    for name, image in sorted(sdata.images.items()):
        levels = (
            [v for s in image.children.values() for v in s.data_vars.values()]
            if hasattr(image, "children")
            else [image]
        )
        for level in levels:
            add((name, level.dims, level.shape, str(level.dtype), sorted(map(str, level.attrs))))
            with contextlib.suppress(Exception):  # pixels that cannot be read
                add(np.ascontiguousarray(level.data[:, :64, :64].compute(scheduler="synchronous")).tobytes())
    for name, shapes in sorted(sdata.shapes.items()):
        add((name, shapes.to_wkb().to_csv(), shapes.attrs))
    for name, table in sorted(sdata.tables.items()):
        if "st_predict" in table.uns and name in table.uns["st_predict"]:
            continue
        x = table.X.compute() if hasattr(table.X, "compute") else table.X
        x = x.toarray() if hasattr(x, "toarray") else x
        var = table.var[[c for c in table.var if not str(c).startswith("pred_")]]
        uns = {k: v for k, v in table.uns.items() if k != "st_predict"}
        layers = {k: np.asarray(v).tobytes() for k, v in table.layers.items() if not str(k).startswith("pred_")}
        obsm = {k: np.asarray(v).tobytes() for k, v in table.obsm.items() if not str(k).startswith(("pred_", "X_"))}
        add((name, table.obs.to_csv(), list(map(str, table.obs.dtypes)), var.to_csv(), repr(uns), layers, obsm))
        add(b"" if x is None else np.ascontiguousarray(x).tobytes())
    return total.hexdigest()


def state(bench: Bench) -> str:
    """Hash of the object of a bench; of one that is too odd to be read, nothing."""
    try:
        return "" if bench.sdata is None else digest(bench.sdata)
    except Exception:  # noqa: BLE001  # whatever an odd object raises
        return "odd"


def same(result: Any, twin: Any) -> bool:
    """Whether a result is that of the valid twin; arrays up to rounding."""
    if isinstance(twin, np.ndarray):
        return (
            isinstance(result, np.ndarray)
            and result.shape == twin.shape
            and np.allclose(result, twin, atol=1e-4, equal_nan=True)
        )
    return bool(result == twin)


def judge(case: Case, bench: Bench) -> tuple[str, str]:
    """Return the outcome of a case, and what was said."""
    bench.sdata = None
    if case.spoil is not None:
        bench.sdata = bench.make()
        case.spoil(bench.sdata)
    before = state(bench)
    with listening() as words:
        try:
            with patience(PATIENCE_S):
                result = case.call(bench)
        except Hang:
            return "hang", f"no answer in {PATIENCE_S} s"
        except (Exception, SystemExit) as error:  # noqa: BLE001  # judged
            outcome, said = _of_error(error, case), f"{type(error).__name__}: {error}"
        else:
            outcome, said = _of_result(result, case, bench, words.said)
    return ("changed", said) if state(bench) != before else (outcome, said)


def _of_result(result: Any, case: Case, bench: Bench, said: list[str]) -> tuple[str, str]:
    if case.twin is not None and same(result, bench.twins[case.twin]):
        return "right", "the result of the valid twin"
    if found := [text for text in said if re.search(case.says, text, re.IGNORECASE)]:
        return "right", found[0]
    return "wrong", f"{'another' if case.twin else 'a'} result without a word; said: {said}"


def _of_error(error: BaseException, case: Case) -> str:
    text = str(error)
    if isinstance(error, SystemExit):  # of a command, with its message
        text = str(error.code)
        ours = "This is a fault of st_predict" not in text
    else:
        ours = isinstance(error, StPredictError | OSError | MemoryError | ImportError)
    if not ours or not text:
        return "crash"
    named = re.search(case.says, text, re.IGNORECASE | re.DOTALL) is not None
    return "clear" if named and _shows_a_way(error, text, case) else "poor"


def _shows_a_way(error: BaseException, text: str, case: Case) -> bool:
    """Whether an error names an argument of the called function, or what to do with the data."""
    if isinstance(error, SystemExit):
        return (
            re.search(
                r"--\w|in Python|must|there (is|are)|no such file|get it again|name |choose|st-predict \w",
                text,
                re.IGNORECASE,
            )
            is not None
        )
    arguments = set(inspect.signature(case.function).parameters) if case.function is not None else set()
    if any(re.search(rf"\b{re.escape(name)}\b", text) for name in arguments):
        return True
    if isinstance(error, StPredictError):
        return (
            any(not isinstance(way, Advice) or way.argument in arguments for way in error.advice)
            or " must be " in text
            or (" there are " in text)
        )
    named = isinstance(error, FileNotFoundError | FileExistsError | PermissionError)
    return named or re.search(r"get (it|the file) again", text, re.IGNORECASE) is not None


def share(cases: list[Case], part: int) -> list[Case]:
    """Every ``part``-th case of each kind."""
    by_kind = defaultdict(list)
    for case in cases:
        by_kind[case.kind].append(case)
    return [case for own in by_kind.values() for case in own[::part]]


def run(
    cases: Iterable[Case], bench: Bench, *, tell: bool = False
) -> tuple[dict[str, Counter[str]], list[tuple[Case, str, str]]]:
    """Judge cases; return counts by kind, and the cases that are neither right nor clear."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    odd = []
    for case in cases:
        outcome, said = judge(case, bench)
        counts[case.kind][outcome] += 1
        if outcome not in {"right", "clear"}:
            odd.append((case, outcome, said))
        if tell:
            print(f"{outcome:8}{case.kind}: {case.name}: {' '.join(said.split())[:300]}")  # noqa: T201
    return counts, odd


def table_of(counts: dict[str, Counter[str]]) -> str:
    """Counts as a table in Markdown."""
    names = list(OUTCOMES)
    total: Counter[str] = sum(counts.values(), Counter())
    rows = [("all", total), *counts.items()]
    lines = [f"| kind | inputs | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    lines += [f"| {kind} | {own.total()} | {' | '.join(str(own[name]) for name in names)} |" for kind, own in rows]
    return "\n".join(lines)


def main() -> None:
    """Judge all cases, and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all cases, not a share of each kind")
    parser.add_argument("--kind", choices=KINDS, help="cases of one kind")
    parser.add_argument("--page", action="store_true", help=f"write the counts into {PAGE.name}")
    parser.add_argument("--tell", action="store_true", help="print every case")
    parser.add_argument("--json", type=Path, help="file for the counts")
    options = parser.parse_args()
    report = None if options.json is None else options.json.resolve()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from input_cases import all_cases, make_bench

    cases = [case for case in all_cases() if options.kind in {None, case.kind}]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        chosen = cases if options.all or options.kind else share(cases, 4)
        counts, odd = run(chosen, make_bench(Path(folder)), tell=options.tell)
    print(table_of(counts))  # noqa: T201
    for case, outcome, said in odd:
        print(f"{outcome}: {case.kind}: {case.name}: {' '.join(said.split())[:400]}")  # noqa: T201
    if report:
        report.write_text(json.dumps({kind: dict(own) for kind, own in counts.items()}))
    if options.page:
        write_page(counts, odd)


def _without_folders(said: str) -> str:
    """Text of an error for the page, without the temporary folder."""
    return f"`{re.sub(r'/tmp/[^/ ]+/', '', ' '.join(said.split()))[:200]}`"


def write_page(counts: dict[str, Counter[str]], odd: list[tuple[Case, str, str]]) -> None:
    """Put the counts and the cases that are not answered well into the page."""
    listed = "\n".join(
        f"- {case.kind}: {case.name} ({outcome}): {_without_folders(said)}" for case, outcome, said in odd
    )
    text = f"{table_of(counts)}\n\n{listed or 'None of these inputs is answered badly.'}\n"
    page = PAGE.read_text(encoding="utf-8")
    start, end = "<!-- counts of inputs -->\n", "<!-- end of counts -->"
    before, rest = page.split(start)
    PAGE.write_text(f"{before}{start}{text}{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
