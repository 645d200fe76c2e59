"""Networks, one public module each, and how to find, save and load them."""

from __future__ import annotations

from st_predict.models._base import ModelSpec, Preset, SpotModel
from st_predict.models._checkpoint import ModelCard, build_model, load_checkpoint, save_checkpoint
from st_predict.models._encoders import Encoder, EncoderSpec, get_encoder, list_encoders, load_encoder
from st_predict.models._hipt import save_hipt_weights
from st_predict.models._inference import Inference
from st_predict.models._registry import get_spec, list_models
from st_predict.models._rgb import RGB_NAMES
from st_predict.models._table import table
from st_predict.models._weights import Weights, find_weights, list_weights

__all__ = [
    "RGB_NAMES",
    "Encoder",
    "EncoderSpec",
    "Inference",
    "ModelCard",
    "ModelSpec",
    "Preset",
    "SpotModel",
    "Weights",
    "build_model",
    "find_weights",
    "get_encoder",
    "get_spec",
    "list_encoders",
    "list_models",
    "list_weights",
    "load_checkpoint",
    "load_encoder",
    "save_checkpoint",
    "save_hipt_weights",
    "table",
]
