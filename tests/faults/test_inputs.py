"""Bad inputs get the right result, a warning or a clear error."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("inputs.py")
TIMEOUT_S = 900  # for a busy machine
POOR = 0.02  # share of inputs


@pytest.mark.skipif(sys.platform == "win32", reason="alarms of POSIX")
def test_a_share_of_bad_inputs(warm: Any, tmp_path: Path) -> None:
    done = warm.run(SCRIPT, "--json", tmp_path / "counts.json", timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert len(counts) == 11
    total = {outcome: sum(kind.get(outcome, 0) for kind in counts.values()) for outcome in OUTCOMES}
    assert sum(total.values()) > 100
    assert all(total[outcome] == 0 for outcome in ("crash", "wrong", "hang", "changed")), done.stdout
    assert total["poor"] < POOR * sum(total.values()), done.stdout


OUTCOMES = ("right", "clear", "poor", "crash", "wrong", "hang", "changed")

JUDGED = """
import sys
sys.path.insert(0, {folder!r})
import tempfile, time
from pathlib import Path
import inputs
from inputs import Case, judge
from input_cases import make_bench, predict
import st_predict as stp

inputs.PATIENCE_S = 2
with tempfile.TemporaryDirectory() as folder:
    bench = make_bench(Path(folder))
    def outcome(call, says="mpp", spoil=lambda s: None, twin="prediction"):
        case = Case(kind="images", name="x", call=call, says=says, spoil=spoil, function=stp.tl.predict, twin=twin)
        return judge(case, bench)[0]
    def change(b):
        b.sdata["table"].X[0, 0] += 1
        return bench.twins["prediction"]
    def fail(error):
        raise error
    print(
        outcome(predict),
        outcome(lambda b: predict(b) + 1),
        outcome(lambda b: predict(b, mpp=-1.0)),
        outcome(lambda b: fail(stp._errors.InvalidValueError("No."))),
        outcome(lambda b: fail(KeyError("x"))),
        outcome(lambda b: time.sleep(9)),
        outcome(change),
        outcome(lambda b: None, twin=None),
    )
"""


@pytest.mark.skipif(sys.platform == "win32", reason="alarms of POSIX")
def test_each_outcome_is_recognised(warm: Any) -> None:
    done = warm.run(JUDGED.format(folder=str(SCRIPT.parent)), timeout=TIMEOUT_S)
    assert done.stdout.split() == ["right", "wrong", "clear", "poor", "crash", "hang", "changed", "wrong"], done.stderr


def test_the_page_has_the_counts_of_all_inputs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    row = re.search(r"\| all \| (\d+) \|(.*)\|", page)
    assert row is not None
    names = re.search(r"\| kind \| inputs \|(.*)\|", page)[1].split("|")
    counts = dict(zip([name.strip() for name in names], map(int, row[2].split("|")), strict=True))
    assert int(row[1]) == sum(counts.values()) >= 300
    assert counts["wrong"] == counts["hang"] == counts["changed"] == counts["crash"] == 0
    assert counts["poor"] < POOR * int(row[1])
