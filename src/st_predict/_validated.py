"""Frozen dataclasses with fields checked by pydantic at construction."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import field, fields
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from st_predict._errors import InvalidValueError, StPredictError
from st_predict._reprs import ShortRepr

__all__ = [
    "Byte",
    "Count",
    "Device",
    "Few",
    "Fields",
    "File",
    "Flag",
    "Fraction",
    "Name",
    "Natural",
    "NotNegative",
    "Number",
    "Positive",
    "Probability",
    "Share",
    "Text",
    "Texts",
    "check",
    "validated",
]

T = TypeVar("T")

_MANY = 64

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


def _whole(value: Any) -> Any:
    """Turn integers of numpy into integers of Python; refuse booleans and strings."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError("must be a whole number")
    return int(value)


def _real(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError("must be a number")
    return float(value)


def _path(value: Any) -> Any:
    if value == "":  # Path would make it the working directory
        raise ValueError("must be a path that is not empty")
    if isinstance(value, str | PathLike) and isinstance(fspath(value), str):
        return Path(value)
    raise ValueError("must be a path")


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]+", value) or value in {".", ".."} or value[:2] == "__":
        raise ValueError("must be a name of letters, digits, _, - and .")
    return value


def _flag(value: Any) -> Any:
    if type(value).__name__ not in {"bool", "bool_"}:
        raise ValueError("must be True or False")
    return bool(value)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if not value:
        raise ValueError("must be a string that is not empty")
    return str(value)


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise ValueError("must be a list of names")
    names = list(value)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("must be a list of names")
    return names


def _few(value: Any) -> Any:
    if isinstance(value, Sized) and len(value) > _MANY:  # otherwise a million values would each be checked
        raise ValueError(f"must be at most {_MANY} values")
    return value


def _device(value: Any) -> Any:
    if (
        isinstance(value, str) or type(value).__name__ == "device"
    ):  # torch.device, without importing torch, which is slow
        return str(value)
    raise ValueError("must be the name of a device")


def _fields(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a mapping from names to values")
    return dict(value)


Few = BeforeValidator(_few)
"""Type of a short list."""

Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[list[str], BeforeValidator(_texts)]
Fields = Annotated[Any, BeforeValidator(_fields)]
File = Annotated[Path, BeforeValidator(_path)]
Natural = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Number = Annotated[float, BeforeValidator(_real)]
NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Probability = Annotated[Number, Field(ge=0, lt=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Byte = Annotated[Natural, Field(le=255)]
Device = Annotated[str, BeforeValidator(_device)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Name = Annotated[Any, BeforeValidator(_name)]
"""Element name that SpatialData can store."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, Field))
def validated(cls: type[T]) -> type[T]:
    """Make a frozen keyword-only dataclass that refuses unknown fields, wrong types, NaN and infinity.

    Types of annotations must be imported at run time, because pydantic reads them.
    """
    made: Any = dataclass(
        cls, frozen=True, kw_only=True, slots=True, repr=not issubclass(cls, ShortRepr), config=_CONFIG
    )
    make = made.__init__

    @functools.wraps(make)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            make(self, *args, **values)
            return
        except ValidationError as error:
            translated = _translated(error, made)
        raise translated  # outside the handler, because pydantic's error cannot be pickled

    # pydantic's __init__ has annotations that other code cannot resolve
    del init.__wrapped__
    init.__module__ = __name__
    init.__annotations__ = {name: info.annotation for name, info in made.__pydantic_fields__.items()}
    made.__init__ = init
    return made


def check(argument: str, value: Any, kind: Any) -> Any:
    """Validate an argument of a function as ``kind``, one of the types above, and return it.

    Raises
    ------
    InvalidValueError
        If it is not valid; the message names the argument.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        found = [{**one, "loc": (argument, *one["loc"])} for one in error.errors()]
    raise InvalidValueError(f"{_sentence(argument, found)}.")


@functools.lru_cache(maxsize=256)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return the cached validator of a type; making one takes a millisecond, and a call checks dozens."""
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def _translated(error: ValidationError, cls: Any) -> StPredictError:
    """Turn pydantic's errors into one sentence per field."""
    found = error.errors()
    own = found[0].get("ctx", {}).get("error")
    if isinstance(own, StPredictError):
        return own.with_traceback(None)
    names = [f.name for f in fields(cls)]
    if unknown := [one["loc"][0] for one in found if one["loc"][0] not in names]:
        return InvalidValueError(f"{cls.__name__} has no fields {sorted(map(str, unknown))}; there are {names}.")
    # for unions, pydantic reports each member
    places = {str(one["loc"][0]): [other for other in found if other["loc"][0] == one["loc"][0]] for one in found}
    return InvalidValueError("; ".join(_sentence(place, errors) for place, errors in places.items()) + ".")


def _sentence(name: str, errors: Sequence[Any]) -> str:
    first = errors[0]
    parts = [str(part) for part in first["loc"][1:] if not re.search(r"[\[(]", str(part))] if len(errors) == 1 else []
    place = ".".join([name, *parts])
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "unexpected_keyword_argument":
        return f"{place} is not a field"
    said = " or ".join(dict.fromkeys(_said(one).removeprefix("must be ") for one in errors))
    value = repr(first["input"])
    return f"{place} must be {said}, got {value if len(value) <= 200 else value[:200] + '...'}"


_PLAIN = {
    "Input should be": "must be",
    "should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid string": "a string",
    "a valid dictionary": "a mapping",
}


def _said(found: Any) -> str:
    said = str(found.get("ctx", {}).get("error") or found["msg"])
    for theirs, ours in _PLAIN.items():
        said = said.replace(theirs, ours)
    return said
