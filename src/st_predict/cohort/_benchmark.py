"""Benchmarks described by a TOML file: sections, models and protocol of a cross-validation."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_predict._errors import InvalidValueError, StPredictError
from st_predict._keys import Keys
from st_predict._progress import shows_progress
from st_predict._validated import (
    Count,
    Device,
    File,
    Flag,
    Natural,
    NotNegative,
    Positive,
    Text,
    Texts,
    check,
    validated,
)
from st_predict._where import Missing, Where
from st_predict.cohort._cell import BenchmarkModel
from st_predict.cohort._cross_validate import cross_validate, models_of, open_patients
from st_predict.cohort._folds import check_folds, leaks_of
from st_predict.cohort._protocols import PanelMethod, ProtocolName, get_protocol
from st_predict.cohort._slides import list_slides
from st_predict.cohort._sources import Her2stSection, HestSection, ObjectSection, SectionSource, StoredSection
from st_predict.datasets import Fold, list_hest, simulate, splits

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from pathlib import Path

    from distributed import Client

__all__ = ["check_benchmark", "run_benchmark"]

logger = logging.getLogger(__name__)


def her2st_sections() -> tuple[str, ...]:
    """Names of all sections of her2st."""
    fold = splits("her2st_leave_one_patient_out")[0]
    return tuple(sorted((*fold.train, *fold.test)))


TABLES = ("benchmark", "sections", "models", "folds")
"""Tables of a file; ``folds`` is optional."""


@validated
class RunTable:
    """Table ``[benchmark]``: arguments of :func:`~st_predict.cohort.cross_validate`."""

    protocol: ProtocolName = "lopo"
    panel: Count | Texts | None = None
    panel_method: PanelMethod | None = None
    seeds: list[Natural] | None = None
    group_key: Text = Keys.PATIENT
    image_key: Text | None = None
    table_key: Text | None = None
    layer: Text | None = None
    missing: Missing = "error"
    min_counts: Natural | None = None
    audit: Flag = False
    device: Device = "auto"


@validated
class Her2stTable:
    """Table ``[sections]`` with ``source = "her2st"``; by default all 36 sections."""

    names: Texts = field(default_factory=lambda: list(her2st_sections()))
    cache: File | None = None

    def sources(self, folder: Path) -> dict[str, SectionSource]:
        """Return the named sections."""
        known = her2st_sections()
        if unknown := [name for name in self.names if name not in known]:
            raise InvalidValueError(f"names has {unknown}, which her2st has not; its sections are {list(known)}.")
        cache = None if self.cache is None else folder / self.cache
        return {name: Her2stSection(name, cache) for name in self.names}


@validated
class HestTable:
    """Table ``[sections]`` with ``source = "hest"``: samples of a downloaded copy of HEST-1k."""

    folder: File
    samples: Texts | None = None
    organ: Texts | None = None
    technology: Texts | None = None
    species: Texts | None = None

    def sources(self, folder: Path) -> dict[str, SectionSource]:
        """Return the samples whose files are in the folder and whose patient is known."""
        root = folder / self.folder
        listed = list_hest(root, organ=self.organ, technology=self.technology, species=self.species)
        if self.samples is not None:
            if unknown := [name for name in self.samples if name not in listed.index]:
                raise InvalidValueError(
                    f"samples has {unknown}, which are not among {len(listed)} samples of {str(root)!r}."
                )
            listed = listed.loc[self.samples]
        there = listed[listed["on_disk"]]
        if there.empty:
            raise InvalidValueError(
                f"None of {len(listed)} samples has its files in {str(root)!r}.",
                "download st/, wsis/ and metadata/ of the samples",
            )
        if anonymous := there.index[there["patient"].isna()].tolist():
            logger.warning("%d samples have no patient and are left out: %s.", len(anonymous), anonymous)
        return {name: HestSection(root, name) for name in there.index[there["patient"].notna()]}


@validated
class SimulationTable:
    """Table ``[sections]`` with ``source = "simulate"``: arguments of :func:`~st_predict.datasets.simulate`."""

    n_patients: Count = 8
    n_sections: Count = 1
    n_genes: Count | None = None
    shape: tuple[Count, Count] | None = None
    mpp: Positive | None = None
    mean_count: Positive | None = None
    programmes: Texts | None = None
    depth: Text | None = None
    cuts: Text | None = None
    stain_shift: NotNegative | None = None
    expression_shift: NotNegative | None = None
    dispersion: NotNegative | None = None
    seed: Natural = 0

    def sources(self, _folder: Path) -> dict[str, SectionSource]:
        """Simulate the sections; other options have the defaults of ``simulate``."""
        simulated = simulate(**{name: value for name, value in asdict(self).items() if value is not None})
        return {name: ObjectSection(sdata) for name, sdata in simulated.sections.items()}


@validated
class StoresTable:
    """Table ``[sections]`` with ``source = "stores"``: paths or patterns of SpatialData stores."""

    paths: Texts

    def sources(self, folder: Path) -> dict[str, SectionSource]:
        """Return the stores; relative paths start at the folder of the file."""
        slides = list_slides([str(folder / path) for path in self.paths], pitch_um=1.0)
        if absent := [str(slide.path) for slide in slides if not slide.path.exists()]:
            raise InvalidValueError(f"paths names {absent}, which do not exist.", "correct them")
        return {slide.id: StoredSection(slide.id, slide.path.absolute()) for slide in slides}


@validated
class FoldTable:
    """Table ``[folds.NAME]``: names of sections on each side."""

    train: Texts
    test: Texts
    validation: Texts = field(default_factory=list)
    shared_patients: Texts = field(default_factory=list)

    def fold(self, name: str) -> Fold:
        """Return the fold."""
        return Fold(
            name=name,
            train=tuple(self.train),
            test=tuple(self.test),
            validation=tuple(self.validation),
            shared_patients=tuple(self.shared_patients),
            note="Given in a benchmark file.",
        )


SOURCES: dict[str, Any] = {"her2st": Her2stTable, "hest": HestTable, "simulate": SimulationTable, "stores": StoresTable}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Benchmark:
    """A benchmark file, read and checked."""

    run: RunTable
    sections: Her2stTable | HestTable | SimulationTable | StoresTable
    models: dict[str, BenchmarkModel]
    folds: tuple[Fold, ...] | None
    path: Path

    @classmethod
    def read(cls, path: Path) -> _Benchmark:
        """Read a file; errors name the table and the key."""
        tables = _parse(path)
        with_place = _Place(path)
        folds = with_place("[folds]", _mapping, tables.get("folds", {}))
        return cls(
            run=with_place("[benchmark]", _table, RunTable, tables.get("benchmark", {})),
            sections=with_place("[sections]", _sections, tables.get("sections", {})),
            models=with_place("[models]", _models, tables.get("models", {})),
            folds=tuple(with_place(f"[folds.{name}]", _table, FoldTable, own).fold(name) for name, own in folds.items())
            or None,
            path=path,
        )

    def sources(self) -> dict[str, SectionSource]:
        """Return the sections; nothing is read yet."""
        return _Place(self.path)("[sections]", self.sections.sources, self.path.absolute().parent)


@dataclass(frozen=True, slots=True)
class _Place:
    """Names file and table in errors."""

    path: Path

    def __call__(self, table: str, do: Callable[..., Any], *args: Any) -> Any:
        try:
            return do(*args)
        except StPredictError as error:
            raise error.about(f"{self.path.name}, table {table}:") from error


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The file {str(path)!r} does not exist; name a benchmark file (.toml).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InvalidValueError(f"{str(path)!r} is not a TOML file ({error}).", "correct it") from error
    if unknown := sorted(set(tables) - set(TABLES)):
        raise InvalidValueError(
            f"{path.name} has no tables {unknown}; its tables are {list(TABLES)}.", "correct their names"
        )
    return tables


def _mapping(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(value, Mapping) for value in given.values()):
        raise InvalidValueError(f"expected a table per name, got {given!r}.", "write [folds.NAME] or [models.NAME]")
    return dict(given)


def _table(kind: Any, given: Any) -> Any:
    """Return a table with checked keys."""
    if not isinstance(given, Mapping):
        raise InvalidValueError(f"expected keys and values, got {given!r}.")
    known = list(kind.__dataclass_fields__)
    if unknown := sorted(set(given) - set(known)):
        raise InvalidValueError(f"the keys {unknown} do not exist; there are {known}.", "correct or remove them")
    return kind(**given)


def _sections(given: Any) -> Any:
    if not isinstance(given, Mapping) or given.get("source") not in SOURCES:
        found = given.get("source") if isinstance(given, Mapping) else given
        raise InvalidValueError(f"source must be one of {list(SOURCES)}, got {found!r}.", "set source")
    return _table(SOURCES[given["source"]], {name: value for name, value in given.items() if name != "source"})


def _models(given: Any) -> dict[str, BenchmarkModel]:
    for name, own in _mapping(given).items():
        try:
            _table(BenchmarkModel, {"model": name, **own})
        except StPredictError as error:
            raise error.about(f"model {name!r}:") from error
    return models_of(given)


@shows_progress
def run_benchmark(
    config: PathLike[str] | str,
    *,
    out: PathLike[str] | str,
    skip_failed: bool = False,
    client: Client | str | None = None,
    n_workers: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Run the benchmark of a TOML file with :func:`cross_validate`. Run again, only cells without a result are done.

    Parameters
    ----------
    config
        File with the tables ``[benchmark]``, ``[sections]``, ``[models.NAME]`` and, optionally, ``[folds.NAME]``; see
        the command ``st-predict benchmark``. Relative paths in it start at its folder.
    out
        Folder of the results, created if it does not exist; may hold earlier results.
    skip_failed
        Whether to return the scores of finished cells if others failed, instead of an error.
    client
        Client of dask, or address of its scheduler. By default cells run one after another in this process.
    n_workers
        Number of workers of a local cluster, instead of ``client``.
    progress
        Whether to show a bar of cells. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    DataFrame
        Scores, as :func:`cross_validate` returns them.

    Raises
    ------
    FileNotFoundError
        If the file, or a section, does not exist.
    ValueError
        If a table or key of the file is invalid; the message names both. Also where :func:`cross_validate` refuses.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> text = '''
    ... [benchmark]
    ... panel = 4
    ... panel_method = "mean"
    ... [sections]
    ... source = "simulate"
    ... n_patients = 2
    ... n_genes = 8
    ... shape = [720, 880]
    ... mpp = 1.2
    ... [models.mean]
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "small.toml").write_text(text)
    ...     table = stp.cohort.run_benchmark(f"{folder}/small.toml", out=f"{folder}/out")
    >>> table["fold"].value_counts().to_dict()
    {'P1': 4, 'P2': 4}
    """
    found = _Benchmark.read(check("config", config, File))
    return cross_validate(
        found.sources(),
        found.models,
        out=out,
        folds=found.folds,
        skip_failed=skip_failed,
        client=client,
        n_workers=n_workers,
        **asdict(found.run),
    )


