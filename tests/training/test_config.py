"""How to train, as checked data."""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from st_predict._training._config import configure
from st_predict.models import Preset
from st_predict.tl import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be 'adam', 'adamw' or 'sgd', got 'lion'"),
        ({"momentum": 0.9}, "momentum is only for the optimizer 'sgd', got 0.9 and the optimizer 'adam'"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "momentum must be below 1, got 1.0"),
        ({"schedule": "step"}, "schedule must be 'constant' or 'cosine', got 'step'"),
        ({"monitor": "auc"}, "monitor must be 'pearson' or 'loss', got 'auc'"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"epochs": "10"}, "epochs must be a whole number, got '10'"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"lr": nan}, "lr must be a finite number, got nan"),
        ({"weight_decay": inf}, "weight_decay must be a finite number, got inf"),
        ({"level_drop": 1.0}, "level_drop must be below 1, got 1.0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"clip": -1}, "clip must be above 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**63}, "seed must be below 4611686018427387904"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"device": None}, "device must be the name of a device, got None"),
        ({"average": 1.0}, "average must be below 1, got 1.0"),
        ({"augment": "x"}, "augment must be True or False, got 'x'"),
    ],
)
def test_unfit_configuration(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_scalars_of_numpy() -> None:
    config = TrainConfig(epochs=np.int64(3), lr=np.float32(0.5), augment=np.bool_(False))
    assert config == TrainConfig(epochs=3, lr=0.5, augment=False)
    assert {type(value).__module__ for value in asdict(config).values()} == {"builtins"}


def test_a_configuration_is_pickled_and_replaced() -> None:
    config = TrainConfig(epochs=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert replace(config, epochs=4).epochs == 4
    with pytest.raises(ValueError, match="epochs must be"):
        replace(config, epochs=0)


@pytest.mark.parametrize("config", ["fast", 3, [("epochs", 3)]])
def test_a_configuration_of_another_kind(config: Any) -> None:
    with pytest.raises(TypeError, match=r"config must be a TrainConfig, or a mapping .* got"):
        configure(Preset(), config)


def test_a_value_that_is_unfit_in_a_mapping() -> None:
    with pytest.raises(ValueError, match=r"^config is invalid\. epochs must be a whole number, got '3'\.$"):
        configure(Preset(), {"epochs": "3"})
