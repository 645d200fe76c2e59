"""Where the data of a slide is: elements, counts, genes, patients, resolution."""

from __future__ import annotations

from collections.abc import Mapping  # read by pydantic
from dataclasses import field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator

from st_predict._identifiers import GeneAliases
from st_predict._keys import Keys
from st_predict._stain import Stain
from st_predict._validated import Flag, Positive, Text, validated

__all__ = ["Duplicates", "GeneMatching", "Missing", "Where"]

Duplicates: TypeAlias = Literal["error", "sum", "first"]
Missing: TypeAlias = Literal["error", "drop"]


@validated
class GeneMatching:
    """How the genes of a panel are found in a table; see :func:`st_predict.pp.align_panel`.

    Parameters
    ----------
    missing
        Whether genes that a table lacks are an error or are dropped.
    duplicates
        What to do with a gene that several columns of a table carry.
    ignore_case
        Whether symbols that differ in case are the same.
    id_column
        Column of ``.var`` with the identifiers; ``None`` finds it.
    aliases
        Other names of genes, as :class:`~st_predict._identifiers.GeneAliases`; a table or a file is read.
    """

    missing: Missing = "error"
    duplicates: Duplicates = "error"
    ignore_case: Flag = False
    id_column: Text | None = None
    aliases: Annotated[Any, BeforeValidator(GeneAliases.of)] = None


@validated
class Where:
    """Which elements of a slide are meant.

    Parameters
    ----------
    image_key
        Image, or a mapping from region to image.
    table_key
        Table of the spots.
    bin_um
        Side of the bins of Visium HD, in micrometres, instead of ``table_key``.
    shapes_key
        Shapes of the spots.
    layer
        Layer of the table with the raw counts; ``None`` for ``.X``.
    mpp
        Micrometres per pixel of level 0 of the image, if the caller knows, or a mapping from region to it.
    group_key
        Column of ``.obs`` that names the patient.
    tissue_only
        Whether spots whose ``in_tissue`` in ``.obs`` is 0 are left out.
    genes
        How the genes of a panel are found in the table.
    stain
        Stain in whose colours images are read; ``None`` for their own.
    """

    image_key: Text | Mapping[str, str] | None = None
    table_key: Text | None = None
    bin_um: Positive | None = None
    shapes_key: Text | None = None
    layer: Text | None = None
    mpp: Positive | Mapping[str, Positive] | Literal["spots"] | None = None
    group_key: Text = Keys.PATIENT
    tissue_only: Flag = True
    genes: GeneMatching = field(default_factory=GeneMatching)
    stain: Stain | None = None
