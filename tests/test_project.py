"""What a project needs beside its code: workflows, recipe, licences, gaps, and texts that fit on a page."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from st_predict import checkpoints, datasets

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PAGES = ROOT / "docs" / "contributing"
WEIGHTS = ROOT / "src" / "st_predict" / "checkpoints" / "weights"
BUILT = {"_build", "cli", "models"}
"""Folders of ``docs`` that are written when the documentation is built."""

TEXTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if BUILT.isdisjoint(path.relative_to(ROOT).parts)),
]
WIDEST = 88  # columns of a line of code that PyPI and the documentation show without scrolling
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA_NAMES = {
    "huggingface-hub": "huggingface_hub",
    "matplotlib": "matplotlib-base",
    "openslide-bin": "openslide",
    "torch": "pytorch",
}
OTHER_BOUNDS = {"openslide": ">=4.0.1"}  # the wheel has a fourth number of its own


def read_yaml(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


WORKFLOWS = {path.stem: read_yaml(path) for path in sorted((GITHUB / "workflows").glob("*"))}


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def requirement(text: str) -> tuple[str, str]:
    """Name and bound of ``"numpy>=2"`` or ``"numpy >=2"``."""
    name, bound = re.fullmatch(r"([\w.-]+) ?([=>].*)", text).groups()
    return name, bound


# Workflows


def test_the_workflows_are_those_of_the_page() -> None:
    assert sorted(WORKFLOWS) == ["build", "docs", "release", "test"]
    for folder, names in {"ISSUE_TEMPLATE": 3, ".": 2}.items():
        files = [path for path in (GITHUB / folder).iterdir() if path.is_file()]
        assert len(files) == names, files
        assert all(read_yaml(path) for path in files if path.suffix == ".yml")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_by_commit(name: str) -> None:
    text = (GITHUB / "workflows" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = re.findall(r"uses: (.*)$", text, flags=re.MULTILINE)
    assert len(lines) == len([step for step in steps(WORKFLOWS[name]) if "uses" in step]) > 0
    for line in lines:
        assert re.fullmatch(r"(actions|astral-sh)/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize("name", WORKFLOWS)
def test_permissions_are_the_least(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {}
    for label, job in workflow["jobs"].items():
        wanted = {"id-token": "write"} if label == "publish" else {} if label == "all" else {"contents": "read"}
        assert job["permissions"] == wanted
        assert job["timeout-minutes"] <= 120
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", "")  # what a title says would be run


def test_the_matrix_has_all_versions() -> None:
    job = WORKFLOWS["test"]["jobs"]["test"]
    matrix = job["strategy"]["matrix"]["include"]
    named = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["project"]["classifiers"]), flags=re.MULTILINE)
    plain = [entry["python"] for entry in matrix if entry["prerelease"] != "allow" and entry["resolution"] == "highest"]
    assert plain == [*named, "3.14"]
    assert {entry["name"] for entry in matrix if entry["experimental"]} == {"Python 3.14", "pre-releases"}
    lowest = [entry for entry in matrix if entry["resolution"] == "lowest-direct"]
    assert [entry["python"] for entry in lowest] == [PROJECT["project"]["requires-python"].removeprefix(">=")]
    install = next(step["run"] for step in job["steps"] if step.get("name") == "Install")
    assert "uv pip install --resolution" in install
    assert "--prerelease" in install


def test_releases_are_published_without_a_password() -> None:
    jobs = WORKFLOWS["release"]["jobs"]
    assert jobs["publish"]["environment"] == "pypi"
    assert [step["run"] for step in jobs["publish"]["steps"] if "run" in step] == [
        "uv publish --trusted-publishing always dist/*"
    ]
    assert any("scripts/gaps.py" in step.get("run", "") for step in jobs["build"]["steps"])
    assert "secrets." not in (GITHUB / "workflows" / "release.yaml").read_text(encoding="utf-8")


# Gaps


@pytest.fixture(scope="module")
def gaps() -> Any:
    path = ROOT / "scripts" / "gaps.py"
    specification = importlib.util.spec_from_file_location("gaps", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_of_gaps_is_true(gaps: Any) -> None:
    page = (PAGES / "gaps.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `<(\w+)>` \| (.*?) \| (.*) \|$", page, flags=re.MULTILINE)
    assert {gap: meaning for gap, meaning, _ in rows} == gaps.GAPS
    listed = {gap: re.findall(r"`(.+?)`", files) for gap, _, files in rows}
    assert listed == gaps.find_gaps()


def test_gaps_are_filled_everywhere(gaps: Any, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "a.md").write_text("see https://<repository>/x, ask `<contact>`, <name> stays", encoding="utf-8")
    (tmp_path / "b.bin").write_bytes(b"\xff<repository>")
    assert gaps.find_gaps(tmp_path) == {"contact": ["a.md"], "repository": ["a.md"]}
    assert gaps.fill("repository", "example.org/o/n", tmp_path) == ["a.md"]
    assert "https://example.org/o/n/x" in (tmp_path / "a.md").read_text(encoding="utf-8")
    assert gaps.find_gaps(tmp_path) == {"contact": ["a.md"]}
    for wrong in ("nothing=x", "contact", "contact=", "repository=https://example.org"):
        with pytest.raises(SystemExit):
            gaps.main([wrong])


def test_nobody_is_invented() -> None:
    """Addresses of this project are gaps: no file names a repository or an organisation called like the package."""
    pattern = re.compile(
        r"(github\.com|gitlab\.com|huggingface\.co|readthedocs\.io)/st[-_]predict|st-predict\.readthedocs"
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [
        ROOT / name for name in listed.split("\0") if name and Path(name).suffix not in {".safetensors", ".png", ".jpg"}
    ]
    assert len(paths) > 100
    found = [
        path
        for path in paths
        if path.exists() and path != Path(__file__) and pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


# Packaging


def test_the_recipe_asks_for_the_same() -> None:
    recipe = read_yaml(ROOT / "conda" / "recipe.yaml")
    wanted = dict(map(requirement, PROJECT["project"]["dependencies"]))
    wanted = {CONDA_NAMES.get(name, name): bound for name, bound in wanted.items()} | OTHER_BOUNDS
    python, *run = recipe["requirements"]["run"]
    assert dict(map(requirement, run)) == wanted
    assert python == "python >=${{ python_min }}"
    assert recipe["context"]["python_min"] == PROJECT["project"]["requires-python"].removeprefix(">=")
    host = dict(requirement(entry) for entry in recipe["requirements"]["host"] if ">=" in entry)
    assert host == dict(map(requirement, PROJECT["build-system"]["requires"]))
    assert recipe["about"]["license"] == PROJECT["project"]["license"]
    assert recipe["about"]["license_file"] == PROJECT["project"]["license-files"]
    entry = f"st-predict = {PROJECT['project']['scripts']['st-predict']}"
    assert recipe["build"]["python"]["entry_points"] == [entry]


def test_one_version_in_all_files() -> None:
    version = PROJECT["project"]["version"]
    bibtex = re.search(r"version = \{(.*)\}", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert bibtex[1] == version
    assert read_yaml(ROOT / "conda" / "recipe.yaml")["context"]["version"] == version
    assert read_yaml(PAGES / "meta.yaml")["version"] == version


def test_each_dependency_has_its_reason() -> None:
    page = (PAGES / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| [\d.]+ \| .+ \|$", page, flags=re.MULTILINE)
    assert rows == [requirement(entry)[0] for entry in PROJECT["project"]["dependencies"]]


@pytest.mark.parametrize(
    ("library", "files"),
    [
        ("scanpy", {"pp/_genes.py"}),
        ("lightning", {"_training/_fit.py"}),
        ("skimage", {"pp/_tissue.py", "pl/_palette.py"}),
    ],
)
def test_what_serves_few_files_does(library: str, files: set[str]) -> None:
    source = ROOT / "src" / "st_predict"
    users = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if library in {name.partition(".")[0] for name in names}:
                users.add(path.relative_to(source).as_posix())
    assert users == files


def test_the_extra_all_is_the_sum_of_the_others() -> None:
    extras = dict(PROJECT["project"]["optional-dependencies"])
    everything = extras.pop("all")
    assert sorted(everything) == sorted(entry for entries in extras.values() for entry in entries)
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `\[(\w+)\]` \|", page, flags=re.MULTILINE) == [*extras, "all"]


def test_links_on_pypi_are_absolute() -> None:
    """The substitutions that the build makes, on the text of README.md."""
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = (ROOT / hook["fragments"][0]["path"]).read_text(encoding="utf-8")
    relative = re.findall(r"(?<!`)\]\((?!https?:|#)([^)]*)\)", text)
    assert len(relative) > 10
    assert [link for link in relative if not (ROOT / link.partition("#")[0]).exists()] == []
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", text) == []
    assert (
        "![A section of breast cancer, and ERBB2 and COL1A1 as measured and as predicted](https://<repository>/raw/main/docs/_static/"
        in text
    )
    assert "](https://<repository>/blob/main/docs/benchmarks.md)" in text


# Licences


def test_every_file_of_weights_has_its_licence() -> None:
    notice = (WEIGHTS / "NOTICE.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\S+\.safetensors)` \| CC-BY-4\.0 \| (.+) \|$", notice, flags=re.MULTILINE))
    assert set(rows) == {path.name for path in WEIGHTS.glob("*.safetensors")}
    for weights in checkpoints.list_weights():
        path = WEIGHTS / weights.file
        network, card = checkpoints.load(path)
        assert card.license == "CC-BY-4.0"
        carried = "backbone" in str(list(network.state_dict())) or b"st_predict.encoder" in path.read_bytes()[:100_000]
        assert rows[weights.file] == ("EfficientNet-Lite0, Apache-2.0" if carried else "none")
    for part in (
        "creativecommons.org/licenses/by/4.0",
        "10.1038/s41467-021-26271-2",
        "2020, ML Illustrated",
        "Changes:",
    ):
        assert part in notice
    apache = (WEIGHTS / "LICENSE-Apache-2.0.txt").read_text(encoding="utf-8")
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in apache


def test_the_panels_have_their_licence() -> None:
    """The MIT licence asks for its copyright line and its text in every copy."""
    folder = ROOT / "src" / "st_predict" / "datasets" / "panels"
    notice, text = ((folder / name).read_text(encoding="utf-8") for name in ("README.md", "LICENSE"))
    rows = re.findall(r"^\| `(\S+)\.txt` \| .+ \| MIT \|$", notice, flags=re.MULTILINE)
    assert sorted(rows) == datasets.list_panels()
    holder = re.search(r"^Copyright \(c\) \d{4} .+$", text, flags=re.MULTILINE)[0]
    assert f"{holder}. Licensed under the MIT licence" in notice
    assert "The above copyright notice and this permission notice shall be included in all\n" in text
    assert "Changes:" in notice
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert holder in readme.split("\n## Licence\n")[1]


def test_the_wheel_names_all_licences() -> None:
    assert PROJECT["project"]["license"].split(" AND ") == ["BSD-3-Clause", "CC-BY-4.0", "Apache-2.0", "MIT"]
    assert [name for name in PROJECT["project"]["license-files"] if not (ROOT / name).is_file()] == []
    assert len(PROJECT["project"]["license-files"]) == 4
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Licence\n")[1]
    assert re.findall(r"^- \*\*(\w+)\*\*", section, flags=re.MULTILINE) == ["Code", "Weights", "Data"]


# Texts


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_code_fit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > WIDEST] == []


def test_governance_is_ten_lines() -> None:
    text = (ROOT / "GOVERNANCE.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d+)\. \S.*$", text, flags=re.MULTILINE) == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("name", ["CODE_OF_CONDUCT", "GOVERNANCE", "SECURITY", "SUPPORT"])
def test_pages_of_the_project_are_in_the_documentation(name: str) -> None:
    assert f"{{include}} ../{name}.md" in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert f"\n{name}\n" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"]({name}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_entry_of_the_ecosystem_is_complete() -> None:
    """Required fields and values of the schema of scverse/ecosystem-packages."""
    entry = read_yaml(PAGES / "meta.yaml")
    required = {
        "category",
        "contact",
        "description",
        "documentation_home",
        "install",
        "license",
        "name",
        "project_home",
    }
    assert required | {"language", "primary_category", "tags", "test_command", "version"} <= set(entry)
    assert entry["name"] == entry["install"]["pypi"] == PROJECT["project"]["name"]
    assert entry["category"] == "ecosystem"
    assert entry["license"] in PROJECT["project"]["license"].split(" AND ")
    assert len(set(entry["tags"])) == len(entry["tags"]) > 0
    assert set(entry["tags"]) <= {
        "benchmarking",
        "deep learning",
        "imaging",
        "spatial transcriptomics",
    }  # of the schema
    assert entry["primary_category"] in {"Imaging", "Spatial"}


TEMPLATE = [
    ".codecov.yaml",
    ".editorconfig",
    "bug_report.yml",
    "config.yml",
    "feature_request.yml",
    "dependabot.yml",
    "build.yaml",
    "release.yaml",
    "test.yaml",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".readthedocs.yaml",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "biome.jsonc",
    "custom.css",
    "docs/_templates",
    "docs/api.md",
    "changelog.md",
    "conf.py",
    "contributing.md",
    "index.md",
    "example.ipynb",
    "references.bib",
    "references.md",
    "template_usage.md",
    "pyproject.toml",
    "src/",
    "pp",
    "tl",
    "pl",
    "py.typed",
    "conftest.py",
    "test_basic.py",
]
"""Files of cookiecutter-scverse in August 2026."""


@pytest.mark.parametrize("name", TEMPLATE)
def test_every_file_of_the_template_is_answered(name: str) -> None:
    page = (PAGES / "ecosystem.md").read_text(encoding="utf-8").split("\n## Files of cookiecutter-scverse\n")[1]
    rows = dict(re.findall(r"^\| (`.+?) \| (.+) \|$", page.split("\n## ")[0], flags=re.MULTILINE))
    answers = [answer for files, answer in rows.items() if re.search(rf"[`/]{re.escape(name)}(/[\w/.]+)?`", files)]
    assert len(answers) == 1
    if answers[0].startswith("yes"):
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        assert name == "test_basic.py" or re.search(
            rf"(^|/){re.escape(name.rstrip('/'))}(/|$)", listed, flags=re.MULTILINE
        )
    else:
        assert answers[0].startswith("no: ")


def test_every_item_of_the_checklist_is_answered() -> None:
    page = (PAGES / "ecosystem.md").read_text(encoding="utf-8")
    mandatory, recommended = page.split("\n## Mandatory\n")[1].split("\n## Recommended\n")
    rows = [
        re.findall(r"^\| (?!item|---)(.+?) \| (.+?) \| (.+) \|$", part, flags=re.MULTILINE)
        for part in (mandatory, recommended.split("\n## ")[0])
    ]
    assert list(map(len, rows)) == [9, 3]
    for path in re.findall(r"`([\w./-]+\.(?:md|yaml|toml))`", mandatory):
        assert any((folder / path).exists() for folder in (ROOT, GITHUB / "workflows")), path


def test_the_changelog_begins_with_highlights() -> None:
    newest = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## [")[1]
    highlights = newest.split("\n### ")[1]
    assert highlights.startswith("Highlights\n")
    assert 3 <= len(re.findall(r"^- ", highlights, flags=re.MULTILINE)) <= 5
