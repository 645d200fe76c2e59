"""Folds of a cross-validation: sides that share a patient or a section are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from st_predict._errors import InvalidTypeError, InvalidValueError, NotFoundError
from st_predict.cohort._protocols import Leak, patients_on_several_sides
from st_predict.datasets import Fold
from st_predict.tl import LeakageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from st_predict.cohort._protocols import EvaluationProtocol

__all__ = ["check_folds", "leaks_of"]


def check_folds(
    folds: Iterable[Fold], patients: Mapping[str, frozenset[str]], protocol: EvaluationProtocol
) -> tuple[Fold, ...]:
    """Return the folds; refuse those that leak more than they or the protocol declare.

    Parameters
    ----------
    folds
        Folds to check.
    patients
        Patients of each section.
    protocol
        Rules of the evaluation.

    Raises
    ------
    LeakageError
        If a section, or an undeclared patient, is on several sides.
    KeyError
        If a section does not exist.
    TypeError, ValueError
        If ``folds`` are not folds, there are none, or two have the same name.
    """
    found = [folds] if isinstance(folds, Fold) else list(folds)
    for fold in found:
        if not isinstance(fold, Fold):
            raise InvalidTypeError(f"folds must be members of the class st_predict.datasets.Fold, got {fold!r}.")
    names = [fold.name for fold in found]
    if not names or len(names) != len(set(names)):
        raise InvalidValueError(f"folds must have names of their own, at least one; got {names}.")
    for fold in found:
        _check_fold(fold, patients, protocol)
    return tuple(found)


def _check_fold(fold: Fold, patients: Mapping[str, frozenset[str]], protocol: EvaluationProtocol) -> None:
    train, validation, test = (set(side) for side in (fold.train, fold.validation, fold.test))
    if unknown := sorted((train | validation | test) - set(patients)):
        raise NotFoundError(f"Fold {fold.name!r} names unknown sections {unknown}; there are {sorted(patients)}.")
    if not train or not test:
        raise InvalidValueError(f"Fold {fold.name!r} has no {'training' if not train else 'test'} sections.")
    twice = train & (validation | test)
    twice |= set() if "epoch" in protocol.leaks else validation & test
    if twice:
        raise LeakageError(
            f"Sections {sorted(twice)} are on several sides of the fold {fold.name!r}.", "leave each on one side"
        )
    shared = patients_on_several_sides(fold, patients) - set(fold.shared_patients)
    if shared:
        raise LeakageError(
            f"Patients {sorted(shared)} are on several sides of the fold {fold.name!r}, so its scores would not be of new "
            "patients.",
            "keep all sections of a patient on one side",
            "declare these patients in shared_patients of the fold",
        )


def leaks_of(
    fold: Fold, patients: Mapping[str, frozenset[str]], protocol: EvaluationProtocol, *, chosen: bool
) -> tuple[Leak, ...]:
    """Return what reaches the training from the test sections of a fold.

    Parameters
    ----------
    fold
        The fold.
    patients
        Patients of each section.
    protocol
        Rules of the evaluation.
    chosen
        Whether the panel is selected, not given.
    """
    tested = {patient for name in fold.test for patient in patients[name]}
    others = {*fold.train, *fold.validation} - set(fold.test)
    learned = {patient for name in others for patient in patients[name]}
    found = {
        "patient": bool(tested & learned),
        "panel": chosen and "panel" in protocol.leaks,
        "epoch": bool(set(fold.validation) & set(fold.test)),
    }
    return tuple(leak for leak in get_args(Leak) if found[leak])
