"""Progress bars, shown after two seconds in a terminal or a notebook."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from st_predict._errors import wrapper
from st_predict._validated import Flag, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

P = ParamSpec("P")
T = TypeVar("T")

DELAY_S = 2.0
"""Work that is done within this time shows no bar."""

_ASKED: ContextVar[bool | None] = ContextVar("st_predict_progress", default=None)


@contextmanager
def shown(*, progress: bool | None) -> Iterator[None]:
    """Show or hide the bars of a block; ``None`` takes what the caller was asked for."""
    token = _ASKED.set(_ASKED.get() if progress is None else progress)
    try:
        yield
    finally:
        _ASKED.reset(token)


def shows_progress(function: Callable[P, T]) -> Callable[P, T]:
    """Let the argument ``progress`` of a function decide on all bars that appear while it runs."""

    @wrapper
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with shown(progress=check("progress", kwargs.get("progress"), Flag | None)):
            return function(*args, **kwargs)

    return call


def bar(doing: str, total: int | None, *, unit: str, start: int = 0) -> Any:
    """Return a bar of tqdm, to be closed; ``unit="B"`` counts bytes."""
    return _bars()(
        desc=doing,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        initial=start,
        delay=DELAY_S,
        disable=not is_wanted(),
        dynamic_ncols=True,
        leave=None,  # an inner bar disappears
    )


def track(
    items: Iterable[T], doing: str, total: int | None, *, unit: str, size: Callable[[Any], int] = lambda _: 1
) -> Iterator[T]:
    """Yield the items; the bar counts the ``size`` of those that were worked off."""
    with bar(doing, total, unit=unit) as shown_bar:
        for item in items:
            yield item
            shown_bar.update(size(item))


@contextmanager
def hub_bars() -> Iterator[None]:
    """Show or hide the bars of downloads from the Hugging Face Hub in the same way."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if is_wanted() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def is_wanted() -> bool:
    """Whether bars are shown: as the caller asked, and by default where a person looks on."""
    asked = _ASKED.get()
    return asked if asked is not None else _in_notebook() or bool(sys.stderr and sys.stderr.isatty())


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@cache
def _bars() -> Any:
    """Bars of tqdm for terminals and notebooks, without its thread that watches them."""
    from tqdm.auto import tqdm

    class Watchless(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        monitor_interval = 0

    return Watchless
