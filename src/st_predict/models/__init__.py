"""Networks, one public module each, and how to find, save and load them."""

from __future__ import annotations

from st_predict.models._base import ModelSpec, SpotModel
from st_predict.models._checkpoint import ModelCard, build_model, load_checkpoint, save_checkpoint
from st_predict.models._inference import Inference
from st_predict.models._registry import get_spec, list_models
from st_predict.models._weights import Weights, find_weights, list_weights

__all__ = [
    "Inference",
    "ModelCard",
    "ModelSpec",
    "SpotModel",
    "Weights",
    "build_model",
    "find_weights",
    "get_spec",
    "list_models",
    "list_weights",
    "load_checkpoint",
    "save_checkpoint",
]
