"""Follow the links between built pages: files and anchors that are not there are listed, and end with status 1.

python scripts/check_links.py docs/_build/html
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, and its own name."""
        found = dict(attrs)
        self.anchors |= {value for value in (found.get("id"), found.get("name")) if value}
        link = found.get("href") if tag in {"a", "link"} else found.get("src")
        if link:
            self.links.append(link)


def broken(folder: Path) -> list[str]:
    """Links inside a folder of pages that lead nowhere, as ``page: link``."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html") if "_static" not in path.parts}
    return [
        f"{path.relative_to(folder.resolve())}: {link}"
        for path, page in pages.items()
        for link in dict.fromkeys(page.links)
        if not _leads(path, link, pages)
    ]


def _leads(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Whether a link leads to a file, and to an anchor if it names one; other sites are not asked."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return False
    anchor = unquote(parts.fragment)
    return target not in pages or anchor in {"", *pages[target].anchors}


def main() -> int:
    """Check the pages of the folder that is named."""
    found = broken(Path(sys.argv[1]))
    print("\n".join(found) or "All links inside lead somewhere.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
