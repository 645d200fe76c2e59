"""List the gaps of the project, or fill one: names and addresses that nobody may invent.

A gap is written ``<repository>``, with one of the names of GAPS. The release workflow runs this script and stops at a gap.

    python scripts/gaps.py                                   # list; exit status 1 if there are any
    python scripts/gaps.py repository=example.org/owner/name  # fill everywhere
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
GAPS = {
    "repository": "address of the repository without https://, as host/owner/name",
    "documentation": "address of the documentation without https://",
    "maintainer": "user name of a maintainer on the platform of the repository",
    "contact": "address that receives reports of vulnerabilities and of misconduct",
}
ABOUT_GAPS = {"scripts/gaps.py", "docs/contributing/gaps.md", "tests/test_project.py"}  # name them, have none
_GAP = re.compile(rf"<({'|'.join(GAPS)})>")


def text_files(root: Path = ROOT) -> dict[str, str]:
    """Texts of the files that git knows or would add, by path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    texts = {}
    for name in filter(None, sorted(set(listed) - ABOUT_GAPS)):
        try:
            texts[name] = (root / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # weights, figures; deleted
            continue
    return texts


def find_gaps(root: Path = ROOT) -> dict[str, list[str]]:
    """Files of each gap that is left, by its name."""
    found = defaultdict(list)
    for name, text in text_files(root).items():
        for gap in sorted(set(_GAP.findall(text))):
            found[gap].append(name)
    return dict(found)


def fill(gap: str, value: str, root: Path = ROOT) -> list[str]:
    """Write ``value`` in place of a gap; gives the files that changed."""
    changed = {name: text for name, text in text_files(root).items() if f"<{gap}>" in text}
    for name, text in changed.items():
        (root / name).write_text(text.replace(f"<{gap}>", value), encoding="utf-8")
    return sorted(changed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", nargs="*", metavar="GAP=VALUE")
    for entry in parser.parse_args(arguments).values:
        gap, separator, value = entry.partition("=")
        if gap not in GAPS or not separator or not value or value.startswith(("http://", "https://")):
            parser.error(f"{entry!r} is not GAP=VALUE, with a value without https:// for one of {sorted(GAPS)}")
        print(f"{gap}: {len(fill(gap, value))} files")
    left = find_gaps()
    for gap, names in left.items():
        print(f"<{gap}>: {GAPS[gap]}", *names, sep="\n  ")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
