"""Keep patients apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from st_predict._errors import InvalidValueError
from st_predict._keys import Keys
from st_predict._sections._observed import measured_table, patients_of
from st_predict._sections._section import as_list

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spatialdata import SpatialData

__all__ = ["LeakageError", "refuse_same_sections", "split_patients"]


class LeakageError(InvalidValueError):
    """The same patient is in training and in validation."""


def split_patients(
    sdatas: list[SpatialData], validation: Any, *, group_key: str, allow_shared: Sequence[str]
) -> tuple[list[SpatialData], list[SpatialData]]:
    """Return training and validation sections, which share no patient but those that may be shared.

    Parameters
    ----------
    sdatas
        Sections to train on.
    validation
        Sections, or names of patients among ``sdatas`` to hold out, or nothing.
    group_key
        Column of ``.obs`` that names the patient.
    allow_shared
        Patients that may be on both sides.

    Raises
    ------
    LeakageError
        If another patient is on both sides.
    KeyError, ValueError
        If a section does not say whose it is, or there is no such patient.
    """
    groups = [patients_of(sdata, group_key) for sdata in sdatas]
    if validation is None:
        return sdatas, []
    if patients := _patient_names(validation):
        return _hold_out(sdatas, groups, patients)
    held_out = as_list(validation)
    refuse_same_sections(held_out, sdatas, group_key=group_key, what="in training and in validation")
    shared = set().union(*groups) & set().union(*(patients_of(sdata, group_key) for sdata in held_out))
    if leaking := sorted(shared - set(allow_shared)):
        raise LeakageError(
            f"Patients {leaking} are in training and in validation, so the validation would not show how the network "
            f"does on new patients. Validate on others, or say that this is meant: allow_shared={leaking}."
        )
    return sdatas, held_out


def refuse_same_sections(
    slides: Sequence[SpatialData], others: Sequence[SpatialData], *, group_key: str, what: str
) -> None:
    """Raise :class:`LeakageError` if a section is on both sides, as the same object or by patient and name."""
    twice = _names(slides, group_key) & _names(others, group_key)
    if twice or any(one is other for one in slides for other in others):
        raise LeakageError(f"The same section is {what}: {sorted(twice) or 'the same object'}.")


def _patient_names(validation: Any) -> set[str]:
    """Names of patients, if that is what ``validation`` holds."""
    given = [validation] if isinstance(validation, str) else validation
    if isinstance(given, Sequence) and all(isinstance(name, str) for name in given):
        return set(given)
    return set()


def _hold_out(
    sdatas: list[SpatialData], groups: list[set[str]], patients: set[str]
) -> tuple[list[SpatialData], list[SpatialData]]:
    known = set().union(*groups)
    if unknown := sorted(patients - known):
        raise InvalidValueError(f"No patient {unknown} in the sections; there are {sorted(known)}.")
    if mixed := [sorted(g) for g in groups if g & patients and g - patients]:
        raise InvalidValueError(f"A section holds spots of patients to train on and to hold out: {mixed}.")
    training = [s for s, g in zip(sdatas, groups, strict=True) if not g & patients]
    if not training:
        raise InvalidValueError(f"Holding out {sorted(patients)} leaves nothing to train on.")
    return training, [s for s, g in zip(sdatas, groups, strict=True) if g & patients]


def _names(sdatas: Iterable[SpatialData], group_key: str) -> set[tuple[str, str]]:
    """Which sections of which patients these are, as far as the tables say so."""
    found: set[tuple[str, str]] = set()
    for obs in (measured_table(sdata).obs for sdata in sdatas):
        if Keys.SECTION in obs:
            named = obs[[group_key, Keys.SECTION]].dropna().astype(str).drop_duplicates()
            found |= set(named.itertuples(index=False, name=None))
    return found
