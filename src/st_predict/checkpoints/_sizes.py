"""Size limits of networks: enforced while building, and compared with the tensors of a file before building."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from st_predict._errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from torch import Tensor, nn

    from st_predict._errors import Advice

__all__ = ["check_finite", "check_fits", "limited", "most_parts_of", "reading", "shapes_of"]

MOST_PARTS = 30_000
"""Largest number of layers, parameters and buffers; the largest vision transformers have a few thousand."""

MOST_VALUES = 1 << 32
"""Largest number of values in parameters and buffers, 16 GiB in float32."""

_BEYOND_FILE = 10_000  # parts that are not in a file: layers, and networks built to count an encoder's features
_COMPUTED = 1 << 26  # values of buffers that are not in a file, such as relative position tables


@contextmanager
def limited(most_parts: int = MOST_PARTS) -> Iterator[None]:
    """Stop building a network with too many parts or values; other threads are not affected.

    Raises
    ------
    ValueError
        If a limit is exceeded, at once.
    """
    thread, parts, values = threading.get_ident(), 0, 0

    def count(_: nn.Module, name: str, part: Tensor | nn.Module | None) -> None:
        nonlocal parts, values
        if threading.get_ident() != thread:
            return
        parts += 1
        values += part.numel() if isinstance(part, torch.Tensor) else 0
        if parts > most_parts or values > MOST_VALUES:
            raise InvalidValueError(
                f"The network is too large: at {name!r} it has {parts:,} layers and tensors and {values:,} values; "
                f"the limits are {most_parts:,} and {MOST_VALUES:,}.",
            )

    hooks = [
        register(count)
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
            register_module_module_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def shapes_of(path: PathLike[str] | str) -> dict[str, Tensor]:
    """Return the tensors of a file without memory: names, shapes, and whether they are floats.

    Raises
    ------
    ValueError
        If the file is not a complete safetensors file.
    """
    with reading(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        return {name: _shape(part.get_shape(), part.get_dtype()) for name, part in slices.items()}


def _shape(shape: list[int], dtype: str) -> Tensor:
    floating = dtype.startswith(("F", "BF"))
    return torch.empty(shape, dtype=torch.float32 if floating else torch.int64, device="meta")


@contextmanager
def reading(path: PathLike[str] | str) -> Iterator[None]:
    """Turn read errors into an error that names the file.

    Raises
    ------
    ValueError
        If the file is not a complete safetensors file.
    """
    try:
        yield
    except SafetensorError as error:
        raise InvalidValueError(
            f"{str(path)!r} is not a complete safetensors file ({error}): it is damaged or of another kind.",
            "get it again",
        ) from error


def most_parts_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the limit on parts for a network with these tensors."""
    return _BEYOND_FILE + 10 * len(tensors)


def check_fits(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit a network, both without memory.

    Raises
    ------
    RuntimeError
        If names or shapes differ.
    ValueError
        If types differ, or the network has large tables that are not in the file.
    """
    own = network.state_dict()
    if unfit := [n for n in own if n in tensors and own[n].is_floating_point() != tensors[n].is_floating_point()]:
        raise InvalidValueError(f"Tensors have whole numbers instead of floats, or vice versa: {unfit[:5]}.")
    computed = sum(buffer.numel() for name, buffer in network.named_buffers() if name not in own)
    if computed > _COMPUTED:
        raise InvalidValueError(f"The network would compute tables of {computed:,} values that are not in the file.")
    with torch.device("meta"):  # batch norms add counters that a file may lack
        network.load_state_dict(tensors)


def check_finite(tensors: Mapping[str, Tensor], way_out: str | Advice = "train the network again") -> None:
    """Refuse weights and statistics with NaN or infinity.

    Raises
    ------
    ValueError
        If a value is not finite; the message names the first tensors.
    """
    if wrong := [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]:
        raise InvalidValueError(f"{len(wrong)} tensors have values that are not finite: {wrong[:5]}.", way_out)
