"""Specs refuse what makes no sense and say what is wrong."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from math import inf, nan

import pytest

from st_predict.specs import CropSpec, LevelSpec, PixelSpec, TargetSpec

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


@pytest.mark.parametrize("size", [0, -1, nan])
def test_size_of_a_level(size):
    with pytest.raises(ValueError, match="positive"):
        LevelSpec(size=size)


@pytest.mark.parametrize("downsample", [0, -2.0, nan, inf])
def test_downsample_of_a_level(downsample):
    with pytest.raises(ValueError, match=f"positive.*{downsample}"):
        LevelSpec(size=8, downsample=downsample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, "at least one level"),
        ({"levels": LEVELS[::-1]}, r"finest level comes first.*\[2, 1.0\]"),
        ({"levels": LEVELS, "mpp": 0}, "mpp must be positive.*0"),
        ({"levels": LEVELS, "mpp": -0.5}, "mpp must be positive.*-0.5"),
        ({"levels": LEVELS, "mpp": nan}, "mpp must be positive.*nan"),
        ({"levels": LEVELS, "mpp": inf}, "mpp must be positive.*inf"),
        ({"levels": LEVELS, "pad_value": -1}, "0 to 255, got -1"),
        ({"levels": LEVELS, "pad_value": 256}, "0 to 255, got 256"),
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
    with pytest.raises(ValueError, match="std must be positive"):
        PixelSpec(std=std)


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"std": (1.0, 1.0, 1.0, 1.0)}])
def test_pixels_have_three_colours(options):
    with pytest.raises(ValueError, match="3 colours"):
        PixelSpec(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "log2"}, "log1p_total.*log_proportion.*counts.*'log2'"),
        ({"over": "some"}, "panel.*all.*'some'"),
        ({"total": 0}, "positive.*0"),
        ({"total": nan}, "positive.*nan"),
        ({"scale": "robust"}, "none.*minmax.*'robust'"),
        ({"limits": ((0.0,), (1.0,))}, "limits are .* for scale='minmax'"),
        ({"scale": "minmax", "limits": ((0.0, 1.0), (1.0,))}, "least and largest value of each gene"),
        ({"scale": "minmax", "limits": ((2.0,), (1.0,))}, "least and largest value of each gene"),
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
