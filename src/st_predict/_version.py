"""The version of the package, for files and records that say which one wrote them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("st-predict")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
