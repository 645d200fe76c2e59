"""Every message of the package belongs to one entry of the page on troubleshooting, and is found there."""

from __future__ import annotations

import re
import shutil
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import st_predict as stp
from st_predict._errors import StPredictError

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).parents[1] / "docs"
SRC = Path(stp.__file__).parent
PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


@cache
def extension() -> Any:
    spec = spec_from_file_location("error_texts", DOCS / "_ext" / "error_texts.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def texts() -> list[str]:
    return [site.text for found in extension().texts_of(PAGE).values() for site in found]


def copy_with(tmp_path: Path, name: str, line: str) -> Path:
    """Copy of the sources with a line more in a file, which may be new."""
    root = tmp_path / "st_predict"
    shutil.copytree(SRC, root, ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")])
    path = root / name
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    return root


def test_every_place_that_raises_belongs_to_one_entry() -> None:
    assert extension().faults(PAGE) == []
    assert len(extension().sites()) > 800


@pytest.mark.parametrize(
    "line", ["raise InvalidValueError('Two words.')", "raise _found(1)", "logger.warning('Oh no.')"]
)
def test_a_new_place_without_an_entry_is_a_fault(tmp_path: Path, line: str) -> None:
    (fault,) = extension().faults(PAGE, copy_with(tmp_path, "io/_planted.py", line))
    assert fault.startswith("io._planted:2: ")
    assert fault.endswith("is in no entry")


def test_a_new_message_of_a_module_with_several_entries_needs_one(tmp_path: Path) -> None:
    root = copy_with(tmp_path, "get.py", "raise InvalidValueError('Something else happened.')")
    (fault,) = extension().faults(PAGE, root)
    assert "Something else happened." in fault


@pytest.mark.parametrize("line", ["io._no_such_module", "io._mpp: no such words", "io"])
def test_entries_name_what_exists(line: str) -> None:
    (fault,) = extension().faults(PAGE.replace("\nio._mpp\n", f"\nio._mpp\n{line}\n"))
    assert "fits nothing" in fault


def test_a_message_cannot_be_in_two_entries() -> None:
    again = PAGE + "\n### Another\n\n```{error-texts}\nio._mpp\n```\n"
    assert all("is in ['Another', 'The resolution" in fault for fault in extension().faults(again))
    assert len(extension().faults(again)) > 5


def says(text: str, said: str) -> bool:
    """Whether a message is what a text of the list becomes: its first sentence, with anything in place of what differs."""
    parts = re.split(r"<[^<>]*>|…", text.split(". ", maxsplit=1)[0].rstrip(".").replace("'", ""))
    pattern = ".*".join(map(re.escape, parts))
    return len("".join(parts)) > 15 and re.search(pattern, said) is not None


def test_other_words_are_not_the_same_message() -> None:
    assert not [text for text in texts() if says(text, "Something quite different went wrong in this place.")]


RAISING: dict[str, Callable[[], Any]] = {
    "model": lambda: stp.models.get_spec("m2ots"),
    "setting": lambda: stp.tl.TrainConfig(momentum=0.5),
    "shapes of arrays": lambda: stp.metrics.pearson(np.zeros((3, 2)), np.zeros((2, 2)), axis=0),
    "axis": lambda: stp.metrics.pearson(np.zeros((3, 2)), np.zeros((3, 2)), axis=2),
    "file": lambda: stp.io.read_image("no_such.tif"),
    "folder": lambda: stp.io.read_image(DOCS),
    "weights": lambda: stp.checkpoints.find_weights("no_such_weights"),
    "panel": lambda: stp.datasets.panel("no_such_panel"),
    "encoder": lambda: stp.encoders.get_encoder("no_such_encoder"),
    "section": lambda: stp.datasets.her2st("Z9"),
}


@pytest.mark.parametrize("name", RAISING)
def test_messages_as_users_see_them_are_found(name: str) -> None:
    """The message, with what differs left out, is one of the list."""
    with pytest.raises((StPredictError, FileNotFoundError)) as raised:
        RAISING[name]()
    said = str(raised.value).replace("'", "")
    assert [text for text in texts() if says(text, said)], said
