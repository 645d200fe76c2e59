"""Predict spatial gene expression from histology, on SpatialData and AnnData."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("st-predict")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["crops", "datasets", "get", "io", "metrics", "models", "pl", "pp", "specs", "tl"]

if TYPE_CHECKING:
    from st_predict import crops, datasets, get, io, metrics, models, pl, pp, specs, tl


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
