"""Networks, one public module each, and how to find them."""

from __future__ import annotations

from st_predict.models._base import ModelSpec, Preset, Reads, SpotModel
from st_predict.models._registry import get_spec, list_models
from st_predict.models._table import table

__all__ = ["ModelSpec", "Preset", "Reads", "SpotModel", "get_spec", "list_models", "table"]
