"""What the package says of itself: versions, references, short texts of objects."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import st_predict as stp
from st_predict._reprs import shorten
from st_predict._version import __version__
from st_predict.models import cite, get_spec, link_to, list_models


def test_versions_of_what_decides_on_results(capsys):
    stp.show_versions()
    said = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines() if "\t" in line)
    assert said["st-predict"] == __version__
    assert said["numpy"] == np.__version__
    assert {"torch", "spatialdata", "anndata", "Python", "OS", "GPU"} <= said.keys()


@pytest.mark.parametrize("model", list_models())
def test_every_model_has_a_paper_that_can_be_found(model):
    entry = cite(model)
    assert re.match(r"@(article|inproceedings|misc)\{" + get_spec(model).citation + ",\n", entry)
    assert entry.count("{") == entry.count("}")
    assert entry.endswith("\n}")
    link = link_to(get_spec(model).citation)
    assert re.fullmatch(r"10\.\d{4,5}/\S+|https://\S+", link)


def test_the_table_of_models_has_the_links():
    dois = stp.models.table()["doi"]
    assert dois["stnet"] == "10.1038/s41551-020-0578-x"
    assert (dois != "").all()


def test_a_model_of_somebody_else_may_have_a_citation_of_its_own():
    assert link_to("Doe 2026, in preparation") == ""


def test_an_unknown_model_has_no_paper():
    with pytest.raises(KeyError, match="m2ots"):
        cite("m2ots")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (list("abcdef"), "[6: 'a', 'b', 'c', ...]"),
        (("a",), "('a',)"),
        ({"a": 1}, "{'a': 1}"),
        (dict.fromkeys("abcd", 0), "{4: 'a', 'b', 'c', ...}"),
        (np.zeros((3, 4), np.float32), "float32 (3, 4)"),
        (pd.DataFrame(np.zeros((3, 4))), "DataFrame of 3 rows, 4 columns"),
        (pd.Series([1.0, 2.0]), "Series of 2 rows, 1 columns"),
        (0.1 + 0.2, "0.3"),
        (None, "None"),
    ],
)
def test_values_in_a_few_words(value, text):
    assert shorten(value) == text


def test_a_card_fits_on_a_screen():
    card = stp.specs.ModelCard.of_file(stp.checkpoints.find_weights("m2ost"))
    for shown in (card, *card.reliability, stp.datasets.simulate(1, 1, n_genes=4, shape=(400, 400))):
        lines = repr(shown).splitlines()
        assert lines[0] == f"{type(shown).__name__}("
        assert len(lines) < 20
        assert max(map(len, lines)) <= 110
        html = shown._repr_html_()
        assert html.count("<tr>") == len(lines) - 2
    assert f"genes=[{len(card.genes)}: '{card.genes[0]}'" in repr(card)
    assert (
        "&lt;b&gt;"
        in stp.specs.ModelCard(model="m2ost", genes=("<b>",), crop=get_spec("m2ost").crop_for({}))._repr_html_()
    )
