"""Networks, one public module per model, and functions to find them."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.models._base import ModelSpec, Preset, Reads, SpotModel
from st_predict.models._citations import cite, link_to
from st_predict.models._registry import get_spec, list_models
from st_predict.models._table import table

__all__ = ["ModelSpec", "Preset", "Reads", "SpotModel", "cite", "get_spec", "link_to", "list_models", "table"]

__dir__ = show_only(__all__)
