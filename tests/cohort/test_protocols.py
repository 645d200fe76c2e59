"""Protocols make the folds of their publications, and say what leaks."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

import st_predict as stp
from st_predict.cohort import _fit as fit
from st_predict.cohort._folds import check_folds, leaks_of
from st_predict.datasets._splits import HER2ST

if TYPE_CHECKING:
    from pathlib import Path

PATIENTS = {name: frozenset(name[0]) for name in HER2ST}


@pytest.mark.parametrize("name", stp.cohort.list_protocols())
def test_what_is_said_to_leak_leaks(name: str) -> None:
    """Leaks in words are the leaks of the folds, and no others are in them."""
    protocol = stp.cohort.get_protocol(name)
    folds = check_folds(protocol.folds(PATIENTS), PATIENTS, protocol)
    found = {leak for fold in folds for leak in leaks_of(fold, PATIENTS, protocol, chosen=True)}
    assert found == set(protocol.leaks)
    assert ("leak" in protocol.note.lower()) and ("Nothing leaks" in protocol.note) == (not protocol.leaks)
    for fold in folds:
        train, test = ({section[0] for section in side} for side in (fold.train, fold.test))
        assert bool(train & test) == ("patient" in protocol.leaks)
        assert bool(set(fold.validation) & set(fold.test)) == ("epoch" in protocol.leaks)
        assert not set(fold.train) & (set(fold.test) | set(fold.validation))


def test_leave_one_patient_out_has_the_published_test_sections() -> None:
    published = stp.datasets.splits("her2st_leave_one_patient_out")
    for name in ("lopo", "hest", "stnet"):
        folds = stp.cohort.get_protocol(name).folds(PATIENTS)
        assert [set(fold.test) for fold in folds] == [set(fold.test) for fold in published]
    lopo = stp.cohort.get_protocol("lopo")
    chosen = [fold.validation[0][0] for fold in lopo.folds(PATIENTS)]
    assert chosen == list("BCDEFGHA")
    assert lopo.seeds == (0, 1, 2)
    assert all(set(fold.train) | set(fold.validation) | set(fold.test) == set(HER2ST) for fold in lopo.folds(PATIENTS))


def test_histogene_leaves_one_section_out() -> None:
    folds = stp.cohort.get_protocol("histogene").folds({n: p for n, p in PATIENTS.items() if n in HER2ST[1:33]})
    published = stp.datasets.splits("her2st_histogene")
    assert [(fold.name, fold.train, fold.test, fold.shared_patients) for fold in folds] == [
        (fold.name, fold.train, fold.test, fold.shared_patients) for fold in published
    ]


def test_m2ost_shuffles_sections_with_its_seed() -> None:
    names = sorted(HER2ST)
    random.Random(1553).shuffle(names)
    (code,), (paper,) = (stp.cohort.get_protocol(f"m2ost-{name}").folds(PATIENTS) for name in ("code", "paper"))
    assert code.train == tuple(names[:25])
    assert code.validation == code.test == tuple(names[25:]) == paper.test
    assert (len(paper.train), len(paper.validation), len(paper.test)) == (21, 4, 11)
    assert len({name[0] for name in code.test}) == 6  # patients, all with sections in training


def test_two_patients_have_no_validation() -> None:
    patients = {"C2": {"C"}, "C3": {"C"}, "B4": {"B"}}
    folds = stp.cohort.get_protocol("lopo").folds(patients)
    assert [(fold.name, fold.train, fold.validation, fold.test) for fold in folds] == [
        ("B", ("C2", "C3"), (), ("B4",)),
        ("C", ("B4",), (), ("C2", "C3")),
    ]


@pytest.mark.parametrize(
    ("name", "patients", "message"),
    [
        ("lopo", {"C2": {"C"}, "C3": {"C"}}, r"All sections are of the patient \['C'\]"),
        ("lopo", {"C2": {"C", "D"}, "C3": {"C"}}, r"\['C2'\] have several or none"),
        ("histogene", {"C2": {"C"}}, "at least 2 sections, got 1"),
        ("m2ost-code", {"C2": {"C"}, "C3": {"C"}}, "at least 4 sections, got 2"),
    ],
)
def test_too_few_patients(name: str, patients: dict[str, set[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stp.cohort.get_protocol(name).folds(patients)


def test_the_paper_of_m2ost_never_chooses_the_epoch_on_test_sections() -> None:
    for n in range(4, 12):
        (fold,) = stp.cohort.get_protocol("m2ost-paper").folds({f"S{i}": {"A"} for i in range(n)})
        assert fold.validation
        assert fold.train
        assert not set(fold.validation) & set(fold.test)


def test_a_leaking_protocol_is_named_in_every_row(tmp_path: Path) -> None:
    sections = stp.datasets.simulate(2, 3, n_genes=12, shape=(720, 880), mpp=1.2, seed=4).sections
    table = stp.cohort.cross_validate(sections, ["mean"], out=tmp_path, protocol="m2ost-code", panel=4, device="cpu")
    assert table[["protocol", "leaks", "held_out"]].drop_duplicates().to_numpy().tolist() == [
        ["m2ost-code", "patient, panel, epoch", "section"]
    ]
    panel = stp.pp.select_panel(list(sections.values()), n_genes=4, method="m2ost")
    assert set(table["gene"]) == set(panel)
    hest = stp.cohort.cross_validate(sections, ["ridge"], out=tmp_path, protocol="hest", panel=4, device="cpu")
    assert hest["leaks"].unique().tolist() == ["panel"]
    assert hest["gene"].nunique() == 4  # one panel for all folds


def test_all_models_of_a_protocol_predict_its_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    train = fit.train

    def spy(*args: object, **given: object) -> object:
        result = train(*args, **given)
        seen[str(args[1])] = result.card.target.transform
        return result

    monkeypatch.setattr(fit, "train", spy)
    sections = stp.datasets.simulate(2, 1, n_genes=8, shape=(720, 880), mpp=1.2).sections
    models = {"mean": "mean", "ridge": "ridge"}
    stp.cohort.cross_validate(sections, models, out=tmp_path, protocol="stnet", panel=8, panel_method="mean")
    assert seen == {"mean": "log_proportion", "ridge": "log_proportion"}
