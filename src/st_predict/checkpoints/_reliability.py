"""Gene scores in the card of a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._files import whole
from st_predict._validated import File, Flag, check
from st_predict.checkpoints._released import find_weights, name_of
from st_predict.models import get_spec
from st_predict.specs import HeldOut, ModelCard

if TYPE_CHECKING:
    from os import PathLike

    from st_predict.checkpoints._released import Trained
    from st_predict.specs import Reliability

__all__ = ["Evaluated", "add_reliability"]

_OF_NETWORK = ("model", "genes", "crop", "pixels", "target", "hparams", "training")
"""Fields of a card that identify the network."""


@runtime_checkable
class Evaluated(Protocol):
    """Protocol of a network's scores on sections, such as :class:`st_predict.tl.Evaluation`.

    Examples
    --------
    >>> import st_predict as stp
    >>> class MyScores:
    ...     def __init__(self, card, scores):
    ...         self.card, self.scores = card, scores
    ...
    ...     def reliability(self, *, unknown=None):
    ...         return self.scores
    >>> isinstance(MyScores(card=None, scores=()), stp.checkpoints.Evaluated)
    True
    """

    @property
    def card(self) -> ModelCard:
        """Card of the network."""

    def reliability(self, *, unknown: HeldOut | None = None) -> tuple[Reliability, ...]:
        """Return the scores of each gene on held-out sections."""


def add_reliability(
    model: PathLike[str] | str | Trained,
    evaluation: Evaluated,
    *,
    out: PathLike[str] | str | None = None,
    overwrite: bool = False,
    unknown: HeldOut | None = None,
) -> Path:
    """Write the scores of each gene on held-out sections to the card of a checkpoint.

    Existing scores on the same kind of section are replaced; others stay. Weights are not changed. The file is written
    atomically.

    Parameters
    ----------
    model
        Path of a ``.safetensors`` file, training result, or name of released weights.
    evaluation
        Result of :func:`st_predict.tl.evaluate` for predictions of this checkpoint.
    out
        File to write; by default the file of ``model``.
    overwrite
        Whether to replace an existing file.
    unknown
        Kind of held-out section, ``"patient"`` or ``"section"``, if the card lacks the training sections; see
        :meth:`st_predict.tl.Evaluation.reliability`.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    FileExistsError
        If the file to write exists and ``overwrite`` is false.
    FileNotFoundError, KeyError
        If the checkpoint does not exist.
    TypeError
        If ``evaluation`` is of another type.
    ValueError
        If the evaluation belongs to another network, no section was held out, or released weights would be replaced.

    Examples
    --------
    >>> import tempfile
    >>> import st_predict as stp
    >>> simulated = stp.datasets.simulate(2, 1, n_genes=8, shape=(720, 880), mpp=1.2)
    >>> train, test = simulated.sections.values()
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = stp.tl.train(train, "ridge", panel=["GENE1", "GENE2"], out=out)
    ...     stp.tl.predict(test, result)
    ...     path = stp.checkpoints.add_reliability(result, stp.tl.evaluate(test), overwrite=True)
    ...     card = stp.specs.ModelCard.of_file(path)
    >>> [scores.held_out for scores in card.reliability]
    ['patient']
    """
    if not isinstance(evaluation, Evaluated):
        raise InvalidTypeError(
            f"evaluation must be a result of st_predict.tl.evaluate, got {type(evaluation).__name__}."
        )
    source = find_weights(model)
    target = _target(model, source, out, overwrite=check("overwrite", overwrite, Flag))
    card = ModelCard.of_file(source)
    _refuse_other(_without_paths(card), _without_paths(evaluation.card), str(source))
    measured = evaluation.reliability(unknown=unknown)
    kinds = {one.held_out for one in measured}
    kept = [one for one in card.reliability if one.held_out not in kinds]
    ordered = sorted([*measured, *kept], key=lambda one: one.held_out)
    _write_card(source, target, replace(card, reliability=tuple(ordered)))
    return target


def _target(
    model: PathLike[str] | str | Trained, source: Path, out: PathLike[str] | str | None, *, overwrite: bool
) -> Path:
    """Path to write to."""
    if out is None and source != Path(name_of(model)):
        raise InvalidValueError(
            f"{name_of(model)!r} are released weights, which are identified by their hash and must not change.",
            Advice("name a file to write with {}", "out"),
        )
    target: Path = source if out is None else check("out", out, File)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{os.fspath(target)!r} exists; name another file, or allow it to be replaced.")
    return target


def _without_paths(card: ModelCard) -> ModelCard:
    """Leave out hyper-parameters that are paths of the user's files."""
    own = set(get_spec(card.model).of_user)
    return replace(card, hparams={name: value for name, value in card.hparams.items() if name not in own})


def _refuse_other(card: ModelCard, evaluated: ModelCard, path: str) -> None:
    """Refuse scores of another network."""
    ours, theirs = (json.loads(one.to_json()) for one in (card, evaluated))
    differing = [
        name for name in _OF_NETWORK if json.dumps(ours[name]) != json.dumps(theirs[name])
    ]  # as text, because NaN does not equal NaN
    free = get_spec(card.model).at_prediction
    if differing == ["hparams"] and all(
        ours["hparams"][n] == theirs["hparams"][n] for n in card.hparams if n not in free
    ):
        changed = {name: theirs["hparams"][name] for name in free if theirs["hparams"][name] != ours["hparams"][name]}
        raise InvalidValueError(
            f"The evaluated predictions have {changed}, unlike the card of {path!r}.",
            "predict without these hyper-parameters, and evaluate again",
        )
    if differing:
        raise InvalidValueError(
            f"The evaluation does not belong to {path!r}: the cards differ in {differing}.",
            "evaluate predictions of this file",
        )


def _write_card(source: Path, target: Path, card: ModelCard) -> None:
    """Copy a safetensors file with another card: 8 bytes with the length of the header, the header as JSON, the weights."""
    with source.open("rb") as old, whole(target) as fresh, fresh.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header["__metadata__"][ModelCard.METADATA_KEY] = card.to_json()
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # aligns the weights at 8 bytes
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new)
