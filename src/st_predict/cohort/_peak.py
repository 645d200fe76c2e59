"""Peak memory of a process over a piece of work."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_mib", "reset_peak"]

_STATUS = Path("/proc/self/status")
_RESET = "5"  # resets the peak of resident memory, see proc(5)


def reset_peak() -> None:
    """Reset the peak to the present use, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET, encoding="ascii")


def peak_mib() -> float:
    """Return the largest resident memory since the last reset, in MiB; elsewhere than on Linux since the start."""
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), flags=re.MULTILINE):
            return int(found[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
