"""Commands of workflows and pages name what the repository has: files, extras, groups, programs and modules."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from st_predict.cli import app

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
MADE = {"dist/", "dist/*", "dist", "$file", "empty", "coverage.xml", "docs/_build/html", "."}
"""What commands make or loop over, and the project itself."""

OF_RUNNER = {"uv", "uvx", "python", "python3", "cd", "exec", "set", "test", "for", "done"}
"""Commands that are there before anything is installed."""

PROVIDED = {
    "lint-imports": "import-linter",
    "pre-commit": "pre-commit",
    "python": "python",
    "pip": "pip",
    "jupyter": "jupyterlab",
}
"""Distributions of programs and modules that are called otherwise."""

PLUGINS = {"pytest -n": "pytest-xdist", "--cov": "pytest-cov"}
"""Distributions of options of pytest."""


def runs_of(path: Path) -> list[list[str]]:
    """Commands of each job of a workflow."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [[line for step in job["steps"] for line in commands(step.get("run", ""))] for job in jobs]


def fenced(path: Path, languages: str = "bash|sh") -> str:
    blocks = re.findall(rf"^```(?:{languages})\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return "\n".join(blocks)


def commands(text: str) -> list[str]:
    """Single commands of a shell script."""
    text = re.sub(r"(^|\s)#.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    lines = [part.strip(" ()") for line in text.splitlines() for part in re.split(r"&&|\|\||;", line)]
    return [line for line in lines if line not in {"", "do"}]


def texts() -> dict[str, list[str]]:
    """Scripts whose commands belong together: one environment each."""
    read_the_docs = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text(encoding="utf-8"))
    pages = [ROOT / "README.md", ROOT / "docs" / "contributing.md", ROOT / "docs" / "installation.md"]
    found = {f"{path.name}-{i}": lines for path in WORKFLOWS for i, lines in enumerate(runs_of(path)) if lines}
    found |= {path.name: commands(fenced(path)) for path in pages}
    found[".ci/run"] = commands((ROOT / ".ci" / "run").read_text(encoding="utf-8").split("exec </dev/null")[1])
    found[".readthedocs.yaml"] = commands("\n".join(read_the_docs["build"]["jobs"]["install"]))
    return found


TEXTS = texts()
ALL = [(name, line) for name, lines in TEXTS.items() for line in lines]


def of_group(name: str) -> set[str]:
    entries = [entry for entry in GROUPS[name] if isinstance(entry, str)]
    included = [of_group(entry["include-group"]) for entry in GROUPS[name] if isinstance(entry, dict)]
    return {re.split(r"[=<>~]", entry)[0] for entry in entries}.union(*included)


def installed_by(lines: list[str]) -> set[str]:
    """Distributions that the commands ask for by name, and the project."""
    groups = {name for line in lines for name in re.findall(r"--group (\S+)", line)}
    named = {word for line in lines if " install " in line for word in shlex.split(line)}
    return {"st-predict", "python", "pip"}.union(named, *(of_group(name) for name in groups))


def test_there_are_commands_to_check() -> None:
    assert len(WORKFLOWS) == 4
    assert {name.partition("-")[0] for name in TEXTS} >= {"build.yaml", "docs.yaml", "release.yaml", "test.yaml"}
    assert len(ALL) > 50


@pytest.mark.parametrize(("text", "line"), ALL)
def test_extras_and_groups_exist(text: str, line: str) -> None:
    for extras in re.findall(r"(?:\.|st-predict|\$file)\[([\w,]+)\]", line):
        assert set(extras.split(",")) <= set(EXTRAS), text
    for group in re.findall(r"--group[ =](\S+)", line):
        assert group in GROUPS, text


@pytest.mark.parametrize(("text", "line"), ALL)
def test_files_and_folders_exist(text: str, line: str) -> None:
    for word in shlex.split(line):
        if word in MADE or word.startswith(("-", "http", "$", ".venv/", "bin/")) or "=" in word:
            continue
        if "/" in word or re.search(r"\.(py|toml|md|ya?ml)$", word):
            assert (ROOT / word).exists(), (text, word)


@pytest.mark.parametrize(("text", "line"), ALL)
def test_programs_are_installed_before_they_are_called(text: str, line: str) -> None:
    program, *words = shlex.split(line)
    if not program.startswith((".venv/bin/", "bin/")):
        assert program in OF_RUNNER | {"pip"}, text
        return
    name = program.rpartition("/")[2]
    if name == "python" and words[:1] == ["-m"]:
        name = words[1]
    if name == "st-predict":
        assert name in PROJECT["project"]["scripts"]
        assert words[0] in typer.main.get_command(app).commands, text
        return
    needed = {PROVIDED.get(name, name)} | {plugin for option, plugin in PLUGINS.items() if option in line}
    assert needed <= installed_by(TEXTS[text]), text


def test_programs_belong_to_these_distributions() -> None:
    """The table above, and names that are equal, against what is installed here."""
    for program, distribution in {"ruff": "ruff", "mypy": "mypy", "lint-imports": "import-linter"}.items():
        assert program in {path.name for path in metadata.files(distribution) or []}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_is_kept_is_made_before(path: Path) -> None:
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        done: list[str] = []
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/upload-artifact@"):
                makes = {"dist/": "uv build", "coverage.xml": "--cov-report=xml"}[step["with"]["path"]]
                assert any(makes in command for command in done)
            done += commands(step.get("run", ""))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_variables_are_set_where_they_are_used(path: Path) -> None:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for job in workflow["jobs"].values():
        matrix = {key for entry in job.get("strategy", {}).get("matrix", {}).get("include", []) for key in entry}
        for step in job["steps"]:
            run, loops = step.get("run", ""), set(re.findall(r"\bfor (\w+) in", step.get("run", "")))
            known = {*workflow.get("env", {}), *job.get("env", {}), *step.get("env", {}), *loops}
            assert set(re.findall(r"\$\{?(\w+)", run)) <= known, run
        assert set(re.findall(r"matrix\.(\w+)", str(job))) <= matrix
        needs = job.get("needs", [])
        assert {needs} if isinstance(needs, str) else set(needs) <= set(workflow["jobs"])


def test_each_package_is_tried_on_each_python() -> None:
    """As the classifiers name them."""
    build = next(command for command in re.findall(r"for python in (.+?);", WORKFLOWS[0].read_text(encoding="utf-8")))
    named = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["project"]["classifiers"]), flags=re.MULTILINE)
    assert WORKFLOWS[0].name == "build.yaml"
    assert build.split() == named
