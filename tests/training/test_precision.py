"""Precision as Lightning calls it."""

from __future__ import annotations

import pytest
import torch

from st_predict._training._fit import _precision_of_lightning


@pytest.mark.parametrize(("precision", "expected"), [("float32", "32-true"), ("bfloat16", "bf16-mixed")])
def test_names_of_lightning(precision: str, expected: str) -> None:
    assert _precision_of_lightning(precision, torch.device("cpu")) == expected


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision must be 'auto' or one of"):
        _precision_of_lightning("half", torch.device("cpu"))
