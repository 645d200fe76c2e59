"""Work that is killed, raced and short of space leaves a whole result or none, and can be done again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TIMEOUT_S = 900  # for a busy machine
BAD = ("wrong or torn", "failed again", "left behind", "hang", "error", "poor error")


@pytest.mark.skipif(sys.platform == "win32", reason="signals and file systems of POSIX")
def test_faults_at_random_moments(warm: Any, tmp_path: Path) -> None:
    script, counts = Path(__file__).with_name("kills.py"), tmp_path / "counts.json"
    done = warm.run(script, "--json", counts, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(counts.read_text())
    assert len(found) == 5
    for name, kinds in found.items():
        assert kinds["inputs changed"] == 0, name
        for kind in ("kill", "race", "disk", "memory"):
            assert not {bad: kinds[kind][bad] for bad in BAD if kinds[kind].get(bad)}, (name, kind, done.stderr)
        assert kinds["kill"]["same result when run again"] == kinds["kill"]["kills"] >= 1
        assert kinds["race"]["same result when run again"] == 1
        assert kinds["race"]["done"] >= 1
    assert sum(kinds["kill"].get("while at work", 0) for kinds in found.values()) >= 3
