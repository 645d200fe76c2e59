"""Fit of a cell: select the panel and train on the training sections of a fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_predict._sections import placed_table
from st_predict.pp import select_panel
from st_predict.tl import train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from spatialdata import SpatialData

    from st_predict.cohort._cell import Cell, Study
    from st_predict.datasets import Fold
    from st_predict.tl import TrainResult

__all__ = ["choose_panel", "fit", "select_on", "train_fold"]


def fit(sections: Mapping[str, SpatialData], cell: Cell, study: Study, *, out: Path) -> TrainResult:
    """Choose the panel and train, on the sections that the protocol allows for each."""
    return train_fold(sections, cell, study, panel=choose_panel(sections, cell.fold, study), out=out)


def choose_panel(sections: Mapping[str, SpatialData], fold: Fold, study: Study) -> Sequence[str]:
    """Return the given panel, or genes selected on the training sections; on all of the fold if the protocol leaks them."""
    if not isinstance(study.panel, int):
        return study.panel
    everything = (*fold.train, *fold.validation, *fold.test)
    names = dict.fromkeys(everything if "panel" in study.protocol.leaks else fold.train)
    return select_on([sections[name] for name in names], study, n_genes=study.panel, method=study.protocol.panel)


def select_on(sdatas: Sequence[SpatialData], study: Study, *, n_genes: int, method: Any) -> list[str]:
    """Select genes on these sections."""
    where = study.where
    return select_panel(
        [placed_table(sdata, where) for sdata in sdatas],
        n_genes=n_genes,
        method=method,
        layer=where.layer,
        id_column=where.genes.id_column,
        duplicates=where.genes.duplicates,
        tissue_only=where.tissue_only,
    )


def train_fold(
    sections: Mapping[str, SpatialData], cell: Cell, study: Study, *, panel: Sequence[str], out: Path
) -> TrainResult:
    """Train the network of a cell on the training sections of its fold; validation sections choose the epoch."""
    fold, setting, where = cell.fold, cell.setting, study.where
    return train(
        {name: sections[name] for name in fold.train},
        setting.trained,
        panel=panel,
        out=out,
        validation={name: sections[name] for name in fold.validation} or None,
        group_key=where.group_key,
        allow_shared=fold.shared_patients,
        image_key=where.image_key,
        table_key=where.table_key,
        layer=where.layer,
        missing=where.genes.missing,
        preset=setting.preset or study.protocol.preset,
        target=None if setting.preset else study.protocol.target,
        mpp=setting.mpp,
        stain=setting.stain,
        min_counts=study.min_counts,
        hparams=setting.hparams,
        config={**study.protocol.config, **setting.config, "seed": cell.seed, "device": study.device},
        progress=False,
    )
