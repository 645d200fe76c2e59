"""Evaluation protocols by name: folds, panel and preset of a publication, and what leaks from the test sections."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from st_predict._errors import InvalidValueError
from st_predict._validated import Text, check
from st_predict.datasets import Fold
from st_predict.specs import TargetSpec

__all__ = [
    "EvaluationProtocol",
    "Leak",
    "PanelMethod",
    "ProtocolName",
    "get_protocol",
    "list_protocols",
    "patients_on_several_sides",
]

Leak: TypeAlias = Literal["patient", "panel", "epoch"]
PanelMethod: TypeAlias = Literal["m2ost", "mean", "hvg", "spatial"]
ProtocolName: TypeAlias = Literal["hest", "histogene", "lopo", "m2ost-code", "m2ost-paper", "stnet"]
Patients: TypeAlias = Mapping[str, frozenset[str]]
"""Patients of each section."""

M2OST_SEED = 1553


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationProtocol:
    """Rules of an evaluation: folds, panel, training preset and seeds.

    Parameters
    ----------
    name
        Name of the protocol.
    note
        Source, leak and differences, in words.
    leaks
        Information about test sections that reaches the training. ``"patient"``: other sections of test patients are in
        training. ``"panel"``: genes are selected on all sections. ``"epoch"``: test sections choose the epoch.
    n_genes
        Size of the panel.
    panel
        Method of :func:`st_predict.pp.select_panel`.
    preset
        Preset of :func:`st_predict.tl.train`.
    target
        Units that all models predict; ``None`` for the preset's.
    config
        Fields of :class:`st_predict.tl.TrainConfig` that replace the preset's.
    seeds
        Random seeds of training.
    make_folds
        Function from the patients of each section to the folds.

    Examples
    --------
    >>> import st_predict as stp
    >>> protocol = stp.cohort.get_protocol("m2ost-code")
    >>> protocol.leaks
    ('patient', 'panel', 'epoch')
    >>> folds = protocol.folds({"A1": {"A"}, "A2": {"A"}, "B1": {"B"}, "B2": {"B"}})
    >>> folds[0].validation == folds[0].test  # the epoch is chosen on the test sections
    True
    """

    name: ProtocolName
    note: str
    leaks: tuple[Leak, ...] = ()
    n_genes: int
    panel: PanelMethod
    preset: Literal["recommended", "paper", "original"]
    target: TargetSpec | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    make_folds: Callable[[Patients], tuple[Fold, ...]] = field(repr=False)

    def folds(self, patients: Mapping[str, set[str] | frozenset[str]]) -> tuple[Fold, ...]:
        """Return the folds of these sections.

        Parameters
        ----------
        patients
            Patients of each section, by its name.

        Returns
        -------
        tuple of Fold
            At least one fold.

        Raises
        ------
        ValueError
            If there are too few sections or patients.
        """
        return self.make_folds({name: frozenset(found) for name, found in patients.items()})


def list_protocols() -> list[str]:
    """Names of the evaluation protocols.

    Returns
    -------
    list of str
        The names that :func:`get_protocol` accepts, sorted.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.cohort.list_protocols()
    ['hest', 'histogene', 'lopo', 'm2ost-code', 'm2ost-paper', 'stnet']
    """
    return sorted(_PROTOCOLS)


def get_protocol(name: ProtocolName) -> EvaluationProtocol:
    """Return an evaluation protocol.

    Parameters
    ----------
    name
        Name of the protocol, one of :func:`list_protocols`:

        ``"lopo"``
            Leave one patient out; another patient chooses the epoch. Nothing leaks. The default.
        ``"hest"``
            The HEST benchmark :cite:p:`Jaume2024`: leave one patient out, 50 genes selected on all sections.
        ``"stnet"``
            ST-Net :cite:p:`He2020`: leave one patient out, 250 genes selected on all sections.
        ``"histogene"``
            HisToGene :cite:p:`Pang2021`: leave one section out, genes selected on all sections.
        ``"m2ost-paper"``, ``"m2ost-code"``
            M2OST :cite:p:`Wang2025`, as its paper says and as its code does: one random split of sections.

    Returns
    -------
    EvaluationProtocol
        The protocol; ``note`` and ``leaks`` say what leaks.

    Raises
    ------
    ValueError
        If the protocol does not exist; the message lists the names.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.cohort.get_protocol("lopo").leaks
    ()
    """
    if check("name", name, Text) not in _PROTOCOLS:
        raise InvalidValueError(f"No protocol {name!r}; there are {list_protocols()}.", "choose one of these")
    return _PROTOCOLS[name]


def _each_patient(patients: Patients) -> list[str]:
    """Return the patients in order; refuse a single one, and sections of several."""
    if mixed := sorted(name for name, found in patients.items() if len(found) != 1):
        raise InvalidValueError(f"Each section must have spots of one patient; {mixed} have several or none.")
    found = sorted({patient for (patient,) in patients.values()})
    if len(found) < 2:
        raise InvalidValueError(
            f"All sections are of the patient {found}, so none can be left out.",
            "add sections of other patients",
            "give folds of your own",
        )
    return found


def _of(patients: Patients, which: set[str]) -> tuple[str, ...]:
    return tuple(name for name, found in patients.items() if found <= which)


def _leave_patient_out(patients: Patients) -> tuple[Fold, ...]:
    everyone = _each_patient(patients)
    return tuple(
        Fold(
            name=patient,
            train=_of(patients, set(everyone) - {patient}),
            test=_of(patients, {patient}),
            note="Leave one patient out, without validation.",
        )
        for patient in everyone
    )


def _leave_patient_out_validated(patients: Patients) -> tuple[Fold, ...]:
    """Hold out the next patient for validation; of two patients, none is left for it."""
    everyone = _each_patient(patients)
    folds = []
    for place, patient in enumerate(everyone):
        chooses = {everyone[(place + 1) % len(everyone)]} if len(everyone) > 2 else set()
        fold = Fold(
            name=patient,
            train=_of(patients, set(everyone) - {patient} - chooses),
            test=_of(patients, {patient}),
            validation=_of(patients, chooses),
            note="Leave one patient out; the next patient chooses the epoch.",
        )
        folds.append(fold)
    return tuple(folds)


def _leave_section_out(patients: Patients) -> tuple[Fold, ...]:
    _refuse_few(patients, 2)
    return tuple(
        _shared(
            patients,
            Fold(
                name=name,
                train=tuple(other for other in patients if other != name),
                test=(name,),
                note="Leave one section out; other sections of its patient are in training.",
            ),
        )
        for name in patients
    )


def _split_at_random(patients: Patients, *, n_validation: float) -> tuple[Fold, ...]:
    """Shuffle the sorted sections with the seed of the code of M2OST, and split them."""
    _refuse_few(patients, 4)
    names = sorted(patients)
    random.Random(M2OST_SEED).shuffle(names)  # the published code's generator
    end = int(len(names) * 0.7)
    start = end - max(1, round(len(names) * n_validation)) if n_validation else end
    train, between, test = tuple(names[:start]), tuple(names[start:end]), tuple(names[end:])
    note = f"Sorted sections, shuffled with the seed {M2OST_SEED}, whatever their patient."
    fold = Fold(name="random", train=train, test=test, validation=between or test, note=note)
    return (_shared(patients, fold),)


def _as_code(patients: Patients) -> tuple[Fold, ...]:
    return _split_at_random(patients, n_validation=0)


def _as_paper(patients: Patients) -> tuple[Fold, ...]:
    return _split_at_random(patients, n_validation=0.1)


def _shared(patients: Patients, fold: Fold) -> Fold:
    """Declare the patients that are on several sides of a fold."""
    return replace(fold, shared_patients=tuple(sorted(patients_on_several_sides(fold, patients))))


def patients_on_several_sides(fold: Fold, patients: Patients) -> set[str]:
    """Return patients of whom sections are on more than one side of a fold."""
    train, validation, test = (
        {patient for name in side for patient in patients[name]} for side in (fold.train, fold.validation, fold.test)
    )
    return (train & (validation | test)) | (validation & test)


def _refuse_few(patients: Patients, least: int) -> None:
    if len(patients) < least:
        raise InvalidValueError(
            f"This protocol needs at least {least} sections, got {len(patients)}.", "add sections", "give folds"
        )


_PROTOCOLS: dict[ProtocolName, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        EvaluationProtocol(
            name="lopo",
            note="Leave one patient out. Panel, gene proportions and every other fit use the training sections only; the next "
            "patient, of the remaining ones, chooses the epoch. With two patients there is no validation, and the last epoch "
            "is kept. Nothing leaks.",
            n_genes=250,
            panel="spatial",
            preset="recommended",
            seeds=(0, 1, 2),
            make_folds=_leave_patient_out_validated,
        ),
        EvaluationProtocol(
            name="hest",
            note="The HEST benchmark: leave one patient out, 50 variable genes, log1p of raw counts, which follow sequencing "
            "depth; its model is ridge regression on 256 principal components. Leak: genes are selected on all sections. "
            "Published scores pool the spots of all test sections; here they are within sections.",
            leaks=("panel",),
            n_genes=50,
            panel="hvg",
            preset="original",
            target=TargetSpec(transform="log1p"),
            make_folds=_leave_patient_out,
        ),
        EvaluationProtocol(
            name="stnet",
            note="ST-Net: leave one patient out, the 250 genes of highest mean. Leak: genes are selected on all sections. The "
            "inner cross-validation that chose the number of epochs is not reproduced: the last epoch is kept.",
            leaks=("panel",),
            n_genes=250,
            panel="mean",
            preset="original",
            target=TargetSpec(transform="log_proportion", over="all"),
            make_folds=_leave_patient_out,
        ),
        EvaluationProtocol(
            name="histogene",
            note="HisToGene: leave one section out. Leaks: other sections of the test patient are in training, often the next "
            "cuts of one block; genes are selected on all sections. The published list of 785 genes is not reproduced.",
            leaks=("patient", "panel"),
            n_genes=785,
            panel="hvg",
            preset="original",
            target=TargetSpec(transform="log10_total", total=1e4),
            make_folds=_leave_section_out,
        ),
        EvaluationProtocol(
            name="m2ost-paper",
            note="M2OST as its paper says: 60 % of the sections train, 10 % choose the epoch, 30 % test. Leaks: sections are "
            "split, not patients; genes are selected on all sections. The published lists of sections do not exist, so the "
            "shuffle is the code's.",
            leaks=("patient", "panel"),
            n_genes=250,
            panel="m2ost",
            preset="paper",
            make_folds=_as_paper,
        ),
        EvaluationProtocol(
            name="m2ost-code",
            note="M2OST as its code does: 70 % of the sections train, 30 % test, 200 epochs with batches of 48. Leaks: sections "
            "are split, not patients; genes are selected on all sections; the test sections choose the epoch.",
            leaks=("patient", "panel", "epoch"),
            n_genes=250,
            panel="m2ost",
            preset="paper",
            config={"epochs": 200, "batch_size": 48},
            make_folds=_as_code,
        ),
    )
}
