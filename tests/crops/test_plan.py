"""Plans are numbers: each rule has a test."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_predict._errors import InvalidValueError, StPredictError
from st_predict.crops import plan_crops
from st_predict.specs import CropSpec, LevelSpec

SLACK = 0.01

coordinates = st.floats(-1e5, 1e5)
points = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=5).map(np.array)
factors = st.floats(1.05, 8)
pyramids = st.lists(factors, max_size=5).map(lambda steps: list(accumulate([1.0, *steps], lambda a, b: a * b)))
levels = st.lists(
    st.builds(LevelSpec, size=st.integers(1, 512), downsample=st.floats(1, 20)), min_size=1, max_size=4
).map(lambda levels: tuple(sorted(levels, key=lambda level: level.downsample)))


def native(size: int, *downsamples: float, mpp: float | None = None) -> CropSpec:
    return CropSpec(levels=tuple(LevelSpec(size=size, downsample=d) for d in downsamples), mpp=mpp)


@settings(max_examples=200, deadline=None)
@given(xy=points, levels=levels, downsamples=pyramids, mpp=st.floats(0.1, 2), ratio=st.floats(1, 10))
def test_rules_hold_for_any_crop_on_any_pyramid(xy, levels, downsamples, mpp, ratio):
    spec = CropSpec(levels=levels, mpp=mpp * ratio)
    plans = plan_crops(xy, spec, downsamples=downsamples, mpp=mpp)
    assert len(plans) == len(levels)
    for plan, level in zip(plans, levels, strict=True):
        wanted = level.downsample * spec.mpp / mpp  # width of a crop pixel in pixels of level 0
        stored = downsamples[plan.level]
        # the coarsest stored level that is fine enough
        assert stored <= wanted * (1 + SLACK)
        assert all(coarser > wanted * (1 + SLACK) for coarser in downsamples[plan.level + 1 :])
        # nothing is upsampled, and the field of view is right to half a pixel or within the slack
        assert plan.size == level.size
        assert plan.read_size >= plan.size
        exact = level.size * wanted / stored
        assert abs(plan.read_size - exact) <= max(0.5, SLACK * level.size) * (1 + 1e-9)
        # the centre is right to half a pixel of the level that is read
        assert plan.origins.dtype == np.int64
        centres = plan.origins + plan.read_size / 2
        np.testing.assert_array_less(np.abs(centres - xy / stored), 0.5 + 1e-6)


def test_native_pixels_need_no_mpp():
    (plan,) = plan_crops(np.array([[100.0, 50.0]]), native(16, 1), downsamples=[1, 2, 4])
    assert (plan.level, plan.read_size, plan.size) == (0, 16, 16)
    assert plan.origins.tolist() == [[92, 42]]


def test_native_pixels_do_not_depend_on_mpp():
    xy = np.array([[100.0, 50.0]])
    (known,) = plan_crops(xy, native(16, 2), downsamples=[1, 4], mpp=0.25)
    (unknown,) = plan_crops(xy, native(16, 2), downsamples=[1, 4])
    assert (known.level, known.read_size) == (unknown.level, unknown.read_size) == (0, 32)


def test_odd_crops_are_centred_on_a_pixel():
    (plan,) = plan_crops(np.array([[100.5, 50.5]]), native(3, 1), downsamples=[1])
    assert plan.origins.tolist() == [[99, 49]]


def test_levels_of_m2ost_on_pyramids_by_two_and_by_four():
    spec, xy = native(224, 1, 2, 4), np.zeros((1, 2))
    by_two = plan_crops(xy, spec, downsamples=[1, 2, 4, 8])
    assert [(p.level, p.read_size) for p in by_two] == [(0, 224), (1, 224), (2, 224)]
    by_four = plan_crops(xy, spec, downsamples=[1, 4, 16])
    assert [(p.level, p.read_size) for p in by_four] == [(0, 224), (0, 448), (1, 224)]
    single = plan_crops(xy, spec, downsamples=[1])
    assert [(p.level, p.read_size) for p in single] == [(0, 224), (0, 448), (0, 896)]
    assert [p.origins.tolist() for p in single] == [[[-112, -112]], [[-224, -224]], [[-448, -448]]]


@pytest.mark.parametrize(
    ("mpp", "level", "read_size"),
    [(0.5, 0, 224), (0.25, 1, 224), (0.4, 0, 280), (0.2, 1, 280), (0.1, 2, 280)],
)
def test_a_fixed_resolution(mpp, level, read_size):
    (plan,) = plan_crops(np.zeros((1, 2)), native(224, 1, mpp=0.5), downsamples=[1, 2, 4], mpp=mpp)
    assert (plan.level, plan.read_size, plan.size) == (level, read_size, 224)


@pytest.mark.parametrize("ratio", [0.9905, 0.996, 1.0, 1.004, 1.0099])
def test_one_percent_is_not_worth_resampling(ratio):
    (plan,) = plan_crops(np.zeros((1, 2)), native(224, 1, mpp=0.5 * ratio), downsamples=[1], mpp=0.5)
    assert plan.read_size == plan.size == 224


@pytest.mark.parametrize("stored", [1.99, 1.996, 2.004, 2.015])
def test_one_percent_does_not_change_the_level(stored):
    plans = plan_crops(np.zeros((1, 2)), native(224, 1, 2), downsamples=[1, stored, 4.0])
    assert [(p.level, p.read_size) for p in plans] == [(0, 224), (1, 224)]


def test_more_than_one_percent_is_resampled():
    (plan,) = plan_crops(np.zeros((1, 2)), native(224, 1, mpp=0.51), downsamples=[1], mpp=0.5)
    assert plan.read_size == 228
    (plan,) = plan_crops(np.zeros((1, 2)), native(224, 2), downsamples=[1, 2.03])
    assert (plan.level, plan.read_size) == (0, 448)


def test_unknown_mpp_is_an_error_where_it_is_needed():
    with pytest.raises(ValueError, match=r"0\.5 um/px.* Give it with mpp="):
        plan_crops(np.zeros((1, 2)), native(224, 1, mpp=0.5), downsamples=[1])


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan")])
def test_mpp_that_makes_no_sense(mpp):
    with pytest.raises(ValueError, match=f"mpp must be .*, got {mpp}"):
        plan_crops(np.zeros((1, 2)), native(224, 1, mpp=0.5), downsamples=[1], mpp=mpp)


@pytest.mark.parametrize("mpp", [0.506, 0.6, 10.0])
def test_an_image_that_is_too_coarse(mpp):
    with pytest.raises(ValueError, match=rf"image has {mpp:g} um/px, the model needs 0\.5 um/px or finer"):
        plan_crops(np.zeros((1, 2)), native(224, 1, mpp=0.5), downsamples=[1, 2], mpp=mpp)


def test_levels_that_are_finer_than_the_image():
    with pytest.raises(ValueError, match=r"as wide as 0\.5 pixels of level 0, finer than the image"):
        plan_crops(np.zeros((1, 2)), native(224, 0.5, 1), downsamples=[1, 2])


def test_no_spots():
    (plan,) = plan_crops(np.empty((0, 2)), native(224, 1), downsamples=[1])
    assert plan.origins.shape == (0, 2)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("xy", None),
        ("xy", "text"),
        ("xy", np.zeros((2, 3))),
        ("xy", np.zeros(2)),
        ("xy", [[np.nan, 0.0]]),
        ("xy", [[np.inf, 0.0]]),
        ("spec", None),
        ("downsamples", []),
        ("downsamples", 1),
        ("downsamples", [1, 0]),
        ("downsamples", ["a"]),
        ("mpp", "half"),
        ("mpp", -1),
    ],
)
def test_arguments_of_another_type_are_named(argument, value):
    good = {"xy": np.zeros((1, 2)), "spec": native(224, 1), "downsamples": [1], "mpp": 0.5}
    with pytest.raises(StPredictError, match=f"^{argument} must be"):
        plan_crops(**{**good, argument: value})


def test_numbers_of_numpy_are_taken():
    spec = native(224, 1, mpp=0.5)
    (plan,) = plan_crops([[0, 0]], spec, downsamples=np.array([1]), mpp=np.float32(0.5))
    assert plan.read_size == 224


def test_an_image_that_is_too_coarse_says_what_to_do():
    with pytest.raises(InvalidValueError) as caught:
        plan_crops(np.zeros((1, 2)), native(224, 1, mpp=0.5), downsamples=[1], mpp=2.0)
    assert caught.value.arguments == {"mpp", "at_mpp"}
    assert "with mpp=" in str(caught.value)
    assert "at_mpp" not in str(caught.value)
