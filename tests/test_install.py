"""The script that installs a package into an empty environment and runs the example of README.md."""

from __future__ import annotations

import ast
import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
METADATA = "Metadata-Version: 2.1\nName: tried\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("try_install", ROOT / "scripts" / "try_install.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["try_install"] = module  # dataclasses look for it
    specification.loader.exec_module(module)
    return module


def wheel(folder: Path) -> Path:
    """A package with one number, as a wheel made by hand."""
    path = folder / "tried-1.0-py3-none-any.whl"
    files = {"tried.py": "ANSWER = 42\n" * 1000, "tried-1.0.dist-info/METADATA": METADATA}
    files["tried-1.0.dist-info/WHEEL"] = WHEEL
    record = "".join(f"{name},,\n" for name in [*files, "tried-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as file:
        for name, text in {**files, "tried-1.0.dist-info/RECORD": record}.items():
            file.writestr(name, text)
    return path


def test_the_example_is_that_of_the_readme(script: ModuleType) -> None:
    example = script.example_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert ast.parse(example)
    for part in ("import st_predict", "stp.tl.predict(", "stp.tl.evaluate(", "stp.pl.spatial("):
        assert part in example


def test_a_package_is_tried_where_nothing_else_is(script: ModuleType, tmp_path: Path) -> None:
    example = "import tried\nfrom pathlib import Path\nassert tried.ANSWER == 42\nassert list(Path().iterdir()) == [Path(__file__).relative_to(Path().resolve())]\n"
    absent = "import importlib.util\nassert importlib.util.find_spec('st_predict') is None\n"
    trial = script.try_out(sys.executable, wheel(tmp_path), example + absent)
    assert trial.python == ".".join(map(str, sys.version_info[:3]))
    assert trial.problems == ()
    assert 0.005 < trial.gigabytes < 0.1  # pip
    assert trial.row[:2] == [trial.python, "wheel"]
    assert len(trial.row) == len(script.HEADER)
    assert script.table([trial.row]).splitlines()[-1].startswith(f"| {trial.python} | wheel | {trial.packages} |")


def test_a_command_that_fails_says_why(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"-c 1 / 0 failed:[\s\S]*ZeroDivisionError"):
        script.run([sys.executable, "-c", "1 / 0"])


def test_sources_and_this_environment_are_not_seen(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, str(ROOT))
    shown = script.run([sys.executable, "-c", "import os; print(*os.environ)"], env={"MPLBACKEND": "agg"}).split()
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(shown)
    assert {"MPLBACKEND", "PATH"} <= set(shown)
