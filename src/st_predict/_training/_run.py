"""Folder of a training: checks, notes for resuming, and results."""

from __future__ import annotations

import csv
import json
import logging
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_predict import checkpoints
from st_predict._errors import InvalidValueError
from st_predict._files import whole
from st_predict._locks import locked, owned_folder
from st_predict._training._config import TrainConfig
from st_predict._training._state import LAST, is_begun

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from os import PathLike

    from st_predict.encoders import Encoder
    from st_predict.models import ModelSpec, SpotModel
    from st_predict.specs import ModelCard

__all__ = ["Run"]

logger = logging.getLogger(__name__)

CROPS = ".crops-"
"""Prefix of the names of crop folders."""

LOCK = ".lock"
"""Lock file of a training, in its folder."""

_MAY_CHANGE = {"device", "precision"}  # between a run and its continuation


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training and the folder of its results.

    Parameters
    ----------
    folder
        Folder for results.
    resume
        Whether the run continues an interrupted one.
    spec
        Model to train.
    writes
        Whether this process writes the results; of several that train together, only the first does.
    """

    folder: Path
    resume: bool
    spec: ModelSpec
    writes: bool = True

    @classmethod
    def create(cls, out: PathLike[str] | str, spec: ModelSpec, *, resume: bool, writes: bool = True) -> Run:
        """Make the folder. Existing results are kept.

        Raises
        ------
        FileNotFoundError
            If ``resume`` is true and the folder has no state to resume.
        FileExistsError
            If the folder holds a training and ``resume`` is false.
        OSError
            If the folder cannot be written to.
        """
        out = Path(out)
        run = cls(folder=out, resume=resume, spec=spec, writes=writes)
        run._check()
        try:
            (out / "checkpoints").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            raise type(error)(error.errno, f"Cannot write results to {str(out)!r}: {error.strerror}") from error
        return run

    def _check(self) -> None:
        """Refuse a folder that holds results, or nothing to resume."""
        if not self.writes:
            return
        out, begun = self.folder, is_begun(self.folder)
        if self.resume and not begun:
            raise FileNotFoundError(f"Nothing to resume: {str(out / 'checkpoints' / LAST)!r} does not exist.")
        results = out / f"{self.spec.name}.safetensors", out / "history.csv"
        if not self.resume and (begun or any(path.exists() for path in results)):
            way_out = "name another folder" if self.spec.closed_form else "resume it, or name another folder"
            raise FileExistsError(f"{str(out)!r} already holds a training: {way_out}.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of the folder.

        Raises
        ------
        FileExistsError
            If another training runs in the folder, or has ended there since this run was created.
        """
        if not self.writes:
            yield
            return
        with locked(self.folder / LOCK, folder=self.folder, what="training"):
            self._check()
            yield

    def temporary_folder(self) -> AbstractContextManager[Path]:
        """Make a temporary folder for crops; leftovers of killed trainings are removed first."""
        return owned_folder(self.folder, CROPS)

    def note(self, card: ModelCard, config: TrainConfig, *, sections: Mapping[str, Any]) -> None:
        """Record card, configuration and sections, and refuse to resume with different ones.

        Raises
        ------
        ValueError
            If the run was started with another card, configuration or sections.
        """
        if not self.writes:
            return
        path = self.folder / "checkpoints" / "begun.json"
        # finished rounds are not resumed, so their number of epochs is fixed
        free = _MAY_CHANGE if "rounds" in sections else _MAY_CHANGE | {"epochs", "patience"}
        setting = {name: value for name, value in _plain(config).items() if name.removeprefix("config.") not in free}
        now = json.loads(card.to_json()) | json.loads(json.dumps(sections)) | setting
        if not self.resume:  # an existing note is from a training that ended before its first epoch
            with whole(path) as fresh:
                fresh.write_text(json.dumps(now), encoding="utf-8")
            return
        # fields that were added since have their default
        defaults = {name: value for name, value in _plain(TrainConfig()).items() if name in setting}
        begun = defaults | _read_note(path)
        if changed := sorted(name for name in now.keys() | begun.keys() if now.get(name) != begun.get(name)):
            raise InvalidValueError(
                f"{str(path.parent)!r} was started with another {' and '.join(changed)}.",
                "resume with the same",
                "start anew in another folder",
            )

    def save(
        self, network: SpotModel, card: ModelCard, history: list[dict[str, float]], *, encoder: Encoder | None = None
    ) -> Path:
        """Write the checkpoint, including an encoder that may be carried, and ``history.csv``; return the checkpoint's path."""
        path = self.folder / f"{card.model}.safetensors"
        if not self.writes:
            return path
        checkpoints.save(path, network, card, encoder=encoder)
        with whole(self.folder / "history.csv") as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
            names = list(dict.fromkeys(name for row in history for name in row))
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            # a missing value is an empty cell
            writer.writerows({name: "" if isnan(value) else value for name, value in row.items()} for row in history)
        logger.info("Wrote %s.", path)
        return path


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of a configuration as JSON gives them back."""
    return dict(json.loads(json.dumps({f"config.{name}": value for name, value in asdict(config).items()})))


def _read_note(path: Path) -> dict[str, Any]:
    """Read the note on how a training was started."""
    if not path.is_file():
        raise FileNotFoundError(f"Nothing to resume: {str(path)!r} does not exist. Start anew in another folder.")
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # raised for JSON or its encoding
        raise InvalidValueError(f"{str(path)!r} is damaged ({error}).", "start anew in another folder") from error
    if isinstance(begun, dict):
        return begun
    raise InvalidValueError(f"{str(path)!r} is damaged: it is not a mapping.", "start anew in another folder")
