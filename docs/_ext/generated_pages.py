"""Write pages into a folder of the documentation when it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Write the texts of ``pages`` by name, and remove other pages except ``index.md``.

    A page whose text is the same is not written, so that Sphinx does not read it again.
    """
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.stem not in {*pages, "index"}:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
