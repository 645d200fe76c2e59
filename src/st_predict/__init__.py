"""Predict spatial gene expression from histology, on SpatialData and AnnData."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from st_predict._public import show_only
from st_predict._show_versions import show_versions as show_versions
from st_predict._version import __version__ as __version__

__all__ = [
    "checkpoints",
    "cohort",
    "crops",
    "datasets",
    "encoders",
    "get",
    "io",
    "metrics",
    "models",
    "pl",
    "pp",
    "show_versions",
    "specs",
    "tl",
]

__dir__ = show_only([*__all__, "__version__"])

if TYPE_CHECKING:
    from st_predict import checkpoints, cohort, crops, datasets, encoders, get, io, metrics, models, pl, pp, specs, tl


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
