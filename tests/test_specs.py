"""Specs refuse what makes no sense and say what is wrong."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace
from math import inf, nan

import numpy as np
import pytest

from st_predict.specs import CropSpec, LevelSpec, ModelCard, PixelSpec, TargetSpec, check_card_fields

LEVELS = (LevelSpec(size=224), LevelSpec(size=224, downsample=2))


def test_field_of_view():
    assert [level.fov for level in LEVELS] == [224, 448]
    assert LevelSpec(size=56, downsample=4).fov == 224


def test_specs_are_frozen_and_compare_by_value():
    spec = CropSpec(levels=LEVELS, mpp=0.5)
    assert spec == CropSpec(levels=LEVELS, mpp=0.5)
    assert spec != CropSpec(levels=LEVELS)
    assert hash(spec) == hash(CropSpec(levels=LEVELS, mpp=0.5))
    with pytest.raises(FrozenInstanceError):
        spec.mpp = 1.0


@pytest.mark.parametrize("size", [0, -1, nan, 8.5, "8", True, None])
def test_size_of_a_level(size):
    with pytest.raises(ValueError, match=f"size must be .*got {size!r}"):
        LevelSpec(size=size)


@pytest.mark.parametrize("downsample", [0, -2.0, nan, inf, "2", True, None])
def test_downsample_of_a_level(downsample):
    with pytest.raises(ValueError, match=f"downsample must be .*got {downsample!r}"):
        LevelSpec(size=8, downsample=downsample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, "at least one level"),
        ({"levels": LEVELS[::-1]}, r"finest level comes first.*\[2, 1.0\]"),
        ({"levels": LEVELS, "mpp": 0}, "mpp must be .* got 0"),
        ({"levels": LEVELS, "mpp": -0.5}, "mpp must be .* got -0.5"),
        ({"levels": LEVELS, "mpp": nan}, "mpp must be .* got nan"),
        ({"levels": LEVELS, "mpp": inf}, "mpp must be .* got inf"),
        ({"levels": LEVELS, "pad_value": -1}, "pad_value must be .* 0, got -1"),
        ({"levels": LEVELS, "pad_value": 256}, "pad_value must be .* 255, got 256"),
    ],
)
def test_crops(options, message):
    with pytest.raises(ValueError, match=message):
        CropSpec(**options)


def test_levels_of_one_resolution_may_have_two_sizes():
    spec = CropSpec(levels=(LevelSpec(size=64), LevelSpec(size=32)))
    assert [level.fov for level in spec.levels] == [64, 32]


@pytest.mark.parametrize("std", [(1.0, 0.0, 1.0), (1.0, 1.0, -1.0), (nan, 1.0, 1.0), (1.0, inf, 1.0)])
def test_spread_of_pixels(std):
    with pytest.raises(ValueError, match=r"std\.\d must be (above 0|a finite number)"):
        PixelSpec(std=std)


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"std": (1.0, 1.0, 1.0, 1.0)}])
def test_pixels_have_three_colours(options):
    with pytest.raises(ValueError, match=r"mean is missing|std must be"):
        PixelSpec(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "log2"}, "log1p_total.*log_proportion.*counts.*'log2'"),
        ({"over": "some"}, "panel.*all.*'some'"),
        ({"total": 0}, "total must be above 0, got 0"),
        ({"total": nan}, "total must be a finite number, got nan"),
        ({"scale": "robust"}, "none.*minmax.*'robust'"),
        ({"limits": ((0.0,), (1.0,))}, "limits are .* only the scale 'minmax'"),
        ({"scale": "minmax", "limits": ((0.0, 1.0), (1.0,))}, "the least and the largest value of each gene"),
        ({"scale": "minmax", "limits": ((2.0,), (1.0,))}, "the least and the largest value of each gene"),
        ({"scale": "minmax", "limits": ((nan,), (1.0,))}, "finite"),
    ],
)
def test_targets(options, message):
    with pytest.raises(ValueError, match=message):
        TargetSpec(**options)


def test_units_are_said_in_words():
    assert TargetSpec().units == "ln(1 + 1,000,000 * count / sum over panel genes)"
    assert TargetSpec(total=1e4, over="all").units == "ln(1 + 10,000 * count / sum over all genes)"
    assert TargetSpec(transform="log_proportion").units == "ln((1 + count) / (n_genes + sum)), over panel genes"
    assert TargetSpec(transform="counts").units == "counts"
    assert TargetSpec(transform="log1p").units == "ln(1 + count)"
    scaled = TargetSpec(transform="log1p", scale="minmax", limits=((0.0,), (2.0,)))
    assert scaled.units == "ln(1 + count), from 0 at the least to 1 at the largest of training"


def test_unknown_fields_are_named_with_the_choices():
    with pytest.raises(ValueError, match=r"LevelSpec has no fields \['zoom'\]; there are \['size', 'downsample'\]"):
        LevelSpec(size=8, zoom=2)


def test_scalars_of_numpy_become_those_of_python():
    spec = CropSpec(levels=(LevelSpec(size=np.int64(8), downsample=np.float32(2)),), mpp=np.float64(0.5))
    assert spec == CropSpec(levels=(LevelSpec(size=8, downsample=2),), mpp=0.5)
    assert [type(v) for v in (spec.levels[0].size, spec.levels[0].downsample, spec.mpp)] == [int, float, float]


def test_whole_numbers_stay_whole_in_the_text_of_a_card():
    crop = CropSpec(levels=LEVELS, mpp=1)
    card = ModelCard(model="m", genes=("A",), crop=crop, target=TargetSpec(total=10_000), hparams={"k": np.int64(3)})
    text = card.to_json()
    assert '"downsample": 2,' in text
    assert '"mpp": 1,' in text
    assert '"total": 10000,' in text
    assert '"k": 3' in text
    assert ModelCard.from_json(text).to_json() == text


def test_specs_are_copied_pickled_and_replaced():
    card = ModelCard(model="m", genes=("A", "B"), crop=CropSpec(levels=LEVELS), hparams={"depth": 2})
    for other in (copy.deepcopy(card), pickle.loads(pickle.dumps(card)), replace(card)):
        assert other == card
    with pytest.raises(ValueError, match="genes must be"):
        replace(card, genes="AB")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": {"levels": [{"size": -64}]}}, r"not a card of st_predict.* crop\.levels\.0\.size must be .*got -64"),
        ({"crop": {"levels": [{"size": 64, "zoom": 2}]}}, r"crop\.levels\.0\.zoom is not a field"),
        ({"crop": {}}, r"crop\.levels is missing"),
        ({"genes": 3}, "genes must be .* got 3"),
        ({"hparams": []}, "hparams must be a mapping"),
        ({"format_version": "1"}, "format_version must be a whole number, got '1'"),
    ],
)
def test_an_unfit_card_names_the_place(changes, message):
    card = ModelCard(model="m", genes=("A", "B"), crop=CropSpec(levels=LEVELS))
    with pytest.raises(ValueError, match=message):
        ModelCard.from_json(json.dumps({**json.loads(card.to_json()), **changes}))


@pytest.mark.parametrize("text", ["", "no json", "[1]", "null"])
def test_text_that_is_no_card(text):
    with pytest.raises(ValueError, match="This is not a card of st_predict, as it is not"):
        ModelCard.from_json(text)


def test_further_fields_of_a_card():
    values = {"organism": "human", "training": {"cohort": 3}}
    assert check_card_fields(values) == values
    with pytest.raises(ValueError, match=r"no fields \['organsim'\]; it can set \['organism', .*mean 'organism'"):
        check_card_fields({"organsim": "human"})
    with pytest.raises(ValueError, match=r"cannot set \['crop', 'genes'\], which training decides; it can set"):
        check_card_fields({"genes": ("A",), "crop": None})
    with pytest.raises(ValueError, match=r"card\['license'\] must be a string, got 3"):
        check_card_fields({"license": 3})
    with pytest.raises(TypeError, match="card must be a mapping from field to value, got list"):
        check_card_fields([("organism", "human")])
