"""Checkpoints: save, load and build networks from their cards, and the released weights."""

from __future__ import annotations

from st_predict.checkpoints._file import build, load, save
from st_predict.checkpoints._released import Weights, find_weights, list_weights

__all__ = ["Weights", "build", "find_weights", "list_weights", "load", "save"]
