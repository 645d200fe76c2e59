"""Sections of breast cancer (He et al. 2020) and squamous cell carcinoma (Ji et al. 2020), from manually downloaded folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from st_predict._errors import Advice, InvalidTypeError, InvalidValueError
from st_predict._validated import File, check
from st_predict.datasets._splits import CSCC, HBC
from st_predict.io import read_legacy_st

if TYPE_CHECKING:
    from os import PathLike

    from spatialdata import SpatialData

__all__ = ["cscc", "hbc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """File names of a data set; ``{section}`` stands for the section."""

    name: str
    page: str
    sections: tuple[str, ...]
    files: dict[str, str]
    optional: tuple[str, ...] = ()


_PREFIX = r"(?:GSM\d+_)?"  # prefix of files from the Gene Expression Omnibus

_CSCC = _Layout(
    name="cscc",
    page="https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE144239, GSE144239_RAW.tar",
    sections=CSCC,
    files={
        "counts": rf"{_PREFIX}{{section}}_stdata\.tsv(?:\.gz)?",
        "spots": rf"{_PREFIX}spot_data-selection-{{section}}\.tsv(?:\.gz)?",
        "image": rf"{_PREFIX}{{section}}\.(?:jpe?g|png|tiff?)",
    },
)
_HBC = _Layout(
    name="hbc",
    page="https://data.mendeley.com/datasets/29ntw7sh4r/5",
    sections=HBC,
    files={
        "counts": r"{section}_stdata\.tsv(?:\.gz)?",
        "spots": r"spots_{section}\.csv(?:\.gz)?",
        "image": r"HE_{section}\.(?:jpe?g|png|tiff?)",
        "labels": r"{section}_Coords\.tsv(?:\.gz)?",
    },
    optional=("labels",),
)


@overload
def cscc(sections: str, *, folder: str | PathLike[str]) -> SpatialData: ...


@overload
def cscc(sections: Iterable[str], *, folder: str | PathLike[str]) -> dict[str, SpatialData]: ...


def cscc(sections: str | Iterable[str], *, folder: str | PathLike[str]) -> SpatialData | dict[str, SpatialData]:
    """Read sections of cutaneous squamous cell carcinoma :cite:p:`Ji2020` from a manually downloaded folder.

    12 sections of four patients, ``"P2_ST_rep1"`` to ``"P10_ST_rep3"``: legacy Spatial Transcriptomics, spots of 100 um at a pitch
    of 200 um. Download ``GSE144239_RAW.tar`` from the Gene Expression Omnibus, unpack it, and run ``gunzip *.jpg.gz``.

    Parameters
    ----------
    sections
        Name of one section, or several names.
    folder
        Folder that has, at any depth, ``{section}_stdata.tsv``, ``spot_data-selection-{section}.tsv`` and ``{section}.jpg``, with
        or without an Omnibus number in front. Text files may be compressed by gzip.

    Returns
    -------
    SpatialData or dict of str to SpatialData
        One section for one name, else a mapping from name to section, with the elements of
        :func:`st_predict.io.read_legacy_st`; the patient is the first part of the name, ``"P2"``.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says how it is called and where it comes from.
    ValueError
        If the section does not exist, a file is there twice, or a file is damaged.

    Examples
    --------
    >>> import st_predict as stp
    >>> sections = stp.datasets.cscc(["P2_ST_rep1", "P5_ST_rep1"], folder="GSE144239")  # doctest: +SKIP
    """
    return _read(_CSCC, sections, folder)


@overload
def hbc(sections: str, *, folder: str | PathLike[str]) -> SpatialData: ...


@overload
def hbc(sections: Iterable[str], *, folder: str | PathLike[str]) -> dict[str, SpatialData]: ...


def hbc(sections: str | Iterable[str], *, folder: str | PathLike[str]) -> SpatialData | dict[str, SpatialData]:
    """Read sections of breast cancer :cite:p:`He2020` from a manually downloaded folder.

    68 sections of 23 patients, ``"BC23209_C1"`` to ``"BC24223_E2"``: legacy Spatial Transcriptomics, spots of 100 um at a pitch of
    200 um. Genes are Ensembl identifiers. Download all files of the data set from Mendeley Data (29ntw7sh4r, CC-BY-4.0).

    Parameters
    ----------
    sections
        Name of one section, or several names.
    folder
        Folder that has, at any depth, ``{section}_stdata.tsv``, ``spots_{section}.csv`` and ``HE_{section}.jpg``, and
        ``{section}_Coords.tsv`` if a pathologist labelled spots. Text files may be compressed by gzip. ``BT`` instead of ``BC``
        is accepted.

    Returns
    -------
    SpatialData or dict of str to SpatialData
        One section for one name, else a mapping from name to section, with the elements of
        :func:`st_predict.io.read_legacy_st`; the patient is the first part of the name, ``"BC23209"``.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says how it is called and where it comes from.
    ValueError
        If the section does not exist, a file is there twice, or a file is damaged.

    Examples
    --------
    >>> import st_predict as stp
    >>> sections = stp.datasets.hbc(["BC23209_C1", "BC23268_C1"], folder="29ntw7sh4r")  # doctest: +SKIP
    """
    return _read(_HBC, sections, folder)


def _read(
    layout: _Layout, sections: str | Iterable[str], folder: str | PathLike[str]
) -> SpatialData | dict[str, SpatialData]:
    root = Path(check("folder", folder, File))
    if not isinstance(sections, str | Iterable):
        raise InvalidTypeError(f"sections must be one name or several, got {sections!r}.")
    names = [sections] if isinstance(sections, str) else list(sections)
    for name in names:
        if name not in layout.sections:
            raise InvalidValueError(f"{layout.name} has no section {name!r}; there are {sorted(layout.sections)}.")
    if not root.is_dir():
        raise FileNotFoundError(f"Found no folder {str(root)!r}. Download the files from {layout.page}.")
    there = [path for path in root.rglob("*") if path.is_file()]
    files = {name: _find(layout, name, there, root) for name in names}  # find all before reading any
    found = {
        name: read_legacy_st(
            parts["counts"],
            parts["spots"],
            parts["image"],
            labels=parts.get("labels"),
            section=name,
            patient=name.partition("_")[0],
        )
        for name, parts in files.items()
    }
    return found[sections] if isinstance(sections, str) else found


def _find(layout: _Layout, section: str, there: list[Path], root: Path) -> dict[str, Path]:
    """Files of a section, by content."""
    found = {}
    name = re.sub("^BC", "B[CT]", re.escape(section))
    for part, pattern in layout.files.items():
        expression = re.compile(pattern.replace("{section}", name))
        matching = [path for path in there if expression.fullmatch(path.name)]
        if len(matching) > 1:
            raise InvalidValueError(
                f"The {part} of {section} are in {root} more than once: {[str(path.relative_to(root)) for path in sorted(matching)]}.",
                "move all but one away",
                Advice("name a folder inside with {}", "folder"),
            )
        if matching:
            found[part] = matching[0]
        elif part not in layout.optional:
            raise FileNotFoundError(_missing(layout, section, part, there=there, root=root))
    return found


def _missing(layout: _Layout, section: str, part: str, *, there: list[Path], root: Path) -> str:
    plain = layout.files[part].replace(_PREFIX, "").replace("(?:\\.gz)?", "").replace("(?:jpe?g|png|tiff?)", "jpg")
    name = plain.replace("\\", "").replace("{section}", section)
    packed = [path.name for path in there if path.name.endswith(f"{name}.gz")]
    if packed:
        return f"The {part} of {section} is compressed: run 'gunzip {packed[0]}' in {str(root)!r}."
    return f"Found no {name} in {str(root)!r}. Download the files from {layout.page}."