@shows_progress
def check_benchmark(config: PathLike[str] | str, *, progress: bool | None = None) -> pd.DataFrame:
    r"""Read the file of a benchmark and open its sections, without computing anything.

    Parameters
    ----------
    config
        File of the benchmark.
    progress
        Whether to show a bar of sections. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    DataFrame
        One row per model and fold: ``model``, ``fold``, ``seeds``, ``train``, ``validation`` and ``test`` (names of
        sections) and ``leaks``.

    Raises
    ------
    FileNotFoundError
        If the file, or a section, does not exist.
    ValueError
        If a table or key of the file is invalid, or a fold leaks.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import st_predict as stp
    >>> text = '[sections]\nsource = "simulate"\nn_patients = 2\nshape = [720, 880]\n[models.ridge]\n'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "small.toml")
    ...     _ = path.write_text(text)
    ...     stp.cohort.check_benchmark(path)[["model", "fold", "test"]].to_numpy().tolist()
    [['ridge', 'P1', ('P1S1',)], ['ridge', 'P2', ('P2S1',)]]
    """
    found = _Benchmark.read(check("config", config, File))
    run, rules = found.run, get_protocol(found.run.protocol)
    where = Where(table_key=run.table_key, group_key=run.group_key, layer=run.layer, image_key=run.image_key)
    patients = open_patients(found.sources(), where)
    folds = check_folds(found.folds or rules.folds(patients), patients, rules)
    seeds = tuple(run.seeds or rules.seeds)
    chosen = not isinstance(run.panel, list)
    rows = [
        {
            "model": label,
            "fold": fold.name,
            "seeds": seeds if model.repeats else seeds[:1],
            **{side: getattr(fold, side) for side in ("train", "validation", "test")},
            "leaks": ", ".join(leaks_of(fold, patients, rules, chosen=chosen)),
        }
        for label, model in found.models.items()
        for fold in folds
    ]
    return pd.DataFrame(rows)
