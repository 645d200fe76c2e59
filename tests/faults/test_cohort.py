"""Cohorts survive killed workers and runs, races, full and read-only disks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TIMEOUT_S = 900  # for a busy machine


@pytest.mark.skipif(sys.platform == "win32", reason="signals and file systems of POSIX")
def test_a_cohort_on_real_processes(warm: Any) -> None:
    done = warm.run(Path(__file__).with_name("cohort.py"), timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    n = found["slides"]
    assert found["equal"] == {"workers": 2, "done": n, "differing": []}
    for case in found["killed worker"]:
        assert case == {"killed": 1, "done": n, "differing": [], "left behind": []}
    assert found["poisoned"] == {"failed": ["S0"], "differing": ["S0"]}
    for case in found["killed driver"]:
        assert case["killed at work"]
        assert 1 <= case["kept"] < n
        assert case["again"] == ["done", case["kept"], n]  # results that were there are not computed again
        assert case["differing"] == case["left behind"] == []
    assert found["race"]["done"] >= 1
    assert found["race"]["done"] + found["race"]["refused"] == 2
    assert found["race"]["differing"] == []
    if found["full disk"] != "skipped":
        assert found["full disk"]["end"][0] == "OSError"
        assert "Finished slides are kept" in found["full disk"]["end"][1]
        assert found["full disk"]["again"] == ["done", found["full disk"]["kept"], n]
        assert found["full disk"]["differing"] == []
        assert found["read-only"]["end"][0] == "OSError"
        assert "Cannot write results to" in found["read-only"]["end"][1]
