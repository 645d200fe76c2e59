"""Short text and HTML of objects that hold arrays, tables and long lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from html import escape
from typing import Any

__all__ = ["ShortRepr"]

LONGEST = 72
"""Characters of a value."""

SHOWN = 3
"""Number of elements shown of a long list or mapping."""


class ShortRepr:
    """Base of dataclasses with ``repr=False``: each field is shown on at most one line."""

    __slots__ = ()

    def __repr__(self) -> str:
        lines = [f"    {name}={text}," for name, text in self._summary().items()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self._summary().items()
        )
        return f"<h4>{escape(type(self).__name__)}</h4><table>{rows}</table>"

    def _summary(self) -> dict[str, str]:
        shown: Any = self  # a dataclass
        return {field.name: shorten(getattr(self, field.name)) for field in fields(shown)}


def shorten(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Mapping) and len(value) > SHOWN:
        return f"{{{len(value)}: {_first(value)}, ...}}"
    if isinstance(value, list | tuple | set | frozenset) and len(value) > SHOWN:
        return f"[{len(value)}: {_first(value)}, ...]"
    if hasattr(value, "shape") and hasattr(value, "dtypes"):
        rows, columns = value.shape if len(value.shape) == 2 else (*value.shape, 1)
        return f"{type(value).__name__} of {rows} rows, {columns} columns"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, ShortRepr):
        return f"{type(value).__name__}(...)"
    return _cut(f"{value:.6g}" if isinstance(value, float) else repr(value))


def _first(values: Any) -> str:
    return _cut(", ".join(map(repr, list(values)[:SHOWN])))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
