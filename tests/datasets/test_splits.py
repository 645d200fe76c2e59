from __future__ import annotations

import dataclasses
import json
from importlib.resources import files

import pytest

from st_predict import datasets

PATIENTS = {
    "her2st": lambda section: section[0],
    "cscc": lambda section: section.split("_")[0],
    "hbc": lambda section: section.split("_")[0],
}


def her2st_sections() -> list[str]:
    """Those of the registry of downloads."""
    registry = json.loads(files("st_predict.datasets").joinpath("her2st.json").read_text(encoding="utf-8"))
    return sorted(path.split("/")[-1][:2] for path in registry["files"] if path.startswith("data/ST-cnts/"))


@pytest.mark.parametrize("name", datasets.list_splits())
def test_folds_are_consistent(name):
    patient_of = PATIENTS[name.partition("_")[0]]
    folds = datasets.splits(name)
    tested = [section for fold in folds for section in fold.test]
    assert len(tested) == len(set(tested))
    for fold in folds:
        assert fold.train and fold.test and not set(fold.train) & set(fold.test)
        assert set(fold.train) | set(fold.test) == set(tested)
        assert fold.validation == ()
        shared = set(map(patient_of, fold.train)) & set(map(patient_of, fold.test))
        assert set(fold.shared_patients) == shared
        assert ("share no patient" in fold.note) == (not shared)
    with pytest.raises(dataclasses.FrozenInstanceError):
        folds[0].train = ()


def test_her2st():
    folds = datasets.splits("her2st_leave_one_patient_out")
    assert [fold.name for fold in folds] == list("ABCDEFGH")
    assert sorted(section for fold in folds for section in fold.test) == her2st_sections()
    sections = datasets.splits("her2st_histogene")
    # sorted names 1 to 32 of 36
    assert [fold.test for fold in sections] == [(name,) for name in her2st_sections()[1:33]]
    assert (sections[0].name, sections[-1].name, len(sections)) == ("A2", "G3", 32)
    assert len(sections[0].train) == 31 and sections[0].shared_patients == ("A",)


def test_cscc():
    folds = datasets.splits("cscc_leave_one_patient_out")
    assert [fold.name for fold in folds] == ["P2", "P5", "P9", "P10"]
    assert folds[3].test == ("P10_ST_rep1", "P10_ST_rep2", "P10_ST_rep3")
    assert len(datasets.splits("cscc_histogene")) == 12


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match=r"No split 'her2st_m2ost'; there are .*'her2st_histogene'"):
        datasets.splits("her2st_m2ost")


def test_hbc():
    folds = datasets.splits("hbc_leave_one_patient_out")
    assert len(folds) == 23
    assert sum(len(fold.test) for fold in folds) == 68
    (small,) = (fold for fold in folds if len(fold.test) == 2)
    assert small.test == ("BC23901_C2", "BC23901_D1")
