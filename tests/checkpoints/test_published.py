"""Files that published code wrote become checkpoints: from the saved file to the prediction, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from typer.testing import CliRunner

import st_predict as stp
from st_predict.checkpoints import import_published
from st_predict.cli import app
from st_predict.encoders import count_features, get_cell_encoder, get_encoder
from st_predict.models import get_spec, list_models
from st_predict.specs import CropSpec, LevelSpec, ModelCard, PixelSpec, TargetSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from spatialdata import SpatialData

State = dict[str, torch.Tensor]

TESTS = Path(__file__).parents[1]
N_RGB = count_features(get_encoder("rgb"))
PIXELS = PixelSpec(mean=(0.7, 0.5, 0.6), std=(0.2, 0.3, 0.2))
LOG = TargetSpec(transform="log1p")
LIMITS = ((0.0, 0.0, 0.0, 0.0, 0.0), (9.0, 8.0, 7.0, 6.0, 5.0))
VOCABULARY = {"KRT5": "ENSG3", "CD74": "ENSG1", "ERBB2": "ENSG4", "HER2": "ENSG4", "C1orf43": "ENSG2"}


def module_of(name: str, folder: str = "models") -> ModuleType:
    """The tests of a model, which know the names and shapes of its published weights."""
    place = importlib.util.spec_from_file_location(f"_module_of_{name}", TESTS / folder / f"test_{name}.py")
    if place.name not in sys.modules:
        sys.modules[place.name] = importlib.util.module_from_spec(place)  # data classes look for their module
        place.loader.exec_module(sys.modules[place.name])
    return sys.modules[place.name]


def small(model: str) -> State:
    """Weights of torchvision, of the small network that the tests of parity compare with."""
    parity = module_of("timm_parity")
    return parity.fill(parity.TWINS[model].small()).state_dict()


def of_section(model: str, layer: str) -> State:
    """Weights of a network that reads the features of ``"rgb"``."""
    state, generator = module_of(model).published_state(), torch.Generator().manual_seed(0)
    return {**state, layer: 0.05 * torch.randn(len(state[layer]), N_RGB, generator=generator)}


def istar() -> State:
    generator = torch.Generator().manual_seed(0)
    sizes = [get_cell_encoder("rgb-cells").n_features, 8, 8, 8, 8, 5]
    names = [*(f"net_lat.{i}.linear" for i in range(4)), "net_out.linear"]
    shapes = {f"{name}.weight": (b, a) for name, a, b in zip(names, sizes[:-1], sizes[1:], strict=True)}
    shapes |= {f"{name}.bias": (b,) for name, b in zip(names, sizes[1:], strict=True)}
    return {name: torch.randn(shape, generator=generator) / 3 for name, shape in shapes.items()}


@dataclass(frozen=True)
class Case:
    """Published weights of a model, what has to be said with them, and the hyper-parameters that then have to be found."""

    state: State
    n_genes: int
    given: dict[str, Any]
    found: dict[str, Any]
    told: dict[str, Any] = field(default_factory=dict)


PIXELS_AND_UNITS = {"pixels": PIXELS, "target": LOG}


def of_m2ost() -> Case:
    found = {"dim": 12, "depth": 2, "mlp_dim": 10, "size": 64, "patch": 16}
    return Case(module_of("m2ost").published_state(12, 2, 7), 7, {"heads": 3, "head_dim": 4}, found)


def of_m2ort() -> Case:
    found = {"dim": 24, "depth": 2, "mlp_dim": 48, "size": 32, "patch": 16}
    return Case(module_of("m2ort").published_state(), 7, {"heads": 2, "head_dim": 64}, found)


def of_lattice(model: str, **found: int) -> Case:
    tests = module_of(model)
    state = tests.as_tensors(tests.published_state(np.random.default_rng(1)))
    return Case(state, 5, {"heads": 2, "head_dim": 8}, found)


def of_crossvit() -> Case:
    tests = module_of("crossvit")
    state = tests.state_of(tests.fill(tests.make_timm()), published=True)
    found = {"dims": (12, 24), "depths": (1, 2), "mlp_ratio": 3, "stages": 2, "sizes": (60, 64)}
    return Case(state, 5, {"heads": 3}, found, PIXELS_AND_UNITS)


def of_bleep() -> Case:
    hparams = {name: value for name, value in get_spec("bleep").tiny.items() if name != "dim"}
    return Case(module_of("bleep").published_state(), 5, hparams, {"dim": 8})


def of_stflow() -> Case:
    state = of_section("stflow", "image_transform.weight")
    found = {"n_features": N_RGB, "dim": 16, "edge_dim": 8, "depth": 2, "heads": 2}
    return Case(state, 7, {"encoder": "rgb", "neighbours": 4}, found)


def of_stpath() -> Case:
    state = of_section("stpath", "input_encoder.image_embed.weight")
    found = {"n_features": N_RGB, "dim": 8, "depth": 2, "heads": 2, "mlp_ratio": 2}
    return Case(state, 4, {"encoder": "rgb", "organ": "Breast"}, found)


def of_istar() -> Case:
    target = TargetSpec(transform="counts", scale="minmax", limits=LIMITS)
    return Case(istar(), 5, {"encoder": "rgb-cells"}, {"n_fits": 1, "hidden": 8}, {"target": target})


def of_deepspace() -> Case:
    target = TargetSpec(total=1e4, over="all", scale="minmax", limits=LIMITS)
    state = module_of("timm_parity").fill(torchvision.models.densenet121(num_classes=5)).state_dict()
    return Case(state, 5, {"size": 64, "field": 2.5, "spot_um": 100.0}, {"arch": "densenet121"}, {"target": target})


def of_torchvision(model: str, **told: Any) -> Case:
    return Case(small(model), 5, module_of("timm_parity").TWINS[model].hparams, {}, told)


CASES: dict[str, Callable[[], Case]] = {
    "bleep": of_bleep,
    "crossvit": of_crossvit,
    "deepspace": of_deepspace,
    "hist2st": lambda: of_lattice("hist2st", size=14, channels=16, kernel=3, mixers=2, n_pos=20, depth=2, graph=3),
    "histogene": lambda: of_lattice("histogene", size=4, n_pos=20, dim=6, depth=2, mlp_dim=12),
    "istar": of_istar,
    "m2ort": of_m2ort,
    "m2ost": of_m2ost,
    "stflow": of_stflow,
    "stpath": of_stpath,
    "stnet": lambda: of_torchvision("stnet", pixels=PIXELS),
    **{name: partial(of_torchvision, name, **PIXELS_AND_UNITS) for name in ("convnext", "resnet50", "swin", "vit")},
}


def cases(model: str) -> Case:
    return CASES[model]()


CONVERTED = [name for name in list_models() if get_spec(name).convert is not None]


def test_every_model_that_converts_is_tested() -> None:
    assert sorted(CASES) == CONVERTED


def genes_of(model: str, case: Case) -> list[str]:
    names = stp.datasets.toy()["table"].var_names.tolist()
    return ["CD74", "C1orf43", "KRT5", "ERBB2"] if model == "stpath" else names[: case.n_genes]


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """Expression of 30 measured spots of 5 genes."""
    return np.random.default_rng(0).gamma(2, 1, (30, 5)).astype(np.float32)


def write(folder: Path, model: str, state: Any, reference: np.ndarray | None = None) -> list[Path]:
    """Files as they are downloaded."""
    torch.save(state, folder / "weights.pth")
    files = [folder / "weights.pth"]
    if model == "stpath":
        (folder / "symbol2ensembl.json").write_text(json.dumps(VOCABULARY))
        files.append(folder / "symbol2ensembl.json")
    if model == "bleep":
        np.save(folder / "1.npy", reference[:20].T)  # as published, genes down
        np.save(folder / "2.npy", reference[20:])
        files += [folder / "1.npy", folder / "2.npy"]
    return files


def by_hand(model: str, case: Case, genes: list[str], path: Path, reference: np.ndarray) -> Path:
    """A checkpoint of the network with the weights loaded by hand."""
    spec = get_spec(model)
    hparams = {**spec.hparams, **spec.original.hparams, **case.found, **case.given}
    network = spec.build(case.n_genes, **hparams)
    network.load_state_dict(spec.convert(case.state))
    if model == "bleep":
        index, target = torch.arange(30), torch.from_numpy(reference)
        network.finalize([stp.crops.Batch(crops=(), index=index, target=target)])
    crop = spec.crop_for(hparams)
    card = ModelCard(
        model=model,
        genes=tuple(genes),
        crop=crop if crop.mpp else replace(crop, mpp=0.6),
        pixels=case.told.get("pixels", spec.pixels_for(hparams)),
        target=case.told.get("target", spec.original.target),
        hparams=hparams,
    )
    stp.checkpoints.save(path, network, card)
    return path


def predict(section: SpatialData, checkpoint: Path) -> np.ndarray:
    stp.tl.predict(section, checkpoint, key_added="p", device="cpu", precision="float32", mpp=0.5)
    return stp.get.prediction(section, "p").X


@pytest.mark.slow
@pytest.mark.parametrize("model", CONVERTED)
def test_from_the_file_to_the_prediction(
    model: str, tmp_path: Path, reference: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    case = cases(model)
    genes, files = genes_of(model, case), write(tmp_path, model, case.state, reference)
    mpp = None if get_spec(model).crop_for({**case.given}).mpp else 0.6
    out = import_published(
        model, files, genes=genes, out=tmp_path / "out.safetensors", hparams=case.given, mpp=mpp, **case.told
    )
    expected = by_hand(model, case, genes, tmp_path / "by_hand.safetensors", reference)
    network, card = stp.checkpoints.load(out)
    theirs, _ = stp.checkpoints.load(expected)
    assert {name: tuple(x.shape) for name, x in network.state_dict().items()} == {
        name: tuple(x.shape) for name, x in theirs.state_dict().items()
    }
    found = {name: tuple(v) if isinstance(v, list) else v for name, v in card.hparams.items() if name in case.found}
    assert found == case.found
    predicted = predict(stp.datasets.toy(), out)
    np.testing.assert_array_equal(predicted, predict(stp.datasets.toy(), expected))
    assert np.isfinite(predicted).all()
    assert predicted.std(axis=0).max() > 1e-3  # it depends on the spot


@torch.no_grad()
def test_the_prediction_is_that_of_torchvision(tmp_path: Path) -> None:
    """Of the network that wrote the file, on crops cut by hand."""
    theirs = module_of("timm_parity").fill(module_of("timm_parity").TWINS["resnet50"].small())
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    case, section = cases("resnet50"), stp.datasets.toy()
    options = {"genes": genes_of("resnet50", case), "hparams": case.given, "mpp": "native", **case.told}
    out = import_published("resnet50", tmp_path / "a.pth", out=tmp_path / "o.safetensors", **options)
    (image,) = section.images.values()
    pixels = np.asarray(image["scale0"]["image"].transpose("c", "y", "x"))
    spots = stp.io.read_spots(section)
    corners = np.rint(spots.xy - 32).astype(int)
    inside = np.flatnonzero((corners >= 0).all(1) & (corners + 64 <= pixels.shape[:0:-1]).all(1))
    assert len(inside) > 10
    crops = np.stack([pixels[:, y : y + 64, x : x + 64] for x, y in corners[inside]])
    mean, std = (torch.tensor(value)[:, None, None] for value in (PIXELS.mean, PIXELS.std))
    expected = theirs((torch.from_numpy(crops) / 255 - mean) / std)
    np.testing.assert_allclose(predict(section, out)[inside], expected, rtol=1e-3, atol=1e-4)


# Files of all kinds.


@pytest.fixture
def m2ost() -> State:
    return module_of("m2ost").published_state(12, 1, 4)


M2OST = {"genes": list("abcd"), "mpp": "native", "hparams": {"heads": 3, "head_dim": 4}}


def same(path: Path, state: State) -> bool:
    network, _ = stp.checkpoints.load(path)
    expected = get_spec("m2ost").convert(state)
    return all(torch.equal(x, expected[name]) for name, x in network.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        OrderedDict,
        lambda s: {f"module.{name}": x for name, x in s.items()},
        lambda s: {f"model._orig_mod.{name}": x for name, x in s.items()},
        lambda s: {"epoch": 3, "state_dict": {f"model.{n}": x for n, x in s.items()}, "hyper_parameters": {"lr": 0.1}},
        lambda s: {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "model": s, "best": 0.3},
        lambda s: {"student": {"x": torch.ones(1)}, "teacher": s, "args": Namespace(lr=0.1)},
        lambda s: {"model": {"state_dict": s}},
    ],
    ids=["plain", "ordered", "parallel", "compiled", "lightning", "training", "dino", "nested"],
)
def test_state_dicts_are_found(wrap: Any, m2ost: State, tmp_path: Path) -> None:
    torch.save(wrap(m2ost), tmp_path / "a.pt")
    assert same(import_published("m2ost", tmp_path / "a.pt", out=tmp_path / "o.safetensors", **M2OST), m2ost)


def test_old_archives_and_safetensors(m2ost: State, tmp_path: Path) -> None:
    torch.save(m2ost, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    save_file(m2ost, tmp_path / "b.safetensors", metadata={"format": "pt"})
    for name in ("a.bin", "b.safetensors"):
        assert same(import_published("m2ost", [tmp_path / name], out=tmp_path / f"{name}.safetensors", **M2OST), m2ost)


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_not_run(archive: bool, m2ost: State, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": m2ost, "x": Code(tmp_path / "ran")}, tmp_path / "a", _use_new_zipfile_serialization=archive
    )
    with pytest.raises(
        ValueError, match=r"a' holds more than tensors.*system.*could run any code.*save its state dict"
    ):
        import_published("m2ost", tmp_path / "a", out=tmp_path / "o.safetensors", **M2OST)
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"b\.pt'"):
        import_published("m2ost", tmp_path / "b.pt", out=tmp_path / "o.safetensors", **M2OST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.pt"]


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"more than tensors and plain values: torch\.nn\.modules\.linear\.Linear\."):
        import_published("m2ost", tmp_path / "a.pt", out=tmp_path / "o.safetensors", **M2OST)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "empty", "html", "text", "lfs"])
def test_damaged_files_are_named(kind: str, m2ost: State, tmp_path: Path) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        save_file(m2ost, path)
    else:
        torch.save(m2ost, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "html": b"<!DOCTYPE html>",
        "text": b"not found",
        "lfs": b"version https://git-lfs.github.com/",
    }
    path.write_bytes(content.get(kind, whole[: len(whole) // 2]))
    said = "pointer of Git LFS" if kind == "lfs" else "not a complete file of PyTorch or safetensors .*Get it again"
    with pytest.raises(ValueError, match=rf"{path.name}' is .*{said}"):
        import_published("m2ost", path, out=tmp_path / "o.safetensors", **M2OST)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_files_without_a_state_dict(m2ost: State, tmp_path: Path) -> None:
    for name, held in (("a.pt", {"weights": m2ost, "epoch": 2}), ("b.pt", [torch.ones(2)])):
        torch.save(held, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}' has no state dict: it holds a.*'teacher'"):
            import_published("m2ost", tmp_path / name, out=tmp_path / "o.safetensors", **M2OST)


# What does not fit.


@pytest.fixture
def file(m2ost: State, tmp_path: Path) -> Path:
    torch.save(m2ost, tmp_path / "m2ost.pth")
    return tmp_path / "m2ost.pth"


@pytest.mark.parametrize("model", CONVERTED)
def test_files_of_another_model_say_of_which(model: str, tmp_path: Path, reference: np.ndarray) -> None:
    other = "histogene" if model == "m2ort" else "m2ort"
    torch.save(cases(other).state, tmp_path / "weights.pth")
    files = write(tmp_path, model, cases(other).state, reference)
    with pytest.raises(
        ValueError, match=rf"weights\.pth' is not a file of '{model}', but of \['{other}'\].*Import it as"
    ):
        import_published(model, files, genes=list("abcde"), out=tmp_path / "o.safetensors")


def test_names_that_are_missing_or_unknown_are_listed(m2ost: State, tmp_path: Path) -> None:
    del m2ost["mlp_head.bias"]
    torch.save({**m2ost, **{f"more{i}": torch.ones(1) for i in range(8)}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"missing \['mlp_head\.bias'\], unknown \['more0'.*'more4'\] and 3 more\.$"):
        import_published("m2ost", tmp_path / "a.pt", out=tmp_path / "o.safetensors", **M2OST)


@pytest.mark.parametrize("model", sorted({*CONVERTED} - {"stpath"}))
def test_another_number_of_genes(model: str, tmp_path: Path) -> None:
    case = cases(model)
    genes = [f"g{i}" for i in range(case.n_genes + 1)]
    told = {**case.told, **({"target": LOG} if "target" in case.told else {})}
    mpp = None if get_spec(model).crop_for({**case.given}).mpp else "native"
    files = write(tmp_path, model, case.state, np.ones((30, case.n_genes + 1), np.float32))
    with pytest.raises(ValueError, match=rf"outputs for {case.n_genes} genes, got the names of {len(genes)}\. Name"):
        import_published(model, files, genes=genes, out=tmp_path / "o.safetensors", hparams=case.given, mpp=mpp, **told)


def test_genes_are_read_from_lists_and_files(file: Path, tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("b\na\nd\nc\n")
    np.save(tmp_path / "genes.npy", np.array(["b", "a", "d", "c"]))
    for genes in (
        ["b", "a", "d", "c"],
        tmp_path / "genes.txt",
        str(tmp_path / "genes.npy"),
        np.array(["b", "a", "d", "c"]),
    ):
        out = import_published(
            "m2ost", file, out=tmp_path / "o.safetensors", overwrite=True, **{**M2OST, "genes": genes}
        )
        assert ModelCard.of_file(out).genes == ("b", "a", "d", "c")


def test_genes_that_cannot_be_used(file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.arange(4))
    np.save(tmp_path / "objects.npy", np.array(list("abcd"), dtype=object))
    refused = {
        "do not name their genes. Give .* genes=": None,
        "genes must be a list of names": 3,
        "more than once": list("abca"),
        "genes is empty": [],
        "must be a list of names, got int64": tmp_path / "numbers.npy",
        "without Python objects": tmp_path / "objects.npy",
    }
    for said, genes in refused.items():
        with pytest.raises(ValueError, match=said):
            import_published("m2ost", file, out=tmp_path / "o.safetensors", **{**M2OST, "genes": genes})
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt' with genes"):
        import_published("m2ost", file, out=tmp_path / "o.safetensors", **{**M2OST, "genes": tmp_path / "nothing.txt"})


def test_genes_of_stpath_are_in_its_vocabulary(tmp_path: Path) -> None:
    case = cases("stpath")
    files = write(tmp_path, "stpath", case.state)
    options = {"out": tmp_path / "o.safetensors", "hparams": case.given, "mpp": 0.5}
    with pytest.raises(KeyError, match=r"1 of 2 genes are not in the vocabulary.*'erbb2': \['ERBB2'\]"):
        import_published("stpath", files, genes=["erbb2", "CD74"], **options)
    with pytest.raises(ValueError, match=r"needs a file \.json, its vocabulary\. Add it to files="):
        import_published("stpath", files[:1], genes=["CD74"], **options)
    files[1].write_text("{")
    with pytest.raises(ValueError, match=r"symbol2ensembl\.json' is not JSON"):
        import_published("stpath", files, genes=["CD74"], **options)
    files[1].write_text('{"a": "b"}')
    with pytest.raises(ValueError, match="The vocabulary has 1 genes, the network 4"):
        import_published("stpath", files, genes=["a"], **options)
    assert not (tmp_path / "o.safetensors").exists()


def test_some_genes_of_stpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST_PREDICT_CACHE", str(tmp_path / "cache"))
    case = cases("stpath")
    files = write(tmp_path, "stpath", case.state)
    options = {"hparams": case.given, "mpp": 0.6}
    every = import_published(
        "stpath", files, genes=["CD74", "C1orf43", "KRT5", "ERBB2"], out=tmp_path / "4.safetensors", **options
    )
    two = import_published("stpath", files, genes=["HER2", "C1orf43"], out=tmp_path / "2.safetensors", **options)
    expected = predict(stp.datasets.toy(), every)[:, [3, 1]]
    np.testing.assert_allclose(predict(stp.datasets.toy(), two), expected, rtol=1e-5, atol=1e-5)


def test_files_that_a_model_cannot_use(file: Path, tmp_path: Path, reference: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", reference)
    (tmp_path / "v.json").write_text("{}")
    torch.save({}, tmp_path / "other.pth")
    out = {"genes": list("abcd"), "out": tmp_path / "o.safetensors"}
    for name in ("a.npy", "v.json"):
        with pytest.raises(ValueError, match=rf"'m2ost' does not use \['{name}'\]"):
            import_published("m2ost", [file, tmp_path / name], **out)
    with pytest.raises(ValueError, match="'m2ost' has one file of weights, got 2"):
        import_published("m2ost", [file, tmp_path / "other.pth"], **out)
    with pytest.raises(ValueError, match="files must include weights, got"):
        import_published("m2ost", tmp_path / "a.npy", **out)
    with pytest.raises(ValueError, match="given twice"):
        import_published("m2ost", [file, str(file)], **out)
    with pytest.raises(FileNotFoundError, match=r"Found no file .*none\.pth"):
        import_published("m2ost", tmp_path / "none.pth", **out)
    with pytest.raises(TypeError, match="files must be a path or a list of paths, got dict"):
        import_published("m2ost", {"a": file}, **out)
    with pytest.raises(ValueError, match=r"'ridge' has no published weights .*'hipt', 'bleep'"):
        import_published("ridge", file, **out)
    with pytest.raises(KeyError, match=r"No model 'm2osr'.*Did you mean 'm2ost'"):
        import_published("m2osr", file, **out)


def test_a_checkpoint_of_ours_is_not_imported(checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is a checkpoint of st_predict already\. Give its path to st_predict\.tl\.predict"
    ):
        import_published("m2ost", checkpoint(), out=tmp_path / "o.safetensors", **M2OST)


def test_reference_spots_of_bleep(tmp_path: Path, reference: np.ndarray) -> None:
    case = cases("bleep")
    files = write(tmp_path, "bleep", case.state, reference)
    options = {"genes": list("abcde"), "out": tmp_path / "o.safetensors", "hparams": case.given, "mpp": "native"}
    with pytest.raises(ValueError, match=r"also needs a file \.npy, its reference spots"):
        import_published("bleep", files[:1], **options)
    for name, array, said in (
        ("3.npy", np.ones((6, 4)), r"3\.npy' must be expression of 5 genes, got float64 of shape \(6, 4\)"),
        ("4.npy", np.full((6, 5), np.nan), "not finite"),
    ):
        np.save(tmp_path / name, array)
        with pytest.raises(ValueError, match=said):
            import_published("bleep", [*files, tmp_path / name], **options)
    network, card = stp.checkpoints.load(import_published("bleep", files, **options))
    np.testing.assert_array_equal(network.bank.values, reference)
    assert [f["name"] for f in card.training["files"]] == ["weights.pth", "1.npy", "2.npy"]


def test_fits_of_istar(tmp_path: Path) -> None:
    state, files = istar(), []
    for i in range(3):
        torch.save({name: x + i for name, x in state.items()}, tmp_path / f"{i}.pt")
        files.append(tmp_path / f"{i}.pt")
    options = {"genes": list("abcde"), "out": tmp_path / "o.safetensors", **cases("istar").told}
    with pytest.raises(ValueError, match=r"do not tell \['encoder'\].* Give \['encoder'\] in hparams="):
        import_published("istar", files, **options)
    network, _ = stp.checkpoints.load(import_published("istar", files, hparams={"encoder": "rgb-cells"}, **options))
    for i in range(3):
        torch.testing.assert_close(network.layers[1].weight[i], state["net_lat.1.linear.weight"].T + i)
    torch.save({**state, "net_out.linear.bias": torch.ones(4), "net_out.linear.weight": torch.ones(4, 8)}, files[0])
    with pytest.raises(ValueError, match=r"\['0\.pt', '1\.pt', '2\.pt'\] hold networks of different sizes"):
        import_published("istar", files, hparams={"encoder": "rgb-cells"}, overwrite=True, **options)


# What files do not say.


def test_heads_are_asked_for_unless_they_are_published(file: Path, tmp_path: Path) -> None:
    options = {**M2OST, "out": tmp_path / "o.safetensors"}
    with pytest.raises(
        ValueError, match=r"do not tell \['heads', 'head_dim'\].*'dim': 12.*\['heads', 'head_dim'\] in hparams="
    ):
        import_published("m2ost", file, **{**options, "hparams": {}})
    with pytest.raises(ValueError, match=r"network with {'depth': 1}, not {'depth': 2}\. Leave it out of hparams="):
        import_published("m2ost", file, **{**options, "hparams": {**M2OST["hparams"], "depth": 2}})
    with pytest.raises(ValueError, match=r"'m2ost' has no hyper-parameters \['head'\].*Did you mean 'heads'"):
        import_published("m2ost", file, **{**options, "hparams": {"head": 2}})
    with pytest.raises(
        ValueError,
        match=r"do not fit a 'm2ost' network.* of another shape \['blocks\.0\.itmm.*sizes of training in hparams=",
    ):
        import_published("m2ost", file, **{**options, "hparams": {"heads": 3, "head_dim": 5}})
    with pytest.raises(TypeError, match="hparams must be a mapping"):
        import_published("m2ost", file, **{**options, "hparams": ["heads"]})


@pytest.mark.parametrize(
    ("model", "hparams"),
    [
        ("m2ost", {}),
        ("m2ort", {"variant": "base"}),
        ("crossvit", {"variant": "small"}),
        ("crossvit", {"variant": "15"}),
        ("histogene", {"depth": 8}),
        ("histogene", {}),
        ("hist2st", {}),
        ("hist2st", {"size": 224}),
        ("stflow", {"encoder": "uni"}),
        ("stpath", {"encoder": "gigapath"}),
    ],
)
def test_published_sizes_are_found_in_shapes(model: str, hparams: dict[str, Any]) -> None:
    spec = get_spec(model)
    whole = {**spec.hparams, **hparams}
    with torch.device("meta"):
        network = spec.build_with(9, whole)
        found = spec.hparams_of(network.state_dict())
        assert None not in found.values()
        again = spec.build_with(9, {**spec.hparams, **{k: v for k, v in hparams.items() if k == "encoder"}, **found})
    assert again.config == replace(
        network.config, **({"n_features": found["n_features"]} if "n_features" in found else {})
    )


def test_features_are_those_of_the_encoder(tmp_path: Path) -> None:
    torch.save(cases("stflow").state, tmp_path / "a.pt")
    options = {"genes": [f"g{i}" for i in range(7)], "out": tmp_path / "o.safetensors"}
    with pytest.raises(
        ValueError, match=rf"read {N_RGB} features, and the encoder 'uni' has 1024\. Name the encoder .* hparams="
    ):
        import_published("stflow", tmp_path / "a.pt", **options)


def test_resolution_is_never_guessed(file: Path, tmp_path: Path) -> None:
    options = {**M2OST, "out": tmp_path / "o.safetensors", "overwrite": True}
    with pytest.raises(ValueError, match=r'do not tell\. Give the um/px .* mpp=, or use .* mpp="native"'):
        import_published("m2ost", file, **{**options, "mpp": None})
    for mpp in ("0.5", -1, 0, float("nan"), True):
        with pytest.raises(ValueError, match="mpp must be"):
            import_published("m2ost", file, **{**options, "mpp": mpp})
    assert ModelCard.of_file(import_published("m2ost", file, **options)).crop.mpp is None
    card = ModelCard.of_file(import_published("m2ost", file, **{**options, "mpp": 0.687}))
    levels = tuple(LevelSpec(size=64, downsample=2**k) for k in range(3))
    assert card.crop == CropSpec(levels=levels, mpp=0.687)


def test_units_and_pixels_are_never_guessed(tmp_path: Path) -> None:
    case = cases("resnet50")
    torch.save(case.state, tmp_path / "a.pt")
    options = {"genes": list("abcde"), "out": tmp_path / "o.safetensors", "mpp": "native", "hparams": case.given}
    with pytest.raises(ValueError, match=r"ean and standard deviation of the training pixels are unknown .* pixels="):
        import_published("resnet50", tmp_path / "a.pt", target=LOG, **options)
    with pytest.raises(ValueError, match=r"units of the predictions are unknown.* target="):
        import_published("resnet50", tmp_path / "a.pt", pixels=PIXELS, **options)
    with pytest.raises(ValueError, match=r"depend on their training spots: Pearson residual.* target="):
        import_published(
            "resnet50", tmp_path / "a.pt", pixels=PIXELS, target={"transform": "pearson_residuals"}, **options
        )
    with pytest.raises(ValueError, match="transform must be"):
        import_published("resnet50", tmp_path / "a.pt", pixels=PIXELS, target={"transform": "log"}, **options)
    pixels = {"mean": list(PIXELS.mean), "std": list(PIXELS.std)}
    card = ModelCard.of_file(
        import_published("resnet50", tmp_path / "a.pt", pixels=pixels, target={"transform": "log1p"}, **options)
    )
    assert (card.pixels, card.target) == (PIXELS, LOG)
    assert card.training["units"] == "given at import"


# The card, and what is written.


def test_the_card_says_where_weights_come_from(file: Path, tmp_path: Path) -> None:
    more = {"license": "CC-BY-4.0", "organism": "human", "training": {"sections": "8 patients"}}
    out = import_published(
        "m2ost", file, out=tmp_path / "o.safetensors", source="example.org/m2ost", card=more, **M2OST
    )
    card = ModelCard.of_file(out)
    assert out == tmp_path / "o.safetensors"
    assert (card.license, card.organism) == ("CC-BY-4.0", "human")
    assert card.citation.startswith("Wang2025 ")
    assert card.training["source"] == "example.org/m2ost"
    assert card.training["files"] == [{"name": "m2ost.pth", "sha256": stp._files.sha256_of_file(file)}]
    assert card.training["sections"] == "8 patients"
    assert card.training["units"].startswith("the publication's, preset 'original' of m2ost")
    assert card.target == TargetSpec(transform="log1p_total", total=1e6, over="panel")
    with pytest.raises(ValueError, match=r"card cannot set \['genes'\]"):
        import_published("m2ost", file, out=tmp_path / "p.safetensors", card={"genes": ["x"]}, **M2OST)


def test_what_nobody_says_is_unknown(file: Path, tmp_path: Path) -> None:
    card = ModelCard.of_file(import_published("m2ost", file, out=tmp_path / "o.safetensors", **M2OST))
    assert card.training["source"] == "unknown"
    assert card.license == "unknown; of the published code: MIT (github.com/Dootmaan/M2OST)"
    assert card.organism == "unknown"


def test_existing_files_are_kept(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "o.safetensors"
    out.write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("there was work"))
        with pytest.raises(FileExistsError, match="exists; choose another name"):
            import_published("m2ost", file, out=out, **M2OST)
    assert out.read_bytes() == b"mine"
    with pytest.raises(ValueError, match="overwrite must be True or False"):
        import_published("m2ost", file, out=out, overwrite="yes", **M2OST)
    with pytest.raises(ValueError, match="got the names of 1"):
        import_published("m2ost", file, out=out, overwrite=True, **{**M2OST, "genes": ["a"]})
    assert out.read_bytes() == b"mine"
    import_published("m2ost", file, out=out, overwrite=True, **M2OST)
    assert stp.checkpoints.load(out)[1].model == "m2ost"
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        import_published("m2ost", file, out=tmp_path / "o.pt", **M2OST)
    with pytest.raises(FileNotFoundError, match="Found no folder"):
        import_published("m2ost", file, out=tmp_path / "none" / "o.safetensors", **M2OST)


# HIPT.


@pytest.fixture
def hipt(tmp_path: Path) -> list[Path]:
    """Its two files, as DINO writes them, tiny and random."""
    published = module_of("cells", "encoders").published
    generator = torch.Generator().manual_seed(0)
    patches = {"patch_embed.proj.weight": (24, 3, 16, 16), "patch_embed.proj.bias": (24,)}
    tile = published(generator, dim=24, depth=2, first=patches)
    region = published(generator, dim=12, depth=1, first={"phi.0.weight": (12, 24), "phi.0.bias": (12,)})
    for name, state in (("vit256_small_dino.pth", tile), ("vit4k_xs_dino.pth", region)):
        wrapped = {f"module.backbone.{key}": x for key, x in state.items()} | {"module.head.mlp.0.bias": torch.ones(1)}
        held = {"student": wrapped, "teacher": wrapped, "epoch": 3, "args": Namespace(arch="vit_small")}
        torch.save(held, tmp_path / name)
    return [tmp_path / "vit256_small_dino.pth", tmp_path / "vit4k_xs_dino.pth"]


def test_hipt_becomes_one_file(hipt: list[Path], tmp_path: Path) -> None:
    with torch.serialization.safe_globals([Namespace]):
        states = [torch.load(path)["teacher"] for path in hipt]  # noqa: TID251  # of this test
    stp.encoders.save_hipt_weights(*states, tmp_path / "expected.safetensors")
    for i, files in enumerate((hipt, hipt[::-1])):
        out = import_published("hipt", files, out=tmp_path / f"{i}.safetensors")
        assert out.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert stp.encoders.load_hipt_encoder(out, region=256) is not None


def test_hipt_has_two_files_and_no_genes(hipt: list[Path], file: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    with pytest.raises(ValueError, match=r"HIPT is an encoder: .* leave out \['genes', 'mpp'\]"):
        import_published("hipt", hipt, genes=["a"], mpp=0.5, out=out)
    with pytest.raises(ValueError, match="source"):
        import_published("hipt", hipt, source="http://x", out=out)
    with pytest.raises(ValueError, match=r"two files of weights, vit256_small_dino\.pth and vit4k_xs_dino\.pth, got 1"):
        import_published("hipt", hipt[0], out=out)
    with pytest.raises(ValueError, match="Not the state dict of ViT-"):
        import_published("hipt", [hipt[0], file], out=out)
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists"):
        import_published("hipt", hipt, out=out)
    assert out.read_bytes() == b"mine"


# The command.


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["import", *(str(argument) for argument in arguments)])


def refused(result: Any, *words: str) -> None:
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_command(file: Path, tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("a\nb\nc\nd\n")
    hparams = json.dumps(M2OST["hparams"])
    card = ["--source", "example.org", "--license", "MIT", "--citation", "Wang et al.", "--organism", "human"]
    out = ["--genes", tmp_path / "genes.txt", "--hparams", hparams, *card, "--out", tmp_path / "o.safetensors"]
    result = run("m2ost", file, *out, "--mpp", 0.687)
    assert result.exit_code == 0, result.output
    assert "Wrote" in result.output
    library = import_published(
        "m2ost",
        file,
        genes=list("abcd"),
        out=tmp_path / "p.safetensors",
        hparams=M2OST["hparams"],
        mpp=0.687,
        source="example.org",
        card={"license": "MIT", "citation": "Wang et al.", "organism": "human"},
    )
    assert (tmp_path / "o.safetensors").read_bytes() == library.read_bytes()
    refused(run("m2ost", file, *out, "--mpp", 0.687), "o.safetensors' exists")
    assert run("m2ost", file, *out, "--mpp", "native", "--overwrite").exit_code == 0
    assert ModelCard.of_file(tmp_path / "o.safetensors").crop.mpp is None


def test_command_says_what_is_wrong(file: Path, tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("a\nb\nc\n")
    out = ["--out", tmp_path / "o.safetensors"]
    genes = ["--genes", tmp_path / "genes.txt"]
    refused(run("m2ost", file, *out), "do not name their genes", "with --genes")
    refused(run("m2ost", file, *genes, *out), "Give ['heads', 'head_dim'] in --hparams")
    options = [*genes, *out, "--hparams", json.dumps(M2OST["hparams"])]
    refused(run("m2ost", file, *options), "--mpp", "with --mpp native")
    refused(run("m2ost", file, *options, "--mpp", "fine"), "--mpp must be a number, got 'fine'")
    refused(run("m2ost", file, *options, "--mpp", "native"), "for 4 genes, got the names of 3", "--genes")
    refused(run("m2ost", file, *options, "--target", "log1p"), "--target must be a JSON object")
    refused(run("m2ort", file, *options), "is not a file of 'm2ort', but of ['m2ost']", "Import it as 'm2ost'")
    refused(run("m2ost", tmp_path / "none", *options), "Found no file")
    assert not (tmp_path / "o.safetensors").exists()


def test_command_for_hipt(hipt: list[Path], tmp_path: Path) -> None:
    result = run("hipt", *hipt, "--out", tmp_path / "hipt.safetensors")
    assert result.exit_code == 0, result.output
    assert stp.encoders.load_hipt_encoder(tmp_path / "hipt.safetensors", region=256) is not None
