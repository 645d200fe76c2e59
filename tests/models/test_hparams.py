"""Hyper-parameters of every model: names, types and ranges."""

from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from st_predict._errors import InvalidTypeError, StPredictError
from st_predict.models import ModelSpec, SpotModel, get_spec, list_models
from st_predict.models._hparams import kinds_of
from st_predict.specs import CropSpec, LevelSpec

if TYPE_CHECKING:
    from collections.abc import Callable

SPECS = [get_spec(name) for name in list_models()]
NAMED = [(spec.name, name) for spec in SPECS for name in sorted(kinds_of(spec.build, spec.config))]


def of(build: Callable[..., SpotModel], **options: Any) -> ModelSpec:
    """A model of another package."""
    crop = CropSpec(levels=(LevelSpec(size=8),))
    return ModelSpec(name="theirs", summary="", citation="", license="", build=build, crop=crop, **options)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_hyper_parameter_of_a_model_is_known(spec):
    kinds = kinds_of(spec.build, spec.config)
    for hparams in (spec.hparams, spec.tiny, spec.original.hparams, dict.fromkeys(spec.at_prediction)):
        assert hparams.keys() <= kinds.keys()
    assert Any not in kinds.values()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_unknown_hyper_parameters_are_named_with_the_choices(spec):
    makers = [lambda hparams: spec.build_with(3, hparams)]
    makers += [spec.crop_for] * (spec.crop_of is not None or spec.reads_of is not None)
    makers += [spec.complete] * (spec.complete_of is not None)
    for make in makers:
        with pytest.raises(ValueError, match=rf"'{spec.name}' has no hyper-parameters \['widht'\]; there are \["):
            make({**spec.tiny, "widht": 3})


def test_the_closest_match_is_named():
    with pytest.raises(
        ValueError, match=r"no hyper-parameters \['depht'\]; there are .*'depth'.*Did you mean 'depth'\?"
    ):
        get_spec("m2ost").build_with(3, {"depht": 3})


@pytest.mark.parametrize("hparams", ["depth", 3, [("depth", 3)], None])
def test_hyper_parameters_are_a_mapping(hparams):
    with pytest.raises(InvalidTypeError, match="Hyper-parameters must be a mapping from name to value, got"):
        get_spec("m2ost").build_with(3, hparams)


@pytest.mark.parametrize(("model", "name"), NAMED, ids=lambda value: value)
def test_unfit_values_name_the_hyper_parameter(model, name):
    spec = get_spec(model)
    for value in (nan, inf, object()):
        with torch.device("meta"), pytest.raises(StPredictError, match=rf"\b{name}\b"):
            spec.build_with(3, {**spec.tiny, name: value})


@pytest.mark.parametrize(
    ("model", "hparams", "message"),
    [
        (
            "m2ost",
            {"dim": "big"},
            r"^A hyper-parameter of 'm2ost' is invalid\. dim must be a whole number, got 'big'\.$",
        ),
        ("m2ost", {"depth": True}, "depth must be a whole number, got True"),
        ("bleep", {"k": 0}, "k must be at least 1, got 0"),
        ("ridge", {"alpha": "best"}, "alpha must be .* 'cv' or 'hest'.*got 'best'"),
        ("ridge", {"n_components": 2.0}, "n_components must be a whole number, got 2.0"),
        ("istar", {"radius_um": "55"}, "radius_um must be .*number.*got '55'"),
        ("vit", {"size": "224"}, "size must be a whole number, got '224'"),
        ("vit", {"arch_args": [1]}, r"arch_args must be a mapping, got \[1\]"),
        ("deepspace", {"frozen": "maybe"}, "frozen must be True or False, got 'maybe'"),
        ("stpath", {"heads": 3, "dim": 32}, "dim must be a multiple of 3, the heads, got 32"),
    ],
)
def test_types_and_ranges(model, hparams, message):
    spec = get_spec(model)
    with pytest.raises(ValueError, match=message):
        spec.build_with(3, {**spec.tiny, **hparams})


def test_scalars_of_numpy():
    spec = get_spec("m2ost")
    network = spec.build_with(np.int64(3), {**spec.tiny, "depth": np.int64(2), "drop": np.float32(0.5)})
    assert (network.config.depth, network.config.drop, network.head.out_features) == (2, 0.5, 3)


@pytest.mark.parametrize("n_genes", [0, -1, "3", None, 2.5, True])
def test_number_of_genes(n_genes):
    with pytest.raises(ValueError, match=f"n_genes must be .*got {n_genes!r}"):
        get_spec("m2ost").build_with(n_genes, {})


def test_a_network_that_is_too_large_is_a_lack_of_memory():
    with torch.device("meta"), pytest.raises(MemoryError, match=r"memory: a 'm2ort' network .*'dim': 1000000000000"):
        get_spec("m2ort").build_with(3, {"dim": 10**12, "heads": 1, "depth": 1})


def test_models_of_other_packages_may_leave_out_types():
    def build(n_genes, *, width=3, **others):
        raise TypeError("no argument 'colour'")

    assert kinds_of(build) is None
    with pytest.raises(ValueError, match=r"'theirs' cannot be built with the hyper-parameters .*no argument 'colour'"):
        of(build).build_with(3, {"width": "x", "colour": 1})


def test_models_of_other_packages_may_have_functions_and_types_of_their_own():
    class Own:
        pass

    def build(n_genes: int, *, width: int = 3, own: Own | None = None, later: Later | None = None):  # noqa: F821
        return SpotModel()

    assert set(kinds_of(build)) == {"width", "own", "later"}
    assert isinstance(of(build).build_with(3, {"width": 4, "own": 1}), SpotModel)
    with pytest.raises(ValueError, match=r"'theirs' has no hyper-parameters \['colour'\]"):
        of(build).build_with(3, {"colour": 1})


def test_a_description_of_a_model_is_checked():
    with pytest.raises(ValueError, match=r"family must be 'spot', 'section'.*got 'big'"):
        of(SpotModel, family="big")
    with pytest.raises(ValueError, match="build must be callable, got 3"):
        of(3)
    with pytest.raises(ValueError, match=r"no fields \['colour'\]"):
        of(SpotModel, colour=1)


@pytest.mark.parametrize("name", [None, 3, ["m2ost"], b"m2ost"])
def test_a_model_is_given_by_its_name(name):
    with pytest.raises(TypeError, match=r"A model is given by its name, one of .*got"):
        get_spec(name)


def test_the_closest_model_is_named():
    with pytest.raises(KeyError, match=r"No model 'm2osd'; there are .*Did you mean 'm2ost'"):
        get_spec("m2osd")
