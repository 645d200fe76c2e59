"""Backbones of timm and their pretrained weights."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch

from st_predict._efficientnet import EfficientNetLite0
from st_predict._errors import Advice, InvalidValueError, StPredictError
from st_predict._progress import hub_bars

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = [
    "LITE",
    "create_backbone",
    "fetch_weights",
    "import_timm",
    "is_architecture",
    "n_features",
    "weights_config",
    "weights_notice",
]

LITE = "tf_efficientnet_lite0"
_LARGEST = 65_536  # argument of an architecture


def create_backbone(name: str, **arguments: Any) -> nn.Module:
    """Build an architecture of timm, with random weights and without its last layer.

    EfficientNet-Lite0 is ours, with the same tensors and outputs: it needs no import of timm.

    Raises
    ------
    ModuleNotFoundError
        If timm is not installed.
    ValueError
        If timm has no such architecture, or it does not take these arguments.
    ConnectionError
        If the architecture is defined on the hub, which cannot be reached.
    """
    if name == LITE and arguments.keys() <= {"num_classes"}:
        return EfficientNetLite0(**arguments).to(memory_format=torch.channels_last)
    timm = import_timm()
    if not name.startswith("hf-hub:"):
        _check_architecture(name)
    _check_numbers(arguments)
    try:
        backbone = timm.create_model(name, pretrained=False, **{"num_classes": 0, **arguments})
    except Exception as error:
        if isinstance(error, StPredictError) or _is_of_memory(error):
            raise
        why = f"{type(error).__name__}: {error}" if str(error) else "a condition of timm does not hold"  # an assertion
        if _is_of_the_network(error):
            raise ConnectionError(f"Cannot get the architecture {name!r} from the hub ({why}).") from error
        raise InvalidValueError(f"timm cannot make {name!r} with the arguments {arguments} ({why}).") from error
    return backbone.to(memory_format=torch.channels_last)  # convolutions take half the time


def _check_numbers(arguments: Mapping[str, Any]) -> None:
    """Refuse huge sizes: timm lists all layers before it allocates memory, which would never end."""
    for name, value in arguments.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if wrong := [n for n in numbers if isinstance(n, int | float) and not abs(n) <= _LARGEST]:
            raise InvalidValueError(f"{name} of an architecture must be numbers up to {_LARGEST}, got {wrong[0]}.")


def n_features(backbone: nn.Module) -> int:
    """Number of features of a backbone of timm."""
    width: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return int(width)


def import_timm() -> Any:
    """Return timm.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed.
    """
    try:
        # importing timm computes with tensors in some versions of torch, which fails on the device meta
        with torch.device("cpu"):
            import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("This network needs timm: pip install timm torchvision", name="timm") from error
    return timm


def is_architecture(name: str) -> bool:
    """Whether timm's own registry has an architecture of this name: not a hub, a folder or weights."""
    return name.isidentifier() and bool(import_timm().is_model(name))


def _check_architecture(name: str) -> None:
    timm = import_timm()
    arch, _, tag = name.partition(".")
    if tag:
        raise InvalidValueError(
            f"arch must have no tag, got {name!r}.",
            Advice(f"for these weights, give arch {arch!r} and weights {tag!r} in {{}}", "hparams"),
        )
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=5)
        raise InvalidValueError(
            f"timm {timm.__version__} has no architecture {name!r}; similar are {near}, and timm.list_models() lists all."
        )


def fetch_weights(
    name: str, *, instead: str = "start from random weights (hyper-parameter weights: None)", **arguments: Any
) -> nn.Module:
    """Build a backbone with weights of timm, ``"architecture.tag"``, from the cache or downloaded.

    Parameters
    ----------
    name
        Architecture and tag.
    instead
        Alternative without network and cache, for the error message.
    arguments
        Arguments of the architecture.

    Raises
    ------
    ValueError
        If timm has no such weights; the message lists the architecture's weights.
    ConnectionError
        If the weights are not in the cache and cannot be downloaded.
    """
    timm = import_timm()
    weights_config(name)
    try:
        with hub_bars():
            return timm.create_model(name, pretrained=True, **{"num_classes": 0, **arguments})
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        why = " ".join(str(error).split("\n")[0].split()) or "no reason given"
        raise ConnectionError(
            f"Cannot get the weights {name!r} of timm ({type(error).__name__}: {why}). Without a network, copy the "
            "cache of a machine that has them (the folder HF_HOME, by default ~/.cache/huggingface) and set "
            f"HF_HUB_OFFLINE=1, or {instead}."
        ) from error


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | OverflowError) or any(word in str(error) for word in ("memory", "overflow"))


def _is_of_the_network(error: BaseException | None) -> bool:
    """Whether an error, or its cause, comes from a library that downloads."""
    return error is not None and (
        isinstance(error, OSError)
        or type(error).__module__.partition(".")[0] in {"httpx", "httpcore", "requests", "urllib3", "huggingface_hub"}
        or _is_of_the_network(error.__cause__ or error.__context__)
    )


def weights_config(name: str) -> Any:
    """Return timm's configuration of weights, ``"architecture.tag"``.

    Raises
    ------
    ValueError
        If timm has no such architecture or weights; the message lists the architecture's weights.
    """
    timm = import_timm()
    arch, _, tag = name.partition(".")
    _check_architecture(arch)
    if name not in (known := timm.list_pretrained(f"{arch}.*")):
        raise InvalidValueError(
            f"timm has no weights {tag!r} of {arch!r}; it has {[k.partition('.')[2] for k in known]}."
        )
    return timm.get_pretrained_cfg(name)


def weights_notice(name: str | None) -> str:
    """Return origin and licence of a network's pretrained weights in timm, ``"architecture.tag"``; empty without a tag."""
    if name is None or not name.partition(".")[2]:
        return ""
    timm = import_timm()
    known = name in timm.list_pretrained(f"{name.partition('.')[0]}.*")  # another version of timm may know them
    config = timm.get_pretrained_cfg(name) if known else None
    origin = config and (config.hf_hub_id or config.url)
    licence = (config and config.license) or "not known to timm"
    return f"Trained from the weights {name!r} of timm{f' ({origin})' if origin else ''}, licence: {licence}."
