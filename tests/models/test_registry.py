"""Models are found, by name, without being imported."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from st_predict.models import _registry, get_spec, list_models
from st_predict.models.m2ost import SPEC


@pytest.fixture
def plugin(monkeypatch):
    """Two models of another package: one of its own, and one that takes the name of ours."""
    values = {"zz_other": "st_predict.models.m2ost:SPEC", "m2ost": "json:dumps"}
    entries = [EntryPoint(name, value, "st_predict.models") for name, value in values.items()]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [e for e in entries if e.group == group and name in (None, e.name)]

    monkeypatch.setattr(_registry, "entry_points", entry_points)


def test_names_are_those_of_public_modules():
    assert "m2ost" in list_models()
    assert list_models() == sorted(list_models())
    assert not any(name.startswith("_") for name in list_models())


def test_listing_imports_no_model(monkeypatch):
    for name in list_models():
        monkeypatch.delitem(sys.modules, f"st_predict.models.{name}", raising=False)
    names = list_models()
    assert not any(f"st_predict.models.{name}" in sys.modules for name in names)


def test_a_model_by_its_name():
    assert get_spec("m2ost") is SPEC


@pytest.mark.parametrize("name", ["nope", "_base", "", "M2OST", "m2ost.SPEC"])
def test_an_unknown_name_lists_those_there_are(name):
    with pytest.raises(KeyError, match=rf"No model '{name}'; there are \[.*'m2ost'"):
        get_spec(name)


@pytest.mark.usefixtures("plugin")
def test_other_packages_can_add_models():
    assert get_spec("zz_other") is SPEC
    assert list_models()[-1] == "zz_other"


@pytest.mark.usefixtures("plugin")
def test_other_packages_cannot_change_our_models():
    assert get_spec("m2ost") is SPEC
    assert list_models().count("m2ost") == 1
