"""The variant that is distilled learns from ridge regression that has not seen a section."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import st_predict as stp
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location("her2st_recipe", BENCHMARKS / "her2st_recipe.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "her2st_recipe", module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "TEACHER", {"encoder": "rgb", "rank": 2})
    return module


def test_targets_are_mixed_with_predictions_of_sections_left_out(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    simulated = stp.datasets.simulate(1, 3, shape=(1200, 1200), mpp=0.688, n_genes=10).sections
    sections = dict(zip(recipe.TRAIN, simulated.values(), strict=True))
    sections["C3"]["table"].X[2] = 0  # too few counts to learn from
    panel = list(sections["C2"]["table"].var_names)[:6]
    teacher = recipe.out_of_fold(panel, sections, tmp_path / "teachers")
    for i, name in enumerate(recipe.TRAIN):
        card = ModelCard.of_file(tmp_path / "teachers" / name / "ridge.safetensors")
        used = {section["section"] for section in card.training["sections"]}
        assert used == {f"P1S{j + 1}" for j in range(3) if j != i}
    assert [len(part) for part in teacher] == [len(s["table"]) - (name == "C3") for name, s in sections.items()]

    targets: list[Any] = []

    def stop(_: Any, data: Any, *__: Any, **___: Any) -> None:
        targets.append(data.target)
        raise InterruptedError

    def train(out: Path) -> None:
        with pytest.raises(InterruptedError):
            stp.tl.train(list(sections.values()), "mean", panel=panel, out=out)

    monkeypatch.setattr(recipe, "learn", stop)
    with recipe.taught(teacher):
        train(tmp_path / "taught")
    monkeypatch.setattr("st_predict.tl._train.learn", stop)
    train(tmp_path / "plain")
    mixed, measured = targets
    np.testing.assert_allclose(mixed, (measured + np.concatenate(teacher)) / 2, rtol=1e-5, atol=1e-6)
