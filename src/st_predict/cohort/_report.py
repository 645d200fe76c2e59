"""Report of a run: one row per slide, appended as slides end, and a file per failure."""

from __future__ import annotations

import csv
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_predict._errors import Advice, InvalidValueError
from st_predict._files import whole
from st_predict._version import __version__
from st_predict.cohort._job import FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from st_predict.cohort._job import Outcome, SlideJob

__all__ = ["COLUMNS", "Report"]

COLUMNS = (
    *("id", "status", "spots", "mpp", "mpp_source", "seconds", "peak_mib", "reused", "attempts", "key", "error"),
)
"""Columns of the report."""

_LONGEST = 4096  # bytes of a header


@dataclass(frozen=True, slots=True)
class Report:
    """Report in an output folder.

    Parameters
    ----------
    path
        The CSV file.
    failures
        Folder of the files with tracebacks.
    """

    path: Path
    failures: Path

    @classmethod
    def begin(cls, path: Path, failures: Path) -> Report:
        """Write the header; rows of slides that are not in this run are not kept.

        Raises
        ------
        ValueError
            If there is a file of this name other than a report.
        """
        _refuse_other(path)
        with whole(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(COLUMNS)
        return cls(path, failures)

    def add(self, outcome: Outcome) -> None:
        """Append a row, on disk when the function returns."""
        row = {name: value for name, value in asdict(outcome).items() if name in COLUMNS}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def note_failure(self, job: SlideJob, outcome: Outcome) -> None:
        """Write the traceback of a failed slide, or remove the one of an earlier run."""
        path = self.failures / f"{outcome.id}.json"
        if outcome.status != FAILED:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        self.failures.mkdir(exist_ok=True)
        names = ("id", "key", "kind", "error", "attempts", "seconds", "peak_mib", "traceback")
        found = {name: value for name, value in asdict(outcome).items() if name in names}
        with whole(path) as fresh:
            text = json.dumps({**found, "path": str(job.slide.path), "version": __version__}, indent=1)
            fresh.write_text(text + "\n", encoding="utf-8")

    def earlier_failure(self, job: SlideJob) -> dict[str, Any] | None:
        """Return the record of the same work's failure in an earlier run, if there is one."""
        try:
            found = json.loads((self.failures / f"{job.slide.id}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("key") == job.key else None

    def read(self) -> pd.DataFrame:
        """Return the rows."""
        numbers = ("mpp", "seconds", "peak_mib")
        frame = pd.read_csv(
            self.path,
            keep_default_na=False,
            na_values={name: ["", "nan"] for name in numbers},
            dtype={"id": str, "key": str, **dict.fromkeys(numbers, float)},
        )
        return frame.set_index("id")


def _refuse_other(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        if file.readline(_LONGEST).decode(errors="replace").strip() in {",".join(COLUMNS), ""}:
            return
    raise InvalidValueError(
        f"{str(path)!r} is not a report of a cohort. It is not replaced.",
        "move it away",
        Advice("choose another folder in {}", "out"),
    )
