"""Versions of the software that decides on results, for reports of faults."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from st_predict._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["show_versions", "versions"]

_SHOWN = (
    "st_predict",
    "torch",
    "timm",
    "lightning",
    "numpy",
    "anndata",
    "spatialdata",
    "zarr",
    "scanpy",
    "tifffile",
    "openslide",
)


def show_versions(*, dependencies: bool = False) -> None:
    """Print the versions of st_predict and its main packages, Python, the operating system, processors and GPUs.

    Parameters
    ----------
    dependencies
        Whether to list all loaded packages as well.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.show_versions()  # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
    st-predict	...
    """
    sys.stdout.write("".join(f"{name}\t{text}\n" for name, text in versions(dependencies=dependencies).items()))


@cache
def versions(*, dependencies: bool = False) -> Mapping[str, str]:
    """Versions by package, and the parts of the machine."""
    from importlib.metadata import packages_distributions

    from session_info2 import SessionInfo

    loaded = {name: importlib.import_module(name) for name in _SHOWN}
    lines = str(SessionInfo(packages_distributions(), loaded, dependencies=dependencies)).splitlines()
    known = dict(line.split("\t", 1) for line in lines)
    shown = {name: text for name, text in known.items() if set(name) != {"-"}}
    return MappingProxyType({"st-predict": __version__, **shown})
