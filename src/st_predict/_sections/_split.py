"""Separation of patients in training and validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, TypeAlias

from spatialdata import SpatialData

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._keys import Keys
from st_predict._sections._measured import measured_obs, patients_of
from st_predict._sections._section import as_list, each

if TYPE_CHECKING:
    import pandas as pd

    from st_predict._sections._section import Sections
    from st_predict._where import Where

__all__ = ["Known", "LeakageError", "refuse_same_sections", "split_patients"]


Known: TypeAlias = "tuple[SpatialData, pd.DataFrame]"
"""A slide and ``.obs`` of its spots."""


class LeakageError(InvalidValueError):
    """The same patient or section is in training and in validation, scoring or calibration.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.toy()
    >>> try:
    ...     stp.tl.train(sdata, "mean", panel=["GENE1"], out="run", validation=sdata)
    ... except stp.tl.LeakageError:
    ...     print("validation must use other patients")
    validation must use other patients
    """


def split_patients(
    sdatas: Sections, validation: Any, *, where: Where, allow_shared: Sequence[str]
) -> tuple[list[SpatialData], list[SpatialData]]:
    """Return training and validation sections; only patients in ``allow_shared`` may be in both.

    Parameters
    ----------
    sdatas
        Training sections.
    validation
        Validation sections, names of patients among ``sdatas`` to hold out, or ``None``.
    where
        Table of each section, and patient column.
    allow_shared
        Patients allowed on both sides.

    Raises
    ------
    LeakageError
        If another patient is on both sides.
    KeyError, ValueError
        If a section does not name its patient, or a patient does not exist.
    """
    slides = as_list(sdatas)
    groups = each(slides, lambda sdata: patients_of(sdata, where), named=sdatas)
    if validation is None:
        return slides, []
    if patients := _patient_names(validation):
        return _hold_out(slides, groups, patients)
    if isinstance(validation, bytes) or not isinstance(validation, SpatialData | Iterable):
        raise InvalidTypeError(f"validation must be sections, or names of patients to hold out, got {validation!r}.")
    held_out = as_list(validation, "validation")
    sides = [[(sdata, measured_obs(sdata, where)) for sdata in side] for side in (held_out, slides)]
    refuse_same_sections(sides[0], sides[1], group_key=where.group_key, what="in training and in validation")
    shared = set().union(*groups) & set().union(
        *each(held_out, lambda sdata: patients_of(sdata, where), named=validation)
    )
    if leaking := sorted(shared - set(allow_shared)):
        raise LeakageError(
            f"Patients {leaking} are in training and in validation, so validation would not measure the network "
            "on new patients.",
            "validate on other patients",
            Advice("allow this with {}", "allow_shared", leaking),
        )
    return slides, held_out


def refuse_same_sections(slides: Sequence[Known], others: Sequence[Known], *, group_key: str, what: str) -> None:
    """Raise :class:`LeakageError` if a section is on both sides, as the same object or by patient and name.

    Slides come with ``.obs`` of their spots.
    """
    twice = _names(slides, group_key) & _names(others, group_key)
    if twice or any(one is other for one, _ in slides for other, _ in others):
        raise LeakageError(
            f"The same section is {what}: {sorted(twice) or 'the same object'}.", "leave it out of one of the two"
        )


def _patient_names(validation: Any) -> set[str]:
    """Return names of patients, if ``validation`` holds names."""
    given = [validation] if isinstance(validation, str) else validation
    if isinstance(given, SpatialData | Mapping) or not isinstance(given, Iterable):
        return set()
    names = list(given) if isinstance(given, Sized) else []  # iterators hold sections
    return set(names) if names and all(isinstance(name, str) for name in names) else set()


def _hold_out(
    sdatas: list[SpatialData], groups: list[set[str]], patients: set[str]
) -> tuple[list[SpatialData], list[SpatialData]]:
    known = set().union(*groups)
    if unknown := sorted(patients - known):
        raise InvalidValueError(f"No patient {unknown} in the sections; there are {sorted(known)}.")
    if mixed := [sorted(g) for g in groups if g & patients and g - patients]:
        raise InvalidValueError(
            f"A section has spots of both training and held-out patients: {mixed}.", "hold out all of these, or none"
        )
    training = [s for s, g in zip(sdatas, groups, strict=True) if not g & patients]
    if not training:
        raise InvalidValueError(f"Holding out {sorted(patients)} leaves no training sections.")
    return training, [s for s, g in zip(sdatas, groups, strict=True) if g & patients]


def _names(slides: Iterable[Known], group_key: str) -> set[tuple[str, str]]:
    """Return patient and section names, as far as the tables have them."""
    found: set[tuple[str, str]] = set()
    for _, obs in slides:
        if {group_key, Keys.SECTION} <= set(obs):
            named = obs[[group_key, Keys.SECTION]].dropna().astype(str).drop_duplicates()
            found |= set(named.itertuples(index=False, name=None))
    return found
