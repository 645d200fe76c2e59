"""Errors name what was found, and ways out that the called function has."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import st_predict as stp
from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, NotFoundError, StPredictError

SRC = Path(stp.__file__).parent
OURS = {"NoTissueError", "InvalidValueError", "NotFoundError", "InvalidTypeError", "LeakageError"}
BUILTIN = {
    "RuntimeError",  # of a network that was not trained
    "AttributeError",  # of modules that load lazily
    "ConnectionError",
    "FileExistsError",
    "FileNotFoundError",
    "MemoryError",
    "ModuleNotFoundError",
    "NotImplementedError",
    "OSError",
    "PermissionError",
}


def calling(parameters: list[str], error: StPredictError) -> str:
    """Message of an error that is raised below a function with these parameters."""
    source = f"def called({', '.join(parameters)}):\n    below()\ndef below():\n    raise error"
    space: dict[str, Any] = {"__name__": "st_predict.somewhere", "error": error}
    exec(source, space)
    try:
        space["called"](*parameters)
    except StPredictError as raised:
        return str(raised)
    raise AssertionError


def test_advice_depends_on_the_function_that_was_called() -> None:
    drop = Advice("leave them out with {}", "missing", "drop")
    case = Advice("ignore case with {}", "ignore_case", value=True)
    error = NotFoundError("2 genes are missing.", drop, case, "give another panel")
    found = "2 genes are missing."
    assert calling(["missing", "ignore_case"], error) == (
        f'{found} Leave them out with missing="drop", or ignore case with ignore_case=True, or give another panel.'
    )
    assert calling(["ignore_case"], error) == f"{found} Ignore case with ignore_case=True, or give another panel."
    assert calling([], error) == f"{found} Give another panel."
    assert calling([], NotFoundError(found, drop)) == found


def test_an_error_that_was_not_raised_gives_all_advice() -> None:
    assert str(InvalidValueError("No.", Advice("pass {}", "layer"))) == "No. Pass layer=."


def test_kinds_are_those_of_python() -> None:
    assert issubclass(InvalidValueError, ValueError)
    assert issubclass(NotFoundError, KeyError)
    assert issubclass(InvalidTypeError, TypeError)
    assert str(NotFoundError("No quotes.")) == "No quotes."


def test_errors_survive_pickling_and_changes() -> None:
    error = InvalidValueError("Found.", Advice("pass {}", "mpp"), "go on")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (InvalidValueError, "Found. Pass mpp=, or go on.")
    assert str(error.about("C2.zarr:")) == "C2.zarr: Found. Pass mpp=, or go on."
    assert str(error.without({"mpp"})) == "Found. Go on."
    assert error.arguments == {"mpp"}


FAILING = """
import pickle, sys
import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
import st_predict as stp

def fail_by_a_setting():
    stp.tl.TrainConfig(epochs=0)

def fail_by_advice():
    pixels = np.zeros((3, 4, 4), np.uint8)
    images = {name: Image2DModel.parse(pixels, dims=("c", "y", "x")) for name in "ab"}
    stp.io.find_image(SpatialData(images=images), None)

errors = []
for function in (fail_by_a_setting, fail_by_advice):
    try:
        function()
    except Exception as error:
        errors.append(error)
with open(sys.argv[1], "wb") as file:
    pickle.dump(errors, file)
