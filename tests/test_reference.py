"""The reference is complete: examples that run, a page per package, command and model."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import typer.main
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import st_predict as stp
from st_predict.cli import app

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

PACKAGES = [name for name in stp.__all__ if not callable(getattr(stp, name))]
PUBLIC = {
    f"{package}.{name}": getattr(importlib.import_module(f"st_predict.{package}"), name)
    for package in PACKAGES
    for name in importlib.import_module(f"st_predict.{package}").__all__
}
DOCUMENTED = {
    name: member
    for name, member in {"show_versions": stp.show_versions, **PUBLIC}.items()
    if inspect.isclass(member) or inspect.isfunction(member)
}

_DOWNLOAD = "reads data that has to be downloaded"
_WSIDATA = "wsidata is an optional dependency"
_WEIGHTS = "reads published weights that have to be downloaded"
NOT_RUN = {
    "datasets.cscc": _DOWNLOAD,
    "datasets.hbc": _DOWNLOAD,
    "datasets.her2st": _DOWNLOAD,
    "datasets.hest": _DOWNLOAD,
    "io.read_hest": _DOWNLOAD,
    "io.read_stimage": _DOWNLOAD,
    "io.from_wsidata": _WSIDATA,
    "io.to_wsidata": _WSIDATA,
    "checkpoints.import_published": _WEIGHTS,
    "encoders.save_hipt_weights": _WEIGHTS,
}
"""Public names whose example cannot run in the tests, with the reason."""


def calls(member: object) -> list[bool]:
    """Whether each line of the example that is more than an import is run."""
    lines = doctest.DocTestParser().get_examples(inspect.getdoc(member) or "")
    return [
        not line.options.get(doctest.SKIP, False) for line in lines if not line.source.startswith(("import ", "from "))
    ]


def test_every_public_name_has_an_example_that_runs() -> None:
    assert [name for name, member in DOCUMENTED.items() if not any(calls(member)) and name not in NOT_RUN] == []


def test_exceptions_have_an_example_that_does_not_run() -> None:
    shown = {name: calls(DOCUMENTED[name]) for name in NOT_RUN}
    assert [name for name, lines in shown.items() if not lines or all(lines)] == []


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name, member in DOCUMENTED.items() if not inspect.getdoc(member)] == []


FUNCTIONS = {
    f"{owner}.{name}".removeprefix("."): function
    for owner, members in [
        ("", DOCUMENTED),
        *((name, vars(member)) for name, member in DOCUMENTED.items() if inspect.isclass(member)),
    ]
    for name, function in members.items()
    if inspect.isfunction(function) and not name.startswith("_")
}
"""Public functions, and methods of public classes."""


_JSON = "values as JSON holds them; readers would have to cast ``object``"
_OPEN = "examples of names that are not a closed set"
_CASE = "any letter case is accepted"
ANY = {
    "encoders.CellEncoder.describe.return": _JSON,
    "encoders.Encoder.describe.return": _JSON,
    "models.ModelSpec.complete_of": _JSON,
    "models.ModelSpec.hparams_of": _JSON,
    "models.ModelSpec.complete.return": _JSON,
    "models.ModelSpec.admit.return": _JSON,
    "pp.Stain.to_dict.return": _JSON,
    "specs.ModelCard.hparams": _JSON,
    "specs.ModelCard.training": _JSON,
    "tl.Calibration.sections": _JSON,
}
"""Arguments and results whose annotation has ``Any``, with the reason."""

TEXTS = {
    "datasets.list_hest.technology": _CASE,
    "datasets.list_hest.species": _CASE,
    "datasets.list_stimage.technology": _CASE,
    "encoders.EncoderSpec.source": _OPEN,
    "encoders.get_cell_encoder.encoder": _OPEN,
    "encoders.load_encoder.encoder": _OPEN,
    "io.find_mpp.table_key": "the choices are of ``.uns`` of the table",
    "pl.heatmap.metrics": _OPEN,
    "pl.scores.metric": _OPEN,
    "tl.embed.encoder": _OPEN,
    "cohort.cross_validate.device": _OPEN,
    "cohort.embed_many.device": _OPEN,
    "cohort.predict_many.device": _OPEN,
    "tl.embed.device": _OPEN,
    "tl.predict.device": _OPEN,
    "tl.superresolve.device": _OPEN,
}
"""Arguments that are a plain text although the docstring quotes several values, with the reason."""

CALLABLES = FUNCTIONS | {name: member for name, member in DOCUMENTED.items() if inspect.isclass(member)}


def annotations() -> dict[str, tuple[str, str]]:
    """Annotation and description of each argument and result of the public functions and classes."""
    found = {}
    for name, member in CALLABLES.items():
        signature = inspect.signature(member)
        doc = NumpyDocString(inspect.getdoc(member) or "")
        texts = {one: " ".join(part.desc) for part in doc["Parameters"] for one in part.name.split(", ")}
        for argument, parameter in signature.parameters.items():
            found[f"{name}.{argument}"] = str(parameter.annotation), texts.get(argument, "")
        if not inspect.isclass(member):
            found[f"{name}.return"] = str(signature.return_annotation), ""
    return found


def test_no_annotation_is_any() -> None:
    assert {name for name, (kind, _) in annotations().items() if re.search(r"\bAny\b", kind)} == set(ANY)


def test_fixed_choices_are_literals() -> None:
    texts = {
        name
        for name, (kind, text) in annotations().items()
        if re.search(r"\bstr\b", kind) and "Literal" not in kind and len(re.findall(r"``\"[^\"]+\"``", text)) > 1
    }
    assert texts == set(TEXTS)


@pytest.mark.parametrize("name", [name for name, member in DOCUMENTED.items() if inspect.isfunction(member)])
def test_docstrings_are_numpydoc(name: str) -> None:
    """Sections have the right form and order; parameters and results are complete.

    Left out: types of parameters, which are in the signature (PR04), extended summaries (ES01) and "See Also" (SA01), which not every
    function needs, examples (EX01, tested above), and verbs that end with "s" (SS05).
    """
    errors = validate(f"st_predict.{name}")["errors"]
    assert [error for error in errors if error[0] not in {"PR04", "ES01", "SA01", "EX01", "SS05"}] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_returns_start_with_the_class_of_the_signature(name: str) -> None:
    doc = NumpyDocString(inspect.getdoc(FUNCTIONS[name]) or "")
    annotation = ast.parse(inspect.signature(FUNCTIONS[name]).return_annotation, mode="eval").body
    assert [part.type for part in doc["Returns"]] in ([], [plain(annotation)])
    assert [part.type for part in doc["Yields"]] in ([], [plain(annotation).removeprefix("iterator of ")])


PLAIN = {"NDArray": "ndarray", "Any": "object", "Panel": "str", "Split": "str"}
"""Annotations that readers know by another name."""


def plain(node: ast.expr, *, inside: bool = False) -> str:
    """Words for an annotation: ``list[str] | None`` is "list of str or None"; what a list in a list holds is left out."""
    match node:
        case ast.Constant(value):
            return plain(ast.parse(value, mode="eval").body) if isinstance(value, str) else str(value)
        case ast.Name(name) | ast.Attribute(attr=name):
            return PLAIN.get(name, name)
        case ast.BinOp(left, _, right):
            return f"{plain(left, inside=inside)} or {plain(right, inside=inside)}"
        case ast.Subscript(value, index):
            base = plain(value)
            parts = [plain(part, inside=True) for part in (index.elts if isinstance(index, ast.Tuple) else [index])]
            if base in {"list", "tuple", "dict"}:
                return base if inside else f"{base} of {listed(base, parts)}"
            return f"iterator of {parts[0]}" if base == "Iterator" else base
    raise AssertionError(ast.dump(node))


def listed(base: str, parts: list[str]) -> str:
    *first, last = [part for part in parts if part != "Ellipsis"]
    return f"{', '.join(first)} {'to' if base == 'dict' else 'and'} {last}" if first else last


CONF = ast.parse((DOCS / "conf.py").read_text(encoding="utf-8"))
TEXTS_OF = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in CONF.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"PLOTS", "PICTURES"}
}
SCRIPTS = sorted((DOCS / "plots").glob("*.py"))


def test_each_plot_has_a_picture_with_an_alternative_text() -> None:
    """The documentation runs ``docs/plots/NAME.py`` when it is built; a picture of a page of HTML is a file."""
    assert {path.stem for path in SCRIPTS} == set(TEXTS_OF["PLOTS"])
    assert set(TEXTS_OF["PLOTS"]) | set(TEXTS_OF["PICTURES"]) == set(stp.pl.__all__)
    files = [name for name, _ in TEXTS_OF["PICTURES"].values()]
    assert [name for name in files if not (DOCS / "plots" / name).is_file()] == []
    texts = [*TEXTS_OF["PLOTS"].values(), *(text for _, text in TEXTS_OF["PICTURES"].values())]
    assert all(len(text) > 40 and text.endswith(".") for text in texts)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_of_pictures_draw_their_plot(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    drawn = [call for call in calls if ast.unparse(call.func) == f"stp.pl.{path.stem}"]
    assert len(drawn) == 1
    keywords = {keyword.arg: None for keyword in drawn[0].keywords}
    inspect.signature(getattr(stp.pl, path.stem)).bind(*drawn[0].args, **keywords)


@pytest.fixture
def command_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if tuple(map(int, typer.__version__.split(".")[:2])) < (0, 28):
        pytest.skip("older versions of typer write other names of arguments; pages are built with newer ones")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return importlib.import_module("command_pages")


@pytest.fixture
def model_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return importlib.import_module("model_pages")


COMMANDS = typer.main.get_command(app).commands


def test_command_line_page_lists_every_command() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \{doc\}`(\w+) <cli/\1>` \|", page, flags=re.MULTILINE)) == set(COMMANDS)
    assert set(re.findall(r"^cli/(\w+)$", page, flags=re.MULTILINE)) == {"options", *COMMANDS}


def test_each_command_has_a_page_with_every_option(command_pages: ModuleType) -> None:
    pages = command_pages.pages()
    assert set(pages) == {"options", *COMMANDS}
    for name, command in COMMANDS.items():
        entries = re.findall(r"^````\{option\} ([^\s,]+(?:, -[^\s,]+)*)", pages[name], flags=re.MULTILINE)
        listed = {option for entry in entries for option in entry.split(", ")}
        options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        arguments = {param.name for param in command.params if param.param_type_name == "argument"}
        assert {option.removesuffix("...") for option in listed} == (options - arguments) | arguments | {"-h", "--help"}


def test_a_page_shows_default_choices_and_what_is_required(command_pages: ModuleType) -> None:
    page = command_pages.pages()["train"]
    assert (
        "{option} --duplicates <str>\nHow to treat genes in several columns: error, sum or first. Default: `error`.\n"
        in page
    )
    assert "{option} --out <path>\nNew folder for the results. Required.\n" in page


def test_options_json_and_names_in_brackets_are_shown_as_typed(command_pages: ModuleType) -> None:
    pages = command_pages.pages()
    assert "`'{\"depth\": 6}'`" in pages["train"] and "the `--unlabelled` slides" in pages["train"]
    assert r"File with the tables \[benchmark\], \[sections\]" in pages["benchmark"]


def test_markup_of_the_terminal_is_not_in_the_pages(command_pages: ModuleType) -> None:
    assert command_pages._plain("[bold]Two[/bold] of *.zarr") == r"Two of \*.zarr"


def test_command_line_page_lists_every_environment_variable() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r"\"(ST_PREDICT_\w+)\"", sources))
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(ST_PREDICT_\w+)` \|", page, flags=re.MULTILINE)) == read


ROW = pd.Series({"params": 1234, "gmacs": 0.5}, dtype=object)
"""Row of ``models.table()``, which takes seconds to count."""


def test_page_of_a_model_with_released_weights(model_pages: ModuleType) -> None:
    spec = stp.models.get_spec("m2ost")
    page = model_pages.page_of(spec, ROW)
    assert page.startswith("(model-m2ost)=\n# m2ost\n")
    assert "| parameters | 1,234 |" in page
    assert "| licence of published code | MIT (github.com/Dootmaan/M2OST) |" in page
    assert stp.models.cite("m2ost") in page
    card = stp.specs.ModelCard.of_file(stp.checkpoints.find_weights("m2ost@3"))
    scores = card.reliability_on("patient")
    best = [score.gene for score in stp.checkpoints.rank_genes(card, scores)[:5]]
    assert f"{stp.checkpoints.score_sentence(scores)} Best genes: {', '.join(best)}." in page


def test_page_of_a_model_without_released_weights(model_pages: ModuleType) -> None:
    page = model_pages.page_of(stp.models.get_spec("mean"), ROW)
    assert "\n## Released weights\n\nNone yet.\n" in page
    assert "| parameters | closed form |" in page
