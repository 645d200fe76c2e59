"""Say what to upload for new weights, and what to write into the index of the package.

python scripts/release_weights.py m2ost@3=runs/m2ost.safetensors --embed m2ost@3 --summary "m2ost@3=HER2-positive breast cancer, ..."

Nothing is uploaded or written. Checks: every file loads and has a card with licence, citation and scores of its genes, and the
wheel stays under 40 MB. Ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from st_predict import checkpoints
from st_predict._files import sha256_of_file
from st_predict.specs import ModelCard

PACKAGE = Path(checkpoints.__file__).parents[1]
WEIGHTS = PACKAGE / "checkpoints" / "weights"
LARGEST_WHEEL = 40e6


@dataclass(frozen=True)
class Release:
    """A checkpoint to release."""

    name: str
    version: str
    path: Path
    embedded: bool
    summary: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def entry(self) -> checkpoints.Weights:
        """Entry of the index."""
        return checkpoints.Weights(
            name=self.name,
            version=self.version,
            file=f"{self.name}-{self.version}.safetensors",
            sha256=sha256_of_file(self.path),
            n_bytes=self.path.stat().st_size,
            embedded=self.embedded,
            summary=self.summary,
        )


def problems_of(release: Release, released: list[checkpoints.Weights]) -> list[str]:
    """What forbids to release a checkpoint."""
    if not release.path.is_file():
        return [f"{release.label}: there is no file {str(release.path)!r}"]
    try:
        _, card = checkpoints.load(release.path)
    except (ValueError, KeyError) as error:
        return [f"{release.label}: {error}"]
    missing = {
        "a licence": card.license == "unknown",
        "a citation": not card.citation,
        "scores of its genes: st_predict.checkpoints.add_reliability": not card.reliability,
        "its training sections": not card.training.get("sections"),
    }
    found = [f"{release.label}: the card lacks {what}" for what, lacks in missing.items() if lacks]
    if not release.summary:
        found.append(f"{release.label}: no --summary says what it was trained on")
    if release.label in {f"{w.name}@{w.version}" for w in released}:
        found.append(f"{release.label} is released, and released weights do not change: take another version")
    return found


def wheel_bytes(embedded: list[Path], dropped: set[str]) -> int:
    """Size of the package as a zip file, with these weights and without those of the names ``dropped``."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / "wheel.zip"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(PACKAGE.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts and path.name not in dropped:
                    file.write(path, path.relative_to(PACKAGE.parent))
            for number, path in enumerate(embedded):
                file.write(path, f"st_predict/checkpoints/weights/new-{number}.safetensors")
        return wheel.stat().st_size


def render(releases: list[Release], base_url: str, n_bytes: int) -> str:
    """Text that is printed."""
    lines = []
    for release in releases:
        entry = release.entry
        upload = f"upload to {base_url or 'the address that base_url of the index shall name (not set)'}"
        where = f"copy to {os.path.relpath(WEIGHTS / entry.file)}" if entry.embedded else upload
        card = ModelCard.of_file(release.path)
        lines += [f"{release.label}: {release.path}", f"  {where} as {entry.file}"]
        lines += [f"  {entry.n_bytes:,} bytes, SHA-256 {entry.sha256}", f"  licence {card.license}; {card.citation}"]
        lines += [f"  {checkpoints.score_sentence(scores)}" for scores in card.reliability]
        lines += [f"  not known: {gap}" for gap in checkpoints.card_gaps(card)]
    entries = json.dumps([asdict(release.entry) for release in releases], indent=2)
    lines += ["", f"First in the list of {os.path.relpath(WEIGHTS / 'index.json')}:", entries]
    return "\n".join([*lines, "", f"The wheel would have about {n_bytes / 1e6:.1f} MB of {LARGEST_WHEEL / 1e6:.0f}."])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME@VERSION=FILE")
    parser.add_argument("--embed", action="append", default=[], metavar="NAME@VERSION", help="put into the package")
    parser.add_argument(
        "--drop", action="append", default=[], metavar="FILE", help="embedded file that leaves the package"
    )
    parser.add_argument("--summary", action="append", default=[], metavar="NAME@VERSION=TEXT")
    given = parser.parse_args(arguments)
    summaries = dict(_pair(parser, text) for text in given.summary)
    releases = []
    for label, path in (_pair(parser, text) for text in given.checkpoints):
        name, _, version = label.partition("@")
        if not name or not version:
            parser.error(f"{label!r} is not NAME@VERSION")
        embedded = label in given.embed
        releases.append(Release(name, version, Path(path), embedded=embedded, summary=summaries.get(label, "")))
    labels = {release.label for release in releases}
    if len(labels) < len(releases):
        parser.error("a NAME@VERSION is given twice")
    if absent := [name for name in given.drop if not (WEIGHTS / name).is_file()]:
        parser.error(f"--drop names {absent}, which are not in {os.path.relpath(WEIGHTS)}")
    if unknown := sorted({*given.embed, *summaries} - labels):
        parser.error(f"{unknown} are not among the checkpoints {sorted(labels)}")
    return _report(releases, set(given.drop))


def _report(releases: list[Release], dropped: set[str]) -> int:
    index = json.loads((WEIGHTS / "index.json").read_text(encoding="utf-8"))
    problems = [problem for release in releases for problem in problems_of(release, checkpoints.list_weights())]
    if not problems:
        n_bytes = wheel_bytes([release.path for release in releases if release.embedded], dropped)
        print(render(releases, index["base_url"], n_bytes))
        if n_bytes > LARGEST_WHEEL:
            problems = [f"The wheel would have {n_bytes / 1e6:.1f} MB, more than {LARGEST_WHEEL / 1e6:.0f}"]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _pair(parser: argparse.ArgumentParser, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        parser.error(f"{text!r} has no =")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
