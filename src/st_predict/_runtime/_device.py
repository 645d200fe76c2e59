"""Choice of device and precision."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast, get_args

import torch

from st_predict._errors import Advice, InvalidValueError

__all__ = ["Precision", "pick_device", "pick_precision"]

Precision: TypeAlias = Literal["bfloat16", "float32"]


def pick_device(device: str) -> torch.device:
    """Return the named device; ``"auto"`` for the first GPU, else the CPU.

    Raises
    ------
    ValueError
        If the machine does not have the device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise NotImplementedError("it holds no values")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidValueError(
            f"Device {device!r} cannot be used here: {_reason(device, error)}. There are {_devices()}.",
            Advice("use an available device with {}", "device", "auto"),
            Advice("use an available device with 'device': 'auto' in {}", "config"),
        ) from error
    return found


def _reason(device: str, error: Exception) -> str:
    """Return a short reason; PyTorch's own message lists every backend it can be built for."""
    kind = device.partition(":")[0].lower()
    if kind == "gpu":
        return "a GPU is called 'cuda', or 'mps' on a Mac"
    if kind not in {"cuda", "mps", "meta", "cpu"}:
        return "its kind is unknown"
    if kind != device.partition(":")[0]:
        return f"it is written {device.lower()!r}"
    if kind == "cuda":
        return f"PyTorch finds {torch.cuda.device_count()} GPUs of NVIDIA or AMD"
    if kind == "mps":
        return "PyTorch finds no GPU of Apple"
    return str(error).rstrip(".").splitlines()[0]


def _devices() -> list[str]:
    """Names of the available devices."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["auto", "cpu", *gpus, *(["mps"] if _has_mps() else [])]


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def pick_precision(precision: str, device: torch.device) -> Precision:
    """Return the precision; ``"auto"`` gives bfloat16 if the device supports it natively, else float32.

    Raises
    ------
    ValueError
        If the precision does not exist.
    """
    if precision == "auto":
        return "bfloat16" if _has_bfloat16(device) else "float32"
    if precision not in get_args(Precision):
        raise InvalidValueError(f"precision must be 'auto' or one of {list(get_args(Precision))}, got {precision!r}.")
    return cast("Precision", precision)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # new in torch 2.11; fall back to float32
    return device.type == "cpu" and bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
