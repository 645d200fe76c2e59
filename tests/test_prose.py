"""The hook for plain English finds what it should, and nothing in the texts that are written for users."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def hook() -> dict[str, str]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return next(one for repo in config["repos"] for one in repo["hooks"] if one["id"] == "plain-english")


HOOK = re.compile(hook()["entry"])
FILES = re.compile(hook()["files"])


@pytest.mark.parametrize(
    "sentence",
    [
        "The image alone is read.",
        "It is no error.",
        "Compare it with what was measured.",
        "The units are those of the network.",
        "A score a gene.",
        "        Of these, one is taken.",
        'help="Of the sections."',
    ],
)
def test_a_planted_sentence_is_found(sentence: str) -> None:
    assert HOOK.search(sentence)


@pytest.mark.parametrize(
    "sentence",
    ["Only the image is read.", "There is no default.", "What is a spot?", "One score per gene.", "The model's units."],
)
def test_plain_sentences_pass(sentence: str) -> None:
    assert not HOOK.search(sentence)


def test_tutorials_are_in_plain_english() -> None:
    cells = [
        (path.stem, line)
        for path in (ROOT / "docs" / "tutorials").glob("*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
    ]
    assert len(cells) > 100
    assert [cell for cell in cells if HOOK.search(cell[1])] == []


def test_users_read_plain_english() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in listed
        if FILES.search(name)
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if HOOK.search(line)
    ]
    assert found == []