"""


def test_errors_come_back_from_other_processes(warm: Any, tmp_path: Path) -> None:
    """As a pool of processes sends them: pickled."""
    done = warm.run(FAILING, tmp_path / "errors")
    assert done.returncode == 0, done.stderr
    error, told = pickle.loads((tmp_path / "errors").read_bytes())
    assert isinstance(error, InvalidValueError)
    assert str(error) == "epochs must be at least 1, got 0."
    assert str(told).endswith("several images in sdata: ['a', 'b']. Choose one with image_key=, or keep one of them.")


# what follows walks the source

PACKAGES = [name for name in stp.__all__ if not callable(getattr(stp, name))]


def public_functions() -> dict[str, Any]:
    """All functions that a user may call, and methods of public classes."""
    found = {}
    for module in (*PACKAGES, "cli"):
        package = importlib.import_module(f"st_predict.{module}")
        for name in getattr(package, "__all__", []):
            value = getattr(package, name)
            if inspect.isfunction(value):
                found[f"{module}.{name}"] = value
            elif inspect.isclass(value) and not issubclass(value, BaseException):
                for method, function in inspect.getmembers(value, inspect.isroutine):
                    if not method.startswith("_") and inspect.getmodule(function) is not None:
                        found[f"{module}.{name}.{method}"] = function
    return {
        name: function
        for name, function in found.items()
        if (inspect.getmodule(function).__name__ or "").startswith("st_predict")
    }


PUBLIC = public_functions()
PARAMETERS = {name: set(inspect.signature(function).parameters) for name, function in PUBLIC.items()}
ARGUMENTS = set().union(*PARAMETERS.values()) - {"self", "cls"}


@cache
def trees() -> dict[str, ast.Module]:
    return {
        ".".join(("st_predict", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(SRC.rglob("*.py"))
    }


def raises() -> list[tuple[str, ast.Call]]:
    """Every error that is made, with its place."""
    return [
        (f"{module}:{node.lineno}", node)
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in OURS
    ]


def texts(node: ast.AST) -> str:
    return " ".join(c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str))


def advice_in(tree: ast.AST) -> list[Advice]:
    """Every ``Advice(text, argument, value)`` in a tree; a value that is computed is any."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Advice"):
            continue
        values = {"text": node.args[0], **dict(zip(("argument", "value"), node.args[1:], strict=False))}
        values |= {keyword.arg: keyword.value for keyword in node.keywords}
        argument = getattr(values["argument"], "value", None)
        if isinstance(argument, str):
            value = getattr(values.get("value"), "value", None)
            found.append(Advice(texts(values["text"]), argument, value))
    return found


EVERY_ADVICE = [advice for tree in trees().values() for advice in advice_in(tree)]


