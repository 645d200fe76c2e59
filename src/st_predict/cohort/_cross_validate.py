"""Cross-validation: models, folds and seeds, one file per finished cell."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError, StPredictError
from st_predict._keys import Keys
from st_predict._locks import locked
from st_predict._progress import shows_progress, track
from st_predict._validated import Count, Device, File, Flag, Name, Natural, Texts, check
from st_predict._where import GeneMatching, Missing, Where
from st_predict.cohort._audit import refuse_panel_of_all
from st_predict.cohort._cell import BenchmarkModel, Cell, Study, read_cell
from st_predict.cohort._cluster import connected, need_distributed
from st_predict.cohort._folds import check_folds
from st_predict.cohort._protocols import PanelMethod, get_protocol
from st_predict.cohort._run import writable
from st_predict.cohort._run_cell import run_cell
from st_predict.cohort._sources import sources_of
from st_predict.tl import LeakageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from os import PathLike
    from pathlib import Path

    from distributed import Client
    from spatialdata import SpatialData

    from st_predict.cohort._protocols import EvaluationProtocol, ProtocolName
    from st_predict.cohort._sources import SectionSource
    from st_predict.datasets import Fold

__all__ = ["cross_validate", "models_of", "open_patients"]

logger = logging.getLogger(__name__)

PREPARED = "sections"
"""Folder for stores of sections that are slow to open, in the output folder."""

_MESSAGE = 300
"""Characters of an error in a list of errors."""


@shows_progress
def cross_validate(  # noqa: PLR0913  # every argument is a keyword
    sdatas: Mapping[str, SpatialData | PathLike[str] | str],
    models: Sequence[str] | Mapping[str, BenchmarkModel | Mapping[str, object] | str],
    *,
    out: PathLike[str] | str,
    protocol: ProtocolName = "lopo",
    folds: Iterable[Fold] | None = None,
    seeds: Sequence[int] | None = None,
    panel: Sequence[str] | int | None = None,
    panel_method: PanelMethod | None = None,
    group_key: str = Keys.PATIENT,
    image_key: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    missing: Missing = "error",
    min_counts: int | None = None,
    audit: bool = False,
    skip_failed: bool = False,
    client: Client | str | None = None,
    n_workers: int | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train and score models on the folds of a protocol, with several seeds.

    Each cell, a model on a fold with a seed, is trained by :func:`st_predict.tl.train`, predicted and scored by
    :func:`st_predict.tl.evaluate`. Its scores are written to one file, which appears whole or not at all. Run again,
    only cells without a file are done: a file counts if model, fold, seed, sections, settings and version are the same.

    The panel, gene proportions, limits, principal components and all other fits use the training sections of the fold
    only, unless the protocol says otherwise.

    Parameters
    ----------
    sdatas
        Measured sections by name: objects, or paths of stores, which workers open themselves.
    models
        Names of models, or a mapping from names in the table to models. A model is a :class:`BenchmarkModel`, its
        fields as a mapping, or the name of a model.
    out
        Folder of the results, created if it does not exist; may hold earlier results.
    protocol
        Name of the evaluation protocol (:func:`get_protocol`): its folds, panel, preset and seeds.
    folds
        Folds that replace the protocol's. A patient or section on several sides is refused, unless the patient is in
        ``shared_patients`` of the fold.
    seeds
        Random seeds of training that replace the protocol's. Models in closed form only use the first.
    panel
        Number of genes to select per fold, or genes. By default, the protocol's number. A list that
        :func:`st_predict.pp.select_panel` selects on all sections is refused; other lists are taken as known beforehand.
    panel_method
        Method of :func:`st_predict.pp.select_panel`; by default the protocol's.
    group_key
        Column of ``.obs`` that names the patient.
    image_key
        Key of the RGB image; optional where there is only one.
    table_key
        Key of the table with the counts. By default the only table, or ``"table"``.
    layer
        Layer with the raw counts; by default ``.X``.
    missing
        Handling of panel genes that a table lacks: ``"error"`` refuses; ``"drop"`` removes them from the network's
        panel, or does not score them in a test section.
    min_counts
        Minimum panel counts of a spot in training and scoring; by default as in the preset and in
        :func:`st_predict.tl.evaluate`.
    audit
        Whether to repeat each fit with other counts and pixels in the test sections, and refuse one that changes. Not
        for protocols that leak panel or epoch. Doubles the time.
    skip_failed
        Whether to return the scores of finished cells if others failed, instead of an error.
    client
        Client of dask, or address of its scheduler; workers write to ``out``. By default cells run one after another in
        this process.
    n_workers
        Number of workers of a local cluster, instead of ``client``. A program that starts one needs
        ``if __name__ == "__main__":``.
    device
        Device of each worker: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    progress
        Whether to show a bar of cells. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    DataFrame
        One row per model, fold, seed, test section and gene:

        ``protocol``, ``model``, ``fold``, ``seed``, ``section``, ``patient``, ``gene``
            Names.
        ``held_out``
            Relation of the section to the training: another ``"patient"``, or another ``"section"`` of a training
            patient.
        ``leaks``
            What reached the training from the test section: ``"patient"``, ``"panel"``, ``"epoch"``; empty if nothing.
        ``partial``, ``partial_low``, ``partial_high``, ``residual``, ``pearson``, ``spearman``, ``morans_i``, ``ssim``
            Scores of the gene, as in ``genes`` of :class:`st_predict.tl.Evaluation`.
        ``observed_morans_i``, ``ceiling_partial``, ``ceiling_residual``
            Moran's I of the measured values, and noise ceilings.
        ``spot_pearson``, ``spot_rmse``, ``n_spots``
            Scores of the M2OST paper and number of spots; the same in all rows of a section.

    Raises
    ------
    LeakageError
        If a fold shares a section, or a patient that it does not declare; if the panel was selected on all sections; or if
        ``audit`` finds a leak.
    FileExistsError
        If another run works in ``out``.
    KeyError
        If a model, section, table or column does not exist.
    ValueError
        If an argument is invalid, a file in ``out`` is not the result of its cell, or cells failed; finished cells are kept.
    TypeError
        If ``sdatas``, ``models`` or ``folds`` have another type.
    ModuleNotFoundError
        If there is a client or ``n_workers``, and dask's ``distributed`` is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> sections = stp.datasets.simulate(3, 1, n_genes=8, shape=(720, 880), mpp=1.2).sections
    >>> with tempfile.TemporaryDirectory() as out:
    ...     table = stp.cohort.cross_validate(sections, ["ridge", "neighbours"], out=out, panel=4, panel_method="mean")
    >>> table.groupby(["model", "fold"])["gene"].count().unstack().to_dict("index")
    {'neighbours': {'P1': 4, 'P2': 4, 'P3': 4}, 'ridge': {'P1': 4, 'P2': 4, 'P3': 4}}
    >>> table["leaks"].unique().tolist()
    ['']
    """
    rules = _rules(protocol, panel_method)
    seeds = rules.seeds if seeds is None else _seeds(seeds)
    where = Where(image_key=image_key, table_key=table_key, layer=layer, group_key=group_key)
    study = Study(
        protocol=rules,
        panel=_panel(panel, rules.n_genes),
        where=_matching(where, missing),
        min_counts=check("min_counts", min_counts, Natural | None),
        device=check("device", device, Device),
        audit=check("audit", audit, Flag),
    )
    chosen = models_of(models)
    _check_run(study, client=client, n_workers=check("n_workers", n_workers, Count | None))
    sources = sources_of(sdatas)
    patients = open_patients(sources, study.where)
    sides = check_folds(rules.folds(patients) if folds is None else folds, patients, rules)
    _check_panel(study, sources, sides)
    folder = writable(check("out", out, File))
    with locked(folder / ".lock", folder=folder, what="cross-validation"):
        cells = _cells(chosen, sides, seeds, study=study, sources=sources, patients=patients, out=folder)
        run = partial(_run, study=study, sources=sources, client=client, n_workers=n_workers, out=folder)
        _finish(cells, run, skip_failed=check("skip_failed", skip_failed, Flag))
        found = [frame for cell in cells if (frame := read_cell(cell)) is not None]
    return _joined(found)


