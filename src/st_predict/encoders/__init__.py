"""Encoders: frozen networks that compute features of crops, or of the cells of an image."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.encoders._catalogue import (
    Encoder,
    EncoderSpec,
    get_encoder,
    list_encoders,
    load_encoder,
    restore_encoder,
)
from st_predict.encoders._cells import (
    CELL_NAMES,
    CellEncoder,
    CellSpec,
    get_cell_encoder,
    load_cell_encoder,
    weights_digest,
)
from st_predict.encoders._hipt import save_hipt_weights
from st_predict.encoders._hipt_spot import load_hipt_encoder
from st_predict.encoders._histology import HISTOLOGY_RESNET18, load_histology_resnet18
from st_predict.encoders._reading import Features, count_features, read_as
from st_predict.encoders._rgb import RGB_NAMES

__all__ = [
    "CELL_NAMES",
    "HISTOLOGY_RESNET18",
    "RGB_NAMES",
    "CellEncoder",
    "CellSpec",
    "Encoder",
    "EncoderSpec",
    "Features",
    "count_features",
    "get_cell_encoder",
    "get_encoder",
    "list_encoders",
    "load_cell_encoder",
    "load_encoder",
    "read_as",
    "restore_encoder",
    "load_hipt_encoder",
    "load_histology_resnet18",
    "save_hipt_weights",
    "weights_digest",
]

__dir__ = show_only(__all__)
