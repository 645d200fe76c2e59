"""Work of a cell: train a model on a fold, predict its test sections, score them."""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from st_predict._errors import InvalidValueError
from st_predict._files import whole
from st_predict._version import __version__
from st_predict.cohort._audit import refuse_leaks
from st_predict.cohort._cell import COLUMNS, COUNTS_ONLY, NOTE
from st_predict.cohort._fit import fit
from st_predict.cohort._folds import leaks_of
from st_predict.tl import evaluate, predict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spatialdata import SpatialData

    from st_predict.cohort._cell import Cell, Study
    from st_predict.cohort._sources import SectionSource
    from st_predict.tl import Evaluation, TrainResult

__all__ = ["run_cell"]

FITTED = ("patient_mean", "position")
"""Predictors that :func:`st_predict.tl.evaluate` fits to the training sections."""

KEY = "pred"
"""Key of the prediction in the copies of the test sections."""


def run_cell(cell: Cell, study: Study, sources: Mapping[str, SectionSource]) -> None:
    """Train, predict and score a cell; write its scores to a file that appears whole or not at all."""
    start = time.monotonic()
    sections = {name: sources[name].open() for name in cell.patients}
    with tempfile.TemporaryDirectory(prefix="st_predict-") as folder:
        result = fit(sections, cell, study, out=Path(folder) / "fit")
        if study.audit:
            refuse_leaks(sections, cell, study, fitted=result, out=Path(folder) / "audit")
        frame = _score(sections, result, cell, study)
    frame.attrs[NOTE] = {"key": cell.key, "version": __version__, "seconds": round(time.monotonic() - start, 3)}
    with whole(cell.path) as fresh:
        frame.to_parquet(fresh)
    del sections, result
    gc.collect()  # sections refer to themselves, so their pixels would stay in memory


def _score(sections: Mapping[str, SpatialData], result: TrainResult, cell: Cell, study: Study) -> pd.DataFrame:
    """Return one row per test section and gene."""
    where = study.where
    test = {name: sections[name] for name in cell.fold.test}
    predict(
        test,
        result,
        image_key=where.image_key,
        table_key=where.table_key,
        key_added=KEY,
        device=study.device,
        progress=False,
    )
    frames = [_rows(name, _evaluate(test[name], sections, cell, study), cell, study) for name in test]
    return pd.concat(frames, ignore_index=True)


def _evaluate(sdata: SpatialData, sections: Mapping[str, SpatialData], cell: Cell, study: Study) -> Evaluation:
    """Score one section; predictors without an image are fitted to the training sections."""
    where = study.where
    training = {name: sections[name] for name in cell.fold.train}
    return evaluate(
        sdata,
        key=KEY,
        train=training if cell.setting.model in FITTED else None,
        baselines=("patient_mean", "position"),  # not ridge, which reads images
        group_key=where.group_key,
        image_key=where.image_key,
        table_key=where.table_key,
        layer=where.layer,
        missing=where.genes.missing,
        min_counts=study.min_counts,
        progress=False,
    )


def _rows(name: str, scores: Evaluation, cell: Cell, study: Study) -> pd.DataFrame:
    """Return the rows of a section; its name is the user's, whatever its table says."""
    own = {"global_mean": KEY}  # the prediction of the model "mean", which is trained for all of them
    predictor = own.get(cell.setting.model, cell.setting.model) if cell.setting.model in COUNTS_ONLY else KEY
    genes = scores.genes[scores.genes["predictor"] == predictor].copy()
    paper = scores.paper[scores.paper["predictor"] == predictor].set_index("section")
    if genes.empty:
        raise InvalidValueError(
            f"There is no {predictor!r} of the section {name!r}: it needs more spots, or training sections of its patient."
        )
    for column in ("spot_pearson", "spot_rmse", "n_spots"):
        genes[column] = genes["section"].map(paper[column])
    genes = genes.assign(protocol=study.protocol.name, model=cell.label, fold=cell.fold.name, seed=cell.seed)
    leaks = ", ".join(leaks_of(cell.fold, cell.patients, study.protocol, chosen=isinstance(study.panel, int)))
    genes = genes.assign(section=name, patient="+".join(sorted(cell.patients[name])), leaks=leaks)
    return genes[list(COLUMNS)].reset_index(drop=True)