def models_of(models: Sequence[str] | Mapping[str, BenchmarkModel | Mapping[str, object] | str]) -> dict[str, Any]:
    """Return the models by their names in the table.

    Raises
    ------
    KeyError, ValueError, TypeError
        If a model does not exist, or a field is invalid.
    """
    if not isinstance(models, Mapping):
        names = check("models", models, Texts)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidValueError(f"models names {twice} twice.", "give a mapping from names to settings")
        models = {name: name for name in names}
    if not models:
        raise InvalidValueError("models is empty; name at least one.")
    return {check("models", label, Name): _model(label, given) for label, given in models.items()}


def _model(label: str, given: Any) -> BenchmarkModel:
    if isinstance(given, BenchmarkModel):
        return given
    if not isinstance(given, str | Mapping):
        raise InvalidTypeError(f"models[{label!r}] must be a name, a mapping or a BenchmarkModel, got {given!r}.")
    if isinstance(given, str):
        return BenchmarkModel(model=given)
    return BenchmarkModel(**{"model": label, **{str(name): value for name, value in given.items()}})


def _rules(protocol: ProtocolName, panel_method: PanelMethod | None) -> EvaluationProtocol:
    rules = get_protocol(protocol)
    method = check("panel_method", panel_method, PanelMethod | None)
    return rules if method is None else replace(rules, panel=method)