def test_every_error_is_of_a_known_kind() -> None:
    kinds = {
        f"{module}:{node.lineno}": node.exc.func.id
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    inside = {place: kind for place, kind in kinds.items() if not place.startswith("st_predict._validated")}
    unknown = {p: k for p, k in inside.items() if k not in OURS | BUILTIN and not k.startswith("_") and k != "type"}
    assert unknown == {}


def test_arguments_stand_in_advice_only() -> None:
    """Text that is always shown names no argument; calls of other functions are written out, and are right."""
    wrong = {}
    for place, call in raises():
        shown = [argument for argument in call.args if not advice_in(argument)]
        text = " ".join(map(texts, shown))
        for name, inside in re.findall(r"st_predict\.([\w.]+)\(([^)]*)\)", text):
            named = set(re.findall(r"(\w+)=", inside))
            if named - PARAMETERS[name]:
                wrong[place] = f"{name} has no {named - PARAMETERS[name]}"
        text = re.sub(r"st_predict\.[\w.]+\([^)]*\)", "", text)
        if named := {name for name in re.findall(r"\b([a-z_]+)=", text) if name in ARGUMENTS}:
            wrong[place] = f"{named}: {text[:80]}"
    assert wrong == {}


def test_all_advice_is_for_somebody() -> None:
    assert len(EVERY_ADVICE) > 50
    assert {advice.argument for advice in EVERY_ADVICE} <= ARGUMENTS


@pytest.mark.parametrize("name", PUBLIC)
def test_no_function_is_told_to_use_an_argument_it_does_not_have(name: str) -> None:
    parameters = sorted(PARAMETERS[name])
    for advice in EVERY_ADVICE:
        message = calling(parameters, InvalidValueError("Found.", advice))
        assert set(re.findall(r"\b([a-z_]+)=", message)) & ARGUMENTS <= set(parameters) | _inner(advice)
        assert (advice.argument in parameters) == (message != "Found.")


def _inner(advice: Advice) -> set[str]:
    """Names that the text itself writes with an equals sign, as in calls of other functions."""
    return set(re.findall(r"\b([a-z_]+)=", advice.text))


@cache
def functions() -> dict[str, tuple[str, ast.FunctionDef]]:
    """Functions and methods by their full name, with their module."""
    found = {}
    for module, tree in trees().items():
        for node in tree.body:
            owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            for function in node.body if owner else [node]:
                if isinstance(function, ast.FunctionDef):
                    found[f"{module}.{owner}{function.name}"] = (module, function)
    return found


@cache
def names_in(module: str) -> dict[str, str]:
    """What names mean in a module: what it defines, and what it imports from the package, for types as well."""
    found = {node.name: f"{module}.{node.name}" for node in trees()[module].body if hasattr(node, "name")}
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("st_predict"):
            found |= {alias.asname or alias.name: origin(node.module, alias.name) for alias in node.names}
    return found


@cache
def calls(full: str) -> set[str]:
    """Functions that a function calls or hands on; methods are those of classes that its module names."""
    if full not in functions():  # making an object runs the methods that construct it
        return {f"{full}.{name}" for name in ("__init__", "__post_init__")} & functions().keys()
    module, function = functions()[full]
    names = names_in(module)
    found = {names[n.id] for n in ast.walk(function) if isinstance(n, ast.Name) and n.id in names}
    attributes = {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}
    modules = {f"{value}.{attribute}" for value in names.values() for attribute in attributes}
    return found | {origin(*name.rsplit(".", 1)) for name in modules} & (functions().keys() | found)


@cache
def origin(module: str, name: str) -> str:
    """Module that defines what another one imports."""
    tree = trees().get(module)
    for node in [] if tree is None else tree.body:
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return origin(node.module, next(a.name for a in node.names if (a.asname or a.name) == name))
    return f"{module}.{name}"


def reached_by(function: Any) -> set[str]:
    start = f"{inspect.getmodule(inspect.unwrap(function)).__name__}.{function.__qualname__}"
    seen, todo = {start}, deque([start])
    while todo:
        for following in calls(todo.popleft()) - seen:
            seen.add(following)
            todo.append(following)
    return seen


def errors_of(full: str) -> list[tuple[str, list[Advice], bool]]:
    """Errors that a function makes itself: place, advice, and whether there is other advice as well."""
    found = []
    module, function = functions().get(full, ("", None))
    for node in [] if function is None else ast.walk(function):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in OURS:
            advice = [a for argument in node.args[1:] for a in advice_in(argument)]
            found.append((f"{module}:{node.lineno}", advice, len(advice) < len(node.args[1:])))
    return found


def test_the_graph_of_calls_finds_what_is_deep_below() -> None:
    reached = reached_by(stp.tl.train)
    assert {
        "st_predict.pp._panel._refuse",
        "st_predict.io._select.find_image",
        "st_predict.pp._counts._check_values",
    } <= reached


UNREACHABLE = {
    # scores and intervals need a card, which has the names; plots ask for no names
    "st_predict.get._names": ("tl.", "pl."),
    # only maps of genes name some
    "st_predict.pl._values.Values.columns": ("pl.pca_map",),
    # bounds are added to a prediction, whatever shapes were measured; a report says why it has no scores
    "st_predict._sections._measured.measured_table_key": ("tl.Calibration.apply", "pl.report"),
    # a report asks for no units
    "st_predict.get._convert": ("pl.report",),
    # a calibration has its own key
    "st_predict.get.only_key": ("tl.Calibration.",),
    # missing genes matter only for sums over the panel, whose number is known
    "st_predict.pp._target._n_summed": ("tl.", "get.", "pp.to_log1p_10k", "pl.report"),
    # baselines are computed on the CPU
    "st_predict._runtime._device.pick_device": ("tl.evaluate", "tl.calibrate", "tl.Calibration.", "pl.report"),
    # it writes its own way out, st_predict.pp.align_panel
    "st_predict.pp._panel._find_source": ("pp.make_target",),
    "st_predict.pp._panel._refuse": ("pp.make_target",),
    # it looks for positions in an image only where there is one
    "st_predict.io._select.find_image": ("pp.select_panel",),
    # encoders are built by names that exist
    "st_predict._backbones._check_architecture": ("tl.embed", "encoders."),
    # readers of collections have checked the places, and give one library and its image
    **dict.fromkeys(
        [f"st_predict.io._anndata.{name}" for name in ("_coordinates", "_libraries", "_by_column", "_image_of")],
        ("io.read_hest", "io.read_stimage", "datasets.hest"),
    ),
    # it is given the counts themselves
    "st_predict.pp._counts._check_values": ("pp.to_target",),
}
"""Functions that do not come to an error, although the graph of calls leads there."""


@pytest.mark.parametrize("name", [n for n in PUBLIC if n.startswith(("tl.", "pl.", "pp.", "io.", "get."))])
def test_each_error_below_a_function_has_a_way_out_for_it(name: str) -> None:
    """An error that gives advice gives some that the function can follow."""
    stuck = {
        place
        for full in reached_by(PUBLIC[name])
        if not name.startswith(UNREACHABLE.get(full, ("never",)))
        for place, advice, others in errors_of(full)
        if advice and not others and not any(a.argument in PARAMETERS[name] for a in advice)
    }
    assert stuck == set()
