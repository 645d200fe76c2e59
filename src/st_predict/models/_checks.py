"""Checks that several models make: of hyper-parameters, and of the names in a published state dict."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = ["check_choice", "check_names", "count_layers", "heads_of", "of_variant", "variant_of"]

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
        If the variant does not exist, or the sizes do not fit together.
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
        raise InvalidValueError(
            f"Not a state dict of the published {model}: missing {some(lacking)}, unknown {some(unknown)}."
        )


def some(names: Sequence[str]) -> str:
    """Write the first five names, and how many more there are."""
    return f"{names[:5]}" if len(names) <= 5 else f"{names[:5]} and {len(names) - 5} more"


# Hyper-parameters from the shapes of a state dict.


def count_layers(names: Iterable[str], prefix: str) -> int:
    """Count the layers ``prefix.0``, ``prefix.1``, ... of a state dict."""
    start = f"{prefix}."
    return len({name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start)})


def heads_of(dim: int, width: int, *, like: Any) -> dict[str, Any]:
    """Heads of attention and channels of each, which the shapes do not tell: those of a configuration, if the rest is.

    Parameters
    ----------
    dim
        Channels of a token.
    width
        Channels of all heads.
    like
        Published configuration, with ``dim``, ``heads`` and ``head_dim``.

    Returns
    -------
    ``heads`` and ``head_dim``, both ``None`` if ``dim`` or ``width`` is another one.
    """
    published = dim == like.dim and width == like.heads * like.head_dim
    return {"heads": like.heads if published else None, "head_dim": like.head_dim if published else None}


def variant_of(variants: Mapping[str, Any], sizes: Mapping[str, Any]) -> str | None:
    """Name of the variant that has these sizes; ``None`` if there is none."""
    return next((v for v, c in variants.items() if all(getattr(c, name) == n for name, n in sizes.items())), None)
