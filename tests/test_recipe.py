"""Variants of the recipe are trained without what validates them, by arrays alone; so are the weights that are released."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import st_predict as stp
from st_predict import checkpoints
from st_predict.io import open_pyramid
from st_predict.models._m2ost_tokens import FeatureMaps
from st_predict.specs import ModelCard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from spatialdata import SpatialData

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TRAIN = ["C2", "C3", "C4"]
MPP = 0.688
RIDGE = {"encoder": "rgb", "rank": 2}
SMALL = {"size": 32, "dim": 16, "depth": 1, "heads": 1, "head_dim": 16, "mlp_dim": 16}


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    found = {}
    try:
        for path in ("benchmarks/_packed.py", "benchmarks/recipe.py", "scripts/train_weights.py"):
            specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
            module = importlib.util.module_from_spec(specification)
            sys.modules[module.__name__] = found[module.__name__] = module
            specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return found


@pytest.fixture
def recipe(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = modules["recipe"]
    monkeypatch.setattr(module, "RIDGE", RIDGE)
    monkeypatch.setitem(module.VARIANTS, "ridge of rank 8, three fields", ("ridge", RIDGE, {}))
    monkeypatch.setattr(module, "HPARAMS", {**module.HPARAMS, **SMALL})
    return module


@pytest.fixture(scope="module")
def sections() -> dict[str, SpatialData]:
    simulated = stp.datasets.simulate(1, 3, shape=(1000, 1000), mpp=MPP, n_genes=10).sections
    found = dict(zip(TRAIN, simulated.values(), strict=True))
    found["C3"]["table"].X[2] = 0  # too few counts to learn from
    return found


@pytest.fixture(scope="module")
def panel(sections: dict[str, SpatialData]) -> list[str]:
    return list(sections["C2"]["table"].var_names)[:6]


@pytest.fixture(scope="module")
def packed(
    modules: dict[str, ModuleType],
    sections: dict[str, SpatialData],
    panel: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder, images = tmp_path_factory.mktemp("recipe"), {}
    for name, sdata in sections.items():
        reader = open_pyramid(sdata)
        height, width = reader.level_shapes[0]
        images[name] = folder / f"{name}.webp"
        pixels = np.ascontiguousarray(reader.read(0, 0, width, height, level=0))
        Image.fromarray(pixels).save(images[name], lossless=True)
    module = modules["_packed"]
    cards = [module.card_of("ridge", "recommended", RIDGE, mpp=mpp) for mpp in (None, MPP)]
    pack = folder / "her2st"
    module.write(pack, sections, images, train=TRAIN, panels={"recommended": panel}, cards=cards)
    return pack


def taught_alone(recipe: ModuleType, pack: Any, names: list[str], fold: str) -> Any:
    """Predictions of the teacher, which is all that a target is made of."""
    card = pack.card("ridge", "recommended", fold)
    data = pack.store(names, card, target="recommended", fold=fold)
    config = stp.tl.TrainConfig(teacher=RIDGE, teacher_share=1.0)
    return recipe.distilled(data, pack, names, config, fold=fold).target


def test_the_teacher_has_not_seen_what_it_says_of_a_section(
    recipe: ModuleType, packed: Path, sections: dict[str, SpatialData], panel: list[str], tmp_path: Path
) -> None:
    pack = recipe.Pack(packed)
    found = taught_alone(recipe, pack, TRAIN, "full")
    expected = []
    for name in TRAIN:
        # the units of the target are those of all three, as the network that is taught learns in these
        others = [sections[other] for other in TRAIN if other != name]
        trained = stp.tl.train(others, "ridge", panel=panel, out=tmp_path / name, hparams=RIDGE)
        stp.tl.predict(sections[name], trained, key_added="teacher")
        enough = np.asarray(sections[name]["table"][:, panel].X.sum(axis=1)).ravel() >= 50
        expected.append(sections[name]["table"].obsm["teacher"][enough])
    assert len(found) == len(np.concatenate(expected))
    same = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, np.concatenate(expected).T, strict=True)]
    assert min(same) > 0.9  # units of two sections and of three differ a little
    pack.arrays["C2"]["recommended/full"] = pack.arrays["C2"]["recommended/full"][::-1]
    changed, of_c2 = taught_alone(recipe, pack, TRAIN, "full"), len(pack.arrays["C2"]["recommended/rows"])
    np.testing.assert_array_equal(changed[:of_c2], found[:of_c2])
    assert not np.isclose(changed[of_c2:], found[of_c2:]).all(axis=1).any()


def test_a_distilled_network_learns_half_of_what_its_teacher_says(
    recipe: ModuleType, packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def stop(_: Any, data: Any, held_out: Any, **__: Any) -> None:
        seen.append((data.target, held_out.target))
        raise InterruptedError

    monkeypatch.setattr(recipe, "learn", stop)
    monkeypatch.setitem(recipe.VARIANTS, "distilled", ("m2ost", {}, {"teacher": RIDGE}))
    pack, args = recipe.Pack(packed), Namespace(device="cpu", epochs=1, out=tmp_path)
    for variant in ("distilled", "base"):
        with pytest.raises(InterruptedError):
            recipe.run(pack, variant, "C3", args)
    (mixed, validates), (measured, same) = seen
    teacher = taught_alone(recipe, pack, ["C2", "C4"], "C3")
    np.testing.assert_allclose(mixed, (measured + teacher) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(validates, same)


def test_a_frozen_backbone_reads_each_crop_once(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    compute = FeatureMaps.forward

    def count(maps: FeatureMaps, x: torch.Tensor, n_maps: int) -> list[torch.Tensor]:
        read.append(len(x))
        return compute(maps, x, n_maps)

    monkeypatch.setattr(FeatureMaps, "forward", count)
    torch.manual_seed(0)  # noqa: TID251
    crops = torch.rand(5, 3, 32, 32)
    frozen = FeatureMaps("efficientnet_lite0", strides=[16, 8], size=32, tune=False)
    tuned = FeatureMaps("efficientnet_lite0", strides=[16, 8], size=32, tune=True)
    expected = compute(frozen, crops, 2)
    with recipe.remembered_maps():
        first, again, other = frozen(crops[:3], 2), frozen(crops, 2), frozen(crops.flip(-1), 2)
        assert read == [3, 2, 5]
        assert len(frozen(crops, 1)) == 1
        tuned(crops, 2)
        tuned(crops, 2)
    assert read == [3, 2, 5, 5, 5, 5]
    for found in (first, again):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs[: len(ours)])
    assert not torch.equal(other[0], again[0])


def test_a_later_run_fills_the_gaps(
    recipe: ModuleType,
    packed: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results, page = tmp_path / "recipe.json", tmp_path / "page.md"
    page.write_text("before\n<!-- recipe -->\n<!-- end of recipe -->\nbehind\n", encoding="utf-8")
    monkeypatch.setattr(recipe, "PAGE", page)

    def trained(*variants: str, minutes: str = "9", folds: Sequence[str] = ()) -> list[str]:
        arguments = ["--out", str(packed.parent), "--only", "train", "--data", "her2st", "--results", str(results)]
        more = [
            "--epochs",
            "1",
            "--minutes",
            minutes,
            "--device",
            "cpu",
            "--page",
            "--variants",
            *variants,
            "--folds",
            *folds,
        ]
        monkeypatch.setattr(sys, "argv", ["recipe.py", *arguments, *more])
        recipe.main()
        return [json.loads(line)["run"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]

    ridge = "ridge of rank 8, three fields"
    assert trained(ridge) == [f"her2st/{ridge}/{fold}" for fold in TRAIN]
    assert trained(ridge, "base", minutes="0") == []
    assert trained(ridge, "base", folds=["C3"]) == ["her2st/base/C3"]
    assert trained(ridge, "base") == [f"her2st/base/{fold}" for fold in TRAIN if fold != "C3"]
    assert trained(ridge, "base") == []
    scores = [run["validation"][-1] for name, run in json.loads(results.read_text("utf-8")).items() if ridge in name]
    before, _, table = page.read_text("utf-8").partition("<!-- recipe -->")
    assert before == "before\n"
    assert f"| {ridge} | {np.mean(scores):.3f} |" in table
    assert table.endswith("<!-- end of recipe -->\nbehind\n")
    assert "| pixels | not run | - | - | not run | - | - |" in table


def test_differences_are_of_the_same_section(recipe: ModuleType) -> None:
    runs = {"base": [0.3, 0.4, 0.2], "drop 0.3": [0.4, 0.39, 0.25], "pixels": [0.1]}
    results = {
        f"simulated/{variant}/P{i}": {"validation": [0.9, score]}
        for variant, scores in runs.items()
        for i, score in enumerate(scores)
    }
    assert recipe.cells_of(results, "simulated", "base") == ["0.300", "-", "-"]
    assert recipe.cells_of(results, "simulated", "drop 0.3") == ["0.347", "+0.047 (-0.010 to +0.100)", "2 of 3"]
    assert recipe.cells_of(results, "simulated", "pixels") == [
        "- (1 of 3 runs)",
        "-0.200 (-0.200 to -0.200)",
        "0 of 1",
    ]
    assert recipe.cells_of(results, "her2st", "base") == ["not run", "-", "-"]


def test_the_page_shows_the_results(modules: dict[str, ModuleType]) -> None:
    recipe = modules["recipe"]
    page = recipe.PAGE.read_text(encoding="utf-8")
    assert recipe.fill(page, recipe.read(recipe.RESULTS)) == page
    shown = page.split("<!-- recipe -->")[1].split("<!-- end of recipe -->")[0]
    assert all(f"\n| {variant} |" in shown for variant in recipe.VARIANTS)


@pytest.mark.parametrize(
    ("model", "hparams", "changes"),
    [
        ("m2ost", SMALL, {"epochs": 2, "batch_size": 16, "loss": "standardized"}),
        ("ridge", RIDGE, {}),
    ],
)
def test_released_weights_are_those_of_tl_train(
    modules: dict[str, ModuleType],
    packed: Path,
    sections: dict[str, SpatialData],
    panel: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model: str,
    hparams: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    script = modules["train_weights"]
    spec = {
        "model": model,
        "hparams": hparams,
        "citation": "Somebody, 2026",
        **({"config": changes} if changes else {}),
    }
    monkeypatch.setitem(script.WEIGHTS, "tried", spec)
    ours = script.train("tried", script.Pack(packed), tmp_path / "ours", device="cpu")
    trained = stp.tl.train(
        list(sections.values()),
        model,
        panel=panel,
        out=tmp_path / "theirs",
        mpp=MPP,
        hparams=hparams,
        config={**changes, "device": "cpu"},
        card={**script.CARD, "citation": "Somebody, 2026"},
    )
    found, expected = ModelCard.of_file(ours), ModelCard.of_file(trained.checkpoint)
    assert replace(found, training={}) == replace(expected, training={})
    known = {"validation", "shared_patients", "tissue_only", "missing_levels"}  # of tl.train only
    assert found.training.keys() == expected.training.keys() - known
    for name in found.training.keys() - {"sections", "colours"}:
        assert found.training[name] == expected.training[name], name
    for mine, theirs in zip(found.training["sections"], expected.training["sections"], strict=True):
        assert mine == theirs
    np.testing.assert_allclose(found.training["colours"]["mean"], expected.training["colours"]["mean"], atol=0.02)
    networks = [checkpoints.load(path)[0] for path in (ours, trained.checkpoint)]
    for (name, mine), theirs in zip(networks[0].state_dict().items(), networks[1].state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name, rtol=1e-4, atol=1e-5)
    stamp = ours.stat().st_mtime_ns
    assert script.train("tried", script.Pack(packed), tmp_path / "ours", device="cpu") == ours
    assert ours.stat().st_mtime_ns == stamp
