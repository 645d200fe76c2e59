"""The reference is complete: every public name has an example that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect

import st_predict as stp

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
