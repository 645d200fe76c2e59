"""All models are trained without the libraries of data containers, on what training with them sees."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import st_predict as stp
from st_predict.io import open_pyramid
from st_predict.models import list_models

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from types import ModuleType

    from spatialdata import SpatialData

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TRAIN, SCORED = ["C2", "C3", "C4", "C5"], ["C6", "B4"]
ABSENT = (
    *("anndata", "spatialdata", "zarr", "dask", "scanpy", "squidpy", "pandas", "xarray", "geopandas", "shapely"),
    *("timm", "pooch", "matplotlib", "numcodecs", "tifffile", "openslide", "skimage", "huggingface_hub", "torchvision"),
    *("requests", "urllib3", "typer", "rich", "transformers"),
)
MPP = 0.688


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def sections() -> dict[str, SpatialData]:
    simulated = stp.datasets.simulate(2, 3, shape=(1000, 1000), mpp=MPP, n_genes=20).sections
    found = dict(zip([*TRAIN, *SCORED], simulated.values(), strict=True))
    for name, sdata in found.items():
        sdata["table"].obs["patient"] = pd.Categorical([name[0]] * sdata["table"].n_obs)
    found["C3"]["table"].X[2] = 0  # a spot without counts has no target
    return found


@pytest.fixture(scope="module")
def packed(sections: dict[str, SpatialData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    images = {}
    for name, sdata in sections.items():
        reader = open_pyramid(sdata)
        height, width = reader.level_shapes[0]
        images[name] = folder / f"{name}.png"
        Image.fromarray(np.ascontiguousarray(reader.read(0, 0, width, height, level=0))).save(images[name])
    genes = list(sections["C2"]["table"].var_names)
    module = load("_packed")
    module.write(
        folder / "pack",
        sections,
        images,
        train=TRAIN,
        panels={"recommended": genes[:12], "paper": genes[4:18]},
        cards=[module.card_of(model, target) for model in ("mlp", "istar") for target in module.TARGETS],
    )
    return folder


class _StoppedError(Exception):
    pass


def seen_by_training(
    sections: dict[str, SpatialData], monkeypatch: pytest.MonkeyPatch, out: Path, model: str, target: str
) -> tuple[Any, dict[str, Any]]:
    """Card and arrays that ``tl.train`` hands to the trainer, of the sections without C4."""
    seen: dict[str, Any] = {}

    def stop(card: Any, data: Any, *_: Any, **__: Any) -> None:
        arrays = {name: getattr(data, name) for name in ("target", "section", "grid", "xy_um", "features", "counts")}
        seen.update(card=card, arrays=arrays | {f"level{i}": np.array(crop) for i, crop in enumerate(data.crops)})
        raise _StoppedError

    monkeypatch.setattr("st_predict.tl._train.learn", stop)
    panel = list(sections["C2"]["table"].var_names)
    with pytest.raises(_StoppedError):
        stp.tl.train(
            [sections[name] for name in TRAIN if name != "C4"],
            model,
            panel=panel[:12] if target == "recommended" else panel[4:18],
            out=out,
            preset=target,
            mpp={"mlp": None, "mean": None, "istar": 1.0}.get(model, MPP),
        )
    return seen["card"], seen["arrays"]


@pytest.mark.parametrize(
    ("model", "target"),
    [("m2ost", "recommended"), ("hist2st", "paper"), ("mlp", "recommended"), ("istar", "paper"), ("mean", "paper")],
)
def test_a_network_sees_what_tl_train_shows_it(
    sections: dict[str, SpatialData],
    packed: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model: str,
    target: str,
) -> None:
    card, expected = seen_by_training(sections, monkeypatch, tmp_path / "out", model, target)
    pack = load("_packed").Pack(packed / "pack")
    ours = pack.card(model, target, "C4")
    for part in ("model", "genes", "crop", "pixels", "hparams"):
        assert getattr(ours, part) == getattr(card, part), part
    assert ours.target == card.target
    store = pack.store([name for name in TRAIN if name != "C4"], ours, target=target, fold="C4")
    found = {name: getattr(store, name) for name in expected if not name.startswith("level")}
    found |= {f"level{i}": crop for i, crop in enumerate(store.crops)}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if values is None:
            assert found[name] is None, name
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


PRELOAD = f"""
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):  # as if some packages were not installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        return [] if context.name in {ABSENT!r} else super().find_distributions(context)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
import st_predict.checkpoints, st_predict._training, st_predict.models
import lightning.pytorch
"""


@pytest.fixture(scope="module")
def zoo(fork_server: Callable[[str], Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Trains where some packages are not installed."""
    forks = fork_server(PRELOAD)

    def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        given = ["--out", folder, "--only", "train", "--results", folder / "zoo.json", *arguments]
        return forks.run(BENCHMARKS / "gpu_zoo.py", *given)

    return run


@pytest.fixture
def train(zoo: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[str]]:
    """Trains on a processor; returns which trainings there were."""

    def run(folder: Path, *arguments: object, models: str = "mlp mean", targets: str = "recommended") -> list[str]:
        options = ["--device", "cpu", "--models", *models.split(), "--targets", *targets.split(), "--batch-size", 8]
        done = zoo(folder, *options, *arguments)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(lines) == len(done.stdout.splitlines()), done.stdout
        return [line["run"] for line in lines]

    return run


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed / "pack", tmp_path / "zoo" / "pack")
    return tmp_path / "zoo"


