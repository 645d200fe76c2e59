"""Samples of large data sets: lists from a downloaded copy, and download of HEST-1k."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_predict._collections import hest_patient, read_hest_metadata, read_stimage_metadata, stimage_slides
from st_predict._errors import Advice, InvalidValueError, NotFoundError
from st_predict._files import OFFLINE, cache_dir, is_offline
from st_predict._progress import hub_bars, shows_progress
from st_predict._validated import File, Text, Texts, check
from st_predict.io import read_hest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from spatialdata import SpatialData

__all__ = ["hest", "list_hest", "list_stimage"]

HEST = "MahmoodLab/hest"
"""Data set on the Hugging Face Hub."""

_GATE = (
    f"HEST-1k is free and needs consent: log in at https://huggingface.co/datasets/{HEST}, accept the conditions (CC BY-NC-SA 4.0, "
    "samples have licences of their own), make a token, and run 'hf auth login' or set HF_TOKEN."
)


def list_hest(
    folder: str | PathLike[str],
    *,
    organ: str | Iterable[str] | None = None,
    technology: str | Iterable[str] | None = None,
    species: str | Iterable[str] | None = None,
) -> pd.DataFrame:
    """List the samples of HEST-1k :cite:p:`Jaume2024` from the metadata in a downloaded copy.

    Parameters
    ----------
    folder
        Copy of the data set, with the table ``HEST_v*.csv`` or with ``metadata/*.json``.
    organ
        Organs to keep, such as ``"Breast"``, in any letter case.
    technology
        Technologies to keep: ``"Visium"``, ``"Visium HD"``, ``"Xenium"``, ``"Spatial Transcriptomics"``.
    species
        Species to keep: ``"Homo sapiens"``, ``"Mus musculus"``.

    Returns
    -------
    DataFrame
        One row per sample, by identifier, with the columns of the metadata. ``patient`` is unique over data sets
        (several studies have a "Patient 1"), and missing where the metadata name nobody. ``on_disk`` says whether
        :func:`st_predict.io.read_hest` finds all files.

    Raises
    ------
    FileNotFoundError
        If ``folder`` has no metadata.
    KeyError
        If no sample has such an organ, technology or species; the message lists existing ones.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> samples = pd.DataFrame({"id": ["TENX95", "NCBI1"], "organ": ["Breast", "Skin"], "patient": ["Patient 1", ""]})
    >>> samples["st_technology"], samples["species"] = "Visium", "Homo sapiens"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     samples.to_csv(Path(folder) / "HEST_v1_1_0.csv", index=False)
    ...     stp.datasets.list_hest(folder, organ="breast").index.tolist()
    ['TENX95']
    """
    root = Path(check("folder", folder, File))
    tables = sorted(root.glob("HEST_v*.csv"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.stem)])
    if tables:
        frame = pd.read_csv(tables[-1], encoding="utf-8-sig", dtype={"patient": str}).set_index("id")
    else:
        paths = sorted((root / "metadata").glob("*.json"))
        frame = pd.DataFrame({path.stem: read_hest_metadata(path) for path in paths}).T.rename_axis("id")
    if frame.empty:
        raise FileNotFoundError(f"{str(root)!r} has neither HEST_v*.csv nor metadata/*.json.")
    frame["patient"] = [hest_patient(dict(row)) for _, row in frame.iterrows()]
    frame["on_disk"] = [
        all((root / part / f"{name}.{ending}").is_file() for part, ending in _HEST_FILES) for name in frame.index
    ]
    return _filtered(frame, {"organ": organ, "st_technology": technology, "species": species})


_HEST_FILES = (("st", "h5ad"), ("wsis", "tif"), ("metadata", "json"))
_ARGUMENTS = {"st_technology": "technology", "tech": "technology"}


def list_stimage(
    folder: str | PathLike[str],
    *,
    tissue: str | Iterable[str] | None = None,
    technology: str | Iterable[str] | None = None,
    species: str | Iterable[str] | None = None,
) -> pd.DataFrame:
    """List the slides of STimage-1K4M :cite:p:`Chen2024` from the metadata in a downloaded copy.

    Parameters
    ----------
    folder
        Copy of the data set, with ``meta/meta_all_gene*.csv`` (the newest is read), and slides in ``ST``, ``Visium`` and
        ``VisiumHD``.
    tissue
        Tissues to keep, such as ``"breast"``, in any letter case.
    technology
        Technologies to keep: ``"ST"``, ``"Visium"``, ``"VisiumHD"``.
    species
        Species to keep, such as ``"human"``.

    Returns
    -------
    DataFrame
        One row per slide, by name. ``on_disk`` says whether its spot coordinates are in ``folder``. No column names the
        patient.

    Raises
    ------
    FileNotFoundError
        If ``folder`` has no ``meta/meta_all_gene*.csv``.
    KeyError
        If no slide has such a tissue, technology or species; the message lists existing ones.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> import st_predict as stp
    >>> slides = pd.DataFrame({"slide": ["Human_Breast_1", "Mouse_Brain_1"], "tissue": ["breast", "brain"]})
    >>> slides["tech"], slides["species"] = "Visium", ["human", "mouse"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "meta").mkdir()
    ...     slides.to_csv(Path(folder) / "meta" / "meta_all_gene.csv", index=False)
    ...     stp.datasets.list_stimage(folder, tissue="breast").index.tolist()
    ['Human_Breast_1']
    """
    root = Path(check("folder", folder, File))
    frame = read_stimage_metadata(root)
    if frame is None:
        raise FileNotFoundError(f"{str(root)!r} has no meta/meta_all_gene*.csv.")
    there = stimage_slides(root)
    frame["on_disk"] = [name in there for name in frame.index]
    return _filtered(frame, {"tissue": tissue, "tech": technology, "species": species})


def _filtered(frame: pd.DataFrame, wanted: dict[str, Any]) -> pd.DataFrame:
    """Keep the rows with the wanted values, in any letter case."""
    kept = pd.Series(data=True, index=frame.index)
    for column, values in wanted.items():
        argument = _ARGUMENTS.get(column, column)
        chosen = check(argument, values, Texts | None)
        if chosen is None:
            continue
        own = (frame[column] if column in frame else pd.Series("", index=frame.index)).astype(str).str.strip()
        folded = {name.casefold() for name in chosen}
        if unknown := sorted(folded - set(own.str.casefold())):
            raise NotFoundError(
                f"No sample has the {argument} {unknown[0]!r}; there are {sorted(set(own))}.",
                Advice("correct {}", argument),
            )
        kept &= own.str.casefold().isin(folded)
    return frame[kept]


@shows_progress
def hest(sample: str, *, folder: str | PathLike[str] | None = None, progress: bool | None = None) -> SpatialData:
    """Read a sample of HEST-1k :cite:p:`Jaume2024`, downloaded from the Hugging Face Hub if missing.

    HEST-1k needs consent before a download: log in at https://huggingface.co/datasets/MahmoodLab/hest, accept the conditions, and
    give a token to ``hf auth login`` or in the environment variable ``HF_TOKEN``. A slide has 0.1 to 5 GB.

    Parameters
    ----------
    sample
        Identifier of the sample, such as ``"TENX95"``.
    folder
        Copy of the data set, into which missing files are downloaded. By default ``hest`` in ``ST_PREDICT_CACHE`` or in the user's
        cache.
    progress
        Whether to show progress bars. By default in a terminal or a notebook, after two seconds.

    Returns
    -------
    SpatialData
        The sample; see :func:`st_predict.io.read_hest`.

    Raises
    ------
    ConnectionError
        If a file is missing and cannot be downloaded: no consent, no token, no network, or no package ``huggingface_hub``.
    ValueError
        If the sample does not exist.

    Examples
    --------
    >>> import st_predict as stp
    >>> sdata = stp.datasets.hest("TENX95")  # doctest: +SKIP
    """
    sample, given = check("sample", sample, Text), check("folder", folder, File | None)
    root = cache_dir() / "hest" if given is None else Path(given)
    if not re.fullmatch(r"\w+", sample):
        raise InvalidValueError(
            f"sample must be a name such as TENX95, got {sample!r}.", Advice("correct {}", "sample")
        )
    wanted = [f"{part}/{sample}.{ending}" for part, ending in _HEST_FILES]
    if missing := [name for name in wanted if not (root / name).is_file()]:
        _download(missing, root)
    return read_hest(root, sample)


def _download(names: list[str], root: Path) -> None:
    if is_offline():
        raise ConnectionError(f"{names} are not in {str(root)!r}, and {OFFLINE} forbids downloads.")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise ConnectionError(
            f"{names} are not in {str(root)!r}, and downloading needs the package huggingface_hub: pip install huggingface_hub. {_GATE}"
        ) from error
    for name in names:
        try:
            with hub_bars():
                hf_hub_download(HEST, name, repo_type="dataset", local_dir=root)
        except (GatedRepoError, RepositoryNotFoundError) as error:
            raise ConnectionError(f"The Hugging Face Hub gives no access to {name}. {_GATE}") from error
        except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                raise InvalidValueError(
                    f"HEST-1k has no file {name}.", Advice("choose another sample with {}", "sample")
                ) from error
            if getattr(error, "errno", None) is not None:  # an error of the disk
                raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConnectionError(f"{name} could not be downloaded: {said} {_GATE}") from error