def _seeds(seeds: Any) -> tuple[int, ...]:
    """Return the seeds; repeated ones would count the same training twice."""
    found: tuple[int, ...] = check("seeds", seeds, tuple[Natural, ...])
    if not found or len(found) != len(set(found)):
        raise InvalidValueError(
            f"seeds must be different numbers, at least one, got {found}.",
            Advice("leave out {} for the seeds of the protocol", "seeds"),
        )
    return found


def _panel(panel: Any, default: int) -> int | tuple[str, ...]:
    if panel is None:
        return default
    found = check("panel", panel, Count | Texts)
    if found == []:
        raise InvalidValueError("panel is empty.", Advice("name genes, or their number, with {}", "panel"))
    return found if isinstance(found, int) else tuple(found)


def _matching(where: Where, missing: Missing) -> Where:
    return replace(where, genes=GeneMatching(missing=missing))


def _check_run(study: Study, *, client: Any, n_workers: int | None) -> None:
    """Refuse settings that exclude each other."""
    if client is not None and n_workers is not None:
        raise InvalidValueError("client and n_workers exclude each other.", "give one of them")
    leaking = sorted({"panel", "epoch"} & set(study.protocol.leaks))
    if study.audit and leaking:
        raise InvalidValueError(
            f"The protocol {study.protocol.name!r} leaks {' and '.join(leaking)} from the test sections, so an audit always "
            "fails.",
            Advice("leave out {}", "audit"),
            Advice("choose another {}", "protocol"),
        )


def open_patients(sources: Mapping[str, SectionSource], where: Where) -> dict[str, frozenset[str]]:
    """Open each section once, and return its patients."""
    found = {}
    for name, source in track(sources.items(), "Opening sections", len(sources), unit="section"):
        try:
            found[name] = source.patients(where)
        except StPredictError as error:
            raise error.about(f"Section {name!r}:") from error
    return found


def _check_panel(study: Study, sources: Mapping[str, SectionSource], folds: Sequence[Fold]) -> None:
    if not isinstance(study.panel, int) and "panel" not in study.protocol.leaks:
        refuse_panel_of_all(study.panel, {name: source.open() for name, source in sources.items()}, folds, study)


def _cells(
    models: Mapping[str, BenchmarkModel],
    folds: Sequence[Fold],
    seeds: Sequence[int],
    *,
    study: Study,
    sources: Mapping[str, SectionSource],
    patients: Mapping[str, frozenset[str]],
    out: Path,
) -> list[Cell]:
    """Return all cells: models, then folds, then seeds."""
    digests = {name: source.digest() for name, source in sources.items()}
    make = partial(Cell.of, study=study, patients=patients, digests=digests, folder=out)
    return [
        make(label, setting, fold, seed=seed)
        for label, setting in models.items()
        for fold in folds
        for seed in (seeds if setting.repeats else seeds[:1])
    ]


