"""Errors of the package: what was found, what is accepted, and the ways out that the called function has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import CodeType, TracebackType

__all__ = ["Advice", "InvalidTypeError", "InvalidValueError", "NotFoundError", "StPredictError", "wrapper"]

P = ParamSpec("P")
T = TypeVar("T")

_WRAPPERS: set[CodeType] = set()


@dataclass(frozen=True, slots=True)
class Advice:
    """A way out of an error by an argument of the called function.

    Parameters
    ----------
    text
        Clause with ``{}`` where the argument is written, such as ``"leave them out with {}"``.
    argument
        Name of the argument. Functions without it do not give this advice.
    value
        Value to pass; ``None`` if the caller has to choose one.
    """

    text: str
    argument: str
    value: Any = None


class StPredictError(Exception):
    """An error whose message names only arguments of the function that the user called.

    The function is found in the traceback: it is the outermost one of this package. What raises the error does not need to
    know which function that is, and no function needs to translate the errors of those that it calls.

    Parameters
    ----------
    found
        What was found, and what is accepted, in full sentences.
    advice
        Alternative ways out, as clauses: plain text, or :class:`Advice` that depends on an argument.
    """

    def __init__(self, found: str, *advice: str | Advice) -> None:
        super().__init__(found)
        self.found = found
        self.advice = advice
        self._called: tuple[str, ...] | None = None  # arguments of the called function, in another process

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.found, self.advice, self._arguments())

    def _arguments(self) -> tuple[str, ...] | None:
        return _arguments_of_called(self.__traceback__) if self._called is None else self._called

    def __str__(self) -> str:
        arguments = self._arguments()
        return self.say(lambda way: _keyword(way) if arguments is None or way.argument in arguments else None)

    @property
    def arguments(self) -> frozenset[str]:
        """Names of the arguments that the advice is about."""
        return frozenset(way.argument for way in self.advice if isinstance(way, Advice))

    def say(self, write: Callable[[Advice], str | None]) -> str:
        """Return the message, with each argument written by ``write``; advice for which that is ``None`` is left out."""
        ways = [_clause(way, write) for way in self.advice]
        joined = ", or ".join(way for way in ways if way)
        said = f"{self.found} {joined[0].upper()}{joined[1:]}." if joined else self.found
        return said.replace("?.", "?")  # where a sentence that asks was quoted in another one

    def about(self, what: str) -> Self:
        """Return the same error with a sentence, or a name with a colon, in front that says what it is about."""
        return type(self)(f"{what} {self.found}".strip(), *self.advice)

    def without(self, arguments: Collection[str]) -> Self:
        """Return the same error without advice about some arguments, which mean something else to the caller."""
        kept = (way for way in self.advice if not isinstance(way, Advice) or way.argument not in arguments)
        return type(self)(self.found, *kept)


def _restored(
    kind: type[StPredictError], found: str, advice: tuple[str | Advice, ...], called: tuple[str, ...] | None
) -> StPredictError:
    """Make an error that was pickled; its traceback is gone, or has no names of arguments."""
    error = kind(found, *advice)
    error._called = called
    return error


class InvalidValueError(StPredictError, ValueError):
    """A value, an element or a file that cannot be used."""


class NotFoundError(StPredictError, KeyError):
    """A name that does not exist; the message lists those that do."""


class InvalidTypeError(StPredictError, TypeError):
    """An object of a type that cannot be used."""


def _clause(way: str | Advice, write: Callable[[Advice], str | None]) -> str | None:
    if isinstance(way, str):
        return way
    written = write(way)
    return None if written is None else way.text.replace("{}", written)


def _keyword(way: Advice) -> str:
    if way.value is None:
        return f"{way.argument}="
    return f'{way.argument}="{way.value}"' if isinstance(way.value, str) else f"{way.argument}={way.value}"


def wrapper(function: Callable[P, T]) -> Callable[P, T]:
    """Mark what a decorator puts around functions, as users do not call it."""
    _WRAPPERS.add(function.__code__)
    return function


def _arguments_of_called(traceback: TracebackType | None) -> tuple[str, ...] | None:
    """Arguments of the outermost function of this package; ``None`` if the error was not raised by one."""
    while traceback is not None:
        frame = traceback.tb_frame
        code = frame.f_code
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == __package__ and code not in _WRAPPERS:
            return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        traceback = traceback.tb_next
    return None
