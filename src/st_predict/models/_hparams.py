"""Names and types of hyper-parameters, read from the signature that builds the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache, partial
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, PydanticUserError, TypeAdapter

from st_predict._errors import InvalidTypeError, InvalidValueError
from st_predict._runtime import Network
from st_predict._validated import Flag, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

__all__ = ["checked", "kinds_of", "kinds_of_card", "refuse_unknown"]

Kinds = Mapping[str, Any]


@cache
def kinds_of(build: Callable[..., nn.Module], config: type | None = None) -> Kinds | None:
    """Type of each hyper-parameter by name; ``None`` if ``build`` does not name them.

    Parameters
    ----------
    build
        Class of a network, or a function. ``**hparams`` of a class are passed to its base class.
    config
        Dataclass whose fields ``build`` takes as ``**hparams``.
    """
    found: dict[str, Any] = {}
    for make in _makers(build):
        parameters = list(signature(make).parameters.values())
        types = _types(make)
        own = {p.name: types.get(p.name, Any) for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
        found = own | found
        if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
            return found
    if config is None:
        return None
    types = _types(config)
    return {f.name: types.get(f.name, Any) for f in fields(config) if f.init} | found


def _makers(build: Any) -> list[Any]:
    """Functions that take hyper-parameters, outermost first."""
    if not isinstance(build, type):
        return [build]
    own = [cls for cls in build.__mro__ if cls not in Network.__mro__ and "__init__" in vars(cls)]
    return [vars(cls)["__init__"] for cls in own]


def _types(what: Any) -> dict[str, Any]:
    """Annotations that can be checked; others become ``Any``."""
    try:
        hints = get_type_hints(what.func if isinstance(what, partial) else what, include_extras=True)
    except (NameError, TypeError):  # imported for type checkers only; an object without annotations
        return {}
    kinds = {name: kind if _can_be_checked(kind) else Any for name, kind in hints.items()}
    return {name: Flag if kind is bool else kind for name, kind in kinds.items()}


def _can_be_checked(kind: Any) -> bool:
    try:
        TypeAdapter(kind, config={"allow_inf_nan": False})
    except PydanticUserError:
        return False
    return True


def kinds_of_card(kinds: Kinds | None, own: Kinds, names: Iterable[str]) -> Kinds:
    """Types of hyper-parameters that a card of unknown origin may set.

    Parameters
    ----------
    kinds
        Types of all hyper-parameters, from :func:`kinds_of`.
    own
        Types that the model allows instead.
    names
        Names that the card sets.

    Returns
    -------
    dict
        For each name the type in ``own``. Else the type in ``kinds``, if it allows only numbers, truth values and
        listed choices. Else a number or a list of numbers. Texts and mappings are thus accepted only where the model
        says which.
    """
    declared = {name: (kinds or {}).get(name, Any) for name in names}
    return {n: own.get(n, kind if _is_closed(kind) else _Numbers) for n, kind in declared.items()}


def _is_closed(kind: Any) -> bool:
    """Whether a type allows only numbers, truth values and listed choices."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _is_closed(members[0])
    if origin in {Union, UnionType, tuple, list}:
        return all(_is_closed(member) for member in members if member is not Ellipsis)
    return origin is Literal or kind in {int, float, bool, NoneType}


def _numbers(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    if all(one is None or isinstance(one, int | float) for one in values):
        return value
    raise InvalidValueError("must be a number or a list of numbers")


_Numbers = Annotated[Any, BeforeValidator(_numbers)]


def refuse_unknown(model: str, hparams: Mapping[str, Any], kinds: Kinds | None) -> None:
    """Refuse hyper-parameters that a model does not have.

    Raises
    ------
    TypeError
        If ``hparams`` is not a mapping.
    ValueError
        If a hyper-parameter does not exist; the message lists the existing ones and names the closest match.
    """
    if not isinstance(hparams, Mapping):
        raise InvalidTypeError(
            f"Hyper-parameters must be a mapping from name to value, got {type(hparams).__name__} for {model!r}."
        )
    if kinds is None or not (unknown := sorted(str(name) for name in hparams if name not in kinds)):
        return
    near = get_close_matches(unknown[0], kinds, n=1, cutoff=0.7)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InvalidValueError(f"{model!r} has no hyper-parameters {unknown}; there are {sorted(kinds)}.{hint}")


def checked(model: str, hparams: Mapping[str, Any], kinds: Kinds | None) -> dict[str, Any]:
    """Return hyper-parameters converted to their types.

    Raises
    ------
    TypeError
        If ``hparams`` is not a mapping.
    ValueError
        If a hyper-parameter does not exist, or has a value of another type or out of range; the message names it.
    """
    refuse_unknown(model, hparams, kinds)
    try:
        return {name: check(name, value, (kinds or {}).get(name, Any)) for name, value in hparams.items()}
    except InvalidValueError as error:
        raise error.about(f"A hyper-parameter of {model!r} is invalid.") from error
