"""Find models: a model is a public module of this package that has a ``SPEC``."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from st_predict._errors import InvalidTypeError, NotFoundError

if TYPE_CHECKING:
    from st_predict.models._base import ModelSpec

__all__ = ["get_spec", "list_models"]

_PACKAGE = "st_predict.models"


def list_models() -> list[str]:
    """List the models that can be built. No model is imported.

    Returns
    -------
    list of str
        Names in alphabetical order.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.models.list_models()[:4]
    ['bleep', 'convnext', 'crossvit', 'deepspace']
    """
    return sorted(_built_in() | {e.name for e in entry_points(group=_PACKAGE)})


def get_spec(name: str) -> ModelSpec:
    """Return the specification of a model.

    Parameters
    ----------
    name
        Name of the model, one of :func:`list_models`.

    Returns
    -------
    ModelSpec
        Specification, without a network.

    Raises
    ------
    KeyError
        If the model does not exist; the message lists all models.
    TypeError
        If ``name`` is not a text.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.models.get_spec("stnet")
    >>> spec.summary
    'DenseNet-121 on one crop, averaged over its eight symmetries.'
    >>> spec.crop.levels
    (LevelSpec(size=224, downsample=1.0),)
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"A model is given by its name, one of {list_models()}, got {name!r}.")
    if name in _built_in():  # first, so that no plug-in can replace a built-in model
        return importlib.import_module(f"{_PACKAGE}.{name}").SPEC
    for entry in entry_points(group=_PACKAGE, name=name):
        return entry.load()
    near = get_close_matches(name.lower(), list_models(), n=1)
    raise NotFoundError(f"No model {name!r}; there are {list_models()}.{f' Did you mean {near[0]!r}?' if near else ''}")


def _built_in() -> set[str]:
    package = importlib.import_module(_PACKAGE)
    return {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
