"""Cells of a cross-validation: a model, a fold and a seed, with the file of their scores."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from st_predict._errors import InvalidValueError
from st_predict._files import sha256
from st_predict._validated import Fields, Natural, Positive, Text, validated
from st_predict._version import __version__
from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from st_predict._where import Where
    from st_predict.cohort._protocols import EvaluationProtocol
    from st_predict.datasets import Fold

__all__ = ["COLUMNS", "COUNTS_ONLY", "NOTE", "BenchmarkModel", "Cell", "Study", "read_cell"]

NOTE = "st_predict"
"""Name of the note in the file of a cell."""

COLUMNS = (
    *("protocol", "model", "fold", "seed", "section", "patient", "gene", "held_out", "leaks"),
    *("partial", "partial_low", "partial_high", "residual", "pearson", "spearman", "morans_i", "ssim"),
    *("observed_morans_i", "ceiling_partial", "ceiling_residual", "spot_pearson", "spot_rmse", "n_spots"),
)
"""Columns of the table."""

COUNTS_ONLY = ("log_total", "section_mean", "neighbours", "global_mean", "patient_mean", "position")
"""Predictors of :func:`st_predict.tl.evaluate` that use measured counts or positions and no image."""


@validated
class BenchmarkModel:
    """A model of a cross-validation.

    Parameters
    ----------
    model
        Name of the model (:func:`st_predict.models.list_models`), or of a predictor without an image: ``"log_total"``,
        ``"section_mean"``, ``"neighbours"``, ``"global_mean"``, ``"patient_mean"`` or ``"position"``
        (:func:`st_predict.tl.evaluate`).
    preset
        Preset of :func:`st_predict.tl.train`, with its units; by default the protocol's.
    hparams
        Hyper-parameters that replace the preset's.
    config
        Fields of :class:`st_predict.tl.TrainConfig` that replace the preset's and the protocol's.
    mpp
        Resolution of the crops, in micrometres per pixel; by default the preset's.
    stain
        Method of stain normalisation, ``"macenko"`` or ``"reinhard"``; by default none.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.cohort.BenchmarkModel(model="ridge", hparams={"rank": 4}).hparams
    {'rank': 4}
    """

    model: Text
    preset: Literal["recommended", "paper", "original"] | None = None
    hparams: Fields = field(default_factory=dict)
    config: Fields = field(default_factory=dict)
    mpp: Positive | None = None
    stain: Literal["macenko", "reinhard"] | None = None

    def __post_init__(self) -> None:
        if self.model not in COUNTS_ONLY:
            get_spec(self.model).check_names(self.hparams)
        if "seed" in self.config:
            raise InvalidValueError(
                f"config sets the seed {self.config['seed']!r}, but each cell has its own.", "give seeds instead"
            )

    @property
    def trained(self) -> str:
        """Name of the network that is trained."""
        return "mean" if self.model in COUNTS_ONLY else self.model

    @property
    def repeats(self) -> bool:
        """Whether results depend on the seed."""
        return not get_spec(self.trained).closed_form


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Settings of all cells.

    Parameters
    ----------
    protocol
        Rules of the evaluation.
    panel
        Genes, or their number.
    where
        Tables, images and patients of the sections.
    min_counts
        Minimum panel counts of a spot; ``None`` for the default.
    device
        Device of the networks.
    audit
        Whether each fit is repeated with other test sections.
    """

    protocol: EvaluationProtocol
    panel: int | tuple[str, ...]
    where: Where
    min_counts: Natural | None
    device: str
    audit: bool

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a result depends on besides model, fold, seed and sections, for JSON."""
        rules = {name: getattr(self.protocol, name) for name in ("name", "panel", "preset", "config", "leaks")}
        rules["target"] = None if self.protocol.target is None else asdict(self.protocol.target)
        where = {"min_counts": self.min_counts, "device": self.device, "audit": self.audit, **asdict(self.where)}
        return {**rules, "panel_given": self.panel, **where, "version": __version__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A model, a fold and a seed, with the file of their scores.

    Parameters
    ----------
    label
        Name of the model in the table.
    setting
        The model.
    fold
        Sections of each side.
    seed
        Random seed of training.
    patients
        Patients of each section.
    key
        Hash of everything that the scores depend on.
    path
        File of the scores.
    """

    label: str
    setting: BenchmarkModel
    fold: Fold
    seed: int
    patients: Mapping[str, frozenset[str]]
    key: str
    path: Path

    @classmethod
    def of(  # everything the key depends on
        cls,
        label: str,
        setting: BenchmarkModel,
        fold: Fold,
        *,
        seed: int,
        study: Study,
        patients: Mapping[str, frozenset[str]],
        digests: Mapping[str, str],
        folder: Path,
    ) -> Cell:
        """Name the cell by its model, fold and seed, and a hash of what its scores depend on."""
        names = sorted({*fold.train, *fold.validation, *fold.test})
        parts = {"sections": {n: digests[n] for n in names}, "patients": {n: sorted(patients[n]) for n in names}}
        known = {"model": asdict(setting), "label": label, "fold": asdict(fold), "seed": seed, **parts}
        key = sha256(json.dumps({**known, "study": study.settings}, sort_keys=True, default=str))[:32]
        name = re.sub(r"[^\w.-]+", "_", f"{label}-{fold.name}-{seed}")
        own = {n: patients[n] for n in names}
        path = folder / f"{name}-{key[:8]}.parquet"
        return cls(label=label, setting=setting, fold=fold, seed=seed, patients=own, key=key, path=path)

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"model {self.label!r}, fold {self.fold.name!r}, seed {self.seed}"


def read_cell(cell: Cell) -> pd.DataFrame | None:
    """Read the scores of a cell; ``None`` if there are none.

    Raises
    ------
    ValueError
        If the file is not the result of this cell.
    """
    if not cell.path.exists():
        return None
    try:
        frame = pd.read_parquet(cell.path)
        whole_file = frame.attrs[NOTE]["key"] == cell.key and list(frame) == list(COLUMNS)
    except Exception as error:  # pyarrow raises many types
        raise _foreign(cell) from error
    if not whole_file:
        raise _foreign(cell)
    return frame


def _foreign(cell: Cell) -> InvalidValueError:
    return InvalidValueError(
        f"{str(cell.path)!r} is not the result of {cell.name}. It is not replaced.", "move it away and run again"
    )
