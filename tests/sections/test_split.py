"""No patient may be on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr

from st_predict._sections._split import split_patients
from st_predict._where import Where
from st_predict.tl import LeakageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., SpatialData]


def split(
    training: list[SpatialData], validation: object, allow_shared: tuple[str, ...] = (), group_key: str = "patient"
) -> tuple[list[SpatialData], list[SpatialData]]:
    return split_patients(training, validation, where=Where(group_key=group_key), allow_shared=allow_shared)


def test_other_patients_are_fine(measured: SpatialData, other: Make) -> None:
    second = other("P2")
    assert split([measured], [second]) == ([measured], [second])
    assert split([measured], {"name": second})[1] == [second]
    assert split([measured], None) == ([measured], [])


def test_the_same_patient_is_refused_by_name(measured: SpatialData, other: Make) -> None:
    with pytest.raises(LeakageError, match=r"Patients \['P1'\] are in training and in validation"):
        split([measured, other("P2")], [other("P1", "S2"), other("P3")])


def test_the_same_patient_may_be_allowed_by_name(measured: SpatialData, other: Make) -> None:
    held_out = [other("P1", "S2"), other("P2", "S2")]
    with pytest.raises(LeakageError, match=r"allow_shared=\['P2'\]"):
        split([measured, other("P2")], held_out, ("P1",))
    assert split([measured, other("P2")], held_out, ("P1", "P2"))[1] == held_out


def test_the_same_section_is_refused_even_if_the_patient_is_allowed(
    measured: SpatialData, other: Make, tmp_path: Path
) -> None:
    with pytest.raises(LeakageError, match="same section"):
        split([measured, other("P2")], [measured], ("P1",))
    measured.write(tmp_path / "s.zarr")
    with pytest.raises(LeakageError, match=r"same section .*\('P1', 'S1'\)"):
        split([measured], [read_zarr(tmp_path / "s.zarr")], ("P1",))


def test_a_section_among_others_in_a_table_is_found(two_regions: SpatialData, other: Make) -> None:
    with pytest.raises(LeakageError, match=r"same section .*\('P2', 'S9'\)"):
        split([two_regions], [other("P2", "S9")], ("P1", "P2"))


def test_sections_without_names_can_only_be_told_apart_as_objects(measured: SpatialData, other: Make) -> None:
    second = other("P1")
    for sdata in (measured, second):
        del sdata.tables["table"].obs["section"]
    assert split([measured], [second], ("P1",))[1] == [second]


def test_a_section_without_a_name_is_refused_as_the_same_object(measured: SpatialData, other: Make) -> None:
    second = other("P2")
    for sdata in (measured, second):
        del sdata.tables["table"].obs["section"]
    for validation in ([measured], [second, measured], {"name": measured}):
        with pytest.raises(LeakageError, match="The same section is in training and in validation: the same object"):
            split([measured], validation, ("P1", "P2"))


def test_patients_are_held_out_by_name(measured: SpatialData, other: Make) -> None:
    sections = [measured, other("P2"), other("P3"), other("P2", "S2")]
    training, held_out = split(sections, ["P2"])
    assert training == [sections[0], sections[2]]
    assert held_out == [sections[1], sections[3]]
    assert split(sections, "P2") == (training, held_out)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (["P2", "P7"], r"No patient \['P7'\] in the sections; there are \['P1', 'P2'\]"),
        (["P1", "P2"], "leaves no training sections"),
        ([], "validation is empty; give at least one section"),
    ],
)
def test_unfit_names(measured: SpatialData, other: Make, validation: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split([measured, other("P2")], validation)


def test_a_table_of_several_patients_cannot_be_held_out_in_part(two_regions: SpatialData, other: Make) -> None:
    with pytest.raises(ValueError, match=r"both training and held-out patients: \[\['P1', 'P2'\]\]"):
        split([two_regions, other("P3")], ["P2"])


def test_every_section_must_say_whose_it_is(measured: SpatialData, other: Make) -> None:
    with pytest.raises(KeyError, match=r"no column 'donor' .* it has \['instance', 'patient', 'region', 'section'\]"):
        split([measured], None, group_key="donor")
    second = other("P2")
    second.tables["table"].obs.loc[["s3", "s5"], "patient"] = np.nan
    with pytest.raises(ValueError, match=r"2 of 12 spots have no 'patient'.*Fill the column"):
        split([measured], [second])


def test_validation_is_sections_or_names(measured: SpatialData) -> None:
    with pytest.raises(TypeError, match="validation must be sections, or names of patients to hold out, got 5"):
        split([measured], 5)


def test_the_column_may_have_another_name(measured: SpatialData, other: Make) -> None:
    second = other("P1")
    for sdata, donor in ((measured, "D1"), (second, "D2")):
        sdata.tables["table"].obs["donor"] = donor
    assert split([measured], [second], group_key="donor")[1] == [second]
