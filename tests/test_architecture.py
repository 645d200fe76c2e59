"""The code has the shape that docs/contributing.md promises; import contracts are in pyproject.toml."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "st_predict"
FILES = {path.relative_to(SOURCE): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
LONGEST = 50  # lines of a function without its docstring

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines from the first of the signature to the last, without the docstring; of a command, without its options."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    is_command = any("app." in ast.unparse(decorator) for decorator in function.decorator_list)
    start = first.lineno if is_command else function.lineno
    return function.end_lineno - start + 1 - docstring


def splatted_dicts(function: Function) -> list[str]:
    """Names of dictionaries that a function makes, as a literal or ``dict[str, Any]``, and then passes on as keywords."""
    made = set()
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        literal = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)
        annotated = isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "dict[str, Any]"
        if literal or annotated:
            made |= {target.id for target in targets if isinstance(target, ast.Name)}
    passed = {
        keyword.value.id
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg is None and isinstance(keyword.value, ast.Name)
    }
    return sorted(made & passed)


def libraries(tree: ast.AST) -> set[str]:
    """Other libraries than the standard one that a file imports, for types and inside functions too."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"st_predict"}


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{path}:{f.name}": length(f) for path, tree in FILES.items() for f in functions(tree) if length(f) > LONGEST
    }
    assert long == {}


def test_calls_of_ours_are_type_checked() -> None:
    found = {
        f"{path}:{f.name}": names
        for path, tree in FILES.items()
        for f in functions(tree)
        if (names := splatted_dicts(f))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f():\n    how: dict[str, Any] = {}\n    g(**how)", ["how"]),
        ("def f():\n    how = {'a': 1}\n    g(**how)", ["how"]),
        ("def f():\n    how: dict[str, Any] = {}\n    g(how)", []),
    ],
)
def test_splats_are_found(code: str, expected: list[str]) -> None:
    assert splatted_dicts(ast.parse(code).body[0]) == expected


def test_a_class_name_means_one_thing() -> None:
    """Layers of a network are local to its file: no model imports another."""
    places = defaultdict(list)
    for path, tree in FILES.items():
        if path.parts[0] == "models" and not path.name.startswith("_"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def layers() -> dict[str, set[str]]:
    """The table of docs/contributing.md: libraries that each top-level module imports."""
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    table = page.split("| layer | imports of other libraries |\n|---|---|\n")[1].split("\n\n")[0]
    found = {}
    for row in table.splitlines():
        names, imported = row.strip("| ").split(" | ")
        libraries = set() if imported == "none" else set(imported.split(", "))
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), libraries)
    return found


def test_the_table_of_layers_is_true() -> None:
    imported = defaultdict(set)
    for path, tree in FILES.items():
        imported[path.parts[0].removesuffix(".py")] |= libraries(tree)
    assert imported.pop("__init__") == set()
    assert dict(imported) == layers()


VIOLATIONS = {
    "crops/_plan.py": "if TYPE_CHECKING:\n    from st_predict.crops._batches import reading_order",  # a cycle, for a type only
    "io/_select.py": "from st_predict import models",
    "models/mean.py": "import anndata",
    "models/vit.py": "from st_predict.models import swin",
    "pp/_grid.py": "import torch",
    "tl/_embed.py": "from st_predict.tl import _predict\nfrom st_predict.io import _mpp",
    "tl/_train.py": "import lightning\nimport matplotlib",
    "_training/_store.py": "import pandas",
}


def test_every_import_contract_breaks_when_it_is_violated(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "st_predict", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, line in VIOLATIONS.items():
        with (tmp_path / "st_predict" / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    kept = [contract["name"] for contract in contracts if f"{contract['name']} BROKEN" not in result.stdout]
    assert len(contracts) > 8
    assert kept == [], result.stdout + result.stderr


@pytest.mark.slow
def test_training_runs_without_data_containers(tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("anndata", "spatialdata", "pandas", "scanpy", "dask", "xarray", "zarr", "geopandas"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np
from st_predict._training import CropStore, TrainConfig, learn
from st_predict.models import get_spec
from st_predict.specs import ModelCard

rng = np.random.default_rng(0)
spec = get_spec("m2ost")
card = ModelCard(model="m2ost", genes=("a", "b"), crop=spec.crop_for(spec.tiny), hparams=dict(spec.tiny))
data = CropStore(
    crops=tuple(rng.integers(0, 256, (8, 3, v.size, v.size), dtype=np.uint8) for v in card.crop.levels),
    target=rng.normal(size=(8, 2)).astype(np.float32),
    section=np.repeat([0, 1], 4),
    grid=None,
    xy_um=None,
)
config = TrainConfig(epochs=1, batch_size=4, device="cpu", precision="float32")
_, history = learn(card, data, data, config=config, folder=Path({str(tmp_path)!r}))
print(len(history), np.isfinite(history[0]["val_pearson"]))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["1", "True"], result.stderr
