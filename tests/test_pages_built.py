"""The script that follows the links between built pages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("check_links", ROOT / "scripts" / "check_links.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_links_that_lead_nowhere_are_found(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "how to").mkdir()
    (tmp_path / "how to" / "a.html").write_text(
        '<h1 id="top">A</h1><a href="../index.html#x">up</a><a href="#top">.</a>'
    )
    page = tmp_path / "index.html"
    good = '<a name="x"></a><a href="how%20to/a.html#top"></a><a href="https://example.org/no"></a><img src="i.png"><a href="mailto:a@b">'
    (tmp_path / "i.png").write_bytes(b"")
    page.write_text(good)
    assert script.broken(tmp_path) == []
    page.write_text(good + '<a href="b.html"></a><a href="how%20to/a.html#none"></a><img src="j.png"><a href="#y"></a>')
    links = ("b.html", "how%20to/a.html#none", "j.png", "#y")
    assert script.broken(tmp_path) == [f"index.html: {link}" for link in links]
    monkeypatch.setattr(sys, "argv", ["check_links.py", str(tmp_path)])
    assert script.main() == 1
    assert "j.png" in capsys.readouterr().out
