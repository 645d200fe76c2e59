"""The table of models agrees with counts that were made in other ways."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from st_predict.crops import Batch
from st_predict.models import ModelSpec, Reads, SpotModel, _registry, _table, get_spec, list_models, table
from st_predict.models._table import _row, _size
from st_predict.specs import CropSpec, LevelSpec

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-model.md"
RESNET50 = 23_508_032  # without its last layer
BLEEP_HEADS = (2048 + 250 + 2) * 256 + 2 * (256**2 + 3 * 256)
# Only class tokens of M2OST's last block are read: this layer need not be computed for 196, 392 and 588 patches.
UNREAD = (196 + 392 + 588 - 3) * 384 * 192 / 1e9
# Parameters and 1e9 multiply-accumulates, of networks that were not written here.
KNOWN = {
    "m2ost": (7_043_466 - 4 * 2 * 576, 4.309 - UNREAD),  # less layer norms that are never used
    "m2ort": (7_620_874, 1.71),
    "stnet": (7_210_106, 2.833),
    "deepspace": (135_284_794, 15.467),
    "crossvit": (26_422_772, 5.615),
    "resnet50": (24_020_282, 4.088),
    "vit": (85_990_906, 17.563),
    "swin": (27_711_604, 4.490),
    "convnext": (28_012_378, 4.455),
    "bleep": (RESNET50 + BLEEP_HEADS, 4.087 + (2048 + 256) * 256 / 1e9),
}


@pytest.fixture(scope="module")
def models() -> pd.DataFrame:
    return table()


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_and_multiply_accumulates(models: pd.DataFrame, name: str) -> None:
    n_params, gmacs = KNOWN[name]
    assert models.loc[name, "params"] == n_params
    assert models.loc[name, "gmacs"] == pytest.approx(gmacs, rel=0.002)


@pytest.mark.parametrize(("variant", "n_params", "gmacs"), [("base", 17_137_946, 3.77), ("large", 55_485_754, 11.88)])
def test_larger_variants_of_m2ort(variant: str, n_params: int, gmacs: float) -> None:
    assert _size(replace(get_spec("m2ort"), hparams={"variant": variant})) == (
        n_params,
        pytest.approx(gmacs, rel=0.002),
    )


def test_networks_that_see_a_section_are_counted_on_one(models: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.loc["histogene", "params"] == 72_512_762
    assert models.loc["hist2st", "params"] == 73_596_333
    monkeypatch.setattr(_table, "_N_SPOTS", 718)  # as in the comparison of M2OST
    spec = get_spec("histogene")
    n_params, gmacs = _size(replace(spec, hparams={**spec.hparams, "size": 224}))
    assert n_params == 188_118_266
    assert 718 * gmacs == pytest.approx(139.2, rel=0.002)


def test_what_is_not_known_is_missing(models: pd.DataFrame) -> None:
    assert sorted(models.index[models["params"].isna()]) == ["mean", "ridge"]
    encoded = models.index[models["inputs"] != "crops"]  # the work is that of an encoder
    assert set(models.index[models["gmacs"].isna()]) == {"mean", "ridge", *encoded}


def test_every_model_has_a_row_that_says_what_its_spec_says(models: pd.DataFrame) -> None:
    assert models.index.tolist() == list_models()
    assert models["inputs"].tolist() == [get_spec(name).reads(get_spec(name).hparams).inputs for name in list_models()]
    assert (
        dict(models["inputs"]).items()
        >= {"m2ost": "crops", "ridge": "features", "istar": "cells", "mean": "nothing"}.items()
    )
    for column in ("family", "summary", "scope", "citation", "license"):
        assert models[column].tolist() == [getattr(get_spec(name), column) for name in list_models()]


def test_levels_and_fields_of_view(models: pd.DataFrame) -> None:
    assert models.loc["m2ost", "levels"] == "224 at 1, 224 at 2, 224 at 4"
    assert models.loc["m2ost", "fov_px"] == 896
    assert models.loc["m2ost", "fov_um"] is pd.NA
    assert models.loc["resnet50", ["levels", "fov_px"]].tolist() == ["224 at 1", 224]


class Products(SpotModel):
    """Attention in many ways, of 5 queries and 7 keys of 12 channels."""

    def __init__(self, n_genes: int, *, way: str) -> None:
        super().__init__()
        self.way = way
        self.mha = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, n_genes)

    def forward(self, batch: Batch) -> torch.Tensor:
        q_BHNE, k_BHNE = torch.ones(len(batch), 3, 5, 4), torch.ones(len(batch), 3, 7, 4)
        q_XNE, k_XNE = q_BHNE.flatten(0, 1), k_BHNE.flatten(0, 1)
        q_BND, k_BND = torch.ones(len(batch), 5, 12), torch.ones(len(batch), 7, 12)
        x = {
            "fused": lambda: F.scaled_dot_product_attention(q_BHNE, k_BHNE, k_BHNE),
            "masked": lambda: F.scaled_dot_product_attention(q_BHNE, k_BHNE, k_BHNE, attn_mask=torch.zeros(5, 7)),
            "matmul": lambda: (q_BHNE @ k_BHNE.mT) @ k_BHNE,
            "bmm": lambda: torch.bmm(torch.bmm(q_XNE, k_XNE.mT), k_XNE),
            "baddbmm": lambda: torch.baddbmm(q_XNE.new_empty(()), q_XNE, k_XNE.mT, beta=0) @ k_XNE,
            "einsum": lambda: torch.einsum("bhqk,bhke->bhqe", torch.einsum("bhqe,bhke->bhqk", q_BHNE, k_BHNE), k_BHNE),
            "module": lambda: self.mha(q_BND, k_BND, k_BND, need_weights=False)[0],
            "module_with_weights": lambda: self.mha(q_BND, k_BND, k_BND)[0],
        }[self.way]()
        return self.head(x.reshape(len(batch), -1, 12).mean(1))


@pytest.mark.parametrize(
    ("way", "projections"),
    [
        *[(way, 0) for way in ("fused", "masked", "matmul", "bmm", "baddbmm", "einsum")],
        ("module", 12 * 12 * (5 + 7 + 7 + 5)),
        ("module_with_weights", 12 * 12 * (5 + 7 + 7 + 5)),
    ],
)
def test_attention_is_counted_however_it_is_written(way: str, projections: int) -> None:
    spec = replace(get_spec("resnet50"), build=Products, hparams={"way": way}, crop_of=None)
    n_params, gmacs = _size(spec)
    assert n_params == 4 * (12 * 12 + 12) + (12 + 1) * 250
    assert gmacs == pytest.approx((2 * 3 * 5 * 7 * 4 + projections + 12 * 250) / 1e9, rel=1e-12)


def test_the_work_of_an_encoder_is_not_known() -> None:
    spec = replace(
        get_spec("resnet50"), build=Products, hparams={"way": "fused"}, reads_of=lambda **_: Reads(kind="features")
    )
    assert _size(spec) == (4 * (12 * 12 + 12) + (12 + 1) * 250, None)


def test_without_timm_all_but_its_numbers_is_there(models: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    without = table()
    assert without.loc[["resnet50", "bleep"], ["params", "gmacs"]].isna().all(axis=None)
    pd.testing.assert_series_equal(without.loc["m2ost"], models.loc["m2ost"])
    counts = ["params", "gmacs"]
    pd.testing.assert_frame_equal(without.drop(columns=counts), models.drop(columns=counts))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The model that the page on adding models shows, installed as a package of somebody else."""
    text = HOW_TO.read_text(encoding="utf-8")
    source, entry = (
        re.search(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for kind in ("python", "toml")
    )
    assert source is not None
    assert entry is not None
    group = re.search(r'^\[project\.entry-points\."(.+)"\]$', entry[1], re.MULTILINE)
    assert group is not None
    (tmp_path / "mean_colour.py").write_text(source[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mean_colour", raising=False)
    entries = EntryPoints([EntryPoint("mean_colour", "mean_colour:SPEC", group[1])])
    monkeypatch.setattr(_registry, "entry_points", entries.select)
    return get_spec("mean_colour")


def test_the_example_of_a_model_is_one(example: ModelSpec) -> None:
    network = example.build(2, cells=2, size=32).eval()
    halves = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    halves[:, 0, :, 16:] = 255  # red on the right
    with torch.no_grad():
        network.head.weight.copy_(torch.arange(24.0).view(2, 12))
        network.start_at(torch.tensor([0.5, -1.0]))
        prediction = network(Batch(crops=(halves,), index=torch.arange(1)))
    # cells in reading order: of the first colour, the second and the fourth are 1
    np.testing.assert_allclose(prediction.numpy(), [[1 + 3 + 0.5, 13 + 15 - 1.0]], rtol=1e-6)
    assert example.crop_for(example.hparams) == example.crop


def test_the_example_is_in_the_table(example: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert example.name in list_models()
    monkeypatch.setattr(_table, "list_models", lambda: ["mean", example.name])
    row = table().loc[example.name]
    assert (row["params"], row["gmacs"]) == ((3 * 14**2 + 1) * 250, 3 * 14**2 * 250 / 1e9)
    assert (row["levels"], row["fov_px"], row["inputs"]) == ("224 at 1", 224, "crops")


def test_the_field_of_view_in_micrometres(example: ModelSpec) -> None:
    crop = CropSpec(levels=(LevelSpec(size=100), LevelSpec(size=100, downsample=5 / 3)), mpp=0.3)
    row = _row(replace(example, crop_of=lambda **_: crop))
    assert row["levels"] == "100 at 1, 100 at 1.67"
    assert row["fov_px"] == pytest.approx(500 / 3)
    assert row["fov_um"] == pytest.approx(50)
