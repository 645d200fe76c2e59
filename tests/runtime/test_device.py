"""Device and precision."""

from __future__ import annotations

import pytest
import torch

from st_predict._runtime._device import pick_device, pick_precision

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto").type == expected


def test_named_device() -> None:
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"Device '{name}' cannot be used here.*device=\"auto\""):
        pick_device(name)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "float32"),
        ({"avx2": True}, "float32"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": True}, "bfloat16"),
    ],
)
def test_auto_precision_of_a_cpu(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities, raising=False)
    assert pick_precision("auto", CPU) == expected


def test_auto_precision_without_knowledge_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    assert pick_precision("auto", CPU) == "float32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *, including_emulation: native or including_emulation)
    assert pick_precision("auto", torch.device("cuda")) == expected


def test_named_precision() -> None:
    assert pick_precision("float32", CPU) == "float32"
    assert pick_precision("bfloat16", CPU) == "bfloat16"
    with pytest.raises(ValueError, match=r"'auto' or one of \['bfloat16', 'float32'\], got 'half'"):
        pick_precision("half", CPU)
