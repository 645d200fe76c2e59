"""Settings of the documentation."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
from importlib.metadata import metadata
from pathlib import Path

import st_predict

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

# Returns sections name the classes of the package as readers write them.
_modules = [
    importlib.import_module(f"st_predict.{name}")
    for name in st_predict.__all__
    if name != "show_versions"
]
PUBLIC = {
    name: f"~{module.__name__}.{name}"
    for module in _modules
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
}

# alternative texts of the pictures that docs/plots draws, one per function of st_predict.pl
PLOTS = {
    "benchmark": "Three panels: boxes of the scores of three models per gene and per section, each under a black line, the noise ceiling; and their "
    "mean ranks as points, with grey bars that join models whose ranks are not told apart.",
    "crops": "Fields of view around a spot: three squares on the H&E image, and the three inputs of the network beside it.",
    "cohort": "Maps of a gene in two sections on one colour scale, with the correlation of each in its title.",
    "depth": "Two scatter plots, a point per gene: correlation and partial correlation of the prediction against correlation of the gene with "
    "sequencing depth.",
    "heatmap": "Heat map of genes by scores for two sections, with a colour bar from -1 to 1.",
    "pca_map": "H&E image of a section, and its spots in the colours of two principal components, as observed and as predicted.",
    "scatter": "Observed against predicted expression of two genes, a point per spot, with the line of equality.",
    "scores": "Partial correlation of each gene, best first, with a baseline and the noise ceiling.",
    "spatial": "H&E image of a section, and two genes as observed and as predicted, a coloured circle per spot, with colour bars.",
    "training": "Loss of training and validation per epoch, and the validation score with its best epoch.",
}
PICTURES = {
    "report": (
        "../_static/report.jpg",
        "A report in a browser: facts about model and slide, maps of genes, and scores.",
    )
}

extensions = [
    "matplotlib.sphinxext.plot_directive",
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
    "array_types",
    "card_pages",
    "command_pages",
    "constant_docs",
    "encoder_table",
    "error_texts",
    "model_pages",
    "model_table",
    "typography",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_context = {"plots": PLOTS, "pictures": PICTURES}
plot_basedir = str(Path(__file__).parent)
plot_formats = [("png", 100)]
plot_html_show_formats = False
plot_html_show_source_link = False
autodoc_member_order = "bysource"
suppress_warnings = ["config.cache"]  # of the function in array_types
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_preprocess_types = True
napoleon_type_aliases = PUBLIC | {
    "AnnData": "~anndata.AnnData",
    "DataArray": "~xarray.DataArray",
    "DataFrame": "~pandas.DataFrame",
    "DataTree": "~xarray.DataTree",
    "Figure": "~matplotlib.figure.Figure",
    "Path": "~pathlib.Path",
    "SpatialData": "~spatialdata.SpatialData",
    "Tensor": "~torch.Tensor",
    "csr_array": "~scipy.sparse.csr_array",
    "ndarray": "~numpy.ndarray",
}
typehints_defaults = "braces"
always_use_bars_union = True

bibtex_bibfiles = ["../src/st_predict/references.bib"]
bibtex_reference_style = "author_year"

# Quotes and dashes of messages, options and JSON are shown as they are typed.
smartquotes = False

nitpicky = True
# Annotations are linked by the module that defines a class, often a private one that no inventory knows.
nitpick_ignore_regex = [
    ("py:.*", r"(pandas|xarray)\.core\..*"),
    ("py:.*", r"(numpy\.bool|torch\.dtype)"),
]
# structural types, base classes and helpers without a page
nitpick_ignore = [
    ("py:class", "st_predict.models._features.Reading"),
    ("py:class", "st_predict.models._timm.TimmRegressor"),
    ("py:class", "st_predict.models.stflow.Seen"),
    ("py:class", "st_predict.pl._table.HasGenes"),
    ("py:class", "st_predict.tl._reliability.ScoredSection"),
]
if not ON_READ_THE_DOCS:
    # names that only other projects' inventories know
    nitpick_ignore_regex += [
        (
            "py:.*",
            r"(anndata|collections|distributed|geopandas|matplotlib|numpy|os|pandas|pathlib|scipy|spatialdata|torch|typing|xarray)\..*",
        ),
        ("py:.*", r"(Ellipsis|bool|bytes|dict|float|int|list|object|str|tuple)"),
    ]
intersphinx_mapping = (
    {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "distributed": ("https://distributed.dask.org/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
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
html_theme_options = {
    "show_toc_level": 2,
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo-dark.svg"},
    "navbar_persistent": [],  # the search of the side bar is enough
}
html_static_path = ["_static"]
html_css_files = ["css/custom.css"]
html_favicon = "_static/favicon.svg"
# without a site URL there is nothing that a card could point to
ogp_site_url = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
ogp_social_cards = {"enable": False}
