"""Work on one slide: prediction or embedding, loaded once per worker."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  # pydantic needs it at run time
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData

from st_predict import checkpoints, get
from st_predict._errors import InvalidValueError
from st_predict._files import sha256_of_file
from st_predict._keys import Keys
from st_predict._record import Record
from st_predict._runtime import Compute
from st_predict._sections import check_missing_levels
from st_predict._stain import Stain
from st_predict._validated import Count, Fields, Flag, Positive, Text, validated
from st_predict._where import Where
from st_predict.encoders import Encoder, EncoderSpec, count_features, load_encoder
from st_predict.io import find_table
from st_predict.tl import Draws, Ensemble, embed, predict_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from st_predict.checkpoints import Trained
    from st_predict.cohort._slides import CohortSlide

__all__ = ["EmbedTask", "Loaded", "Machine", "PredictTask", "Task", "checked", "digests_of", "names_of"]


class Loaded(Protocol):
    """Networks in memory, ready for slides."""

    def run(self, sdata: SpatialData, slide: CohortSlide) -> AnnData:
        """Return the result of a slide with spots."""

    def empty(self) -> AnnData:
        """Return the result of a slide without tissue: no rows."""


class Task(Protocol):
    """Work to do on every slide; small, because it is sent to the workers."""

    @property
    def where(self) -> Where:
        """Elements of stores to use."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that the result depends on besides the slide, for JSON."""

    def load(self) -> Loaded:
        """Load the networks, on a worker."""


@validated
class Machine:
    """Device, precision and batch size, checked where the work is done: the client may have no GPU.

    Parameters
    ----------
    device
        Name of the device.
    precision
        Precision.
    batch_size
        Number of spots per batch; ``None`` for the default.
    """

    device: Text = "auto"
    precision: Text = "auto"
    batch_size: Count | None = None

    def compute(self) -> Compute:
        """Return the settings for this machine."""
        return Compute(device=self.device, precision=self.precision, batch_size=self.batch_size)


@validated
class PredictTask:
    """Prediction by checkpoints.

    Parameters
    ----------
    models
        Names or paths of the checkpoints.
    digests
        SHA-256 of their files.
    key
        Key of the result; ``None`` for the default.
    where
        Elements of stores to use.
    machine
        Device, precision and batch size.
    stain
        Reference stain; ``False`` for none, ``None`` for the training's.
    hparams
        Hyper-parameters to change.
    trust
        Whether to accept everything on the cards.
    draws
        Number of random samples per spot, and their seed.
    symmetries
        Number of crop symmetries averaged.
    cut_tissue
        Handling of spots with a cut field of view.
    """

    models: tuple[Text, ...]
    digests: tuple[Text, ...]
    key: Text | None = None
    where: Where = field(default_factory=Where)
    machine: Machine = field(default_factory=Machine)
    stain: Stain | Literal[False] | None = None
    hparams: Fields | None = None
    trust: Flag = False
    draws: Draws | None = None
    symmetries: Literal[1, 8] | None = None
    cut_tissue: Literal["keep", "nan"] = "keep"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that the result depends on besides the slide, for JSON."""
        random = {} if self.draws is None else {**asdict(self.draws), "batch_size": self.machine.batch_size}
        return {
            "verb": "predict",
            "checkpoints": self.digests,
            "key": self.key,
            **_described(self.where, self.machine),
            "stain": self.stain.to_dict() if isinstance(self.stain, Stain) else self.stain,
            "hparams": self.hparams,
            "draws": random,
            "symmetries": self.symmetries,
            "cut_tissue": self.cut_tissue,
        }

    def load(self) -> Loaded:
        """Load the networks, on a worker."""
        for name, digest, found in zip(self.models, self.digests, digests_of(self.models), strict=True):
            if found != digest:
                raise _other_file(name)
        ensemble = open_ensemble(self, self.machine.compute())
        return _LoadedPrediction(self, ensemble, replace(self.where, stain=ensemble.stain(self.stain)))


def _other_file(name: str) -> InvalidValueError:
    """Return the error for weights that are not those in the keys of the results."""
    return InvalidValueError(
        f"{name!r} is not the file that this run was started with.",
        "do not change it meanwhile, and have the same file on all machines",
    )


def names_of(model: PathLike[str] | str | Trained | Sequence[PathLike[str] | str | Trained]) -> tuple[str, ...]:
    """Return names of released checkpoints, and absolute paths of others, which other processes can open."""
    given = [model] if isinstance(model, str | PathLike | checkpoints.Trained) else model
    names = [checkpoints.name_of(each) for each in given]
    return tuple(str(Path(name).resolve()) if Path(name).is_file() else name for name in names)


def digests_of(models: Sequence[str]) -> tuple[str, ...]:
    """Return the SHA-256 of checkpoints."""
    return tuple(sha256_of_file(checkpoints.find_weights(name)) for name in models)


def checked(task: PredictTask, *, here: bool) -> tuple[PredictTask, bool]:
    """Load the networks to check all arguments before any work; return the task with its key, and whether it needs the mpp.

    Parameters
    ----------
    task
        Task to check.
    here
        Whether the work is done on this machine, which then must have the device.
    """
    if here:
        task.machine.compute()
    ensemble = open_ensemble(task, Compute(device="cpu", precision="float32"))
    ensemble.stain(task.stain)
    check_missing_levels(task.where.missing_levels, [card.model for card in ensemble.cards])
    return replace(task, key=task.key or ensemble.key), ensemble.needs_mpp


def open_ensemble(task: PredictTask, compute: Compute) -> Ensemble:
    """Load the networks of a task."""
    return Ensemble.open(
        list(task.models),
        hparams=task.hparams,
        trust=task.trust,
        draws=task.draws,
        symmetries=task.symmetries,
        compute=compute,
    )


@dataclass(frozen=True, slots=True)
class _LoadedPrediction:
    task: PredictTask
    ensemble: Ensemble
    where: Where

    def run(self, sdata: SpatialData, slide: CohortSlide) -> AnnData:
        task = self.task
        where = replace(self.where, image_key=slide.image_key, mpp=slide.mpp)
        predict_with(self.ensemble, sdata, where, key_added=task.key, context=None, cut_tissue=task.cut_tissue)
        return get.prediction(sdata, task.key)

    def empty(self) -> AnnData:
        return _no_rows(list(self.ensemble.card.genes))


@validated
class EmbedTask:
    """Features of an encoder.

    Parameters
    ----------
    encoder
        Encoder whose weights are loaded by the workers.
    described
        Encoder with the digest of its weights.
    key
        Key of the result.
    where
        Elements of stores to use.
    machine
        Device, precision and batch size.
    at_mpp
        Resolution of the encoder's input; ``None`` for the encoder's own.
    cache
        Whether to cache features on disk.
    """

    encoder: EncoderSpec
    described: Fields
    key: Text
    where: Where = field(default_factory=Where)
    machine: Machine = field(default_factory=Machine)
    at_mpp: Positive | None = None
    cache: Flag = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that the result depends on besides the slide, for JSON."""
        return {
            "verb": "embed",
            "encoder": self.described,
            "neighbours": self.encoder.neighbours,
            "standardize": self.encoder.standardize,
            "crop": asdict(self.encoder.crop),
            "key": self.key,
            **_described(self.where, self.machine),
            "at_mpp": self.at_mpp,
        }

    @property
    def needs_mpp(self) -> bool:
        """Whether the mpp of a slide is required."""
        return self.at_mpp is not None or self.encoder.crop.mpp is not None

    def load(self) -> Loaded:
        """Load the encoder, on a worker."""
        self.machine.compute()  # refuses unknown devices
        encoder = load_encoder(self.encoder)
        if encoder.describe() != self.described:
            raise _other_file(self.encoder.name)
        return _LoadedEncoder(self, encoder)


