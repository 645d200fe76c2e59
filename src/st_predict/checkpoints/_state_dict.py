"""State dicts in files of published code, read without running code in the files."""

from __future__ import annotations

import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from st_predict._errors import InvalidValueError
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_state_dict"]

_INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "teacher")
"""Entries of a training checkpoint that may hold the network; the first match is read."""

_AROUND = ("module.", "_orig_mod.", "model.")
"""Prefixes of all names in a wrapped network: ``DataParallel``, ``torch.compile`` or Lightning."""

_ZIP, _LFS = b"PK\x03\x04", b"version https://git-lfs"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a network from a PyTorch or safetensors file.

    Parameters
    ----------
    path
        File with a state dict, or with a training checkpoint of PyTorch or Lightning (``.pt``, ``.pth``, ``.bin``, ``.ckpt``);
        or ``.safetensors``.

    Returns
    -------
    dict of str to Tensor
        Tensors by name, on the CPU, without wrapper prefixes.

    Raises
    ------
    ValueError
        If the file is damaged or of another kind, holds more than tensors and plain values, or has no state dict.
    """
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        raise InvalidValueError(
            f"{str(path)!r} is a pointer of Git LFS, not the weights themselves.", "get the file with `git lfs pull`"
        )
    if path.suffix == ".safetensors":
        return _without_prefix(_read_safetensors(path))
    if start.startswith(_ZIP) and not zipfile.is_zipfile(path):
        raise _damaged(path, "the end of the archive is missing")
    found = _unpickle(path)
    state = _state_in(found)
    if state is None:
        held = f"a mapping with {_some(found)}" if isinstance(found, Mapping) else f"an object {type(found).__name__}"
        raise InvalidValueError(
            f"{str(path)!r} has no state dict: it holds {held}, and a state dict is the whole file or one of {_INSIDE}.",
            "save it again with torch.save(network.state_dict(), file)",
        )
    return _without_prefix(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if ModelCard.METADATA_KEY in (file.metadata() or {}):
                raise InvalidValueError(
                    f"{str(path)!r} is a checkpoint of st_predict already.", "give its path to st_predict.tl.predict"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _unpickle(path: Path) -> Any:
    """Read a pickle of tensors and plain values; refuse everything else, as unpickling it could run any code."""
    try:
        # DINO, and so HIPT, stores its command line, a plain Namespace, in checkpoints
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about old formats
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # never runs code
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|class (\S+\.\S+)", str(error))
        if found is None:
            raise _damaged(path, "it is not a pickle of PyTorch") from error
        raise InvalidValueError(
            f"{str(path)!r} holds more than tensors and plain values: {found[1] or found[2]}. Loading that could run any code, so "
            "the file is not loaded.",
            "if you trust it, save its state dict in a new file with torch.save(network.state_dict(), file)",
        ) from error
    except (RuntimeError, EOFError, LookupError, OSError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _damaged(path: Path, why: str) -> InvalidValueError:
    return InvalidValueError(
        f"{str(path)!r} is not a complete file of PyTorch or safetensors ({why}): it is damaged or of another kind.",
        "get it again",
    )


def _state_in(value: Any) -> dict[str, Tensor] | None:
    """Find the state dict in the contents of a file."""
    if not isinstance(value, Mapping) or not value:
        return None
    if all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
        return dict(value)
    return next((state for name in _INSIDE if (state := _state_in(value.get(name))) is not None), None)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _AROUND if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _some(found: Mapping[Any, Any]) -> str:
    names = [str(name) for name in found]
    return f"{names[:5]}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