def test_training_needs_no_containers_and_does_only_what_is_missing(
    folder: Path, train: Callable[..., list[str]]
) -> None:
    # the crops of m2ost, features of cells of istar, and a closed form
    first = train(folder, "--epochs", 1, "--folds", "C4", models="m2ost istar mean", targets="paper")
    small_first = [("mean", "full"), ("istar", "C4"), ("istar", "full"), ("m2ost", "C4"), ("m2ost", "full")]
    assert first == [f"{name}/paper/{fold}" for name, fold in small_first]
    results = json.loads((folder / "zoo.json").read_text(encoding="utf-8"))
    assert len(results["runs"]["m2ost/paper/C4"]["validation"]) == 1
    final = results["runs"]["m2ost/paper/full"]
    assert (final["asked"], final["epochs"], final["chosen_by"], final["device"]) == (1, 1, ["C4"], "CPU")
    with np.load(folder / "predictions" / "m2ost-paper.npz") as arrays:
        assert all(np.isfinite(arrays[f"{name}/values"]).all() for name in SCORED)
    assert (folder / "checkpoints" / "paper" / "m2ost.safetensors").exists()

    # another section to choose by: only this one is trained, and the whole again
    more = train(folder, "--epochs", 1, "--folds", "C4", "C2", models="istar mean", targets="paper")
    assert more == ["istar/paper/C2", "istar/paper/full"]
    assert train(folder, "--epochs", 1, "--folds", "C4", models="m2ost istar mean", targets="paper") == []
    assert train(folder, "--epochs", 3, "--folds", models="istar mean", targets="paper") == ["istar/paper/full"]


def test_a_network_that_cannot_be_built_is_named_and_others_are_trained(folder: Path, zoo: Callable[..., Any]) -> None:
    done = zoo(folder, "--models", "vit", "mean", "--targets", "paper", "--folds")  # timm is not installed
    trained, refused = done.stdout.splitlines()
    assert json.loads(trained)["run"] == "mean/paper/full"
    assert refused.startswith("vit, paper: ModuleNotFoundError: ")
    assert "timm" in refused


def test_no_training_begins_when_the_time_is_up(folder: Path, zoo: Callable[..., Any]) -> None:
    done = zoo(folder, "--models", "mlp", "--minutes", 0)
    assert done.stdout.splitlines() == ["The 0 minutes are over; run again for the rest."]
    assert not (folder / "zoo.json").exists()


def test_the_epoch_has_the_best_mean_over_the_sections_left_out(folder: Path, train: Callable[..., list[str]]) -> None:
    runs = {"asked": 60, "epochs": 60, "chosen_by": []}
    curves = {"C2": np.linspace(0.1, 0.7, 60), "C3": np.linspace(0.3, 0.0, 60), "C5": np.zeros(60)}
    curves["C5"][[11, 40]] = [0.9, 0.5]
    known = {f"mlp/recommended/{name}": {**runs, "validation": list(curve)} for name, curve in curves.items()}
    (folder / "zoo.json").write_text(json.dumps({"runs": known, "scores": {}}), encoding="utf-8")
    assert train(folder, "--folds", "C2", "C3", "C5", models="mlp") == ["mlp/recommended/full"]
    results = json.loads((folder / "zoo.json").read_text(encoding="utf-8"))
    assert results["runs"]["mlp/recommended/full"]["epochs"] == 12


def test_scores_are_those_of_tl_evaluate(
    sections: dict[str, SpatialData], folder: Path, train: Callable[..., list[str]]
) -> None:
    train(folder, "--epochs", 3, "--folds", models="mlp", targets="recommended paper")
    script = load("gpu_zoo")
    held_out = {name: sections[name] for name in SCORED}
    for target, least in (("recommended", None), ("paper", 0)):
        found = script.scores_of(folder / "predictions" / f"mlp-{target}.npz", held_out, target)
        for name, sdata in held_out.items():
            stp.tl.predict(sdata, folder / "checkpoints" / target / "mlp.safetensors", key_added="checked")
            expected = stp.tl.evaluate(sdata, key="checked", min_counts=least)
            summary = expected.summary.query("predictor == 'checked'").iloc[0]
            paper = expected.paper.query("predictor == 'checked'").iloc[0]
            for column in ("gene_partial", "gene_partial_low", "gene_residual", "gene_pearson"):
                assert found[name][column] == pytest.approx(summary[column], abs=0.02), column  # of weights in float16
            assert found[name]["n_spots"] == summary["n_spots"]
            assert found[name]["spot_rmse"] == pytest.approx(paper["spot_rmse"], rel=0.02)


def test_the_page_shows_the_results() -> None:
    script = load("gpu_zoo")
    page = script.PAGE.read_text(encoding="utf-8")
    results = script.read(script.RESULTS)
    assert script.fill(page, results) == page
    shown = page.split("<!-- zoo -->")[1].split("<!-- end of zoo -->")[0]
    assert all(shown.count(f"| `{name}` |") == 2 for name in list_models())
    known = {name.rpartition("/")[0] for name in results["runs"] if name.endswith("/full")}
    assert set(results["scores"]) == known
    assert shown.count("| not run |") == 2 * len(list_models()) - len(known)
