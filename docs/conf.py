"""Settings of the documentation."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# from sphinx-autodoc-typehints, once for each signature
warnings.filterwarnings("ignore", message=".*set_application")

# Other projects' inventories are fetched from the network, so links into them are made and checked on Read the Docs only.
ON_READ_THE_DOCS = "READTHEDOCS" in os.environ

_package = metadata("st-predict")
project = "st_predict"
author = "st_predict developers"
copyright = f"2026, {author}"
release = version = _package["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
    "card_pages",
    "command_pages",
    "encoder_table",
    "model_pages",
    "model_table",
    "plain_returns",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
typehints_defaults = "braces"
always_use_bars_union = True

bibtex_bibfiles = ["../src/st_predict/references.bib"]
bibtex_reference_style = "author_year"

nitpicky = ON_READ_THE_DOCS
# Annotations are linked by the module that defines a class, often a private one that no inventory knows.
nitpick_ignore_regex = [
    ("py:.*", r".*\._.*"),
    ("py:.*", r"(pandas|xarray)\.core\..*"),
    ("py:.*", r"(numpy\.bool|torch\.dtype)"),
]
intersphinx_mapping = (
    {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
        "xarray": ("https://docs.xarray.dev/en/stable/", None),
    }
    if ON_READ_THE_DOCS
    else {}
)

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2}
# without a site URL there is nothing that a card could point to
ogp_site_url = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
ogp_social_cards = {"enable": False}
