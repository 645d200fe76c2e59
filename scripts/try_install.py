"""Install wheel and sdist into empty environments, run the example of README.md in each, and print what it took.

python scripts/try_install.py python3.11 python3.12 python3.13

Each environment takes about 7 GB, one at a time, and is removed afterwards. The example needs section C6 of her2st in the cache or a
network, and runs in an empty folder. Ends with 1 if an installation, pip check or the example fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
HEADER = ["Python", "file", "packages", "GB", "install, s", "example, s", "pip check"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One file, installed into one empty environment."""

    python: str
    file: str
    packages: int
    gigabytes: float
    install_s: float
    example_s: float
    problems: tuple[str, ...]

    @property
    def row(self) -> list[str]:
        kind = "wheel" if self.file.endswith(".whl") else "sdist"
        sizes = [str(self.packages), f"{self.gigabytes:.1f}", f"{self.install_s:.0f}", f"{self.example_s:.0f}"]
        return [self.python, kind, *sizes, "; ".join(self.problems) or "clean"]


def example_of(readme: str) -> str:
    """Code of the section Example."""
    section = readme.split("\n## Example\n")[1]
    return re.search(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)[1]


def build(folder: Path) -> list[Path]:
    """Wheel and sdist of the working tree."""
    tools = make_environment(sys.executable, folder / "tools")
    run([tools, "-m", "pip", "install", "-q", "build"])
    run([tools, "-m", "build", "-q", "--outdir", folder / "dist", ROOT])
    return sorted((folder / "dist").iterdir())


def make_environment(python: str, folder: Path) -> Path:
    """Path of the Python of a new environment."""
    run([python, "-m", "venv", folder])
    return folder / "bin" / "python"


def try_out(python: str, file: Path, example: str) -> Trial:
    """Install a file and run the example; an exception says what failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, empty = make_environment(python, folder / "environment"), folder / "empty"
        empty.mkdir()
        version = run([ours, "-c", "import platform; print(platform.python_version())"]).strip()
        _, install_s = timed([ours, "-m", "pip", "install", "-q", file])
        check = subprocess.run([ours, "-m", "pip", "check"], check=False, capture_output=True, text=True)
        n_bytes = sum(path.lstat().st_size for path in (folder / "environment").rglob("*"))
        packages = run([ours, "-m", "pip", "list", "--format=freeze"]).split()
        (empty / "example.py").write_text(example, encoding="utf-8")
        _, example_s = timed([ours, "example.py"], cwd=empty, env={"MPLBACKEND": "agg"})
        return Trial(
            python=version,
            file=file.name,
            packages=len(packages),
            gigabytes=n_bytes / 1e9,
            install_s=install_s,
            example_s=example_s,
            problems=tuple(check.stdout.strip().splitlines()) if check.returncode else (),
        )


def timed(command: list[object], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> tuple[str, float]:
    start = perf_counter()
    return run(command, cwd=cwd, env=env), perf_counter() - start


def run(command: list[object], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Output of a command, which sees neither the packages of this Python nor the sources."""
    inherited = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd, env={**inherited, **(env or {})})
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [HEADER, ["---"] * len(HEADER), *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="interpreters to try")
    given = parser.parse_args(arguments)
    example = example_of((ROOT / "README.md").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        trials = []
        for file in build(Path(folder)):
            for python in given.pythons:
                trials.append(try_out(python, file, example))
                print(table([trials[-1].row]), file=sys.stderr, flush=True)
    print(table([trial.row for trial in sorted(trials, key=lambda one: (one.python, one.file))]))
    return 1 if any(trial.problems for trial in trials) else 0


if __name__ == "__main__":
    sys.exit(main())
