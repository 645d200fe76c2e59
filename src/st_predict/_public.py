"""Names that a module shows to those who explore it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["show_only"]


def show_only(names: Iterable[str]) -> Callable[[], list[str]]:
    """Make the ``__dir__`` of a module, so that completion offers its public names and no imports."""
    shown = sorted(names)
    return lambda: list(shown)
