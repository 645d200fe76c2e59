"""Checks shared by models: of hyper-parameters, and of names in a published state dict."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = ["check_choice", "check_names", "count_layers", "heads_of", "of_variant", "variant_of"]

Config = TypeVar("Config", bound=Any)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value outside the choices.

    Raises
    ------
    ValueError
        If the value is not one of them.
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
    """Refuse a state dict that does not have the published names of a model.

    Parameters
    ----------
    names
        Names of the tensors.
    known
        Required names.
    model
        Name of the model.
    unused
        Further names that are allowed.
    missing
        Patterns of required names that may be missing.

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
    """First five names, and the number of further ones."""
    return f"{names[:5]}" if len(names) <= 5 else f"{names[:5]} and {len(names) - 5} more"


# Hyper-parameters from the shapes of a state dict.


def count_layers(names: Iterable[str], prefix: str) -> int:
    """Count the layers ``prefix.0``, ``prefix.1``, ... of a state dict."""
    start = f"{prefix}."
    return len({name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start)})


def heads_of(dim: int, width: int, *, like: Any) -> dict[str, Any]:
    """Attention heads and channels per head, which shapes do not tell: published values if the widths are published ones.

    Parameters
    ----------
    dim
        Channels per token.
    width
        Total channels of all heads.
    like
        Published configuration, with ``dim``, ``heads`` and ``head_dim``.

    Returns
    -------
    dict of str to object
        ``heads`` and ``head_dim``; both ``None`` if ``dim`` or ``width`` differs from the publication.
    """
    published = dim == like.dim and width == like.heads * like.head_dim
    return {"heads": like.heads if published else None, "head_dim": like.head_dim if published else None}


def variant_of(variants: Mapping[str, Any], sizes: Mapping[str, Any]) -> str | None:
    """Name of the variant with these sizes, or ``None``."""
    return next((v for v, c in variants.items() if all(getattr(c, name) == n for name, n in sizes.items())), None)
