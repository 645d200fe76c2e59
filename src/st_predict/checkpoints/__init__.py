"""Checkpoints: save and load networks with their cards, find released weights, import published ones."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.checkpoints._describe import GeneScore, card_facts, card_gaps, rank_genes, score_sentence
from st_predict.checkpoints._file import build, load, load_encoder, notice_of, save
from st_predict.checkpoints._published import import_published
from st_predict.checkpoints._released import Trained, Weights, find_weights, list_weights, name_of
from st_predict.checkpoints._reliability import Evaluated, add_reliability

__all__ = [
    "Evaluated",
    "GeneScore",
    "Trained",
    "Weights",
    "add_reliability",
    "build",
    "card_facts",
    "card_gaps",
    "find_weights",
    "import_published",
    "list_weights",
    "load",
    "load_encoder",
    "name_of",
    "notice_of",
    "rank_genes",
    "save",
    "score_sentence",
]

__dir__ = show_only(__all__)