def _finish(
    cells: Sequence[Cell],
    run: Callable[[Sequence[Cell]], Iterator[tuple[Cell, BaseException | None]]],
    *,
    skip_failed: bool,
) -> None:
    """Run all cells that have no file yet; leaks end the run, other errors are told at the end."""
    todo = [cell for cell in cells if read_cell(cell) is None]
    logger.info("%d of %d cells to do.", len(todo), len(cells))
    failed: dict[str, str] = {}
    for cell, error in track(run(todo), "Cells", len(todo), unit="cell"):
        if isinstance(error, LeakageError | MemoryError) or (error is not None and not isinstance(error, Exception)):
            raise error
        if error is not None:
            failed[cell.name] = " ".join(str(error).split())[:_MESSAGE] or type(error).__name__
            logger.warning("%s failed: %s", cell.name, failed[cell.name])
    if failed and (not skip_failed or len(failed) == len(cells)):
        reasons = dict.fromkeys(failed.values())
        said = " ".join(f"{' and '.join(_some(n for n in failed if failed[n] == why))}: {why}" for why in reasons)
        raise InvalidValueError(
            f"{len(failed)} of {len(cells)} cells failed, finished cells are kept: {said}",
            Advice("take the others with {}", "skip_failed", value=True),
        )


def _some(names: Iterable[str]) -> list[str]:
    found = list(names)
    return found if len(found) <= 2 else [found[0], f"{len(found) - 1} more"]


def _run(
    cells: Sequence[Cell],
    *,
    study: Study,
    sources: Mapping[str, SectionSource],
    client: Client | str | None,
    n_workers: int | None,
    out: Path,
) -> Iterator[tuple[Cell, BaseException | None]]:
    """Yield each cell as it ends, with its error."""
    if not cells:
        return
    needed = dict.fromkeys(name for cell in cells for name in cell.patients)
    each = track(needed, "Preparing sections", len(needed), unit="section")
    sources = {name: sources[name].prepared(out / PREPARED) for name in each}
    if client is None and n_workers is None:
        for cell in cells:
            yield cell, _error_of(cell, study, sources)
        return
    need_distributed()
    with connected(client, n_workers=n_workers, n_slides=len(cells), device=study.device) as connection:
        yield from _on_workers(connection, cells, study, sources)


def _error_of(cell: Cell, study: Study, sources: Mapping[str, SectionSource]) -> BaseException | None:
    try:
        run_cell(cell, study, sources)
    except Exception as error:  # noqa: BLE001  # told at the end, and the other cells go on
        return error
    return None


def _on_workers(
    client: Client, cells: Sequence[Cell], study: Study, sources: Mapping[str, SectionSource]
) -> Iterator[tuple[Cell, BaseException | None]]:
    from distributed import as_completed

    from st_predict.cohort._plugin import TaskPlugin, run_cell_on_worker

    name = f"st_predict-{uuid.uuid4().hex[:12]}"
    client.register_plugin(TaskPlugin(_Settings(study, sources), name))
    try:
        with _submitted(client, partial(run_cell_on_worker, plugin=name), cells) as todo:
            for future in as_completed(list(todo)):
                yield todo[future], future.exception()
    finally:
        client.unregister_worker_plugin(name)


@contextmanager
def _submitted(client: Client, function: Callable[[Cell], None], cells: Sequence[Cell]) -> Iterator[dict[Any, Cell]]:
    """Yield futures of all cells; those that have not ended are cancelled."""
    todo = {client.submit(function, cell, key=f"cell-{uuid.uuid4().hex}", pure=False): cell for cell in cells}
    try:
        yield todo
    finally:
        client.cancel([future for future in todo if not future.done()], force=True)


class _Settings:
    """Settings and sections in the memory of a worker."""

    def __init__(self, study: Study, sources: Mapping[str, SectionSource]) -> None:
        self.study, self.sources = study, sources

    def load(self) -> _Settings:
        """Return the settings; sections are opened by each cell."""
        return self


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return one table, without the notes of the files."""
    plain = [frame.copy() for frame in frames]
    for frame in plain:
        frame.attrs.clear()
    return pd.concat(plain, ignore_index=True)
