"""Errors of the package: found value, accepted values, and ways out by arguments of the called function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import CodeType, TracebackType

__all__ = [
    "Advice",
    "InvalidTypeError",
    "InvalidValueError",
    "NoTissueError",
    "NotFoundError",
    "StPredictError",
    "wrapper",
]

P = ParamSpec("P")
T = TypeVar("T")

_WRAPPERS: set[CodeType] = set()


@dataclass(frozen=True, slots=True)
class Advice:
    """Way out of an error by an argument of the called function.

    Parameters
    ----------
    text
        Clause with ``{}`` in place of the argument, such as ``"leave them out with {}"``.
    argument
        Name of the argument. Advice is left out for functions without it.
    value
        Value to pass; ``None`` if the user must choose one.
    """

    text: str
    argument: str
    value: Any = None


class StPredictError(Exception):
    """Error whose message only names arguments of the function that the user called.

    That function is the outermost one of this package in the traceback. Code that raises errors does not need to know
    it, and callers do not need to translate errors.

    Parameters
    ----------
    found
        Found value and accepted values, in full sentences.
    advice
        Alternative ways out, as clauses: plain text, or :class:`Advice` that depends on an argument.
    """

    def __init__(self, found: str, *advice: str | Advice) -> None:
        super().__init__(found)
        self.found = found
        self.advice = advice
        self._called: tuple[str, ...] | None = None  # arguments of the called function, for pickling

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.found, self.advice, self._arguments())

    def _arguments(self) -> tuple[str, ...] | None:
        return _arguments_of_called(self.__traceback__) if self._called is None else self._called

    def __str__(self) -> str:
        arguments = self._arguments()
        return self.say(lambda way: _keyword(way) if arguments is None or way.argument in arguments else None)

    @property
    def arguments(self) -> frozenset[str]:
        """Names of the arguments in the advice."""
        return frozenset(way.argument for way in self.advice if isinstance(way, Advice))

    def say(self, write: Callable[[Advice], str | None]) -> str:
        """Return the message with arguments formatted by ``write``; advice is left out if it returns ``None``."""
        ways = [_clause(way, write) for way in self.advice]
        joined = ", or ".join(way for way in ways if way)
        said = f"{self.found} {joined[0].upper()}{joined[1:]}." if joined else self.found
        return said.replace("?.", "?")  # a question quoted in another sentence

    def about(self, what: str) -> Self:
        """Return the same error with a prefix, a sentence or a name with a colon, that names its subject."""
        return type(self)(f"{what} {self.found}".strip(), *self.advice)

    def without(self, arguments: Collection[str]) -> Self:
        """Return the same error without advice about some arguments, which have another meaning for the caller."""
        kept = (way for way in self.advice if not isinstance(way, Advice) or way.argument not in arguments)
        return type(self)(self.found, *kept)


def _restored(
    kind: type[StPredictError], found: str, advice: tuple[str | Advice, ...], called: tuple[str, ...] | None
) -> StPredictError:
    """Restore a pickled error, whose traceback lacks argument names."""
    error = kind(found, *advice)
    error._called = called
    return error


class InvalidValueError(StPredictError, ValueError):
    """Invalid value, element or file."""


class NoTissueError(InvalidValueError):
    """Slide without tissue, for callers that skip such slides."""


class NotFoundError(StPredictError, KeyError):
    """Name that does not exist; the message lists the existing ones."""


class InvalidTypeError(StPredictError, TypeError):
    """Object of an invalid type."""


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
    """Mark the inner function of a decorator, which users do not call themselves."""
    _WRAPPERS.add(function.__code__)
    return function


def _arguments_of_called(traceback: TracebackType | None) -> tuple[str, ...] | None:
    """Return the arguments of the outermost function of this package; ``None`` if another package's code raised the error."""
    while traceback is not None:
        frame = traceback.tb_frame
        code = frame.f_code
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == __package__ and code not in _WRAPPERS:
            return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        traceback = traceback.tb_next
    return None
