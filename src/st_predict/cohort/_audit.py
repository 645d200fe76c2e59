"""Leak detector: a fit must not change when the test sections do."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
from safetensors.numpy import load_file
from xarray import DataArray, DataTree

from st_predict._errors import InvalidValueError
from st_predict._sections import measured_table_key
from st_predict.cohort._fit import fit, select_on
from st_predict.cohort._protocols import PanelMethod
from st_predict.cohort._sources import with_tables
from st_predict.tl import LeakageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from anndata import AnnData
    from spatialdata import SpatialData

    from st_predict.cohort._cell import Cell, Study
    from st_predict.datasets import Fold
    from st_predict.tl import TrainResult

__all__ = ["refuse_leaks", "refuse_panel_of_all", "scrambled"]


def refuse_leaks(
    sections: Mapping[str, SpatialData], cell: Cell, study: Study, *, fitted: TrainResult, out: Path
) -> None:
    """Repeat a fit with other counts and pixels in the test sections; refuse a difference.

    Whatever is fitted on test sections differs then: panel, gene proportions, limits, principal components, weights.

    Parameters
    ----------
    sections
        Sections of the fold.
    cell
        Model, fold and seed.
    study
        Settings of all cells.
    fitted
        The fit to check.
    out
        New folder for the second fit.

    Raises
    ------
    LeakageError
        If the fits differ; the message says in what.
    """
    others = {name: scrambled(s, study) if name in cell.fold.test else s for name, s in sections.items()}
    again = fit(others, cell, study, out=out)
    if differing := _differences(fitted, again):
        raise LeakageError(
            f"The fit of {cell.name} depends on its test sections: with other test sections, it differs in {differing}.",
            "fit everything on the training sections of the fold",
        )


def _differences(one: TrainResult, other: TrainResult) -> list[str]:
    """Return what differs between two fits."""
    cards = one.card, other.card
    weights = load_file(one.checkpoint), load_file(other.checkpoint)
    same = weights[0].keys() == weights[1].keys() and all(
        np.array_equal(values, weights[1][name], equal_nan=True) for name, values in weights[0].items()
    )
    found = {
        "panel": cards[0].genes != cards[1].genes,
        "target": cards[0].target != cards[1].target,
        "pixels": cards[0].pixels != cards[1].pixels,
        "hparams": cards[0].hparams != cards[1].hparams,
        "weights": not same,
    }
    return [name for name, differs in found.items() if differs]


def scrambled(sdata: SpatialData, study: Study) -> SpatialData:
    """Return a section with the counts of other genes and spots, and inverted colours."""
    key = measured_table_key(sdata, study.where)
    tables = {name: table.copy() for name, table in sdata.tables.items()}
    table = tables[key]
    layer = study.where.layer
    values = table.X if layer is None else table.layers[layer]
    mixed = values[::-1][:, ::-1].copy()
    tables[key] = _with_counts(table, mixed, layer)
    other = with_tables(sdata, tables)
    for name, image in sdata.images.items():
        other.images[name] = _inverted(image)
    return other


def _with_counts(table: AnnData, values: Any, layer: str | None) -> AnnData:
    if layer is None:
        table.X = values
    else:
        table.layers[layer] = values
    return table


def _inverted(image: Any) -> Any:
    """Return the complement of the pixels of all levels, computed when read."""
    if isinstance(image, DataArray):
        return image.copy(data=np.iinfo(image.dtype).max - image.data if image.dtype.kind == "u" else -image.data)
    levels = {name: node.to_dataset() for name, node in image.children.items()}
    for dataset in levels.values():
        for variable in dataset.data_vars:
            dataset[variable] = _inverted(dataset[variable])
    return DataTree.from_dict(levels, name=image.name)


def refuse_panel_of_all(
    panel: Sequence[str], sections: Mapping[str, SpatialData], folds: Sequence[Fold], study: Study
) -> None:
    """Refuse a panel that :func:`st_predict.pp.select_panel` selects on all sections, but not on the training sections.

    Raises
    ------
    LeakageError
        If a method selects exactly these genes on all sections, and other genes on a fold's training sections.
    """
    for method in get_args(PanelMethod):
        if _selected(list(sections.values()), study, len(panel), method) != set(panel):
            continue
        for fold in folds:
            training = [sections[name] for name in fold.train]
            if _selected(training, study, len(panel), method) != set(panel):
                raise LeakageError(
                    f"The panel of {len(panel)} genes is what the method {method!r} selects on all sections, test sections "
                    f"included; the training sections of the fold {fold.name!r} give other genes.",
                    "give the number of genes as panel, to select them in each fold",
                )


def _selected(sdatas: Sequence[SpatialData], study: Study, n_genes: int, method: str) -> set[str]:
    """Return the selected genes; none where the method cannot select as many."""
    try:
        return set(select_on(sdatas, study, n_genes=n_genes, method=method))
    except InvalidValueError:
        return set()