@dataclass(frozen=True, slots=True)
class _LoadedEncoder:
    task: EmbedTask
    encoder: Encoder

    def run(self, sdata: SpatialData, slide: CohortSlide) -> AnnData:
        task, where, machine = self.task, self.task.where, self.task.machine
        embed(
            sdata,
            self.encoder,
            image_key=slide.image_key,
            table_key=where.table_key,
            bin_um=where.bin_um,
            shapes_key=where.shapes_key,
            mpp=slide.mpp,
            at_mpp=task.at_mpp,
            key_added=task.key,
            batch_size=machine.batch_size,
            device=machine.device,
            precision=machine.precision,  # type: ignore[arg-type]  # checked by the function
            cache=task.cache,
            tissue_only=where.tissue_only,
            progress=False,
        )
        return _features(sdata, task)

    def empty(self) -> AnnData:
        return _no_rows([str(i) for i in range(count_features(self.encoder.spec) or 0)])


def _features(sdata: SpatialData, task: EmbedTask) -> AnnData:
    """Return an embedding as a separate object, with positions and record but without the pixels."""
    key, where = task.key, task.where
    name = None if where.shapes_key is not None else find_table(sdata, where.table_key, bin_um=where.bin_um)
    table = sdata.tables[key if name is None else name]
    values = table.X if name is None else table.obsm[key]
    found = AnnData(np.asarray(values), obs=table.obs.copy())
    if Keys.SPATIAL in table.obsm:
        found.obsm[Keys.SPATIAL] = np.asarray(table.obsm[Keys.SPATIAL])
    Record.copy(table.uns, found.uns, key)
    return found


def _no_rows(names: list[str]) -> AnnData:
    return AnnData(np.empty((0, len(names)), np.float32), var=pd.DataFrame(index=names))


def _described(where: Where, machine: Machine) -> dict[str, Any]:
    chosen = asdict(where)
    names = ("table_key", "bin_um", "shapes_key", "tissue_only", "missing_levels")
    return {**{name: chosen[name] for name in names}, "device": machine.device, "precision": machine.precision}
