"""Checks that several models make: of hyper-parameters, and of the names in a published state dict."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["check_choice", "check_names", "of_variant"]

Config = TypeVar("Config", bound=Any)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is not among the choices.

    Raises
    ------
    ValueError
        If it is not.
    """
    choices = tuple(choices)
    if value not in choices:
        raise InvalidValueError(f"{name} must be one of {choices}, got {value!r}.")


def of_variant(variants: Mapping[str, Config], *, variant: str = "small", **sizes: Any) -> Config:
    """Return the configuration of a variant, with some of its fields replaced.

    Raises
    ------
    ValueError
        If there is no such variant, or the sizes do not fit together.
    """
    check_choice("variant", variant, variants)
    return replace(variants[variant], **sizes)


def check_names(
    names: Collection[str],
    known: Collection[str],
    *,
    model: str,
    unused: Collection[str] = (),
    missing: Collection[str] = (),
) -> None:
    """Refuse a state dict that is not the published one of a model.

    Parameters
    ----------
    names
        Names of its tensors.
    known
        Names that it must have.
    model
        Name of the model.
    unused
        Names that it may have as well.
    missing
        Patterns that are known to be missing.

    Raises
    ------
    ValueError
        If names are missing or unknown.
    """
    lacking = [*sorted(set(known) - set(names)), *missing]
    unknown = sorted(set(names) - set(known) - set(unused))
    if lacking or unknown:
        raise InvalidValueError(f"Not a state dict of the published {model}: missing {lacking}, unknown {unknown}.")
