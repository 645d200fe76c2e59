"""What is said of weights before they are released, and the pages of those that are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from st_predict import checkpoints
from st_predict.models import get_spec
from st_predict.specs import ModelCard, Reliability

ROOT = Path(__file__).parents[1]
WEIGHTS = Path(checkpoints.__file__).parent / "weights"
SPEC = get_spec("m2ost")
CARD = ModelCard(
    model="m2ost",
    genes=("A", "B"),
    crop=SPEC.crop_for(SPEC.tiny),
    hparams=dict(SPEC.tiny),
    license="CC-BY-4.0",
    citation="Somebody, 2026",
    training={"sections": [{"section": "S1", "patients": ["P1"], "n_spots": 10}]},
    reliability=(
        Reliability(
            held_out="patient",
            sections=("S2",),
            patients=("P2",),
            n_spots=50,
            partial=(0.25, 0.5),
            low=(-0.1, 0.4),
            high=(0.5, 0.6),
            ceiling=(0.9, None),
        ),
    ),
)


def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load(ROOT / "scripts" / "release_weights.py")


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "_ext")
        return load(ROOT / "docs" / "_ext" / "card_pages.py")


def save(path: Path, card: ModelCard = CARD) -> Path:
    checkpoints.save(path, checkpoints.build(CARD), card)
    return path


def test_what_to_upload_and_the_entry(script, tmp_path, capsys) -> None:
    file = save(tmp_path / "a.safetensors")
    before = {path: path.read_bytes() for path in WEIGHTS.iterdir()}
    summaries = ["--summary", "tiny@7=One section.", "--summary", "small@1=The same."]
    assert script.main([f"tiny@7={file}", f"small@1={file}", "--embed", "small@1", *summaries]) == 0
    printed = capsys.readouterr().out
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert "upload to the address that base_url of the index shall name (not set) as tiny-7.safetensors" in printed
    assert re.search(r"copy to \S+weights/small-1\.safetensors", printed)
    assert f"{file.stat().st_size:,} bytes, SHA-256 {digest}" in printed
    entries = json.loads(printed[printed.index("[\n") : printed.rindex("]") + 1])
    assert [checkpoints.Weights(**entry) for entry in entries] == [
        checkpoints.Weights(
            name=name,
            version=version,
            file=f"{name}-{version}.safetensors",
            sha256=digest,
            n_bytes=file.stat().st_size,
            embedded=name == "small",
            summary=summary,
        )
        for name, version, summary in (("tiny", "7", "One section."), ("small", "1", "The same."))
    ]
    megabytes = float(re.search(r"wheel would have about ([\d.]+) MB of 40", printed)[1])
    shipped = sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) / 1e6
    assert 0.8 * shipped < megabytes < 40
    assert {path: path.read_bytes() for path in WEIGHTS.iterdir()} == before


def test_weights_that_may_not_be_released(script, tmp_path, capsys) -> None:
    bare = save(
        tmp_path / "bare.safetensors", ModelCard(model="m2ost", genes=CARD.genes, crop=CARD.crop, hparams=CARD.hparams)
    )
    (tmp_path / "text.safetensors").write_text("no weights")
    given = {"m2ost@1": bare, "text@1": tmp_path / "text.safetensors", "none@1": tmp_path / "none.safetensors"}
    assert script.main([f"{name}={path}" for name, path in given.items()]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    for part in (
        "m2ost@1: the card lacks a licence",
        "m2ost@1: the card lacks a citation",
        "m2ost@1: the card lacks scores of its genes",
        "m2ost@1: the card lacks its training sections",
        "m2ost@1 is released, and released weights do not change",
        "text.safetensors' is not a complete safetensors file",
        "none@1: there is no file",
    ):
        assert part in found.err


def test_a_wheel_that_is_too_large(script, tmp_path, capsys, monkeypatch) -> None:
    file = save(tmp_path / "a.safetensors")
    monkeypatch.setattr(script, "LARGEST_WHEEL", 1e6)
    assert script.main([f"tiny@7={file}", "--embed", "tiny@7", "--summary", "tiny@7=One."]) == 1
    assert re.search(r"wheel would have [\d.]+ MB, more than 1", capsys.readouterr().err)


def test_what_leaves_the_package_is_not_counted(script) -> None:
    (embedded, *_) = [weights for weights in checkpoints.list_weights() if weights.embedded]
    saved = script.wheel_bytes([], set()) - script.wheel_bytes([], {embedded.file})
    assert 0.5 * embedded.n_bytes < saved <= embedded.n_bytes * 1.01


@pytest.mark.parametrize("bad", [["tiny=a"], ["tiny@1"], ["tiny@1=a", "--embed", "other@1"]])
def test_arguments_that_are_none(script, bad, capsys) -> None:
    with pytest.raises(SystemExit):
        script.main(bad)
    assert "usage" in capsys.readouterr().err


def test_a_page_for_each_of_the_released_weights(pages, tmp_path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "index.md").write_text("# Index")
    (tmp_path / "weights" / "old-1.md").write_text("# Old")
    pages.write_pages(SimpleNamespace(srcdir=tmp_path))
    names = {f"{weights.name}-{weights.version}.md" for weights in checkpoints.list_weights()}
    assert {path.name for path in (tmp_path / "weights").iterdir()} == {*names, "index.md"}
    text = (tmp_path / "weights" / "m2ost-1.md").read_text()
    for part in ("# `m2ost@1`", "sections C2, C3, C4, C5 of patient C", "CC-BY-4.0", "## Not known"):
        assert part in text


def test_the_table_of_genes_on_a_page(pages, tmp_path, monkeypatch) -> None:
    file = save(tmp_path / "tiny-1.safetensors")
    weights = checkpoints.Weights(
        name="tiny", version="1", file=file.name, sha256="0" * 64, n_bytes=10, embedded=True, summary="Of a test"
    )
    monkeypatch.setattr(checkpoints, "find_weights", lambda name: file)
    text = pages.page_of(weights)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[-2:] == [["B", "0.50", "0.40 to 0.60", "-", "yes"], ["A", "0.25", "-0.10 to 0.50", "0.90", ""]]
    assert "Another patient: section S2 of patient P2, 50 spots." in text
    fetched = pages.page_of(replace(weights, embedded=False))
    assert "st-predict card tiny@1" in fetched and "|" not in fetched
