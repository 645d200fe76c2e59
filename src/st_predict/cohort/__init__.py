"""Many slides: predict, embed or cross-validate on the cores of a machine or on a cluster."""

from __future__ import annotations

from st_predict._public import show_only
from st_predict.cohort._benchmark import check_benchmark, run_benchmark
from st_predict.cohort._cell import BenchmarkModel
from st_predict.cohort._cross_validate import cross_validate
from st_predict.cohort._protocols import EvaluationProtocol, get_protocol, list_protocols
from st_predict.cohort._summary import summarize
from st_predict.cohort._verbs import check_slides, embed_many, predict_many

__all__ = [
    "BenchmarkModel",
    "EvaluationProtocol",
    "check_benchmark",
    "check_slides",
    "cross_validate",
    "embed_many",
    "get_protocol",
    "list_protocols",
    "predict_many",
    "run_benchmark",
    "summarize",
]

__dir__ = show_only(__all__)
