"""Published splits into training and test sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from st_predict._errors import InvalidValueError
from st_predict._validated import Text, check

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fold", "list_splits", "splits"]

Split: TypeAlias = Literal[
    "cscc_histogene",
    "cscc_leave_one_patient_out",
    "hbc_leave_one_patient_out",
    "her2st_histogene",
    "her2st_leave_one_patient_out",
]

HER2ST = tuple(
    f"{patient}{number}"
    for patient, n_sections in zip("ABCDEFGH", (6, 6, 6, 6, 3, 3, 3, 3), strict=True)
    for number in range(1, n_sections + 1)
)

HBC = tuple(
    f"BC{patient}_{replicate}"
    for patients, replicates in (
        ((23209, 23268, 23269, 23287, 23377, 23506, 23895, 23903, 24105), ("C1", "C2", "D1")),
        ((23901,), ("C2", "D1")),
        (
            (23270, 23272, 23277, 23288, 23450, 23508, 23567, 23803, 23810, 23944, 24044, 24220, 24223),
            ("D2", "E1", "E2"),
        ),
    )
    for patient in patients
    for replicate in replicates
)

CSCC = tuple(f"{patient}_ST_rep{number}" for patient in ("P2", "P5", "P9", "P10") for number in (1, 2, 3))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """Fold of a cross-validation over sections.

    Parameters
    ----------
    name
        Name of the fold: the test patient or test section.
    train
        Training sections.
    test
        Test sections.
    validation
        Sections that choose the epoch; empty if the protocol has none.
    shared_patients
        Patients with sections in both training and test. :func:`st_predict.tl.train` and
        :func:`st_predict.tl.evaluate` refuse these unless ``allow_shared`` names them.
    note
        Source of the protocol, and whether training and test share patients.

    Examples
    --------
    >>> import st_predict as stp
    >>> fold = stp.datasets.splits("her2st_histogene")[0]
    >>> fold.test, fold.shared_patients
    (('A2',), ('A',))
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()
    shared_patients: tuple[str, ...] = ()
    note: str


def list_splits() -> list[Split]:
    """Names of the published splits.

    Returns
    -------
    list of str
        The names that :func:`st_predict.datasets.splits` accepts, sorted.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.datasets.list_splits()[:2]
    ['cscc_histogene', 'cscc_leave_one_patient_out']
    """
    return sorted(_SPLITS)


def splits(name: Split) -> tuple[Fold, ...]:
    """Return a published split of sections into training and test.

    Parameters
    ----------
    name
        Name of the split, one of :func:`st_predict.datasets.list_splits`:

        ``"her2st_leave_one_patient_out"``
            8 folds; each tests all sections of one patient of :func:`st_predict.datasets.her2st`.
        ``"her2st_histogene"``
            32 folds; each tests one section. The other sections of its patient are in training. A1 and H1-H3 are not used
            :cite:p:`Pang2021`; Hist2ST has the same folds :cite:p:`Zeng2022`.
        ``"cscc_leave_one_patient_out"``
            4 folds over the 12 sections of cutaneous squamous cell carcinoma of GSE144240 :cite:p:`Ji2020`; each tests one
            patient.
        ``"cscc_histogene"``
            12 folds over the same sections; each tests one section. The other sections of its patient are in training.
        ``"hbc_leave_one_patient_out"``
            23 folds over the 68 sections of :func:`st_predict.datasets.hbc`; each tests one patient, as ST-Net did :cite:p:`He2020`.

    Returns
    -------
    tuple of Fold
        The folds, in the order of the tested sections.

    Raises
    ------
    ValueError
        If the split does not exist; the message lists the names.

    Notes
    -----
    The split of M2OST :cite:p:`Wang2025` cannot be reproduced, so it is not included: the lists of sections are unpublished,
    the paper says 60 % training, 10 % validation and 30 % test, and the code shuffles the image files of a download with a
    seed and splits them 70/0/30, without regard to patients.

    Examples
    --------
    >>> import st_predict as stp
    >>> folds = stp.datasets.splits("her2st_leave_one_patient_out")
    >>> len(folds), folds[4].test
    (8, ('E1', 'E2', 'E3'))
    """
    if check("name", name, Text) not in _SPLITS:
        raise InvalidValueError(f"No split {name!r}; there are {list_splits()}.", "choose one of these")
    return _SPLITS[name]()


def _her2st_patient(section: str) -> str:
    return section[0]


def _first_part(section: str) -> str:
    return section.partition("_")[0]


def _leave_one_patient_out(
    sections: tuple[str, ...], patient_of: Callable[[str], str], *, source: str
) -> tuple[Fold, ...]:
    return tuple(
        Fold(
            name=patient,
            train=tuple(section for section in sections if patient_of(section) != patient),
            test=tuple(section for section in sections if patient_of(section) == patient),
            note=f"{source} Training and test share no patient.",
        )
        for patient in dict.fromkeys(map(patient_of, sections))
    )


def _leave_one_section_out(
    sections: tuple[str, ...], patient_of: Callable[[str], str], *, source: str
) -> tuple[Fold, ...]:
    return tuple(
        Fold(
            name=section,
            train=tuple(other for other in sections if other != section),
            test=(section,),
            shared_patients=(patient_of(section),),
            note=f"{source} Training and test share the patient: other sections of it are in training.",
        )
        for section in sections
    )


def _her2st_leave_one_patient_out() -> tuple[Fold, ...]:
    source = "Leave one patient out over the 36 sections of her2st (Andersson et al. 2021), as in TRIPLEX."
    return _leave_one_patient_out(HER2ST, _her2st_patient, source=source)


def _her2st_histogene() -> tuple[Fold, ...]:
    source = "Leave one section out of A2-G3 of her2st; code of HisToGene (https://github.com/maxpmx/HisToGene)."
    return _leave_one_section_out(HER2ST[1:33], _her2st_patient, source=source)


def _cscc_leave_one_patient_out() -> tuple[Fold, ...]:
    source = "Leave one patient out over the 12 sections of GSE144240 (Ji et al. 2020), as in TRIPLEX."
    return _leave_one_patient_out(CSCC, _first_part, source=source)


def _cscc_histogene() -> tuple[Fold, ...]:
    source = "Leave one section out of GSE144240; code of HisToGene (https://github.com/maxpmx/HisToGene)."
    return _leave_one_section_out(CSCC, _first_part, source=source)


def _hbc_leave_one_patient_out() -> tuple[Fold, ...]:
    source = "Leave one patient out over the 68 sections of 29ntw7sh4r, as in ST-Net (He et al. 2020)."
    return _leave_one_patient_out(HBC, _first_part, source=source)


_SPLITS: dict[Split, Callable[[], tuple[Fold, ...]]] = {
    "cscc_histogene": _cscc_histogene,
    "cscc_leave_one_patient_out": _cscc_leave_one_patient_out,
    "hbc_leave_one_patient_out": _hbc_leave_one_patient_out,
    "her2st_histogene": _her2st_histogene,
    "her2st_leave_one_patient_out": _her2st_leave_one_patient_out,
}
