"""Pages for users: their numbers are those of stored results, and their pictures and links exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import st_predict as stp

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS.parent / "benchmarks" / "results"
STATIC = DOCS / "_static"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


SCORES = {(row["weights"], row["section"], row["predictor"]): row for row in results("her2st/weights.json")}
NUMBERS = {
    "m2ost on C6": f"{SCORES['m2ost', 'C6', 'pred_m2ost']['gene_partial']:.3f}",
    "m2ost on B4": f"{SCORES['m2ost', 'B4', 'pred_m2ost']['gene_partial']:.3f}",
}
CEILINGS = {name: f"{SCORES['m2ost', name, 'ceiling']['gene_partial']:.3f}" for name in ("C6", "B4")}


@pytest.mark.parametrize(
    "name", ["index.md", "which-model.md", "faq.md", "concepts/leakage.md", "concepts/trust.md", "concepts/scores.md"]
)
def test_scores_of_the_weights_are_the_stored_ones(name: str) -> None:
    """C6 stands on each page; where B4 does, it is right as well."""
    text = page(name)
    assert NUMBERS["m2ost on C6"] in text
    assert name == "concepts/scores.md" or NUMBERS["m2ost on B4"] in text


def test_tables_have_the_stored_scores() -> None:
    ridge = {n: f"{SCORES['ridge-effnet', n, 'pred_ridge']['gene_partial']:.3f}" for n in ("C6", "B4")}
    for section in ("C6", "B4"):
        (row,) = re.findall(rf"^\| {section}, .*$", page("index.md"), re.MULTILINE)
        assert ridge[section] in row
        assert CEILINGS[section] in row
    position = [f"{SCORES['m2ost', n, 'position']['gene_partial']:.3f}" for n in ("C6", "B4")]
    assert f"| position only, no image (C6, B4) | {position[0]} | {position[1]} |" in page("concepts/leakage.md")
    trust = {row["held_out"]: f"{row['mean']:.3f}" for row in results("her2st/trust.json")}
    patient, section = trust["another patient"], trust["another section of a training patient"]
    assert f"| ridge on `rgb` (C5, B4) | {section} | {patient} |" in page("concepts/leakage.md")


def test_costs_are_the_stored_ones() -> None:
    found = {row["variant"]: row for row in results("costs.json")["costs"]}
    for name in ("m2ost", "ridge-effnet", "m2ost@1"):
        few, many = (found[f"{name}, every {pitch} um"] for pitch in (100, 55))
        row = f"| `{name}` | {few['seconds']:.0f} s | {many['seconds']:.0f} s |"
        assert row in page("which-model.md")
    assert f"{few['spots']} spots | {many['spots']:,} spots" in page("which-model.md")


def test_the_number_of_reliable_genes_is_that_of_the_card() -> None:
    card = stp.specs.ModelCard.of_file(stp.checkpoints.find_weights("m2ost"))
    (scores,) = [one for one in card.reliability if one.held_out == "patient"]
    said = f"{len(scores.trusted())} of 248 genes"
    for name in ("which-model.md", "faq.md"):
        assert said in page(name).replace("\n", " "), name


def test_thresholds_of_warnings_are_those_of_the_code() -> None:
    from st_predict._sections import _familiar as familiar

    rows = dict(re.findall(r"^\| (.+?) \| (?:half.*|.*?([\d.]+)) \|$", page("concepts/trust.md"), re.MULTILINE))
    assert familiar.SHIFT == 0.5
    assert float(rows["contrast (standard deviation of colours)"]) == familiar.CONTRAST
    assert float(rows["optical density of haematoxylin and of eosin"]) == familiar.STAIN
    assert float(rows["distance of spots, if the network reads neighbours"]) == familiar.PITCH


def test_every_page_is_in_a_table_of_contents() -> None:
    index = page("index.md")
    for path in DOCS.glob("*.md"):
        assert path.stem == "index" or re.search(rf"^(.* <)?{path.stem}>?$", index, re.MULTILINE), path.name
    for path in [*DOCS.glob("concepts/*.md"), *DOCS.glob("how-to/*.md")]:
        assert re.search(rf"^{path.parent.name}/{path.stem}$", index, re.MULTILINE), path.name


def test_the_landing_page_has_one_install_line_and_one_example() -> None:
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", page("index.md"), re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python", "bash"]
    assert blocks[0][1] == "pip install st-predict\n"
    assert page("index.md").count(":::{grid-item-card} [") == 4


def test_pictures_exist_and_each_figure_of_the_gallery_is_drawn_there() -> None:
    for path in DOCS.rglob("*.md"):
        if "_build" in path.parts:
            continue
        for picture in re.findall(r"^```\{image\} (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert (path.parent / picture).exists(), (path.name, picture)
    drawn = re.findall(r'save="(\w+\.png)"', page("gallery.md"))
    shown = re.findall(r"^```\{image\} _static/(gallery_\w+\.png)$", page("gallery.md"), re.MULTILINE)
    assert drawn == shown
    assert len(drawn) >= 8


@pytest.mark.parametrize("name", ["logo.svg", "logo-dark.svg", "favicon.svg"])
def test_the_logo_loads_nothing(name: str) -> None:
    root = ET.parse(STATIC / name).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [node for node in root.iter() if node.tag.endswith(("script", "image", "use", "style"))]


def test_the_readme_is_on_a_page_of_its_own() -> None:
    assert page("overview.md").startswith("```{include} ../README.md\n")


def test_anchors_of_links_between_pages_exist() -> None:
    wrong = []
    for path in [*DOCS.glob("*.md"), *DOCS.glob("concepts/*.md")]:
        for target, anchor in re.findall(r"\]\(([\w/.-]+\.md)#([\w-]+)\)", path.read_text(encoding="utf-8")):
            headings = re.findall(r"^#+ (.+)$", (path.parent / target).read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            if anchor not in slugs:
                wrong.append((path.name, target, anchor))
    assert wrong == []
