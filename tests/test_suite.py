"""What the tests share works as they take it to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from spatialdata.transformations import Scale, get_transformation, set_transformation

TESTS = """
import time, pytest

@pytest.fixture
def slow():
    time.sleep({seconds})

def test_one(slow): pass

@pytest.mark.parametrize("n", [1, 2])
def test_more(n): assert n > {least}
"""

RUN = """
import importlib.util, os, sys, pytest
specification = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(specification)
specification.loader.exec_module(shared)
shared.LONG_S = float(sys.argv[3])
folder = sys.argv[2]
sys.exit(pytest.main([folder, "-c", os.devnull, "--rootdir", folder, "-q", "-p", "no:cacheprovider"], plugins=[shared]))
"""


@pytest.mark.slow
def test_a_long_run_names_the_files_that_took_longest(warm: Any, tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text(TESTS.format(seconds=0.3, least=0))
    (tmp_path / "test_fast.py").write_text(TESTS.format(seconds=0, least=1))  # one of its tests fails
    shared = Path(__file__).with_name("conftest.py")
    done = warm.run(RUN, shared, tmp_path, 0.1)
    assert done.returncode == 1, done.stderr
    listed = re.findall(r"^ +([\d.]+) s  (.*)$", done.stdout, flags=re.MULTILINE)
    assert [name for _, name in listed] == ["test_slow.py", "test_fast.py"]
    assert float(listed[0][0]) >= 0.3
    assert "slowest files" not in warm.run(RUN, shared, tmp_path, 1000).stdout


def test_programs_have_a_main_arguments_and_files_of_their_own(
    warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import os, sys; print(__name__, sys.argv[1:], os.environ.get('X'), os.getcwd()); print('odd', file=sys.stderr)"
    )
    done = warm.run(code, 1, "b", environment=os.environ | {"X": "y"})
    assert (done.returncode, done.stderr) == (0, "odd\n")
    assert done.stdout == f"__main__ ['1', 'b'] y {tmp_path}\n"
    assert warm.run("import os; os.environ['X'] = 'z'; import sys; sys.modules['left'] = sys").returncode == 0
    assert warm.run("import os, sys; print('X' in os.environ, 'left' in sys.modules)").stdout == "False False\n"


def test_programs_end_as_python_does(warm: Any, tmp_path: Path) -> None:
    assert warm.run("raise SystemExit(3)").returncode == 3
    failed = warm.run("1 / 0")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    late = f"import atexit; from pathlib import Path; atexit.register(Path({str(tmp_path / 'late')!r}).touch)"
    assert warm.run(late).returncode == 0
    assert (tmp_path / "late").exists()
    sleeping = warm.start("import time; time.sleep(600)")
    assert sleeping.poll() is None
    sleeping.kill()
    assert sleeping.poll() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(sleeping.pid, 0)


@pytest.mark.parametrize("time", [1, 2])
def test_tests_do_not_share_a_section(sdata: Any, time: int) -> None:
    """Whatever the first does to its section, the second one gets it as it was."""
    image, table, shapes = sdata["he"]["scale0"]["image"], sdata["table"], sdata["spots"]
    assert "changed" not in image.attrs
    assert "changed" not in table.obs
    assert float(table.X.sum()) == 0
    assert shapes["radius"].iloc[0] == 10
    assert int(image.data[0, 0, 400]) == 100
    assert "changed" not in get_transformation(image, get_all=True)
    set_transformation(image, Scale([3.0, 3.0], axes=("x", "y")), "changed")
    image.attrs["changed"] = table.obs["changed"] = time
    table.X[:] = 1
    shapes.loc[:, "radius"] = 5.0
    sdata["he"]["scale0"]["image"].data = image.data * 0
    sdata.shapes["more"] = sdata.shapes.pop("spots")


HANDING_OUT = """
import importlib.util, sys
specification = importlib.util.spec_from_file_location("shared", sys.argv[1])
specification.loader.exec_module(importlib.util.module_from_spec(specification))
print(sorted({"anndata", "spatialdata", "torch"} & set(sys.modules)))
"""


def test_the_process_that_hands_out_tests_starts_at_once() -> None:
    """It runs no test, and the workers wait for it."""
    command = [sys.executable, "-c", HANDING_OUT, Path(__file__).with_name("conftest.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
