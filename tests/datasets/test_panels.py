from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from typing import get_args, get_type_hints

import pytest

from st_predict import datasets

# of the files at https://github.com/Dootmaan/M2OST
DIGESTS = {
    "m2ost_cscc": "f484c3581d54359e2f68a44bb2483825a6d1a6eb7a8e985ac36a8cf068408462",
    "m2ost_hbc": "5938c6f59dde6727b8c88d8c7ddc2e38ebb989495b94a8a7a1f7781487406218",
    "m2ost_her2": "0cc55f7fc1f14c274059a2812a760068ab9b2d10aaae230391d2fa32b4920595",
}


def test_the_published_panels_are_unchanged():
    assert datasets.list_panels() == list(DIGESTS)
    for name, digest in DIGESTS.items():
        content = files("st_predict.datasets").joinpath("panels", f"{name}.txt").read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        genes = datasets.panel(name)
        assert len(genes) == len(set(genes)) == 250
        assert genes == content.decode().split("\n")[: len(genes)]


def test_names_of_genes():
    ensembl = [gene for gene in datasets.panel("m2ost_hbc") if not gene.startswith("__ambiguous[")]
    assert len(ensembl) == 240
    assert all(re.fullmatch(r"ENSG\d{11}", gene) for gene in ensembl)


def test_every_panel_has_its_source():
    readme = files("st_predict.datasets").joinpath("panels", "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.txt`" in readme for name in datasets.list_panels())


def test_unknown_panels_are_refused():
    with pytest.raises(ValueError, match=r"No panel 'her2'; there are .*'m2ost_her2'"):
        datasets.panel("her2")
    with pytest.raises(ValueError, match="name must be a string"):
        datasets.panel(3)


@pytest.mark.parametrize(
    ("function", "names"), [(datasets.panel, datasets.list_panels()), (datasets.splits, datasets.list_splits())]
)
def test_types_name_the_choices(function, names):
    assert list(get_args(get_type_hints(function)["name"])) == names
