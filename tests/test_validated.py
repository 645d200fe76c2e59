"""Arguments are checked quickly."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter

from st_predict import _validated


def test_the_check_of_a_type_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def adapter(kind: Any, **options: Any) -> TypeAdapter[Any]:
        made.append(kind)
        return TypeAdapter(kind, **options)

    monkeypatch.setattr(_validated, "TypeAdapter", adapter)
    few, many = (Annotated[_validated.Count, Field(le=most)] for most in (1234, 1235))
    assert [_validated.check("n", value, kind) for value, kind in ((1, few), (1235, many), (1234, few))] == [
        1,
        1235,
        1234,
    ]
    assert made == [few, many]
    with pytest.raises(ValueError, match="n must be at most 1234, got 1235"):
        _validated.check("n", 1235, few)
